"""The binary graph beside the HNSW of faiss and of USearch, and the scan beside faiss.IndexBinaryFlat.

    python -m benchmarks.ann                                # 300,000 codes of 512 bits, tables
    python -m benchmarks.ann --n 300000 --n 1000000 --json  # the last line is one JSON object

Codes are signs of random projections of a Gaussian mixture (benchmarks/codes.py); queries are held out. Peers have
M 16 and efConstruction 100. Contenders take turns; a ratio is the median over rounds of this index over the better
peer, in CPU seconds on one thread and in seconds by the clock on two. recall@10 counts a result whose distance is
within the true 10th's; each contender is at its smallest list that reaches the recall. Single queries are one call
each, on all sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from usearch.index import Index

from benchmarks.codes import Codes, Distances, generate, recall, smallest, true_bounds
from benchmarks.measure import interleaved, median_ratio, table
from vitrine import native
from vitrine.ann.build import Parameters, Threads, build

RECALLS = (0.95, 0.99, 0.999)
TURNS = 4
QUERIES = 1000


class Searcher(Protocol):
    """A graph that is searched with a list of a given size."""

    def search(self, queries: Codes, size: int, threads: int) -> Distances:
        """Distances (q, 10), nearest first."""


class Faiss:
    """faiss.IndexBinaryHNSW."""

    def __init__(self, codes: Codes) -> None:
        self._index = faiss.IndexBinaryHNSW(codes.shape[1] * 64, 16)
        self._index.hnsw.efConstruction = 100
        faiss.omp_set_num_threads(1)
        self._index.add(codes.view(np.uint8))

    def search(self, queries: Codes, size: int, threads: int) -> Distances:
        faiss.omp_set_num_threads(threads)
        self._index.hnsw.efSearch = size
        return self._index.search(queries.view(np.uint8), 10)[0]


class Usearch:
    """usearch.Index of bits."""

    def __init__(self, codes: Codes) -> None:
        self._index = Index(
            ndim=codes.shape[1] * 64, metric="hamming", dtype="b1", connectivity=16, expansion_add=100
        )
        self._index.add(np.arange(len(codes)), codes.view(np.uint8), threads=1)

    def search(self, queries: Codes, size: int, threads: int) -> Distances:
        self._index.expansion_search = size
        found = self._index.search(
            queries.view(np.uint8) if len(queries) > 1 else queries[0].view(np.uint8), 10, threads=threads
        )
        return found.distances.astype(np.int64).reshape(len(queries), -1)


class Own:
    """The graph of vitrine.ann.build; `stages` has the CPU seconds of each stage of its build."""

    def __init__(self, codes: Codes) -> None:
        self.stages: dict[str, float] = {}
        last = time.process_time()

        def note(stage: str, share: float) -> None:
            nonlocal last
            if share == 1:
                self.stages[stage] = round(self.stages.get(stage, 0) + time.process_time() - last, 3)
                last = time.process_time()

        with tempfile.TemporaryDirectory(prefix="vitrine-bench-") as folder:
            built = build(codes, Path(folder), Parameters(), executor=Threads(1), progress=note)
            self._arrays = np.array(built.codes), np.array(built.edges), np.array(built.entries)
        self.bytes = sum(array.nbytes for array in self._arrays)
        self.graph = native.Graph(*self._arrays)

    def search(self, queries: Codes, size: int, threads: int) -> Distances:
        return self.graph.walk(queries, size, TURNS, threads)[1][:, :10]


def one_by_one(searcher: Searcher, queries: Codes, size: int) -> Callable[[], object]:
    """Each query in a call of its own."""
    return lambda: [searcher.search(queries[i : i + 1], size, 1) for i in range(len(queries))]


def measure(n: int, rounds: int) -> dict[str, Any]:
    """One size: builds, then at each recall single queries, batches on one thread and on two."""
    codes, _ = generate(n + QUERIES)
    base, asked = np.ascontiguousarray(codes[:n]), np.ascontiguousarray(codes[n:])
    say(f"{n:,}: true neighbours")
    bounds = true_bounds(base, asked)
    contenders: dict[str, Searcher] = {}
    build_s: dict[str, float] = {}
    for name, kind in (("own", Own), ("faiss", Faiss), ("usearch", Usearch)):
        say(f"{n:,}: {name} builds")
        start = time.process_time()
        contenders[name] = kind(base)
        build_s[name] = time.process_time() - start
    own = contenders["own"]
    assert isinstance(own, Own)
    return {
        "n": n,
        "build_cpu_s": build_s,
        "build_ratio": min(build_s["faiss"], build_s["usearch"]) / build_s["own"],
        "stages_cpu_s": own.stages,
        "bytes_per_item": own.bytes / n,
        "search": {
            str(wanted): _at_recall(contenders, asked, bounds, wanted, rounds, f"{n:,}") for wanted in RECALLS
        },
    }


def _at_recall(
    contenders: dict[str, Searcher], asked: Codes, bounds: Distances, wanted: float, rounds: int, label: str
) -> dict[str, Any]:
    """All contenders at the smallest list that reaches the recall."""
    sizes = {
        name: smallest(lambda size, one=one: recall(one.search(asked, size, 1), bounds), wanted)
        for name, one in contenders.items()
    }
    row: dict[str, Any] = {f"{name}_list": size for name, size in sizes.items()} | {
        f"{name}_recall": recall(one.search(asked, sizes[name], 1), bounds) for name, one in contenders.items()
    }
    own = contenders["own"]
    assert isinstance(own, Own)
    row["distances_a_query"] = float(own.graph.walk(asked, sizes["own"])[3].mean())
    ways: dict[str, tuple[Callable[[Searcher, int], Callable[[], object]], Callable[[], float]]] = {
        "single": (lambda one, size: one_by_one(one, asked, size), time.process_time),
        "batched": (lambda one, size: lambda: one.search(asked, size, 1), time.process_time),
    }
    if (os.cpu_count() or 1) > 1:
        ways["batched_2"] = (lambda one, size: lambda: one.search(asked, size, 2), time.perf_counter)
    for way, (call, clock) in ways.items():
        seconds = interleaved(
            {name: call(one, sizes[name]) for name, one in contenders.items()},
            rounds=rounds, label=f"{label}, recall {wanted}, {way}", clock=clock,
        )  # fmt: skip
        for name, times in seconds.items():
            row[f"{name}_{way}_qps"] = len(asked) / statistics.median(times)
        row[f"{way}_ratio"] = min(median_ratio(seconds[peer], seconds["own"]) for peer in ("faiss", "usearch"))
    return row


def measure_scan(n: int, rounds: int) -> dict[str, Any]:
    """The scan: batches of 64 and of 256 beside faiss.IndexBinaryFlat, and one query beside summing the codes."""
    codes, _ = generate(n + 256)
    base, asked = np.ascontiguousarray(codes[:n]), np.ascontiguousarray(codes[n:])
    words = np.ascontiguousarray(base.T)
    flat = faiss.IndexBinaryFlat(base.shape[1] * 64)
    flat.add(base.view(np.uint8))
    faiss.omp_set_num_threads(1)
    found: dict[str, Any] = {"n": n}
    for batch in (64, 256):
        queries = asked[:batch]
        contenders = {
            "own": lambda q=queries: native.hamming_topk(words, q, 10),
            "faiss": lambda q=queries: flat.search(q.view(np.uint8), 10),
        }
        seconds = interleaved(contenders, rounds=rounds, label=f"{n:,}, scan of {batch}", clock=time.process_time)
        found[f"ratio_{batch}"] = median_ratio(seconds["faiss"], seconds["own"])
        found[f"ns_per_distance_{batch}"] = statistics.median(seconds["own"]) * 1e9 / (n * batch)
    seconds = interleaved(
        {"own": lambda: native.hamming_topk(words, asked[:1], 10), "read": words.sum},
        rounds=rounds, label=f"{n:,}, scan of 1",
    )  # fmt: skip
    found["bandwidth_share"] = median_ratio(seconds["read"], seconds["own"])
    found["gb_s"] = words.nbytes / statistics.median(seconds["own"]) / 1e9
    return found


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
    results = [measure(n, args.rounds) for n in args.n or [300_000]]
    scan = measure_scan(max(args.n or [300_000]), args.rounds)
    report = {
        "benchmark": "ann",
        "kernel": native.kernel(),
        "faiss": faiss.__version__,
        "generator": " ".join((generate.__doc__ or "").split()),
        "build_ratio": {str(r["n"]): r["build_ratio"] for r in results},
        **{
            field: {f"{r['n']}@{at}": row[way] for r in results for at, row in r["search"].items() if way in row}
            for field, way in (
                ("qps_ratio", "single_ratio"),
                ("qps_ratio_batched", "batched_ratio"),
                ("qps_ratio_batched_2", "batched_2_ratio"),
            )
        },
        "scan_ratio": {batch: scan[f"ratio_{batch}"] for batch in (64, 256)},
        "scan_bandwidth_share": scan["bandwidth_share"],
        "bytes_per_item": {str(r["n"]): r["bytes_per_item"] for r in results},
        "scan": scan,
        "results": results,
    }
    if args.json:
        print(json.dumps(report))
        return
    for result in results:
        built = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["build_cpu_s"].items())
        print(
            f"{result['n']:,} codes, CPU of the build: {built} ({result['build_ratio']:.1f} times the better peer);"
            f" {result['bytes_per_item']:.0f} bytes an item"
        )
        ratios = [
            {"recall": at} | {k: v for k, v in row.items() if "recall" not in k}
            for at, row in result["search"].items()
        ]
        print(table(ratios))
    print(table([scan]))


if __name__ == "__main__":
    main()
