"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable


def wait_for(
    done: Callable[[], object], timeout_s: float = 60.0, describe: Callable[[], str] = lambda: "it did not happen"
) -> None:
    """Returns once `done` is true; fails after `timeout_s` with what `describe` says."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s: {describe()}"
        time.sleep(0.02)
