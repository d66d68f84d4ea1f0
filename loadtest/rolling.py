"""A rolling restart under load: two replicas of every service and of the worker, each ended and started in turn."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from loadtest.clients import Fleet
from loadtest.measured import Measured
from loadtest.suite import CONCURRENCY, Suite
from vitrine.cli.bringup import start_worker
from vitrine.cli.system import RunError, System

MODULES = {"matching": ["services.matching", "server"], "ctr": ["services.ctr"], "ann": ["services.ann"]}
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
    """All phases. `events_sent` and `events_applied` are the run's, from its beginning."""

    phases: list[Phase] = field(default_factory=list)
    events_sent: int = 0
    events_applied: int = 0
    lists: int = 0

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
        events = {"events_sent": self.events_sent, "events_applied": self.events_applied}
        return {"sent": self.sent, "failed": self.failed, **events, "lists": self.lists, "phases": phases}


def restart_all(suite: Suite, show: Callable[[str], None]) -> Rolling:
    """Restart every replica of every service in turn, under the load of LOAD at half its knee.

    Raises RunError where a replica does not come back, or events are lost or counted twice.
    """
    system = suite.up.system
    for name in LOAD:
        second = _name(name, 1)
        if second not in system.services:
            show(f"starting a second {name}")
            _start(system, second)
            system.wait_serving(second)
    suite.pin()
    at = {name: f"ipv4:{_addresses(system, name)}" for name in MODULES}
    targets = replace(suite.targets(), **at)
    seen = Rolling()
    for name, kind in LOAD.items():
        with suite.new_fleet(targets) as fleet:
            warm = fleet.closed_loop(kind, CONCURRENCY, WARM_S)  # connections to all replicas, before the load
            suite.up.sent += warm.events
            rate = max(1.0, 0.5 * suite.result.stairs[kind].knee)
            seen.phases.append(_phase(suite, fleet, name, rate, show))
    suite.up.wait_applied(60)
    seen.events_sent, seen.events_applied = suite.up.sent, suite.up.applied()
    seen.lists = suite.up.store.lists()
    return seen


def _phase(suite: Suite, fleet: Fleet, name: str, rate: float, show: Callable[[str], None]) -> Phase:
    kind, system, restarted = LOAD[name], suite.up.system, []
    steps: list[Measured] = []
    errors: list[BaseException] = []

    def load() -> None:
        try:
            steps.append(fleet.until_stopped(kind, rate))
        except BaseException as error:
            errors.append(error)

    driving = threading.Thread(target=load, name="load")
    driving.start()
    try:
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
    finally:
        fleet.stop()
        driving.join()
    if errors:
        raise errors[0]
    suite.up.sent += steps[0].events
    return Phase(kind, restarted, steps[0])


def _start(system: System, replica: str, port: str = "0") -> None:
    service = replica.split("-")[0]
    if service == "worker":
        start_worker(system, replica)
    else:
        system.start(replica, MODULES[service], {"VITRINE_PORT": port})


def _name(service: str, number: int) -> str:
    return service if number == 0 else f"{service}-{number}"


def _addresses(system: System, service: str) -> str:
    return ",".join(system.services[_name(service, number)].address for number in range(REPLICAS))
