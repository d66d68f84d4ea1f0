"""The embedded stack: what it starts, what it says, and that nothing of it outlives its process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import redis

from tests.waiting import wait_for
from vitrine.errors import UnavailableError
from vitrine.runtime import local_servers, topics
from vitrine.runtime.consume import ConsumerLoop, Record
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.kafka import cluster_id, key_of, producer
from vitrine.runtime.redis import connect
from vitrine.runtime.tail import Tail, one_by_one

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stacks of this test, in this process and its children, keep their data."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_without_a_kafka_release_the_broker_is_in_memory_and_announced(temporary: Path) -> None:
    with EmbeddedStack(kafka_home="") as stack:
        assert (stack.kafka_kind, stack.redis_kind) == ("memory", "embedded")
        assert stack.kafka_url.startswith("memory://127.0.0.1:")
        assert "for a first look only" in stack.notice
        assert "VITRINE_KAFKA_HOME" in stack.notice
        assert connect(stack.redis_url).ping()
        assert cluster_id(stack.kafka_url)
    assert list(temporary.iterdir()) == []


def test_the_in_memory_broker_carries_events_and_updates() -> None:
    got: dict[int, list[bytes]] = {}

    class Handler:
        def assigned(self, partitions: list[int]) -> Mapping[int, int]:
            return dict.fromkeys(partitions, 0)

        def revoked(self, partitions: list[int]) -> None: ...

        def batch(self, records: Mapping[int, Sequence[Record]]) -> None:
            for partition, some in records.items():
                got.setdefault(partition, []).extend(record.value or b"" for record in some)

        def idle(self) -> None: ...

    with EmbeddedStack(kafka_home="", redis_url="redis://unused:1") as stack:
        assert "makes topics by itself" in topics.create(stack.kafka_url, "").notice
        loop = ConsumerLoop(stack.kafka_url, topics.USER_EVENTS, "group", Handler())
        thread = threading.Thread(target=loop.run)
        thread.start()
        updates: list[tuple[int, bytes | None]] = []
        apply = one_by_one(topics.AD_UPDATES, lambda offset, key, value: updates.append((offset, value)))
        tail = Tail(stack.kafka_url, topics.AD_UPDATES, apply)
        try:
            wait_for(lambda: loop.partitions == [0, 1, 2, 3])
            out = producer(stack.kafka_url)
            for value in range(1, 101):
                out.send(topics.USER_EVENTS, key=key_of(value), value=b"%d" % value)
            out.send(topics.AD_UPDATES, key=b"7", value=b"paused", partition=0)
            out.flush(timeout=60)
            out.close()
            wait_for(lambda: sum(map(len, got.values())) == 100)
            wait_for(lambda: updates == [(0, b"paused")])
            tail.wait_caught_up(60)
        finally:
            loop.stop()
            thread.join()
            tail.close()
    assert sorted(int(value) for values in got.values() for value in values) == list(range(1, 101))
    assert sorted(got) == [0, 1, 2, 3]


def test_what_is_given_by_url_is_not_started(temporary: Path) -> None:
    with EmbeddedStack(kafka_url="kafka://elsewhere:9092", redis_url="redis://elsewhere:6379") as stack:
        assert (stack.kafka_kind, stack.redis_kind) == ("external", "external")
        assert (stack.kafka_url, stack.redis_url) == ("kafka://elsewhere:9092", "redis://elsewhere:6379")
        with pytest.raises(RuntimeError, match="did not start Redis"):
            stack.kill_redis()


def test_a_port_taken_meanwhile_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        choices = [(taken.getsockname()[1],), *(local_servers.free_ports(1) for _ in range(3))]
        monkeypatch.setattr(local_servers, "free_ports", lambda count: choices.pop(0))
        with EmbeddedStack(kafka_url="kafka://unused:1") as stack:
            assert connect(stack.redis_url).ping()
            assert str(taken.getsockname()[1]) not in stack.redis_url


def test_a_server_that_cannot_start_says_why_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-0.jar").write_bytes(b"not a jar")
    if not local_servers.java():
        pytest.skip("needs Java")
    with pytest.raises(UnavailableError, match=r"Apache Kafka ended with code 1 .*\n.*StorageTool"):
        EmbeddedStack(kafka_home=str(tmp_path), redis_url="redis://unused:1").start()


def test_redis_keeps_its_data_through_a_kill() -> None:
    with EmbeddedStack(kafka_url="kafka://unused:1") as stack:
        client = connect(stack.redis_url)
        client.set("key", "value")
        wait_for(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0)
        stack.kill_redis()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        stack.start_redis()
        assert client.get("key") == b"value"
        stack.restart_redis()
        assert client.get("key") == b"value"


def test_a_folder_that_a_killed_process_left_is_removed_by_the_next_stack_and_a_live_one_is_not(
    temporary: Path,
) -> None:
    with EmbeddedStack(kafka_url="kafka://unused:1") as first:
        (live,) = temporary.iterdir()
        left = temporary / "vitrine-stack-left"
        left.mkdir()
        (left / "data").write_bytes(b"x")
        for folder in (left, live):
            os.utime(folder, (1_000_000_000, 1_000_000_000))
        with EmbeddedStack(kafka_url="kafka://unused:1"):
            assert not left.exists()
            assert live.exists()
        assert connect(first.redis_url).ping()


_HOLDER = """
import json, signal, sys
from vitrine.runtime.embedded import EmbeddedStack
stack = EmbeddedStack(kafka_home=sys.argv[1]).start()
print(json.dumps({"kafka": stack.kafka_url, "redis": stack.redis_url, "kind": stack.kafka_kind}), flush=True)
signal.pause()
"""


def _kill_the_holder_of_a_stack(kafka_home: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, kafka_home], cwd=_ROOT, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    try:
        assert holder.stdout is not None
        described = next(json.loads(line) for line in holder.stdout if line.startswith(b"{"))
        assert described["kind"] == ("embedded" if kafka_home else "memory")
        servers = psutil.Process(holder.pid).children(recursive=True)
        assert len(servers) == (2 if kafka_home else 1)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert alive == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
def test_killing_the_process_leaves_no_valkey(temporary: Path) -> None:
    _kill_the_holder_of_a_stack("")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
def test_killing_the_process_leaves_no_kafka(temporary: Path, kafka_home: str) -> None:
    _kill_the_holder_of_a_stack(kafka_home)
