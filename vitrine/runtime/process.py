"""Child processes that end with their parent, whichever way that ends.

Linux sends a child its parent-death signal when the *thread* that forked it ends (PR_SET_PDEATHSIG), so all
children are forked by one thread that lives as long as the process. Elsewhere only an orderly stop ends them.
"""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import psutil

_PR_SET_PDEATHSIG = 1

# Runs between fork and exec: asks for the signal, then makes sure that the parent had not died before.
# A second interpreter rather than preexec_fn, which may deadlock where other threads run (gRPC, Kafka).
_THEN_EXEC = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "os.getppid() == int(sys.argv[1]) and os.execvp(sys.argv[2], sys.argv[2:])\n"
)

_work: "queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], list[str], dict[str, Any]]]" = queue.SimpleQueue()
_start = threading.Lock()
_forker: threading.Thread | None = None


def spawn(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that a terminal's Ctrl-C reaches this process alone.

    Raises OSError where it cannot be started at all.
    """
    arguments = [str(part) for part in command]
    if sys.platform == "linux":
        arguments = [sys.executable, "-I", "-S", "-c", _THEN_EXEC, str(os.getpid()), *arguments]
    options: dict[str, Any] = {
        "env": dict(env) if env is not None else None,
        "cwd": cwd,
        "stdin": subprocess.DEVNULL,
        "stdout": stdout,
        "stderr": stderr,
        "start_new_session": True,
    }
    _ensure_forker()
    future: Future[subprocess.Popen[bytes]] = Future()
    _work.put((future, arguments, options))
    return future.result()


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> int:
    """End a process and all its descendants: SIGTERM, `grace_s` to finish, then SIGKILL. Returns its exit code."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in family:
        if child.is_running():
            child.kill()
    psutil.wait_procs(family, timeout=5)
    return process.returncode


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends: for children that others fork, as torchrun does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _ensure_forker() -> None:
    global _forker
    with _start:
        if _forker is None or not _forker.is_alive():
            _forker = threading.Thread(target=_fork_forever, name="forker", daemon=True)
            _forker.start()


def _fork_forever() -> None:
    while True:
        future, command, options = _work.get()
        try:
            future.set_result(subprocess.Popen(command, **options))
        except BaseException as error:
            future.set_exception(error)
