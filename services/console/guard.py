"""Around every request: what browsers are told to refuse, and what is counted."""

import time

from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrine.runtime import metrics

requests = Counter(
    "vitrine_console_requests_total", "Requests answered.", ("page", "status"), registry=metrics.REGISTRY
)
seconds = Histogram(
    "vitrine_console_request_seconds",
    "From a request to the end of its answer.",
    ("page",),
    buckets=metrics.LATENCY_BUCKETS,
    registry=metrics.REGISTRY,
)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware: security headers on every answer, `vitrine_console_*` metrics by page and status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            await self._app(scope, receive, guarded)
        finally:
            page = _page(scope)
            requests.labels(page, str(status)).inc()
            seconds.labels(page).observe(time.perf_counter() - begun)


def _page(scope: Scope) -> str:
    """The handler's name; "unknown" for paths that lead nowhere, which anybody can make up."""
    return getattr(
        scope.get("endpoint"), "__name__", "static" if scope["path"].startswith("/static/") else "unknown"
    )
