"""An HTTP application as a process's front: uvicorn on a thread, with the life that gRPC processes have."""

from __future__ import annotations

import math
import socket
import threading
from typing import TYPE_CHECKING

from vitrine.runtime.lifecycle import listening
from vitrine.runtime.settings import Settings
from vitrine.runtime.tls import ServerTls

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication


class HttpFront:
    """Serves an ASGI application on the settings' port: `Lifecycle(settings, "console", HttpFront(...))`."""

    def __init__(self, settings: Settings, app: ASGIApplication) -> None:
        import uvicorn

        self._settings = settings
        # No log set-up of uvicorn's own: what it says comes as JSON lines like the rest.
        self._config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", server_header=False)
        self._server = uvicorn.Server(self._config)
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def in_flight(self) -> int:
        """Requests being handled now."""
        return len(self._server.server_state.tasks)

    def bind(self, tls: ServerTls | None) -> int:
        """Listens and returns the port; raises OSError where it is taken."""
        if tls is not None:
            self._config.ssl_context_factory = lambda _, __: tls.context()
        self._socket = listening(self._settings.host, self._settings.port, self._config.backlog)
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """No new requests; returns once those in flight have ended, after about `grace_s` at the latest."""
        self._config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True
        self._thread.join(grace_s + 5)

    def _run(self) -> None:
        assert self._socket is not None, "bind comes before start"
        self._server.run(sockets=[self._socket])
