"""The whole system on this machine, from data to everybody's list: where `vitrine demo` and `loadtest` start."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import typer
from kafka import KafkaProducer
from rich.console import Console

from vitrine.api.events.v1.events_pb2 import UserEvent
from vitrine.cli.applications import SERVICES, application_environment
from vitrine.cli.panel import Panel
from vitrine.cli.system import RunError, Service, System, vitrine_settings
from vitrine.cli.training import TRAINERS, Trained, train
from vitrine.data import beauty, simulator
from vitrine.data.replay import user_events
from vitrine.errors import UnavailableError
from vitrine.matching.store import Store
from vitrine.placement import qualify
from vitrine.runtime import kafka, logs, topics
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.redis import connect

ROWS = {
    "data": "market data",
    "stack": "Kafka and Redis",
    **TRAINERS,
    "history": "history into user-events",
    "worker": "matching worker",
    "matching": "matching server",
    "ctr": "ctr server",
    "ann": "ann server",
    "lists": "lists of all users",
}


@dataclass(frozen=True)
class Options:
    """What to bring up.

    command: the one that does, "demo"; in the namespace, the log's name and messages
    data:    folder of the Beauty and clothing files; None simulates a market of `users` and `ads`
    out:     folder for the run's files
    kafka_url, redis_url: servers of one's own; "" starts them
    console: start the console too
    settings: of every process, beside those that it needs: {"drain_delay_ms": "500"}
    """

    command: str
    out: Path
    users: int
    ads: int
    seed: int
    data: Path | None = None
    kafka_url: str = ""
    redis_url: str = ""
    console: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A system that is up. `sent` counts the events that this run has put into `user-events`."""

    folder: Path
    market: Path
    store_folder: Path
    namespace: str
    system: System
    stack: EmbeddedStack
    trained: Trained
    producer: KafkaProducer
    store: Store
    sent: int = 0

    def send(self, event: UserEvent, *, wait: bool = False) -> None:
        """Append an event to `user-events`; `wait` for the broker's acknowledgement."""
        topic = qualify(self.namespace, topics.USER_EVENTS)
        sending = self.producer.send(topic, key=kafka.key_of(event.user_id), value=event.SerializeToString())
        self.sent += 1
        if wait:
            sending.get(timeout=30)

    def applied(self) -> int:
        """Events that the workers have applied, from the counters kept in the buckets."""
        return self.store.applied()

    def wait_applied(self, timeout_s: float, show: Callable[[int], None] = lambda applied: None) -> None:
        """Wait until everything sent is applied. Raises RunError where it takes longer, or some counted twice."""
        self.producer.flush()
        deadline = time.monotonic() + timeout_s
        while (applied := self.applied()) != self.sent:
            show(applied)
            if applied > self.sent:
                raise RunError(f"{applied} events applied of {self.sent} sent: some counted twice")
            if time.monotonic() > deadline:
                raise RunError(f"{applied} of {self.sent} events applied after {timeout_s:.0f} s")
            time.sleep(0.05)


@contextmanager
def bring_up(console: Console, options: Options) -> Iterator[Running]:
    """Train, publish, start and fill everything, with a panel on `console`; all of it ends with the context.

    Raises RunError where a part fails, UnavailableError where Kafka or Redis cannot be started.
    """
    if options.data is not None and not beauty.recognise(options.data):
        raise RunError(f"{options.data} does not hold the Beauty and clothing files (docs/data.md)")
    folder = _fresh(options)
    # A line of a library's on the terminal would tear the panel.
    log = folder / "logs" / f"{options.command}.log"
    logs.setup("warning", options.command, log.open("w", buffering=1))
    market, store = folder / "market", folder / "store"
    namespace = f"{options.command}-{datetime.now(UTC):%Y%m%d%H%M%S}"
    environment = {**application_environment(), **vitrine_settings(**options.settings)}
    environment |= vitrine_settings(store=str(store), namespace=namespace)
    system = System(folder / "logs", environment)
    stack = EmbeddedStack(kafka_url=options.kafka_url, redis_url=options.redis_url)
    pool = ThreadPoolExecutor(8)
    with ExitStack() as ending:
        ending.callback(pool.shutdown, wait=True, cancel_futures=True)
        ending.callback(stack.stop)
        ending.callback(system.close)
        with Panel(console, ROWS | ({"console": "console"} if options.console else {})) as panel:
            _make_market(panel, options, market)
            trained = train(system, panel, pool, market, store, namespace, options.seed)
            panel.start("stack")
            stack.start()
            system.environment |= vitrine_settings(kafka_url=stack.kafka_url, redis_url=stack.redis_url)
            topics.create(stack.kafka_url, namespace)
            panel.done("stack", stack.notice)
            producer = kafka.producer(stack.kafka_url)
            ending.callback(producer.close, timeout=5)
            lists = Store(connect(stack.redis_url), namespace)
            up = Running(folder, market, store, namespace, system, stack, trained, producer, lists)
            _replay(panel, up)
            _serve(panel, up)
            panel.start("lists")
            up.wait_applied(120, lambda n: panel.update("lists", f"{n:,} events applied", n / up.sent))
            panel.done("lists", f"{up.sent:,} events applied")
            if options.console:
                panel.start("console", "starting")
                panel.done("console", f"on http://{start_console(up).address}")
        yield up


@contextmanager
def ending(console: Console, command: str) -> Iterator[None]:
    """How a command over a system ends: 130 after Ctrl-C or SIGTERM, 1 with a line where something failed."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nstopped; nothing was left running")
        raise typer.Exit(130) from None
    except (RunError, UnavailableError) as error:
        Console(stderr=True).print(f"[red]vitrine {command}:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def start_worker(system: System, name: str = "worker") -> Service:
    """Start a matching worker. A second life under the same name takes over the first one's partitions at once."""
    member = "worker-0" if name == "worker" else name
    before = system.services.get(name)
    # Its second life has its metrics page where the first one had it, so that whoever watches it goes on.
    page = before.metrics.rpartition(":")[2] if before and before.metrics else "0"
    return system.start(
        name, ["services.matching", "worker"], {"VITRINE_WORKER_ID": member, "VITRINE_METRICS_PORT": page}
    )


def start_console(up: Running) -> Service:
    """Start the console over everything that serves now, and wait until it answers."""
    services = up.system.services
    addresses = {f"{name}_address": services[name].address for name in ("ann", "matching", "ctr")}
    pages = ",".join(f"{service.name}=http://{service.metrics}/metrics" for service in services.values())
    up.system.start("console", SERVICES["console"], vitrine_settings(metrics_pages=pages, **addresses))
    return up.system.wait_serving("console")


def _make_market(panel: Panel, options: Options, market: Path) -> None:
    panel.start("data", str(options.data or "simulated"))

    def draw(stage: str, fraction: float) -> None:
        panel.update("data", stage, fraction)

    if options.data is not None:
        beauty.convert(options.data, market, seed=options.seed, progress=draw)
    else:
        simulator.write_market(market, users=options.users, ads=options.ads, seed=options.seed, progress=draw)
    sizes = json.loads((market / "market.json").read_text())["sizes"]
    panel.done(
        "data", ", ".join(f"{sizes[k]:,} {k}" for k in ("users", "ads", "crowds", "bids", "events", "images"))
    )


def _fresh(options: Options) -> Path:
    """The run's folder, with what an earlier run left in it gone; other files in it stay.

    Raises RunError where a market or a store in it is not a run's: those have `logs` beside them.
    """
    out = options.out
    theirs = [out / name for name in ("market", "store") if (out / name).exists()]
    if theirs and not (out / "logs").is_dir():
        raise RunError(f"{theirs[0]} was not made by a {options.command} and would be replaced; give another --out")
    for name in ("market", "store", "logs", "report.html"):
        leftover = out / name
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    (out / "logs").mkdir(parents=True)
    return out.resolve()


def _replay(panel: Panel, up: Running) -> None:
    panel.start("history")
    for event in user_events(up.market / "events.parquet"):
        up.send(event)
        if up.sent % 2_000 == 0:
            panel.update("history", f"{up.sent:,} events")
    up.producer.flush()
    panel.done("history", f"{up.sent:,} events in {qualify(up.namespace, topics.USER_EVENTS)}")


def _serve(panel: Panel, up: Running) -> None:
    system, trained = up.system, up.trained
    for key in ("worker", "matching", "ctr", "ann"):
        panel.update(key, "waits for its artifacts")
    trained.catalog.result()
    trained.des.result()
    start_worker(system)
    system.start("matching", SERVICES["matching"])
    system.start("ctr", SERVICES["ctr"])
    for key in ("worker", "matching", "ctr"):
        panel.start(key, "starting")
    for key in ("worker", "matching", "ctr"):
        panel.done(key, f"serving on {system.wait_serving(key).address}")
    trained.index.result()
    system.start("ann", SERVICES["ann"])
    panel.start("ann", "starting")
    panel.done("ann", f"serving on {system.wait_serving('ann').address}")
