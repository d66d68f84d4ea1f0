"""A market folder, opened: its tables in bounded batches, cast to the schemas of `vitrine.data.schemas`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitrine.data.schemas import TABLES, DataError, Table

META_FILE = "market.json"


class Market:
    """Reads a market folder. Opening checks that files and columns are there, not what is in them (see `validate`).

    meta: contents of market.json ({"name": ...} where there is none)
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        problems = [p for table in TABLES.values() for p in missing(self.folder, table)]
        if problems:
            raise DataError(problems)
        self.meta: dict[str, Any] = {"name": self.folder.name}
        if (self.folder / META_FILE).exists():
            self.meta |= _read_meta(self.folder / META_FILE)

    @property
    def name(self) -> str:
        """Name for people."""
        return str(self.meta["name"])

    def path(self, table: str) -> Path:
        """File of a table, whether it exists or not."""
        return self.folder / TABLES[table].file

    def has(self, table: str) -> bool:
        """Whether an optional table (holdout, images) is there."""
        return self.path(table).exists()

    def rows(self, table: str) -> int:
        """Number of rows, read from the file's footer; 0 where an optional table is missing."""
        return int(pq.read_metadata(self.path(table)).num_rows) if self.has(table) else 0

    def batches(
        self, table: str, columns: Iterable[str] | None = None, rows: int = 1 << 16
    ) -> Iterator[pa.RecordBatch]:
        """Batches of at most `rows` rows, in file order; nothing where an optional table is missing."""
        if not self.has(table):
            return
        schema = TABLES[table].schema
        names = list(columns) if columns is not None else schema.names
        fields = pa.schema([schema.field(n) for n in names])
        with pq.ParquetFile(self.path(table)) as file:
            there = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=rows, columns=there):
                for name in set(names) - set(there):
                    batch = batch.append_column(name, pa.nulls(batch.num_rows, schema.field(name).type))
                yield batch.select(names).cast(fields)

    def table(self, name: str, columns: Iterable[str] | None = None) -> pa.Table:
        """A whole table in memory."""
        schema = TABLES[name].schema
        names = list(columns) if columns is not None else schema.names
        return pa.Table.from_batches(self.batches(name, names), pa.schema([schema.field(n) for n in names]))

    def column(self, table: str, column: str) -> NDArray[Any]:
        """One whole column as numpy, nulls as 0 (numbers) or None (strings)."""
        values = self.table(table, [column])[column]
        if values.null_count and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
            values = values.fill_null(0)
        return np.asarray(values.to_numpy())


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(
            [f"{META_FILE}: not JSON ({error}); leave it out, or write an object with a name"]
        ) from error
    if not isinstance(meta, dict):
        raise DataError([f'{META_FILE}: holds no object; leave it out, or write {{"name": "..."}}'])
    return meta


def missing(folder: Path, table: Table) -> list[str]:
    """Problems of a table's file and columns, without reading rows."""
    path = folder / table.file
    if not path.exists():
        wanted = ", ".join(c.name for c in table.columns)
        return (
            [] if table.optional else [f"{table.file}: no such file in {folder}; wanted are the columns {wanted}"]
        )
    try:
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        return [f"{table.file}: cannot be read as Parquet ({error}); write it again"]
    return [
        f"{table.file}, column {c.name}: missing; the file has {', '.join(found.names) or 'no columns'}; "
        f"wanted is {c.type} ({c.doc})"
        for c in table.columns
        if c.name not in found.names and not c.optional
    ]


class MarketWriter:
    """Writes a market folder table by table; every `write` is one row group, so that memory stays bounded.

    Use as a context manager: leaving it without an error closes the files and writes market.json last.
    """

    def __init__(self, folder: Path | str, meta: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for table in TABLES.values():
            (self.folder / table.file).unlink(missing_ok=True)
        (self.folder / META_FILE).unlink(missing_ok=True)
        self._meta = meta
        self._rows: dict[str, int] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._schemas: dict[str, pa.Schema] = {}

    def write(self, table: str, **columns: Any) -> None:
        """Append one row group: columns are numpy arrays, lists or Arrow arrays, all columns of the schema.

        A file has those of the optional columns that its first row group has.
        """
        if table in self._writers:
            schema = self._schemas[table]
        else:
            optional = {c.name for c in TABLES[table].columns if c.optional}
            schema = self._schemas[table] = TABLES[table].schema_of(
                [name for name in TABLES[table].schema.names if name in columns or name not in optional]
            )
        batch = pa.table([_array(columns[f.name], f.type) for f in schema], schema=schema)
        if table not in self._writers:
            self._writers[table] = pq.ParquetWriter(self.folder / TABLES[table].file, schema, compression="zstd")
        self._writers[table].write_table(batch, row_group_size=max(1, batch.num_rows))
        self._rows[table] = self._rows.get(table, 0) + batch.num_rows

    def close(self) -> None:
        """Close all files and write market.json with each table's number of rows under "sizes"."""
        for writer in self._writers.values():
            writer.close()
        text = json.dumps({**self._meta, "sizes": self._rows}, indent=2)
        (self.folder / META_FILE).write_text(text + "\n", "utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            for writer in self._writers.values():
                writer.close()


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(values, kind)
