"""Servers for one process: Valkey and Apache Kafka on free loopback ports, gone when the process is.

What a URL is given for is not started. Without a Kafka release (`VITRINE_KAFKA_HOME`) or Java, Kafka is the
in-memory broker of confluent-kafka, which lives in this process and is for a first look only.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from vitrine.runtime.local_servers import Kafka, Server, Valkey, java
from vitrine.runtime.redact import redact_url

_log = structlog.get_logger(__name__)

_PREFIX = "vitrine-stack-"
_SETTLED_S = 60.0  # a younger folder may not have taken its lock yet


class EmbeddedStack:
    """Context manager around the servers.

    kafka_url, redis_url:   where they are, from `start` on
    kafka_kind, redis_kind: "embedded", "external" (a URL was given) or, Kafka only, "memory"
    notice:                 one line that says what was started, for people

    kafka_home: a folder with an Apache Kafka release's `libs/`; None reads VITRINE_KAFKA_HOME, "" means none.
    """

    def __init__(self, *, kafka_url: str = "", redis_url: str = "", kafka_home: str | None = None) -> None:
        self.kafka_url = kafka_url
        self.redis_url = redis_url
        self.kafka_kind = "external" if kafka_url else ""
        self.redis_kind = "external" if redis_url else ""
        self.notice = ""
        self._kafka_home = os.environ.get("VITRINE_KAFKA_HOME", "") if kafka_home is None else kafka_home
        self._folder: _Folder | None = None
        self._valkey: Valkey | None = None
        self._kafka: Kafka | None = None
        self._memory: Any = None

    def start(self) -> Self:
        """Starts what is missing and waits until it answers. Raises UnavailableError with the server's words."""
        if self._folder is not None:
            raise RuntimeError("the stack is already started")
        missing = "" if self.kafka_kind else why_no_kafka(self._kafka_home)
        self._folder = _Folder()
        try:
            if not self.redis_kind:
                self._valkey = Valkey(self._folder.path / "valkey")
                self._valkey.begin()
            if not self.kafka_kind and not missing:
                self._kafka = Kafka(self._folder.path / "kafka", Path(self._kafka_home))
                self._kafka.begin()
            # Both are starting now; the waits come after.
            if self._valkey:
                self._valkey.finish()
                self.redis_kind, self.redis_url = "embedded", self._valkey.url
            if self._kafka:
                self._kafka.finish()
                self.kafka_kind, self.kafka_url = "embedded", self._kafka.url
            elif not self.kafka_kind:
                self._memory, self.kafka_url = _memory_broker()
                self.kafka_kind = "memory"
        except BaseException:
            self.stop()
            raise
        self.notice = self._describe(missing)
        _log.info("stack", notice=self.notice, kafka=redact_url(self.kafka_url), redis=redact_url(self.redis_url))
        return self

    def stop(self) -> None:
        """Ends what was started (SIGTERM, a bounded wait, SIGKILL) and removes its data. Safe to repeat."""
        servers = [server for server in (self._kafka, self._valkey) if server]
        for server in servers:
            server.terminate()
        for server in servers:
            server.reap()
        self._kafka = self._valkey = self._memory = None
        if self._folder:
            self._folder.remove()
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # For tests of faults: the same ports and the same data afterwards.

    def kill_redis(self) -> None:
        """SIGKILL, as a crash would."""
        _started(self._valkey, "Redis").kill()

    def start_redis(self) -> None:
        """Starts it again on its port and its data, and waits until it answers."""
        _started(self._valkey, "Redis").again()

    def kill_kafka(self) -> None:
        """SIGKILL, as a crash would."""
        _started(self._kafka, "Kafka").kill()

    def start_kafka(self) -> None:
        """Starts it again on its ports and its log, and waits until it answers."""
        _started(self._kafka, "Kafka").again()

    def restart_kafka(self) -> None:
        """An orderly stop and a start."""
        kafka = _started(self._kafka, "Kafka")
        kafka.terminate()
        kafka.reap()
        kafka.again()

    def restart_redis(self) -> None:
        """An orderly stop and a start."""
        valkey = _started(self._valkey, "Redis")
        valkey.terminate()
        valkey.reap()
        valkey.again()

    def _describe(self, missing: str) -> str:
        kafka = {
            "embedded": "Apache Kafka",
            "external": "Kafka given by URL",
            "memory": f"the in-memory Kafka broker, for a first look only: {missing}",
        }[self.kafka_kind]
        return f"{'Valkey' if self._valkey else 'Redis given by URL'} and {kafka}"


def why_no_kafka(kafka_home: str) -> str:
    """ "" where Apache Kafka can be started from `kafka_home`, else what is missing, in words."""
    if not kafka_home:
        return "VITRINE_KAFKA_HOME names no Apache Kafka release"
    if not any(Path(kafka_home, "libs").glob("kafka_*.jar")):
        return f"{Path(kafka_home, 'libs')} holds no Apache Kafka"
    if not java():
        return "no Java on PATH or in JAVA_HOME (17 or later)"
    return ""


def _started(server: "Server | None", name: str) -> "Server":
    if server is None:
        raise RuntimeError(f"this stack did not start {name}")
    return server


class _Folder:
    """A temp folder with a lock, so that a later stack can tell and remove what a killed process left."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _SETTLED_S:
                    with _locked(left / "lock"):
                        shutil.rmtree(left, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(_locked(self.path / "lock"))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


@contextlib.contextmanager
def _locked(path: Path) -> Any:
    """Holds the lock file; raises OSError where another process does."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _memory_broker() -> tuple[Any, str]:
    """A broker inside this process. It keeps 5 MB a partition and makes topics by itself, 4 partitions each."""
    from confluent_kafka import Producer

    broker = Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 1, "log_level": 3})
    brokers = broker.list_topics(timeout=10).brokers
    address = next(iter(brokers.values()))
    return broker, f"memory://{address.host}:{address.port}"
