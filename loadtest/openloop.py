"""Open-loop load on any server: one step at a rate, or the stair to the knee.

    python -m loadtest.openloop --target localhost:7002 --method getmatches --rate 500 --seconds 10
    python -m loadtest.openloop --target localhost:7003 --matching localhost:7002 --method score --stair 200
    python -m loadtest.openloop --matching localhost:7002 --ctr localhost:7003 --kafka kafka://localhost:9092 \\
        --method ad_flow --rate 50 --out load

VITRINE_CLIENT_CA, _CERT, _KEY and _TOKEN_FILE say who calls. docs/loadtest.md has the method.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loadtest import plots
from loadtest.clients import Fleet, GeneratorError
from loadtest.measured import Measured
from loadtest.stair import BOUND_MS, Stair, climb_together, holds
from loadtest.traffic import KINDS, Targets

_OWN_TARGET = {"getmatches": "matching", "score": "ctr", "search": "ann", "photo_flow": "ann", "echo": "echo"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the flags say; 1 where a call failed, or nothing held."""
    options = _parser().parse_args(argv)
    targets = Targets(options.matching, options.ctr, options.ann, kafka=options.kafka, topic=options.topic)
    if options.target and options.method in _OWN_TARGET:
        targets = replace(targets, **{_OWN_TARGET[options.method]: options.target})
    with Fleet(
        targets,
        processes=options.processes,
        cores=options.cores,
        market=options.market,
        users=options.users,
        seed=options.seed,
    ) as fleet:
        try:
            if options.stair:
                return _climb(fleet, options)
            step = fleet.open_loop(options.method, options.rate, options.seconds)
        except (GeneratorError, KeyboardInterrupt) as error:
            print(f"python -m loadtest.openloop: {error or 'stopped'}", file=sys.stderr)
            return 1
    _say(step, holds(step, options.bound_ms))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        plots.percentiles({options.method: step}, options.out / "percentiles.png", f"{options.rate:g} calls/s")
    print(json.dumps({"method": options.method, **step.summary()}))
    return int(step.failed > 0)


def _climb(fleet: Fleet, options: argparse.Namespace) -> int:
    stair = Stair(options.stair, options.bound_ms)
    climb_together(
        {options.method: stair},
        lambda method, rate: fleet.open_loop(method, rate, options.seconds),
        lambda _, climbed: _say(climbed.steps[-1], climbed.held(climbed.steps[-1])),
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        plots.latency_by_rate({options.method: stair}, options.out / "latency-by-rate.png", {})
    steps = [step.summary() for step in stair.steps]
    print(json.dumps({"method": options.method, "knee": round(stair.knee, 1), "steps": steps}))
    return int(stair.knee == 0)


def _say(step: Measured, held: bool) -> None:
    failures = ", ".join(f"{count} {why}" for why, count in step.failures.items())
    print(
        f"{step.rate:8,.0f}/s offered {step.achieved:8,.0f}/s answered"
        f"  p50 {step.ms(50):8.2f} p99 {step.ms(99):8.2f} ms"
        f"  generator {step.client_cpu:.2f} cores, {step.lag_us / 1e3:.1f} ms late (p99)"
        f"  {'holds' if held else 'does not hold'}  {failures}".rstrip(),
        file=sys.stderr,
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.openloop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--method", choices=KINDS, required=True, help="what is called")
    add("--target", default="", help="gRPC name of the method's own service; several addresses: ipv4:a:1,b:1")
    add("--matching", default="", help="matching service: for ad_flow, and for the users' features in score")
    add("--ctr", default="", help="ctr service, for ad_flow")
    add("--ann", default="", help="ann service")
    add("--kafka", default="", help="kafka://host:port, for the events of ad_flow")
    add("--topic", default="user-events", help="topic of the events (default: %(default)s)")
    add("--rate", type=float, default=100.0, help="calls a second (default: %(default)s)")
    add("--stair", type=float, default=0.0, metavar="RATE", help="find the knee, beginning at this rate")
    add("--seconds", type=float, default=10.0, help="length of a step (default: %(default)s)")
    add("--bound-ms", type=float, default=BOUND_MS, help="p99 that a step must stay under (default: %(default)s)")
    add("--market", type=Path, help="market folder to draw users, ads and photos from")
    add(
        "--users",
        type=int,
        default=1000,
        help="without --market: user and ad ids are 1 to this (default: %(default)s)",
    )
    add("--processes", type=int, default=1, help="generator processes that share the rate (default: %(default)s)")
    add("--cores", type=_cores, default=(), help="cores to keep the generators on, such as 0,1")
    add("--seed", type=int, default=0, help="of send times and requests (default: %(default)s)")
    add("--out", type=Path, help="folder for a picture")
    return parser


def _cores(text: str) -> tuple[int, ...]:
    cores = tuple(int(part) for part in text.split(","))
    if not set(cores) <= os.sched_getaffinity(0):
        raise argparse.ArgumentTypeError(f"{text}: this process may use {sorted(os.sched_getaffinity(0))}")
    return cores


if __name__ == "__main__":
    sys.exit(main())
