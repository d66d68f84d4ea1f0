"""The matching worker: partitions, batches, what could not be applied, and who else writes."""

from observability.dashboards.grafana import Json, Query, dashboard, graph, stat
from observability.dashboards.panels import (
    backlog_age,
    contact,
    events_and_lists,
    increase,
    of,
    oldest_event,
    processes,
    quantiles,
    serving,
    time_in_batches,
    total_rate,
)


def board() -> Json:
    """The dashboard."""
    lag = of("vitrine_matching_lag_records")
    return dashboard(
        "vitrine-worker",
        "Vitrine: worker",
        "The matching worker: partitions, batches, what could not be applied, and who else writes.",
        [
            (
                "Now",
                [
                    serving("worker"),
                    stat(
                        "Partitions",
                        "That have an owner; all of user-events should.",
                        "short",
                        Query(f"count ({lag})", "partitions"),
                    ),
                    stat(
                        "Events",
                        "Applied a second.",
                        "cps",
                        Query(total_rate("vitrine_matching_events_applied_total"), "events"),
                    ),
                    stat(
                        "Lag", "Events not yet applied.", "short", Query(f"sum ({lag})", "lag"), (10_000, "orange")
                    ),
                    oldest_event(),
                    stat(
                        "Dead letters",
                        "In the last hour.",
                        "short",
                        Query(f"sum (increase({of('vitrine_matching_dead_letters_total')}[1h]))", "letters"),
                        (1, "orange"),
                        decimals=0,
                    ),
                ],
            ),
            (
                "Partitions",
                [
                    graph(
                        "Lag by partition",
                        "Events not yet applied.",
                        "short",
                        Query(lag, "{{partition}} ({{instance}})"),
                    ),
                    backlog_age(),
                    graph(
                        "Owners",
                        "Partitions by worker; one that moves leaves a worker and joins another.",
                        "short",
                        Query(f"count by (instance) ({lag})", "{{instance}}"),
                        stack=True,
                    ),
                ],
            ),
            (
                "Work",
                [
                    events_and_lists(),
                    time_in_batches(),
                    graph(
                        "Time of a batch",
                        "Events folded, lists matched, buckets written.",
                        "s",
                        *quantiles("vitrine_matching_batch_seconds", 0.5, 0.99),
                    ),
                ],
            ),
            (
                "Trouble",
                [
                    graph(
                        "Dead letters by worker",
                        "Records that could not be applied, in five minutes.",
                        "short",
                        Query(increase("vitrine_matching_dead_letters_total", by="instance"), "{{instance}}"),
                    ),
                    graph(
                        "Writes fenced off, buckets read again",
                        "In five minutes: someone else had written the bucket.",
                        "short",
                        Query(
                            increase("vitrine_matching_fence_rejects_total", by="instance"),
                            "fenced off {{instance}}",
                        ),
                        Query(
                            increase("vitrine_matching_bucket_reloads_total", by="instance"),
                            "read again {{instance}}",
                        ),
                    ),
                    contact('job="worker"', by="instance"),
                ],
            ),
            ("Processes", processes("worker")),
        ],
    )
