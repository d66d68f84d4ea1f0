"""The job: read the market, train, publish; flags in, one result line out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainers.des import examples as building
from trainers.des import export, inputs
from trainers.des.evaluate import held_out_auc, simple_rules
from trainers.des.examples import Examples
from trainers.des.train import Config, Trainer, whole_table
from trainers.runtime import dist
from trainers.runtime.checkpoint import Checkpoints
from trainers.runtime.dist import Group
from trainers.runtime.progress import Progress, failed, result
from vitrine.artifacts import ArtifactError
from vitrine.data.market import Market
from vitrine.data.schemas import DataError
from vitrine.errors import UnavailableError

DAY_MS = 86_400_000
_DEFAULT = Config()


class Model(StrEnum):
    """Models of this first form."""

    fm = "fm"
    lr = "lr"


class Device(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def main(
    market: Annotated[Path, typer.Option(help="market folder (docs/data.md)")],
    store: Annotated[str, typer.Option(envvar="VITRINE_STORE", help="artifact store: a folder or an fsspec URL")],
    namespace: Annotated[str, typer.Option(envvar="VITRINE_NAMESPACE", help="prefix of the artifacts' names")] = "",
    work: Annotated[Path | None, typer.Option(help="folder of checkpoints, to resume from")] = None,
    model: Annotated[Model, typer.Option(help="factorization machine or logistic regression")] = Model.fm,
    dim: Annotated[int, typer.Option(min=1, max=1024, help="length of an embedding (fm)")] = _DEFAULT.dim,
    epochs: Annotated[int, typer.Option(min=1, help="times that all examples are read")] = _DEFAULT.epochs,
    batch: Annotated[int, typer.Option(min=1, help="examples a step, over all processes")] = _DEFAULT.batch,
    pool: Annotated[int, typer.Option(min=1, help="ads drawn a step, by popularity")] = _DEFAULT.pool,
    negatives: Annotated[
        float, typer.Option(min=0, help="weight of the drawn ads against one clicked; 0 where none are wanted")
    ] = _DEFAULT.negatives,
    backward: Annotated[
        float, typer.Option(min=0, help="weight of purchases as examples of what was bought afterwards; 0 for none")
    ] = 0.5,
    lr: Annotated[float, typer.Option(min=1e-9, help="Adagrad's learning rate")] = _DEFAULT.lr,
    seed: Annotated[int, typer.Option(min=0, help="of rows, order and draws")] = _DEFAULT.seed,
    half_life_days: Annotated[
        float, typer.Option(min=0.001, help="after which an event's weight halves; as trainers.catalog has it")
    ] = 30.0,
    base_rate: Annotated[
        float,
        typer.Option(min=1e-6, max=0.999999, help="clicks an impression of an ad without appeal of its own"),
    ] = 0.02,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="steps between checkpoints")] = 500,
    device: Annotated[Device, typer.Option(help="auto: CUDA where there is a GPU")] = Device.auto,
) -> None:
    """Train a click model on a market's events; publish `ctr-model` and `towers`.

    Examples:

        python -m trainers.des --market ./market --store ./store

        torchrun --standalone --nproc-per-node 2 -m trainers.des --market ./market --store ./store --work ./work
    """
    config = Config(
        model=model.value, dim=dim, epochs=epochs, batch=batch, pool=pool, negatives=negatives, lr=lr, seed=seed
    )
    job = Job(market, store, namespace, half_life_days, backward, base_rate, checkpoint_every)
    try:
        with dist.group(device.value) as group, _folder(work, group) as folder:
            train(config, job, folder, group)
    except (DataError, ValueError, FloatingPointError, ArtifactError, UnavailableError) as error:
        failed("des", error)
        raise typer.Exit(1) from None


@dataclass(frozen=True, slots=True)
class Job:
    """Where examples come from and artifacts go; fields as the flags of `main`."""

    market: Path
    store: str
    namespace: str
    half_life_days: float
    backward: float
    base_rate: float
    checkpoint_every: int


def train(config: Config, job: Job, work: Path, group: Group) -> None:
    """One process's part from market to published artifacts; checkpoints lie in `work` until then."""
    tables = inputs.read(Market(job.market))
    examples = building.build(tables, round(job.half_life_days * DAY_MS), config.seed, job.backward)
    trainer = Trainer(config, examples, group)
    checkpoints = Checkpoints(work, group)
    with Progress("des", len(trainer.batches)) as progress:
        metrics = trainer.run(checkpoints, job.checkpoint_every, progress)
    metrics |= _quality(trainer, examples)
    saved = checkpoints.latest()
    assert saved is not None, "a run ends with a checkpoint"
    if group.rank == 0:
        values, touched, bias = whole_table(checkpoints, saved, trainer.table.values.shape[1] - 1)
        if config.negatives:
            bias += export.base_rate_offset(job.base_rate, config.negatives)
        trained = export.to_model(config, examples, values, touched, bias)
        told = {**metrics, "model": config.model, "processes": group.world, "rows": len(trained.keys)}
        with tempfile.TemporaryDirectory(prefix="vitrine-des-") as scratch:
            versions = export.publish(trained, examples, job.store, job.namespace, told, Path(scratch))
        result("des", versions, told)
    group.barrier()
    checkpoints.clear()


def _quality(trainer: Trainer, examples: Examples) -> dict[str, float]:
    """ctr_auc and its baselines; nothing for a market without a hold-out."""
    rules = simple_rules(examples)
    return {"ctr_auc": held_out_auc(trainer), **rules} if rules else {}


@contextmanager
def _folder(work: Path | None, group: Group) -> Iterator[Path]:
    """The folder of checkpoints: the one given, or one that all processes share and that is removed at the end."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="vitrine-des-") as own:
        yield Path(group.broadcast(own))
        group.barrier()  # rank 0's folder is the one in use
