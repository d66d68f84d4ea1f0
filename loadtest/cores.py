"""Which cores run what: servers and generator apart, so that neither's time is the other's."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Split:
    """Cores of the servers under test, and those of the generator, Kafka and Redis; the same where there is one."""

    servers: tuple[int, ...]
    clients: tuple[int, ...]

    @property
    def apart(self) -> bool:
        return not set(self.servers) & set(self.clients)


def split(server_cores: int = 1) -> Split:
    """The last `server_cores` cores that this process may use for the servers, the others for the generator."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    if len(cores) < 2:
        return Split(cores, cores)
    count = min(server_cores, len(cores) - 1)
    return Split(cores[-count:], cores[:-count])


def pin(pid: int, cores: tuple[int, ...]) -> None:
    """Keep a process, every thread that it has or will have, on `cores`; one that has ended is passed over."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:
            continue  # the thread has ended


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(user, system) CPU seconds that a process has used; zeros where it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    return times.user, times.system


def used() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def busy(seconds: float = 1.0) -> float:
    """Share of the machine's cores in use over the next `seconds`, 0 to 1."""
    return float(psutil.cpu_percent(seconds)) / 100
