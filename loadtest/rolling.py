"""A rolling restart under load: two replicas of every service and of the worker, each ended and started in turn."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from loadtest.clients import Fleet
from loadtest.measured import Measured
from loadtest.suite import CONCURRENCY, Suite
from vitrine.cli.applications import SERVICES
from vitrine.cli.bringup import start_worker
from vitrine.cli.system import RunError, System

LOAD = {"matching": "ad_flow", "ctr": "ad_flow", "worker": "ad_flow", "ann": "search"}
SETTLE_S = 1.0  # load before, between and after restarts
REPLICAS = 2
WARM_S = 1.0


@dataclass(frozen=True)
class Phase:
    """One service: what was restarted, and what the load saw meanwhile."""

    kind: str
    restarted: list[str]
    step: Measured


@dataclass
class Rolling:
    """All phases."""

    phases: list[Phase] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return sum(phase.step.sent for phase in self.phases)

    @property
    def failed(self) -> int:
        return sum(phase.step.failed for phase in self.phases)

    def summary(self) -> dict[str, Any]:
        phases = [
            {"restarted": phase.restarted, "load": phase.kind, **phase.step.summary()} for phase in self.phases
        ]
        return {"sent": self.sent, "failed": self.failed, "phases": phases}


def restart_all(suite: Suite, show: Callable[[str], None]) -> Rolling:
    """Restart every replica of every service in turn, under the load of LOAD at half its knee.

    Raises RunError where a replica does not come back.
    """
    system = suite.up.system
    for name in LOAD:
        second = _name(name, 1)
        show(f"starting a second {name}")
        _start(system, second)
        system.wait_serving(second)
    suite.pin()
    at = {name: f"ipv4:{_addresses(system, name)}" for name in SERVICES if name in LOAD}
    targets = replace(suite.targets(), **at)
    seen = Rolling()
    for name, kind in LOAD.items():
        with suite.new_fleet(targets) as fleet:
            warm = fleet.closed_loop(kind, CONCURRENCY, WARM_S)  # connections to all replicas, before the load
            suite.up.sent += warm.events
            rate = max(1.0, 0.5 * suite.result.stairs[kind].knee)
            seen.phases.append(_phase(suite, fleet, name, rate, show))
    return seen


def _phase(suite: Suite, fleet: Fleet, name: str, rate: float, show: Callable[[str], None]) -> Phase:
    kind, system, restarted = LOAD[name], suite.up.system, []
    with fleet.driving(kind, rate) as driven:
        time.sleep(SETTLE_S)
        for number in range(REPLICAS):
            replica = _name(name, number)
            show(f"restarting {replica}")
            port = system.services[replica].address.rsplit(":", 1)[1]
            code = system.end(replica)
            if code != 0:
                raise RunError(f"{replica} ended with {code} on SIGTERM; see {system.services[replica].log}")
            _start(system, replica, port)  # on the generator's cores, where it takes no time from who serves on
            system.wait_serving(replica)
            suite.pin_service(replica)
            restarted.append(replica)
            time.sleep(SETTLE_S)
    suite.up.sent += driven.result().events
    return Phase(kind, restarted, driven.result())


def _start(system: System, replica: str, port: str = "0") -> None:
    service = replica.split("-")[0]
    if service == "worker":
        start_worker(system, replica)
    else:
        system.start(replica, SERVICES[service], {"VITRINE_PORT": port})


def _name(service: str, number: int) -> str:
    return service if number == 0 else f"{service}-{number}"


def _addresses(system: System, service: str) -> str:
    return ",".join(system.services[_name(service, number)].address for number in range(REPLICAS))
