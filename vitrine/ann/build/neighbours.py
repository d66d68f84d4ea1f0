"""Near neighbours inside each cluster, and each node's lists merged and pruned."""

from pathlib import Path

import numpy as np

from vitrine import native
from vitrine.ann.build import files
from vitrine.ann.build.parameters import Parameters


def prepare(folder: Path, parameters: Parameters) -> None:
    """Creates the arrays that `find` and `merge` fill."""
    members, nodes = len(files.read(folder, "members")), len(files.read(folder, "ordered"))
    files.create(folder, "list_nodes", (members, parameters.kept), np.uint32)
    files.create(folder, "list_distances", (members, parameters.kept), np.uint16)
    files.create(folder, "leaves", (members,), np.uint32)
    files.create(folder, "forward", (nodes, parameters.forward), np.uint32)
    files.create(folder, "forward_distances", (nodes, parameters.forward), np.uint16)


def find(folder: Path, cluster: int, parameters: Parameters) -> None:
    """ordered, members of one cluster -> its rows of list_nodes, list_distances and leaves."""
    starts, fan = files.read(folder, "cluster_starts"), files.read(folder, "places").shape[1]
    rows = slice(int(starts[cluster]), int(starts[cluster + 1]))
    members = np.asarray(files.read(folder, "members")[rows])
    if len(members) == 0:
        return
    nodes, distances, leaves = native.cluster_neighbours(
        files.read(folder, "ordered"),
        members,
        max(1, parameters.overlap // fan),
        parameters.leaf,
        parameters.neighbours,
        parameters.kept,
        parameters.seed * 0x9E3779B1 + cluster & 0xFFFFFFFFFFFFFFFF,
    )
    files.write(folder, "list_nodes", rows, nodes)
    files.write(folder, "list_distances", rows, distances)
    files.write(folder, "leaves", rows, leaves)


def merge(folder: Path, begin: int, end: int, parameters: Parameters) -> None:
    """Lists of nodes begin to end -> forward, forward_distances: each node's chosen edges, nearest first."""
    nodes, distances = native.merge_lists(
        files.read(folder, "ordered"),
        files.read(folder, "list_nodes"),
        files.read(folder, "list_distances"),
        files.read(folder, "places"),
        begin,
        end,
        parameters.forward,
        parameters.slack,
    )
    files.write(folder, "forward", slice(begin, end), nodes)
    files.write(folder, "forward_distances", slice(begin, end), distances)
