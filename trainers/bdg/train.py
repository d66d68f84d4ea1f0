"""The job: choose the items, fit the hash function, encode, measure, publish."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from trainers.bdg.measure import Metrics, measure
from trainers.runtime.progress import Progress, failed, result
from trainers.runtime.tasks import Tasks
from vitrine.ann import embeddings, hashing, index
from vitrine.ann.embeddings import Embeddings
from vitrine.ann.index import MAX_OVER_RECALL, BinaryIndex
from vitrine.artifacts import ArtifactError, ArtifactStore, LocalArtifact
from vitrine.errors import UnavailableError

JOB = "bdg"
_SAMPLE = 100_000  # vectors that the hash function is fitted to


@dataclass(frozen=True)
class Config:
    """What an index's bytes depend on, besides its vectors.

    bits:        of a code, a multiple of 64 up to 1,024
    dims:        principal directions kept before the random rotations; 0 for all
    over_recall: default of searches: candidates re-ranked, as a multiple of k
    splits:      of the pictures that are indexed; empty for all
    seed:        of rotations and sample
    """

    bits: int = 256
    dims: int = 0
    over_recall: int = 10
    splits: tuple[str, ...] = ("train", "validation")
    seed: int = 0


def main(
    store: Annotated[str, typer.Option(envvar="VITRINE_STORE", help="artifact store: a folder or an fsspec URL")],
    namespace: Annotated[str, typer.Option(envvar="VITRINE_NAMESPACE", help="prefix of the artifacts' names")] = "",
    work: Annotated[Path | None, typer.Option(help="folder of finished tasks, to resume from")] = None,
    source: Annotated[str, typer.Option("--embeddings", help="ref or version of `embeddings`")] = "stable",
    bits: Annotated[int, typer.Option(min=64, max=1024, help="bits of a code, a multiple of 64")] = Config.bits,
    dims: Annotated[int, typer.Option(min=0, help="principal directions kept; 0 for all")] = Config.dims,
    over_recall: Annotated[
        int, typer.Option(min=1, max=MAX_OVER_RECALL, help="candidates re-ranked by default, as a multiple of k")
    ] = Config.over_recall,
    splits: Annotated[
        str, typer.Option(help="splits of the pictures to index, with commas; empty for all")
    ] = ",".join(Config.splits),
    seed: Annotated[int, typer.Option(min=0, help="of rotations and sample")] = Config.seed,
) -> None:
    """Turn the vectors of `embeddings` into the `binary-index` artifact and publish it.

    Examples:

        python -m trainers.bdg --store ./store --work ./work/bdg

        python -m trainers.bdg --store ./store --bits 512 --splits ""
    """
    config = Config(bits, dims, over_recall, tuple(s for s in splits.split(",") if s), seed)
    scratch = tempfile.TemporaryDirectory(prefix="vitrine-bdg-") if work is None else nullcontext(str(work))
    try:
        with scratch as folder:
            train(ArtifactStore(store, namespace=namespace), source, Path(folder), config)
    except (ArtifactError, UnavailableError, ValueError, OSError) as error:
        failed(JOB, error)
        raise typer.Exit(1) from None


def train(store: ArtifactStore, source: str, work: Path, config: Config) -> str:
    """Publish the index of an `embeddings` version, return its own; finished tasks under `work` are not done again.

    Raises ArtifactError where the embeddings are missing or damaged, ValueError where parameters do not fit them.
    """
    tasks = Tasks(work)
    with Progress(JOB, total=4) as progress:
        artifact = store.fetch(embeddings.KIND, source, max_schema=embeddings.SCHEMA)
        vectors = Embeddings.load(artifact.path)
        chosen = choose(vectors, config.splits)
        inputs = [f"schema {index.SCHEMA}", *_fingerprints(artifact), f"splits {','.join(sorted(config.splits))}"]
        progress.update(1)
        fitted = tasks.run(
            "fit",
            [*inputs, f"bits {config.bits}", f"dims {config.dims}", f"seed {config.seed}"],
            lambda out: fit(vectors.vectors, chosen, config, out),
        )
        progress.update(2)
        whole = tasks.run(
            "index",
            [*inputs, fitted.name, f"over_recall {config.over_recall}"],
            lambda out: encode(vectors, chosen, fitted, config.over_recall, out),
        )
        progress.update(3)
        metrics = measure(BinaryIndex.load(whole), vectors, chosen)
        published = store.publish(
            index.KIND,
            whole,
            schema=index.SCHEMA,
            parents={embeddings.KIND: artifact.manifest.version},
            metrics=metrics,
        )
        progress.update(4, **_numbers(metrics))
    result(JOB, {index.KIND: published.version}, {**metrics, "tasks_resumed": len(tasks.resumed)})
    return published.version


def choose(vectors: Embeddings, splits: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the pictures in these splits, ascending, or of all pictures; ValueError where none is in them."""
    if not splits:
        return np.arange(len(vectors.ids))
    found = vectors.thumbnails(["split"])["split"].to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(np.isin(found, splits))
    if not len(rows):
        there = ", ".join(sorted(set(found.tolist())))
        raise ValueError(f"splits: no picture is in {', '.join(splits)}; there are {there}")
    return rows


def fit(vectors: NDArray[np.float32], chosen: NDArray[np.int64], config: Config, out: Path) -> None:
    """The hash function, fitted to a sample of the chosen rows."""
    sample = chosen
    if len(chosen) > _SAMPLE:
        draws = np.random.Generator(np.random.Philox(key=config.seed))
        sample = np.sort(draws.choice(chosen, _SAMPLE, replace=False))
    hashing.fit(vectors[sample], config.bits, dims=config.dims, seed=config.seed).save(out / "hashing.safetensors")


def encode(vectors: Embeddings, chosen: NDArray[np.int64], fitted: Path, over_recall: int, out: Path) -> None:
    """All files of the artifact in one folder."""
    function = hashing.Hashing.load(fitted / "hashing.safetensors")
    rows = vectors.vectors[chosen]
    BinaryIndex.of(vectors.ids[chosen], rows, function, over_recall=over_recall).write(out)


def _fingerprints(artifact: LocalArtifact) -> list[str]:
    """Of the files that an index depends on, from the manifest that `fetch` has verified."""
    files = artifact.manifest.files
    return [f"{name}:{files[name]['sha256']}" for name in ("ids.npy", "vectors.npy", embeddings.THUMBNAILS_FILE)]


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if not isinstance(value, str)}
