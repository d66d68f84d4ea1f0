"""Places where tests end the worker as a crash would (docs/matching.md, "Faults")."""

import os
import signal
from collections import Counter
from collections.abc import Callable

NAMES = ("after-dead-letters", "before-write", "mid-buckets", "after-write", "before-commit")


def from_setting(text: str) -> Callable[[str], None]:
    """The function to call at every point: "after-write:3" sends this process SIGKILL at the third after-write."""
    if not text:
        return lambda name: None
    chosen, _, count = text.partition(":")
    if chosen not in NAMES or not count.isascii() or not count.isdigit() or int(count) < 1:
        raise ValueError(f"failpoint: {text!r} is not NAME:N with a name of {', '.join(NAMES)} and N from 1")
    passes: Counter[str] = Counter()

    def passed(name: str) -> None:
        passes[name] += 1
        if name == chosen and passes[name] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    return passed
