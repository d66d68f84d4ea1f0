"""`vitrine loadtest`: bring the embedded system up, fill it, drive it, and say what it can do."""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from loadtest import cores, plots, rolling, show
from loadtest.stair import BOUND_MS
from loadtest.suite import TITLES, Suite
from vitrine.cli.bringup import Options, bring_up, ending
from vitrine.cli.panel import Panel

# Clients hear that a server drains and leave it; this is the time they get (docs/loadtest.md, "Rolling restart").
SETTINGS = {"drain_delay_ms": "500"}
BUSY = 0.15  # of the machine, before anything of ours runs: figures will be low


def loadtest(
    out: Annotated[
        Path, typer.Option(help="folder for pictures, figures and the run's files; an earlier run's are replaced")
    ] = Path("load"),
    users: Annotated[int, typer.Option(min=100, help="users of the simulated market")] = 5_000,
    ads: Annotated[int, typer.Option(min=50, help="ads of the simulated market")] = 2_000,
    data: Annotated[
        Path | None, typer.Option(help="folder of the Beauty and clothing files; a market is simulated without it")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="length of one step of a stair")] = 1.5,
    bound_ms: Annotated[float, typer.Option(min=1, help="p99 that a step must stay under")] = BOUND_MS,
    processes: Annotated[int, typer.Option(min=1, max=64, help="generator processes that share a rate")] = 1,
    server_cores: Annotated[int, typer.Option(min=1, help="cores of the servers; the others drive them")] = 1,
    rolling_restart: Annotated[
        bool, typer.Option("--rolling/--no-rolling", help="restart two replicas of everything under load, too")
    ] = True,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    kafka_url: Annotated[
        str, typer.Option(envvar="VITRINE_KAFKA_URL", help="a Kafka of your own; one is started without it")
    ] = "",
    redis_url: Annotated[
        str, typer.Option(envvar="VITRINE_REDIS_URL", help="a Redis of your own; one is started without it")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
) -> None:
    """Load the whole system on this machine: each service's knee, latencies below it, where the time goes.

    Examples:

        vitrine loadtest

        vitrine loadtest --users 20000 --seconds 5 --json

        vitrine loadtest --no-rolling --out /tmp/load
    """
    console = Console(stderr=as_json)
    options = Options("loadtest", out, users, ads, seed, data, kafka_url, redis_url, settings=SETTINGS)
    with ending(console, "loadtest"):
        found = _run(
            console,
            options,
            cores.split(server_cores),
            rolling_restart=rolling_restart,
            seconds=seconds,
            processes=processes,
            bound_ms=bound_ms,
        )
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")


def _run(
    console: Console,
    options: Options,
    split: cores.Split,
    *,
    rolling_restart: bool,
    seconds: float,
    processes: int,
    bound_ms: float,
) -> dict[str, Any]:
    started, busy = time.monotonic(), cores.busy()
    if busy > BUSY:
        console.print(
            f"[yellow]the machine is busy already ({busy:.0%} of its cores): knees will be low, latencies high[/]"
        )
    if not split.apart:
        console.print("[yellow]one core alone: servers and generator share it, and the knee is of both[/]")
    with bring_up(console, options) as up:
        rows = {**TITLES, **({"rolling": "rolling restart"} if rolling_restart else {})}
        with Panel(console, rows) as panel:
            lines = _Lines(panel)
            suite = Suite(
                up,
                split,
                seconds=seconds,
                processes=processes,
                seed=options.seed,
                bound_ms=bound_ms,
                show=lines.show,
            )
            try:
                result = suite.run()
                for kind, stair in result.stairs.items():
                    panel.done(kind, f"knee {stair.knee:,.0f}/s")
                restarts = None
                if rolling_restart:
                    panel.start("rolling")
                    restarts = rolling.restart_all(suite, lambda text: panel.update("rolling", text))
                    panel.done("rolling", f"failed {restarts.failed} of {restarts.sent:,} calls")
                up.wait_applied(60)
            finally:
                suite.close()
        show.knees(console, result, split)
        show.shares(console, result)
        stairs = {TITLES[kind]: stair for kind, stair in result.stairs.items()}
        at = {TITLES[kind]: steps for kind, steps in result.steps.items()}
        pictures = plots.write(stairs, at, up.folder)
        found = {
            "machine": _machine(busy),
            "server_cores": split.servers,
            "generator_cores": split.clients,
            "data": "beauty and clothing" if options.data else "simulated",
            "kafka": up.stack.kafka_kind,
            "redis": up.stack.redis_kind,
            "bound_ms": bound_ms,
            **show.facts(result, split),
            "events_sent": up.sent,
            "events_applied": up.applied(),
            "lists_stored": up.store.lists(),
        }
        if restarts is not None:
            show.rolling(console, restarts)
            found |= {"rolling": restarts.summary(), "failed": restarts.failed}
        found["seconds"] = round(time.monotonic() - started, 1)
        (up.folder / "loadtest.json").write_text(json.dumps(found, indent=1) + "\n")
    for file in (*pictures, options.out / "loadtest.json"):
        console.print(f"written: {file}", highlight=False, soft_wrap=True)
    return found


class _Lines:
    """The suite's progress on a panel, whose rows begin when they are first told of."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._started: set[str] = set()

    def show(self, kind: str, text: str, fraction: float | None) -> None:
        if kind not in self._started:
            self._started.add(kind)
            self._panel.start(kind, text)
        self._panel.update(kind, text, fraction)


def _machine(busy: float) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "processor": _processor(),
        "python": platform.python_version(),
        "busy_at_start": round(busy, 3),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_show_locals=False)
    app.command()(loadtest)
    app()
