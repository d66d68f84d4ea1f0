"""Visual search: calls, the stages of a search, the index that is served."""

from observability.dashboards.grafana import Json, Query, dashboard, graph
from observability.dashboards.panels import of, processes, quantile, service_calls, service_now, total_rate

_SERVICE = "vitrine.api.ann.v1.AnnService"


def board() -> Json:
    """The dashboard."""
    stages = "vitrine_ann_stage_seconds"
    return dashboard(
        "vitrine-ann",
        "Vitrine: ann",
        "Visual search: calls, the stages of a search, the index that is served.",
        [
            ("Now", service_now("ann", _SERVICE, "Search", objective=0.1)),
            ("Calls", service_calls("ann", _SERVICE)),
            (
                "Search",
                [
                    graph(
                        "Queries",
                        "Queries a second by what they are; a call may hold up to 256.",
                        "reqps",
                        Query(total_rate("vitrine_ann_queries_total", by="kind"), "{{kind}}"),
                        width=6,
                        stack=True,
                    ),
                    graph(
                        "Time of stages",
                        "Mean of a search: log, decode, wait, encode, graph, scan, rerank (docs/ann.md, Service).",
                        "s",
                        Query(
                            " / ".join(total_rate(stages + part, by="stage") for part in ("_sum", "_count")),
                            "{{stage}}",
                        ),
                        width=6,
                    ),
                    graph(
                        "Stages, p99",
                        "The slowest of a hundred searches.",
                        "s",
                        Query(quantile(0.99, stages, by="stage"), "{{stage}}"),
                        width=6,
                    ),
                    graph(
                        "Items",
                        "In the index that is served, by replica; they differ while a new version comes in.",
                        "short",
                        Query(of("vitrine_ann_items"), "{{index}} {{instance}}"),
                        width=6,
                    ),
                ],
            ),
            (
                "Graph and updates",
                [
                    graph(
                        "Codes compared with",
                        "A query: what its walks and scans looked at.",
                        "short",
                        Query(
                            " / ".join(total_rate(f"vitrine_ann_{each}_total") for each in ("visited", "queries")),
                            "codes a query",
                        ),
                        width=6,
                    ),
                    graph(
                        "Calls a search",
                        "Mean number of calls that one search answered.",
                        "short",
                        Query(
                            " / ".join(total_rate(f"vitrine_ann_batch_calls_{part}") for part in ("sum", "count")),
                            "calls",
                        ),
                        width=6,
                    ),
                    graph(
                        "Items without a graph",
                        "Newest items, scanned until they are folded.",
                        "short",
                        Query(of("vitrine_ann_scanned_items"), "{{index}} {{instance}}"),
                        width=6,
                    ),
                    graph(
                        "Updates not shown yet",
                        "Records of item-updates that a replica has not applied.",
                        "short",
                        Query(of("vitrine_ann_log_lag_records"), "{{index}} {{instance}}"),
                        width=6,
                    ),
                ],
            ),
            ("Processes", processes("ann", follows=True)),
        ],
    )
