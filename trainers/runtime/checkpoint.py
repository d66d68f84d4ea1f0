"""Checkpoints of a whole job, through torch.distributed.checkpoint: atomic, the last two kept.

A checkpoint is a set of named tensors. Every process saves those that it owns, and after a restart asks for those
that it owns then: on another number of processes these are others, so a sharded parameter is saved as named pieces
small enough to be dealt anew (`trainers/des/table.py` has 256). A kill at any moment leaves the previous one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainers.runtime.dist import Group

_NAME = re.compile(r"step-(\d{12})")
_NOTE = "note.json"


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole checkpoint on disk: steps done, and what the job wrote beside its tensors."""

    step: int
    note: dict[str, Any]
    folder: Path


class Checkpoints:
    """The checkpoints in one folder, which all processes see.

    keep: how many to keep; older ones are removed after each save
    """

    def __init__(self, folder: Path, group: Group, keep: int = 2) -> None:
        self.folder = folder
        self._group = group
        self._keep = keep

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> Saved:
        """Save after `step` steps; called by all processes together, each with the tensors that it owns.

        A name that several processes give is taken from one of them. The checkpoint exists once its folder has its
        final name, which rank 0 gives it after all processes have written.
        """
        from torch.distributed import checkpoint as dcp  # a second's import: not before it is needed

        final = self.folder / f"step-{step:012d}"
        part = self.folder / f".step-{step:012d}.part"
        if self._group.rank == 0:
            self._remove_parts()
            shutil.rmtree(final, ignore_errors=True)
            part.mkdir(parents=True)
            (part / _NOTE).write_text(json.dumps(dict(note)))
        self._group.barrier()
        with _quiet():
            dcp.save(dict(tensors), checkpoint_id=part, no_dist=self._group.world == 1)
        if self._group.rank == 0:
            part.rename(final)
            _sync(self.folder)
            for old in self._all()[: -self._keep]:
                shutil.rmtree(old.folder)
        self._group.barrier()
        return Saved(step, dict(note), final)

    def latest(self) -> Saved | None:
        """The newest whole checkpoint, or None. Called by all processes together, before any saves."""
        every = self._all()
        return every[-1] if every else None

    def load(self, saved: Saved, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Tensors of a checkpoint by name, all where none are named, on the CPU. Any process may call it alone.

        Raises KeyError where the checkpoint lacks a name.
        """
        from torch.distributed import checkpoint as dcp

        reader = dcp.FileSystemReader(saved.folder)
        stored = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype)
            for name in (stored if names is None else names)
        }
        if tensors:
            with _quiet():
                dcp.load(tensors, storage_reader=reader, no_dist=True)
        return tensors

    def clear(self) -> None:
        """Remove all checkpoints: the job is done."""
        if self._group.rank == 0:
            for saved in self._all():
                shutil.rmtree(saved.folder)
            self._remove_parts()
        self._group.barrier()

    def _remove_parts(self) -> None:
        """What killed saves have left."""
        for part in self.folder.glob(".step-*.part"):
            shutil.rmtree(part)

    def _all(self) -> list[Saved]:
        """Whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(int(m[1]), path) for path in self.folder.iterdir() if (m := _NAME.fullmatch(path.name))]
        return [Saved(step, json.loads((path / _NOTE).read_text()), path) for step, path in sorted(found)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process alone saves or loads, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sync(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
