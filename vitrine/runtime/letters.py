"""The dead letters of a namespace: read whole, sent again to where they came from, or forgotten.

A letter is gone once a tombstone of its key follows it; compaction drops both in time (docs/matching-operate.md).
"""

from collections.abc import Callable, Mapping, Sequence

from google.protobuf.message import DecodeError
from kafka import KafkaProducer
from kafka.errors import KafkaError

from vitrine.api.events.v1.events_pb2 import DeadLetter
from vitrine.errors import UnavailableError
from vitrine.runtime import kafka
from vitrine.runtime.consume import Record
from vitrine.runtime.tail import Tail

_READ_S = 120.0
_TIMEOUT_S = 30.0


class CutError(ValueError):
    """A letter does not hold its record whole, so that the record cannot be sent again."""


def read(url: str, topic: str) -> dict[bytes, DeadLetter]:
    """Every letter that stands, by its key, in the order of the log. What is no letter is passed over."""
    found: dict[bytes, DeadLetter] = {}

    def take(records: Mapping[int, Sequence[Record]]) -> int:
        skipped = 0
        for some in records.values():
            for record in some:
                if record.key is None:
                    skipped += 1
                    continue
                found.pop(record.key, None)
                if record.value is not None:
                    try:
                        found[record.key] = DeadLetter.FromString(record.value)
                    except DecodeError:
                        skipped += 1
        return skipped

    tail = Tail(url, topic, take)
    try:
        tail.wait_caught_up(_READ_S)
    finally:
        tail.close()
    return found


def resend(
    url: str, topic: str, letters: Mapping[bytes, DeadLetter], check: Callable[[DeadLetter], None]
) -> dict[bytes, str]:
    """Appends each letter's record to its topic again, then takes the letter back: key -> why one was left.

    check: raises ValueError where a record would only come back. A record may be appended twice where this is
    killed between the two. Raises UnavailableError where Kafka does not take one; those before it are done.
    """
    left: dict[bytes, str] = {}
    producer = kafka.producer(url)
    try:
        for key, letter in letters.items():
            try:
                check_whole(letter)
                check(letter)
            except ValueError as error:
                left[key] = str(error)
                continue
            _send(producer, letter.topic, letter.key or None, letter.value)
            _send(producer, topic, key, None)
    finally:
        producer.close(timeout=2)
    return left


def forget(url: str, topic: str, keys: Sequence[bytes]) -> None:
    """A tombstone for each key. Raises UnavailableError where Kafka does not take one."""
    if not keys:
        return
    producer = kafka.producer(url)
    try:
        for key in keys:
            _send(producer, topic, key, None)
    finally:
        producer.close(timeout=2)


def check_whole(letter: DeadLetter) -> None:
    """Raises CutError where the letter does not hold its record whole."""
    if not letter.value:
        raise CutError("it was a tombstone, or empty")
    if max(len(letter.key), len(letter.value)) >= kafka.DEAD_LETTER_BYTES:
        raise CutError(f"only its first {kafka.DEAD_LETTER_BYTES} bytes were kept")


def _send(producer: KafkaProducer, topic: str, key: bytes | None, value: bytes | None) -> None:
    try:
        producer.send(topic, key=key, value=value).get(timeout=_TIMEOUT_S)
    except KafkaError as error:
        raise UnavailableError(f"{topic} did not take a record ({error}); run it again") from error
