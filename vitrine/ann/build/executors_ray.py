"""The tasks of a stage as Ray tasks, on machines that all see the build's folder at the same path (extra `ray`)."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitrine.ann.build.executors import Task

_RETRIES = 8  # of a task whose machine is lost; what a task raises is raised at once


class RayTasks:
    """Tasks of one CPU each, on the cluster that `ray.init` has joined; else on the one that RAY_ADDRESS names.

    workers: tasks at the same time; None: as many as the cluster has CPUs now
    """

    def __init__(self, workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray: Any = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._call: Any = ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")(_call)

    def run(
        self, task: Task, folder: Path, calls: Sequence[tuple[Any, ...]], done: Callable[[tuple[Any, ...]], None]
    ) -> None:
        """See Executor. A task whose machine dies runs again on another; when one fails, the others are ended."""
        left = list(reversed(calls))
        running: dict[Any, tuple[Any, ...]] = {}
        try:
            while left or running:
                while left and len(running) < self.workers:
                    arguments = left.pop()
                    running[self._call.remote(task, folder.resolve(), arguments)] = arguments
                ready, _ = self._ray.wait(list(running), num_returns=1)
                for each in ready:
                    self._ray.get(each)
                    done(running.pop(each))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        finally:
            for each in running:
                self._ray.cancel(each, force=True)


def _call(task: Task, folder: Path, arguments: tuple[Any, ...]) -> None:
    task(folder, *arguments)
