"""Whether Redis answers: asked in a thread, so that while it does not, calls need not wait for its timeout."""

import threading
import time
from collections.abc import Callable


class StoreWatch:
    """`lost` says why Redis does not answer, None while it does; a call that fails may set it."""

    def __init__(self, ping: Callable[[], object], *, interval_s: float = 0.25) -> None:
        self.lost: str | None = None
        self._answered = time.monotonic()
        self._ping = ping
        self._closed = threading.Event()
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._run, name="store watch", daemon=True)
        self._thread.start()

    @property
    def seconds_since_contact(self) -> float:
        return time.monotonic() - self._answered

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._ping()
                self.lost = None
                self._answered = time.monotonic()
            except Exception as error:  # whatever answers there, it is not Redis
                self.lost = str(error) or repr(error)
            self._closed.wait(self._interval_s)
