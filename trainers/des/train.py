"""Train a click model, fully synchronously: partial sums of the global batch, summed, then each its own rows."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch

from trainers.des.batches import Batches
from trainers.des.evaluate import held_out_auc
from trainers.des.examples import Examples
from trainers.des.objective import Labels, loss_and_gradient
from trainers.des.operators import Pulled, Puller, row_gradient, sums
from trainers.des.table import Shard, Table
from trainers.runtime.checkpoint import Checkpoints, Saved
from trainers.runtime.dist import Group
from trainers.runtime.progress import Progress


@dataclass(frozen=True, slots=True)
class Config:
    """What the weights depend on, beside the examples; docs/ctr.md has the measurements behind the defaults."""

    model: Literal["fm", "lr"] = "fm"
    dim: int = 48
    epochs: int = 4
    batch: int = 512
    pool: int = 256
    negatives: float = 4.0
    lr: float = 0.05
    init_scale: float = 0.02
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Step `number`'s batch: this process's part of its features, and all labels."""

    number: int
    rows: Pulled
    labels: Labels


class Trainer:
    """One process's part of the job."""

    def __init__(self, config: Config, examples: Examples, group: Group) -> None:
        self.config, self.examples, self.group = config, examples, group
        self.dtype = torch.float64 if config.dtype == "float64" else torch.float32
        shard = Shard.of(examples.keys, group.rank, group.world)
        dim = config.dim if config.model == "fm" else 0
        self.table = Table(examples.keys, shard, dim, config.seed, config.init_scale, self.dtype, group.device)
        self.own = examples.bags.within(shard.start, shard.stop)
        self.pull = Puller(shard.stop - shard.start, self.dtype, group.device)
        self._ahead: Prepared | None = None
        self.bias = torch.zeros(2, dtype=self.dtype, device=group.device)  # value, Adagrad's sum
        self.batches = Batches(
            len(examples.ad), examples.popularity, config.batch, config.pool, config.epochs, config.seed
        )

    def step(self, number: int) -> float:
        """One global step on all processes; the batch's loss."""
        batch = self._ahead if self._ahead is not None and self._ahead.number == number else self._prepare(number)
        values = self.table.values[batch.rows.rows]
        total = sums(values, batch.rows)
        self._ahead = self.group.all_reduce_during(total, lambda: self._prepare(number + 1))
        loss, grad, grad_bias = loss_and_gradient(total, self.bias[0], batch.labels)
        self.table.adagrad(batch.rows.rows, values, row_gradient(values, batch.rows, grad), self.config.lr)
        self.bias[1] += grad_bias**2
        self.bias[0] -= self.config.lr * grad_bias / (self.bias[1].sqrt() + 1e-10)
        return float(loss)

    def _prepare(self, number: int) -> Prepared | None:
        """A step's batch, as far as it does not depend on weights; None past the last step."""
        if number >= len(self.batches):
            return None
        e, batch = self.examples, self.batches[number]
        bags = np.concatenate([batch.examples, e.ad_bags(e.ad[batch.examples]), e.ad_bags(batch.pool)])
        label, weight = self._tensor(e.label[batch.examples]), self._tensor(e.weight[batch.examples])
        rows = self.pull(self.own.take(bags))
        return Prepared(number, rows, Labels(label, weight, self.config.negatives))

    def run(self, checkpoints: Checkpoints, every: int, progress: Progress) -> dict[str, float]:
        """All steps that are left, with a checkpoint every `every` steps and at the end; the job's metrics."""
        start, loss = self.restore(checkpoints)
        began, done = time.perf_counter(), 0
        auc = float("nan")
        for number in range(start, len(self.batches)):
            loss += (self.step(number) - loss) / min(number + 1, 50)  # a running mean of the last steps
            if not math.isfinite(loss):
                raise FloatingPointError(f"step {number}: the loss is not finite; lower --lr, now {self.config.lr}")
            done += self.batches.size(number)
            if (number + 1) % self.batches.per_epoch == 0:
                auc = held_out_auc(self)
            last = number + 1 == len(self.batches)
            if last or (number + 1) % every == 0:
                self.save(checkpoints, number + 1, loss)
            progress.update(number + 1, loss=loss, **({} if math.isnan(auc) else {"auc": auc}))
        seconds = time.perf_counter() - began
        return {
            "loss": loss,
            "examples": len(self.examples.ad),
            "steps": len(self.batches),
            "steps_resumed": start,
            "examples_per_s": done / seconds if done else 0.0,
            "bytes_per_example": self.group.bytes_sent / max(done, 1),
        }

    def save(self, checkpoints: Checkpoints, step: int, loss: float) -> None:
        """Save this process's rows, and from rank 0 what all share."""
        shared = {"bias": self.bias.cpu()} if self.group.rank == 0 else {}
        checkpoints.save(step, {**self.table.state(), **shared}, {"loss": loss, "run": self.fingerprint()})

    def restore(self, checkpoints: Checkpoints) -> tuple[int, float]:
        """(steps done, running loss) of the newest checkpoint, whose rows are now this trainer's; (0, 0) if none.

        Raises ValueError where the checkpoint is of other data or another configuration.
        """
        saved = checkpoints.latest()
        if saved is None:
            return 0, 0.0
        if saved.note["run"] != self.fingerprint():
            raise ValueError(
                f"work: {checkpoints.folder} holds a checkpoint of other data or another configuration; "
                "give another --work, or remove it"
            )
        tensors = checkpoints.load(saved, [*self.table.names, "bias"])
        self.table.restore(tensors)
        self.bias = tensors["bias"].to(self.bias)
        return saved.step, float(saved.note["loss"])

    def fingerprint(self) -> str:
        """What a checkpoint must agree in to be continued: configuration and data, not the number of processes."""
        digest = hashlib.blake2b(json.dumps(asdict(self.config), sort_keys=True).encode(), digest_size=16)
        e = self.examples
        for array in (e.keys, e.ad, e.label, e.weight, e.bags.ids, e.bags.x):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.group.device, self.dtype)


def whole_table(checkpoints: Checkpoints, saved: Saved, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """All rows of a checkpoint in the order of keys: values (n, dim + 1), touched (n,) bool, and the bias."""
    tensors = checkpoints.load(saved)
    bias = float(tensors.pop("bias")[0])
    rows = torch.cat([tensors[name] for name in sorted(tensors)]).numpy()
    return rows[:, : dim + 1], (rows[:, dim + 1 :] > 0).any(axis=1), bias
