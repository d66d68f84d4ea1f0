"""The catalog: which ads bid how much on which crowds, and which crowds an item speaks for (docs/data.md).

Ids are sorted once; everything else refers to them by ordinal, the position in the sorted array, so that the lower
ordinal is the lower id. Arrays are mapped from the artifact's files, not read. Numbers are what stored lists hold:
given once, and never to another ad or crowd in any later catalog (docs/decisions/0021-catalog-position.md).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitrine.matching import catalog_files
from vitrine.matching.catalog_files import (
    ALL_GROUPS,
    CROWD_NAMES_FILE,
    CROWD_NAMES_SCHEMA,
    DAY_MS,
    FILES,
    MAX_GROUPS,
    META_FILE,
    SCHEMA,
    TITLES_FILE,
    TITLES_SCHEMA,
    CatalogError,
    Meta,
    read_names,
    write_meta,
)

__all__ = [
    "ALL_GROUPS",
    "CROWD_NAMES_FILE",
    "CROWD_NAMES_SCHEMA",
    "FILES",
    "KIND",
    "MAX_GROUPS",
    "META_FILE",
    "NO_NUMBER",
    "OFF",
    "SCHEMA",
    "TITLES_FILE",
    "TITLES_SCHEMA",
    "Catalog",
    "CatalogError",
    "Meta",
    "build_item_crowds",
    "build_postings",
    "ordinals",
    "read_names",
    "turned",
    "write_meta",
]

KIND = "catalog"

NO_NUMBER = 0xFFFFFFFF
"""In the arrays of numbers: an ad or a crowd that `ad-updates` alone knows. Lists hold its id."""

OFF = {"paused": 1, "ended": 2, "schedule": 4, "budget": 8}
"""Why an ad is not live -> its bit in `Catalog.ad_off`."""

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_DEFAULT: Any = None  # filled in by __post_init__: arrays cannot be a dataclass's defaults


@dataclass(frozen=True)
class Catalog:
    """Postings crowd -> (ad, bid), ads, and items -> crowds; A ads, C crowds, I items, P postings.

    crowds:         (C,) uint64, sorted ids
    crowd_indptr:   (C+1,) int64, postings of crowd c are [crowd_indptr[c], crowd_indptr[c+1])
    posting_ads:    (P,) uint32, ordinals into `ads`, ascending inside a crowd
    posting_bids:   (P,) float32, currency units a click, finite, > 0
    ads:            (A,) uint64, sorted ids
    ad_advertisers: (A,) uint64
    ad_items:       (A,) uint64, the item advertised, 0 for none
    items:          (I,) uint64, sorted ids
    item_indptr:    (I+1,) int64
    item_crowd_ordinals: (*,) uint32, ordinals into `crowds`, ascending inside an item
    half_life_ms, cap_window_ms, groups, offset, next_ad_number, next_crowd_number: as `Meta` has them

    Left out, these are those of ads without bounds:

    ad_groups:      (A,) uint8, bit i: placement group i; never 0
    ad_caps:        (A,) uint32, impressions to one user before the ad rests for the user; 0: no bound
    ad_off:         (A,) uint8, bits of OFF as of `offset`; 0: live
    ad_schedule:    (A, 2) int64, [from, until) in ms since 1970; 0: no bound
    ad_budgets:     (A,) float64, spend a UTC day, currency units; 0: no bound
    neg_indptr, neg_crowds: (A+1,) int64, (*,) uint32, ad -> ordinals of crowds whose members never see it
    ad_numbers, crowd_numbers: (A,), (C,) uint32, permanent; NO_NUMBER where there is none
    ad_indptr, ad_crowds, ad_bids: `ad_postings`, as the artifact brings it
    """

    crowds: U64
    crowd_indptr: I64
    posting_ads: U32
    posting_bids: F32
    ads: U64
    ad_advertisers: U64
    ad_items: U64
    items: U64
    item_indptr: I64
    item_crowd_ordinals: U32
    half_life_ms: int
    ad_groups: U8 = _DEFAULT
    ad_caps: U32 = _DEFAULT
    ad_off: U8 = _DEFAULT
    ad_schedule: I64 = _DEFAULT
    ad_budgets: F64 = _DEFAULT
    neg_indptr: I64 = _DEFAULT
    neg_crowds: U32 = _DEFAULT
    ad_numbers: U32 = _DEFAULT
    crowd_numbers: U32 = _DEFAULT
    ad_indptr: I64 | None = None
    ad_crowds: U32 | None = None
    ad_bids: F32 | None = None
    cap_window_ms: int = DAY_MS
    groups: tuple[str, ...] = ("default",)
    offset: int = 0
    next_ad_number: int = 0
    next_crowd_number: int = 0

    def __post_init__(self) -> None:
        """Fills in what was left out. Raises CatalogError where the arrays do not describe a catalog."""
        ads = len(self.ads)
        defaults: dict[str, Callable[[], NDArray[Any]]] = {
            "ad_groups": lambda: np.full(ads, ALL_GROUPS, np.uint8),
            "ad_caps": lambda: np.zeros(ads, np.uint32),
            "ad_off": lambda: np.zeros(ads, np.uint8),
            "ad_schedule": lambda: np.zeros((ads, 2), np.int64),
            "ad_budgets": lambda: np.zeros(ads, np.float64),
            "neg_indptr": lambda: np.zeros(ads + 1, np.int64),
            "neg_crowds": lambda: np.zeros(0, np.uint32),
            "ad_numbers": lambda: np.arange(ads, dtype=np.uint32),
            "crowd_numbers": lambda: np.arange(len(self.crowds), dtype=np.uint32),
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        for name, numbers in (("next_ad_number", self.ad_numbers), ("next_crowd_number", self.crowd_numbers)):
            if not getattr(self, name):
                given = numbers[numbers != NO_NUMBER]
                object.__setattr__(self, name, int(given.max()) + 1 if len(given) else 0)
        _check(self)

    @classmethod
    def empty(cls) -> Self:
        """No ads, crowds or items: for a process that is yet to read which catalog rules."""
        ids, indptr = np.empty(0, np.uint64), np.zeros(1, np.int64)
        rows, bids = np.empty(0, np.uint32), np.empty(0, np.float32)
        return cls(ids, indptr, rows, bids, ids, ids, ids, ids, indptr, rows, half_life_ms=DAY_MS)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Map the catalog in a folder, checking it; raises CatalogError naming the file that is wrong."""
        arrays, meta = catalog_files.read(Path(path))
        fields: dict[str, Any] = {**arrays, **asdict(meta)}
        return cls(**fields)

    def write(self, path: Path | str) -> None:
        """Write the arrays and meta.json into a folder, which is made where missing."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        by_ad: dict[str, NDArray[Any]] = dict(
            zip(("ad_indptr", "ad_crowds", "ad_bids"), self.ad_postings, strict=True)
        )
        for name in FILES:
            catalog_files.save(folder, name, by_ad[name] if name in by_ad else getattr(self, name))
        write_meta(folder, self.meta)

    @property
    def meta(self) -> Meta:
        """The scalars."""
        return Meta(**{name: getattr(self, name) for name in Meta.__slots__})

    def crowd_ordinals(self, ids: ArrayLike) -> tuple[U32, NDArray[np.bool_]]:
        """(ordinals of the known ids in the order given, mask (n,) of which ids are known)."""
        return ordinals(self.crowds, ids)

    def ad_ordinals(self, ids: ArrayLike) -> tuple[U32, NDArray[np.bool_]]:
        """(ordinals of the known ids in the order given, mask (n,) of which ids are known)."""
        return ordinals(self.ads, ids)

    def ads_of_numbers(self, numbers: ArrayLike) -> tuple[U64, NDArray[np.bool_]]:
        """(ids of the ads with the known numbers, in the order given; mask (n,) of which numbers are known)."""
        return _ids_of(self._ad_of_number, self.ads, numbers)

    def crowds_of_numbers(self, numbers: ArrayLike) -> tuple[U64, NDArray[np.bool_]]:
        """(ids of the crowds with the known numbers, in the order given; mask (n,) of which are known)."""
        return _ids_of(self._crowd_of_number, self.crowds, numbers)

    def item_crowds(self, item_id: int) -> U64:
        """Ids of an item's crowds, ascending; empty for an unknown item."""
        found, _ = ordinals(self.items, [item_id])
        if not len(found):
            return np.empty(0, np.uint64)
        start, stop = self.item_indptr[found[0]], self.item_indptr[found[0] + 1]
        return self.crowds[self.item_crowd_ordinals[start:stop]]

    def item_of(self, ad_id: int) -> int:
        """Item that an ad advertises; 0 for none and for an unknown ad."""
        found, _ = self.ad_ordinals([ad_id])
        return int(self.ad_items[found[0]]) if len(found) else 0

    def postings(self, crowd_id: int) -> tuple[U32, F32]:
        """(ad ordinals ascending, bids) of one crowd; empty for an unknown crowd."""
        found, _ = self.crowd_ordinals([crowd_id])
        if not len(found):
            return np.empty(0, np.uint32), np.empty(0, np.float32)
        start, stop = self.crowd_indptr[found[0]], self.crowd_indptr[found[0] + 1]
        return self.posting_ads[start:stop], self.posting_bids[start:stop]

    def bids_of(self, ad_id: int) -> tuple[U64, F32]:
        """(crowd ids ascending, bids) of one ad; empty for an unknown ad."""
        found, _ = self.ad_ordinals([ad_id])
        if not len(found):
            return np.empty(0, np.uint64), np.empty(0, np.float32)
        indptr, crowds, bids = self.ad_postings
        start, stop = indptr[found[0]], indptr[found[0] + 1]
        return self.crowds[crowds[start:stop]], bids[start:stop]

    def negatives_of(self, ordinal: int) -> U64:
        """Ids of the crowds whose members never see the ad, ascending."""
        return self.crowds[self.neg_crowds[self.neg_indptr[ordinal] : self.neg_indptr[ordinal + 1]]]

    def pair_bids(self, ads: ArrayLike, crowds: ArrayLike) -> F32:
        """(n,) bids of the pairs (ad id, crowd id); nan where there is no such bid."""
        bids = np.full(len(np.asarray(ads)), np.nan, np.float32)
        ad, ad_known = self.ad_ordinals(ads)
        crowd, crowd_known = self.crowd_ordinals(crowds)
        both = ad_known & crowd_known
        ad, crowd = ad[crowd_known[ad_known]], crowd[ad_known[crowd_known]]
        low, high = self.crowd_indptr[crowd], self.crowd_indptr[crowd + 1]
        end = high.copy()
        while np.any(low < high):  # all pairs' binary searches at once
            middle = (low + high) >> 1
            open_ = low < high
            below = np.zeros(len(ad), bool)
            below[open_] = self.posting_ads[middle[open_]] < ad[open_]
            low = np.where(open_ & below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        hit = low < end
        hit[hit] = self.posting_ads[low[hit]] == ad[hit]
        found = np.full(len(ad), np.nan, np.float32)
        found[hit] = self.posting_bids[low[hit]]
        bids[both] = found
        return bids

    @cached_property
    def ad_postings(self) -> tuple[I64, U32, F32]:
        """Postings turned round: (indptr (A+1,), crowd ordinals (P,), bids (P,)) by ad, crowds ascending."""
        if self.ad_indptr is not None and self.ad_crowds is not None and self.ad_bids is not None:
            return self.ad_indptr, self.ad_crowds, self.ad_bids
        return turned(self.crowd_indptr, self.posting_ads, self.posting_bids, len(self.ads))

    @cached_property
    def crowd_sizes(self) -> I64:
        """(C,) number of ads that bid on each crowd."""
        return np.diff(self.crowd_indptr)

    @cached_property
    def _ad_of_number(self) -> U32:
        return _inverse(self.ad_numbers, self.next_ad_number)

    @cached_property
    def _crowd_of_number(self) -> U32:
        return _inverse(self.crowd_numbers, self.next_crowd_number)


def ordinals(sorted_ids: U64, ids: ArrayLike) -> tuple[U32, NDArray[np.bool_]]:
    """(positions in `sorted_ids` of those ids that are there, in the order given; mask over ids)."""
    wanted = np.asarray(ids, np.uint64)
    at = np.searchsorted(sorted_ids, wanted)
    known = at < len(sorted_ids)
    known[known] = sorted_ids[at[known]] == wanted[known]
    return at[known].astype(np.uint32), known


def build_postings(crowds: U64, ads: U64, bid_crowds: U64, bid_ads: U64, bids: F32) -> tuple[I64, U32, F32]:
    """(crowd_indptr, posting_ads, posting_bids) from bids in any order; ids must be in `crowds` and `ads`."""
    crowd, ad = np.searchsorted(crowds, bid_crowds), np.searchsorted(ads, bid_ads)
    order = np.lexsort((ad, crowd))
    return _indptr(crowd, len(crowds)), ad[order].astype(np.uint32), bids[order].astype(np.float32)


def build_item_crowds(crowds: U64, lengths: I64, crowd_ids: U64) -> tuple[I64, U32]:
    """(item_indptr, ordinals ascending inside an item) from each item's number of crowds and their ids."""
    item = np.repeat(np.arange(len(lengths)), lengths)
    crowd = np.searchsorted(crowds, crowd_ids)
    return _indptr(item, len(lengths)), crowd[np.lexsort((crowd, item))].astype(np.uint32)


def turned(indptr: I64, columns: U32, values: F32, n: int) -> tuple[I64, U32, F32]:
    """A sparse table by row, turned into one by column, of which there are n; rows ascending inside a column."""
    row_of = np.repeat(np.arange(len(indptr) - 1, dtype=np.uint32), np.diff(indptr))
    order = np.argsort(columns, kind="stable")
    return _indptr(columns, n), row_of[order], values[order]


def _indptr(rows: NDArray[Any], n: int) -> I64:
    return np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n)))).astype(np.int64)


def _inverse(numbers: U32, size: int) -> U32:
    """(size,) ordinal of each number, NO_NUMBER where none has it."""
    inverse = np.full(size, NO_NUMBER, np.uint32)
    given = numbers != NO_NUMBER
    inverse[numbers[given]] = np.flatnonzero(given)
    return inverse


def _ids_of(inverse: U32, ids: U64, numbers: ArrayLike) -> tuple[U64, NDArray[np.bool_]]:
    wanted = np.asarray(numbers, np.uint32)
    ordinal = np.full(len(wanted), NO_NUMBER, np.uint32)
    inside = wanted < len(inverse)
    ordinal[inside] = inverse[wanted[inside]]
    known = ordinal != NO_NUMBER
    return ids[ordinal[known]], known


def _check(c: Catalog) -> None:
    for name in ("crowds", "ads", "items"):
        catalog_files.check_ids(name, getattr(c, name))
    ads, crowds = len(c.ads), len(c.crowds)
    for name in (
        "ad_advertisers", "ad_items", "ad_groups", "ad_caps", "ad_off", "ad_schedule", "ad_budgets", "ad_numbers",
    ):  # fmt: skip
        catalog_files.check_length(name, len(getattr(c, name)), ads, "ads")
    catalog_files.check_length("crowd_numbers", len(c.crowd_numbers), crowds, "crowds")
    if len(c.posting_bids) != len(c.posting_ads):
        catalog_files.refuse("posting_bids", f"{len(c.posting_bids)} bids for {len(c.posting_ads)} posting ads")
    catalog_files.check_rows("crowd_indptr", c.crowd_indptr, crowds, "posting_ads", c.posting_ads, ads)
    catalog_files.check_rows(
        "item_indptr", c.item_indptr, len(c.items), "item_crowd_ordinals", c.item_crowd_ordinals, crowds
    )
    catalog_files.check_rows("neg_indptr", c.neg_indptr, ads, "neg_crowds", c.neg_crowds, crowds)
    catalog_files.check_bids("posting_bids", c.posting_bids)
    if c.ad_indptr is not None and c.ad_crowds is not None and c.ad_bids is not None:
        catalog_files.check_rows("ad_indptr", c.ad_indptr, ads, "ad_crowds", c.ad_crowds, crowds)
        for name in ("ad_crowds", "ad_bids"):
            catalog_files.check_length(name, len(getattr(c, name)), len(c.posting_ads), "postings")
    if ads and (int(c.ad_groups.min()) == 0 or int(c.ad_groups.max()) > ALL_GROUPS):
        catalog_files.refuse("ad_groups", f"masks must be 1 to {ALL_GROUPS}")
    if not bool(np.all(np.isfinite(c.ad_budgets) & (c.ad_budgets >= 0))):
        catalog_files.refuse("ad_budgets", "budgets must be finite, 0 or more")
    c.meta.check()
    catalog_files.check_numbers("ad_numbers", c.ad_numbers, c.next_ad_number, NO_NUMBER)
    catalog_files.check_numbers("crowd_numbers", c.crowd_numbers, c.next_crowd_number, NO_NUMBER)
