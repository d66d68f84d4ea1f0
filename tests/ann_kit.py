"""What the tests of visual search share: small embeddings with an encoder of their own, and indexes over them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitrine.ann import embeddings, hashing
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.index import BinaryIndex, View
from vitrine.ann.pictures import SIDE
from vitrine.ann.segment import Segment
from vitrine.artifacts import ArtifactStore, Manifest

FIRST_ID = 1001
CATEGORIES = ("hat", "shoe", "skirt")


def unit_vectors(seed: int, n: int, dim: int) -> NDArray[np.float32]:
    """Random unit vectors float32 (n, dim), off centre, as real ones are."""
    vectors = np.random.default_rng(seed).standard_normal((n, dim)) + 0.3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def small_index(seed: int = 0, n: int = 500, dim: int = 32, bits: int = 128, over_recall: int = 10) -> BinaryIndex:
    """An index of random unit vectors under ids FIRST_ID, FIRST_ID + 3, ..."""
    vectors = unit_vectors(seed, n, dim)
    function = hashing.fit(vectors, bits, seed=seed)
    ids = np.arange(FIRST_ID, FIRST_ID + 3 * n, 3, dtype=np.uint64)
    return BinaryIndex.of(ids, vectors, function, over_recall=over_recall)


def segment_of(index: BinaryIndex) -> Segment:
    """The one segment of an index as it was published."""
    (view,) = index.segments
    return view.segment


def write_encoder(file: Path, dim: int, seed: int = 0) -> None:
    """An ONNX encoder: one random matrix from pixels to unit vectors."""
    weights = np.random.default_rng(seed).standard_normal((3 * SIDE * SIDE, dim)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["picture"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], ["features"]),
            helper.make_node("LpNormalization", ["features"], ["vector"], axis=1, p=2),
        ],
        "encoder",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())


def publish_embeddings(
    store: ArtifactStore, scratch: Path, *, seed: int = 0, n: int = 300, dim: int = 32, encoder: bool = True
) -> Manifest:
    """`embeddings` of n random vectors; every fifth picture is of the test split, every seventh of validation."""
    scratch.mkdir(parents=True, exist_ok=True)
    ids = np.arange(FIRST_ID, FIRST_ID + n, dtype=np.uint64)
    np.save(scratch / "ids.npy", ids)
    np.save(scratch / "vectors.npy", unit_vectors(seed, n, dim))
    if encoder:
        write_encoder(scratch / "encoder.onnx", dim, seed)
    split = ["test" if i % 5 == 0 else "validation" if i % 7 == 0 else "train" for i in range(n)]
    columns = [pa.array(ids), split, [CATEGORIES[i % 3] for i in range(n)], [b"jpeg"] * n]
    pq.write_table(pa.table(columns, schema=embeddings.THUMBNAILS_SCHEMA), scratch / "thumbnails.parquet")
    return store.publish("embeddings", scratch, schema=1)


def publish_index(
    store: ArtifactStore, scratch: Path, parent: Manifest, *, seed: int = 0, **options: int
) -> Manifest:
    """`binary-index` of random vectors, as a child of these embeddings."""
    scratch.mkdir(parents=True, exist_ok=True)
    small_index(seed, **options).write(scratch)
    return store.publish("binary-index", scratch, schema=1, parents={"embeddings": parent.version})


def live_base(items: Mapping[int, NDArray[np.float32]], *, seed: int = 0, bits: int = 128) -> BinaryIndex:
    """An index of these items (id -> unit vector) with a graph, their codes by a hash function of this seed."""
    ids = np.array(sorted(items), np.uint64)
    vectors = np.stack([items[int(item)] for item in ids])
    function = hashing.fit(unit_vectors(seed, 4 * bits, vectors.shape[1]), bits, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        segment = Segment.build(ids, vectors, function, Attributes.none(len(ids)), Parameters(), Path(folder))
    return BinaryIndex(function, (View(segment),), 10)
