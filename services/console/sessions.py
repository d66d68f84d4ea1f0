"""Sign-ins, kept in this process's memory: a random cookie stands for a token until it ends."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MOST = 10_000


@dataclass
class Session:
    """A signed-in caller. authorization: the header that stands for the token; admitted: when it last was, s."""

    caller: str
    authorization: str
    ends: float
    admitted: float


class Sessions:
    """Sessions by cookie, each for `length_s`; the oldest goes where there are too many."""

    def __init__(self, length_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._length_s, self._clock = length_s, clock
        self._kept: OrderedDict[bytes, Session] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, caller: str, authorization: str) -> str:
        """The cookie of a new session."""
        cookie = secrets.token_urlsafe(32)
        now = self._clock()
        with self._lock:
            self._kept[_digest(cookie)] = Session(caller, authorization, now + self._length_s, now)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return cookie

    def get(self, cookie: str) -> Session | None:
        """The session, unless it has ended."""
        with self._lock:
            session = self._kept.get(_digest(cookie))
            if session is not None and session.ends <= self._clock():
                del self._kept[_digest(cookie)]
                session = None
            return session

    def end(self, cookie: str) -> None:
        """Signs out."""
        with self._lock:
            self._kept.pop(_digest(cookie), None)

    def admitted(self, session: Session) -> None:
        """Notes that the token was looked at now."""
        session.admitted = self._clock()

    def lately(self, session: Session) -> bool:
        """Whether the token was looked at within the last minute."""
        return self._clock() - session.admitted < 60


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
