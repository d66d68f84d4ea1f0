"""Click-rate scoring: calls, candidates, the model that is served."""

from observability.dashboards.grafana import Json, Query, dashboard, graph
from observability.dashboards.panels import of, processes, service_calls, service_now, total_rate

_SERVICE = "vitrine.api.ctr.v1.CtrService"


def board() -> Json:
    """The dashboard."""
    candidates = total_rate("vitrine_ctr_candidates_total")
    calls = total_rate("grpc_server_handled_total", 'grpc_method="Score"', 'grpc_code="OK"')
    return dashboard(
        "vitrine-ctr",
        "Vitrine: ctr",
        "Click-rate scoring: calls, candidates, the model that is served.",
        [
            ("Now", service_now("ctr", _SERVICE, "Score", objective=0.05)),
            ("Calls", service_calls("ctr", _SERVICE)),
            (
                "Scoring",
                [
                    graph("Candidates", "Ads scored a second.", "cps", Query(candidates, "candidates"), width=6),
                    graph(
                        "Candidates a call",
                        "Mean over the calls answered.",
                        "short",
                        Query(f"{candidates} / {calls}", "candidates a call"),
                        width=6,
                    ),
                    graph(
                        "Unknown ads",
                        "Share of the candidates that the model does not know; they score by the user alone.",
                        "percentunit",
                        Query(f"{total_rate('vitrine_ctr_unknown_ads_total')} / {candidates}", "unknown"),
                        width=6,
                        most=1,
                    ),
                    graph(
                        "Ads",
                        "That the model being served knows, by replica.",
                        "short",
                        Query(of("vitrine_ctr_ads"), "{{instance}}"),
                        width=6,
                    ),
                ],
            ),
            ("Processes", processes("ctr", follows=True)),
        ],
    )
