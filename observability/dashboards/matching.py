"""Stored lists as they are served: where answers come from, how old they are, which ads may be shown."""

from observability.dashboards.grafana import Json, Query, dashboard, graph
from observability.dashboards.panels import (
    answers,
    contact,
    increase,
    of,
    processes,
    quantiles,
    service_calls,
    service_now,
    total_rate,
    unread_ad_updates,
)

_SERVICE = "vitrine.api.matching.v1.MatchingService"


def board() -> Json:
    """The dashboard."""
    return dashboard(
        "vitrine-matching",
        "Vitrine: matching",
        "Stored lists as they are served: where answers come from, how old they are, which ads may be shown.",
        [
            ("Now", service_now("matching", _SERVICE, "GetMatches", objective=0.025)),
            ("Calls", service_calls("matching", _SERVICE)),
            (
                "Answers",
                [
                    answers(),
                    graph(
                        "Share of fallbacks",
                        "Of the answers of five minutes.",
                        "percentunit",
                        Query(of("vitrine:fallbacks:ratio_rate5m"), "fallbacks {{namespace}}"),
                        most=1,
                    ),
                    graph(
                        "Age of the lists served",
                        "Since the append of the last event that a list reflects: when its user was last here.",
                        "s",
                        *quantiles("vitrine_matching_list_age_seconds", 0.5, 0.9),
                    ),
                    graph(
                        "Answers by arm",
                        "Of a user's own list its arm, of a fallback the arm that the user is in.",
                        "reqps",
                        Query(total_rate("vitrine_matching_answers_total", by="arm"), "arm {{arm}}"),
                        stack=True,
                    ),
                ],
            ),
            (
                "Ads",
                [
                    graph(
                        "Ads of the market",
                        "Live, and off: paused, ended, out of schedule or budget. Redefined: live ones kept apart,"
                        " until they are folded.",
                        "short",
                        Query(f"max by (state) ({of('vitrine_matching_ads')})", "{{state}}"),
                    ),
                    graph(
                        "Position",
                        "Of ad-updates, by server: servers that differ for long show different ads.",
                        "short",
                        Query(of("vitrine_matching_market_position"), "{{instance}}"),
                    ),
                    contact('job="matching"', by="instance"),
                    unread_ad_updates(),
                    graph(
                        "Ad updates passed over",
                        "Records that could not be applied, in five minutes.",
                        "short",
                        Query(
                            increase("vitrine_tail_skipped_records_total", 'job="matching"', by="topic, instance"),
                            "{{topic}} {{instance}}",
                        ),
                    ),
                ],
            ),
            ("Processes", processes("matching")),
        ],
    )
