"""Numbers of ads and crowds: permanent, only ever growing from catalog to catalog, so that stored lists hold them.

An ordinal is a position in one catalog's sorted ids; a number is the id's for good (docs/data.md). What lives in
`ad-updates` alone has none.
"""

import weakref

import numpy as np
from numpy.typing import NDArray

from vitrine.matching.catalog import Catalog, ordinals

NO_NUMBER = 2**32 - 1

U64 = NDArray[np.uint64]


class Numbers:
    """Ids of one kind, in one catalog, to their numbers and back."""

    def __init__(self, ids: U64, numbers: NDArray[np.uint32] | None) -> None:
        """ids: (n,) ascending; numbers: (n,), None where each id's number is its position."""
        self._ids = ids
        self._numbers: NDArray[np.uint32] | None = None
        if numbers is not None and not np.array_equal(numbers, np.arange(len(ids), dtype=np.uint32)):
            has = np.flatnonzero(numbers != NO_NUMBER)
            self._numbers = numbers
            self._ordinals = np.full(int(numbers[has].max(initial=0)) + 1, NO_NUMBER, np.uint32)
            self._ordinals[numbers[has]] = has

    def of(self, ids: U64) -> NDArray[np.int64]:
        """(n,) ids, in any order -> (n,) their numbers, -1 for those that have none here."""
        found, known = ordinals(self._ids, ids)
        numbers = np.full(len(ids), -1, np.int64)
        if self._numbers is None:
            numbers[known] = found
        else:
            numbers[known] = self._numbers[found]
            numbers[numbers == NO_NUMBER] = -1
        return numbers

    def ids(self, numbers: NDArray[np.int64]) -> U64:
        """(n,) numbers -> (n,) ids, 0 for those of which this catalog knows nothing."""
        found = np.zeros(len(numbers), np.uint64)
        if self._numbers is None:
            known = numbers < len(self._ids)
            found[known] = self._ids[numbers[known]]
        else:
            at = self._ordinals[np.minimum(numbers, len(self._ordinals) - 1)]
            known = (numbers < len(self._ordinals)) & (at != NO_NUMBER)
            found[known] = self._ids[at[known]]
        return found


_tables: dict[int, tuple["weakref.ref[Catalog]", Numbers, Numbers]] = {}


def tables(catalog: Catalog) -> tuple[Numbers, Numbers]:
    """(ads' numbers, crowds' numbers) of a catalog, made once."""
    held = _tables.get(id(catalog))
    if held is None or held[0]() is not catalog:
        key = id(catalog)
        made = (
            weakref.ref(catalog, lambda _: _tables.pop(key, None)),
            Numbers(catalog.ads, getattr(catalog, "ad_numbers", None)),
            Numbers(catalog.crowds, getattr(catalog, "crowd_numbers", None)),
        )
        held = _tables[key] = made
    return held[1], held[2]
