"""The demo from top to bottom: data, trainers, servers, history, walk, table, report."""

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console

from vitrine.artifacts import ArtifactStore
from vitrine.cli.applications import application_environment, applications_root
from vitrine.cli.demo import report, show
from vitrine.cli.demo.market import open_view
from vitrine.cli.demo.panel import Panel
from vitrine.cli.demo.training import TRAINERS, Trained, train
from vitrine.cli.demo.walk import Stage, Walk, walk
from vitrine.cli.system import DemoError, System, vitrine_settings
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


def demo(
    data: Annotated[
        Path | None, typer.Option(help="folder of the Beauty and clothing files; a market is simulated without it")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="folder for the run's files; what an earlier run left is replaced")
    ] = Path("demo"),
    users: Annotated[int, typer.Option(min=100, help="users of the simulated market")] = 5_000,
    ads: Annotated[int, typer.Option(min=50, help="ads of the simulated market")] = 2_000,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    kafka_url: Annotated[
        str, typer.Option(envvar="VITRINE_KAFKA_URL", help="a Kafka of your own; one is started without it")
    ] = "",
    redis_url: Annotated[
        str, typer.Option(envvar="VITRINE_REDIS_URL", help="a Redis of your own; one is started without it")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object as the last line, then stop")
    ] = False,
) -> None:
    """Train, publish, serve and walk through the whole system on this machine.

    On a terminal it stays up until Ctrl-C; with --json, or without a terminal, it ends by itself.

    Examples:

        vitrine demo

        vitrine demo --data ../shared/data

        vitrine demo --users 20000 --json
    """
    options = Options(data, out, users, ads, seed, kafka_url, redis_url, stay=not as_json)
    console = Console(stderr=as_json)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        facts = _run(console, options)
    except KeyboardInterrupt:
        console.print("\nstopped; nothing was left running")
        raise typer.Exit(130) from None
    except (DemoError, UnavailableError) as error:
        Console(stderr=True).print(f"[red]vitrine demo:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")


@dataclass(frozen=True)
class Options:
    """What the command was asked for; `stay`: keep everything up at the end, where there is a terminal."""

    data: Path | None
    out: Path
    users: int
    ads: int
    seed: int
    kafka_url: str
    redis_url: str
    stay: bool


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(console: Console, options: Options) -> dict[str, Any]:
    started = time.monotonic()
    if options.data is not None and not beauty.recognise(options.data):
        raise DemoError(f"{options.data} does not hold the Beauty and clothing files (docs/data.md)")
    folder = _fresh(options.out)
    # A line of a library's on the terminal would tear the panel.
    logs.setup("warning", "demo", (folder / "logs" / "demo.log").open("w", buffering=1))
    market, store = folder / "market", folder / "store"
    namespace = f"demo-{datetime.now(UTC):%Y%m%d%H%M%S}"
    environment = {**application_environment(), **vitrine_settings(store=str(store), namespace=namespace)}
    system = System(folder / "logs", environment)
    stack = EmbeddedStack(kafka_url=options.kafka_url, redis_url=options.redis_url)
    pool = ThreadPoolExecutor(8)
    with ExitStack() as ending:
        ending.callback(pool.shutdown, wait=True, cancel_futures=True)
        ending.callback(stack.stop)
        ending.callback(system.close)
        with Panel(console, ROWS) as panel:
            _make_market(panel, options, market)
            trained = train(system, panel, pool, market, store, namespace, options.seed)
            panel.start("stack")
            stack.start()
            system.environment |= vitrine_settings(kafka_url=stack.kafka_url, redis_url=stack.redis_url)
            topics.create(stack.kafka_url, namespace)
            panel.done("stack", stack.notice)
            stage = _stage(console, system, stack, market, namespace, options.seed)
            ending.callback(stage.producer.close, timeout=5)
            _replay(panel, stage, market)
            _serve(panel, system, trained)
            panel.start("lists")
            stage.wait_applied(120, lambda n: panel.update("lists", f"{n:,} events applied", n / stage.sent))
            panel.done("lists", f"{stage.sent:,} events applied")
        seen = walk(stage)
        show.lists(console, stage.market, seen)
        facts = _facts(options, stack, trained, seen, stage, started)
        page = folder / "report.html"
        report.write(page, stage.market, seen, facts, ArtifactStore(str(store), namespace=namespace).list())
        show.table(console, facts, seen)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
        if options.stay and console.is_terminal and sys.stdin.isatty():
            show.addresses(console, system, stack, namespace, seen.user_id)
            while True:
                time.sleep(3600)
        return facts


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


def _fresh(out: Path) -> Path:
    """The demo's folder, with what an earlier demo left in it gone; other files in it stay.

    Raises DemoError where a market or a store in it is not a demo's: those have `logs` beside them.
    """
    theirs = [out / name for name in ("market", "store") if (out / name).exists()]
    if theirs and not (out / "logs").is_dir():
        raise DemoError(f"{theirs[0]} was not made by a demo and would be replaced; give another --out")
    for name in ("market", "store", "logs", "report.html"):
        leftover = out / name
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    (out / "logs").mkdir(parents=True)
    return out.resolve()


def _stage(
    console: Console, system: System, stack: EmbeddedStack, market: Path, namespace: str, seed: int
) -> Stage:
    def restart_worker() -> None:
        _start_worker(system)
        system.wait_serving("worker")

    def run_auction(user_id: int) -> tuple[int, str]:
        services = system.services
        arguments = ["--matching", services["matching"].address, "--ctr", services["ctr"].address]
        arguments += ["--kafka", stack.kafka_url, "--topic", qualify(namespace, "user-events")]
        arguments += ["--user", str(user_id), "--click"]
        example = [sys.executable, str(applications_root() / "examples" / "ad_frontend.py"), *arguments]
        done = subprocess.run(
            example, env=system.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise DemoError(f"examples/ad_frontend.py ended with {done.returncode}: {done.stderr}")
        return 2, done.stdout.strip()  # an impression and its click

    return Stage(
        system=system,
        market=open_view(market, seed),
        namespace=namespace,
        producer=kafka.producer(stack.kafka_url),
        store=Store(connect(stack.redis_url), namespace),
        restart_worker=restart_worker,
        run_auction=run_auction,
        say=lambda text: console.print(text, soft_wrap=True),
    )


def _start_worker(system: System) -> None:
    # One worker id for both lives: with static membership the second takes over the first one's partitions at once.
    system.start("worker", ["services.matching", "worker"], {"VITRINE_WORKER_ID": "worker-0"})


def _replay(panel: Panel, stage: Stage, market: Path) -> None:
    panel.start("history")
    for event in user_events(market / "events.parquet"):
        stage.send(event)
        if stage.sent % 2_000 == 0:
            panel.update("history", f"{stage.sent:,} events")
    stage.producer.flush()
    panel.done("history", f"{stage.sent:,} events in {qualify(stage.namespace, 'user-events')}")


def _serve(panel: Panel, system: System, trained: Trained) -> None:
    for key in ("worker", "matching", "ctr", "ann"):
        panel.update(key, "waits for its artifacts")
    trained.catalog.result()
    trained.des.result()
    _start_worker(system)
    system.start("matching", ["services.matching", "server"])
    system.start("ctr", ["services.ctr"])
    for key in ("worker", "matching", "ctr"):
        panel.start(key, "starting")
    for key in ("worker", "matching", "ctr"):
        panel.done(key, f"serving on {system.wait_serving(key).address}")
    trained.index.result()
    system.start("ann", ["services.ann"])
    panel.start("ann", "starting")
    panel.done("ann", f"serving on {system.wait_serving('ann').address}")


def _facts(
    options: Options, stack: EmbeddedStack, trained: Trained, seen: Walk, stage: Stage, started: float
) -> dict[str, Any]:
    des, index = trained.des.result()["metrics"], trained.index.result()["metrics"]
    return {
        "data": "beauty and clothing" if options.data else "simulated",
        **seen.facts,
        "same_category_by_chance": index["same_category_by_chance"],
        "same_category_by_pixels": index["same_category_by_pixels"],
        "ctr_auc": des["ctr_auc"],
        "auc_by_popularity": des["auc_by_popularity"],
        "auc_by_crowd_overlap": des["auc_by_crowd_overlap"],
        "kafka": stack.kafka_kind,
        "redis": stack.redis_kind,
        "dead_letters": _records(stack.kafka_url, qualify(stage.namespace, "dead-letters")),
        "seconds": round(time.monotonic() - started, 1),
    }


def _records(kafka_url: str, topic: str) -> int:
    """Records ever appended to a topic; 0 where it does not exist, as on the in-memory broker before the first."""
    consumer = KafkaConsumer(**kafka.parse_url(kafka_url).kwargs(), enable_auto_commit=False)
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        return sum(consumer.end_offsets(partitions).values()) if partitions else 0
    finally:
        consumer.close()
