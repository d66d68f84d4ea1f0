"""The Redis layout: a bucket's states, lists and watermark under one hash tag, written by one fenced script.

    {m:17}:mark     hash: token, log, events (next offset of `user-events` in that log), ads (position in
                    `ad-updates` that all of its lists reflect), applied (events, ever)
    {m:17}:states   hash: user id -> state
    {m:17}:deleted  hash: user id -> the tombstone of the user's last deletion, which outlives a replay
    {m:17}:list:42  string: user 42's list, with an expiry where the store has one
    m:paused        string: why no worker applies anything now

The namespace stands before the m. The script writes only where the token is the one that its caller last read, and
replaces it by a fresh random one; docs/decisions/0007-bucket-fence.md says why not offsets or a counter.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis
from redis import exceptions

from vitrine import placement
from vitrine.errors import UnavailableError
from vitrine.matching.fetch import fetcher

# One pipeline's share of a batch: bounds the bytes in flight, and lets a worker's other threads in between.
BUCKETS_A_PIPELINE = 32

KEEP = b""  # in place of a state or a list: it stays as it is
RENEW = b"="  # in place of a list: it stays, and its expiry begins anew
DROP = b"-"  # in place of a list: it goes, and the state is a deletion's tombstone

UserWrite = tuple[int, bytes, bytes]
"""(user id, state or KEEP, list, KEEP, RENEW or DROP)."""

# KEYS: mark, states, deleted, one list a user. ARGV: token expected ('' for no mark yet), token to set, log, events
# offset, ads position, events applied, expiry of lists in ms (0: none), then user id, state and list of each user.
# Answers 1, or 0 where the token is another; an error where a list's key holds what is no list, or a newer one.
SCRIPT = """
local token = redis.call('HGET', KEYS[1], 'token')
if (token or '') ~= ARGV[1] then return 0 end
local expiry = ARGV[7]
for i = 4, #KEYS do
  local head = redis.call('GETRANGE', KEYS[i], 0, 5)
  if head ~= '' and (string.sub(head, 1, 4) ~= 'VMLS' or struct.unpack('<H', head, 5) > 2) then
    return redis.error_reply('FOREIGN ' .. KEYS[i])
  end
end
for i = 4, #KEYS do
  local at = 8 + (i - 4) * 3
  local state, list = ARGV[at + 1], ARGV[at + 2]
  if state ~= '' then redis.call('HSET', KEYS[2], ARGV[at], state) end
  if list == '-' then
    redis.call('UNLINK', KEYS[i])
    redis.call('HSET', KEYS[3], ARGV[at], state)
  elseif list == '=' then
    if expiry ~= '0' then redis.call('PEXPIRE', KEYS[i], expiry) end
  elseif list ~= '' then
    if expiry == '0' then redis.call('SET', KEYS[i], list) else redis.call('SET', KEYS[i], list, 'PX', expiry) end
  end
end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'log', ARGV[3], 'events', ARGV[4], 'ads', ARGV[5])
redis.call('HINCRBY', KEYS[1], 'applied', ARGV[6])
return 1
"""

# Redis is away, starting, or refuses writes for now: the same call may succeed later.
_AWAY = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterError,
    exceptions.RedisClusterException,
    exceptions.AskError,
    exceptions.TryAgainError,
)
_AWAY_WORDS = ("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN")


class ForeignListError(RuntimeError):
    """A list's key holds what this process did not write and must not overwrite."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A bucket's watermark.

    token:  b"" where the bucket was never written
    log:    what `events` is an offset of: "Kafka cluster's id/number of partitions"
    events: next offset to apply
    ads:    position in `ad-updates` up to which all lists of the bucket reflect it
    """

    token: bytes = b""
    log: str = ""
    events: int = 0
    applied: int = 0
    ads: int = 0


@dataclass(frozen=True, slots=True)
class BucketWrite:
    """What one script call writes, if the bucket's token is still `expected`.

    applied: events applied since the last write, added to the bucket's counter
    users:   what is written of each user
    ads:     position in `ad-updates` up to which all lists of the bucket then reflect it
    """

    bucket: int
    expected: bytes
    log: str
    events: int
    applied: int
    users: Sequence[UserWrite] = ()
    ads: int = 0


class BucketStore(Protocol):
    """What an owner of buckets asks of a store. Raises UnavailableError where the store does not answer."""

    def read_marks(self, buckets: Sequence[int]) -> list[Mark]: ...
    def read_states(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]: ...
    def read_lists(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]: ...
    def scan(self, bucket: int, chunk: int = ...) -> Iterator[list[tuple[int, bytes, bytes | None]]]: ...
    def write(self, writes: Sequence[BucketWrite], between: Callable[[], None] = ...) -> list[bytes | None]: ...


class Store:
    """The layout on one Redis; `client` answers in bytes.

    list_expiry_ms: how long a list is kept that is neither written nor renewed; 0: for good. States stay.
    """

    def __init__(self, client: redis.Redis, namespace: str = "", *, list_expiry_ms: int = 0) -> None:
        self.client = client
        self._fetcher = fetcher(client)
        self._prefix = placement.qualify(namespace, "m")
        self._is_cluster: bool = getattr(client, "is_cluster", False)
        self._paused_key = f"{self._prefix}:paused"
        self._expiry_ms = list_expiry_ms
        self._sha = ""

    def read_marks(self, buckets: Sequence[int]) -> list[Mark]:
        """The watermark of each bucket, in order."""
        with answering():
            pipeline = self.client.pipeline(transaction=False)
            for bucket in buckets:
                pipeline.hmget(self.key(bucket, "mark"), ["token", "log", "events", "applied", "ads"])
            rows = pipeline.execute()
        return [
            Mark() if token is None else Mark(token, log.decode(), int(events), int(applied or 0), int(ads or 0))
            for token, log, events, applied, ads in rows
        ]

    def read_states(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        """States of users, given by bucket: user id -> state, without those who have none."""
        return self._read_hashes("states", users)

    def read_lists(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        """Lists of users, given by bucket: user id -> list, without those who have none."""
        with answering():
            pipeline: Any = self.client.pipeline(transaction=False)
            for bucket, ids in users.items():  # not `mget`, which redis-py refuses in a cluster's pipeline
                pipeline.execute_command("MGET", *(self.list_key(bucket, user_id) for user_id in ids))
            rows = pipeline.execute()
        return {
            user_id: held
            for ids, row in zip(users.values(), rows, strict=True)
            for user_id, held in zip(ids, row, strict=True)
            if held is not None
        }

    def scan(self, bucket: int, chunk: int = 1_000) -> Iterator[list[tuple[int, bytes, bytes | None]]]:
        """All users of a bucket, in chunks: (user id, state, list). One written meanwhile may come twice."""
        client: Any = self.client
        cursor = 0
        while True:
            with answering():
                cursor, found = client.hscan(self.key(bucket, "states"), cursor, count=chunk)
                ids = list(map(int, found))
                lists = client.mget([self.list_key(bucket, user_id) for user_id in ids]) if ids else []
            if ids:
                yield list(zip(ids, found.values(), lists, strict=True))
            if not cursor:
                return

    def write(
        self, writes: Sequence[BucketWrite], between: Callable[[], None] = lambda: None
    ) -> list[bytes | None]:
        """The new token of each bucket written, None where another token stood: then nothing of it was written.

        Each bucket is written whole or not at all; `between` is called after each pipeline but the last.
        """
        tokens: list[bytes | None] = []
        for start in range(0, len(writes), BUCKETS_A_PIPELINE):
            if start:
                between()
            tokens += self._write(writes[start : start + BUCKETS_A_PIPELINE])
        return tokens

    def read_list(self, user_id: int) -> bytes | None:
        """A user's list, by one GET: all that GetMatches reads."""
        with answering():
            return self._fetcher.get(self.list_key(placement.bucket_of(user_id), user_id))

    def read_user(self, user_id: int) -> tuple[bytes | None, bytes | None]:
        """(state, list) of a user, in one round trip and as of one write."""
        bucket = placement.bucket_of(user_id)
        with answering():
            pipeline = self.client.pipeline(transaction=True)  # one bucket, so one slot
            pipeline.hget(self.key(bucket, "states"), str(user_id))
            pipeline.get(self.list_key(bucket, user_id))
            state, stored = pipeline.execute()
        return state, stored

    def read_deleted(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        """Tombstones of users, given by bucket: user id -> its state's record, without those never deleted."""
        return self._read_hashes("deleted", users)

    def pause(self, why: str) -> None:
        """Has every worker of the namespace stop applying, within about a second, until `resume`."""
        with answering():
            self.client.set(self._paused_key, why or "paused")

    def resume(self) -> None:
        """Takes `pause` back."""
        with answering():
            self.client.delete(self._paused_key)

    def paused(self) -> str:
        """Why workers are paused; "" where they are not."""
        with answering():
            held: Any = self.client.get(self._paused_key)
        return held.decode() if held else ""

    def ping(self) -> None:
        """Returns where Redis answers; UnavailableError where it does not."""
        with answering():
            self.client.ping()

    def applied(self) -> int:
        """Events applied by all buckets since they were first written."""
        return sum(mark.applied for mark in self.read_marks(range(placement.BUCKETS)))

    def lists(self) -> int:
        """Users who have a state, and with it a list, one that is owed, or a deletion's tombstone."""
        with answering():
            pipeline = self.client.pipeline(transaction=False)
            for bucket in range(placement.BUCKETS):
                pipeline.hlen(self.key(bucket, "states"))
            return sum(pipeline.execute())

    def _read_hashes(self, what: str, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        with answering():
            pipeline = self.client.pipeline(transaction=False)
            for bucket, ids in users.items():
                pipeline.hmget(self.key(bucket, what), [str(id) for id in ids])
            rows = pipeline.execute()
        return {
            id: held
            for ids, row in zip(users.values(), rows, strict=True)
            for id, held in zip(ids, row, strict=True)
            if held is not None
        }

    def _write(self, writes: Sequence[BucketWrite]) -> list[bytes | None]:
        fresh = [secrets.token_bytes(16) for _ in writes]
        with answering():
            if not self._sha:
                self._sha = self.client.script_load(SCRIPT)
            answers = self._evaluate(writes, fresh)
            lost = [i for i, answer in enumerate(answers) if isinstance(answer, exceptions.NoScriptError)]
            if lost:  # Redis was restarted; these calls did nothing
                self.client.script_load(SCRIPT)
                again = self._evaluate([writes[i] for i in lost], [fresh[i] for i in lost])
                for i, answer in zip(lost, again, strict=True):
                    answers[i] = answer
            for answer in answers:
                if isinstance(answer, exceptions.ResponseError) and str(answer).startswith("FOREIGN "):
                    raise ForeignListError(
                        f"the list at {str(answer).split()[1]} cannot be read, and is left as it is: it is of a"
                        " newer schema, or not ours. Way out: a worker that knows its schema, or delete that key"
                    )
                if isinstance(answer, Exception):
                    raise answer
        return [token if answer else None for token, answer in zip(fresh, answers, strict=True)]

    def _evaluate(self, writes: Sequence[BucketWrite], fresh: Sequence[bytes]) -> list[Any]:
        client: Any = self.client
        pipeline = self.client.pipeline(transaction=False)
        for write, token in zip(writes, fresh, strict=True):
            keys = [self.key(write.bucket, what) for what in ("mark", "states", "deleted")]
            arguments: list[bytes | str | int] = [
                write.expected,
                token,
                write.log,
                write.events,
                write.ads,
                write.applied,
                self._expiry_ms,
            ]
            for user_id, state, stored in write.users:
                keys.append(self.list_key(write.bucket, user_id))
                arguments += (user_id, state, stored)
            # Not `evalsha`, which redis-py refuses in a cluster's pipeline, though all keys share a slot. Told the
            # node, it need not send the whole command to a server first, to learn which its keys are.
            call: Any = pipeline.execute_command
            to = {"target_nodes": client.get_node_from_key(keys[0])} if self._is_cluster else {}
            call("EVALSHA", self._sha, len(keys), *keys, *arguments, **to)
        return pipeline.execute(raise_on_error=False)

    def key(self, bucket: int, what: str) -> str:
        return f"{{{self._prefix}:{bucket}}}:{what}"

    def list_key(self, bucket: int, user_id: int) -> str:
        return f"{{{self._prefix}:{bucket}}}:list:{user_id}"


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turns what passes by itself into UnavailableError; what does not (a key of another type) goes on up."""
    try:
        yield
    except _AWAY as error:
        raise UnavailableError(f"Redis does not answer: {error}") from error
    except exceptions.ResponseError as error:
        if str(error).startswith(_AWAY_WORDS):
            raise UnavailableError(f"Redis takes no writes now: {error}") from error
        raise
