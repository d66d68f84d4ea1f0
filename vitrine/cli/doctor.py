"""`vitrine doctor`: what this machine has, what answers, and whether all producers put a key in one place."""

import json
import os
import platform
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated, Any, Literal

import numpy as np
import redis
import typer
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2 as kafka_python_murmur2
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitrine import placement
from vitrine.errors import FieldError, UnavailableError
from vitrine.runtime import embedded, logs
from vitrine.runtime.kafka import admin, cluster_id, key_of, parse_url, producer
from vitrine.runtime.local_servers import java
from vitrine.runtime.redis import connect, primaries
from vitrine.runtime.settings import redact_url

_DISTRIBUTIONS = ("vitrine-serving", "grpcio", "protobuf", "numpy", "kafka-python", "confluent-kafka", "redis")
_OPTIONAL = ("torch", "faiss-cpu", "faiss-gpu-cu12", "onnxruntime", "pyarrow")
_KEYS = 300
_PARTITIONS = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `note` is worth knowing; `problem` makes the exit code 1."""

    name: str
    status: Literal["ok", "note", "problem"]
    detail: str


def doctor(
    kafka_url: Annotated[str, typer.Option(envvar="VITRINE_KAFKA_URL", help="kafka://host:port[,host:port]")] = "",
    redis_url: Annotated[
        str, typer.Option(envvar="VITRINE_REDIS_URL", help="redis://[user:password@]host:port")
    ] = "",
    kafka_home: Annotated[
        str, typer.Option(envvar="VITRINE_KAFKA_HOME", help="folder of an unpacked Apache Kafka release")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout instead of a table")] = False,
) -> None:
    """Check this machine: kernel, versions, GPU, Java, Kafka, Redis, and that producers partition alike.

    Kafka and Redis without a URL are the embedded stack, which is started for the check and stopped. A cluster
    given by URL gets a topic `vitrine-doctor-...` for a moment. The exit code is 0 where all that is needed is
    well, else 1.

    Examples:

        vitrine doctor

        vitrine doctor --kafka-url kafka://127.0.0.1:9092 --redis-url redis://127.0.0.1:6379 --json
    """
    logs.setup("critical", "doctor")
    checks = [*this_machine(), *servers(kafka_url, redis_url, kafka_home)]
    sound = all(check.status != "problem" for check in checks)
    if as_json:
        print(json.dumps({"ok": sound, "checks": [asdict(check) for check in checks]}))
    else:
        _show(checks)
    raise typer.Exit(0 if sound else 1)


def this_machine() -> Iterator[Check]:
    """What is installed and what the processor can do."""
    yield _kernel()
    yield Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")
    for name in _DISTRIBUTIONS:
        version = _version(name)
        yield Check(
            name, "ok" if version else "problem", version or "not installed: pip install vitrine-serving[serve]"
        )
    for name in _OPTIONAL:
        version = _version(name)
        if version:
            yield Check(name, "ok", version)
    yield Check("processor", "ok", f"{_processor()}, {_usable_cores()} of {os.cpu_count()} cores usable")
    yield _gpu()


def servers(kafka_url: str, redis_url: str, kafka_home: str) -> Iterator[Check]:
    """Whether Kafka and Redis answer: those given by URL, else the embedded stack's."""
    found = java()
    yield Check("Java", "ok" if found else "note", found or "none on PATH or in JAVA_HOME")
    why_not = embedded.why_no_kafka(kafka_home)
    yield Check("Kafka release", "note" if why_not else "ok", why_not or kafka_home)
    stack = embedded.EmbeddedStack(kafka_url=kafka_url, redis_url=redis_url, kafka_home=kafka_home)
    try:
        stack.start()
    except UnavailableError as error:
        yield Check("embedded stack", "problem", f"did not start: {error}")
        return
    try:
        kafka = _kafka(stack)
        yield kafka
        yield _redis(stack)
        yield partitioning("" if kafka.status == "problem" else stack.kafka_url)
    finally:
        stack.stop()


def partitioning(kafka_url: str) -> Check:
    """Whether kafka-python, librdkafka and this package put each of some hundred keys in the same partition.

    Without a URL the functions alone are compared.
    """
    name = "producers partition alike"
    rng = np.random.default_rng(1)
    few = rng.integers(1, 10_000, _KEYS // 2, dtype=np.uint64)
    many = rng.integers(1, 2**64 - 1, _KEYS // 2, dtype=np.uint64)
    ids = np.unique(np.concatenate([few, many]))
    hashes = {int(id): placement.murmur2(key_of(int(id))) for id in ids}
    try:
        native = dict(zip(map(int, ids), map(int, placement.buckets_of(ids)), strict=True))
    except ImportError:
        return Check(name, "problem", "not known without the C++ extension")
    for id, value in hashes.items():
        if kafka_python_murmur2(key_of(id)) & 0xFFFFFFFF != value or native[id] != placement.bucket_of(id):
            return Check(name, "problem", f"the murmur2 functions differ on key {id}")
    if not kafka_url:
        return Check(name, "note", f"{len(hashes)} keys by the functions alone, with no broker to send them to")
    try:
        with _topic(kafka_url) as (topic, partitions):
            placed = {
                "kafka-python": _placed_by_kafka_python(kafka_url, topic, list(hashes)),
                "confluent-kafka": _placed_by_librdkafka(kafka_url, topic, list(hashes)),
            }
    except (UnavailableError, KafkaError) as error:
        return Check(name, "note", f"{len(hashes)} keys by the functions alone; the broker took none: {error}")
    for client, where in placed.items():
        wrong = [id for id in hashes if where.get(id) != placement.bucket_of(id) % partitions]
        if wrong:
            return Check(
                name, "problem", f"{client} puts {len(wrong)} of {len(hashes)} keys elsewhere, {wrong[0]} first"
            )
    return Check(
        name, "ok", f"{len(hashes)} keys sent by kafka-python and confluent-kafka to {partitions} partitions"
    )


def _kernel() -> Check:
    try:
        from vitrine import native

        sets = ", ".join(native.supported_kernels())
        return Check("kernel", "ok", f"{native.kernel()}; the C++ extension is built and can run {sets} here")
    except (ImportError, RuntimeError, ValueError) as error:
        return Check("kernel", "problem", f"the C++ extension does not work: {error}; pip install -e . builds it")


def _gpu() -> Check:
    try:
        import torch
    except ImportError:
        return Check("GPU", "note", "not asked: torch is not installed")
    if not torch.cuda.is_available():
        return Check("GPU", "note", "none; training runs on the processor")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("GPU", "ok", ", ".join(names))


def _kafka(stack: embedded.EmbeddedStack) -> Check:
    where = redact_url(stack.kafka_url)
    if stack.kafka_kind == "embedded":
        where = "not configured; the embedded Apache Kafka starts"
    elif stack.kafka_kind == "memory":
        where = "not configured; the embedded stack will use its in-memory broker, for a first look only"
    try:
        id = cluster_id(stack.kafka_url, timeout_s=4.0)
    except (UnavailableError, FieldError) as error:
        return Check("Kafka", "problem", str(error))
    return Check("Kafka", "note" if stack.kafka_kind == "memory" else "ok", f"{where}: cluster {id}")


def _redis(stack: embedded.EmbeddedStack) -> Check:
    where = "not configured; the embedded Valkey starts"
    if stack.redis_kind == "external":
        where = redact_url(stack.redis_url)
    try:
        with connect(stack.redis_url) as client:
            nodes = primaries(client)
            server: Mapping[str, Any] = nodes[0].info("server")
            settings = [_settings(node) for node in nodes]
    except (FieldError, redis.RedisError) as error:
        return Check("Redis", "problem", f"{where}: {error}")
    version = server.get("valkey_version") or server.get("redis_version")
    if len(nodes) > 1:
        version = f"{version}, a cluster of {len(nodes)}"
    if any(each.get("appendonly") == "no" for each in settings):
        return Check("Redis", "note", f"{where}: {version}, but appendonly is off: it keeps nothing after a kill")
    if any(each.get("maxmemory-policy", "noeviction") != "noeviction" for each in settings):
        return Check("Redis", "problem", f"{where}: maxmemory-policy is not noeviction, states would be lost")
    return Check("Redis", "ok", f"{where}: {version}")


def _settings(client: "redis.Redis") -> Mapping[str, str]:
    """What CONFIG tells; nothing where the server does not let us ask."""
    try:
        found: Mapping[Any, Any] = client.config_get("appendonly", "maxmemory-policy")
    except redis.ResponseError:
        return {}
    return {_text(key): _text(value) for key, value in found.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def _topic(kafka_url: str) -> Iterator[tuple[str, int]]:
    """A topic of our own for a moment, and its number of partitions."""
    name = f"vitrine-doctor-{secrets.token_hex(6)}"
    if parse_url(kafka_url).memory:
        yield name, 4
        return
    with admin(kafka_url) as client:
        client.create_topics([NewTopic(name, _PARTITIONS, 1)])
        client.wait_for_topics([name])
        try:
            yield name, _PARTITIONS
        finally:
            client.delete_topics([name])


def _placed_by_kafka_python(kafka_url: str, topic: str, ids: Sequence[int]) -> dict[int, int]:
    client = producer(kafka_url)
    try:
        sent = {id: client.send(topic, key=key_of(id), value=b"") for id in ids}
        return {id: future.get(timeout=30).partition for id, future in sent.items()}
    finally:
        client.close(timeout=5)


def _placed_by_librdkafka(kafka_url: str, topic: str, ids: Sequence[int]) -> dict[int, int]:
    from confluent_kafka import Producer

    placed: dict[int, int] = {}

    def delivered(error: object, message: Any) -> None:
        if error is None:
            placed[int(message.key())] = message.partition()

    client = Producer({**parse_url(kafka_url).librdkafka(), "partitioner": "murmur2_random", "log_level": 0})
    for id in ids:
        client.produce(topic, key=key_of(id), value=b"", on_delivery=delivered)
    client.flush(30)
    return placed


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _show(checks: Sequence[Check]) -> None:
    table = Table("", "", "", box=None, show_header=False)
    marks = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "problem": "[red]problem[/red]"}
    for check in checks:
        table.add_row(marks[check.status], check.name, escape(check.detail))
    Console().print(table)
