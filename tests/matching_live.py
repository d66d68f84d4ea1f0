"""A live matching system for tests: real worker and server processes over one namespace of an embedded stack."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from matching_kit import (
    DAY_MS,
    LogRecord,
    publish,
    random_event,
    replay,
    small_catalog,
    small_matcher,
    small_towers,
)

from tests.waiting import wait_for
from vitrine.api.events.v1.events_pb2 import DeadLetter, UserEvent
from vitrine.artifacts import ArtifactStore
from vitrine.matching.events import RecordError, parse_event
from vitrine.matching.match import Matcher
from vitrine.matching.store import Store
from vitrine.placement import bucket_of, qualify
from vitrine.runtime import kafka, process, redis, topics
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.health import is_serving

PARTITIONS = 4
STORED, SERVED = 20, 10
POISON = (b"\xff\xff", b"\x08\x05", None, b"no event at all")


class Service:
    """One process: its output in a log, its addresses in a file."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        self._addresses = folder / f"{name}.address"
        self._addresses.unlink(missing_ok=True)
        environment = environment | {"VITRINE_ADDRESS_FILE": str(self._addresses)}
        with self.log.open("ab") as output:
            self.process: subprocess.Popen[bytes] = process.spawn(
                [sys.executable, "-m", *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def address(self, of: str = "address") -> str:
        return str(json.loads(self._addresses.read_text())[of])

    def serving(self) -> bool:
        """Whether it says SERVING of itself; fails where it has ended."""
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said()}"
        return self._addresses.exists() and is_serving(self.address("health"))

    def wait_serving(self) -> "Service":
        wait_for(self.serving, 60, lambda: f"not serving:\n{self.said()}")
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_end(self, timeout_s: float = 60) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(timeout_s)

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3_000:]

    def metric(self, name: str) -> float:
        """Sum of a metric's samples on its Prometheus page."""
        with urllib.request.urlopen(f"http://{self.address('metrics')}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")))


class Live:
    """Topics, artifacts, a producer and whatever processes a test starts.

    valid, poisoned: events sent that can be applied, and those that cannot
    """

    def __init__(self, stack: EmbeddedStack, namespace: str, folder: Path) -> None:
        self.stack, self.namespace = stack, namespace
        self.topic = qualify(namespace, topics.USER_EVENTS)
        self.catalog = small_catalog()
        self.valid = self.poisoned = 0
        topics.create(stack.kafka_url, namespace, partitions=PARTITIONS)
        artifacts = ArtifactStore(folder / "store", namespace=namespace)
        publish(artifacts, folder, self.catalog, small_towers(self.catalog))
        self.matcher: Matcher = small_matcher(stored=STORED, served=SERVED)
        self.matcher.catalog_version = artifacts.resolve("catalog")
        self.matcher.towers_version = artifacts.resolve("towers")
        self.store = Store(redis.connect(stack.redis_url), namespace)
        self.producer = kafka.producer(stack.kafka_url)
        self.services: list[Service] = []
        self._folder = folder
        self._environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            "VITRINE_NAMESPACE": namespace,
            "VITRINE_STORE": str(folder / "store"),
            "VITRINE_KAFKA_URL": stack.kafka_url,
            "VITRINE_REDIS_URL": stack.redis_url,
            "VITRINE_STORED": str(STORED),
            "VITRINE_SERVED": str(SERVED),
            "VITRINE_BATCH_RECORDS": "300",
            "OMP_NUM_THREADS": "1",
        }

    def worker(self, name: str = "worker", **settings: str) -> Service:
        """Starts a worker; a second start under the same name is the same static member."""
        return self._start(name, "worker", {"worker_id": name} | settings)

    def server(self, **settings: str) -> Service:
        return self._start("server", "server", settings)

    def send(self, event: UserEvent) -> None:
        self.producer.send(self.topic, key=kafka.key_of(event.user_id), value=event.SerializeToString())
        self.valid += 1

    def send_random(self, rng: np.random.Generator, count: int, *, users: int = 200, poison: float = 0.02) -> None:
        """Random events of random users, and among them poison messages of theirs; returns when acknowledged."""
        for _ in range(count):
            user_id = int(rng.integers(1, users + 1))
            if rng.random() < poison:
                value = POISON[int(rng.integers(len(POISON)))]
                self.producer.send(self.topic, key=kafka.key_of(user_id), value=value)
                self.poisoned += 1
            else:
                time_ms = int(time.time() * 1000 - rng.integers(-DAY_MS, 60 * DAY_MS))
                self.send(random_event(rng, self.catalog, user_id, time_ms))
        self.producer.flush()

    def wait_applied(self, timeout_s: float = 60) -> None:
        """Waits until as many events are applied as were sent; fails where it is more, or takes too long."""
        wait_for(self._applied_all, timeout_s, lambda: f"{self.store.applied()} of {self.valid} applied")

    def log(self) -> list[list[LogRecord]]:
        """All of user-events as it lies on the broker, by partition."""
        return [_read(self.stack.kafka_url, self.topic, p) for p in range(PARTITIONS)]

    def check(self) -> None:
        """States and lists equal one offline pass to the byte; counters and dead letters equal what was sent."""
        self.wait_applied()
        log = self.log()
        expected = replay(log, self.matcher)
        for user_id, pair in expected.items():
            assert self.store.read_user(user_id) == pair, f"user {user_id}"
        assert self.store.lists() == len(expected)
        poison = self._poison(log)
        assert len(poison) == self.poisoned
        wait_for(lambda: self._letters() == poison, 20, lambda: "the dead letters are not the poison sent")
        assert self.store.applied() == self.valid

    def _start(self, name: str, role: str, settings: dict[str, str]) -> Service:
        extra = {f"VITRINE_{key.upper()}": value for key, value in settings.items()}
        service = Service(["services.matching", role], self._environment | extra, self._folder, name)
        self.services.append(service)
        return service

    def _applied_all(self) -> bool:
        applied = self.store.applied()
        assert applied <= self.valid, f"{applied} events applied of {self.valid} sent"
        return applied == self.valid

    def _poison(self, log: list[list[LogRecord]]) -> dict[str, bytes]:
        found = {}
        for partition, records in enumerate(log):
            for each in records:
                try:
                    parse_event(each.key, each.value)
                except RecordError:
                    found[f"{self.topic}/{partition}/{each.offset}"] = each.value or b""
        return found

    def _letters(self) -> dict[str, bytes]:
        letters = {}
        for each in _read(self.stack.kafka_url, qualify(self.namespace, topics.DEAD_LETTERS), 0):
            letter = DeadLetter.FromString(each.value)
            assert letter.reason
            assert each.key.decode() == f"{letter.topic}/{letter.partition}/{letter.offset}"
            letters[each.key.decode()] = letter.value
        return letters

    def close(self) -> None:
        for service in self.services:
            process.stop(service.process)
        self.producer.close(timeout=2)


@contextmanager
def live(stack: EmbeddedStack, namespace: str, folder: Path) -> Iterator[Live]:
    run = Live(stack, namespace, folder)
    try:
        yield run
    finally:
        run.close()


def partition_of(user_id: int) -> int:
    return bucket_of(user_id) % PARTITIONS


def _read(url: str, topic: str, partition: int) -> list[LogRecord]:
    place = TopicPartition(topic, partition)
    consumer = KafkaConsumer(**kafka.parse_url(url).kwargs(), auto_offset_reset="none", enable_auto_commit=False)
    try:
        consumer.assign([place])
        consumer.seek(place, 0)
        end = consumer.end_offsets([place])[place]
        records = []
        while consumer.position(place) < end:
            for each in consumer.poll(timeout_ms=500).get(place, ()):
                records.append(LogRecord(each.offset, each.timestamp, each.key, each.value))
        return records
    finally:
        consumer.close(autocommit=False)
