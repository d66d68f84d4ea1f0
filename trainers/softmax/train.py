"""The training loop: data parallel, so that any number of processes takes the same steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from trainers.runtime.checkpoint import Checkpoints
from trainers.runtime.dist import Group
from trainers.runtime.progress import Progress
from trainers.softmax.augment import augment
from trainers.softmax.images import Images
from trainers.softmax.model import Encoder, whiten
from trainers.softmax.muon import Muon
from vitrine.data import draws
from vitrine.data.schemas import DataError

Metrics = dict[str, float]

_WARM_UP = 0.1  # share of the steps in which the rates rise
_PATCHES_FROM = 400  # pictures that the stem is whitened with
_CHECKPOINT_EPOCHS = 4
_EMBEDDED = 256  # pictures embedded at a time


@dataclass(frozen=True)
class Config:
    """What the weights depend on, besides the pictures; measured in docs/softmax.md.

    rate:      of convolutions, by Muon; small_rate: of all else, by AdamW
    smoothing: of the labels
    """

    epochs: int = 12
    batch: int = 64
    dim: int = 64
    rate: float = 0.03
    small_rate: float = 0.003
    weight_decay: float = 0.02
    smoothing: float = 0.1
    seed: int = 0


class Learner:
    """Encoder, head and optimizers on one process of the group.

    dtype: of weights and arithmetic; tests compare one process with two in float64
    """

    def __init__(self, images: Images, config: Config, group: Group, *, dtype: torch.dtype = torch.float32) -> None:
        self.images, self.config, self.group = images, config, group
        self._dtype = dtype
        self._rows = images.rows("train")
        self._batch = min(config.batch, len(self._rows))
        if self._batch < group.world:
            raise DataError(
                [f"column split: {len(self._rows)} rows of 'train' are too few for {group.world} processes"]
            )
        self._pixels = images.pixels.to(group.device)
        self._labels = torch.from_numpy(images.labels).to(group.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = Encoder(config.dim)
            self._head = nn.Linear(config.dim, len(images.categories), bias=False)
        whiten(self.encoder, images.pixels[self._rows[:_PATCHES_FROM]].float() / 255)
        self.net = nn.ModuleDict({"encoder": self.encoder, "head": self._head}).to(group.device, dtype)
        self._share_start()
        matrices = [w for name, w in self.net.named_parameters() if w.ndim == 4 and ".stem." not in name]
        others = [w for name, w in self.net.named_parameters() if w.ndim != 4 or ".stem." in name]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=config.rate, weight_decay=config.weight_decay),
            torch.optim.AdamW(others, lr=config.small_rate, weight_decay=config.weight_decay),
        ]
        self._rates = (config.rate, config.small_rate)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; what is left over differs from epoch to epoch."""
        return len(self._rows) // self._batch

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the images that step `step` learns from, over all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.argsort(draws.bits(self.config.seed, "softmax/order", epoch, self._rows), kind="stable")
        return self._rows[order[place * self._batch : (place + 1) * self._batch]]

    def step(self, step: int) -> float:
        """One step of all processes together; the batch's mean loss."""
        rows = self.batch(step)
        mine = rows[self.group.rank :: self.group.world]
        where = torch.from_numpy(mine)
        epoch = step // self.steps_per_epoch
        pictures = augment(self._pixels[where], mine, seed=self.config.seed, epoch=epoch).to(self._dtype)
        logits = self._head(self.encoder(pictures))
        losses = F.cross_entropy(
            logits, self._labels[where], label_smoothing=self.config.smoothing, reduction="sum"
        )
        loss = losses / len(rows)
        self.net.zero_grad()
        loss.backward()
        mean_loss = self._sum_gradients(loss.detach())
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step / self.steps)
            optimizer.step()
        return mean_loss

    @torch.no_grad()
    def embed(self, rows: Sequence[int] | NDArray[np.int64]) -> torch.Tensor:
        """Unit vectors (len(rows), dim) of images as they are, on the CPU; each process embeds its share."""
        out = torch.zeros((len(rows), self.config.dim), dtype=self._dtype, device=self.group.device)
        mine = np.arange(self.group.rank, len(rows), self.group.world)
        for start in range(0, len(mine), _EMBEDDED):
            part = mine[start : start + _EMBEDDED]
            pictures = self._pixels[torch.from_numpy(np.asarray(rows)[part])].to(self._dtype) / 255
            out[torch.from_numpy(part)] = self.encoder.embed(pictures)
        return self.group.all_reduce(out).cpu()  # each row has one process's vector and zeros elsewhere

    @torch.no_grad()
    def accuracy(self, vectors: torch.Tensor, rows: NDArray[np.int64]) -> float:
        """Share of images whose category the head names, from their vectors."""
        logits = vectors.to(self.group.device) @ self._head.weight.T
        return float((logits.argmax(1).cpu().numpy() == self.images.labels[rows]).mean())

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training has changed, by name: weights, and the optimizers' memory of each."""
        names: dict[torch.Tensor, str] = {weight: name for name, weight in self.net.named_parameters()}
        tensors = {name: weight.detach() for weight, name in names.items()}
        for optimizer in self.optimizers:
            for weight, memory in optimizer.state.items():
                tensors |= {f"{names[weight]}/{key}": value for key, value in memory.items()}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `tensors` gave, here or on another number of processes."""
        weights = dict(self.net.named_parameters())
        for name, tensor in tensors.items():
            weight, _, key = name.partition("/")
            if not key:
                weights[weight].copy_(tensor)
                continue
            optimizer = next(o for o in self.optimizers if _has(o, weights[weight]))
            place = "cpu" if key == "step" else weights[weight].device  # where AdamW keeps its count
            optimizer.state[weights[weight]][key] = tensor.to(place)

    def _share_start(self) -> None:
        """Rank 0's weights on every process."""
        with torch.no_grad():
            for weight in self.net.parameters():
                weight.mul_(float(self.group.rank == 0))
                self.group.all_reduce(weight)

    def _sum_gradients(self, loss: torch.Tensor) -> float:
        """Gradients summed over the processes, in one message with the loss, whose sum is returned."""
        gradients = [w.grad for w in self.net.parameters() if w.grad is not None]
        message = torch.cat([loss.reshape(1), *(g.reshape(-1) for g in gradients)])
        self.group.all_reduce(message)
        parts = message.split([1, *(g.numel() for g in gradients)])
        for gradient, part in zip(gradients, parts[1:], strict=True):
            gradient.copy_(part.view_as(gradient))
        return float(parts[0])


def _has(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> bool:
    return any(weight is own for group in optimizer.param_groups for own in group["params"])


def fit(learner: Learner, progress: Progress, checkpoints: Checkpoints | None) -> Metrics:
    """Take the steps that are left, showing loss and validation accuracy; returns the metrics of the manifest.

    checkpoints: what the newest one has done is not done again; one is saved every few epochs. None keeps none.
    """
    validation = learner.images.rows("validation")
    metrics: Metrics = {}
    done = 0
    saved = checkpoints.latest() if checkpoints else None
    if checkpoints and saved:
        learner.restore(checkpoints.load(saved))
        done, metrics = saved.step, dict(saved.note)
    for step in range(done, learner.steps):
        metrics["loss"] = learner.step(step)
        epochs, rest = divmod(step + 1, learner.steps_per_epoch)
        if not rest and len(validation):
            metrics["accuracy"] = learner.accuracy(learner.embed(validation), validation)
        progress.update(step + 1, **metrics)
        if checkpoints and not rest and (epochs % _CHECKPOINT_EPOCHS == 0 or step + 1 == learner.steps):
            checkpoints.save(step + 1, learner.tensors(), metrics)
    return metrics


def schedule(done: float) -> float:
    """Factor of the rates after this share of the steps: up in a straight line, then down a cosine."""
    return min(1.0, (done + 1e-3) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
