"""The life of a process: bind, announce, serve, drain on SIGTERM, health and metrics beside (docs/runtime.md)."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from vitrine.runtime import logs, metrics, tls, tracing
from vitrine.runtime.callers import Callers
from vitrine.runtime.health import Check, Health, HealthServer, bracketed
from vitrine.runtime.settings import Settings, named
from vitrine.runtime.tls import ServerTls

_log = logs.get_logger(__name__)


class StartError(Exception):
    """The process cannot start as it was told to; the message says what to change."""


class Front(Protocol):
    """The server that a process is there for: gRPC (`server.py`) or HTTP (`http.py`)."""

    @property
    def in_flight(self) -> int:
        """Calls being handled now."""

    def bind(self, tls: ServerTls | None) -> int:
        """Listens and returns the port, without answering yet; raises OSError or RuntimeError where it cannot."""

    def start(self) -> None:
        """Begins to answer."""

    def stop(self, grace_s: float) -> None:
        """No new calls from now on; returns once those in flight have ended, after `grace_s` at the latest."""


class Lifecycle:
    """A server with health, metrics and an orderly end.

    `run` is all that a `main` needs; a thread of the process that has failed calls `stop`. Tests use `start` and
    `drain`.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        front: Front,
        *,
        ready: Check | Mapping[str, Check] | None = None,
        degraded: Mapping[str, Check] | None = None,
        on_drain: Sequence[Callable[[], None]] = (),
        callers: Callers | None = None,
    ) -> None:
        """
        service:  short name, in logs and in the announcement: "ctr".
        ready:    readiness checks by name (or one); the process says NOT_SERVING until all pass.
        degraded: conditions shown while it serves on, by reason.
        on_drain: called in order once the calls in flight have ended, or where the process could not start.
        callers:  those that the front asks who may call; health shows a file of them that is refused.
        """
        tracing.setup(settings.otlp_endpoint, settings.trace_ratio, service, settings.namespace)
        self._settings = settings
        self._service = service
        self._front = front
        self._tls = certificates = tls.of_settings(settings)
        self._callers = callers
        degraded = dict(degraded or {})
        if certificates is not None:
            degraded["certificates"] = lambda: certificates.refusal
        if callers is not None:
            degraded["callers"] = lambda: callers.refusal
        self._on_drain = list(on_drain)
        self._stops: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._metrics: metrics.MetricsServer | None = None
        self.address = ""
        self.metrics_address = ""
        self.health_address = ""
        self.health = Health({"ready": ready} if callable(ready) else ready, degraded)
        self._health_server = HealthServer(self.health)

    @property
    def in_flight(self) -> int:
        """Calls being handled now."""
        return self._front.in_flight

    def start(self) -> None:
        """Binds, serves and announces the addresses; raises StartError where a port is taken."""
        settings, host = self._settings, self._settings.host
        self.address = self._listen("port", settings.port, lambda: self._front.bind(self._tls))
        self.health_address = self._listen(
            "health_port", settings.health_port, lambda: self._health_server.bind(host, settings.health_port)
        )
        self.metrics_address = self._listen("metrics_port", settings.metrics_port, self._start_metrics)
        self._front.start()
        self._health_server.start()
        self.health.start()
        self._announce()

    def run(self) -> int:
        """Starts, waits for SIGTERM, SIGINT or `stop`, drains; the exit status. Call it from the main thread."""
        try:
            self.start()
        except StartError as error:
            print(f"vitrine {self._service}: {error}", file=sys.stderr)
            self._end_parts()
            return 2
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        status = self._stops.get()
        return self.drain() or status

    def stop(self, status: int = 0) -> None:
        """Asks `run` to drain and return `status`; from any thread, or a signal handler."""
        self._stops.put(status)

    def drain(self) -> int:
        """NOT_SERVING, no new calls, up to `drain_s` for those in flight, `on_drain`.

        Returns 0 where all went well.
        """
        settings = self._settings
        self.health.drain()
        _log.info("draining", in_flight=self.in_flight)
        time.sleep(settings.drain_delay_ms / 1000)
        self._front.stop(settings.drain_s)
        status = self._end_parts()
        self._health_server.stop()
        if self._metrics is not None:
            self._metrics.close()
        for files in (self._tls, self._callers):
            if files is not None:
                files.close()
        if settings.address_file is not None:
            settings.address_file.unlink(missing_ok=True)
        abandoned = self.in_flight
        if abandoned:
            _log.error("calls did not end in time", abandoned=abandoned, drain_s=settings.drain_s)
            status = 1
        _log.info("drained")
        return status

    def _listen(self, field: str, port: int, bind: Callable[[], int]) -> str:
        host = self._settings.host
        try:
            listening(host, port).close()  # where grpc fails to, it says on stderr what it pleases
            return f"{bracketed(host)}:{bind()}"
        except (OSError, RuntimeError) as error:
            raise StartError(_cannot_listen(host, field, port, error)) from error

    def _start_metrics(self) -> int:
        settings = self._settings
        self._metrics = metrics.MetricsServer(settings.host, settings.metrics_port, settings.namespace, self._tls)
        return self._metrics.port

    def _end_parts(self) -> int:
        status = 0
        for callback in self._on_drain:
            try:
                callback()
            except Exception:
                _log.exception("a drain step failed")
                status = 1
        tracing.close()
        return status

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        self.stop()

    def _announce(self) -> None:
        line = json.dumps(
            {
                "event": "listening",
                "service": self._service,
                "address": self.address,
                "metrics": self.metrics_address,
                "health": self.health_address,
                "pid": os.getpid(),
            }
        )
        if self._settings.address_file is not None:
            _write_whole(self._settings.address_file, line + "\n")
        print(line, flush=True)


def run(process: Lifecycle) -> int:
    """`process.run()`, and its exit status; `sys.exit(run(...))` is a main's last line."""
    status = process.run()
    if process.in_flight:
        os._exit(status)  # a handler that never returns would hold the interpreter's exit for ever
    return status


def listening(host: str, port: int, backlog: int = 1) -> socket.socket:
    """A socket that listens there. Raises OSError where nobody could."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(backlog)
    except BaseException:
        opened.close()
        raise
    return opened


def _cannot_listen(host: str, field: str, port: int, error: Exception) -> str:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"cannot listen on {host}:{port} ({why}); give another {named(field)}, or 0 for a free one"


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)
