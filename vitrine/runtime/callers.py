"""Who may call: callers known by the hash of their token, each with its methods and its rate, from a TOML file.

The file (docs/security.md has an example) is read again when it changes. A token is looked up by its SHA-256 in a
dict: what a comparison's time could tell is about hashes, and nobody can choose a token for the hash it has, so no
constant-time comparison is needed. The file holds no token either.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import Counter

from vitrine.runtime.files import FileError, Reloaded, read
from vitrine.runtime.metrics import REGISTRY

if TYPE_CHECKING:
    from vitrine.runtime.settings import Settings

refused = Counter(
    "vitrine_calls_refused_total",
    "Calls refused before any work: no_token, wrong_token (caller is empty), method or rate.",
    ("caller", "reason"),
    registry=REGISTRY,
)

# Name of the caller of the call in hand; empty where everybody may call.
current: ContextVar[str] = ContextVar("caller", default="")

Reason = Literal["no_token", "wrong_token", "method", "rate"]

# Alike for every method and token, there or not, so that a refusal tells nothing but itself.
_MESSAGES: dict[Reason, str] = {
    "no_token": "a bearer token is required",
    "wrong_token": "the bearer token is not known",
    "method": "this caller may not call this method",
    "rate": "this caller is over its rate",
}

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_METHOD = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*/(?:\*|[A-Za-z_]\w*)")
_FIELDS = {"name", "token_sha256", "methods", "rate_per_s", "burst"}


class Refused(Exception):  # noqa: N818  # an answer, not a fault
    """A call may not go on. `retry_after_s` is given where waiting helps."""

    def __init__(self, reason: Reason, retry_after_s: float = 0.0) -> None:
        super().__init__(_MESSAGES[reason])
        self.reason: Reason = reason
        self.retry_after_s = retry_after_s


class Bucket:
    """A token bucket: `burst` calls at once, `rate_per_s` in the long run. Thread-safe."""

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._clock = clock
        self._left = burst
        self._at = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """0 where the call may go on; else the seconds until one may."""
        with self._lock:
            now = self._clock()
            self._left = min(self.burst, self._left + (now - self._at) * self.rate_per_s)
            self._at = now
            if self._left < 1:
                return (1 - self._left) / self.rate_per_s
            self._left -= 1
            return 0.0


class Caller:
    """One entry of the file. `methods` are "service/Method" and "service/*"."""

    __slots__ = ("_services", "_single", "bucket", "methods", "name")

    def __init__(self, name: str, methods: Sequence[str], bucket: Bucket | None) -> None:
        self.name = name
        self.methods = tuple(methods)
        self.bucket = bucket
        self._single = frozenset(methods)
        self._services = frozenset(method[:-2] for method in methods if method.endswith("/*"))

    def may(self, method: str) -> bool:
        """Whether `method`, "service/Method", is among its methods."""
        return method in self._single or method.rpartition("/")[0] in self._services


class Callers:
    """The callers of the file's newest usable version."""

    def __init__(self, path: Path, *, every_s: float = 1.0) -> None:
        """Raises FileError where the file cannot be used."""
        self._path = path
        self._table: dict[bytes, Caller] = {}
        self._file = Reloaded("callers", [path], self._load, every_s=every_s)

    @property
    def refusal(self) -> str | None:
        """Why the file as it is now cannot be used, while an older version is; a degraded check."""
        return self._file.refusal

    def admit(self, authorization: str | bytes | None, method: str) -> Caller:
        """The caller behind an `authorization` header, or raises Refused, which is counted.

        method: "service/Method", without a leading slash
        """
        if not authorization:
            refused.labels("", "no_token").inc()
            raise Refused("no_token")
        caller = self._file.current.get(_digest(authorization))
        if caller is None:
            refused.labels("", "wrong_token").inc()
            raise Refused("wrong_token")
        if not caller.may(method):
            refused.labels(caller.name, "method").inc()
            raise Refused("method")
        if caller.bucket is not None and (wait_s := caller.bucket.take()):
            refused.labels(caller.name, "rate").inc()
            raise Refused("rate", wait_s)
        return caller

    def close(self) -> None:
        """Looks at the file no more."""
        self._file.close()

    def _load(self, found: Sequence[bytes]) -> dict[bytes, Caller]:
        table = parse(found[0], str(self._path))
        before = {caller.name: caller.bucket for caller in self._table.values()}
        for caller in table.values():  # a new version of the file fills nobody's bucket
            old, new = before.get(caller.name), caller.bucket
            if old and new and (old.rate_per_s, old.burst) == (new.rate_per_s, new.burst):
                caller.bucket = old
        self._table = table
        return table


def of_settings(settings: Settings) -> Callers | None:
    """The process's own; None where everybody may call. The settings have checked the file."""
    return None if settings.callers is None else Callers(settings.callers)


def check(path: Path) -> dict[bytes, Caller]:
    """The file's callers by digest of their token. Raises FileError naming file, entry, field and way out."""
    return parse(read(path), str(path))


def _digest(authorization: str | bytes) -> bytes:
    """Of the token in "Bearer TOKEN"; anything else is a token that nobody has."""
    if isinstance(authorization, str):
        authorization = authorization.encode("utf-8", "replace")
    scheme, _, token = authorization.partition(b" ")
    return hashlib.sha256(token.strip()).digest() if scheme.lower() == b"bearer" else b""


def parse(text: bytes, file: str) -> dict[bytes, Caller]:
    """Callers by the digest of their token; `file` is for messages. Raises FileError."""
    try:
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{file} is not TOML: {error}") from error
    entries = document.pop("callers", None)
    if document:
        raise FileError(f"{file}: {min(document)}: unknown; the file holds [[callers]] alone")
    if not isinstance(entries, list) or not entries:
        raise FileError(f"{file}: no [[callers]], so nobody could call; `vitrine callers new` prints one")
    table: dict[bytes, Caller] = {}
    names: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        where = f"{file}: callers, entry {number}"
        if not isinstance(entry, Mapping):
            raise FileError(f"{where}: should be a table, [[callers]]")
        if isinstance(entry.get("name"), str):
            where += f" ({entry['name']!r})"
        caller, digests = _caller(entry, where)
        if caller.name in names:
            raise FileError(f"{where}: name: already taken by another entry; give each caller its own")
        names.add(caller.name)
        for digest in digests:
            if digest in table:
                raise FileError(f"{where}: token_sha256: is {table[digest].name!r}'s too; give each its own token")
            table[digest] = caller
    return table


def _caller(entry: Mapping[str, Any], where: str) -> tuple[Caller, list[bytes]]:
    def wrong(field: str, message: str) -> FileError:
        return FileError(f"{where}: {field}: {message}")

    for field in sorted(entry.keys() - _FIELDS):
        raise wrong(field, f"unknown; fields are {', '.join(sorted(_FIELDS))}")
    name, hashes, methods = entry.get("name"), entry.get("token_sha256"), entry.get("methods")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong("name", "should be 1 to 64 letters, digits, '.', '_' and '-'")
    hashes = [hashes] if isinstance(hashes, str) else hashes
    if (
        not isinstance(hashes, list)
        or not hashes
        or not all(isinstance(each, str) and _SHA256.fullmatch(each.lower()) for each in hashes)
    ):
        # What stands there is not repeated: it may be the token itself.
        raise wrong("token_sha256", "should be the token's SHA-256, 64 hex digits, or a list of such, as "
                    "`vitrine callers new` prints; never the token")  # fmt: skip
    if not isinstance(methods, list) or not methods:
        raise wrong("methods", 'should be a list of "package.Service/Method" or "package.Service/*"')
    for method in methods:
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise wrong("methods", f'should be "package.Service/Method" or "package.Service/*", not {method!r}')
    rate, burst = entry.get("rate_per_s"), entry.get("burst")
    if rate is not None and (not _number(rate) or not 0 < rate <= 1e9):
        raise wrong("rate_per_s", f"should be a number above 0, calls a second, not {rate!r}; without it, no limit")
    if burst is not None and (not _number(burst) or not 1 <= burst <= 1e9):
        raise wrong("burst", f"should be 1 or more calls at once, not {burst!r}")
    if burst is not None and rate is None:
        raise wrong("burst", "needs rate_per_s beside it")
    bucket = None if rate is None else Bucket(float(rate), float(max(1, rate) if burst is None else burst))
    return Caller(name, methods, bucket), [bytes.fromhex(each) for each in hashes]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
