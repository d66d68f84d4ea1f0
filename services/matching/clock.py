"""The clock: the one process that says when ads are out of their schedule or budget (docs/matching-ads.md).

It reads `ad-updates` whole and `user-events` from the beginning of the UTC day, less the time that a click may
take, and writes gates to `ad-updates`, crossings only. It keeps nothing: all that it knows is in the two topics.
"""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from prometheus_client import Counter
from pydantic import Field, model_validator

from vitrine.artifacts import ArtifactError, ArtifactStore
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.matching.ad_records import Gate, gate_key, parse
from vitrine.matching.catalog import SCHEMA, Catalog
from vitrine.matching.catalog_files import DAY_MS
from vitrine.matching.events import RecordError, parse_event
from vitrine.matching.gates import Gates
from vitrine.matching.updates import Updates
from vitrine.placement import qualify
from vitrine.runtime import kafka, logs, metrics, settings, topics
from vitrine.runtime.ad_log import AdLog
from vitrine.runtime.consume import Record
from vitrine.runtime.readings import Readings
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings
from vitrine.runtime.tail import Tail, stamped

SERVICE = "matching-clock"

_log = logs.get_logger(__name__)

written = Counter("vitrine_clock_gates_written_total", "Gates written to ad-updates.", registry=metrics.REGISTRY)
clicks = Readings("vitrine_clock_clicks_total", "Clicks by what they spent.", "outcome", counter=True)


class ClockSettings(Settings):
    """What the clock can be told."""

    catalog: str = Field("stable", min_length=1, description="Ref or version, until the first activation rules.")
    cache: Path | None = Field(None, description="Folder for fetched artifacts; the user's cache folder if unset.")
    click_window_h: float = Field(24, gt=0, description="Time within which a click still finds its impression.")
    tick_ms: int = Field(200, ge=1, description="Time between two looks at schedules and budgets.")
    staleness_bound_s: float = Field(60, gt=0, description="Kafka silent for longer: not serving.")

    @model_validator(mode="after")
    def _complete(self) -> "ClockSettings":
        for field in ("store", "kafka_url"):
            if not getattr(self, field):
                raise ValueError(f"--{field.replace('_', '-')} (or VITRINE_{field.upper()}) is required")
        return self


class Clock:
    """Two tails, the gates between them, and the log that they go to. `run` is a thread's."""

    def __init__(self, config: ClockSettings) -> None:
        self.trouble: str | None = None
        self._config = config
        self._artifacts = ArtifactStore(config.store, namespace=config.namespace, cache=config.cache)
        self._ref = self._artifacts.resolve("catalog", config.catalog)
        self._gates = Gates(click_window_ms=round(config.click_window_h * 3_600_000))
        self._updates = Updates(Catalog.empty(), "", 0)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._again_at = 0.0
        self._log = AdLog(config.kafka_url, config.namespace)
        self._ads = Tail(config.kafka_url, self._log.topic, stamped(self._log.topic, self._said))
        self._events: Tail | None = None
        clicks.add(self._clicks)

    def why_not_ready(self) -> str | None:
        """Why gates may be out of date, or None."""
        for tail in (self._ads, self._events):
            if tail is None or not tail.caught_up.is_set():
                return "the topics are not read yet"
            silent = tail.seconds_since_contact
            if silent > self._config.staleness_bound_s:
                return f"no word from Kafka for {silent:.0f} s"
        return None

    def run(self) -> None:
        """Until `close`. Raises what ended a tail, and ArtifactError where the first catalog cannot be used."""
        self._wait(self._ads)
        self._follow(first=True)
        topic = qualify(self._config.namespace, topics.USER_EVENTS)
        since = _now_ms() // DAY_MS * DAY_MS - round(self._config.click_window_h * 3_600_000)
        offsets = None
        while offsets is None and not self._closing.wait(0 if self.trouble is None else 1.0):
            offsets = self._asked(topic, since)
        if offsets is not None:
            self._events = Tail(self._config.kafka_url, topic, self._happened, offsets)
            self._wait(self._events)  # before that, what is spent would look unspent
        while not self._closing.wait(self._config.tick_ms / 1000):
            for tail in (self._ads, self._events):
                if tail is not None and tail.error is not None:
                    raise tail.error
            self._follow()
            self._tick()

    def close(self) -> None:
        """Ends the tails, and `run`."""
        self._closing.set()
        for tail in (self._ads, self._events):
            if tail is not None:
                tail.close()
        self._log.close()
        clicks.remove(self._clicks)

    def _follow(self, *, first: bool = False) -> None:
        """The catalog that rules now, where it is another one."""
        active = self._updates.ruling(_now_ms())
        version = active.catalog_version if active is not None else self._ref
        if version == self._updates.version or (not first and time.monotonic() < self._again_at):
            return
        try:
            catalog = Catalog.load(self._artifacts.fetch("catalog", version, max_schema=SCHEMA).path)
        except (ArtifactError, UnavailableError, ValueError) as error:
            if first:
                raise
            self.trouble, self._again_at = str(error), time.monotonic() + 5.0
            _log.error("an activated catalog cannot be used", version=version, reason=str(error))
            return
        with self._ads.held(), self._lock:
            self._updates = self._updates.over(catalog, version, catalog.offset)
            self._gates.over(self._updates.market(), _now_ms())
        self.trouble = None
        metrics.artifact_served("catalog", version)

    def _tick(self) -> None:
        with self._lock:
            due = self._gates.due(self._updates.market(), _now_ms())
        if not due:
            return
        records = [(gate_key(gate.ad_id), gate.SerializeToString()) for gate in due]
        try:
            offsets = self._log.append(records)
        except UnavailableError as error:
            self.trouble = str(error)  # they stay due
            return
        self.trouble = None
        written.inc(len(due))
        with self._lock:
            for offset, (key, value) in zip(offsets, records, strict=True):
                gate = parse(key, value)
                assert isinstance(gate, Gate)
                self._gates.said(offset, gate)

    def _said(self, offset: int, append_ms: int, key: bytes | None, value: bytes | None) -> None:
        with self._lock:
            self._updates.apply(offset, append_ms, key, value)
            if key is not None and key.endswith(gate_key(0)[1:]):
                gate = parse(key, value)
                assert isinstance(gate, Gate)
                self._gates.said(offset, gate)

    def _happened(self, records: Mapping[int, Sequence[Record]]) -> int:
        skipped = 0
        with self._lock:
            for some in records.values():
                for record in some:
                    try:
                        self._gates.event(parse_event(record.key, record.value), record.timestamp)
                    except RecordError:  # a worker's dead letter
                        skipped += 1
        return skipped

    def _asked(self, topic: str, since_ms: int) -> dict[int, int] | None:
        """Offsets of the first records appended since then; None, and `trouble`, while Kafka is away."""
        try:
            found = _offsets_since(self._config.kafka_url, topic, since_ms)
        except (UnavailableError, NotFoundError, KafkaError) as error:
            self.trouble = str(error)
            return None
        self.trouble = None
        return found

    def _wait(self, tail: Tail) -> None:
        while not tail.caught_up.wait(0.1) and not self._closing.is_set():
            if tail.error is not None:
                raise tail.error

    def _clicks(self) -> Mapping[str, float]:
        return {name: float(count) for name, count in self._gates.counts._asdict().items()}


def _offsets_since(url: str, topic: str, since_ms: int) -> dict[int, int]:
    config = kafka.parse_url(url)
    with kafka.answering(url):
        consumer = KafkaConsumer(**config.kwargs(), allow_auto_create_topics=config.memory)
    try:
        places = [TopicPartition(topic, place) for place in range(kafka.partition_count(consumer, topic))]
        if config.memory:  # which has no times: all of it is read, and is short
            return {place.partition: 0 for place in places}
        ends = consumer.end_offsets(places)
        found = consumer.offsets_for_times(dict.fromkeys(places, max(0, since_ms)))
        return {place.partition: at.offset if (at := found[place]) else ends[place] for place in places}
    finally:
        consumer.close(autocommit=False)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main(argv: list[str]) -> int:
    """Runs the clock until SIGTERM; the exit status."""
    config = settings.load(ClockSettings, argv, prog="python -m services.matching clock")
    logs.setup(config.log_level, SERVICE)
    try:
        clock = Clock(config)
    except (ArtifactError, ValueError, UnavailableError) as error:
        print(f"python -m services.matching clock: {error}", file=sys.stderr)
        return 1
    failed = threading.Event()

    def keep_time() -> None:
        try:
            clock.run()
        except BaseException as error:  # whatever it was, a clock that stands still must not look alive
            failed.set()
            _log.exception("the clock stops")
            print(f"python -m services.matching clock: {error}", file=sys.stderr)
        process.stop(int(failed.is_set()))

    thread = threading.Thread(target=keep_time, name="clock", daemon=True)
    process = Process(
        config,
        SERVICE,
        ready={"kafka": clock.why_not_ready},
        degraded={"clock": lambda: clock.trouble},
        on_drain=[clock.close, lambda: thread.join(config.drain_s)],
    )
    process.health.add_services(["vitrine.matching.clock"])
    thread.start()
    return process.run()
