"""The topic `ad-updates` for those who write it: the last record of each key, and appends that are acknowledged."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError

from vitrine.errors import UnavailableError
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics
from vitrine.runtime.consume import Record
from vitrine.runtime.redact import redact_url
from vitrine.runtime.tail import Apply, Tail

_SEND_S = 30.0
_SILENT_S = 10.0


def read_whole(url: str, topic: str, apply: Apply, offsets: Mapping[int, int] | None = None) -> Tail:
    """A tail that has read a topic up to its end, and is closed.

    Raises UnavailableError where Kafka, or the topic, is not there for ten seconds, and what ended the tail.
    """
    tail = Tail(url, topic, apply, offsets)
    try:
        silent_since = time.monotonic()
        while not tail.caught_up.wait(0.05):
            if tail.error is not None:
                raise tail.error
            if min(tail.seconds_since_contact, time.monotonic() - silent_since) > _SILENT_S:
                raise UnavailableError(
                    f"{topic} cannot be read at {redact_url(url)}: Kafka does not answer, or has no such topic "
                    "(`vitrine topics create` makes it)"
                )
    finally:
        tail.close()
    return tail


class Last(NamedTuple):
    """The last record of a key."""

    offset: int
    append_ms: int
    value: bytes


class AdLog:
    """What compaction would leave of a namespace's `ad-updates`, and a producer to it. A context manager."""

    def __init__(self, url: str, namespace: str) -> None:
        self.topic = qualify(namespace, topics.AD_UPDATES)
        self.last: dict[bytes, Last] = {}
        self._url = url
        self._position = 0
        self._producer: KafkaProducer | None = None

    def read(self) -> Self:
        """Up to the topic's end. Raises UnavailableError, and LogLostError where the log was made anew."""
        tail = read_whole(self._url, self.topic, self._take, {0: self._position} if self._position else None)
        self._position = tail.positions[0]
        return self

    def append(self, records: Iterable[tuple[bytes, bytes | None]]) -> list[int]:
        """The records' offsets, once the broker has them all. Raises UnavailableError."""
        if self._producer is None:
            # One partition: named, since the in-memory broker makes more of them.
            self._producer = kafka.producer(self._url, linger_ms=5)
        try:
            sent = [self._producer.send(self.topic, key=key, value=value, partition=0) for key, value in records]
            return [each.get(timeout=_SEND_S).offset for each in sent]
        except KafkaError as error:
            self.close()  # the next attempt has a producer of its own
            raise UnavailableError(f"{self.topic} does not take records ({error}); some may be there") from error

    def close(self) -> None:
        """Ends the connection."""
        if self._producer is not None:
            self._producer.close(timeout=2)
            self._producer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, records: Mapping[int, Sequence[Record]]) -> int:
        for record in records.get(0, ()):
            if record.key is None:
                continue
            if record.value is None:
                self.last.pop(record.key, None)
            else:
                self.last[record.key] = Last(record.offset, record.timestamp, record.value)
        return 0
