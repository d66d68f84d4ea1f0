"""Tasks from files to files that a job does once: what is finished is found again by what it was made from."""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path


class Tasks:
    """Finished tasks under one folder, each a folder named after the task and the fingerprint of its inputs.

    A task writes into a folder of its own that gets its final name only when the task is done, so that a job
    killed at any moment leaves either the whole result or none. One job at a time uses a folder.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.done: list[str] = []
        self.resumed: list[str] = []
        work.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, inputs: Iterable[str], make: Callable[[Path], None]) -> Path:
        """Folder of the task's result; `make(folder)` is called unless it is there from an earlier run.

        inputs: fingerprints of all that the result depends on (files' digests, parameters, format)
        """
        key = hashlib.sha256("\n".join([name, *inputs]).encode()).hexdigest()[:16]
        folder = self.work / f"{name}-{key}"
        if folder.is_dir():
            self.resumed.append(name)
            return folder
        unfinished = self.work / f".{name}-{key}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        make(unfinished)
        unfinished.rename(folder)
        self.done.append(name)
        return folder


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's contents, with its name."""
    with path.open("rb") as file:
        return f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}"
