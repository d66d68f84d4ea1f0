"""Gauges read at the scrape: what is no longer there has no sample, and what stands still is seen to grow old."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vitrine.runtime import metrics

Read = Callable[[], Mapping[str, float]]


class Readings(Collector):
    """A metric of one label, whose samples are what its sources say when asked: label's value -> number.

    label:   "" where there is one number at most; its key is "" too
    counter: the numbers only grow; the name ends in _total
    """

    def __init__(self, name: str, documentation: str, label: str = "", *, counter: bool = False) -> None:
        self._name, self._documentation = name, documentation
        self._labels = [label] if label else []
        self._kind = CounterMetricFamily if counter else GaugeMetricFamily
        self._sources: list[Read] = []
        self._lock = threading.Lock()
        metrics.REGISTRY.register(self)

    def add(self, read: Read) -> None:
        """Asks `read` from now on; where two sources give one label's value, the later one counts."""
        with self._lock:
            self._sources.append(read)

    def remove(self, read: Read) -> None:
        """Asks `read` no more."""
        with self._lock:
            self._sources = [source for source in self._sources if source != read]

    def describe(self) -> Iterable[Metric]:
        """What `collect` will give; registering asks for it."""
        return [self._kind(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """One family with a sample a label's value."""
        with self._lock:
            sources = list(self._sources)
        family = self._kind(self._name, self._documentation, labels=self._labels)
        found: dict[str, float] = {}
        for read in sources:
            found |= read()
        for value, number in sorted(found.items()):
            family.add_metric([value] if self._labels else [], number)
        yield family


kafka_contact = Readings(
    "vitrine_kafka_contact_age_seconds",
    "Since Kafka last answered this process's reader of the topic; asked about once a second.",
    "topic",
)
redis_contact = Readings(
    "vitrine_redis_contact_age_seconds",
    "Since Redis last answered this process; asked once a second or oftener.",
)
tail_lag = Readings(
    "vitrine_tail_lag_records",
    "Offsets of a topic that is read whole and not applied yet, as of about a second ago.",
    "topic",
)
tail_skipped = Readings(
    "vitrine_tail_skipped_records_total",
    "Records of a topic that is read whole that could not be applied, and were passed over.",
    "topic",
    counter=True,
)


def plain_topic(topic: str) -> str:
    """A topic's name without its namespace, which is a label of its own."""
    return topic.rpartition(".")[2]
