"""The stages in their order, cut into tasks that fit the memory, each task's end noted so that a build resumes."""

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.build import collapse, edges, files, neighbours, order, partition, propagate, split
from vitrine.ann.build.executors import Executor, Task, Threads
from vitrine.ann.build.parameters import Parameters
from vitrine.errors import FieldError

Shown = Callable[[str, float], None]


@dataclass(frozen=True)
class Built:
    """A finished graph, mapped from its folder.

    codes:   uint64 (nodes, words), row-major
    edges:   uint32 (nodes, degree), 2^32 - 1 from the first unused slot on
    entries: uint32 (e,), ascending
    items:   uint32 (n,), rows of the codes given to `build`, by node; node i has starts[i] to starts[i + 1] of them
    starts:  int64 (nodes + 1,)
    """

    codes: NDArray[np.uint64]
    edges: NDArray[np.uint32]
    entries: NDArray[np.uint32]
    items: NDArray[np.uint32]
    starts: NDArray[np.int64]


def build(
    rows: NDArray[np.uint64],
    folder: Path,
    parameters: Parameters | None = None,
    *,
    executor: Executor | None = None,
    memory_mb: int = 4_000,
    progress: Shown = lambda stage, share: None,
) -> Built:
    """The graph over codes rows uint64 (n, words), n at least 1; finished tasks in `folder` are not done again.

    folder:    for this build alone: the same rows and parameters each time
    memory_mb: anonymous memory that the tasks of all workers may take together; files are mapped beside it
    progress:  called with the stage and the share of its tasks that is done, from any thread

    Raises FieldError("rows"), or for a parameter; OSError where the disk is full.
    """
    parameters = parameters or Parameters()
    executor = executor or Threads()
    if rows.ndim != 2 or rows.dtype != np.uint64 or not len(rows) or not rows.shape[1]:
        raise FieldError("rows", f"is {rows.dtype} {rows.shape}, not uint64 (n, words) with n of 1 or more")
    if len(rows) >= files.UNUSED:
        raise FieldError("rows", f"has {len(rows):,} codes; one graph holds fewer than 2^32 - 1: use more shards")
    folder.mkdir(parents=True, exist_ok=True)
    steps = _Steps(folder, executor, progress)
    if not (folder / "rows.npy").exists():
        with _named("rows", folder):
            files.save(folder, "rows", np.asarray(rows))
    fitting = (memory_mb << 19) // executor.workers
    steps.run("prepare-collapse", collapse.prepare, [()])
    steps.run("hash", collapse.hash_rows, _ranges(len(rows), 1, executor, memory_mb))
    buckets = -(-len(rows) * collapse.ROW_BYTES // fitting)
    steps.run("group", collapse.group, [(bucket, buckets) for bucket in range(buckets)])
    steps.run("collapse", collapse.number, [()])
    _level(folder, parameters, executor, memory_mb, progress)
    steps.run("entries", edges.choose_entries, [(parameters,)])
    steps.run("missing", edges.find_missing, [()])
    steps.run("connect", edges.connect, [()])
    steps.run("order", order.number, [()])
    nodes = len(files.read(folder, "order"))
    steps.run("reorder", order.turn, _ranges(nodes, 1, executor, memory_mb))
    steps.run("items", order.items, _ranges(nodes, 24, executor, memory_mb, rows=nodes))
    return Built(
        files.read(folder, "graph_codes"),
        files.read(folder, "graph_edges"),
        files.read(folder, "graph_entries"),
        files.read(folder, "node_items"),
        files.read(folder, "node_items_starts"),
    )


def _level(
    folder: Path, parameters: Parameters, executor: Executor, memory_mb: int, progress: Shown, name: str = ""
) -> None:
    """codes -> edges of one level, those of the levels above it among them."""
    steps = _Steps(folder, executor, lambda stage, share: progress(name + stage, share))
    nodes, words = files.read(folder, "codes").shape
    steps.run("centres", partition.centres, [(parameters,)])
    steps.run("assign", partition.assign, _ranges(nodes, words * 16, executor, memory_mb))
    for turn in range(split.TURNS):
        steps.run(f"split {turn}", split.choose, [(turn, parameters)])
        if not len(files.read(folder, f"split-{turn}")):
            break
        steps.run(
            f"deal {turn}", split.deal, [(*part, turn) for part in _ranges(nodes, words * 16, executor, memory_mb)]
        )
    steps.run("shuffle", partition.shuffle, [()])
    steps.run("gather", partition.gather, _ranges(nodes, 1, executor, memory_mb))
    steps.run("prepare-neighbours", neighbours.prepare, [(parameters,)])
    clusters = split.clusters(folder)
    steps.run("neighbours", neighbours.find, [(cluster, parameters) for cluster in range(clusters)])
    _propagate(steps, nodes, parameters, executor, memory_mb)
    chunk = _ranges(nodes, parameters.forward * 12, executor, memory_mb)
    steps.run("merge", neighbours.merge, [(*part, parameters) for part in chunk])
    steps.run("prepare-edges", edges.prepare, [(parameters,)])
    # Incoming edges are gathered by a pass over all nodes, so tasks are few: as large as the memory allows.
    chunk = _ranges(nodes, parameters.degree * 10, executor, memory_mb, least=executor.workers, rows=nodes)
    steps.run("edges", edges.both_ways, [(*part, parameters) for part in chunk])
    if nodes // edges.LEVEL >= parameters.entries_of(nodes):
        steps.run("sample", edges.sample_level, [()])
        _level(folder / edges.UPPER, parameters, executor, memory_mb, progress, name + "upper ")
        steps.run("stack", edges.stack, [()])
        steps.run("far edges", edges.add_coarse, [()])


def _propagate(steps: "_Steps", nodes: int, parameters: Parameters, executor: Executor, memory_mb: int) -> None:
    """Rounds of propagation over the lists of a level."""
    if not parameters.rounds:
        return
    chunk = _ranges(nodes, propagate.TAKE_BYTES, executor, memory_mb)
    senders = _ranges(nodes, propagate.SEND_BYTES, executor, memory_mb)
    steps.run("prepare-lists 0", propagate.prepare, [(0,)])
    steps.run("lists", propagate.gather, chunk)
    for turn in range(parameters.rounds):
        steps.run(f"send {turn}", propagate.send, [(*part, turn, parameters) for part in senders])
        steps.run(f"prepare-lists {turn + 1}", propagate.prepare, [(turn + 1,)])
        begins = [begin for begin, _ in senders]
        steps.run(f"take {turn}", propagate.take, [(*part, turn, begins) for part in chunk])
    steps.run("give back", propagate.give_back, [(*part, parameters.rounds) for part in chunk])


class _Steps:
    """Runs stages in turn; a task whose end is noted is not run again."""

    def __init__(self, folder: Path, executor: Executor, progress: Shown) -> None:
        self._folder = folder
        self._executor = executor
        self._progress = progress
        self._notes = folder / "done"
        self._notes.mkdir(parents=True, exist_ok=True)

    def run(self, stage: str, task: Task, calls: Sequence[tuple[Any, ...]]) -> None:
        """A stage's tasks. Their note has their arguments: cut otherwise, a stage is done again."""
        whole = self._notes / stage
        if whole.exists():
            return
        left = list(calls)
        note = self._notes / f"{stage}.tasks"
        named = {json.dumps(_plain(call)): call for call in calls}
        finished = set(note.read_text().splitlines()) if note.exists() else set()
        if finished <= set(named):
            left = [call for name, call in named.items() if name not in finished]
        else:
            note.unlink()
        done = len(calls) - len(left)
        self._progress(stage, done / len(calls))

        def count(call: tuple[Any, ...]) -> None:
            nonlocal done
            with note.open("a") as log:
                log.write(json.dumps(_plain(call)) + "\n")
            done += 1
            self._progress(stage, done / len(calls))

        with _named(stage, self._folder):
            self._executor.run(task, self._folder, left, count)
        whole.touch()
        note.unlink(missing_ok=True)


@contextmanager
def _named(stage: str, folder: Path) -> Iterator[None]:
    """An OSError names the stage."""
    try:
        yield
    except OSError as error:
        why = f"build stage {stage}: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, why, error.filename or str(folder)) from error


def _plain(call: tuple[Any, ...]) -> list[Any]:
    return [part.as_dict() if isinstance(part, Parameters) else part for part in call]


def _ranges(
    nodes: int, bytes_a_node: int, executor: Executor, memory_mb: int, *, least: int = 1, rows: int = 1 << 17
) -> list[tuple[int, int]]:
    """Ranges of nodes, such that those of all workers at once fit half of the memory."""
    fitting = (memory_mb << 19) // executor.workers // bytes_a_node
    size = max(1024, min(rows, fitting, -(-nodes // least)))
    return [(begin, min(begin + size, nodes)) for begin in range(0, nodes, size)]
