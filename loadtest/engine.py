"""The generator: calls sent when they are due, whatever became of those before, and timed from when they were due.

A client that waits for an answer before it sends the next call stops measuring while the server stalls (coordinated
omission). Here a Poisson process fixes the send times beforehand; a late send counts as the system's delay.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from loadtest.measured import Measured


class Pending(Protocol):
    """A call under way: gRPC's future, or one of concurrent.futures."""

    def add_done_callback(self, done: Callable[[Any], None], /) -> Any: ...
    def exception(self) -> BaseException | None: ...
    def result(self) -> Any: ...


class Call(Protocol):
    """What is driven. `send` begins the n-th call; `wrong` says what is wrong with its answer, or None."""

    def send(self, number: int) -> Pending: ...
    def wrong(self, number: int, answer: Any) -> str | None: ...


# A call that is still under way this long after the last one was due counts as a failure.
PATIENCE_S = 10.0
# An answer that came in the last moments before the window closed shows no backlog.
SETTLE_S = 0.05


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Send times of a Poisson process, seconds from 0, ascending."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate * seconds)
    return np.sort(rng.uniform(0.0, seconds, count))


def open_loop(
    call: Call,
    rate: float,
    seconds: float,
    *,
    seed: int = 0,
    warm_s: float = 0.0,
    stopped: Callable[[], bool] = lambda: False,
) -> Measured:
    """Drive `call` at `rate` for warm_s + seconds; what was due in the first warm_s is sent and not measured.

    stopped: asked before every call; once it says so the step ends there
    """
    due = arrivals(rate, warm_s + seconds, seed)
    run = _Run(call, len(due))
    cpu, wall = time.process_time(), time.perf_counter()
    run.start = wall + 0.01
    for number, at in enumerate(due.tolist()):
        wait = run.start + at - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        if stopped():
            seconds = time.perf_counter() - run.start - warm_s
            break
        run.send(number)
    cpu_used, took = time.process_time() - cpu, time.perf_counter() - wall
    run.wait_all(PATIENCE_S)
    measured = (due >= warm_s) & (np.arange(len(due)) < run.sent)
    done = run.ended[measured]
    answered = np.isfinite(done) & run.fine[measured]
    result = Measured(rate, seconds, sent=int(measured.sum()), failures=run.failures(measured))
    result.answered = int((answered & (done <= warm_s + seconds + SETTLE_S)).sum())
    result.record((done - due[measured])[answered] * 1e6)
    if measured.any():
        result.lag_us = max(0.0, float(np.percentile((run.began - due)[measured], 99)) * 1e6)
    result.client_cpu = cpu_used / took
    return result


def closed_loop(call: Call, concurrency: int, seconds: float) -> Measured:
    """What `concurrency` callers get answered who each wait for their last answer: the limit of throughput."""
    run = _Run(call, 1_000_000)
    numbers = iter(range(len(run.ended)))
    end = time.perf_counter() + seconds
    lock = threading.Lock()

    def proceed() -> None:
        with lock:
            number = next(numbers)
        run.send(number, then=lambda: proceed() if time.perf_counter() < end else None)

    cpu, run.start = time.process_time(), time.perf_counter()
    for _ in range(concurrency):
        proceed()
    time.sleep(max(0.0, end - time.perf_counter()))
    cpu_used, took = time.process_time() - cpu, time.perf_counter() - run.start
    run.wait_all(PATIENCE_S)
    sent = np.zeros(len(run.ended), bool)
    sent[: run.sent] = True
    done = np.isfinite(run.ended) & run.fine
    result = Measured(0.0, took, sent=run.sent, failures=run.failures(sent))
    result.answered = int((done & (run.ended <= took)).sum())
    result.record((run.ended - run.began)[done] * 1e6)
    result.client_cpu = cpu_used / took
    return result


class _Run:
    """Send and end times of a step's calls, seconds since `start`; NaN where they have not ended."""

    def __init__(self, call: Call, size: int) -> None:
        self.start = 0.0
        self.began = np.zeros(size)
        self.ended = np.full(size, np.nan)
        self.fine = np.zeros(size, bool)
        self.sent = 0
        self._wrongs: dict[int, str] = {}
        self._call = call
        self._ended = 0
        self._lock = threading.Lock()

    def send(self, number: int, then: Callable[[], None] = lambda: None) -> None:
        def done(pending: Pending) -> None:
            now = time.perf_counter()
            why = self._why_not(number, pending)
            self.fine[number] = why is None
            if why is not None:
                self._wrongs[number] = why
            self.ended[number] = now - self.start
            with self._lock:
                self._ended += 1
            then()

        self.began[number] = time.perf_counter() - self.start
        with self._lock:
            self.sent += 1
        self._call.send(number).add_done_callback(done)

    def wait_all(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._ended < self.sent and time.monotonic() < deadline:
            time.sleep(0.002)

    def failures(self, which: NDArray[np.bool_]) -> Counter[str]:
        """Failures among the calls of `which`, by reason."""
        found = Counter(why for number, why in list(self._wrongs.items()) if which[number])
        silent = int((np.isnan(self.ended) & which).sum())
        if silent:
            found["no answer"] = silent
        return found

    def _why_not(self, number: int, pending: Pending) -> str | None:
        error = pending.exception()
        if error is not None:
            code = getattr(error, "code", None)
            return str(getattr(code() if callable(code) else code, "name", None) or repr(error))
        return self._call.wrong(number, pending.result())
