"""The catalog's files: what each holds, how it is read, and what is refused (docs/data.md, "The catalog")."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SCHEMA = 2

META_FILE = "meta.json"
TITLES_FILE = "titles.parquet"
CROWD_NAMES_FILE = "crowd_names.parquet"

TITLES_SCHEMA = pa.schema([("ad_id", pa.uint64()), ("title", pa.string())])
CROWD_NAMES_SCHEMA = pa.schema([("crowd_id", pa.uint64()), ("name", pa.string())])

DAY_MS = 86_400_000
MAX_GROUPS = 4
ALL_GROUPS = (1 << MAX_GROUPS) - 1

_SCHEMA_1: dict[str, tuple[str, type[np.generic]]] = {
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
_SCHEMA_2: dict[str, tuple[str, type[np.generic]]] = {
    "ad_groups": ("ad_groups.npy", np.uint8),
    "ad_caps": ("ad_caps.npy", np.uint32),
    "ad_off": ("ad_off.npy", np.uint8),
    "ad_schedule": ("ad_schedule.npy", np.int64),
    "ad_budgets": ("ad_budgets.npy", np.float64),
    "neg_indptr": ("neg_indptr.npy", np.int64),
    "neg_crowds": ("neg_crowds.npy", np.uint32),
    "ad_numbers": ("ad_numbers.npy", np.uint32),
    "crowd_numbers": ("crowd_numbers.npy", np.uint32),
    "ad_indptr": ("ad_indptr.npy", np.int64),
    "ad_crowds": ("ad_crowds.npy", np.uint32),
    "ad_bids": ("ad_bids.npy", np.float32),
}
FILES = _SCHEMA_1 | _SCHEMA_2
"""Field of `Catalog` -> its file and dtype."""

_WIDTHS = {"ad_schedule": 2}
_CHUNK = 1 << 22


class CatalogError(ValueError):
    """The files are not a catalog; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The scalars of a catalog, meta.json.

    half_life_ms:  after which the weight of an event halves
    cap_window_ms: of frequency caps: this long after an ad's last impression its counter starts anew
    groups:        names of the placement groups, one to four; bit i of an ad's mask is groups[i]
    offset:        next offset of `ad-updates`: what is below it is contained
    next_ad_number, next_crowd_number: the first numbers that no catalog up to this one has given away
    """

    half_life_ms: int
    cap_window_ms: int = DAY_MS
    groups: tuple[str, ...] = ("default",)
    offset: int = 0
    next_ad_number: int = 0
    next_crowd_number: int = 0

    def check(self) -> None:
        """Raises CatalogError naming the field that is wrong."""
        for name in ("half_life_ms", "cap_window_ms"):
            if getattr(self, name) <= 0:
                raise CatalogError(f"{META_FILE}: {name} is {getattr(self, name)}; it must be above 0")
        for name in ("offset", "next_ad_number", "next_crowd_number"):
            if getattr(self, name) < 0:
                raise CatalogError(f"{META_FILE}: {name} is {getattr(self, name)}; it must be 0 or more")
        names = self.groups
        if not 1 <= len(names) <= MAX_GROUPS or len(set(names)) != len(names) or "" in names:
            raise CatalogError(
                f"{META_FILE}: groups are {list(names)}; wanted are 1 to {MAX_GROUPS} names, each once"
            )


def read(folder: Path) -> tuple[dict[str, NDArray[Any]], Meta]:
    """(arrays mapped from their files, scalars) of a catalog of this schema, or of the one before.

    Raises CatalogError.
    """
    schema, meta = read_meta(folder / META_FILE)
    wanted = FILES if schema == SCHEMA else _SCHEMA_1
    return {name: _map(folder / file, dtype, _WIDTHS.get(name)) for name, (file, dtype) in wanted.items()}, meta


def read_meta(path: Path) -> tuple[int, Meta]:
    """(schema, scalars) of meta.json. Raises CatalogError."""
    try:
        fields = json.loads(path.read_text("utf-8"))
        schema = int(fields.get("schema", 1))
        numbers = {name: int(fields[name]) for name in Meta.__slots__ if name != "groups" and name in fields}
        groups = fields.get("groups", ["default"])
        if not isinstance(groups, list) or not all(isinstance(name, str) for name in groups):
            raise ValueError(f"groups: {groups!r} is no list of names")
        meta = Meta(**numbers, groups=tuple(groups))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(
            f'{path.name}: wanted is {{"schema": 2, "half_life_ms": milliseconds, ...}} ({error})'
        ) from error
    if not 1 <= schema <= SCHEMA:
        raise CatalogError(f"{path.name}: schema {schema}; this reader knows 1 to {SCHEMA}: upgrade it")
    return schema, meta


def write_meta(folder: Path, meta: Meta) -> None:
    """meta.json, of the newest schema."""
    fields = {"schema": SCHEMA} | {name: getattr(meta, name) for name in Meta.__slots__}
    (folder / META_FILE).write_text(json.dumps(fields) + "\n", "utf-8")


def read_names(path: Path, schema: pa.Schema) -> dict[int, str]:
    """A display table of a catalog (TITLES_SCHEMA or CROWD_NAMES_SCHEMA) as id -> name."""
    table = pq.read_table(path, schema=schema)
    return dict(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def save(folder: Path, name: str, array: NDArray[Any]) -> None:
    """One field's file."""
    file, dtype = FILES[name]
    np.save(folder / file, np.ascontiguousarray(array, dtype), allow_pickle=False)


def check_ids(name: str, ids: NDArray[np.uint64]) -> None:
    """Ids above 0, strictly ascending."""
    if len(ids) and (ids[0] == 0 or np.any(ids[1:] <= ids[:-1])):
        refuse(name, "ids must be above 0 and strictly ascending")


def check_length(name: str, length: int, wanted: int, of: str) -> None:
    """As many entries as there are ads, crowds, ..."""
    if length != wanted:
        refuse(name, f"{length} entries for {wanted} {of}")


def check_bids(name: str, bids: NDArray[np.float32]) -> None:
    """Finite and above 0; a chunk at a time, since there may be hundreds of millions."""
    for at in range(0, len(bids), _CHUNK):
        some = bids[at : at + _CHUNK]
        if not bool(np.all(np.isfinite(some) & (some > 0))):
            refuse(name, "bids must be finite and above 0")


def check_numbers(name: str, numbers: NDArray[np.uint32], bound: int, none: int) -> None:
    """Each number once and below `bound`, except `none`."""
    given = np.sort(numbers[numbers != none])
    if len(given) and (int(given[-1]) >= bound or np.any(given[1:] == given[:-1])):
        refuse(name, f"numbers must be below {bound} and each of one {name.split('_')[0]}")


def check_rows(
    indptr_name: str,
    indptr: NDArray[np.int64],
    rows: int,
    name: str,
    values: NDArray[np.uint32],
    bound: int,
) -> None:
    """A CSR table: row pointers from 0 to the end without a step back, values in range and ascending in a row."""
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(values) or np.any(indptr[1:] < indptr[:-1]):
        refuse(indptr_name, f"must have {rows + 1} entries that rise from 0 to {len(values)}")
    if len(values) and int(values.max()) >= bound:
        refuse(name, f"ordinal {int(values.max())} is out of range; there are {bound}")
    for at in range(1, len(values), _CHUNK):  # chunks, so that a large table is not copied
        until = min(at + _CHUNK, len(values))
        rises = values[at:until] > values[at - 1 : until - 1]
        first, last = np.searchsorted(indptr, (at, until))
        rises[indptr[first:last] - at] = True  # between two rows anything may follow
        if not bool(rises.all()):
            refuse(name, "ordinals must be ascending inside a row, each once")


def refuse(name: str, what: str) -> None:
    """Raises CatalogError about a field's file."""
    raise CatalogError(f"{FILES[name][0]}: {what}; publish the catalog again")


def _map(path: Path, dtype: type[np.generic], width: int | None) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise CatalogError(f"{path.name}: missing from the catalog; fetch or publish it again") from error
    except (ValueError, OSError, EOFError) as error:
        raise CatalogError(f"{path.name}: not a readable npy file ({error}); fetch or publish it again") from error
    if array.dtype != dtype or array.ndim != (1 if width is None else 2):
        found = f"{array.dtype} of {array.ndim} dimensions"
        wanted = "one dimension" if width is None else "two dimensions"
        raise CatalogError(f"{path.name}: holds {found}; wanted is {wanted} of {np.dtype(dtype)}")
    if width is not None and array.shape[1] != width:
        raise CatalogError(f"{path.name}: rows of {array.shape[1]}; wanted are rows of {width}")
    return np.asarray(array)
