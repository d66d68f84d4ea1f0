"""Is this folder a market? Every problem is told by file, row and column, and what would be right (docs/data.md).

Rows are counted from 0, as pandas and pyarrow count them. Files are read a row group at a time; what is kept is the
ids, and each user's last time.
"""

import io
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vitrine.data.market import missing
from vitrine.data.schemas import (
    EVENT_KINDS,
    MAX_TIME_MS,
    MIN_TIME_MS,
    SPLITS,
    TABLES,
    Column,
    DataError,
    Table,
    accepts,
)

__all__ = ["DataError", "validate"]

MAX_PROBLEMS = 20
MAX_BID = 1_000_000.0
"""Bids above this are taken for a mistake of units."""
MAX_IMAGE_BYTES = 4 << 20
MAX_IMAGE_PIXELS = 4096 * 4096

_BATCH_ROWS = 1 << 16
_REFERENCES = {"user_id": "users", "crowd_id": "crowds", "item_id": "items", "ad_id": "ads"}
_ORDER = (
    "users",
    "crowds",
    "items",
    "ads",
    "bids",
    "negatives",
    "events",
    "holdout",
    "images",
)  # referenced before referring

_REPORTED = np.uint64(2**64 - 1)  # stands for an id that was refused, so that it is told once
_NOT_AN_ID = "is not an id; ids are whole numbers from 1"

Progress = Callable[[str, float], None]
Ids = NDArray[np.uint64]


def validate(
    folder: Path | str,
    tables: Collection[str] | None = None,
    progress: Progress = lambda table, fraction: None,
) -> None:
    """Check a market folder, or those tables of it; progress(table, fraction read) is called after each batch.

    References into a table that is not checked are not checked either. Raises DataError with the first problems
    found, at most 20.
    """
    folder = Path(folder)
    wanted = [name for name in _ORDER if tables is None or name in tables]
    problems = [p for name in wanted for p in missing(folder, TABLES[name])]
    if problems:
        raise DataError(problems[:MAX_PROBLEMS], more=len(problems) > MAX_PROBLEMS)
    check = _Check(folder)
    for name in wanted:
        if (folder / TABLES[name].file).exists():
            check.table(TABLES[name], progress)
    if check.problems:
        raise DataError(check.problems)


class _Check:
    """Problems so far, and the ids of the tables read so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self._ids: dict[str, Ids] = {}
        self._table = TABLES["users"]
        self._start = 0

    def table(self, table: Table, progress: Progress) -> None:
        """Read one file through all its checks."""
        self._table, self._start = table, 0
        with pq.ParquetFile(self.folder / table.file) as file:
            there = [c for c in table.columns if c.name in file.schema_arrow.names]
            if not self._types(there, file.schema_arrow):
                return
            rows = file.metadata.num_rows
            keys = np.empty(rows if table.key else 0, np.uint64)
            last = _LastTimes(self._ids.get("users", np.empty(0, np.uint64)))
            for batch in file.iter_batches(_BATCH_ROWS, columns=[c.name for c in there]):
                columns = {c.name: self._column(c, batch.column(c.name)) for c in there}
                self._rows(columns, last)
                if table.key:
                    keys[self._start : self._start + batch.num_rows] = _mixed([columns[name] for name in table.key])
                self._start += batch.num_rows
                progress(table.name, self._start / max(1, rows))
        keys.sort()
        self._unique(keys)
        if len(table.key) == 1 and table.name in _REFERENCES.values():
            self._ids[table.name] = np.unique(keys)

    # One method a family of mistakes. Values that are already reported are put right, so as to be reported once.

    def _types(self, columns: Sequence[Column], found: pa.Schema) -> bool:
        wrong = [c for c in columns if not accepts(c.type, found.field(c.name).type)]
        for column in wrong:
            self._say(None, column.name, f"is {found.field(column.name).type}; wanted is {column.type}")
        return not wrong

    def _column(self, column: Column, values: pa.Array) -> Any:
        """Values as numpy, or Arrow for lists, strings and pictures; nulls and what is not an id are reported."""
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count and not column.nullable:
            self._each(values.is_null().to_numpy(zero_copy_only=False), column.name, lambda row: "is null")
        if pa.types.is_list(column.type) or pa.types.is_binary(column.type):
            return values
        if pa.types.is_string(column.type):
            return values.cast(pa.string())
        if column.bounds is not None:
            return self._bounded(column.name, column.bounds, values)
        if column.name == "time_ms":
            return values.fill_null(MIN_TIME_MS).cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)
        if pa.types.is_floating(column.type):
            return values.fill_null(1.0).cast(pa.float64()).to_numpy(zero_copy_only=False)
        return self._id(column.name, values)

    def _id(self, name: str, values: pa.Array) -> Ids:
        """Ids as uint64; null is 0, and what is not an id, once reported, _REPORTED."""
        present = values.is_valid().to_numpy(zero_copy_only=False)
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
        bad = present & (numbers <= 0)
        self._each(bad, name, lambda row: f"{numbers[row]} {_NOT_AN_ID}")
        return np.asarray(np.where(bad, _REPORTED, numbers.astype(np.uint64)))

    def _bounded(self, name: str, bounds: tuple[float, float], values: pa.Array) -> NDArray[np.float64]:
        """Numbers that are no ids; null is 0, no bound, and so is what is wrong, once reported."""
        numbers = values.fill_null(0).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        good = (numbers == 0) | ((numbers >= bounds[0]) & (numbers <= bounds[1]))
        low, high = (f"{bound:,.16g}" for bound in bounds)
        self._each(~good, name, lambda row: f"{numbers[row]:.16g} is not {low} to {high}; null says none")
        return np.where(good, numbers, 0.0)

    def _rows(self, columns: dict[str, Any], last: "_LastTimes") -> None:
        """Checks of a table's own."""
        name = self._table.name
        if name == "bids":
            self._bids(columns["bid"])
        if name == "ads" and {"start_ms", "end_ms"} <= columns.keys():
            start, end = columns["start_ms"], columns["end_ms"]
            early = (end > 0) & (end <= start)
            self._each(early, "end_ms", lambda row: f"{end[row]:.0f} is not after start_ms, {start[row]:.0f}")
        for column in _REFERENCES.keys() & columns.keys():
            if self._table.key != (column,) or name == "holdout":
                self._references(column, columns[column])
        if name == "items":
            self._item_crowds(columns["crowd_ids"])
        if name in ("events", "holdout"):
            self._events(columns, last)
        if name == "images":
            self._pictures(columns)

    def _bids(self, bids: NDArray[np.float64]) -> None:
        good = np.isfinite(bids) & (bids > 0)
        self._each(~good, "bid", lambda row: f"{bids[row]} is not a finite number > 0")
        limit = f"above {MAX_BID:,.0f}; bids are currency units a click"
        self._each(good & (bids > MAX_BID), "bid", lambda row: f"{bids[row]} is {limit}")

    def _references(self, column: str, ids: Ids) -> None:
        table = _REFERENCES[column]
        if table not in self._ids:
            return
        unknown = (ids != 0) & (ids != _REPORTED) & ~_among(ids, self._ids[table])
        self._each(unknown, column, lambda row: f"{ids[row]} is not in {TABLES[table].file}")

    def _item_crowds(self, lists: pa.Array) -> None:
        flat = lists.flatten()
        row_of = np.repeat(np.arange(len(lists)), lists.value_lengths().fill_null(0).to_numpy())
        nulls = flat.is_null().to_numpy(zero_copy_only=False)
        numbers = flat.fill_null(1).to_numpy(zero_copy_only=False)

        def entry(row: int) -> str:
            return f"holds {numbers[row]}, which"

        self._each(nulls, "crowd_ids", lambda row: "holds a null; leave it out", row_of)
        zero = ~nulls & (numbers <= 0)
        self._each(
            zero, "crowd_ids", lambda row: f"{entry(row)} is not an id; ids are whole numbers from 1", row_of
        )
        ids = np.where(zero, 1, numbers).astype(np.uint64)
        if "crowds" in self._ids:
            unknown = ~nulls & ~zero & ~_among(ids, self._ids["crowds"])
            self._each(unknown, "crowd_ids", lambda row: f"{entry(row)} is not in crowds.parquet", row_of)
        order = np.lexsort((ids, row_of))
        again = np.zeros(len(ids), bool)
        again[order[1:]] = (np.diff(row_of[order]) == 0) & (np.diff(ids[order]) == 0)
        self._each(again & ~nulls & ~zero, "crowd_ids", lambda row: f"{entry(row)} is there twice", row_of)

    def _events(self, columns: dict[str, Any], last: "_LastTimes") -> None:
        times, kinds, users = columns["time_ms"], columns["kind"], columns["user_id"]
        absurd = (times < MIN_TIME_MS) | (times > MAX_TIME_MS)
        self._each(
            absurd, "time_ms", lambda row: f"{times[row]} is not in the years 1973 to 2100; milliseconds are wanted"
        )
        index = pc.index_in(kinds, pa.array(list(EVENT_KINDS))).fill_null(-1).to_numpy(zero_copy_only=False)
        known = ", ".join(EVENT_KINDS)
        self._each(
            (index < 0) & kinds.is_valid().to_numpy(zero_copy_only=False),
            "kind",
            lambda row: f'"{kinds[row]}" is not one of {known}',
        )
        for number, (kind, column) in enumerate(EVENT_KINDS.items()):
            without = (index == number) & (columns[column] == 0)
            self._each(without, column, partial(_needed_by, kind))
        if self._table.name == "events":
            early = last.advance(users, np.where(absurd, MIN_TIME_MS, times)) & ~absurd
            self._each(
                early,
                "time_ms",
                lambda row: f"{times[row]} is before an earlier row of user {users[row]}; sort each user's by time",
            )
        else:
            wrong = np.isin(index, [list(EVENT_KINDS).index(k) for k in ("view", "join", "leave", "impression")])
            self._each(wrong, "kind", lambda row: f'"{kinds[row]}" cannot be held out; click or purchase can')

    def _pictures(self, columns: dict[str, Any]) -> None:
        splits, pictures = columns["split"], columns["image"]
        known = pc.is_in(splits, pa.array(SPLITS)).to_numpy(zero_copy_only=False)
        self._each(
            ~known & splits.is_valid().to_numpy(zero_copy_only=False),
            "split",
            lambda row: f'"{splits[row]}" is not one of {", ".join(SPLITS)}',
        )
        for row, value in enumerate(pictures):
            fault = _picture_fault(value.as_buffer()) if value.is_valid else None
            if fault:
                self._say(row, "image", fault)

    def _unique(self, mixed: Ids) -> None:
        """mixed: every row's `_mixed` key, sorted: one number a row, however many columns a key has.

        Only where two are equal is the file read again, for the rows that have them.
        """
        suspects = np.unique(mixed[1:][mixed[1:] == mixed[:-1]])
        if not len(suspects):
            return
        names, seen = self._table.key, set[tuple[int, ...]]()
        self._start = 0
        with pq.ParquetFile(self.folder / self._table.file) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(names)):
                ids = [_plain_ids(batch.column(name)) for name in names]
                for row in np.flatnonzero(_among(_mixed(ids), suspects)).tolist():
                    key = tuple(int(column[row]) for column in ids)
                    if key in seen and all(key):  # 0 is what was not an id, and is told already
                        self._say(row, " and ".join(names), f"{' and '.join(map(str, key))} is there twice")
                    seen.add(key)
                self._start += batch.num_rows

    def _each(
        self,
        bad: NDArray[np.bool_],
        column: str,
        what: Callable[[int], str],
        row_of: NDArray[np.int64] | None = None,
    ) -> None:
        for at in np.flatnonzero(bad)[: MAX_PROBLEMS + 1]:
            self._say(int(at if row_of is None else row_of[at]), column, what(int(at)))

    def _say(self, row: int | None, column: str, what: str) -> None:
        if len(self.problems) == MAX_PROBLEMS:
            raise DataError(self.problems, more=True)
        at = "" if row is None else f", row {self._start + row}"
        self.problems.append(f"{self._table.file}{at}, column {column}: {what}")


class _LastTimes:
    """Each known user's latest time so far, over the batches of events."""

    def __init__(self, users: Ids) -> None:
        self._users = users
        self._last = np.full(len(users), np.iinfo(np.int64).min)

    def advance(self, users: Ids, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask of rows whose time is before the one before them of the same user; unknown users pass."""
        early = np.zeros(len(users), bool)
        if not len(self._users):
            return early
        at = np.minimum(np.searchsorted(self._users, users), len(self._users) - 1)
        rows = np.flatnonzero(self._users[at] == users)
        rows = rows[np.argsort(at[rows], kind="stable")]  # by user, in file order
        slot, time = at[rows], times[rows]
        first = np.append(True, slot[1:] != slot[:-1])[: len(rows)]
        before = np.where(first, self._last[slot], np.append(0, time[:-1])[: len(rows)])
        early[rows] = time < before
        np.maximum.at(self._last, slot, time)
        return early


def _plain_ids(values: pa.Array) -> Ids:
    """Ids as uint64, 0 for what is none."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(numbers > 0, numbers, 0).astype(np.uint64)


def _mixed(columns: Sequence[Ids]) -> Ids:
    """One number a row; the id itself where the key is one column."""
    mixed = columns[0]
    for column in columns[1:]:
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9) + column
    return mixed


def _among(ids: Ids, known: Ids) -> NDArray[np.bool_]:
    """Which of the ids are in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(ids), bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] == ids)


def _needed_by(kind: str, row: int) -> str:
    return f"is null; a {kind} needs it"


def _picture_fault(data: pa.Buffer) -> str | None:
    """Why a picture cannot be used, or None."""
    if data.size > MAX_IMAGE_BYTES:
        return f"{data.size:,} bytes are more than {MAX_IMAGE_BYTES:,}; write the picture smaller"
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format not in ("JPEG", "PNG"):
                return f"is {picture.format}; wanted is JPEG or PNG"
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                return f"{picture.width}x{picture.height} is above {MAX_IMAGE_PIXELS:,} pixels; write it smaller"
            picture.draft("RGB", (64, 64))
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be decoded as a picture ({error}); wanted is a whole JPEG or PNG"
    return None
