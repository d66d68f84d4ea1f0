"""The matching worker: user-events in, states and lists in Redis out; a consumer loop around the owner of buckets.

The main thread runs health and metrics (no calls but health); the loop has a thread of its own, whose end ends the
process. Health names the service "vitrine.matching.worker".
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from kafka import KafkaConsumer
from prometheus_client import Counter, Histogram

from services.matching import failpoint
from services.matching.settings import WorkerSettings, load_matcher
from services.matching.spans import EventSpans, WatchedStore
from vitrine.artifacts import ArtifactError
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.matching import owner
from vitrine.matching.deletion import was_forgotten
from vitrine.matching.match import Matcher
from vitrine.matching.store import Store
from vitrine.placement import qualify
from vitrine.runtime import kafka, logs, metrics, redis, settings, topics
from vitrine.runtime.consume import ConsumerLoop, Record
from vitrine.runtime.readings import Readings, redis_contact
from vitrine.runtime.server import Process

SERVICE = "vitrine.matching.worker"

_log = logs.get_logger(__name__)

applied = Counter("vitrine_matching_events_applied_total", "Events applied and written.", registry=metrics.REGISTRY)
lists_written = Counter("vitrine_matching_lists_written_total", "Lists written.", registry=metrics.REGISTRY)
dead_letters = Counter(
    "vitrine_matching_dead_letters_total", "Records sent to the dead letters.", registry=metrics.REGISTRY
)
fence_rejects = Counter(
    "vitrine_matching_fence_rejects_total", "Bucket writes that met another token.", registry=metrics.REGISTRY
)
reloads = Counter(
    "vitrine_matching_bucket_reloads_total",
    "Buckets whose watermark was read again because of a wrong token.",
    registry=metrics.REGISTRY,
)
write_seconds = Histogram(
    "vitrine_matching_event_to_write_seconds",
    "From the broker's append of an event to its list's being written.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0),
    registry=metrics.REGISTRY,
)
batch_seconds = Histogram(
    "vitrine_matching_batch_seconds",
    "Time of one batch: events folded, lists matched, buckets written.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    registry=metrics.REGISTRY,
)
lag = Readings("vitrine_matching_lag_records", "Records of user-events not yet applied.", "partition")
backlog_age = Readings(
    "vitrine_matching_backlog_age_seconds",
    "Since the append of the oldest record not yet applied; 0 where there is none.",
    "partition",
)


class Work:
    """The consumer loop's handler: the owner's calls, with metrics, seeks and commits around them."""

    def __init__(self, buckets: owner.Owner, spans: EventSpans, paused: Callable[[], str]) -> None:
        self.loop: ConsumerLoop | None = None
        self.redis_lost: str | None = None
        self.paused: str | None = None
        self._ask_paused = paused
        self._asked_paused = -math.inf
        self._owner = buckets
        self._spans = spans
        self._redis_contact = time.monotonic()

    def redis_contact(self) -> dict[str, float]:
        """For the metric. A worker without partitions asks Redis nothing, and has no sample."""
        asks = self.redis_lost is not None or (self.loop is not None and self.loop.backlog.records())
        return {"": time.monotonic() - self._redis_contact} if asks else {}

    def assigned(self, partitions: list[int]) -> Mapping[int, int]:
        try:
            self._stand_while_paused(0.0)
            offsets = self._owner.assigned(partitions)
        except UnavailableError as error:
            raise self._lost(error) from error
        self.redis_lost = None
        self._redis_contact = time.monotonic()
        _log.info("reading from watermarks", offsets=offsets)
        return offsets

    def revoked(self, partitions: list[int]) -> None:
        self._owner.revoked(partitions)

    def batch(self, records: Mapping[int, Sequence[Record]]) -> None:
        try:
            self._stand_while_paused(1.0)
            with batch_seconds.time(), self._spans.around(records):
                outcome = self._owner.batch(records)
        except UnavailableError as error:
            raise self._lost(error) from error
        self._finish(outcome)
        now_ms = time.time() * 1000
        for append_ms in outcome.appended:
            write_seconds.observe(max(0.0, now_ms - append_ms) / 1000)

    def idle(self) -> None:
        try:
            self._stand_while_paused(0.0)
            outcome = self._owner.idle()
        except UnavailableError as error:
            raise self._lost(error) from error
        self._finish(outcome)

    def _finish(self, outcome: owner.Outcome) -> None:
        self._redis_contact = time.monotonic()
        applied.inc(len(outcome.appended))
        lists_written.inc(outcome.lists)
        dead_letters.inc(outcome.dead_letters)
        fence_rejects.inc(outcome.rejected)
        reloads.inc(outcome.reloaded)
        if outcome.rejected or outcome.reloaded:
            _log.warning(
                "buckets were written by someone else, and are read again",
                rejected=outcome.rejected,
                reloaded=outcome.reloaded,
                seek=outcome.seek,
            )
        assert self.loop is not None
        for partition, offset in outcome.seek.items():
            self.loop.seek(partition, offset)
        self.loop.commit(outcome.commit)

    def _stand_while_paused(self, at_most_every_s: float) -> None:
        """Raises UnavailableError where the operator has paused the workers: the loop then reads nothing, and asks
        `assigned` again once a second."""
        if time.monotonic() - self._asked_paused < at_most_every_s:
            return
        try:
            why = self._ask_paused()
        except UnavailableError:
            self.paused = None
            raise
        self._asked_paused = time.monotonic()
        self.paused = why or None
        if why:
            raise UnavailableError(f"paused: {why}")

    def _lost(self, error: UnavailableError) -> UnavailableError:
        """Forgets every bucket: `assigned` reads them again once the store, or the dead-letter topic, is back."""
        self._owner.revoked(self._owner.partitions)
        self.redis_lost = None if self.paused else str(error)
        return error


def main(argv: list[str]) -> int:
    """Runs the worker until SIGTERM; the exit status."""
    config = settings.load(WorkerSettings, argv, prog="python -m services.matching worker")
    logs.setup(config.log_level, "matching-worker")
    try:
        crash = failpoint.from_setting(config.failpoint)
        matcher = load_matcher(config)
        work, loop = build(config, matcher, crash)
    except (ArtifactError, ValueError, NotFoundError, UnavailableError) as error:
        print(f"python -m services.matching worker: {error}", file=sys.stderr)
        return 1
    return run(config, work, loop)


def build(config: WorkerSettings, matcher: Matcher, crash: Callable[[str], None]) -> tuple[Work, ConsumerLoop]:
    """The handler and its loop. NotFoundError where the topic is missing, UnavailableError without Kafka."""
    topic = qualify(config.namespace, topics.USER_EVENTS)
    letters = kafka.DeadLetters(kafka.producer(config.kafka_url), qualify(config.namespace, topics.DEAD_LETTERS))

    def dead_letter(partition: int, record: owner.Record, reason: str) -> None:
        if was_forgotten(buckets, record.key, record.offset):
            return
        with spans.dead_letter(partition, record.offset, reason):
            letters.send(topic, partition, record.offset, record.timestamp, record.key, record.value, reason)
            _log.warning("dead letter", topic=topic, partition=partition, offset=record.offset, reason=reason)

    partitions = _partitions(config.kafka_url, topic)
    expiry_ms = int(config.list_expiry_h * 3_600_000)
    buckets = Store(redis.connect(config.redis_url), config.namespace, list_expiry_ms=expiry_ms)
    store = WatchedStore(buckets)
    spans = EventSpans(store, topic, partitions)
    work = Work(
        owner.Owner(
            store,
            matcher,
            dead_letter,
            cluster=kafka.cluster_id(config.kafka_url),
            partitions=partitions,
            failpoint=crash,
        ),
        spans,
        buckets.paused,
    )
    loop = work.loop = ConsumerLoop(
        config.kafka_url,
        topic,
        qualify(config.namespace, "matching"),
        work,
        member=config.worker_id,
        session_timeout_ms=int(config.session_timeout_s * 1000),
        max_poll_records=config.batch_records,
    )
    lag.add(lambda: {str(partition): count for partition, count in loop.backlog.records().items()})
    backlog_age.add(lambda: {str(partition): age for partition, age in loop.backlog.ages().items()})
    redis_contact.add(work.redis_contact)
    return work, loop


def run(config: WorkerSettings, work: Work, loop: ConsumerLoop) -> int:
    """Runs the loop under health and metrics until SIGTERM or the loop's end; 1 where the loop failed."""
    failed = threading.Event()

    def consume() -> None:
        try:
            loop.run()
        except BaseException as error:  # whatever it was, a worker that reads nothing must not look alive
            failed.set()
            _log.exception("the worker stops")
            print(f"python -m services.matching worker: {error}", file=sys.stderr)
        process.stop(int(failed.is_set()))

    thread = threading.Thread(target=consume, name="consume", daemon=True)

    def stop_consuming() -> None:
        loop.stop()
        thread.join(config.drain_s)

    def kafka_silent() -> str | None:
        silent = loop.seconds_since_contact
        return f"no word for {silent:.0f} s" if silent > config.staleness_bound_s else None

    def idle_hands() -> str | None:
        return None if loop.partitions or work.redis_lost or work.paused else "owns no partition"

    process = Process(
        config,
        "matching-worker",
        ready={"partitions": idle_hands, "kafka": kafka_silent},
        degraded={"redis": lambda: work.redis_lost, "paused": lambda: work.paused},
        on_drain=[stop_consuming],
    )
    process.health.add_services([SERVICE])
    thread.start()
    return process.run()


def _partitions(url: str, topic: str) -> int:
    """Partitions of a topic; the in-memory broker makes it on the first question for it."""
    config = kafka.parse_url(url)
    with kafka.answering(url):
        consumer = KafkaConsumer(**config.kwargs(), allow_auto_create_topics=config.memory)
    try:
        return kafka.partition_count(consumer, topic)
    finally:
        consumer.close(autocommit=False)
