"""A run's tables on the terminal, and its JSON."""

from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.cores import Split
from loadtest.rolling import Rolling
from loadtest.suite import FRACTIONS, TITLES, Result

BUSY_CORES = 0.3  # Kafka, Redis and the rest of a quiet machine stay below it


def facts(result: Result, split: Split) -> dict[str, Any]:
    """What the run measured, for the last line; `docs/loadtest.md` says what each field is."""
    found: dict[str, Any] = {}
    for kind, stair in result.stairs.items():
        found[kind] = {
            "knee_per_s": round(stair.knee, 1),
            "closed_loop_per_s": round(median(result.limits[kind]), 1),
            "cpu_us_per_call": round(median(result.cpu_us[kind]), 1),
            "limited_by": result.limited_by(kind, split),
            **{name: step.summary() for name, step in result.steps.get(kind, {}).items()},
            **({"shares": result.shares[kind].summary()} if kind in result.shares else {}),
            "steps": [step.summary() | {"held": stair.held(step)} for step in stair.steps],
        }
    found["other_work_cores"] = round(median(result.others), 2)
    found["echo_answer_bytes"] = result.answer_bytes
    found["getmatches_share_of_echo"] = round(result.share_of_echo, 3)
    return found


def knees(console: Console, result: Result, split: Split) -> None:
    """One row a kind of call: the knee, and the latencies below it."""
    table = Table(
        title="knees; ms from the scheduled send, below them; us of the servers' CPU a call", title_justify="left"
    )
    percentiles = [f"p{p} {f:.0%}" for f in FRACTIONS.values() for p in (50, 99)]
    for column in ("call", "knee/s", "us/call", *percentiles):
        table.add_column(column, justify="left" if column == "call" else "right")
    table.add_column("limited by")
    for kind, stair in result.stairs.items():
        steps = result.steps.get(kind, {})
        cells = [f"{steps[name].ms(p):.2f}" if name in steps else "" for name in FRACTIONS for p in (50, 99)]
        knee, cpu = f"{stair.knee:,.0f}", f"{median(result.cpu_us[kind]):,.0f}"
        table.add_row(TITLES[kind], knee, cpu, *cells, result.limited_by(kind, split))
    console.print(table)
    console.print(f"GetMatches' throughput over echo's: {result.share_of_echo:.2f}", highlight=False)
    if median(result.others) > BUSY_CORES:
        console.print(
            f"[yellow]other work took {median(result.others):.1f} cores meanwhile: knees are low, latencies high[/]"
        )


def shares(console: Console, result: Result) -> None:
    """Where a call's CPU time goes."""
    table = Table(title="where a call's CPU time goes, us", title_justify="left")
    for column in ("call", "all", "gRPC", "protobuf", "kernel", "store", "rest", "in the OS"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for kind, parts in result.shares.items():
        columns = (parts.total, parts.grpc, parts.protobuf, parts.kernel, parts.store, parts.behaviour)
        system = f"{parts.system / parts.total:.0%}" if parts.total else ""
        table.add_row(TITLES[kind], *(f"{us:,.0f}" for us in columns), system)
    console.print(table)


def rolling(console: Console, seen: Rolling) -> None:
    """One row a restart."""
    table = Table(title=f"rolling restart, failed {seen.failed} of {seen.sent:,} calls", title_justify="left")
    for column in ("restarted", "load", "calls", "failed", "p50 ms", "p99 ms", "longest ms"):
        table.add_column(column, justify="left" if column in ("restarted", "load") else "right")
    for phase in seen.phases:
        step = phase.step
        table.add_row(
            ", ".join(phase.restarted), f"{TITLES[phase.kind]} at {step.rate:,.0f}/s",
            f"{step.sent:,}", str(step.failed),
            f"{step.ms(50):.2f}", f"{step.ms(99):.2f}", f"{step.histogram.get_max_value() / 1e3:.0f}",
        )  # fmt: skip
    console.print(table)
