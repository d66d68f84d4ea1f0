"""What a record of `user-events` must be: parsed whole, or refused with a reason for its dead letter."""

from functools import lru_cache

from google.protobuf.message import DecodeError

from vitrine import placement
from vitrine.api.events.v1 import events_pb2

MAX_VALUE_BYTES = 64 * 1024

_ACTIONS = frozenset((events_pb2.ItemAction.ACTION_VIEW, events_pb2.ItemAction.ACTION_PURCHASE))
_CHANGES = frozenset((events_pb2.CrowdChange.CHANGE_JOIN, events_pb2.CrowdChange.CHANGE_LEAVE))


class RecordError(ValueError):
    """Bytes are not the record that they should be; the message says what is wrong with them."""


def parse_event(key: bytes | None, value: bytes | None) -> events_pb2.UserEvent:
    """The event of a record, checked so that `state.fold` applies it without a further look.

    Raises RecordError for a tombstone, a value over 64 KiB or that is no UserEvent, a user that is 0 or not the
    key, a negative time, an id of 0, and a kind or an action that this reader does not know. Ids that no catalog
    knows are fine.
    """
    if value is None:
        raise RecordError("value: a tombstone, where user-events holds events only")
    if len(value) > MAX_VALUE_BYTES:
        raise RecordError(f"value: {len(value)} bytes, at most {MAX_VALUE_BYTES} are taken")
    event = events_pb2.UserEvent()
    try:
        event.ParseFromString(value)
    except DecodeError as error:
        raise RecordError(f"value: no UserEvent: {error}") from error
    user_id = event.user_id
    if not user_id:
        raise RecordError("user_id: 0 is reserved")
    if key != b"%d" % user_id:
        raise RecordError(f"key: {_shown(key)}, where user_id is {user_id}: the key is the id in decimal ASCII")
    if event.time_ms < 0:
        raise RecordError(f"time_ms: {event.time_ms} is before 1970")
    kind = event.WhichOneof("kind")
    if kind == "item":
        if event.item.action not in _ACTIONS:
            raise RecordError(f"item.action: {event.item.action} is none that this reader knows")
        if not event.item.item_id:
            raise RecordError("item.item_id: 0 is reserved")
    elif kind == "crowd":
        if event.crowd.change not in _CHANGES:
            raise RecordError(f"crowd.change: {event.crowd.change} is none that this reader knows")
        if not event.crowd.crowd_id:
            raise RecordError("crowd.crowd_id: 0 is reserved")
    elif kind == "impression":
        if not event.impression.ad_id:
            raise RecordError("impression.ad_id: 0 is reserved")
    elif kind == "click":
        if not event.click.ad_id:
            raise RecordError("click.ad_id: 0 is reserved")
    elif kind == "block":
        if not event.block.ad_id:
            raise RecordError("block.ad_id: 0 is reserved")
    elif kind not in ("rematch", "deletion"):
        raise RecordError("kind: unset, or none that this reader knows")
    return event


def bucket_of_record(key: bytes | None, partition: int, partitions: int) -> tuple[int, bool]:
    """(the bucket whose watermark answers for a record, whether its key belongs into its partition).

    A record without a key, or put into a partition that does not own its key's bucket, counts under the partition's
    first bucket: every record falls into exactly one bucket that the partition owns, so that a dead letter is
    acknowledged before a watermark passes it.
    """
    if key is not None:
        bucket = _bucket_of_key(key)
        if bucket % partitions == partition:
            return bucket, True
    return partition, False


@lru_cache(maxsize=1 << 16)
def _bucket_of_key(key: bytes) -> int:
    return (placement.murmur2(key) & 0x7FFFFFFF) % placement.BUCKETS


def _shown(key: bytes | None) -> str:
    return "absent" if key is None else repr(key[:40])
