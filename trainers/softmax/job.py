"""The job: decode the pictures, train, embed every picture, measure, export, publish."""

import hashlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from trainers.runtime import dist
from trainers.runtime.checkpoint import Checkpoints
from trainers.runtime.dist import Group
from trainers.runtime.progress import Progress, failed, result
from trainers.runtime.tasks import fingerprint
from trainers.softmax import evaluate, export
from trainers.softmax import images as reading
from trainers.softmax.images import Images
from trainers.softmax.train import Config, Learner, Metrics, fit
from vitrine.ann import embeddings
from vitrine.artifacts import ArtifactError, ArtifactStore
from vitrine.data.schemas import DataError
from vitrine.errors import UnavailableError

JOB = "softmax"


def main(
    images: Annotated[Path, typer.Option(help="images.parquet of a market folder (docs/data.md)")],
    store: Annotated[str, typer.Option(envvar="VITRINE_STORE", help="artifact store: a folder or an fsspec URL")],
    namespace: Annotated[str, typer.Option(envvar="VITRINE_NAMESPACE", help="prefix of the artifact's name")] = "",
    work: Annotated[Path | None, typer.Option(help="folder of checkpoints, to resume from")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="times that every training picture is seen")] = Config.epochs,
    batch: Annotated[int, typer.Option(min=1, help="pictures a step, over all processes")] = Config.batch,
    dim: Annotated[int, typer.Option(min=2, max=1024, help="dimensions of a vector")] = Config.dim,
    seed: Annotated[int, typer.Option(min=0, help="of weights, order and augmentation")] = Config.seed,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Train the picture encoder, embed every picture, and publish the `embeddings` artifact.

    Examples:

        torchrun --standalone --nproc-per-node 2 -m trainers.softmax --images images.parquet --store ./store

        python -m trainers.softmax --images images.parquet --store ./store --work ./work/softmax
    """
    config = Config(epochs=epochs, batch=batch, dim=dim, seed=seed)
    try:
        with dist.group(device) as group:
            run(images, ArtifactStore(store, namespace=namespace), work, config, group)
    except (DataError, ArtifactError, UnavailableError, OSError) as error:
        failed(JOB, error)
        raise typer.Exit(1) from None


def run(file: Path, store: ArtifactStore, work: Path | None, config: Config, group: Group) -> None:
    """Train on an images file and publish from rank 0; checkpoints of the same file and config are taken up.

    Raises DataError where the file is wrong, ArtifactError where the store refuses.
    """
    images = reading.load(file, group)
    learner = Learner(images, config, group)
    checkpoints = None if work is None else Checkpoints(work / _key(file, config), group)
    with Progress(JOB, total=learner.steps) as progress:
        metrics = fit(learner, progress, checkpoints)
    vectors = learner.embed(range(len(images.ids)))
    metrics |= _compare(images, vectors, file, group)
    metrics |= {"pictures": len(images.ids), "dim": config.dim, "epochs": config.epochs}
    if group.rank == 0:
        with tempfile.TemporaryDirectory(prefix="vitrine-softmax-") as scratch:
            export.write(Path(scratch), images, learner.encoder.cpu(), vectors)
            published = store.publish(embeddings.KIND, Path(scratch), schema=embeddings.SCHEMA, metrics=metrics)
        result(JOB, {embeddings.KIND: published.version}, metrics)
    if checkpoints:
        checkpoints.clear()


def _compare(images: Images, vectors: torch.Tensor, file: Path, group: Group) -> Metrics:
    """How neighbours agree on their category, by vectors, by plain pixels and by chance; empty if none is held out.

    vectors: float32 (n, dim) of all images
    """
    rows = evaluate.held_out(images)
    if rows is None:
        return {}
    both = torch.from_numpy(rows[0]), torch.from_numpy(rows[1])
    labels = images.labels[rows[0]], images.labels[rows[1]]
    crops = reading.decode(images.files, images.ids, group, evaluate.centre_crop, file)
    pixels = torch.from_numpy(crops).flatten(1).float()
    return {
        "search_same_category_at_10": evaluate.same_category(vectors[both[0]], vectors[both[1]], *labels),
        "same_category_by_pixels": evaluate.same_category(pixels[both[0]], pixels[both[1]], *labels),
        "same_category_by_chance": evaluate.by_chance(*labels),
    }


def _key(file: Path, config: Config) -> str:
    """Names the checkpoints of one images file and one config, so that none is taken up by another job."""
    return hashlib.sha256(f"{fingerprint(file)} {asdict(config)}".encode()).hexdigest()[:16]
