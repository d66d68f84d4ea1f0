"""What a user's deletion means beside the state: dead letters of the user's records go, and do not come back."""

from google.protobuf.message import DecodeError

from vitrine.api.events.v1.events_pb2 import DeadLetter, UserEvent
from vitrine.matching import state
from vitrine.matching.store import Store
from vitrine.placement import bucket_of


def was_forgotten(store: Store, key: bytes | None, offset: int) -> bool:
    """Whether the record of `user-events` at this offset belongs to a user who was deleted after it.

    Such a record is nobody's, also where it cannot be applied and is read again: no letter is written of it. Raises
    UnavailableError.
    """
    user_id = _user_of(key)
    if not user_id:
        return False
    bucket = bucket_of(user_id)
    tombstone = store.read_deleted({bucket: [user_id]}).get(user_id)
    return tombstone is not None and offset <= state.decode(tombstone).deleted_offset


def is_of(letter: DeadLetter, user_id: int, topic: str) -> bool:
    """Whether a letter holds a record of the user's, by its key or by what its value says."""
    if letter.topic != topic:
        return False
    if _user_of(letter.key) == user_id:
        return True
    try:
        return UserEvent.FromString(letter.value).user_id == user_id
    except DecodeError:
        return False


def _user_of(key: bytes | None) -> int:
    """The user of a record's key; 0 where it is no id."""
    if key is None or not key.isdigit() or len(key) > 20:
        return 0
    return int(key)
