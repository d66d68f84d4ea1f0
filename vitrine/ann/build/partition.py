"""The first cut: centres, the clusters of each node, and nodes put in the order of their clusters."""

from pathlib import Path

import numpy as np

from vitrine import native
from vitrine.ann.build import files, sorting, split
from vitrine.ann.build.parameters import CLUSTER, MAX_CENTRES, Parameters

_SAMPLED = 32  # nodes a centre that its bits are voted by


def clusters_of(nodes: int, parameters: Parameters) -> tuple[int, int]:
    """(clusters, of which a node is in so many): one where all nodes fit it."""
    fan = 2
    clusters = min(MAX_CENTRES, -(-nodes * fan // CLUSTER)) if nodes > CLUSTER else 1
    return (clusters, fan) if clusters > 1 else (1, 1)


def centres(folder: Path, parameters: Parameters) -> None:
    """codes -> centres (clusters, words): sampled nodes, each bit then voted by the sample's nearest to it.

    A tie keeps the sampled node's bit. Creates the arrays that `assign` fills.
    """
    codes = files.read(folder, "codes")
    count, fan = clusters_of(len(codes), parameters)
    draws = np.random.Generator(np.random.Philox(key=parameters.seed))
    chosen = np.sort(draws.choice(len(codes), min(len(codes), count * _SAMPLED), replace=False))
    sample = np.ascontiguousarray(codes[chosen])
    found = np.ascontiguousarray(sample[np.sort(draws.choice(len(sample), count, replace=False))])
    if count > 1:
        home = native.assign_centres(sample, found, 1)[:, 0]
        for centre in range(count):
            members = np.unpackbits(sample[home == centre].view(np.uint8), axis=1, bitorder="little")
            votes = members.sum(axis=0, dtype=np.int64) * 2
            own = np.unpackbits(found[centre].view(np.uint8), bitorder="little")
            bits = np.where(votes == len(members), own, votes > len(members)).astype(np.uint8)
            found[centre] = np.packbits(bits, bitorder="little").view(np.uint64)
    files.save(folder, "centres", found)
    files.create(folder, "tops", (len(codes), fan), np.uint16)


def assign(folder: Path, begin: int, end: int) -> None:
    """codes, centres -> tops (nodes, fan) uint16, rows begin to end: each node's nearest centres."""
    codes, tops = files.read(folder, "codes"), files.read(folder, "tops")
    part = np.ascontiguousarray(codes[begin:end])
    nearest = native.assign_centres(part, files.read(folder, "centres"), tops.shape[1])
    files.write(folder, "tops", slice(begin, end), nearest.astype(np.uint16))


def shuffle(folder: Path) -> None:
    """Nodes renumbered by (home cluster, node), so that what is near in the graph is near in memory.

    Writes old (nodes,) uint32, the former number of each, and numbers, its inverse; members (nodes * fan,) uint32,
    the nodes of each cluster, ascending, and cluster_starts; places (nodes, fan) int64, where in members;
    home_starts, each home cluster's first node. Creates ordered, which `gather` fills.
    """
    codes, tops = files.read(folder, "codes"), files.read(folder, "tops")
    nodes, fan = tops.shape
    clusters = split.clusters(folder)
    homes = sorting.starts_of(sorting.counted(tops[:, 0], clusters, files.CHUNK))
    starts = sorting.starts_of(sorting.counted(tops.reshape(-1), clusters, files.CHUNK))
    files.save(folder, "home_starts", homes)
    files.save(folder, "cluster_starts", starts)
    old = files.create(folder, "old", (nodes,), np.uint32)
    numbers = files.create(folder, "numbers", (nodes,), np.uint32)
    members = files.create(folder, "members", (nodes * fan,), np.uint32)
    places = files.create(folder, "places", (nodes, fan), np.int64).reshape(-1)
    next_place = homes[:-1].copy()
    for start in range(0, nodes, files.CHUNK):
        found = sorting.places(tops[start : start + files.CHUNK, 0], next_place)
        numbers[start : start + len(found)] = found
        old[found] = np.arange(start, start + len(found), dtype=np.uint32)
    next_place = starts[:-1].copy()
    for start in range(0, nodes, files.CHUNK):
        flat = tops[old[start : start + files.CHUNK]].reshape(-1)
        found = sorting.places(flat, next_place)
        members[found] = start + np.arange(len(flat)) // fan
        places[start * fan : start * fan + len(flat)] = found
    files.create(folder, "ordered", codes.shape, np.uint64)


def gather(folder: Path, begin: int, end: int) -> None:
    """codes, old -> ordered (nodes, words), the codes of nodes begin to end."""
    codes, old, ordered = files.read(folder, "codes"), files.read(folder, "old"), files.change(folder, "ordered")
    for start in range(begin, end, files.CHUNK):
        stop = min(start + files.CHUNK, end)
        ordered[start:stop] = codes[old[start:stop]]
