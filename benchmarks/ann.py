"""The binary graph beside faiss.IndexBinaryHNSW (M 16, efConstruction 100): build, and search at equal recall.

    python -m benchmarks.ann                       # 300,000 codes of 512 bits, a table
    python -m benchmarks.ann --n 300000 --n 1000000 --json

Codes are signs of random projections of a Gaussian mixture (see `generate`); queries are held out. Contenders run
on one thread and take turns; times are CPU seconds of the process, ratios medians of the rounds' ratios. recall@10
counts a result whose distance is within the true 10th's; each contender is at its smallest list that reaches the
recall. Single queries are one call each, on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import table
from vitrine import native
from vitrine.ann.build import Parameters, build

RECALLS = (0.95, 0.99, 0.999)
LISTS = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
TURNS = 6

Codes = NDArray[np.uint64]


def generate(n: int, queries: int, *, bits: int = 512, dim: int = 32, spread: float = 0.6, seed: int = 1) -> Codes:
    """Codes (n + queries, bits / 64): 1,000 Gaussian clusters in `dim` dimensions, their centres of variance 1 and
    their points of `spread` around them, and on which side of `bits` random hyperplanes a point lies."""
    draws = np.random.default_rng(seed)
    centres = draws.standard_normal((1000, dim)).astype(np.float32)
    planes = draws.standard_normal((dim, bits)).astype(np.float32)
    codes = np.empty((n + queries, bits // 64), np.uint64)
    for start in range(0, len(codes), 65_536):
        size = min(65_536, len(codes) - start)
        points = centres[draws.integers(0, len(centres), size)]
        points = points + np.float32(spread) * draws.standard_normal((size, dim)).astype(np.float32)
        codes[start : start + size] = np.packbits(points @ planes >= 0, axis=1, bitorder="little").view("<u8")
    return codes


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def one_by_one(search: Callable[[Codes], object], queries: Codes) -> Callable[[], object]:
    """Each query in a call of its own."""
    return lambda: [search(queries[i : i + 1]) for i in range(len(queries))]


def smallest_list(recall_of: Callable[[int], float], wanted: float) -> tuple[int, float]:
    """The first of LISTS that reaches a recall, and what it reaches; the last where none does."""
    for size in LISTS:
        reached = recall_of(size)
        if reached >= wanted:
            break
    return size, reached


def measure(n: int, rounds: int, queries: int = 1000) -> dict[str, Any]:
    """One size: the build, and for each recall the searches."""
    codes = generate(n, queries)
    base, asked = np.ascontiguousarray(codes[:n]), np.ascontiguousarray(codes[n:])
    flat = faiss.IndexBinaryFlat(codes.shape[1] * 64)
    flat.add(base.view(np.uint8))
    say(f"{n:,}: true neighbours")
    bound = flat.search(asked.view(np.uint8), 10)[0][:, 9:10]

    peer = faiss.IndexBinaryHNSW(codes.shape[1] * 64, 16)
    peer.hnsw.efConstruction = 100
    say(f"{n:,}: faiss builds")
    peer_build_s = cpu_seconds(lambda: peer.add(base.view(np.uint8)))
    with tempfile.TemporaryDirectory(prefix="vitrine-bench-") as folder:
        stages: dict[str, float] = {}
        started = [time.process_time()]

        def note(stage: str, share: float) -> None:
            if share == 1:
                stages[stage] = stages.get(stage, 0) + time.process_time() - started[0]
                started[0] = time.process_time()

        build_s = cpu_seconds(lambda: build(base, Path(folder), Parameters(), progress=note))
        built = build(base, Path(folder), Parameters())
        codes_in_memory, edges = np.array(built.codes), np.array(built.edges)
    graph = native.Graph(codes_in_memory, edges, built.entries)
    found: dict[str, Any] = {
        "n": n,
        "build_s": build_s,
        "peer_build_s": peer_build_s,
        "build_ratio": peer_build_s / build_s,
        "stages_s": stages,
        "bytes_per_item": (codes_in_memory.nbytes + edges.nbytes) / n,
        "search": {},
    }

    def peer_recall(size: int) -> float:
        peer.hnsw.efSearch = size
        return float((peer.search(asked.view(np.uint8), 10)[0] <= bound).mean())

    def own_recall(size: int) -> float:
        return float((graph.walk(asked, size)[1][:, :10] <= bound).mean())

    for wanted in RECALLS:
        size, recall = smallest_list(own_recall, wanted)
        peer_size, reached = smallest_list(peer_recall, wanted)
        peer.hnsw.efSearch = peer_size
        contenders = {
            "single": one_by_one(lambda q, size=size: graph.walk(q, size), asked),
            "batched": lambda size=size: graph.walk(asked, size, TURNS),
            "peer_single": one_by_one(lambda q: peer.search(q.view(np.uint8), 10), asked),
            "peer_batched": lambda: peer.search(asked.view(np.uint8), 10),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(rounds + 1):
            for name, call in contenders.items():
                took = cpu_seconds(call)
                if turn:
                    seconds[name].append(took)
        say(f"{n:,}: searched at recall {wanted}")
        found["search"][str(wanted)] = {
            "list": size,
            "recall": recall,
            "distances": float(graph.walk(asked, size)[3].mean()),
            "peer_list": peer_size,
            "peer_recall": reached,
            **{f"{name}_qps": len(asked) / statistics.median(times) for name, times in seconds.items()},
            "qps_ratio": ratio(seconds["peer_single"], seconds["single"]),
            "qps_ratio_batched": ratio(seconds["peer_batched"], seconds["batched"]),
        }
    return found


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of slow / fast."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ann", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, action="append", help="codes; may be repeated (300000)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    results = [measure(n, args.rounds) for n in args.n or [300_000]]
    report = {
        "benchmark": "ann",
        "kernel": native.kernel(),
        "faiss": faiss.__version__,
        "threads": 1,
        "build_ratio": {str(r["n"]): r["build_ratio"] for r in results},
        **{
            field: {f"{r['n']}@{recall}": row[field] for r in results for recall, row in r["search"].items()}
            for field in ("qps_ratio", "qps_ratio_batched")
        },
        "results": results,
    }
    if args.json:
        print(json.dumps(report))
        return
    for result in results:
        print(
            f"{result['n']:,} codes: built in {result['build_s']:.1f} s of CPU, faiss in"
            f" {result['peer_build_s']:.1f} ({result['build_ratio']:.1f} times),"
            f" {result['bytes_per_item']:.0f} bytes an item"
        )
        print(table([{"recall": recall, **row} for recall, row in result["search"].items()]))


if __name__ == "__main__":
    main()
