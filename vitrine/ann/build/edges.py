"""The graph itself: edges both ways, far ones, and every node made reachable."""

from pathlib import Path

import numpy as np

from vitrine import native
from vitrine.ann.build import files
from vitrine.ann.build.parameters import Parameters

UPPER = "upper"  # the folder of a level's sample
LEVEL = 16  # nodes of a level for one of the next
SPARE = 2  # slots of a row that only the repair may fill
_WALK = 32  # the repair's list: it links a lost node to one of so many near ones
_CHUNK = 1 << 16


def prepare(folder: Path, parameters: Parameters) -> None:
    """Creates the array that `both_ways` fills."""
    files.create(folder, "edges", (len(files.read(folder, "ordered")), parameters.degree), np.uint32)


def both_ways(folder: Path, begin: int, end: int, parameters: Parameters) -> None:
    """forward -> edges of nodes begin to end: those they chose and those that chose them, capped by pruning."""
    forward, distances = files.read(folder, "forward"), files.read(folder, "forward_distances")
    indptr, sources, source_distances = native.incoming(forward, distances, begin, end)
    capped = native.cap_edges(
        files.read(folder, "ordered"), forward, distances, indptr, sources, source_distances, begin, end,
        parameters.degree, SPARE, parameters.slack,
    )  # fmt: skip
    files.write(folder, "edges", slice(begin, end), capped)


def sample_level(folder: Path) -> None:
    """Every LEVEL-th node in the order of clusters, so that every region has its share -> codes of folder/upper."""
    sampled = files.read(folder, "ordered")[::LEVEL]
    upper = folder / UPPER
    upper.mkdir(exist_ok=True)
    codes = files.create(upper, "codes", sampled.shape, np.uint64)
    for start in range(0, len(codes), _CHUNK):
        codes[start : start + _CHUNK] = sampled[start : start + _CHUNK]


def stack(folder: Path) -> None:
    """The finished graph of folder/upper -> coarse (nodes // LEVEL, degree) uint32: far edges of the sampled nodes.

    They lead a walk from one dense region to another, as a hierarchy's upper layers would, in a graph that stays
    flat: they take slots of a row that near edges have left.
    """
    upper = folder / UPPER
    edges, old = files.read(upper, "edges"), files.read(upper, "old")
    coarse = files.create(folder, "coarse", edges.shape, np.uint32)
    for start in range(0, len(old), _CHUNK):
        far = edges[start : start + _CHUNK]
        number = old[np.minimum(far, len(old) - 1)] * np.uint32(LEVEL)  # in this folder's numbering
        coarse[old[start : start + _CHUNK]] = np.where(far == files.UNUSED, far, number)


def add_coarse(folder: Path) -> None:
    """edges, coarse -> edges: each sampled node's far edges, nearest first, into the slots left to them."""
    coarse, edges = files.read(folder, "coarse"), files.change(folder, "edges")
    for start in range(0, len(coarse), _CHUNK // LEVEL):
        far = coarse[start : start + _CHUNK // LEVEL]
        rows = slice(start * LEVEL, (start + len(far) - 1) * LEVEL + 1, LEVEL)
        near = edges[rows]
        new = (far != files.UNUSED) & ~(far[:, :, None] == near[:, None, :]).any(axis=2)
        both = np.concatenate([near, np.where(new, far, files.UNUSED)], axis=1)
        order = np.argsort(both == files.UNUSED, axis=1, kind="stable")
        joined = np.take_along_axis(both, order, axis=1)[:, : near.shape[1]]
        joined[:, near.shape[1] - SPARE :] = np.where(
            near[:, near.shape[1] - SPARE :] == files.UNUSED, files.UNUSED, joined[:, near.shape[1] - SPARE :]
        )
        edges[rows] = joined


def choose_entries(folder: Path, parameters: Parameters) -> None:
    """entries (e,) uint32, spread evenly over the nodes of the uppermost level."""
    level = folder
    climbed = []
    while (level / UPPER).is_dir():
        level = level / UPPER
        climbed.append(files.read(level, "old"))
    nodes = np.arange(len(files.read(level, "ordered")), dtype=np.int64)
    for old in reversed(climbed):
        nodes = old[nodes].astype(np.int64) * LEVEL
    count = min(len(nodes), parameters.entries_of(len(files.read(folder, "ordered"))))
    files.save(folder, "entries", np.sort(nodes)[np.arange(count) * len(nodes) // count].astype(np.uint32))


def find_missing(folder: Path) -> None:
    """edges, entries -> missing (m, 2) uint32: the edges without which the entries do not lead to every node."""
    graph = native.Graph(*(files.read(folder, name) for name in ("ordered", "edges", "entries")))
    files.save(folder, "missing", graph.missing_edges(_WALK))


def connect(folder: Path) -> None:
    """edges, missing -> edges with the missing ones; those that a killed run had added already stay as they are."""
    missing = files.read(folder, "missing")
    if not len(missing):
        return
    edges = files.change(folder, "edges")
    for source, target in missing.tolist():
        row = edges[source]
        if target not in row:
            row[np.argmax(row == files.UNUSED)] = target
