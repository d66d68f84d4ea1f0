"""The job: choose the items, fit the hash function, encode, build each shard's graph, measure, publish."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.bdg import log, shards
from trainers.bdg.items import Items, choose
from trainers.bdg.measure import Metrics, measure
from trainers.runtime.progress import Progress, result
from trainers.runtime.tasks import Tasks, fingerprint
from vitrine.ann import embeddings, hashing, index
from vitrine.ann.build import Executor, Parameters, Threads
from vitrine.ann.embeddings import Embeddings
from vitrine.ann.hashing import Hashing
from vitrine.ann.index import EF, BinaryIndex, View, shard_folder, write_meta
from vitrine.ann.segment import Segment
from vitrine.artifacts import ArtifactStore, LocalArtifact

JOB = "bdg"
_SAMPLE = 100_000  # vectors that the hash function is fitted to
_STEPS = 100  # of the progress, a shard
# Which share of a shard's work is done at the end of a stage, measured at 1,000,000 items.
_SHARES = {
    "collapse": 0.05, "gather": 0.1, "neighbours": 0.6, "merge": 0.75,
    "edges": 0.85, "far edges": 0.9, "connect": 0.95, "items": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What an index's bytes depend on, besides its vectors, attributes and updates.

    bits:        of a code, a multiple of 64 up to 1,024
    dims:        principal directions kept before the random rotations; 0 for as many as hold 90% of the variance
    over_recall: default of searches: candidates re-ranked, as a multiple of k
    splits:      of the pictures that are indexed; empty for all
    seed:        of rotations, samples and the graph
    ef:          default of searches: nodes that a walk keeps
    shards:      graphs that the items are dealt to, by murmur2 of their ids
    graph:       of the build
    method:      of hashing (vitrine/ann/rotations.py)
    """

    bits: int = 512
    dims: int = 0
    over_recall: int = 20
    splits: tuple[str, ...] = ("train", "validation")
    seed: int = 0
    ef: int = EF
    shards: int = 1
    graph: Parameters = field(default_factory=Parameters)
    method: str = "turns"


@dataclass(frozen=True)
class Inputs:
    """What the job reads.

    embeddings: ref or version
    attributes: a Parquet file of the items' attributes, or None
    updates:    URL of the Kafka whose `item-updates` are applied up to now, or "" for none
    """

    embeddings: str = "stable"
    attributes: Path | None = None
    updates: str = ""


@dataclass(frozen=True)
class Means:
    """What a job may use; no byte depends on it."""

    executor: Executor = field(default_factory=Threads)
    memory_mb: int = 4_000


def train(
    store: ArtifactStore,
    inputs: Inputs,
    work: Path,
    config: Config,
    means: Means | None = None,
    name: str = index.KIND,
) -> str:
    """Publish the index `name` of `embeddings`, return its version; finished tasks under `work` are not done again.

    Raises ArtifactError where the embeddings are missing or damaged, ValueError where inputs or parameters do not
    fit them, UnavailableError where Kafka does not answer.
    """
    means = means or Means()
    tasks = Tasks(work)
    with Progress(JOB, total=2 + _STEPS * config.shards) as progress:
        artifact = store.fetch(embeddings.KIND, inputs.embeddings, max_schema=embeddings.SCHEMA)
        vectors = Embeddings.load(artifact.path)
        items, sources, logged = gather(store, inputs, config, artifact, vectors, tasks, name)
        progress.update(1, stage="fit")
        fitted = tasks.run(
            "fit",
            [
                *sources,
                f"bits {config.bits}",
                f"method {config.method}",
                f"dims {config.dims}",
                f"seed {config.seed}",
            ],
            lambda out: fit(items, config, out),
        )
        function = Hashing.load(fitted / "hashing.safetensors")
        made = []
        for number in range(config.shards):
            shown = _in_shard(progress, 1 + number * _STEPS, f"shard {number + 1}/{config.shards} ")
            made.append(shard(items, number, fitted, sources, config, means, tasks, shown))
        whole = work / "artifact"
        assemble(whole, made, function, config)
        progress.update(1 + _STEPS * config.shards, stage="measure")
        views = tuple(View(Segment.load(folder, config.bits, function.dim)) for folder in made)
        metrics = measure(BinaryIndex(function, views, config.over_recall, config.ef, ""), vectors)
        if logged is not None:
            metrics |= {"updates": len(logged.last), "updates_refused": logged.refused}
        published = store.publish(
            name,
            whole,
            schema=index.SCHEMA,
            kind=index.KIND,
            parents={embeddings.KIND: artifact.manifest.version},
            offsets=None if logged is None else logged.offsets,
            metrics=metrics,
        )
        shutil.rmtree(whole)
        for read in work.glob("updates-*"):  # the next job reads on
            shutil.rmtree(read)
        progress.update(2 + _STEPS * config.shards, stage="", **_numbers(metrics))
    result(JOB, {name: published.version}, {**metrics, "tasks_resumed": len(tasks.resumed)})
    return published.version


def gather(
    store: ArtifactStore,
    inputs: Inputs,
    config: Config,
    artifact: LocalArtifact,
    vectors: Embeddings,
    tasks: Tasks,
    name: str,
) -> tuple[Items, list[str], log.Logged | None]:
    """The items, fingerprints of what they are made of, and the updates that are in them."""
    items = Items.of(vectors, choose(vectors, config.splits), inputs.attributes)
    sources = [f"schema {index.SCHEMA}", *_fingerprints(artifact), f"splits {','.join(sorted(config.splits))}"]
    if inputs.attributes is not None:
        sources.append(fingerprint(inputs.attributes))
    if not inputs.updates:
        return items, sources, None
    version, dim = artifact.manifest.version, vectors.vectors.shape[1]
    read = tasks.run(
        "updates",
        [version, name, store.namespace],
        lambda out: log.save(log.read(inputs.updates, store.namespace, name, version, dim), name, version, out),
    )
    logged = log.load(read, name, version, dim)
    items, unfit = items.changed(logged.last)
    if not len(items.ids):
        raise ValueError("updates: every item is deleted; an index has one or more")
    return items, [*sources, fingerprint(read / "updates.npz")], logged.also_refused(unfit)


def fit(items: Items, config: Config, out: Path) -> None:
    """The hash function, fitted to a sample of the items."""
    sample: NDArray[np.int64] | slice = slice(None)
    if len(items.ids) > _SAMPLE:
        draws = np.random.Generator(np.random.Philox(key=config.seed))
        sample = np.sort(draws.choice(len(items.ids), _SAMPLE, replace=False))
    function = hashing.fit(
        items.vectors(sample), config.bits, method=config.method, dims=config.dims, seed=config.seed
    )
    function.save(out / "hashing.safetensors")


def shard(
    items: Items,
    number: int,
    fitted: Path,
    sources: list[str],
    config: Config,
    means: Means,
    tasks: Tasks,
    shown: Callable[[str, float], None],
) -> Path:
    """The folder of one shard's files. What its parts are made from is removed once it is whole."""
    own = [*sources, fitted.name, f"shard {number} of {config.shards}"]

    def make(out: Path) -> None:
        function = Hashing.load(fitted / "hashing.safetensors")
        encoded = tasks.run(
            "items", own, lambda to: shards.encode(items.shard(number, config.shards), function, to)
        )
        scratch = tasks.work / f"graph{out.name}"
        shards.build_graph(encoded, scratch, out, config.graph, means.executor, means.memory_mb, shown)

    whole = tasks.run("shard", [*own, str(config.graph.as_dict())], make)
    for part in (*tasks.work.glob(f"graph.{whole.name}"), *tasks.work.glob("items-*")):
        shutil.rmtree(part)
    shown("items", 1)
    return whole


def assemble(whole: Path, made: list[Path], function: Hashing, config: Config) -> None:
    """All files of the artifact in one folder; those of shards are links."""
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    write_meta(
        whole,
        function,
        over_recall=config.over_recall,
        ef=config.ef,
        shards=config.shards,
        parameters=config.graph.as_dict(),
    )
    for number, folder in enumerate(made):
        to = whole / shard_folder(number)
        to.mkdir()
        for file in folder.iterdir():
            (to / file.name).hardlink_to(file)


def _in_shard(progress: Progress, step: int, label: str) -> Callable[[str, float], None]:
    """Shows a build's stages as steps of the job."""
    ends = {stage: step + round(_STEPS * share) for stage, share in _SHARES.items()}
    begins = dict(zip(ends, [step, *ends.values()], strict=False))
    at = step

    def show(stage: str, share: float) -> None:
        nonlocal at
        if stage in ends:
            at = max(at, round(begins[stage] + share * (ends[stage] - begins[stage])))
        progress.update(at, stage=label + stage)

    return show


def _fingerprints(artifact: LocalArtifact) -> list[str]:
    """Of the files that an index depends on, from the manifest that `fetch` has verified."""
    files = artifact.manifest.files
    return [
        f"{name}:{files[name]['sha256']}"
        for name in ("ids.npy", "vectors.npy", embeddings.THUMBNAILS_FILE)
        if name in files
    ]


def _numbers(metrics: Metrics) -> dict[str, Any]:
    return {name: float(value) for name, value in metrics.items() if not isinstance(value, str)}
