"""A list is a function of (state, catalog, towers): the top K over all eligible pairs, by brute force."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.features import UserTowers
from vitrine.matching.catalog import Catalog
from vitrine.matching.events import RecordError
from vitrine.matching.record import Ranking, StoredList
from vitrine.matching.state import EventTable, UserState, features, take_tower

STORED = 100
SERVED = 50


@dataclass(frozen=True, slots=True)
class Reason:
    """What an ad is worth to a user, and why.

    known:   whether the catalog holds the ad
    crowds, bids: (n,) uint64 ascending and float32, the ad's bids on crowds that the user is in
    crowd, bid: the bid that wins, the lower crowd among equals; 0 where none is shared
    pctr, value: click probability, and bid x pctr, float32 as stored lists hold them
    """

    ad: int
    known: bool
    crowds: NDArray[np.uint64]
    bids: NDArray[np.float32]
    crowd: int
    bid: float
    pctr: float
    value: float


class Matcher:
    """Matches users against one catalog under one model's towers; both stay as they are for the matcher's life.

    An ad that the towers lack has the tower of an ad without features: bias 0 and a zero vector, as a factorization
    machine scores keys it has never seen.
    """

    def __init__(
        self,
        catalog: Catalog,
        towers: UserTowers,
        *,
        catalog_version: str,
        towers_version: str,
        stored: int = STORED,
        served: int = SERVED,
        threads: int = 1,
    ) -> None:
        if not 0 < served <= stored:
            raise ValueError(f"served: {served}, must be in 1..{stored}, the entries stored")
        self.catalog = catalog
        self.catalog_version = catalog_version
        self.towers_version = towers_version
        self.table = EventTable(catalog)
        self.stored = stored
        self.served = served
        self._towers = towers
        self._threads = threads
        self._ad_bias = np.zeros(len(catalog.ads), np.float32)
        self._ad_vecs = np.zeros((len(catalog.ads), towers.dim), np.float32)
        rows, known = catalog.ad_ordinals(towers.ads)
        self._ad_bias[rows] = towers.ad_bias[known]
        self._ad_vecs[rows] = towers.ad_vecs[known]
        self._crowd_indptr = np.ascontiguousarray(catalog.crowd_indptr)
        self._posting_ads = np.ascontiguousarray(catalog.posting_ads)
        self._posting_bids = np.ascontiguousarray(catalog.posting_bids)

    def refresh(self, state: UserState) -> None:
        """Computes the user's tower anew from the state's features, in place."""
        self._refresh(state, *features(state))

    def lists(self, states: Sequence[UserState]) -> list[StoredList]:
        """Refreshes each user's tower, in place, and matches: one list a state, in order."""
        contexts = [features(state) for state in states]
        for state, context in zip(states, contexts, strict=True):
            self._refresh(state, *context)
        indptr = np.zeros(len(states) + 1, np.int64)
        np.cumsum([len(state.crowds) for state in states], out=indptr[1:])
        ids = np.fromiter((crowd for state in states for crowd in sorted(state.crowds)), np.uint64, int(indptr[-1]))
        crowds, known = self.catalog.crowd_ordinals(ids)
        known_before = np.concatenate(([0], np.cumsum(known)))
        counts, ads, values, won, _ = self._topk(
            np.array([state.bias for state in states], np.float32),
            np.stack([state.vec for state in states]),
            known_before[indptr].astype(np.int64),
            crowds,
            self.stored,
        )
        lists = []
        for row, (state, (keys, weights)) in enumerate(zip(states, contexts, strict=True)):
            n = int(counts[row])
            complete = n < self.stored
            ad_ids = self.catalog.ads[ads[row, :n]]
            lists.append(
                StoredList(
                    user_id=state.user_id,
                    rankings=(
                        Ranking(
                            ads=ad_ids,
                            values=values[row, :n],
                            crowds=self.catalog.crowds[won[row, :n]],
                            complete=complete,
                            floor_value=0.0 if complete else float(values[row, n - 1]),
                            floor_ad=0 if complete else int(ad_ids[-1]),
                        ),
                    ),
                    keys=keys,
                    weights=weights,
                    served=self.served,
                    catalog_version=self.catalog_version,
                    towers_version=self.towers_version,
                    revision=state.revision,
                    offset=state.offset,
                    append_ms=state.append_ms,
                )
            )
        return lists

    def fallback(self, k: int, crowds: Sequence[int] | None = None) -> StoredList:
        """The k most valuable ads over all crowds, or these, to a user of whom nothing is known; revision 0."""
        nobody = UserState(0)
        self.refresh(nobody)
        everywhere = np.arange(len(self.catalog.crowds), dtype=np.uint32)
        if crowds is not None:
            everywhere = np.unique(self.catalog.crowd_ordinals(crowds)[0])
        counts, ads, values, won, _ = self._topk(
            np.array([nobody.bias], np.float32),
            nobody.vec[None],
            np.array([0, len(everywhere)], np.int64),
            everywhere,
            k,
        )
        n = int(counts[0])
        return StoredList(
            user_id=0,
            rankings=(
                Ranking(
                    ads=self.catalog.ads[ads[0, :n]],
                    values=values[0, :n],
                    crowds=self.catalog.crowds[won[0, :n]],
                    complete=n < k,
                    floor_value=0.0,
                    floor_ad=0,
                ),
            ),
            keys=np.empty(0, np.uint64),
            weights=np.empty(0, np.float32),
            served=k,
            catalog_version=self.catalog_version,
            towers_version=self.towers_version,
        )

    def explain(self, state: UserState, ad_ids: Sequence[int]) -> list[Reason]:
        """Why each ad is worth what it is worth to the user, by the arithmetic and to the bits of `lists`.

        Raises RecordError where the state's tower belongs to other towers than this matcher's.
        """
        if state.towers_version != self.towers_version:
            raise RecordError(
                f"the tower of user {state.user_id} is of towers {state.towers_version}, and this process holds"
                f" {self.towers_version}"
            )
        rows, known = self.catalog.ad_ordinals(np.array(ad_ids, np.uint64))
        pctrs = iter(native.tower_pctr(state.bias, state.vec, rows, self._ad_bias, self._ad_vecs))
        reasons = []
        for ad, is_known in zip(ad_ids, known.tolist(), strict=True):
            crowds, bids = self.catalog.bids_of(ad)
            shared = np.fromiter((c in state.crowds for c in crowds.tolist()), bool, len(crowds))
            crowds, bids = crowds[shared], bids[shared]
            pctr = next(pctrs) if is_known else np.float32(0)
            best = int(np.argmax(bids)) if len(bids) else -1  # the first of equals, so the lower crowd
            bid = bids[best] if len(bids) else np.float32(0)
            reasons.append(
                Reason(
                    ad=ad,
                    known=is_known,
                    crowds=crowds,
                    bids=bids,
                    crowd=int(crowds[best]) if len(bids) else 0,
                    bid=float(bid),
                    pctr=float(pctr),
                    value=float(bid * pctr),
                )
            )
        return reasons

    def _refresh(self, state: UserState, keys: NDArray[np.uint64], weights: NDArray[np.float32]) -> None:
        bias, vec = self._towers.user(keys, weights)
        take_tower(state, float(bias), vec, self.towers_version)

    def _topk(
        self,
        bias: NDArray[np.float32],
        vecs: NDArray[np.float32],
        indptr: NDArray[np.int64],
        crowds: NDArray[np.uint32],
        k: int,
    ) -> tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.float32], NDArray[np.uint32], NDArray[np.float32]]:
        counts, ads, values, won, bids, _ = native.match_topk(
            bias,
            vecs,
            indptr,
            crowds,
            self._crowd_indptr,
            self._posting_ads,
            self._posting_bids,
            self._ad_bias,
            self._ad_vecs,
            k,
            self._threads,
        )
        return counts, ads, values, won, bids
