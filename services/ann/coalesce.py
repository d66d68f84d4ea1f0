"""Concurrent searches that are alike are done as one: whoever comes first leads, whoever comes meanwhile joins.

So many searches at a time have a thread each. Who comes beyond them waits; when one ends, the thread that has
waited longest takes along all who wait for the same (one snapshot, equal options), searches once for all, and gives
each its part. Nobody waits while there is a place, and there is no timer: a batch is what has gathered during a
search. docs/decisions/0018 has what it gains.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram

from vitrine.runtime import metrics

MOST_ROWS = 256  # of a batch: as many as one call may hold

batch_calls = Histogram(
    "vitrine_ann_batch_calls",
    "Calls that one search answered.",
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256),
    registry=metrics.REGISTRY,
)

Rows = NDArray[Any]
Between = Callable[[str], None]
Found = TypeVar("Found")


class Caller(Protocol):
    """Who waits for one call's answer."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more, or the deadline has passed."""

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; None where there is none."""

    def took(self, stage: str) -> None:
        """A stage ends."""

    def end(self, stage: str) -> None:
        """A stage ends; raises where the caller is gone."""


class Coalescer:
    """Searches for calls, at most `batches` at a time; 0: any number, each call by itself."""

    def __init__(self, batches: int) -> None:
        self._free = batches
        self._alone = batches == 0
        self._waiting: deque[_Member] = deque()
        self._lock = threading.Lock()

    def run(
        self,
        alike: Hashable,
        rows: Rows,
        search: Callable[[Rows, Between], Found],
        split: Callable[[Found, Sequence[int]], Sequence[Found]],
        caller: Caller,
    ) -> Found:
        """What `search(rows, between)` finds, perhaps together with the rows of others whose `alike` is equal.

        alike:  None joins nobody
        rows:   (q, ...): queries; of calls that are alike they have one shape and dtype behind the first axis
        search: finds for each row the same, whatever others are beside it; `between` is called after each stage,
                and raises once nobody waits
        split:  a finding into those of this many rows each

        Raises what `search` raises for these rows, never for those of others; what `caller.end` raises where the
        caller is gone.
        """
        if self._alone or alike is None:
            batch_calls.observe(1)
            return search(rows, caller.end)
        member = _Member(alike, rows, caller)
        with self._lock:
            if self._free:
                self._free -= 1
                member.batch = [member]
            else:
                self._waiting.append(member)
        if not member.batch:
            self._wait(member)
        if member.batch:
            self._lead(member.batch, search, split)
        if member.by_itself:
            caller.end("wait")
            return search(rows, caller.end)
        found: Found = member.found
        return found

    def _wait(self, member: _Member) -> None:
        """Until the member's part is there, or it has been given a batch to lead; raises where it is too late."""
        left = member.caller.left_s
        if not member.woken.acquire(timeout=-1 if left is None else max(0.0, left)):
            with self._lock:
                if member in self._waiting:
                    self._waiting.remove(member)
        if not member.batch:  # a leader leads, for the others' sake
            member.caller.end("wait")

    def _lead(
        self,
        batch: list[_Member],
        search: Callable[[Rows, Between], Found],
        split: Callable[[Found, Sequence[int]], Sequence[Found]],
    ) -> None:
        """Searches for all of them."""
        leader = batch[0]
        batch_calls.observe(len(batch))
        try:
            if len(batch) == 1:
                parts: Sequence[Found] = [search(leader.rows, leader.caller.end)]
            else:
                leader.caller.took("wait")
                rows = np.concatenate([member.rows for member in batch])
                parts = split(search(rows, _until_all_are_gone(batch)), [len(member.rows) for member in batch])
            for member, part in zip(batch, parts, strict=True):
                member.found, member.by_itself = part, False
        except Exception:
            if len(batch) == 1:
                raise
            # One of them is wrong, and each finds out by itself which.
        finally:
            self._hand_on()
            for member in batch[1:]:
                member.woken.release()

    def _hand_on(self) -> None:
        """Gives the place to the one that has waited longest, with all who are alike; frees it if there is none."""
        with self._lock:
            while self._waiting:
                first = self._waiting.popleft()
                if first.caller.gone:
                    first.woken.release()
                    continue
                first.batch = self._gather(first)
                first.woken.release()
                return
            self._free += 1

    def _gather(self, first: _Member) -> list[_Member]:
        batch, rows = [first], len(first.rows)
        for member in list(self._waiting):
            if member.alike == first.alike and rows + len(member.rows) <= MOST_ROWS and not member.caller.gone:
                batch.append(member)
                rows += len(member.rows)
                self._waiting.remove(member)
        return batch


class _Member:
    """One call. batch: that it leads, itself first; by_itself: it has no part in what its batch found."""

    __slots__ = ("alike", "batch", "by_itself", "caller", "found", "rows", "woken")

    def __init__(self, alike: Hashable, rows: Rows, caller: Caller) -> None:
        self.alike, self.rows, self.caller = alike, rows, caller
        self.batch: list[_Member] = []
        self.found: Any = None
        self.by_itself = True
        self.woken = threading.Lock()
        self.woken.acquire()


class _AllGoneError(Exception):
    """Nobody of a batch waits any more."""


def _until_all_are_gone(batch: Sequence[_Member]) -> Between:
    def between(stage: str) -> None:
        batch[0].caller.took(stage)
        if all(member.caller.gone for member in batch):
            raise _AllGoneError

    return between
