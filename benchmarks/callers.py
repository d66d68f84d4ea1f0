"""What one caller at ten times its limit does to the others: their p99 with it and without, on one real ctr server.

    python -m benchmarks.callers             # a table
    python -m benchmarks.callers --json      # the last line is one JSON object

Open-loop Score calls of 200 ads over TCP (Poisson arrivals, latency from the scheduled send), by one well-behaved
caller and one that is not, each in a process of its own. Three conditions take turns, and the figures are medians
over rounds: the well-behaved alone; beside a caller who sends ten times its limit; and beside the same sender
without a limit, which is what the limit is for. The last figure is the check's own cost, on a file of 100 callers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import timeit
from pathlib import Path

from benchmarks.measure import table
from loadtest.clients import Fleet
from loadtest.measured import Measured
from loadtest.traffic import Targets
from tests.ctr_kit import random_model
from vitrine.artifacts import ArtifactStore
from vitrine.cli.callers import new_entry
from vitrine.cli.system import System, vitrine_settings
from vitrine.ctr import model
from vitrine.runtime.callers import Callers

SCORE = "vitrine.api.ctr.v1.CtrService/Score"
OVER = 10  # times its limit
ADS = 2_000


def measure(
    rate: float, limit: float, seconds: float, rounds: int
) -> dict[str, list[tuple[Measured, Measured | None]]]:
    """Steps of the well-behaved and of the other caller, by condition."""
    conditions = ("alone", "limited", "unlimited")
    found: dict[str, list[tuple[Measured, Measured | None]]] = {name: [] for name in conditions}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_model(ads=ADS).write(folder / "model")
        ArtifactStore(str(folder / "store")).publish(model.KIND, folder / "model", schema=model.SCHEMA)
        limits = {"good": None, "limited": limit, "unlimited": None}
        environments = {}
        for name, rate_per_s in limits.items():
            token, entry = new_entry(name, [SCORE], rate_per_s=rate_per_s)
            (folder / f"{name}.token").write_text(token)
            environments[name] = {**os.environ, "VITRINE_CLIENT_TOKEN_FILE": str(folder / f"{name}.token")}
            with (folder / "callers.toml").open("a") as callers:
                callers.write(entry)
        settings = vitrine_settings(store=str(folder / "store"), callers=str(folder / "callers.toml"))
        system = System(folder, {**os.environ, **settings})
        try:
            system.start("ctr", ["services.ctr"])
            targets = Targets(ctr=system.wait_serving("ctr").address)
            with (
                Fleet(targets, users=ADS, environment=environments["good"]) as good,
                Fleet(targets, users=ADS, seed=7, environment=environments["limited"]) as limited,
                Fleet(targets, users=ADS, seed=7, environment=environments["unlimited"]) as unlimited,
            ):
                others = {"alone": None, "limited": limited, "unlimited": unlimited}
                for turn in range(rounds + 1):  # the first does not count
                    for name, other in others.items():
                        step = _side_by_side(good, other, rate, limit * OVER, seconds)
                        if turn:
                            found[name].append(step)
                    print(f"callers: round {turn} of {rounds}", file=sys.stderr, flush=True)
        finally:
            system.close()
    return found


def _side_by_side(
    good: Fleet, other: Fleet | None, rate: float, other_rate: float, seconds: float
) -> tuple[Measured, Measured | None]:
    if other is None:
        return good.open_loop("score", rate, seconds), None
    with other.driving("score", other_rate) as noise:
        step = good.open_loop("score", rate, seconds)
    return step, noise.result()


def check_us() -> float:
    """Microseconds that the check of one call takes."""
    with tempfile.TemporaryDirectory() as scratch:
        made = [new_entry(f"caller{n}", [SCORE, "console/*"], rate_per_s=1e9) for n in range(100)]
        file = Path(scratch) / "callers.toml"
        file.write_text("\n".join(entry for _, entry in made))
        callers = Callers(file, every_s=3600)
        header = f"Bearer {made[50][0]}"
        number = 20_000
        seconds = min(timeit.repeat(lambda: callers.admit(header, SCORE), number=number, repeat=7))
        callers.close()
    return seconds / number * 1e6


def figures(found: dict[str, list[tuple[Measured, Measured | None]]]) -> dict[str, float | int]:
    """Medians over rounds, and over each round's own ratio to the well-behaved alone."""
    told: dict[str, float | int] = {}
    for name, steps in found.items():
        for percentile in (50, 99):
            told[f"{name}_p{percentile}_ms"] = round(statistics.median(s.ms(percentile) for s, _ in steps), 3)
        told[f"{name}_failed"] = sum(step.failed for step, _ in steps)
    for name in ("limited", "unlimited"):
        ratios = [
            step.ms(99) / quiet.ms(99) for (step, _), (quiet, _) in zip(found[name], found["alone"], strict=True)
        ]
        told[f"{name}_p99_ratio"] = round(statistics.median(ratios), 2)
        others = [other for _, other in found[name] if other is not None]
        refused = sum(other.failures["RESOURCE_EXHAUSTED"] for other in others)
        told[f"{name}_other_rate"] = round(statistics.median(other.offered for other in others), 1)
        told[f"{name}_other_refused"] = round(refused / max(1, sum(other.sent for other in others)), 3)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=150.0, help="calls a second of the well-behaved caller")
    parser.add_argument("--limit", type=float, default=100.0, help=f"of the other, who sends {OVER} times as many")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    told = figures(measure(options.rate, options.limit, options.seconds, options.rounds))
    told["check_us"] = round(check_us(), 2)
    rows = [
        {
            "the others": name,
            "p50 ms": told[f"{name}_p50_ms"],
            "p99 ms": told[f"{name}_p99_ms"],
            "p99, times": told.get(f"{name}_p99_ratio", 1.0),
            "failed": told[f"{name}_failed"],
            "its calls/s": told.get(f"{name}_other_rate", 0.0),
            "refused": told.get(f"{name}_other_refused", 0.0),
        }
        for name in ("alone", "limited", "unlimited")
    ]
    print(table(rows))
    print(f"the check of one call: {told['check_us']} us")
    if options.json:
        print(json.dumps({"benchmark": "callers", "rate": options.rate, "limit": options.limit, **told}))


if __name__ == "__main__":
    main()
