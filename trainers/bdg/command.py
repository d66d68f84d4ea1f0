"""The job's flags."""

import os
import tempfile
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainers.bdg.train import JOB, Config, Inputs, Means, train
from trainers.runtime.progress import failed
from vitrine.ann import index
from vitrine.ann.build import Executor, Parameters, Threads
from vitrine.ann.index import MAX_EF, MAX_OVER_RECALL
from vitrine.ann.rotations import METHODS
from vitrine.artifacts import ArtifactError, ArtifactStore
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.runtime.kafka import LogLostError

_GRAPH = "Graph"
_RUN = "Running (no byte depends on it)"


class Executors(StrEnum):
    """Who runs the tasks of a stage."""

    threads = "threads"
    ray = "ray"


def _of_graph(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=text, rich_help_panel=_GRAPH)
    return option


def main(
    store: Annotated[str, typer.Option(envvar="VITRINE_STORE", help="artifact store: a folder or an fsspec URL")],
    namespace: Annotated[str, typer.Option(envvar="VITRINE_NAMESPACE", help="prefix of the artifacts' names")] = "",
    name: Annotated[
        str, typer.Option(help="the index: the artifact's name, and its items' in the log")
    ] = index.KIND,
    work: Annotated[Path | None, typer.Option(help="folder of finished tasks, to resume from")] = None,
    source: Annotated[str, typer.Option("--embeddings", help="ref or version of `embeddings`")] = "stable",
    attributes: Annotated[
        Path | None, typer.Option(help="Parquet file of the items' attributes: item_id, and a column each")
    ] = None,
    updates: Annotated[
        str, typer.Option(help="URL of the Kafka whose item-updates are applied up to now; none unless given")
    ] = "",
    bits: Annotated[int, typer.Option(min=64, max=1024, help="bits of a code, a multiple of 64")] = Config.bits,
    dims: Annotated[int, typer.Option(min=0, help="principal directions kept; 0 chooses")] = Config.dims,
    method: Annotated[str, typer.Option(help=f"of hashing: {', '.join(METHODS)}")] = Config.method,
    over_recall: Annotated[
        int, typer.Option(min=1, max=MAX_OVER_RECALL, help="candidates re-ranked by default, as a multiple of k")
    ] = Config.over_recall,
    ef: Annotated[int, typer.Option(min=1, max=MAX_EF, help="nodes that a walk keeps by default")] = Config.ef,
    splits: Annotated[
        str, typer.Option(help="splits of the pictures to index, with commas; empty for all")
    ] = ",".join(Config.splits),
    shards: Annotated[
        int, typer.Option(min=1, max=1024, help="graphs that the items are dealt to")
    ] = Config.shards,
    seed: Annotated[int, typer.Option(min=0, help="of rotations and samples")] = Config.seed,
    overlap: Annotated[int, _of_graph("leaves that a node is in")] = Parameters.overlap,
    leaf: Annotated[int, _of_graph("members of a leaf at most")] = Parameters.leaf,
    neighbours: Annotated[int, _of_graph("found of a node in each of its leaves")] = Parameters.neighbours,
    kept: Annotated[int, _of_graph("of a node's neighbours in one cluster")] = Parameters.kept,
    rounds: Annotated[int, _of_graph("of propagation over reverse edges")] = Parameters.rounds,
    degree: Annotated[int, _of_graph("edges of a node at most, a multiple of 16")] = Parameters.degree,
    slack: Annotated[int, _of_graph("percent; more keeps more edges when pruning")] = Parameters.slack,
    entries: Annotated[int, _of_graph("nodes that a search looks at first; 0 by size")] = Parameters.entries,
    workers: Annotated[
        int, typer.Option(min=0, help="tasks at the same time; 0: all CPUs", rich_help_panel=_RUN)
    ] = 0,
    memory_mb: Annotated[
        int, typer.Option(min=256, help="that the build may use; more streams through files", rich_help_panel=_RUN)
    ] = Means.memory_mb,
    executor: Annotated[
        Executors,
        typer.Option(help="threads here, or tasks of the Ray that RAY_ADDRESS names", rich_help_panel=_RUN),
    ] = Executors.threads,
) -> None:
    """Turn the vectors of `embeddings` into the `binary-index` artifact and publish it.

    Examples:

        python -m trainers.bdg --store ./store --work ./work/bdg

        python -m trainers.bdg --store ./store --bits 512 --splits "" --shards 2 --attributes ./market/items.parquet

        python -m trainers.bdg --store ./store --updates kafka://127.0.0.1:9092 --memory-mb 2000
    """
    scratch = tempfile.TemporaryDirectory(prefix="vitrine-bdg-") if work is None else nullcontext(str(work))
    try:
        graph = Parameters(
            overlap=overlap, leaf=leaf, neighbours=neighbours, kept=kept, rounds=rounds, degree=degree, slack=slack,
            entries=entries, seed=seed,
        )  # fmt: skip
        config = Config(
            bits, dims, over_recall, tuple(s for s in splits.split(",") if s), seed, ef, shards, graph, method
        )
        with scratch as folder:
            train(
                ArtifactStore(store, namespace=namespace),
                Inputs(source, attributes, updates),
                Path(folder),
                config,
                Means(_executor(executor, workers), memory_mb),
                name,
            )
    except (ArtifactError, UnavailableError, NotFoundError, LogLostError, ValueError, OSError) as error:
        failed(JOB, error)
        raise typer.Exit(1) from None


def _executor(which: Executors, workers: int) -> Executor:
    if which is Executors.threads:
        return Threads(workers or len(os.sched_getaffinity(0)))
    try:
        from vitrine.ann.build.executors_ray import RayTasks

        return RayTasks(workers or None)
    except ImportError as error:
        raise ValueError(f"executor: {error}; install the extra: pip install 'vitrine-serving[ray]'") from error
