"""The demo from top to bottom: data, trainers, servers, history, walk, table, report."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vitrine.artifacts import ArtifactStore
from vitrine.cli.bringup import Options, Running, bring_up, ending
from vitrine.cli.demo import show
from vitrine.cli.demo.market import open_view
from vitrine.cli.demo.walk import Stage, Walk, walk
from vitrine.placement import qualify
from vitrine.runtime import topics


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

    On a terminal it stays up until Ctrl-C, with the console in the browser; with --json, or without a terminal, it
    ends by itself.

    Examples:

        vitrine demo

        vitrine demo --data ../shared/data

        vitrine demo --users 20000 --json
    """
    console = Console(stderr=as_json)
    stay = not as_json and console.is_terminal and sys.stdin.isatty()
    options = Options("demo", out, users, ads, seed, data, kafka_url, redis_url, console=stay)
    with ending(console, "demo"):
        facts = _run(console, options)
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")


def _run(console: Console, options: Options) -> dict[str, Any]:
    """The run's facts; where there is a console, everything stays up at the end."""
    from vitrine.cli.demo import report  # and so matplotlib, which an image that only serves has not

    started = time.monotonic()
    with bring_up(console, options) as up:
        stage = Stage(up, open_view(up.market, options.seed), lambda text: console.print(text, soft_wrap=True))
        seen = walk(stage)
        show.lists(console, stage.market, seen)
        facts = _facts(options, up, seen, started)
        page = up.folder / "report.html"
        artifacts = ArtifactStore(str(up.store_folder), namespace=up.namespace).list()
        report.write(page, stage.market, seen, facts, artifacts)
        show.table(console, facts, seen)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
        if options.console:
            show.addresses(console, up.system, up.stack, up.namespace, seen.user_id)
            while True:
                time.sleep(3600)
        return facts


def _facts(options: Options, up: Running, seen: Walk, started: float) -> dict[str, Any]:
    des, index = up.trained.des.result()["metrics"], up.trained.index.result()["metrics"]
    return {
        "data": "beauty and clothing" if options.data else "simulated",
        **seen.facts,
        "same_category_by_chance": index["same_category_by_chance"],
        "same_category_by_pixels": index["same_category_by_pixels"],
        "ctr_auc": des["ctr_auc"],
        "auc_by_popularity": des["auc_by_popularity"],
        "auc_by_crowd_overlap": des["auc_by_crowd_overlap"],
        "kafka": up.stack.kafka_kind,
        "redis": up.stack.redis_kind,
        "dead_letters": topics.records(up.stack.kafka_url, qualify(up.namespace, topics.DEAD_LETTERS)),
        "seconds": round(time.monotonic() - started, 1),
    }
