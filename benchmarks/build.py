"""The graph's build at several sizes and in several amounts of memory: time, its growth, and the same bytes.

    python -m benchmarks.build                                   # 300,000 to 10,000,000 codes: build_exponent
    python -m benchmarks.build --n 10000000 --workers 2 --memory-mb 6000 --memory-mb 1000 --json
    python -m benchmarks.build --curve --n 300000                # propagation beside more overlap

Codes are those of `benchmarks.ann`. A build runs in a process of its own over a mapped file; its memory is the peak
of its anonymous resident bytes (RssAnon, looked at every 20 ms), the interpreter among them. The exponent is the
slope of CPU time over codes, both in logarithms. The curve gives CPU seconds of a build, and the distances that a
search computes for a recall: what a graph is worth.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codes import generate, recall, smallest, true_bounds
from benchmarks.measure import table
from vitrine import native
from vitrine.ann.build import Parameters, Threads, build, files

SIZES = (300_000, 1_000_000, 3_000_000, 10_000_000)
RECALLS = (0.95, 0.99, 0.999)
QUERIES = 1000
# Leaves a node, and rounds of propagation over what so many leaves have found.
CURVE = ((2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (6, 0), (8, 0), (12, 0))


def one(rows: Path, folder: Path, workers: int, memory_mb: int) -> dict[str, Any]:
    """A build in this process."""
    stages: dict[str, float] = {}
    before, cpu, wall = [time.process_time()], time.process_time(), time.perf_counter()

    def note(stage: str, share: float) -> None:
        if share == 1:
            now = time.process_time()
            stages[stage] = stages.get(stage, 0) + now - before[0]
            before[0] = now

    built = build(
        files.read(rows.parent, rows.stem),
        folder,
        executor=Threads(workers),
        memory_mb=memory_mb,
        progress=note,
    )
    found = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "stages_s": stages}
    digest = hashlib.sha256()
    for array in (built.codes, built.edges, built.entries, built.items, built.starts):
        for start in range(0, len(array), files.CHUNK):
            digest.update(np.ascontiguousarray(array[start : start + files.CHUNK]).data)
    return found | {"digest": digest.hexdigest()}


def measured(rows: Path, workers: int, memory_mb: int) -> dict[str, Any]:
    """A build in a process of its own, and the most anonymous memory that it had."""
    with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
        arguments = [str(rows), folder, "--workers", str(workers), "--memory-mb", str(memory_mb)]
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.build", "--one", *arguments], stdout=subprocess.PIPE, text=True
        )
        peak = 0
        while child.poll() is None:
            peak = max(peak, anonymous(child.pid))
            time.sleep(0.02)
        assert child.stdout is not None
        if child.returncode:
            sys.exit(f"the build ended with {child.returncode}")
        return {**json.loads(child.stdout.read()), "anonymous_mb": peak / 2**20}


def anonymous(pid: int) -> int:
    """Anonymous resident bytes of a process; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def sizes(counts: list[int], workers: int, memories: list[int], scratch: Path) -> dict[str, Any]:
    """Builds of all sizes in all memories."""
    results = []
    for n in counts:
        say(f"{n:,}: codes")
        files.save(scratch, "rows", generate(n)[0])
        for memory_mb in memories:
            say(f"{n:,}: built in {memory_mb:,} MB")
            found = measured(scratch / "rows.npy", workers, memory_mb)
            results.append({"n": n, "memory_mb": memory_mb, "workers": workers, **found})
    first = [r for r in results if r["memory_mb"] == memories[0]]
    logs = np.log([[r["n"], r["cpu_s"]] for r in first])
    return {
        "build_exponent": float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]) if len(first) > 1 else None,
        "same_bytes": all(len({r["digest"] for r in results if r["n"] == n}) == 1 for n in counts),
        "results": results,
    }


def curve(n: int, scratch: Path) -> list[dict[str, Any]]:
    """CPU time of builds against what their graphs are worth, by overlap and by rounds of propagation."""
    codes, _ = generate(n + QUERIES)
    base, asked = codes[:n], np.ascontiguousarray(codes[n:])
    bounds = true_bounds(base, asked)
    rows = []
    for overlap, rounds in CURVE:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            cpu = time.process_time()
            parameters = replace(Parameters(), overlap=overlap, rounds=rounds)
            built = build(base, Path(folder), parameters)
            cpu = time.process_time() - cpu
            graph = native.Graph(built.codes, built.edges, built.entries)

            def reached(size: int, graph: native.Graph = graph) -> float:
                return recall(graph.walk(asked, size)[1][:, :10], bounds)

            row = {"overlap": overlap, "rounds": rounds, "cpu_s": cpu}
            for wanted in RECALLS:
                size = smallest(reached, wanted)
                row[f"distances@{wanted}"] = float(graph.walk(asked, size)[3].mean())
            rows.append(row)
            say(str(row))
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, action="append", help="codes; may be repeated (300k, 1M, 3M, 10M)")
    parser.add_argument("--workers", type=int, default=1, help="threads of a build (1)")
    parser.add_argument("--memory-mb", type=int, action="append", help="of a build; may be repeated (6000)")
    parser.add_argument("--curve", action="store_true", help="propagation beside overlap, of the first --n")
    parser.add_argument("--folder", type=Path, help="where arrays are kept meanwhile: 3 kB a code")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    counts, memories = args.n or list(SIZES), args.memory_mb or [6_000]
    if args.one:
        print(json.dumps(one(*args.one, args.workers, memories[0])))
        return
    with tempfile.TemporaryDirectory(prefix="vitrine-build-", dir=args.folder) as scratch:
        report: dict[str, Any] = {"benchmark": "build", "kernel": native.kernel()}
        if args.curve:
            report["curve"] = curve(counts[0], Path(scratch))
        else:
            report |= sizes(counts, args.workers, memories, Path(scratch))
    if args.json:
        print(json.dumps(report))
        return
    if args.curve:
        print(table(report["curve"]))
        return
    shown = ("n", "memory_mb", "workers", "cpu_s", "wall_s", "anonymous_mb")
    print(table([{key: row[key] for key in shown} for row in report["results"]]))
    print(f"build_exponent {report['build_exponent']}, the same bytes in any memory: {report['same_bytes']}")


if __name__ == "__main__":
    main()
