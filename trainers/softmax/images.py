"""The pictures of an images file, decoded once and kept as bytes: 3 KB each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from trainers.runtime.dist import Group
from vitrine.ann import pictures
from vitrine.data.schemas import SPLITS, TABLES, DataError, accepts
from vitrine.errors import FieldError


@dataclass(frozen=True)
class Images:
    """n pictures in ascending order of id.

    ids:        uint64 (n,)
    split:      str (n,), of SPLITS
    labels:     int64 (n,), ordinals into `categories`
    categories: names, ascending
    files:      the pictures' bytes as they came, binary (n,)
    pixels:     uint8 (n, 3, SIDE, SIDE), as `vitrine.ann.pictures.pixels` gives
    """

    ids: NDArray[np.uint64]
    split: NDArray[np.str_]
    labels: NDArray[np.int64]
    categories: tuple[str, ...]
    files: pa.ChunkedArray
    pixels: torch.Tensor

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Rows in these splits, ascending."""
        return np.flatnonzero(np.isin(self.split, splits))


def load(file: Path, group: Group) -> Images:
    """Read an images file, each process decoding its share.

    Raises DataError naming column or row where the file is not one (docs/data.md).
    """
    table = _read(file)
    ids = table["item_id"].to_numpy()
    categories, labels = np.unique(
        table["category"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True
    )
    return Images(
        ids=ids,
        split=table["split"].to_numpy(zero_copy_only=False).astype(str),
        labels=labels.astype(np.int64),
        categories=tuple(categories.tolist()),
        files=table["image"],
        pixels=torch.from_numpy(decode(table["image"], ids, group, pictures.pixels, file)),
    )


def decode(
    files: pa.ChunkedArray,
    ids: NDArray[np.uint64],
    group: Group,
    one: Callable[[bytes], NDArray[np.uint8]],
    source: Path,
) -> NDArray[np.uint8]:
    """`one(picture)` for every picture, uint8 (n, 3, SIDE, SIDE), on every process; each does its share."""
    out = torch.zeros((len(files), 3, pictures.SIDE, pictures.SIDE), dtype=torch.uint8)
    for row in range(group.rank, len(files), group.world):
        try:
            out[row] = torch.from_numpy(one(files[row].as_py()))
        except FieldError as error:
            raise DataError([f"{source}: item_id {ids[row]}: image {error.message}"]) from error
    moved = out.to(group.device)  # NCCL wants tensors on the GPU
    return group.all_reduce(moved).cpu().numpy()  # each row has one process's pixels and zeros elsewhere


def _read(file: Path) -> pa.Table:
    """The file's rows in ascending order of id, columns as in docs/data.md."""
    schema = TABLES["images"].schema
    try:
        found = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError([f"{file}: cannot be read as Parquet: {error}"]) from error
    problems = [
        f"{file}: column {field.name} is {_found(found, field.name)}, not {field.type}"
        for field in schema
        if field.name not in found.names or not accepts(field.type, found.field(field.name).type)
    ]
    if problems:
        raise DataError(problems)
    try:
        table = pq.read_table(file, columns=schema.names)
        for name in schema.names:
            if table[name].null_count:
                row = table[name].is_null().index(True).as_py()
                raise DataError([f"{file}: column {name}: row {row} is null"])
        table = table.cast(schema).sort_by("item_id")
    except (OSError, pa.ArrowException) as error:
        raise DataError([f"{file}: {error}"]) from error
    ids = table["item_id"].to_numpy()
    repeated = np.flatnonzero(ids[1:] == ids[:-1])
    if len(repeated):
        problems.append(f"{file}: column item_id: {ids[repeated[0]]} is there twice")
    if len(ids) and ids[0] == 0:
        problems.append(f"{file}: column item_id: 0 is not an id; ids are whole numbers from 1")
    unknown = sorted(set(table["split"].unique().to_pylist()) - set(SPLITS))
    if unknown:
        problems.append(f"{file}: column split: {unknown[0]!r} is not one of {', '.join(SPLITS)}")
    elif "train" not in table["split"].unique().to_pylist():
        problems.append(f"{file}: column split: no row is of 'train'; there is nothing to learn from")
    if problems:
        raise DataError(problems)
    return table


def _found(schema: pa.Schema, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "missing"
