"""Attributes of items from a Parquet file: a column item_id, and one column an attribute."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitrine.ann.attributes import KINDS, Attributes, Column
from vitrine.ann.updates import check_name
from vitrine.errors import FieldError

ID = "item_id"


def read(file: Path, ids: NDArray[np.uint64]) -> Attributes:
    """Attributes of the items `ids` (n,), ascending; an item that the file lacks has none, others are passed over.

    Whole numbers of any width, numbers and text (dictionaries too), each of which may be null. Raises
    FieldError("attributes") naming the file, and the column or the row.
    """
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise FieldError("attributes", f"{file} cannot be read: {error}") from error
    if ID not in table.column_names or not pa.types.is_integer(table[ID].type):
        raise FieldError("attributes", f"{file} has no column {ID} of whole numbers")
    rows = _rows(file, table[ID], ids)
    there = rows >= 0
    columns = {}
    for name in table.column_names:
        if name != ID:
            try:
                check_name(name)
                columns[name] = _column(table[name], rows, there)
            except (FieldError, pa.ArrowException) as error:
                raise FieldError("attributes", f"{file}, column {name}: {error}") from error
    return Attributes(len(ids), columns)


def _rows(file: Path, column: pa.ChunkedArray, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The file's row of each item, -1 where it has none."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise FieldError("attributes", f"{file}, row {row}: {ID} is null")
    named = column.to_numpy()
    order = np.argsort(named, kind="stable")
    ordered = named[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(again):
        first, second = order[again[0] : again[0] + 2].tolist()
        raise FieldError("attributes", f"{file}, row {second}: item {named[second]} is in row {first} already")
    if len(ordered) and ordered[0] < 1:
        raise FieldError("attributes", f"{file}, row {order[0]}: {ID} is {ordered[0]}; ids begin at 1")
    rows = np.full(len(ids), -1, np.int64)
    if len(ordered):
        place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        found = ordered[place].astype(np.uint64) == ids
        rows[found] = order[place[found]]
    return rows


def _column(values: pa.ChunkedArray, rows: NDArray[np.int64], there: NDArray[np.bool_]) -> Column:
    """One attribute of the items whose rows these are; those not `there` have none."""
    of = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_integer(of):
        kind = "integer"
    elif pa.types.is_floating(of):
        kind = "number"
    elif pa.types.is_string(of) or pa.types.is_large_string(of):
        kind = "text"
    else:
        raise FieldError(str(of), "is no type of an attribute; use int64, double or string")
    plain = values.cast(pa.string() if kind == "text" else KINDS[kind][1]).combine_chunks()
    taken = plain.take(pa.array(np.where(there, rows, 0), mask=~there))
    present = taken.is_valid().to_numpy(zero_copy_only=False)
    if kind != "text":
        found = taken.fill_null(0).to_numpy(zero_copy_only=False)
        if kind == "number" and not np.isfinite(found).all():
            row = rows[np.flatnonzero(~np.isfinite(found))[0]]
            raise FieldError(f"row {row}", "is not finite; leave it out (null) where the item has none")
        return Column(kind, found, present)
    encoded = taken.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    order = sorted(range(len(words)), key=words.__getitem__)
    ordinal = np.zeros(len(words) + 1, np.int32)
    ordinal[order] = np.arange(len(words))
    return Column(kind, ordinal[encoded.indices.fill_null(len(words)).to_numpy()], present, tuple(sorted(words)))
