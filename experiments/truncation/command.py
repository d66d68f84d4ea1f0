"""The experiment from top to bottom: seeds, one after the other and each kept, then table, plots and page."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.truncation import calibration, seeds
from experiments.truncation.calibration import Calibration
from experiments.truncation.latency import MEASURED
from experiments.truncation.results import conclude
from experiments.truncation.settings import FULL, QUICK, Sizes, Staleness
from experiments.truncation.table import show
from trainers.runtime.progress import Progress

FORM = 2
"""Of a seed's figures; raised where a change of the code changes them, so that no old ones are read."""


def main(
    seeds_: Annotated[
        int | None, typer.Option("--seeds", min=1, help="how many markets; 3 with --quick, 10 without")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="small markets, for a look")] = False,
    out: Annotated[
        Path, typer.Option(help="folder of the results; a run that was stopped goes on from what is there")
    ] = Path("truncation"),
    staleness_p50_ms: Annotated[
        float,
        typer.Option(min=0.001, help="from an event to its user's list, median; docs/matching.md has it measured"),
    ] = Staleness().p50_ms,
    staleness_p99_ms: Annotated[float, typer.Option(min=0.001, help="its 99th percentile")] = Staleness().p99_ms,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
) -> None:
    """Replay simulated markets under online matching with cut-offs, and under near-line matching without.

    Writes results.json, PNG plots and index.html into --out. Ctrl-C keeps the seeds that are done.

    Examples:

        python -m experiments.truncation

        python -m experiments.truncation --quick --out /tmp/look
    """
    if staleness_p99_ms < staleness_p50_ms:
        raise typer.BadParameter(
            f"{staleness_p99_ms} is below the median, {staleness_p50_ms}", param_hint="--staleness-p99-ms"
        )
    from experiments.truncation import page, plots  # matplotlib, which only this end needs

    sizes, stale = (QUICK if quick else FULL), Staleness(staleness_p50_ms, staleness_p99_ms)
    count = seeds_ or (3 if quick else 10)
    found = calibration.load(sizes)
    try:
        figures = run_seeds(out, sizes, found, stale, count)
    except KeyboardInterrupt:
        sys.stderr.write(f"truncation: stopped; the seeds that are done lie in {out}, the same command goes on\n")
        raise typer.Exit(130) from None
    results = conclude(figures, sizes, found, stale)
    told = {**results.to_json(), "processor_seconds": round(sum(f["processor_seconds"] for f in figures), 1)}
    (out / "results.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    pictures = plots.pictures(results)
    for name, picture in pictures.items():
        plots.png(picture, out / f"{name}.png")
    page.write(out / "index.html", results, pictures)
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console = Console(stderr=as_json, width=130)
    show(console, results)
    console.print(
        f"page: {out / 'index.html'}; plots: {', '.join(f'{name}.png' for name in pictures)}", soft_wrap=True
    )
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")


def run_seeds(out: Path, sizes: Sizes, found: Calibration, stale: Staleness, count: int) -> list[dict[str, Any]]:
    """Figures of seeds 1 to `count`, from files where an earlier run of the same settings left them."""
    folder = out / "seeds" / fingerprint(sizes, found, stale)
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    each = seeds.steps(found)
    with Progress("truncation", count * each) as progress:
        for n in range(count):
            seed, file = n + 1, folder / f"{n + 1}.json"
            if file.exists():
                figures.append(json.loads(file.read_text("utf-8")))
                progress.update((n + 1) * each, stage=f"seed {seed} was there")
                continue
            done = n * each

            def tick(name: str, seed: int = seed) -> None:
                nonlocal done
                progress.update(done, stage=f"seed {seed}: {name}")
                done += 1

            began = time.process_time()
            figure = seeds.run(sizes, found, seed, stale, tick)
            figure["processor_seconds"] = round(time.process_time() - began, 2)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(figure) + "\n", "utf-8")
            part.rename(file)  # whole or not at all
            figures.append(figure)
        progress.update(count * each, stage="done")
    return figures


def fingerprint(sizes: Sizes, found: Calibration, stale: Staleness) -> str:
    """Of all that a seed's figures depend on."""
    parts = (FORM, asdict(sizes), found.to_json()["best"], asdict(MEASURED), asdict(stale))
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()
