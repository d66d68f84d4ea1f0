"""Clusters that have come out far too large are cut again, so that no task's memory depends on how the data lies.

It happens where many codes stand around one: the sampled nodes' votes are then all the same, and the centres too.
Members are dealt to sampled members, without a vote, until no cluster has more than a few times the mean.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann.build import files, sorting
from vitrine.ann.build.parameters import CLUSTER, Parameters

TURNS = 8  # after which a cluster stays as it is: its members are hardly apart
_TOO_LARGE = 4  # times the mean


def clusters(folder: Path, turns: int = TURNS) -> int:
    """How many there are after so many turns."""
    made = [files.read(folder, f"split-{t}") for t in range(turns) if (folder / f"split-{t}.npy").exists()]
    return len(files.read(folder, "centres")) + sum(map(len, made))


def choose(folder: Path, turn: int, parameters: Parameters) -> None:
    """tops -> split-<turn> (new clusters, words), their centres; split_of-<turn> (m, 3) int64: a cluster too large,
    the first of those that take its place, and how many they are."""
    codes, tops = files.read(folder, "codes"), files.read(folder, "tops")
    fan, before = tops.shape[1], clusters(folder, turn)
    counts = sorting.counted(tops.reshape(-1), before, files.CHUNK)
    size = max(CLUSTER, -(-len(tops) * fan // before))
    large = np.flatnonzero(counts > _TOO_LARGE * size)
    draws = np.random.Generator(np.random.Philox(key=parameters.seed + turn + 1))
    parts = [-(-int(counts[cluster]) // size) for cluster in large]
    chosen = [np.sort(draws.choice(int(counts[c]), p, replace=False)) for c, p in zip(large, parts, strict=True)]
    found: list[list[NDArray[np.uint64]]] = [[] for _ in large]
    seen = np.zeros(len(large), np.int64)
    for start in range(0, len(tops), files.CHUNK) if len(large) else ():
        chunk = tops[start : start + files.CHUNK]
        for i, cluster in enumerate(large):
            members = np.flatnonzero((chunk == cluster).any(axis=1))
            wanted = chosen[i][slice(*np.searchsorted(chosen[i], [seen[i], seen[i] + len(members)]))]
            found[i].append(codes[start + members[wanted - seen[i]]])
            seen[i] += len(members)
    centres = [np.concatenate(some) for some in found]
    firsts = before + sorting.starts_of(np.array(parts, np.int64))[:-1]
    files.save(folder, f"split-{turn}", np.concatenate([codes[:0], *centres]))
    files.save(folder, f"split_of-{turn}", np.column_stack([large, firsts, parts]).astype(np.int64))


def deal(folder: Path, begin: int, end: int, turn: int) -> None:
    """tops of nodes begin to end: of a cluster that is too large -> the nearest of those that take its place."""
    codes, tops = files.read(folder, "codes"), files.change(folder, "tops")
    centres, before = files.read(folder, f"split-{turn}"), clusters(folder, turn)
    for cluster, first, count in files.read(folder, f"split_of-{turn}").tolist():
        own = np.ascontiguousarray(centres[first - before : first - before + count])
        rows, slots = np.nonzero(tops[begin:end] == cluster)
        if len(rows):
            nearest = native.assign_centres(codes[begin + rows], own, 1)[:, 0]
            tops[begin + rows, slots] = first + nearest
