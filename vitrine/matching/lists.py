"""Lists kept exact by increments: what changed of state and market is tested, the rest stays as it lies.

docs/matching.md, "A list is kept exact by increments", has why each step is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.matching.match import Matcher, users_of
from vitrine.matching.record import Ranking, StoredList
from vitrine.matching.side import Users
from vitrine.matching.state import SeenAd, UserState

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

MANY_CHANGED = 4_096
"""Ads changed since a list was made beyond which a full match is the cheaper way."""

_MANY_POSTINGS = 4_096  # of added crowds, all of which a complete list would take in: the same
_NO_FLOOR = 0.0, 0xFFFFFFFFFFFFFFFF  # (value, ad) that nothing is below


@dataclass(frozen=True, slots=True)
class Before:
    """What an increment needs of the state that the stored list was made from."""

    crowds: frozenset[int]
    blocked: frozenset[int]
    seen: Mapping[int, SeenAd]
    clock_ms: int

    @classmethod
    def of(cls, state: UserState) -> "Before":
        """Of a state as it is now, before events are folded into it."""
        seen = {ad: SeenAd(e.impressions, 0, e.last_ms) for ad, e in state.ads.items() if e.impressions}
        return cls(frozenset(state.crowds), frozenset(state.blocked), seen, state.clock_ms)


@dataclass(slots=True)
class Work:
    """One user's list to be brought to a state and to the matcher's market.

    before:   of the state that `stored` was made from, under the same tower; None: a full match (no list, a list
              still owed, a tower made anew, Rematch)
    stored:   the list, None where there is none
    position: offset of `ad-updates` that the list reflects, where its bucket's watermark is further than it says
    arm:      the user's model arm, the same in all of a call: it is the matcher's towers'
    """

    state: UserState
    before: Before | None
    stored: StoredList | None
    position: int = 0
    arm: str = "a"


@dataclass(slots=True)
class Counters:
    """How lists came about. unchanged: rankings are as they were; short: fewer than S were left, so full."""

    full: int = 0
    incremental: int = 0
    unchanged: int = 0
    short: int = 0


class _Step(NamedTuple):
    """One increment: the ads and crowds in doubt."""

    work: Work
    stored: StoredList
    changed: list[int]  # ads that records of ad-updates are about
    turned: set[int]  # ads that are excluded now and were not, or the other way
    excluded: set[int]  # ads that are excluded now
    added: set[int]
    lost: frozenset[int]


class _Tests(NamedTuple):
    """Pairs to be judged anew, each once, by the user's row and then by ad; redefined: a record is about the ad."""

    rows: I64
    ads: U64
    redefined: NDArray[np.bool_]


def update(matcher: Matcher, works: Sequence[Work]) -> tuple[list[StoredList], Counters]:
    """Each work's list, in order: by increments where that is exact, else from all eligible pairs.

    Where rankings are as they were, `rankings` is the very tuple of `stored`, and unchanged ones of it are the same
    objects. No list depends on which others are in the call.
    """
    counters = Counters()
    made: list[StoredList | None] = [None] * len(works)
    steps: list[_Step] = []
    places: list[int] = []
    changed: dict[int, list[int]] = {}
    for place, work in enumerate(works):
        step = _step(matcher, work, changed)
        if step is None:
            continue
        if step.changed or step.turned or step.added or step.lost:
            steps.append(step)
            places.append(place)
        else:
            made[place] = matcher.stored_list(work.state, step.stored.rankings, work.arm)
            counters.unchanged += 1
    for place, step, rankings in zip(places, steps, _advance(matcher, steps), strict=True):
        if rankings is None or any(not r.complete and len(r.ads) < matcher.served for r in rankings):
            counters.short += 1
        else:
            made[place] = matcher.stored_list(step.work.state, rankings, step.work.arm)
            counters.unchanged += rankings is step.stored.rankings
    rest = [place for place, each in enumerate(made) if each is None]
    arm = works[0].arm if works else "a"
    for place, each in zip(rest, matcher.full([works[place].state for place in rest], arm), strict=True):
        made[place] = each
    counters.full, counters.incremental = len(rest), len(works) - len(rest)
    return [each for each in made if each is not None], counters


def _step(matcher: Matcher, work: Work, known: dict[int, list[int]]) -> _Step | None:
    """What is in doubt, None where an increment is not allowed; `known`: ads changed, by offset."""
    stored, before, state = work.stored, work.before, work.state
    if (
        stored is None
        or before is None
        or stored.epoch != matcher.epoch
        or stored.towers_version != matcher.towers_version
        or stored.catalog_version != matcher.catalog_version
        or state.towers_version != matcher.towers_version
        or stored.served != matcher.served
        or len(stored.rankings) != matcher.groups
    ):
        return None
    since = max(work.position, stored.position)
    if since > matcher.market.position:
        raise ValueError(
            f"user {state.user_id}: the list reflects ad-updates up to {since}, the market those up to"
            f" {matcher.market.position}"
        )
    changed = known.get(since)
    if changed is None:
        changed = known[since] = matcher.market.changed(since)
    if len(changed) > MANY_CHANGED:
        return None
    excluded = matcher.excluded(state.blocked, state.ads, state.clock_ms)
    was_excluded = matcher.excluded(before.blocked, before.seen, before.clock_ms)
    crowds = state.crowds.keys()
    return _Step(
        work, stored, changed, excluded ^ was_excluded, excluded, crowds - before.crowds, before.crowds - crowds
    )


def _advance(matcher: Matcher, steps: Sequence[_Step]) -> list[tuple[Ranking, ...] | None]:
    """The rankings of each step, None where a full match is the cheaper way."""
    if not steps:
        return []
    users = users_of([step.work.state for step in steps])
    tests, costly = _tests(matcher, users, steps)
    values, crowds, groups = _judged(matcher, users, tests, steps)
    rankings = [ranking for step in steps for ranking in step.stored.rankings]
    ads = _joined([ranking.ads for ranking in rankings], np.uint64)
    cap = matcher.advertiser_cap
    found = native.update_rankings(
        _indptr([len(ranking.ads) for ranking in rankings]),
        ads,
        _joined([ranking.values for ranking in rankings], np.float32),
        _joined([ranking.crowds for ranking in rankings], np.uint64),
        np.array([ranking.floor_value for ranking in rankings], np.float32),
        np.array([ranking.floor_ad for ranking in rankings], np.uint64),
        np.array([ranking.complete for ranking in rankings], bool),
        np.searchsorted(tests.rows, np.arange(len(steps) + 1)),
        tests.ads,
        values,
        crowds,
        groups,
        matcher.stored,
        cap,
        matcher.advertisers(ads) if cap else None,
        matcher.advertisers(tests.ads) if cap else None,
        tests.redefined if cap else None,
    )
    new = _Rankings(rankings, *found)
    out: list[tuple[Ranking, ...] | None] = []
    for row, step in enumerate(steps):
        if row in costly:
            out.append(None)
            continue
        first = row * matcher.groups
        if any(new.changed[first : first + matcher.groups]):
            out.append(tuple(new.ranking(at) for at in range(first, first + matcher.groups)))
        else:
            out.append(step.stored.rankings)
    return out


class _Rankings:
    """What the kernel returned, as rankings; those that are as they were are the old objects."""

    def __init__(
        self, old: list[Ranking], indptr: I64, ads: U64, values: F32, crowds: U64,
        floor_values: F32, floor_ads: U64, complete: U8, changed: U8,
    ) -> None:  # fmt: skip
        self._old, self._indptr = old, indptr.tolist()
        self._ads, self._values, self._crowds = ads, values, crowds
        self._floors = list(zip(complete.tolist(), floor_values.tolist(), floor_ads.tolist(), strict=True))
        self.changed: list[int] = changed.tolist()

    def ranking(self, at: int) -> Ranking:
        if not self.changed[at]:
            return self._old[at]
        part = slice(self._indptr[at], self._indptr[at + 1])
        complete, value, ad = self._floors[at]
        return Ranking(self._ads[part], self._values[part], self._crowds[part], bool(complete), value, ad)


def _tests(matcher: Matcher, users: Users, steps: Sequence[_Step]) -> tuple[_Tests, set[int]]:
    """(every pair that may stand otherwise than it does, rows of users for whom a full match is cheaper)."""
    rows: list[I64] = []
    ads: list[U64] = []
    changed_rows, changed_ads = _pairs([step.changed for step in steps])
    turned_rows, turned_ads = _pairs([step.turned for step in steps])
    rows += changed_rows, turned_rows
    ads += changed_ads, turned_ads
    for row, step in enumerate(steps):
        if step.lost:  # entries that a lost crowd won
            lost = np.fromiter(step.lost, np.uint64, len(step.lost))
            for ranking in step.stored.rankings:
                won = ranking.ads[np.isin(ranking.crowds, lost)]
                rows.append(np.full(len(won), row))
                ads.append(won)
    if matcher.any_negatives:
        moved = Users(users.bias, users.vecs, *_csr([step.added | step.lost for step in steps]))
        for side in matcher.sides:
            if side.has_negatives:
                barred_rows, barred = side.negative_ads(*moved.crowds_in(side.catalog))
                rows.append(barred_rows)
                ads.append(side.catalog.ads[barred])
    costly: set[int] = set()
    joining = [row for row, step in enumerate(steps) if step.added]
    if joining:
        costly = _enter(matcher, users, steps, joining, rows, ads)
    return _unique(rows, ads, len(changed_ads)), costly


def _enter(
    matcher: Matcher, users: Users, steps: Sequence[_Step], joining: list[int], rows: list[I64], ads: list[U64]
) -> set[int]:
    """Adds the pairs of added crowds at or above the floor; the rows that are left out since there are too many."""
    floors = [_lowest(steps[row].stored.rankings) for row in joining]
    indptr, crowds = _csr([steps[row].added for row in joining])
    added = Users(users.bias[joining], users.vecs[joining], indptr, crowds)
    postings = np.zeros(len(joining), np.int64)
    for side in matcher.sides:
        side_indptr, known = added.crowds_in(side.catalog)
        sizes = np.concatenate(([0], np.cumsum(side.catalog.crowd_sizes[known])))
        postings += np.diff(sizes[side_indptr])
    few = [at for at, floor in enumerate(floors) if floor != _NO_FLOOR or postings[at] <= _MANY_POSTINGS]
    if len(few) < len(joining):
        kept = Users(added.bias[few], added.vecs[few], *_csr([steps[joining[at]].added for at in few]))
    else:
        kept = added
    if few:
        row_of = np.array(joining)[few]
        values = np.array([floors[at][0] for at in few], np.float32)
        last = np.array([floors[at][1] for at in few], np.uint64)
        for side, allowed in zip(matcher.sides, matcher.allowed, strict=False):
            found, entering = side.above(kept, values, last, allowed)
            rows.append(row_of[found])
            ads.append(side.catalog.ads[entering])
    return {joining[at] for at in set(range(len(joining))).difference(few)}


def _judged(matcher: Matcher, users: Users, tests: _Tests, steps: Sequence[_Step]) -> tuple[F32, U64, U8]:
    """Of each pair: value (-1 where it is not eligible), the crowd that wins, placement groups (bits)."""
    values = np.full(len(tests.ads), -1, np.float32)
    crowds, groups = np.zeros(len(tests.ads), np.uint64), np.zeros(len(tests.ads), np.uint8)
    for side, allowed in zip(matcher.sides, matcher.allowed, strict=False):
        found, known = side.catalog.ad_ordinals(tests.ads)
        at = np.flatnonzero(known)[allowed[found] != 0]
        found = found[allowed[found] != 0]
        worth, won = side.best(users, tests.rows[at], found)
        if side.has_negatives:
            worth[side.bars(users, tests.rows[at], found)] = -1
        values[at], groups[at] = worth, allowed[found]
        shared = worth >= 0
        crowds[at[shared]] = side.catalog.crowds[won[shared]]
    for row, step in enumerate(steps):
        if step.excluded:
            start, stop = np.searchsorted(tests.rows, (row, row + 1))
            out = np.isin(tests.ads[start:stop], np.fromiter(step.excluded, np.uint64, len(step.excluded)))
            values[start:stop][out] = -1
    return values, crowds, groups


def _lowest(rankings: Sequence[Ranking]) -> tuple[float, int]:
    """The floor that is at or below all of theirs."""
    if any(ranking.complete for ranking in rankings):
        return _NO_FLOOR
    return min(((r.floor_value, r.floor_ad) for r in rankings), key=lambda floor: (floor[0], -floor[1]))


def _unique(rows: list[I64], ads: list[U64], changed: int) -> _Tests:
    """Every pair once, in order; the first `changed` of them are those of changed ads."""
    row, ad = _joined(rows, np.int64), _joined(ads, np.uint64)
    order = np.lexsort((ad, row))
    row, ad = row[order], ad[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (ad[1:] != ad[:-1])
    redefined = np.zeros(int(first.sum()), bool)
    redefined[(np.cumsum(first) - 1)[order < changed]] = True
    return _Tests(row[first], ad[first], redefined)


def _pairs(by_row: Sequence[list[int] | set[int]]) -> tuple[I64, U64]:
    counts = [len(each) for each in by_row]
    ids = np.fromiter(chain.from_iterable(by_row), np.uint64, sum(counts))
    return np.repeat(np.arange(len(by_row)), counts), ids


def _csr(by_row: Sequence[set[int] | frozenset[int]]) -> tuple[I64, U64]:
    """CSR of ids, ascending for each row."""
    counts = [len(each) for each in by_row]
    ids = np.fromiter(chain.from_iterable(sorted(each) for each in by_row), np.uint64, sum(counts))
    return _indptr(counts), ids


def _indptr(counts: Sequence[int]) -> I64:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _joined(arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    """Arrays end to end, also where there is none."""
    return np.ascontiguousarray(np.concatenate([np.empty(0, dtype), *arrays]), dtype)
