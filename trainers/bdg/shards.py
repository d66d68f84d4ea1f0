"""A shard of the index, from its items to its files; nothing as large as the items is held in memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainers.bdg.items import Items
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Executor, Parameters, build, files
from vitrine.ann.coarse import Coarse
from vitrine.ann.hashing import Hashing
from vitrine.ann.segment import ATTRIBUTES_FILE, COARSE_BITS, COARSE_FILE, Segment, SegmentGraph

_CHUNK = 1 << 14  # rows encoded at a time


def encode(items: Items, hashing: Hashing, out: Path) -> None:
    """The items' ids, vectors, codes (words, n), the same ones as rows (n, words), and attributes."""
    n = len(items.ids)
    files.save(out, "ids", items.ids)
    vectors = files.create(out, "vectors", (n, hashing.dim), np.float32)
    codes = files.create(out, "codes", (hashing.bits // 64, n), np.uint64)
    rows = files.create(out, "rows", (n, hashing.bits // 64), np.uint64)
    for start in range(0, n, _CHUNK):
        part = slice(start, min(start + _CHUNK, n))
        vectors[part] = items.vectors(part)
        codes[:, part] = hashing.encode(vectors[part])
        rows[part] = codes[:, part].T
    if items.attributes.columns:
        items.attributes.write(out / ATTRIBUTES_FILE)


def build_graph(
    encoded: Path,
    scratch: Path,
    out: Path,
    parameters: Parameters,
    executor: Executor,
    memory_mb: int,
    progress: Callable[[str, float], None],
) -> None:
    """What `encode` wrote, and a graph over it, as a segment's files; `scratch` keeps finished tasks."""
    built = build(
        files.read(encoded, "rows"), scratch, parameters, executor=executor, memory_mb=memory_mb, progress=progress
    )
    ids, codes, vectors = (files.read(encoded, name) for name in ("ids", "codes", "vectors"))
    attributes = Attributes.none(len(ids))
    if (encoded / ATTRIBUTES_FILE).exists():
        attributes = Attributes.load(encoded / ATTRIBUTES_FILE, len(ids))
    graph = SegmentGraph(built.codes, built.edges, built.entries, built.items, built.starts)
    try:
        Segment(ids, codes, vectors, attributes, graph).write(out)
        Coarse.encode(vectors, COARSE_BITS, out / COARSE_FILE)
    except OSError as error:
        raise files.unwritten(error, out) from error
