"""Who runs the tasks of a stage: threads of this process, or whatever else runs functions over shared files."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

Task = Callable[..., None]


class Executor(Protocol):
    """Runs `task(folder, *arguments)` for each of `calls`; returns when all are done, raises the first error.

    done: called with the arguments of each that is done, one call at a time
    """

    @property
    def workers(self) -> int:
        """Tasks that run at the same time."""

    def run(
        self, task: Task, folder: Path, calls: Sequence[tuple[Any, ...]], done: Callable[[tuple[Any, ...]], None]
    ) -> None: ...


class Threads:
    """Threads of this process; the kernels release the GIL."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers

    def run(
        self, task: Task, folder: Path, calls: Sequence[tuple[Any, ...]], done: Callable[[tuple[Any, ...]], None]
    ) -> None:
        """See Executor. What has not begun when one fails does not begin."""
        failed, lock = threading.Event(), threading.Lock()

        def call(arguments: tuple[Any, ...]) -> None:
            if failed.is_set():
                return
            try:
                task(folder, *arguments)
            except BaseException:
                failed.set()
                raise
            with lock:
                done(arguments)

        if self.workers == 1:
            for arguments in calls:
                call(arguments)
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="build") as pool:
            futures = [pool.submit(call, arguments) for arguments in calls]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except BaseException:  # Ctrl-C: what runs ends its task, the rest does not begin
                failed.set()
                raise
            for future in futures:
                future.result()
