"""The `embeddings` artifact, schema 1: one unit vector a picture, the encoder that made it, and thumbnails.

Files: ids.npy uint64 (n,), ascending; vectors.npy float32 (n, dim), unit length; encoder.onnx, for `Encoder`;
thumbnails.parquet, one row an id in the same order.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitrine.ann.arrays import check_unit_vectors, map_array, refuse

KIND = "embeddings"
SCHEMA = 1
ENCODER_FILE = "encoder.onnx"
THUMBNAILS_FILE = "thumbnails.parquet"
THUMBNAILS_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.uint64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Embeddings:
    """Ids and vectors of pictures.

    ids:     uint64 (n,), ascending
    vectors: float32 (n, dim), unit length
    folder:  where encoder and thumbnails lie
    """

    ids: NDArray[np.uint64]
    vectors: NDArray[np.float32]
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The vectors in an artifact's folder, memory-mapped and checked; ArtifactError names the file at fault."""
        ids = map_array(folder / "ids.npy", np.uint64, 1)
        vectors = map_array(folder / "vectors.npy", np.float32, 2)
        if len(ids) == 0 or ids[0] == 0 or not (ids[1:] > ids[:-1]).all():
            refuse("ids.npy", "is not ascending ids from 1")
        if len(vectors) != len(ids) or vectors.shape[1] == 0:
            refuse("vectors.npy", f"has shape {vectors.shape}, not one vector for each of {len(ids)} ids")
        check_unit_vectors("vectors.npy", vectors)
        return cls(ids, vectors, folder)

    def thumbnails(self, columns: list[str]) -> pa.Table:
        """Columns of thumbnails.parquet, row for row with `ids`; ArtifactError where they are not."""
        wanted = list(dict.fromkeys(["item_id", *columns]))
        try:
            table = pq.read_table(self.folder / THUMBNAILS_FILE, columns=wanted)
        except (OSError, pa.ArrowException) as error:
            refuse(THUMBNAILS_FILE, f"cannot be read: {error}")
        if table.column_names != wanted or not np.array_equal(table["item_id"].to_numpy(), self.ids):
            refuse(THUMBNAILS_FILE, "does not have the ids of ids.npy, or lacks a column")
        return table
