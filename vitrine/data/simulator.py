"""A market drawn from a seed, at any size, in bounded memory: users by the chunk, each independent of the others.

What is drawn from what stands in docs/data.md, "Simulator"; the truth behind it in `vitrine.data.world`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vitrine.data import draws
from vitrine.data.market import MarketWriter
from vitrine.data.pictures import CATEGORIES, draw
from vitrine.data.schemas import EVENT_KINDS
from vitrine.data.world import FIRST_AD_ID, STYLES, TOPICS, World, affinity, click_probability

__all__ = ["click_probability", "write_market"]

START_MS = 1_748_736_000_000  # 2025-06-01 UTC
SPAN_MS = 90 * 86_400_000

_CHUNK_USERS = 4096
_KINDS = tuple(EVENT_KINDS)
_VIEW, _PURCHASE, _JOIN, _LEAVE, _IMPRESSION, _CLICK = range(len(_KINDS))

Progress = Callable[[str, float], None]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F64 = NDArray[np.floating[Any]]


def write_market(
    out: Path | str,
    *,
    users: int = 5_000,
    ads: int = 2_000,
    crowds: int = 400,
    pictures: int = 3_000,
    events_per_user: float = 16.0,
    seed: int = 0,
    progress: Progress = lambda stage, fraction: None,
    chunk_users: int = _CHUNK_USERS,
) -> None:
    """Write a market folder of these sizes; the same arguments give the same rows, whatever the chunk.

    Items are as many as the larger of ads and pictures; item i has picture i and is advertised by ad i.
    events_per_user: mean, at least 1; a click comes on top. Raises ValueError for sizes below 1.
    progress(stage, fraction of it) is called as stages go.
    """
    if users < 1 or ads < 1 or crowds < 1 or pictures < 0 or not events_per_user >= 1:
        raise ValueError("users, ads, crowds and events_per_user must be 1 or more, pictures 0 or more")
    sizes = {"ads": ads, "items": max(ads, pictures), "crowds": crowds}
    meta = {"name": "simulated market", "source": "simulator", "seed": seed, "world": sizes}
    progress("world", 0.0)
    world = World.build(seed, **sizes)
    progress("world", 1.0)
    with MarketWriter(out, meta) as market:
        _write_offers(world, market)
        for start in range(1, users + 1, chunk_users):
            ids = np.arange(start, min(start + chunk_users, users + 1), dtype=np.uint64)
            market.write("users", user_id=ids)
            history, held_out = simulate_users(world, ids, events_per_user)
            market.write("events", **history.columns())
            market.write("holdout", **held_out.columns())
            progress("users", (start + len(ids) - 1) / users)
        _write_pictures(world, pictures, market, progress)


@dataclass(frozen=True)
class Events:
    """Rows of events: `kind` is an index into EVENT_KINDS, ids are 0 where there is none."""

    user_id: U64
    time_ms: I64
    kind: I64
    item_id: U64
    crowd_id: U64
    ad_id: U64

    def columns(self) -> dict[str, Any]:
        """Arrow columns of the events' schema."""
        kinds = pa.DictionaryArray.from_arrays(pa.array(self.kind, pa.int8()), pa.array(_KINDS))
        ids = {
            name: pa.array(getattr(self, name), mask=getattr(self, name) == 0)
            for name in ("item_id", "crowd_id", "ad_id")
        }
        return {"user_id": self.user_id, "time_ms": self.time_ms, "kind": kinds.dictionary_decode(), **ids}

    def take(self, rows: NDArray[Any]) -> "Events":
        """These rows, in this order."""
        return Events(*(getattr(self, f.name)[rows] for f in fields(self)))


def simulate_users(world: World, users: U64, events_per_user: float) -> tuple[Events, Events]:
    """(history in each user's order of time, one held-out click a user) of any users, whoever else is drawn."""
    seed, tastes = world.seed, world.tastes(users)
    slots, joins = _slots(seed, users, events_per_user)
    who = np.repeat(np.arange(len(users)), slots)  # row in `users` of every event
    number = np.arange(len(who)) - np.repeat(np.cumsum(slots) - slots, slots)  # of the event within its user
    user = users[who]

    times = START_MS + (SPAN_MS * draws.uniform(seed, "time", user, number)).astype(np.int64)
    times = times[np.lexsort((times, who))]

    u = draws.uniform(seed, "kind", user, number)
    kind = np.select([u < 0.40, u < 0.52], [_VIEW, _PURCHASE], _IMPRESSION)
    kind = np.where(number < joins[who], _JOIN, kind)
    leaves = (number == slots[who] - 1) & (joins[who] > 0) & (number > joins[who]) & (u > 0.85)
    kind = np.where(leaves, _LEAVE, kind)

    first, second, share = world.user_topics(users)
    topic = np.where(draws.uniform(seed, "topic", user, number) < share[who], first[who], second[who])
    item = _looked_at(world, tastes[who], topic, user, number)
    # Who leaves, leaves the crowd joined first: that of the user's event 0.
    crowd_slot, crowd_topic = np.where(leaves, 0, number), np.where(leaves, _first_topic(topic, slots)[who], topic)
    crowd = world.crowd_choice.draw(crowd_topic, draws.uniform(seed, "crowd", user, crowd_slot))
    ad = _shown(world, topic, user, number)
    clicked = (kind == _IMPRESSION) & (
        draws.uniform(seed, "click", user, number)
        < click_probability(tastes[who], world.items[ad], world.quality[ad])
    )

    none = np.zeros(len(who), np.uint64)
    shown = Events(
        user_id=user,
        time_ms=times,
        kind=kind,
        item_id=np.where((kind == _VIEW) | (kind == _PURCHASE), item.astype(np.uint64) + np.uint64(1), none),
        crowd_id=np.where((kind == _JOIN) | (kind == _LEAVE), crowd.astype(np.uint64) + np.uint64(1), none),
        ad_id=np.where(kind == _IMPRESSION, ad.astype(np.uint64) + np.uint64(FIRST_AD_ID), none),
    )
    return _with_clicks(shown, clicked), _held_out(world, users, tastes, first, second, share)


def _slots(seed: int, users: U64, mean: float) -> tuple[I64, I64]:
    """(events of each user, before clicks; how many of them, the earliest, join a crowd)."""
    least = min(3.0, mean)
    more = np.minimum(-np.log(draws.uniform(seed, "events", users)), 6.0) * (mean - least)
    slots = np.maximum(1, np.rint(least + more)).astype(np.int64)
    joins = (4 * draws.uniform(seed, "joins", users)).astype(np.int64)
    return slots, np.minimum(joins, slots // 2)


def _first_topic(topic: I64, slots: I64) -> I64:
    """Topic of each user's event 0."""
    return np.asarray(topic[np.cumsum(slots) - slots])


def _looked_at(world: World, taste: F64, topic: I64, user: U64, number: I64) -> I64:
    """Of two items drawn by topic, mostly the one nearer to the user's own taste."""
    two = [world.item_choice.draw(topic, draws.uniform(world.seed, f"item/{k}", user, number)) for k in range(2)]
    lead = affinity(taste, world.items[two[0]]) - affinity(taste, world.items[two[1]])
    u = draws.uniform(world.seed, "item/pick", user, number)
    return np.asarray(np.where(u < 1.0 / (1.0 + np.exp(-6.0 * lead)), two[0], two[1]))


def _shown(world: World, topic: I64, user: NDArray[Any], number: NDArray[Any], stream: str = "ad") -> I64:
    """Ads shown: six in ten by the user's topic, the rest by fame alone."""
    u = draws.uniform(world.seed, stream, user, number)
    aimed = draws.uniform(world.seed, stream + "/aimed", user, number) < 0.6
    return np.asarray(np.where(aimed, world.ad_choice.draw(topic, u), world.any_ad.draw(np.zeros_like(topic), u)))


def _with_clicks(shown: Events, clicked: NDArray[np.bool_]) -> Events:
    """A click is a row of its own right after its impression, up to 30 s later, not after the user's next event."""
    rows = np.repeat(np.arange(len(clicked)), 1 + clicked)
    is_click = np.append(False, rows[1:] == rows[:-1])
    events = shown.take(rows)
    following = np.append(rows[1:], rows[-1:])
    same_user = shown.user_id[following] == events.user_id
    limit = np.where(same_user & (following != rows), shown.time_ms[following], events.time_ms + 30_000)
    delay = 2_000 + (events.time_ms % 28_000)  # a function of what is drawn already
    time = np.where(is_click, np.minimum(events.time_ms + delay, limit), events.time_ms)
    return Events(
        events.user_id,
        time,
        np.where(is_click, _CLICK, events.kind),
        events.item_id,
        events.crowd_id,
        events.ad_id,
    )


def _held_out(world: World, users: U64, tastes: F64, first: I64, second: I64, share: F64) -> Events:
    """The next click of each user: of 16 impressions one, by its click probability; after the history's end."""
    seed, number = world.seed, np.arange(16)
    user = users[:, None]
    topic = np.where(
        draws.uniform(seed, "next/topic", user, number) < share[:, None], first[:, None], second[:, None]
    )
    ads = _shown(world, topic, user, number, stream="next")
    p = click_probability(tastes[:, None, :], world.items[ads], world.quality[ads])
    gumbel = -np.log(-np.log(draws.uniform(seed, "next/pick", user, number)))
    ad = ads[np.arange(len(users)), np.argmax(np.log(p) + gumbel, axis=1)]
    hours = 1 + 23 * draws.uniform(seed, "next/time", users)
    return Events(
        user_id=users,
        time_ms=START_MS + SPAN_MS + (hours * 3_600_000).astype(np.int64),
        kind=np.full(len(users), _CLICK),
        item_id=ad.astype(np.uint64) + np.uint64(1),
        crowd_id=np.zeros(len(users), np.uint64),
        ad_id=ad.astype(np.uint64) + np.uint64(FIRST_AD_ID),
    )


def _write_offers(world: World, market: MarketWriter) -> None:
    """Crowds, items, ads and bids; bids are lognormal, on the item's crowds and on two more like the ad."""
    seed, n_crowds, n_ads = world.seed, len(world.crowds), world.ads
    names = [f"{TOPICS[t]} {c}" for c, t in enumerate(world.crowd_topics.tolist(), 1)]
    market.write("crowds", crowd_id=np.arange(1, n_crowds + 1, dtype=np.uint64), name=names)

    titles = [f"{TOPICS[t]} no. {i}" for i, t in enumerate(world.item_topics.tolist(), 1)]
    item_ids = np.arange(1, len(titles) + 1, dtype=np.uint64)
    for rows in _slices(len(titles)):
        lists = pa.ListArray.from_arrays(
            pa.array(world.item_indptr[rows.start : rows.stop + 1] - world.item_indptr[rows.start], pa.int32()),
            pa.array(
                world.item_crowds[world.item_indptr[rows.start] : world.item_indptr[rows.stop]].astype(np.uint64)
                + 1
            ),
        )
        market.write("items", item_id=item_ids[rows], crowd_ids=lists, title=titles[rows])

    ad_ids = np.arange(FIRST_AD_ID, FIRST_AD_ID + n_ads, dtype=np.uint64)
    n_advertisers = 1 + n_ads // 12
    owner = (n_advertisers * draws.uniform(seed, "advertiser", ad_ids) ** 2).astype(np.uint64) + np.uint64(1)
    for rows in _slices(n_ads):
        market.write(
            "ads", ad_id=ad_ids[rows], advertiser_id=owner[rows], item_id=item_ids[rows], title=titles[rows]
        )

    end = world.item_indptr[n_ads]
    own = np.repeat(np.arange(n_ads), np.diff(world.item_indptr[: n_ads + 1]))
    aimed = np.repeat(np.arange(n_ads), 2)
    u = draws.uniform(seed, "bid/crowd", aimed, np.tile([0, 1], n_ads))
    drawn = world.crowd_choice.draw(world.item_topics[aimed], u)
    pairs = np.unique(
        np.stack([np.concatenate([world.item_crowds[:end], drawn]), np.concatenate([own, aimed])]), axis=1
    )
    value = 0.5 * draws.normal(seed, "bid/ad", pairs[1]) + 0.6 * draws.normal(seed, "bid", pairs[1], pairs[0])
    bids = np.exp(-0.7 + value).astype(np.float32)
    for rows in _slices(len(bids)):
        market.write(
            "bids", crowd_id=pairs[0][rows].astype(np.uint64) + 1, ad_id=ad_ids[pairs[1][rows]], bid=bids[rows]
        )


def _write_pictures(world: World, count: int, market: MarketWriter, progress: Progress) -> None:
    """Seven in ten pictures are for training, one for validation, two for test."""
    for rows in _slices(count, 256):
        ids = np.arange(rows.start + 1, rows.stop + 1, dtype=np.uint64)
        categories = [CATEGORIES[t // len(STYLES)] for t in world.item_topics[rows].tolist()]
        u = draws.uniform(world.seed, "split", ids)
        market.write(
            "images",
            item_id=ids,
            split=np.select([u < 0.7, u < 0.8], ["train", "validation"], "test").tolist(),
            category=categories,
            image=[draw(world.seed, i, c) for i, c in zip(ids.tolist(), categories, strict=True)],
        )
        progress("pictures", rows.stop / count)


def _slices(n: int, size: int = 1 << 16) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
