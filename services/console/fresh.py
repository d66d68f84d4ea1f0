"""An answer that may be slow to come: asked for on a thread of its own, waited for a while, kept for a while."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from vitrine.errors import UnavailableError

T = TypeVar("T")


class Fresh(Generic[T]):
    """`get` gives what `ask` returned, or raises what it raised, asked again once that is `fresh_s` old.

    ask:    called by one thread at a time; it may take as long as it likes
    wait_s: `get` raises UnavailableError after so long, or gives the answer before, where there was one
    what:   is not answering, for the message
    """

    def __init__(self, ask: Callable[[], T], *, what: str, wait_s: float, fresh_s: float = 5.0) -> None:
        self._ask, self._what, self._wait_s, self._fresh_s = ask, what, wait_s, fresh_s
        self._asking: Future[T] | None = None
        self._answer: Future[T] | None = None
        self._at = float("-inf")
        self._lock = threading.Lock()

    def get(self) -> T:
        """The answer."""
        with self._lock:
            if self._answer is not None and time.monotonic() - self._at <= self._fresh_s:
                return self._answer.result()
            if self._asking is None:
                self._asking = Future()
                threading.Thread(target=self._run, args=(self._asking,), name=self._what, daemon=True).start()
            asking, before = self._asking, self._answer
        wait([asking], self._wait_s)
        if asking.done():
            return asking.result()
        if before is not None:
            return before.result()
        raise UnavailableError(f"{self._what} did not answer within {self._wait_s:g} s; it is still being asked")

    def _run(self, asking: Future[T]) -> None:
        try:
            asking.set_result(self._ask())
        except Exception as error:
            asking.set_exception(error)
        with self._lock:  # its age counts from its coming, not from the next question
            self._answer, self._asking, self._at = asking, None, time.monotonic()
