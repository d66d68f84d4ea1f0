"""How long an event takes until its user's list reflects it, and where it waits."""

from observability.dashboards.grafana import Json, Query, dashboard, graph, stat
from observability.dashboards.panels import (
    answers,
    backlog_age,
    contact,
    events_and_lists,
    of,
    oldest_event,
    quantiles,
    time_in_batches,
    unread_ad_updates,
)


def board() -> Json:
    """The dashboard."""
    written = "vitrine_matching_event_to_write_seconds"
    within_a_second = of(written + "_bucket", 'le="1.0"')
    return dashboard(
        "vitrine-freshness",
        "Vitrine: freshness",
        "How long an event takes until its user's list reflects it, and where it waits.",
        [
            (
                "Now",
                [
                    stat(
                        "Event to list, p99",
                        "From the broker's append to the list's write, over five minutes.",
                        "s",
                        Query(f"max ({of('vitrine:freshness_p99:5m')})", "p99"),
                        (1, "orange"),
                        width=6,
                    ),
                    oldest_event(width=6),
                    stat(
                        "Within a second",
                        "Share of the events of five minutes whose list was written within a second of the append.",
                        "percentunit",
                        Query(
                            f"sum (rate({within_a_second}[5m])) / sum (rate({of(written + '_count')}[5m]))",
                            "within 1 s",
                        ),
                        width=6,
                    ),
                    stat(
                        "Fallbacks",
                        "Share of GetMatches answers that are not the user's own list.",
                        "percentunit",
                        Query(f"max ({of('vitrine:fallbacks:ratio_rate5m')})", "fallbacks"),
                        (0.5, "orange"),
                        width=6,
                    ),
                ],
            ),
            (
                "From event to list",
                [
                    graph(
                        "Event to list",
                        "From the broker's append of an event to its list's being written.",
                        "s",
                        *quantiles(written, 0.5, 0.9, 0.99),
                        width=12,
                    ),
                    events_and_lists(width=12),
                ],
            ),
            (
                "Where events wait",
                [
                    backlog_age(),
                    graph(
                        "Lag",
                        "Events not yet applied.",
                        "short",
                        Query(f"sum by (namespace) ({of('vitrine_matching_lag_records')})", "lag {{namespace}}"),
                    ),
                    time_in_batches(),
                ],
            ),
            ("As it is served", [unread_ad_updates(), answers(), contact(by="job")]),
        ],
    )
