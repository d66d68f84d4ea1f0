"""Attributes of items, column by column: whole numbers, numbers or text, of which an item may have some or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vitrine.ann.arrays import refuse
from vitrine.errors import FieldError

Value = int | float | str

KINDS: dict[str, tuple[Any, pa.DataType]] = {
    "integer": (np.int64, pa.int64()),
    "number": (np.float64, pa.float64()),
    "text": (np.int32, pa.dictionary(pa.int32(), pa.string())),
}


@dataclass(frozen=True, eq=False)
class Column:
    """One attribute of n items.

    kind:    "integer", "number" or "text"
    values:  int64, float64, or int32 ordinals of `words` (n,); anything where the item has none
    present: bool (n,), whether the item has one
    """

    kind: str
    values: NDArray[Any]
    present: NDArray[np.bool_]
    words: tuple[str, ...] = ()

    @cached_property
    def ordinals(self) -> dict[str, int]:
        """Where each word is in `words`."""
        return {word: i for i, word in enumerate(self.words)}

    def value(self, row: int) -> Value | None:
        """Of one item; None where it has none."""
        if not self.present[row]:
            return None
        if self.kind == "text":
            return self.words[int(self.values[row])]
        value: Value = self.values[row].item()
        return value

    def some(self, rows: NDArray[np.integer]) -> list[Value]:
        """Of items that have one."""
        values: list[Value] = self.values[rows].tolist()
        return [self.words[ordinal] for ordinal in values] if self.kind == "text" else values  # type: ignore[index]

    def take(self, rows: NDArray[np.integer]) -> Column:
        """Of these rows, in their order."""
        return Column(self.kind, self.values[rows], self.present[rows], self.words)


@dataclass(frozen=True, eq=False)
class Attributes:
    """Columns of `rows` items by name."""

    rows: int
    columns: Mapping[str, Column]

    @classmethod
    def none(cls, rows: int) -> Self:
        """Of items that have none."""
        return cls(rows, {})

    @classmethod
    def of(cls, items: Sequence[Mapping[str, Value]], kinds: Mapping[str, str] | None = None) -> Self:
        """From each item's own; `kinds` are those of the index, where it has the attribute already.

        Raises FieldError("attributes") naming an attribute that has values of different kinds.
        """
        kinds = dict(kinds or {})
        for item in items:
            for name, value in item.items():
                kinds[name] = kind_of(name, value, kinds.get(name))
        return cls(
            len(items), {name: _column(kind, [item.get(name) for item in items]) for name, kind in kinds.items()}
        )

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each attribute."""
        return {name: column.kind for name, column in self.columns.items()}

    def row(self, row: int) -> dict[str, Value]:
        """What one item has."""
        values = {name: column.value(row) for name, column in self.columns.items()}
        return {name: value for name, value in values.items() if value is not None}

    def take(self, rows: NDArray[np.integer]) -> Attributes:
        """Of these rows, in their order."""
        return Attributes(len(rows), {name: column.take(rows) for name, column in self.columns.items()})

    @classmethod
    def concat(cls, parts: Sequence[Attributes]) -> Attributes:
        """One after the other; what a part lacks its items do not have. FieldError where kinds differ."""
        kinds: dict[str, str] = {}
        for part in parts:
            for name, kind in part.kinds.items():
                if kinds.setdefault(name, kind) != kind:
                    raise FieldError("attributes", f"{name} is {kind} here and {kinds[name]} there")
        return Attributes(
            sum(part.rows for part in parts),
            {name: _concat(kind, [(p.rows, p.columns.get(name)) for p in parts]) for name, kind in kinds.items()},
        )

    def write(self, file: Path) -> None:
        """An uncompressed Arrow file, which `load` maps."""
        arrays = [_to_arrow(column) for column in self.columns.values()]
        schema = pa.schema([pa.field(name, array.type) for name, array in zip(self.columns, arrays, strict=True)])
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=schema))

    @classmethod
    def load(cls, file: Path, rows: int) -> Self:
        """What `write` wrote, mapped; ArtifactError where the file is something else or of other items."""
        try:
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_file(source).read_all().combine_chunks()
        except (OSError, pa.ArrowException) as error:
            refuse(file.name, f"cannot be read: {error}")
        if table.num_rows != rows:
            refuse(file.name, f"has {table.num_rows:,} rows, not one for each of {rows:,} items")
        try:
            return cls(rows, {name: _from_arrow(table[name]) for name in table.column_names})
        except (KeyError, pa.ArrowException) as error:
            refuse(file.name, f"has a column of another type: {error}")


def kind_of(name: str, value: Value, wanted: str | None = None) -> str:
    """The kind of a value, where the attribute's is `wanted`; FieldError("attributes") where it is another.

    A whole number may stand for a number.
    """
    kind = "text" if isinstance(value, str) else "integer" if isinstance(value, int) else "number"
    if wanted is None or kind == wanted or (kind, wanted) == ("integer", "number"):
        return wanted or kind
    raise FieldError("attributes", f"{name} is {wanted}, not {kind}: {str(value)[:100]!r}")


def _column(kind: str, values: Sequence[Value | None]) -> Column:
    present = np.array([value is not None for value in values], bool)
    if kind == "text":
        words = tuple(sorted({str(value) for value in values if value is not None}))
        ordinals = {word: i for i, word in enumerate(words)}
        return Column(kind, np.array([ordinals.get(str(v), 0) for v in values], np.int32), present, words)
    return Column(kind, np.array([0 if v is None else v for v in values], KINDS[kind][0]), present)


def _concat(kind: str, parts: Iterable[tuple[int, Column | None]]) -> Column:
    parts = list(parts)
    words = tuple(sorted({word for _, column in parts if column for word in column.words}))
    ordinals = {word: i for i, word in enumerate(words)}
    values, present = [], []
    for rows, column in parts:
        if column is None:
            values.append(np.zeros(rows, KINDS[kind][0]))
            present.append(np.zeros(rows, bool))
            continue
        moved = column.values
        if kind == "text" and column.words and column.words != words:
            moved = np.array([ordinals[word] for word in column.words], np.int32)[moved]
        values.append(moved)
        present.append(column.present)
    return Column(kind, np.concatenate(values), np.concatenate(present), words)


def _to_arrow(column: Column) -> pa.Array:
    mask = ~column.present
    if column.kind == "text":
        return pa.DictionaryArray.from_arrays(
            pa.array(column.values, pa.int32(), mask=mask), pa.array(column.words, pa.string())
        )
    return pa.array(column.values, KINDS[column.kind][1], mask=mask)


def _from_arrow(chunked: pa.ChunkedArray) -> Column:
    kind = {arrow: kind for kind, (_, arrow) in KINDS.items()}[chunked.type]
    array = chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    present = array.is_valid().to_numpy(zero_copy_only=False)
    if kind != "text":
        return Column(kind, array.fill_null(0).to_numpy(zero_copy_only=False), present)
    words = tuple(array.dictionary.to_pylist())
    return Column(kind, array.indices.fill_null(0).to_numpy(zero_copy_only=False), present, words)
