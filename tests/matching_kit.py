"""What the matching tests share: a small seeded market, the offline pass as their oracle, a store in memory."""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrine.api.events.v1.events_pb2 import UserEvent
from vitrine.artifacts import ArtifactStore
from vitrine.data.replay import user_event
from vitrine.features import SCHEMA, UserTowers, feature_keys
from vitrine.matching import record, state
from vitrine.matching.catalog import Catalog, build_item_crowds, build_postings
from vitrine.matching.events import RecordError, parse_event
from vitrine.matching.market import Market
from vitrine.matching.match import Matcher
from vitrine.matching.state import UserState
from vitrine.matching.store import DROP, KEEP, RENEW, BucketWrite, Mark
from vitrine.placement import bucket_of

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000


@dataclass(frozen=True)
class LogRecord:
    """A record as the owner sees it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def small_catalog(seed: int = 1, crowds: int = 12, ads: int = 150, items: int = 40, bids: int = 600) -> Catalog:
    """Ids with gaps, lognormal bids, items in one to four crowds; ad n is for item n, while there is one."""
    rng = np.random.default_rng(seed)
    crowd_ids = np.arange(1, crowds + 1, dtype=np.uint64) * 10
    ad_ids = np.arange(1, ads + 1, dtype=np.uint64) * 3
    item_ids = np.arange(1, items + 1, dtype=np.uint64) * 7
    pairs = np.unique(rng.integers(0, crowds * ads, bids))
    indptr, posting_ads, posting_bids = build_postings(
        crowd_ids,
        ad_ids,
        crowd_ids[pairs // ads],
        ad_ids[pairs % ads],
        np.round(rng.lognormal(0, 1, len(pairs)), 1).astype(np.float32) + np.float32(0.1),  # rounded: with ties
    )
    lengths = rng.integers(1, 5, items)
    item_crowds = np.concatenate([rng.choice(crowd_ids, n, replace=False) for n in lengths])
    item_indptr, item_ordinals = build_item_crowds(crowd_ids, lengths, item_crowds)
    return Catalog(
        crowds=crowd_ids,
        crowd_indptr=indptr,
        posting_ads=posting_ads,
        posting_bids=posting_bids,
        ads=ad_ids,
        ad_advertisers=np.ones(ads, np.uint64),
        ad_items=np.where(np.arange(ads) < items, np.resize(item_ids, ads), 0).astype(np.uint64),
        items=item_ids,
        item_indptr=item_indptr,
        item_crowd_ordinals=item_ordinals,
        half_life_ms=30 * DAY_MS,
    )


def small_towers(catalog: Catalog, seed: int = 2, dim: int = 4) -> UserTowers:
    """Random towers that know all but the last items and ads, so that unknown ones are met too."""
    rng = np.random.default_rng(seed)
    keys = np.concatenate(
        [feature_keys("user_item", catalog.items[:-2]), feature_keys("user_crowd", catalog.crowds)]
    )
    ads = catalog.ads[:-2]
    return UserTowers(
        np.sort(keys),
        rng.normal(0, 0.3, len(keys)).astype(np.float32),
        rng.normal(0, 0.3, (len(keys), dim)).astype(np.float32),
        -2.0,
        ads,
        rng.normal(0, 0.3, len(ads)).astype(np.float32),
        rng.normal(0, 0.3, (len(ads), dim)).astype(np.float32),
    )


def small_matcher(*, stored: int = 20, served: int = 10, catalog: Catalog | None = None) -> Matcher:
    catalog = catalog or small_catalog()
    return Matcher(
        Market.of(catalog, "c1"), small_towers(catalog), towers_version="t1", stored=stored, served=served
    )


def publish(store: ArtifactStore, folder: Path, catalog: Catalog, towers: UserTowers) -> None:
    """Publishes both as their trainers do."""
    catalog.write(folder / "catalog")
    store.publish("catalog", folder / "catalog", schema=1)
    files = folder / "towers"
    files.mkdir()
    for name in ("user_keys", "user_w", "user_v", "ads", "ad_bias", "ad_vecs"):
        np.save(files / f"{name}.npy", getattr(towers, name), allow_pickle=False)
    (files / "meta.json").write_text(json.dumps({"bias": float(towers.bias)}))
    (files / "schema.json").write_text(SCHEMA.to_json())
    store.publish("towers", files, schema=1)


def random_event(rng: np.random.Generator, catalog: Catalog, user_id: int, time_ms: int) -> UserEvent:
    """An event of any kind, now and then about an id that the catalog lacks."""
    kind = rng.choice(
        ["view", "purchase", "join", "leave", "impression", "click"], p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]
    )
    return user_event(
        str(kind),
        user_id,
        time_ms,
        int(rng.choice(np.append(catalog.items, 999_983))),
        int(rng.choice(np.append(catalog.crowds, 999_979))),
        int(rng.choice(np.append(catalog.ads, 999_961))),
    )


def replay(partitions: Iterable[Sequence[LogRecord]], matcher: Matcher) -> dict[int, tuple[bytes, bytes]]:
    """The oracle: one undisturbed pass, event by event, then one list a user: user -> (state, list), as bytes.

    partitions: each partition's records from its beginning; a record that cannot be parsed is passed over.
    """
    states: dict[int, UserState] = {}
    for records in partitions:
        for each in records:
            try:
                event = parse_event(each.key, each.value)
            except RecordError:
                continue
            user = states.setdefault(event.user_id, UserState(event.user_id))
            state.fold(user, event, each.timestamp, each.offset, matcher.table)
    pairs = {}
    for user_id, user in states.items():
        stored = b""
        if not user.is_tombstone:
            (made,) = matcher.lists([user])
            user.listed = user.revision
            stored = record.encode(made, matcher.catalog)
        pairs[user_id] = (state.encode(user), stored)
    return pairs


class MemoryStore:
    """The bucket script's semantics over dictionaries; `fenced=False` breaks it on purpose."""

    def __init__(self, *, fenced: bool = True) -> None:
        self.marks: dict[int, Mark] = {}
        self.states: dict[int, bytes] = {}
        self.lists: dict[int, bytes] = {}
        self.deleted: dict[int, bytes] = {}
        self._fenced = fenced

    def read_marks(self, buckets: Sequence[int]) -> list[Mark]:
        return [self.marks.get(bucket, Mark()) for bucket in buckets]

    def read_states(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        for bucket, ids in users.items():
            assert all(bucket_of(user_id) == bucket for user_id in ids)
        return {id: self.states[id] for ids in users.values() for id in ids if id in self.states}

    def read_lists(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        return {id: self.lists[id] for ids in users.values() for id in ids if id in self.lists}

    def write(
        self, writes: Sequence[BucketWrite], between: Callable[[], None] = lambda: None
    ) -> list[bytes | None]:
        tokens: list[bytes | None] = []
        for number, write in enumerate(writes):
            if number:
                between()
            tokens.append(self._write(write))
        return tokens

    def scan(self, bucket: int, chunk: int = 1_000) -> Iterator[list[tuple[int, bytes, bytes | None]]]:
        rows = [(id, user, self.lists.get(id)) for id, user in self.states.items() if bucket_of(id) == bucket]
        for start in range(0, len(rows), chunk):
            yield rows[start : start + chunk]

    def rewind(self, bucket: int, log: str, events: int) -> None:
        """`vitrine.matching.rewind`: states and lists go, tombstones stay, whoever owned the bucket is fenced."""
        for user_id in [id for id in self.states if bucket_of(id) == bucket]:
            self.lists.pop(user_id, None)
            del self.states[user_id]
        self.states |= {id: user for id, user in self.deleted.items() if bucket_of(id) == bucket}
        held = self.marks.get(bucket, Mark())
        self.marks[bucket] = replace(held, token=secrets.token_bytes(16), log=log, events=events, applied=0)

    def copy(self) -> tuple[dict, ...]:
        return tuple(dict(part) for part in (self.marks, self.states, self.lists, self.deleted))

    def restore(self, copied: tuple[dict, ...]) -> None:
        """What a lagging replica is like when it is promoted."""
        self.marks, self.states, self.lists, self.deleted = (dict(part) for part in copied)

    def _write(self, write: BucketWrite) -> bytes | None:
        held = self.marks.get(write.bucket, Mark())
        if self._fenced and held.token != write.expected:
            return None
        for user_id, user, stored in write.users:
            if user:
                self.states[user_id] = user
            if stored == DROP:
                self.lists.pop(user_id, None)
                self.deleted[user_id] = user
            elif stored not in (KEEP, RENEW):
                self.lists[user_id] = stored
        token = secrets.token_bytes(16)
        self.marks[write.bucket] = replace(
            held,
            token=token,
            log=write.log,
            events=write.events,
            ads=write.ads,
            applied=held.applied + write.applied,
        )
        return token
