"""The owner's memory of its users: who is in a crowd, and whose list an ad's change touches."""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.matching.market import Ad
from vitrine.matching.record import StoredList
from vitrine.matching.state import UserState

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]

_AdColumns = tuple[U64, F32, U64, int]


class Scan:
    """The members that an ad's change may touch, to be tested in chunks, recently active ones first.

    Users who are put or dropped after the scan began are passed over: their lists are of the market of now.
    """

    def __init__(self, scan: native.MemberScan) -> None:
        self._scan = scan

    @property
    def left(self) -> int:
        """Members not yet tested."""
        return self._scan.left

    @property
    def checked(self) -> int:
        """Members tested."""
        return self._scan.checked

    def next(self, count: int) -> U64:
        """Tests the next `count` members: (n,) uint64 users of them whose list changes."""
        return self._scan.next(count)


class Members:
    """Users under one model's towers: their crowds, towers, the floors of their lists, and when they were active.

    dim:    of the towers
    groups: placement groups
    advertiser_cap: of the lists
    """

    def __init__(self, dim: int, groups: int = 1, *, advertiser_cap: int = 0) -> None:
        self.groups = groups
        self._advertiser_cap = advertiser_cap
        self._held = native.Members(dim, groups)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held.nbytes

    def put(self, states: Sequence[UserState], lists: Sequence[StoredList], excluded: Sequence[set[int]]) -> None:
        """Takes users as they are, with their lists, and the ads that `Matcher.excluded` says of them."""
        if not states:
            return
        crowds = [state.crowds for state in states]
        rankings = [ranking for stored in lists for ranking in stored.rankings]
        shape = len(states), self.groups
        self._held.put(
            np.array([state.user_id for state in states], np.uint64),
            np.array([state.bias for state in states], np.float32),
            np.stack([state.vec for state in states]),
            *_csr(crowds),
            np.array([-1.0 if r.complete else r.floor_value for r in rankings], np.float32).reshape(shape),
            np.array([r.floor_ad for r in rankings], np.uint64).reshape(shape),
            *_csr(excluded),
            np.array([state.clock_ms for state in states], np.int64),
        )

    def drop(self, user_ids: Sequence[int] | U64) -> int:
        """Forgets users: how many of them were held."""
        return self._held.drop(np.asarray(user_ids, np.uint64))

    def scan(self, old: Ad | None, new: Ad | None, bias: float, vec: F32) -> Scan:
        """Whose list changes as an ad turns from `old` into `new` (None: not there), by the ad's tower.

        Exact, but for what a member's row does not say: where the ad's frequency cap changes, or there is a cap per
        advertiser, some of the users named keep their list.
        """
        ad = old or new
        if ad is None:
            raise ValueError("old, new: one of them is an ad")
        blind = old is not None and new is not None and old.max_impressions != new.max_impressions
        if self._advertiser_cap and old is not None and new is not None:
            blind |= old.advertiser != new.advertiser
        return Scan(self._held.scan(ad.ad_id, _columns(old), _columns(new), bias, vec, blind))

    def affected(self, old: Ad | None, new: Ad | None, bias: float, vec: F32) -> U64:
        """(n,) uint64: all that `scan` names."""
        scan = self.scan(old, new, bias, vec)
        return scan.next(max(scan.left, 1))

    def recent(self, chunk: int) -> Iterator[U64]:
        """All users, recently active ones first, in chunks."""
        users = self._held.recent()
        return (users[start : start + chunk] for start in range(0, len(users), chunk))


def _columns(ad: Ad | None) -> _AdColumns:
    """As the kernel takes an ad; one that is not live stands in no group."""
    if ad is None or not ad.live:
        return _NO_IDS, _NO_BIDS, _NO_IDS, 0
    return ad.crowds, ad.bids, ad.negatives, ad.groups


def _csr(sets: Sequence[set[int] | dict[int, float]]) -> tuple[NDArray[np.int64], U64]:
    indptr = np.zeros(len(sets) + 1, np.int64)
    np.cumsum([len(each) for each in sets], out=indptr[1:])
    return indptr, np.fromiter(chain.from_iterable(sets), np.uint64, int(indptr[-1]))


_NO_IDS: U64 = np.empty(0, np.uint64)
_NO_BIDS: F32 = np.empty(0, np.float32)
