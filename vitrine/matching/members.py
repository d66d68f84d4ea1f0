"""The owner's memory of its users: who is in a crowd, and whose list an ad's change touches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.matching.market import Ad
from vitrine.matching.match import best_of
from vitrine.matching.record import StoredList
from vitrine.matching.state import UserState

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]


@dataclass(slots=True)
class _Member:
    crowds: frozenset[int]
    bias: float
    vec: F32
    excluded: frozenset[int]
    floors: list[tuple[bool, float, int]]
    active_ms: int
    touched: int


class Scan:
    """The users of an ad change, worked off in chunks, recently active ones first.

    A user who is put or dropped after the scan began is passed over: such a list is brought to the current market.
    """

    def __init__(self, users: list[int], test: "_Test", members: "Members") -> None:
        self._users, self._test, self._members = users, test, members
        self._tick = members._tick
        self.checked = 0

    @property
    def left(self) -> int:
        """Members not yet tested."""
        return len(self._users) - self.checked

    def next(self, count: int) -> U64:
        """Tests the next `count` members: those of them whose list changes."""
        out = []
        for user in self._users[self.checked : self.checked + count]:
            self.checked += 1
            member = self._members._of.get(user)
            if member is not None and member.touched <= self._tick and self._test.changes(member):
                out.append(user)
        return np.array(out, np.uint64)


@dataclass(slots=True)
class _Test:
    old: Ad | None
    new: Ad | None
    bias: F32
    vec: F32
    blind: bool

    def changes(self, member: _Member) -> bool:
        ad = self.old or self.new
        if ad is None or (ad.ad_id in member.excluded and not self.blind):
            return False
        pctr = native.tower_pctr(member.bias, member.vec, np.zeros(1, np.uint32), self.bias, self.vec[None])[0]
        states = [self._entry(each, member, pctr) for each in (self.old, self.new)]
        for group, floor in enumerate(member.floors):
            before, after = (_in(each, floor, group) for each in states)
            if before != after or (self.blind and before is not None):
                return True
        return False

    def _entry(self, ad: Ad | None, member: _Member, pctr: np.float32) -> tuple[float, int, int, int] | None:
        if ad is None or not ad.live or member.crowds & set(ad.negatives.tolist()):
            return None
        bid, crowd = best_of(ad, member.crowds)
        return (float(bid * pctr), crowd, ad.groups, ad.ad_id) if bid > 0 else None


def _in(
    entry: tuple[float, int, int, int] | None, floor: tuple[bool, float, int], group: int
) -> tuple[float, int] | None:
    """(value, crowd) where a ranking of this floor holds the entry."""
    if entry is None or not entry[2] >> group & 1:
        return None
    value, crowd, _, ad_id = entry
    complete, floor_value, floor_ad = floor
    return (value, crowd) if complete or (-value, ad_id) <= (-floor_value, floor_ad) else None


class Members:
    """Users under one model's towers: their crowds, towers, the floors of their lists, and when they were active.

    dim: of the towers; groups: placement groups
    """

    def __init__(self, dim: int, groups: int = 1, *, advertiser_cap: int = 0) -> None:
        self.groups = groups
        self._cap = advertiser_cap
        self._of: dict[int, _Member] = {}
        self._tick = 0

    def __len__(self) -> int:
        return len(self._of)

    def put(
        self, states: Sequence[UserState], lists: Sequence[StoredList], excluded: Sequence[set[int]] | None = None
    ) -> None:
        """Takes users as they and their lists are now; `excluded` as `Matcher.excluded` says."""
        self._tick += 1
        for row, (state, stored) in enumerate(zip(states, lists, strict=True)):
            self._of[state.user_id] = _Member(
                frozenset(state.crowds),
                state.bias,
                state.vec,
                frozenset(excluded[row] if excluded is not None else state.blocked),
                [(r.complete, r.floor_value, r.floor_ad) for r in stored.rankings],
                state.clock_ms,
                self._tick,
            )

    def drop(self, user_ids: Sequence[int]) -> None:
        """Forgets users; those not held are passed over."""
        for user_id in user_ids:
            self._of.pop(user_id, None)

    def scan(self, old: Ad | None, new: Ad | None, bias: float, vec: F32) -> Scan:
        """Whose list changes as an ad turns from `old` into `new` (None: not there), by the ad's tower."""
        crowds = {c for ad in (old, new) if ad is not None for c in ad.crowds.tolist()}
        users = [user for user, member in self._of.items() if member.crowds & crowds]
        users.sort(key=lambda user: (-self._of[user].active_ms, user))
        return Scan(users, _Test(old, new, np.array([bias], np.float32), vec, self._blind(old, new)), self)

    def affected(self, old: Ad | None, new: Ad | None, bias: float, vec: F32) -> U64:
        """All of `scan`."""
        scan = self.scan(old, new, bias, vec)
        return scan.next(scan.left)

    def recent(self, chunk: int) -> Iterator[U64]:
        """All users, recently active ones first, in chunks."""
        users = sorted(self._of, key=lambda user: (-self._of[user].active_ms, user))
        for start in range(0, len(users), chunk):
            yield np.array(users[start : start + chunk], np.uint64)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(200 + 60 * len(member.crowds) + member.vec.nbytes for member in self._of.values())

    def _blind(self, old: Ad | None, new: Ad | None) -> bool:
        """Whether a list may change where neither value nor crowd does: its owner looks."""
        if old is None or new is None:
            return False
        return old.max_impressions != new.max_impressions or (self._cap > 0 and old.advertiser != new.advertiser)
