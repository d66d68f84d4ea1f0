"""Neighbour propagation (BDG, arXiv 2102.04656): each node tells those that chose it whom it has found.

A round is map, shuffle and reduce. Map (`send`): a node gathers its reverse edges and proposes to each node p at
their other end its own neighbours and the others that chose it. A proposal is sent only below the k-th distance of
p's list; what the triangle inequality excludes is not even computed. Shuffle: a task writes what it sends by
receiver. Reduce (`take`): a node merges what it was sent into its list.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann.build import files
from vitrine.ann.build.parameters import Parameters

_NONE = np.uint64(0xFFFF_FFFF_FFFF)  # in a list, from the first unused slot on: 65535 << 32 | UNUSED

JOINED = 8  # of a node's list: proposed, and told of in turn
_REVERSE = 16  # of a node's reverse edges, the nearest
_NODES = 1024  # joined at a time
# Memory that a task takes a node: everything that a node could send, and lists with what came for them.
SEND_BYTES = _REVERSE * (JOINED + _REVERSE) * 12
TAKE_BYTES = 2048


def gather(folder: Path, begin: int, end: int) -> None:
    """list_nodes, list_distances, places -> near-0 (nodes, width) uint64, distance << 32 | node, rows begin to end:
    each node's lists in one, ascending; and heads-0, the first JOINED of it."""
    places = files.read(folder, "places")
    lists, distances = files.read(folder, "list_nodes"), files.read(folder, "list_distances")
    for start in range(begin, end, files.CHUNK):
        stop = min(start + files.CHUNK, end)
        rows = places[start:stop]
        keys = (distances[rows].astype(np.uint64) << np.uint64(32) | lists[rows]).reshape(len(rows), -1)
        _store(folder, 0, start, _nearest(keys, keys.shape[1]))


def prepare(folder: Path, turn: int) -> None:
    """Creates the arrays of lists that `gather`, or round `turn` - 1, fills."""
    (nodes, fan), kept = files.read(folder, "places").shape, files.read(folder, "list_nodes").shape[1]
    files.create(folder, f"near-{turn}", (nodes, fan * kept), np.uint64)
    files.create(folder, f"heads-{turn}", (nodes, min(JOINED, fan * kept)), np.uint32)
    files.create(folder, f"heads_distances-{turn}", (nodes, min(JOINED, fan * kept)), np.uint16)


def send(folder: Path, begin: int, end: int, turn: int, parameters: Parameters) -> None:
    """near, heads -> sent-<turn>-<begin> (m, 2) uint64, receiver and distance << 32 | node, ascending: what nodes
    begin to end propose."""
    codes, near = files.read(folder, "ordered"), files.read(folder, f"near-{turn}")
    heads, distances = files.read(folder, f"heads-{turn}"), files.read(folder, f"heads_distances-{turn}")
    indptr, sources, source_distances = native.incoming(heads, distances, begin, end)
    sent = [np.empty((0, 2), np.uint64)]
    for start in range(begin, end, _NODES):
        stop = min(start + _NODES, end)
        part = slice(indptr[start - begin], indptr[stop - begin])
        told, told_distances = _padded(
            indptr[start - begin : stop - begin + 1] - part.start, sources[part], source_distances[part]
        )
        limits = (near[np.minimum(told, len(near) - 1), parameters.kept - 1] >> np.uint64(32)).astype(np.int32)
        own, own_distances = heads[start:stop], distances[start:stop].astype(np.int32)
        again = (told[:, :, None] == own[:, None, :]).any(axis=2)  # chosen both ways: proposed once
        others = np.concatenate([own, np.where(again, files.UNUSED, told)], axis=1)
        other_distances = np.concatenate([own_distances, told_distances], axis=1)
        wanted = (told != files.UNUSED)[:, :, None] & (others != files.UNUSED)[:, None, :]
        wanted &= told[:, :, None] != others[:, None, :]
        wanted &= np.abs(told_distances[:, :, None] - other_distances[:, None, :]) < limits[:, :, None]
        node, at, other = np.nonzero(wanted)
        receivers, proposed = told[node, at], others[node, other]
        found = pair_distances(codes, receivers, proposed)
        near_enough = found < limits[node, at]
        keys = found[near_enough].astype(np.uint64) << np.uint64(32) | proposed[near_enough]
        sent.append(np.column_stack([receivers[near_enough].astype(np.uint64), keys]))
    every = np.concatenate(sent)
    every = every[np.lexsort((every[:, 1], every[:, 0]))]
    files.save(folder, f"sent-{turn}-{begin}", every)


def take(folder: Path, begin: int, end: int, turn: int, senders: list[int]) -> None:
    """near-<turn>, and what `send` wrote of all ranges -> near and heads of turn + 1, rows begin to end."""
    near = files.read(folder, f"near-{turn}")
    width = near.shape[1]
    parts = [np.empty((0, 2), np.uint64)]
    for sender in senders:
        sent = files.read(folder, f"sent-{turn}-{sender}")
        low, high = np.searchsorted(sent[:, 0], [begin, end])
        parts.append(sent[low:high])
    came = np.concatenate(parts)
    came = came[np.lexsort((came[:, 1], came[:, 0]))]
    came = came[np.append(True, (came[1:] != came[:-1]).any(axis=1))[: len(came)]]
    starts = np.searchsorted(came[:, 0], np.arange(begin, end + 1))
    rank = np.arange(len(came)) - starts[came[:, 0].astype(np.int64) - begin]
    came, rank = came[rank < width], rank[rank < width]
    for start in range(begin, end, files.CHUNK):
        stop = min(start + files.CHUNK, end)
        inside = slice(*np.searchsorted(came[:, 0], [start, stop]))
        new = np.full((stop - start, width), _NONE)
        new[came[inside, 0].astype(np.int64) - start, rank[inside]] = came[inside, 1]
        _store(folder, turn + 1, start, _nearest(np.concatenate([near[start:stop], new], axis=1), width))


def give_back(folder: Path, begin: int, end: int, turn: int) -> None:
    """near-<turn> -> list_nodes, list_distances, from which `gather` had it, of nodes begin to end."""
    near, places = files.read(folder, f"near-{turn}"), files.read(folder, "places")
    lists, distances = files.change(folder, "list_nodes"), files.change(folder, "list_distances")
    for start in range(begin, end, files.CHUNK):
        rows = places[start : min(start + files.CHUNK, end)]
        keys = near[start : start + len(rows)].reshape(*rows.shape, -1)
        lists[rows], distances[rows] = _split(keys)


def pair_distances(
    codes: NDArray[np.uint64], left: NDArray[np.uint32], right: NDArray[np.uint32]
) -> NDArray[np.int32]:
    """Hamming distances int32 (m,) of rows left and right (m,) of codes."""
    found = np.empty(len(left), np.int32)
    for start in range(0, len(left), files.CHUNK):
        part = slice(start, start + files.CHUNK)
        np.bitwise_count(codes[left[part]] ^ codes[right[part]]).sum(axis=1, dtype=np.int32, out=found[part])
    return found


def _padded(
    indptr: NDArray[np.int64], sources: NDArray[np.uint32], distances: NDArray[np.uint16]
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """The nearest sources of each node, (nodes, _REVERSE), UNUSED where there are fewer; their distances."""
    nodes = len(indptr) - 1
    owner = np.repeat(np.arange(nodes), np.diff(indptr))
    order = np.lexsort((sources, distances, owner))
    rank = np.arange(len(sources)) - indptr[owner]
    order, owner, rank = order[rank < _REVERSE], owner[rank < _REVERSE], rank[rank < _REVERSE]
    told = np.full((nodes, _REVERSE), files.UNUSED, np.uint32)
    told_distances = np.zeros((nodes, _REVERSE), np.int32)
    told[owner, rank], told_distances[owner, rank] = sources[order], distances[order]
    return told, told_distances


def _nearest(keys: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """The `width` smallest different keys of each row (m, any), ascending."""
    keys = np.sort(keys, axis=1)
    keys[:, 1:][keys[:, 1:] == keys[:, :-1]] = _NONE
    keys.sort(axis=1)
    return keys[:, :width]


def _store(folder: Path, turn: int, start: int, near: NDArray[np.uint64]) -> None:
    files.change(folder, f"near-{turn}")[start : start + len(near)] = near
    heads, distances = files.change(folder, f"heads-{turn}"), files.change(folder, f"heads_distances-{turn}")
    heads[start : start + len(near)], distances[start : start + len(near)] = _split(near[:, : heads.shape[1]])


def _split(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Nodes and distances of keys."""
    return keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint16)
