"""Bids in any order become postings by crowd and by ad: memory holds 8 bytes a bid, and a part of them besides."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine.data.market import Market
from vitrine.matching.catalog_files import FILES, save

ROWS = 1 << 20
"""Bids in memory at a time."""

I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]

Part = tuple[NDArray[np.integer], NDArray[np.integer], F32]


def write_postings(market: Market, crowds: U64, ads: U64, out: Path) -> None:
    """crowd_indptr, posting_ads, posting_bids and ad_indptr, ad_crowds, ad_bids; ids sorted."""
    per_crowd, per_ad = np.zeros(len(crowds), np.int64), np.zeros(len(ads), np.int64)
    with tempfile.TemporaryFile(dir=out) as found:  # the bids by ordinal, so that ids are looked up once
        sizes = []
        for batch in market.batches("bids", ["crowd_id", "ad_id", "bid"], rows=ROWS):
            crowd_ids, ad_ids, bids = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
            crowd, ad = _ordinals(crowds, crowd_ids), _ordinals(ads, ad_ids)
            per_crowd += np.bincount(crowd, minlength=len(crowds))
            per_ad += np.bincount(ad, minlength=len(ads))
            for column in (crowd, ad, bids):
                column.tofile(found)
            sizes.append(len(bids))
        by_crowd = _Table(per_crowd)
        found.seek(0)
        for size in sizes:
            crowd, ad = np.fromfile(found, np.uint32, size), np.fromfile(found, np.uint32, size)
            by_crowd.put(crowd, ad, np.fromfile(found, np.float32, size))
    by_crowd.sort()
    by_crowd.save(out, "crowd_indptr", "posting_ads", "posting_bids")  # and read again, as a map
    by_ad = _Table(per_ad)
    for rows, columns, bids in by_crowd.parts():  # crowds ascending, so that they come to lie so
        by_ad.put(columns, rows, bids)
    by_ad.save(out, "ad_indptr", "ad_crowds", "ad_bids")


def _ordinals(known: U64, ids: U64) -> U32:
    """Positions in `known`; looked up in order, which misses the cache less."""
    order = np.argsort(ids)
    found = np.empty(len(ids), np.uint32)
    found[order] = np.searchsorted(known, ids[order])
    return found


class _Table:
    """Rows of known lengths, filled part by part."""

    def __init__(self, lengths: I64) -> None:
        self.indptr = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        self.columns = np.empty(int(self.indptr[-1]), np.uint32)
        self.values = np.empty(int(self.indptr[-1]), np.float32)
        self._next = self.indptr[:-1].copy()

    def put(self, rows: NDArray[np.integer], columns: NDArray[np.integer], values: F32) -> None:
        """Entries at the ends of their rows, in the order given."""
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        counts = np.bincount(rows, minlength=len(self._next))
        first = np.cumsum(counts) - counts  # where each row begins in this part
        at = self._next[rows] + np.arange(len(rows)) - first[rows]
        self.columns[at], self.values[at] = columns[order], values[order]
        self._next += counts

    def sort(self) -> None:
        """Columns ascending in each row."""
        for start, stop in self._pieces():
            row = self._rows(start, stop)
            order = np.lexsort((self.columns[start:stop], row))
            self.columns[start:stop] = self.columns[start:stop][order]
            self.values[start:stop] = self.values[start:stop][order]

    def parts(self) -> Iterator[Part]:
        """(rows, columns, values), some rows at a time."""
        for start, stop in self._pieces():
            yield self._rows(start, stop), self.columns[start:stop], self.values[start:stop]

    def save(self, out: Path, indptr: str, columns: str, values: str) -> None:
        """Into the files of these fields, which take the arrays' place."""
        for name, array in ((indptr, self.indptr), (columns, self.columns), (values, self.values)):
            save(out, name, array)
        self.columns, self.values = (
            np.load(out / FILES[name][0], mmap_mode="r", allow_pickle=False) for name in (columns, values)
        )

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Whole rows of about ROWS entries together; a longer row is a piece of its own."""
        row = 0
        while row < len(self.indptr) - 1:
            start = int(self.indptr[row])
            row = max(row + 1, int(np.searchsorted(self.indptr, start + ROWS, "right")) - 1)
            yield start, int(self.indptr[row])

    def _rows(self, start: int, stop: int) -> I64:
        return np.searchsorted(self.indptr, np.arange(start, stop), "right") - 1
