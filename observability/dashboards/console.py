"""The console: pages answered, how quickly, and what it lacks."""

from observability.dashboards.grafana import Json, Query, dashboard, graph, stat
from observability.dashboards.panels import processes, quantile, serving, total_rate

_REQUESTS = "vitrine_console_requests_total"
_SECONDS = "vitrine_console_request_seconds"


def board() -> Json:
    """The dashboard."""
    return dashboard(
        "vitrine-console",
        "Vitrine: console",
        "The console: pages answered, how quickly, and what it lacks.",
        [
            (
                "Now",
                [
                    serving("console"),
                    stat("Requests", "Answered a second.", "reqps", Query(total_rate(_REQUESTS), "requests")),
                    stat(
                        "Slowest, p99",
                        "Over all pages.",
                        "s",
                        Query(quantile(0.99, _SECONDS), "p99"),
                        (1, "orange"),
                    ),
                ],
            ),
            (
                "Pages",
                [
                    graph(
                        "Requests by status",
                        "Answered a second; 401 and 403 are visitors without a token that may look.",
                        "reqps",
                        Query(total_rate(_REQUESTS, by="status"), "{{status}}"),
                        stack=True,
                    ),
                    graph(
                        "Requests by page",
                        "Answered a second.",
                        "reqps",
                        Query(total_rate(_REQUESTS, by="page"), "{{page}}"),
                        stack=True,
                    ),
                    graph(
                        "Time by page, p99",
                        "From a request to the end of its answer.",
                        "s",
                        Query(quantile(0.99, _SECONDS, by="page"), "{{page}}"),
                    ),
                ],
            ),
            ("Processes", processes("console", waits=False)),
        ],
    )
