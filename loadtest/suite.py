"""What `vitrine loadtest` measures of a system that is up: limit, knees, latencies, shares."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, median

import psutil

from loadtest import cores, shares
from loadtest.clients import Fleet
from loadtest.measured import Measured
from loadtest.shares import Shares
from loadtest.stair import Stair, climb_together
from loadtest.traffic import Population, Targets, build
from vitrine.channels import Security
from vitrine.cli.applications import SERVICES
from vitrine.cli.bringup import Running
from vitrine.cli.system import RunError
from vitrine.placement import qualify
from vitrine.runtime import topics

TITLES = {
    "echo": "echo",
    "getmatches": "GetMatches",
    "score": "Score",
    "search": "Search",
    "ad_flow": "ad front end",
}
SERVERS = {
    "echo": ("echo",),
    "getmatches": ("matching",),
    "score": ("ctr",),
    "search": ("ann",),
    "ad_flow": ("matching", "ctr", "worker"),
}
TIMED = ("getmatches", "score", "search")
CONCURRENCY = 32  # callers of the closed loop: enough to keep a server busy, few enough not to be refused
ROUNDS = 6  # of echo and GetMatches in turn, each first in every other
START = 0.6  # of the closed loop's throughput: where a stair begins
FRACTIONS = {"at_50": 0.5, "at_80": 0.8}

Show = Callable[[str, str, float | None], None]  # kind, what is going on, how far


@dataclass
class Result:
    """What a run measured, by kind of call.

    limits:  calls a second of CONCURRENCY callers in a closed loop, one a round
    cpu_us:  CPU of the servers a call in those rounds, microseconds
    steps:   at the fractions of the knee
    busiest: cores that the servers used at most, of those they had
    others:  cores that neither servers nor generator used, one a step; Kafka and Redis take little
    """

    stairs: dict[str, Stair] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, dict[str, Measured]] = field(default_factory=dict)
    shares: dict[str, Shares] = field(default_factory=dict)
    busiest: dict[str, float] = field(default_factory=dict)
    generator: dict[str, float] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    answer_bytes: int = 0

    @property
    def share_of_echo(self) -> float:
        """GetMatches' throughput over echo's: the median over rounds that ran one after the other."""
        rounds = zip(self.limits["getmatches"], self.limits["echo"], strict=True)
        return median(ours / limit for ours, limit in rounds if limit) if self.limits["echo"] else 0.0

    def limited_by(self, kind: str, split: cores.Split) -> str:
        """What ran out at the knee. "neither": others used the machine, or calls waited for each other."""
        if self.busiest.get(kind, 0.0) >= 0.85 * len(split.servers):
            return "servers"
        return "generator" if self.generator.get(kind, 0.0) >= 0.85 * len(split.clients) else "neither"


class Suite:
    """The measurements, in order; `show` is told how each goes."""

    def __init__(
        self,
        up: Running,
        split: cores.Split,
        *,
        seconds: float,
        processes: int,
        seed: int,
        bound_ms: float,
        show: Show,
    ) -> None:
        self.up, self.split, self.result = up, split, Result()
        self._seconds, self._bound_ms, self._show = seconds, bound_ms, show
        self._processes, self._seed = processes, seed
        self._start_echo()
        self.pin()
        self.fleet = self.new_fleet(self.targets())

    def targets(self) -> Targets:
        """One server of each service."""
        at = {name: service.address for name, service in self.up.system.services.items()}
        topic = qualify(self.up.namespace, topics.USER_EVENTS)
        return Targets(at["matching"], at["ctr"], at["ann"], at["echo"], self.up.stack.kafka_url, topic)

    def new_fleet(self, targets: Targets) -> Fleet:
        """Generators for these targets, on the cores that are theirs."""
        return Fleet(
            targets,
            processes=self._processes,
            cores=self.split.clients,
            market=self.up.market,
            seed=self._seed,
            environment=self.up.system.environment,
        )

    def pin(self) -> None:
        """Servers and worker on their cores; what else this process started, and itself, on the others."""
        servers = {service.process.pid for service in self.up.system.services.values()}
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            cores.pin(process.pid, self.split.servers if process.pid in servers else self.split.clients)

    def pin_service(self, name: str) -> None:
        """A service that was started since `pin`."""
        cores.pin(self.up.system.services[name].process.pid, self.split.servers)

    def run(self) -> Result:
        """Everything but the rolling restart."""
        self._limits()
        self._climb()
        self._fractions()
        for kind in TIMED:
            self._share(kind)
        return self.result

    def drive(self, kind: str, rate: float, seconds: float | None = None) -> Measured:
        """One step; what the servers and the generator used of their cores is noted."""
        step = self._noting(kind, lambda: self.fleet.open_loop(kind, rate, seconds or self._seconds))
        self.up.sent += step.events
        return step

    def close(self) -> None:
        self.fleet.close()

    def _limits(self) -> None:
        """The closed-loop limits; echo and GetMatches in turn, several times."""
        for turn in range(ROUNDS + 1):
            for kind in ("echo", "getmatches") if turn % 2 else ("getmatches", "echo"):
                self._show(kind, f"closed loop, round {max(turn, 1)} of {ROUNDS}", turn / (ROUNDS + 1))
                self._limit(kind, keep=turn > 0)  # the first warms up
        for kind in ("score", "search", "ad_flow"):
            self._show(kind, "closed loop", 0.0)
            self._limit(kind, keep=True)

    def _limit(self, kind: str, *, keep: bool) -> None:
        before = self._cpu(kind)
        step = self.fleet.closed_loop(kind, CONCURRENCY, min(self._seconds, 1.5))
        self.up.sent += step.events
        if step.failed:
            raise RunError(f"{kind}: calls failed in a closed loop of {CONCURRENCY}: {dict(step.failures)}")
        if keep:
            self.result.limits.setdefault(kind, []).append(step.achieved)
            used = (self._cpu(kind) - before) / max(1, step.answered)
            self.result.cpu_us.setdefault(kind, []).append(used * 1e6)

    def _climb(self) -> None:
        for kind, rates in self.result.limits.items():
            self.result.stairs[kind] = Stair(START * median(rates), self._bound_ms)

        def show(kind: str, stair: Stair) -> None:
            step = stair.steps[-1]
            word = "held" if stair.held(step) else "did not hold"
            text = f"{step.rate:,.0f}/s {word}, p99 {step.ms(99):.1f} ms; knee {stair.knee:,.0f}/s so far"
            self._show(kind, text, min(0.9, len(stair.steps) / 10))

        climb_together(self.result.stairs, self.drive, show)

    def _fractions(self) -> None:
        for name, fraction in FRACTIONS.items():
            for kind, stair in self.result.stairs.items():
                if stair.knee and kind != "echo":
                    self._show(kind, f"{fraction:.0%} of the knee", 0.95)
                    step = self.drive(kind, fraction * stair.knee, 2 * self._seconds)
                    self.result.steps.setdefault(kind, {})[name] = step
        for kind, stair in self.result.stairs.items():
            self._show(kind, f"knee {stair.knee:,.0f}/s", 1.0)

    def _share(self, kind: str) -> None:
        """A server of its own with a stopwatch in it, driven at half the knee."""
        self._show(kind, "shares of CPU time", None)
        system, name = self.up.system, f"{kind}-timed"
        file = self.up.folder / "logs" / f"{name}.json"
        service = system.start(name, ["loadtest.timed", str(file), *SERVICES[SERVERS[kind][0]]])
        service = system.wait_serving(name)
        self.pin_service(name)
        targets = {**vars(self.targets()), SERVERS[kind][0]: service.address}
        rate = max(0.5 * self.result.stairs[kind].knee, 10.0)
        with self.new_fleet(Targets(**targets)) as fleet:
            fleet.open_loop(kind, 10.0, 0.2)  # makes its requests, which is not to be counted
            self.result.shares[kind] = shares.measure(
                service.process.pid,
                file,
                lambda: fleet.open_loop(kind, rate, 2 * self._seconds),
                lambda: system.end(name),
            )
        self._show(kind, f"knee {self.result.stairs[kind].knee:,.0f}/s", 1.0)

    def _noting(self, kind: str, drive: Callable[[], Measured]) -> Measured:
        machine, before, begun = cores.used(), self._cpu(kind), time.monotonic()
        step = drive()
        took = time.monotonic() - begun
        used = (self._cpu(kind) - before) / took
        self.result.others.append(max(0.0, (cores.used() - machine) / took - used - step.client_cpu))
        self.result.busiest[kind] = max(self.result.busiest.get(kind, 0.0), used)
        self.result.generator[kind] = max(self.result.generator.get(kind, 0.0), step.client_cpu)
        return step

    def _cpu(self, kind: str) -> float:
        services = self.up.system.services
        return sum(sum(cores.cpu_seconds(services[name].process.pid)) for name in SERVERS[kind])

    def _start_echo(self) -> None:
        """Answers as large as GetMatches' are on average."""
        matching = self.up.system.services["matching"].address
        people = Population.of_market(self.up.market)
        call = build("getmatches", Targets(matching), people, seed=self._seed, security=Security.from_environment())
        size = round(mean(len(call.send(number).result()) for number in range(100)))
        self.result.answer_bytes = size
        self.up.system.start("echo", ["loadtest.echo"], {"VITRINE_ANSWER_BYTES": str(size)})
        self.up.system.wait_serving("echo")
