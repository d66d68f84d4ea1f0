"""What a user without a list gets: the best ads of the crowds that are known of the user, then of all crowds.

Values are those to a user of whom nothing is known. Never empty while one ad may be shown in the placement group.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitrine.matching.record import StoredList
from vitrine.matching.showing import NOTHING, Excluded, Showing

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]

# Entries asked for at first; more where too many of them may not be shown.
_ENTRIES = 1_000
_CROWD_ENTRIES = 200
_MOST_CROWDS = 2_000  # whose lists are kept


class Best(Protocol):
    """As `Matcher`: the k most valuable ads of some crowds, or of all, to a user of whom nothing is known."""

    def fallback(self, k: int, crowds: Sequence[int] | None = None) -> StoredList: ...


@dataclass(frozen=True, slots=True)
class Entries:
    """Ads by value, parallel: (n,) uint64, float32, uint64, float32; whole: there are no more to ask for."""

    ads: U64
    values: F32
    crowds: U64
    bids: F32
    whole: bool = False

    def taken(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Entries":
        return Entries(self.ads[rows], self.values[rows], self.crowds[rows], self.bids[rows], self.whole)


class Fallback:
    """Fallbacks under one matcher and what may be shown now. Safe for threads."""

    def __init__(
        self, matcher: Best, showing: Showing, rankings: dict[tuple[int, int | None], StoredList] | None = None
    ) -> None:
        """rankings: what the matcher was asked before, by (entries, crowd)."""
        self._matcher = matcher
        self._showing = showing
        self._rankings = {} if rankings is None else rankings
        self._lists: OrderedDict[tuple[int, int | None], Entries] = OrderedDict()
        self._lock = threading.Lock()

    def moved(self, showing: Showing) -> "Fallback":
        """The same lists under another market: of what may be shown by now, without what it brought."""
        return Fallback(self._matcher, showing, self._rankings)

    def best(self, k: int, group: int, crowds: Iterable[int] = (), excluded: Excluded = NOTHING) -> Entries:
        """The first k that may be shown and are not excluded: ads of these crowds, then ads of any."""
        wanted = dict.fromkeys(crowds)
        if not wanted:
            return self._anywhere(k, group, excluded, None)
        first = self._kept(_merged([self._list(group, crowd) for crowd in wanted]), excluded, None)
        if len(first.ads) >= k:
            return first.taken(np.arange(k))
        return _joined([first, self._anywhere(k - len(first.ads), group, excluded, first.ads)])

    def _anywhere(self, k: int, group: int, excluded: Excluded, but: U64 | None) -> Entries:
        at_least = k
        while True:
            every = self._list(group, None, at_least)
            kept = self._kept(every, excluded, but)
            if len(kept.ads) >= k or len(every.ads) < at_least:
                return kept.taken(np.arange(min(k, len(kept.ads))))
            at_least = 8 * len(every.ads)

    def _kept(self, entries: Entries, excluded: Excluded, but: U64 | None) -> Entries:
        if but is not None:
            entries = entries.taken(~np.isin(entries.ads, but))
        return entries if excluded is NOTHING else entries.taken(~excluded.mask(self._showing, entries.ads))

    def _list(self, group: int, crowd: int | None, at_least: int = 0) -> Entries:
        """What may be shown of a crowd, or of all: fewer than `at_least` only where there are no more."""
        key = group, crowd
        with self._lock:
            held = self._lists.get(key)
            if held is not None:
                self._lists.move_to_end(key)
        if held is not None and (held.whole or len(held.ads) >= at_least):
            return held
        made = self._make(group, crowd, at_least)
        with self._lock:
            self._lists[key] = made
            while len(self._lists) > _MOST_CROWDS:
                self._lists.popitem(last=False)
        return made

    def _make(self, group: int, crowd: int | None, at_least: int) -> Entries:
        """Asks for more until enough may be shown, or there are no more."""
        asked = _ENTRIES if crowd is None else _CROWD_ENTRIES
        while True:
            stored = self._ask(asked, crowd)
            ranking = stored.rankings[group if group < len(stored.rankings) else 0]
            bids = self._showing.rows(ranking.ads, ranking.crowds, group)
            whole = crowd is not None or len(ranking.ads) < asked
            found = Entries(ranking.ads, ranking.values, ranking.crowds, bids, whole)
            found = found.taken(bids > 0)
            if whole or len(found.ads) >= at_least:
                return found
            asked *= 8

    def _ask(self, k: int, crowd: int | None) -> StoredList:
        stored = self._rankings.get((k, crowd))
        if stored is None:
            stored = self._matcher.fallback(k, None if crowd is None else [crowd])
            if len(self._rankings) >= 2 * _MOST_CROWDS:
                self._rankings.clear()
            self._rankings[k, crowd] = stored
        return stored


def _merged(lists: list[Entries]) -> Entries:
    """Every ad once, at its highest bid; by value, equal ones by id."""
    if len(lists) == 1:
        return lists[0]
    every = _joined(lists)
    order = np.lexsort((every.crowds, every.ads, -every.values))
    every = every.taken(order)
    _, firsts = np.unique(every.ads, return_index=True)
    return every.taken(np.sort(firsts))


def _joined(lists: list[Entries]) -> Entries:
    return Entries(
        np.concatenate([each.ads for each in lists]),
        np.concatenate([each.values for each in lists]),
        np.concatenate([each.crowds for each in lists]),
        np.concatenate([each.bids for each in lists]),
    )
