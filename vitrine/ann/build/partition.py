"""The first cut: centres, the clusters of each node, and nodes put in the order of their clusters."""

from pathlib import Path

import numpy as np

from vitrine import native
from vitrine.ann.build import files
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

    Writes old (nodes,) uint32, the former number of each; ordered (nodes, words), their codes; members
    (nodes * fan,) uint32, the nodes of each cluster, ascending, and cluster_starts; places (nodes, fan) int64,
    where in members.
    """
    codes, tops = files.read(folder, "codes"), np.asarray(files.read(folder, "tops"))
    nodes, fan = tops.shape
    clusters = len(files.read(folder, "centres"))
    old = np.argsort(tops[:, 0], kind="stable").astype(np.uint32)
    files.save(folder, "old", old)
    ordered = files.create(folder, "ordered", codes.shape, np.uint64)
    for start in range(0, nodes, 1 << 16):
        ordered[start : start + (1 << 16)] = codes[old[start : start + (1 << 16)]]
    flat = tops[old].ravel()
    by_cluster = np.argsort(flat, kind="stable")
    starts = np.zeros(clusters + 1, np.int64)
    np.cumsum(np.bincount(flat, minlength=clusters), out=starts[1:])
    files.save(folder, "members", (by_cluster // fan).astype(np.uint32))
    files.save(folder, "cluster_starts", starts)
    places = np.empty(nodes * fan, np.int64)
    places[by_cluster] = np.arange(nodes * fan)
    files.save(folder, "places", places.reshape(nodes, fan))
