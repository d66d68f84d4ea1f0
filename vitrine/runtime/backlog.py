"""What of each partition is not applied yet, and how long the oldest of it has waited since its append.

Kafka tells where a log ends, not when the record at an offset was appended; that is known only of records that were
read. So the oldest record that is not applied is judged by a time that it cannot be older than: its own append time
while it is in hand, else the append time of the record applied before it, or the last time that nothing waited.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Partition:
    """next: everything below is applied. end: of the log, as last heard. since: see the module; None: not known."""

    next: int
    end: int
    since: float | None = None
    sought: bool = False  # since the last `offered`


class Backlog:
    """The partitions that a consumer owns; written by its loop, read by whoever scrapes.

    clock: seconds, as the broker's append times count them
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._partitions: dict[int, _Partition] = {}

    def placed(self, partition: int, offset: int) -> None:
        """The next record to apply is `offset`: the partition is new here, or its reader went elsewhere."""
        with self._lock:
            held = self._partitions.setdefault(partition, _Partition(offset, offset))
            if held.next != offset:
                held.next, held.since = offset, None
            held.end = max(held.end, offset)
            held.sought = True

    def offered(self, partition: int, append_ms: int, end: int) -> None:
        """Records up to `end` are in hand and none is applied; the first was appended at `append_ms`."""
        with self._lock:
            held = self._partitions.get(partition)
            if held is not None:
                held.since, held.sought = append_ms / 1000, False
                held.end = max(held.end, end)

    def applied(self, partition: int, append_ms: int, end: int) -> None:
        """What was offered is applied, up to `end`; the last of it was appended at `append_ms`."""
        with self._lock:
            held = self._partitions.get(partition)
            if held is not None and not held.sought:
                held.next, held.since = end, append_ms / 1000

    def passed(self, partition: int, position: int) -> None:
        """Nothing to apply lies below `position`: what is there instead is no record."""
        with self._lock:
            held = self._partitions.get(partition)
            if held is not None:
                held.next = max(held.next, position)

    def ends(self, ends: Mapping[int, int], asked_at: float) -> None:
        """Where the logs end, as of `asked_at` or later."""
        with self._lock:
            for partition, end in ends.items():
                held = self._partitions.get(partition)
                if held is not None:
                    held.end = max(end, held.next)
                    if held.end == held.next:
                        held.since = asked_at

    def gone(self, partitions: Iterable[int]) -> None:
        """These are no longer this consumer's."""
        with self._lock:
            for partition in partitions:
                self._partitions.pop(partition, None)

    def records(self) -> dict[int, int]:
        """Records not yet applied, by partition."""
        with self._lock:
            return {partition: held.end - held.next for partition, held in self._partitions.items()}

    def ages(self) -> dict[int, float]:
        """Seconds since the append of the oldest record not yet applied, 0 where there is none, by partition.

        Never less than the true age, as far as the ends are known; a partition of which too little is known yet, in
        the moment after its assignment, is left out.
        """
        now = self._clock()
        ages = {}
        with self._lock:
            for partition, held in self._partitions.items():
                if held.end == held.next:
                    ages[partition] = 0.0
                elif held.since is not None:
                    ages[partition] = max(0.0, now - held.since)
        return ages
