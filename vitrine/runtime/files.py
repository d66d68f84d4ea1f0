"""Files that are read again when they change; where the new content cannot be used, the last good one stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from vitrine.runtime import logs

T = TypeVar("T")

_log = logs.get_logger(__name__)


class FileError(ValueError):
    """A file cannot be used; the message names it and says what would be right."""


class Reloaded(Generic[T]):
    """What `load` made of some files' bytes, looked at every `every_s` on a thread of its own.

    The bytes themselves are compared, since a time stamp may stay the same over a quick second write. `load` raises
    FileError where it cannot use them: half a rotation, or a mistake. Then `refusal` says so until it is put right.
    """

    def __init__(
        self, what: str, paths: Sequence[Path], load: Callable[[Sequence[bytes]], T], *, every_s: float = 1.0
    ) -> None:
        """
        what: name in the log: "callers".

        Raises FileError where the first version cannot be used.
        """
        self._what = what
        self.paths = list(paths)
        self._load = load
        self._every_s = every_s
        self._seen = read_all(self.paths)
        self.current: T = load(self._seen)
        self.refusal: str | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reload-{what}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Looks no more; what is in use stays so."""
        self._closed.set()
        self._thread.join()

    def look(self) -> None:
        """Takes up what has changed."""
        try:
            found = read_all(self.paths)
            if found != self._seen:
                self.current = self._load(found)
                self._seen = found
                _log.info(f"new {self._what} in use", files=[str(path) for path in self.paths])
            self.refusal = None
        except FileError as error:
            if str(error) != self.refusal:
                _log.error(f"new {self._what} refused, the old ones are used on", reason=str(error))
            self.refusal = str(error)

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            try:
                self.look()
            except Exception as error:
                self.refusal = f"the files could not be looked at: {error}"
                _log.exception(f"{self._what} could not be looked at")


def read_all(paths: Sequence[Path]) -> list[bytes]:
    """The files' bytes. Raises FileError naming the one that cannot be read."""
    return [read(path) for path in paths]


def read(path: Path) -> bytes:
    """The file's bytes; raises FileError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from error
