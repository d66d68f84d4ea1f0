"""A run's processes: trainers, services and the worker, each a real one, all ended with the run."""

import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrine.runtime.health import is_serving
from vitrine.runtime.process import spawn, stop


class RunError(Exception):
    """A run of the whole system cannot go on; the message says what failed and where its log lies."""


@dataclass
class Service:
    """A running service. `address`, `metrics` and `health` are host:port of what it listens on."""

    name: str
    process: subprocess.Popen[bytes]
    address_file: Path
    log: Path
    address: str = ""
    metrics: str = ""
    health: str = ""


@dataclass
class System:
    """Starts what a run needs and stops it all in `close`.

    folder: where logs and address files go; environment: VITRINE_ settings that every process shares.
    """

    folder: Path
    environment: dict[str, str]
    services: dict[str, Service] = field(default_factory=dict)
    _jobs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _closed: bool = False

    def start(self, name: str, module: list[str], extra: Mapping[str, str] | None = None) -> Service:
        """Start `python -m MODULE...` as a service; `wait_serving` tells when it is up."""
        log = self.folder / f"{name}.log"
        address_file = self.folder / f"{name}.address"
        address_file.unlink(missing_ok=True)
        environment = {**self.environment, "VITRINE_ADDRESS_FILE": str(address_file), **(extra or {})}
        process = self._spawn(["-m", *module], environment, log)
        self.services[name] = Service(name, process, address_file, log)
        return self.services[name]

    def wait_serving(self, name: str, timeout_s: float = 60.0) -> Service:
        """Wait until the service's health is SERVING. Raises RunError where it ends or takes too long."""
        service = self.services[name]
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if service.process.poll() is not None:
                raise RunError(f"{name} ended with {service.process.returncode}: {tail(service.log)}")
            if service.address_file.exists():
                announced = json.loads(service.address_file.read_text())
                service.address, service.metrics = announced["address"], announced["metrics"]
                service.health = announced["health"]
                if is_serving(service.health):
                    return service
            time.sleep(0.05)
        raise RunError(f"{name} did not become healthy in {timeout_s:.0f} s: {tail(service.log)}")

    def run_job(
        self, name: str, module: list[str], arguments: list[str], on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Run a trainer to its end and return its result line. Raises RunError where it fails."""
        log = self.folder / f"{name}.log"
        environment = {**self.environment, "VITRINE_PROGRESS": "json", "OMP_NUM_THREADS": "1"}
        process = self._spawn([*module, *arguments], environment, log)
        self._jobs.append(process)
        if self._closed:  # Ctrl-C came between the jobs
            stop(process)
        result: dict[str, Any] = {}
        for line in _lines(log, process):
            try:
                message = json.loads(line)
            except ValueError:
                continue  # what libraries print
            if "artifacts" in message:
                result = message
            elif "step" in message:
                on_progress(message)
        if process.returncode != 0 or not result:
            raise RunError(f"{name} ended with {process.returncode}: {tail(log)}")
        return result

    def _spawn(self, arguments: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return spawn([sys.executable, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT)

    def kill(self, name: str) -> None:
        """kill -9 a service and reap it."""
        process = self.services[name].process
        process.kill()
        process.wait()

    def end(self, name: str, grace_s: float = 15.0) -> int:
        """SIGTERM a service and wait for its drain; its exit code. It stays known, and may be started again."""
        return stop(self.services[name].process, grace_s=grace_s)

    def close(self) -> None:
        """Stop services and jobs, the youngest first; what does not end in its grace is killed."""
        self._closed = True
        stopping = [s.process for s in reversed(self.services.values())] + list(reversed(self._jobs))
        threads = [threading.Thread(target=stop, args=(p,), kwargs={"grace_s": 5.0}) for p in stopping]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _lines(log: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines of a growing log until its process has ended."""
    with log.open(errors="replace") as handle:
        part = ""
        while True:
            ended = process.poll() is not None
            for text in handle:
                part += text
                if part.endswith("\n"):
                    yield part
                    part = ""
            if ended:
                return
            time.sleep(0.1)


def tail(log: Path, lines: int = 15) -> str:
    """The log's path and its last lines, for an error message."""
    with log.open(errors="replace") as handle:
        last = deque(handle, maxlen=lines)
    return f"see {log}\n" + "".join(last)


def vitrine_settings(**settings: str) -> dict[str, str]:
    """Variables `VITRINE_<NAME>`, with free loopback ports for whatever listens."""
    own = {"host": "127.0.0.1", "port": "0", "metrics_port": "0", "health_port": "0", **settings}
    return {f"VITRINE_{key.upper()}": value for key, value in own.items()}
