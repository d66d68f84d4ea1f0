"""Sending a bucket back in its log: states and lists go, deletions stay, and the owner reads again from there.

One script moves the watermark and puts the bucket's tombstones in the place of its states, so that at every moment
the bucket is as of one offset; the token that it sets makes the owner read the watermark again (docs/matching.md,
"Fence"). Lists go after that, each unless its user has been folded again meanwhile. A run that was killed is
finished by the next.
"""

import secrets
from typing import Any

from vitrine.matching.store import Store, answering

_CHUNK = 1_000

# KEYS: mark, states, deleted, old states. ARGV: token to set, log, events offset. Answers 1; 0 where the watermark
# is of another log; -1 where the old states of an earlier run are still there.
_REWIND = """
local log = redis.call('HGET', KEYS[1], 'log')
if log and log ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[4]) == 1 then return -1 end
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[4]) end
local deleted = redis.call('HGETALL', KEYS[3])
for i = 1, #deleted, 2 do redis.call('HSET', KEYS[2], deleted[i], deleted[i + 1]) end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'log', ARGV[2], 'events', ARGV[3], 'applied', 0)
return 1
"""

# KEYS: states, deleted, one list a user. ARGV: the users. Removes lists of those who have not been folded again.
_SWEEP = """
local gone = 0
for i = 3, #KEYS do
  local state = redis.call('HGET', KEYS[1], ARGV[i - 2])
  if not state or state == redis.call('HGET', KEYS[2], ARGV[i - 2]) then
    gone = gone + redis.call('UNLINK', KEYS[i])
  end
end
return gone
"""


def rewind(store: Store, bucket: int, log: str, events: int) -> bool:
    """Sends a bucket to an offset of its partition; False, and nothing done, where it is of another log."""
    client: Any = store.client
    keys = [store.key(bucket, what) for what in ("mark", "states", "deleted", "old")]
    while True:
        with answering():
            done = client.eval(_REWIND, len(keys), *keys, secrets.token_bytes(16), log, events)
        _sweep(store, bucket)
        if done >= 0:
            return bool(done)


def _sweep(store: Store, bucket: int) -> None:
    """Removes the lists of the users of the old states, then those."""
    client: Any = store.client
    old, states, deleted = (store.key(bucket, what) for what in ("old", "states", "deleted"))
    cursor = 0
    with answering():
        while True:
            cursor, found = client.hscan(old, cursor, count=_CHUNK)
            if found:
                users = [int(user_id) for user_id in found]
                keys = [states, deleted, *(store.list_key(bucket, user_id) for user_id in users)]
                client.eval(_SWEEP, len(keys), *keys, *users)
            if not cursor:
                break
        client.unlink(old)
