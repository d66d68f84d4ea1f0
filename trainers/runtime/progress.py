"""What a trainer shows while it works, and the one line it ends with.

Three audiences, one interface: a person at a terminal gets a bar, a program that set `VITRINE_PROGRESS=json` gets
one JSON object a line on stdout, and a log file gets a plain line every two seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, Protocol

from vitrine.runtime import audit

_JSON_PERIOD_S = 0.2
_PLAIN_PERIOD_S = 2.0


class Progress:
    """A job's position, shown by rank 0 alone.

    job:   name of the work, shown as is
    total: steps to do, or None where that is not known

    The first and the last update are always shown; those between are thinned out.
    """

    def __init__(self, job: str, total: int | None = None) -> None:
        self.job = job
        self.total = total
        self._step = 0
        self._stage = ""
        self._metrics: dict[str, float] = {}
        self._view = _view(job, total)
        self._shown_at: float | None = None
        self._pending = False

    def update(self, step: int, *, stage: str | None = None, **metrics: float) -> None:
        """Record that `step` steps are done; a stage's name and metrics stay shown until they are given anew."""
        self._step = step
        self._stage = self._stage if stage is None else stage
        self._metrics.update(metrics)
        now = time.monotonic()
        self._pending = True
        if self._shown_at is None or now - self._shown_at >= self._view.period_s or step == self.total:
            self._show(now)

    def close(self) -> None:
        """Show the last update if it was held back, and release the terminal."""
        if self._pending:
            self._show(time.monotonic())
        self._view.close()

    def _show(self, now: float) -> None:
        self._view.show(self._step, self._stage, self._metrics)
        self._shown_at = now
        self._pending = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def result(job: str, artifacts: Mapping[str, str], metrics: Mapping[str, float | int | str]) -> None:
    """Print the job's last stdout line: {"job", "artifacts": {name: version}, "metrics"}. Rank 0 alone prints.

    The publishes are recorded for the audit, on stderr.
    """
    if _rank() == 0:
        for name, version in artifacts.items():
            audit.record("artifacts.publish", f"{name} {version}", caller=audit.operator(), job=job)
        print(json.dumps({"job": job, "artifacts": dict(artifacts), "metrics": dict(metrics)}), flush=True)


def failed(job: str, error: Exception) -> None:
    """Print what is wrong on stderr, in one write, as several processes may print at once.

    What is wrong with the input every process finds, and rank 0 says; a failing disk is told by whoever met it.
    """
    if _rank() == 0 or isinstance(error, OSError):
        sys.stderr.write(f"{job}: {error}\n")


class _View(Protocol):
    period_s: float

    def show(self, step: int, stage: str, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _Silent:
    period_s = float("inf")

    def show(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Json:
    period_s = _JSON_PERIOD_S

    def __init__(self, job: str, total: int | None) -> None:
        self._job, self._total = job, total

    def show(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        line = {"job": self._job, "step": step, "total": self._total, "metrics": dict(metrics)}
        print(json.dumps(line | ({"stage": stage} if stage else {})), flush=True)

    def close(self) -> None:
        pass


class _Plain:
    period_s = _PLAIN_PERIOD_S

    def __init__(self, job: str, total: int | None, stream: IO[str]) -> None:
        self._job, self._total, self._stream = job, total, stream

    def show(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        of = "" if self._total is None else f"/{self._total}"
        print(f"{self._job} {step}{of} {_words(stage, metrics)}".rstrip(), file=self._stream, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    period_s = 0.1

    def __init__(self, job: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar: Any = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(job, total=total, metrics="")
        self._bar.start()

    def show(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=step, metrics=_words(stage, metrics))

    def close(self) -> None:
        self._bar.stop()


def _view(job: str, total: int | None) -> _View:
    if _rank() != 0:
        return _Silent()
    if os.environ.get("VITRINE_PROGRESS") == "json":
        return _Json(job, total)
    if sys.stderr.isatty():
        return _Bar(job, total)
    return _Plain(job, total, sys.stderr)


def _words(stage: str, metrics: Mapping[str, float]) -> str:
    return " ".join(filter(None, [stage, *(f"{name} {_figure(value)}" for name, value in metrics.items())]))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _rank() -> int:
    """This process's rank as torchrun tells it; 0 without it. Plain jobs and Ray tasks need no torch for that."""
    return int(os.environ.get("RANK", "0"))
