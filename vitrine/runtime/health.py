"""Health that tells the truth: named checks, asked again and again, decide what grpc.health.v1 answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vitrine.runtime import logs, metrics

# None or True: fine. A string says why not; False says only that.
Check = Callable[[], "str | bool | None"]

# Says SERVING as long as the process answers at all, drain or not: what a liveness probe asks.
LIVE = "live"

_log = logs.get_logger(__name__)


class Health:
    """Status of the process and of each of its services: SERVING only while every readiness check passes.

    ready:    checks that must pass, by name. Until `start` has asked them once the status is NOT_SERVING.
    degraded: checks whose failure is shown (`vitrine_degraded`, a log line) while the process goes on serving.

    Checks are asked every `interval_s` on one thread, so they must be quick: read a flag, call nobody. A check that
    raises counts as failed. Every change is logged with its reason.
    """

    def __init__(
        self,
        ready: Mapping[str, Check] | None = None,
        degraded: Mapping[str, Check] | None = None,
        *,
        interval_s: float = 0.2,
    ) -> None:
        self.servicer = _Servicer()
        self._ready = dict(ready or {})
        self._degraded = dict(degraded or {})
        self._services = {grpc_health.OVERALL_HEALTH}
        self._reasons: dict[tuple[str, str], str | None] = {}
        self._serving = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._set_all()

    @property
    def serving(self) -> bool:
        return self._serving

    def add_services(self, names: Iterable[str]) -> None:
        """Full names of gRPC services that this process answers; each gets the process's status."""
        with self._lock:
            self._services |= set(names)
            self._set_all()

    def start(self) -> None:
        self.refresh()
        self._thread.start()

    def refresh(self) -> bool:
        """Asks every check now; True where the process serves."""
        with self._lock:
            if self._stopped.is_set():
                return False
            failures = [name for name, check in self._ready.items() if self._ask("ready", name, check) is not None]
            for name, check in self._degraded.items():
                metrics.degraded.labels(name).set(self._ask("degraded", name, check) is not None)
            for name in self._ready:
                metrics.not_ready.labels(name).set(name in failures)
            self._publish(not failures)
            return not failures

    def drain(self) -> None:
        """NOT_SERVING from here on, whatever the checks say; watchers are told, and their streams ended."""
        self._stopped.set()
        with self._lock:
            self._serving = False
            metrics.serving.set(0)
            self.servicer.enter_graceful_shutdown()
            self.servicer.end_watches()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.refresh()

    def _ask(self, kind: str, name: str, check: Check) -> str | None:
        """The reason why `check` fails, or None; logged where it is not what it was."""
        try:
            answer = check()
            reason = None if answer is None or answer is True else str(answer or "not ready")
        except Exception as error:
            reason = f"the check failed: {type(error).__name__}: {error}"
        before = self._reasons.get((kind, name))
        self._reasons[kind, name] = reason
        if reason != before:
            if reason is None:
                _log.info("check passes again", check=name, kind=kind)
            else:
                _log.warning("check fails", check=name, kind=kind, reason=reason)
        return reason

    def _publish(self, serving: bool) -> None:
        if serving == self._serving:
            return
        self._serving = serving
        self._set_all()
        _log.info("serving" if serving else "not serving")

    def _set_all(self) -> None:
        metrics.serving.set(self._serving)
        codes = health_pb2.HealthCheckResponse
        for name in self._services:
            self.servicer.set(name, codes.SERVING if self._serving else codes.NOT_SERVING)


class HealthServer:
    """The health port: plaintext gRPC of grpc.health.v1 alone, since probes speak no TLS and have no token.

    It listens until the process ends, so that a probe sees NOT_SERVING during the drain, not a closed port.
    """

    def __init__(self, health: Health) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(2, thread_name_prefix="health-rpc"),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4096)],
            maximum_concurrent_rpcs=100,  # anybody may call it, so what it holds open is bounded; watches count
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self._server)

    def bind(self, host: str, port: int) -> int:
        """Listens, without answering yet; the port. Raises RuntimeError where it is taken."""
        return self._server.add_insecure_port(f"{bracketed(host)}:{port}")

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()


def bracketed(host: str) -> str:
    """`host` as it stands before ":port"."""
    return f"[{host}]" if ":" in host else host


def is_serving(address: str, service: str = "", timeout_s: float = 1.0) -> bool:
    """Whether the process with this health port says SERVING of `service`, by default of itself as a whole."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class _Servicer(grpc_health.HealthServicer):
    """The standard servicer, with Watch streams that cannot hold anybody up.

    Its own would send under its lock, on the thread that changes a status. A send waits for grpc's thread, and that
    one waits for the lock when a watching caller hangs up at that moment: both stand still for ever. So a thread of
    its own sends. And every stream ends at `end_watches`: an open one would hold up the drain.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches: dict[int, Callable[[health_pb2.HealthCheckResponse | None], None]] = {}
        self._sends: queue.SimpleQueue[tuple[Any, health_pb2.HealthCheckResponse | None]] = queue.SimpleQueue()
        threading.Thread(target=self._send_forever, name="health-watch", daemon=True).start()

    def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        if request.service == LIVE:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        return super().Check(request, context)

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> None:  # noqa: N802
        ended = threading.Event()

        def send(response: health_pb2.HealthCheckResponse | None) -> None:
            if not ended.is_set():
                if response is None:
                    ended.set()
                    self._watches.pop(id(ended), None)
                self._sends.put((send_response_callback, response))

        self._watches[id(ended)] = send
        super().Watch(request, context, send)

    def end_watches(self) -> None:
        for send in list(self._watches.values()):
            send(None)

    def _send_forever(self) -> None:
        while True:
            send, response = self._sends.get()
            send(response)
