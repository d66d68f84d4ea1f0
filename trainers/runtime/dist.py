"""The process group of a trainer: what torchrun started, or this one process alone.

One code for both: without torchrun's environment the world is one process, no socket is opened, and the collectives
below return their input. Backends are gloo on CPUs and NCCL on GPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from vitrine.runtime.process import die_with_parent

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=5)


@dataclass(slots=True)
class Group:
    """This process's place in the job.

    rank, world: 0 <= rank < world
    device:      where this process's tensors live
    bytes_sent:  payload that collectives of this class have taken off this rank: an all-reduce of n bytes counts
                 2 (world - 1) / world x n, what a ring sends
    """

    rank: int
    world: int
    device: torch.device
    bytes_sent: float = field(default=0.0)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all processes, in place; returns it."""
        self.all_reduce_during(tensor, lambda: None)
        return tensor

    def all_reduce_during(self, tensor: torch.Tensor, work: Callable[[], T]) -> T:
        """Sum `tensor` over all processes, in place, while `work` runs, which must not touch it; work's result."""
        if self.world == 1:
            return work()
        under_way = dist.all_reduce(tensor, async_op=True)
        done = work()
        under_way.wait()
        self.bytes_sent += 2 * (self.world - 1) / self.world * tensor.numel() * tensor.element_size()
        return done

    def broadcast(self, text: str) -> str:
        """Rank 0's `text`, on every process."""
        if self.world == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


def init(device: str = "auto") -> Group:
    """Join the group that torchrun started, or be one process; sets this process's device and thread count.

    device: "cpu", "cuda", or "auto": CUDA where there is one.

    Threads are OMP_NUM_THREADS (torchrun sets 1), else 1: more processes, not threads, is how a trainer grows.
    Raises ValueError for another device, RuntimeError where CUDA is asked for and missing.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device: "auto", "cpu" or "cuda", not {device!r}')
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError('device: "cuda" was asked for and torch sees no GPU; use --device cpu')
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_torchrun()
    if world > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
        return Group(dist.get_rank(), dist.get_world_size(), place)
    return Group(0, 1, place)


def _end_with_torchrun() -> None:
    """End when torchrun ends: killed with -9, it would leave its workers waiting for each other."""
    die_with_parent()
    if os.environ.get("VITRINE_LAUNCHER_PID", str(os.getppid())) != str(os.getppid()):
        sys.exit("torchrun has ended")  # while this process was importing: the signal will not come any more


def rank() -> int:
    """This process's rank; 0 before `init` and without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes; 1 before `init` and without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shutdown() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def group(device: str = "auto") -> Iterator[Group]:
    """`init` and, whatever happens, `shutdown`."""
    joined = init(device)
    try:
        yield joined
    finally:
        shutdown()
