"""Follow a ref: a thread that hands each new version to its loader, and keeps the old one where that fails."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vitrine.artifacts.manifest import ArtifactError, MissingArtifactError
from vitrine.artifacts.store import ArtifactStore, LocalArtifact
from vitrine.errors import UnavailableError

log = logging.getLogger(__name__)


class Watcher:
    """Polls `ref` every `interval_s` seconds and calls `load` with the version it has come to name.

    load:       maps, warms up and swaps; whatever it raises means that the version is refused
    current:    the version that the caller has loaded already, or None
    on_refused: called with (version, reason), once a bad version

    A refused version is tried again only when the ref has changed in between. A store that cannot be reached, and
    a version not (yet) there, are tried again at the next poll. The first poll is immediate.

    Attributes: `current`, the version loaded last; `refused`, the one that the ref names where it was refused, else
    None; `refusals`, their count; `last_contact`, monotonic seconds of the last time the store answered.
    """

    def __init__(
        self,
        store: ArtifactStore,
        name: str,
        load: Callable[[LocalArtifact], None],
        *,
        max_schema: int,
        ref: str = "stable",
        interval_s: float = 1.0,
        current: str | None = None,
        on_refused: Callable[[str, str], None] | None = None,
    ) -> None:
        self.current = current
        self.refusals = 0
        self.last_contact: float | None = None
        self._store = store
        self._name = name
        self._load = load
        self._max_schema = max_schema
        self._ref = ref
        self._interval_s = interval_s
        self._on_refused = on_refused
        self.refused: str | None = None
        self._settled = False  # whether the refused version is not to be tried again
        self._trouble = ""
        self._poll_lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{name}", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Look once, now; returns when a new version is loaded or refused. Raises nothing."""
        with self._poll_lock:
            self._poll()

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop; waits for a load in progress, but no longer than timeout_s."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            self.poll()
            if self._closed.wait(self._interval_s):
                return

    def _poll(self) -> None:
        if self._closed.is_set():
            return
        try:
            version = self._store.resolve(self._name, self._ref)
        except Exception as error:
            self._report(f"{self._name}: cannot read what {self._ref!r} names: {error}")
            return
        self.last_contact = time.monotonic()
        if version != self.refused:
            self.refused, self._settled = None, False
        if version == self.current or self._settled:
            self._report("")
            return
        fetched = False
        try:
            artifact = self._store.fetch(self._name, version, max_schema=self._max_schema)
            fetched = True
            self._load(artifact)
        except UnavailableError as error:
            self._report(f"{self._name} {version}: cannot be fetched now: {error}")
        except Exception as error:
            if isinstance(error, ArtifactError) and self._moved_on(version):
                return  # pruned under our feet, which is no fault of the version
            reason = str(error) if isinstance(error, ArtifactError) else f"{type(error).__name__}: {error}"
            self._refuse(version, reason, settled=fetched or not isinstance(error, MissingArtifactError))
        else:
            self.current, self.refused = version, None
            self._report("")
            log.info("%s: %s is loaded", self._name, version)

    def _moved_on(self, version: str) -> bool:
        try:
            return self._store.resolve(self._name, self._ref) != version
        except (ArtifactError, UnavailableError):
            return False

    def _refuse(self, version: str, reason: str, *, settled: bool) -> None:
        self._settled = settled
        if self.refused == version:
            return
        self.refused = version
        self.refusals += 1
        log.error("%s %s is refused, %s stays: %s", self._name, version, self.current or "nothing", reason)
        if self._on_refused is not None:
            try:
                self._on_refused(version, reason)
            except Exception:
                log.exception("%s: the callback on_refused failed", self._name)

    def _report(self, trouble: str) -> None:
        """Log a trouble when it starts and when it ends, not at every poll in between."""
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                log.warning("%s", trouble)
            else:
                log.info("%s: the store answers again", self._name)
