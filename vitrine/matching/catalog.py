"""The catalog: which ads bid how much on which crowds, and which crowds an item speaks for (docs/data.md).

Ids are sorted once; everything else refers to them by ordinal, the position in the sorted array, so that the lower
ordinal is the lower id. Arrays are mapped from the artifact's files, not read.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

KIND = "catalog"
SCHEMA = 1

META_FILE = "meta.json"
TITLES_FILE = "titles.parquet"
CROWD_NAMES_FILE = "crowd_names.parquet"

TITLES_SCHEMA = pa.schema([("ad_id", pa.uint64()), ("title", pa.string())])
CROWD_NAMES_SCHEMA = pa.schema([("crowd_id", pa.uint64()), ("name", pa.string())])

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


class CatalogError(ValueError):
    """The files are not a catalog; the message names the file and what is wrong with it."""


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
    half_life_ms:   after which the weight of an event halves
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

    def __post_init__(self) -> None:
        """Raises CatalogError where the arrays do not describe a catalog."""
        _check(self)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Map the catalog in a folder, checking it; raises CatalogError naming the file that is wrong."""
        folder = Path(path)
        arrays = {name: _map(folder / file, dtype) for name, (file, dtype) in FILES.items()}
        try:
            meta = json.loads((folder / META_FILE).read_text("utf-8"))
            half_life_ms = int(meta["half_life_ms"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CatalogError(f'{META_FILE}: wanted is {{"half_life_ms": milliseconds}} ({error})') from error
        return cls(**arrays, half_life_ms=half_life_ms)

    def write(self, path: Path | str) -> None:
        """Write the arrays and meta.json into a folder, which is made where missing."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (file, dtype) in FILES.items():
            np.save(folder / file, np.ascontiguousarray(getattr(self, name), dtype), allow_pickle=False)
        write_meta(folder, self.half_life_ms)

    def crowd_ordinals(self, ids: ArrayLike) -> tuple[U32, NDArray[np.bool_]]:
        """(ordinals of the known ids in the order given, mask (n,) of which ids are known)."""
        return ordinals(self.crowds, ids)

    def ad_ordinals(self, ids: ArrayLike) -> tuple[U32, NDArray[np.bool_]]:
        """(ordinals of the known ids in the order given, mask (n,) of which ids are known)."""
        return ordinals(self.ads, ids)

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

    @cached_property
    def ad_postings(self) -> tuple[I64, U32, F32]:
        """Postings turned round, made on first use: (indptr (A+1,), crowd ordinals (P,), bids (P,)) by ad."""
        crowd_of = np.repeat(np.arange(len(self.crowds), dtype=np.uint32), np.diff(self.crowd_indptr))
        order = np.argsort(self.posting_ads, kind="stable")  # stable keeps crowds ascending inside an ad
        return _indptr(self.posting_ads, len(self.ads)), crowd_of[order], self.posting_bids[order]

    @cached_property
    def crowd_sizes(self) -> I64:
        """(C,) number of ads that bid on each crowd."""
        return np.diff(self.crowd_indptr)


FILES: dict[str, tuple[str, type[np.generic]]] = {
    "crowds": ("crowds.npy", np.uint64),
    "crowd_indptr": ("crowd_indptr.npy", np.int64),
    "posting_ads": ("posting_ads.npy", np.uint32),
    "posting_bids": ("posting_bids.npy", np.float32),
    "ads": ("ads.npy", np.uint64),
    "ad_advertisers": ("ad_advertisers.npy", np.uint64),
    "ad_items": ("ad_items.npy", np.uint64),
    "items": ("items.npy", np.uint64),
    "item_indptr": ("item_indptr.npy", np.int64),
    "item_crowd_ordinals": ("item_crowds.npy", np.uint32),
}
"""Field of `Catalog` -> its file and dtype."""


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


def write_meta(folder: Path, half_life_ms: int) -> None:
    """The catalog's scalars, meta.json."""
    (folder / META_FILE).write_text(json.dumps({"half_life_ms": half_life_ms}) + "\n", "utf-8")


def read_names(path: Path, schema: pa.Schema) -> dict[int, str]:
    """A display table of a catalog (TITLES_SCHEMA or CROWD_NAMES_SCHEMA) as id -> name."""
    table = pq.read_table(path, schema=schema)
    return dict(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def _indptr(rows: NDArray[Any], n: int) -> I64:
    return np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n)))).astype(np.int64)


def _map(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise CatalogError(f"{path.name}: missing from the catalog; fetch or publish it again") from error
    except (ValueError, OSError, EOFError) as error:
        raise CatalogError(f"{path.name}: not a readable npy file ({error}); fetch or publish it again") from error
    if array.dtype != dtype or array.ndim != 1:
        found = f"{array.dtype} of {array.ndim} dimensions"
        raise CatalogError(f"{path.name}: holds {found}; wanted is one dimension of {np.dtype(dtype)}")
    return np.asarray(array)


def _check(c: Catalog) -> None:
    for name in ("crowds", "ads", "items"):
        ids = getattr(c, name)
        if len(ids) and (ids[0] == 0 or np.any(ids[1:] <= ids[:-1])):
            _refuse(name, "ids must be above 0 and strictly ascending")
    for name in ("ad_advertisers", "ad_items"):
        if len(getattr(c, name)) != len(c.ads):
            _refuse(name, f"{len(getattr(c, name))} entries for {len(c.ads)} ads")
    if len(c.posting_bids) != len(c.posting_ads):
        _refuse("posting_bids", f"{len(c.posting_bids)} bids for {len(c.posting_ads)} posting ads")
    _check_rows("crowd_indptr", c.crowd_indptr, len(c.crowds), "posting_ads", c.posting_ads, len(c.ads))
    _check_rows(
        "item_indptr", c.item_indptr, len(c.items), "item_crowd_ordinals", c.item_crowd_ordinals, len(c.crowds)
    )
    if not bool(np.all(np.isfinite(c.posting_bids) & (c.posting_bids > 0))):
        _refuse("posting_bids", "bids must be finite and above 0")
    if c.half_life_ms <= 0:
        raise CatalogError(f"{META_FILE}: half_life_ms is {c.half_life_ms}; it must be above 0")


def _check_rows(indptr_name: str, indptr: I64, rows: int, name: str, values: U32, bound: int) -> None:
    """A CSR table: row pointers from 0 to the end without a step back, values in range and ascending in a row."""
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(values) or np.any(np.diff(indptr) < 0):
        _refuse(indptr_name, f"must have {rows + 1} entries that rise from 0 to {len(values)}")
    if len(values) and int(values.max()) >= bound:
        _refuse(name, f"ordinal {int(values.max())} is out of range; there are {bound}")
    rises = np.diff(values.astype(np.int64)) > 0
    starts = indptr[1:-1]
    rises[starts[(starts > 0) & (starts < len(values))] - 1] = True  # between two rows anything may follow
    if not bool(rises.all()):
        _refuse(name, "ordinals must be ascending inside a row, each once")


def _refuse(name: str, what: str) -> None:
    raise CatalogError(f"{FILES[name][0]}: {what}; publish the catalog again")
