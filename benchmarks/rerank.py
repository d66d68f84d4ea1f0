"""Hash functions and stages of re-ranking on a real embedding (benchmarks/cifar.py): what each needs and costs.

    python -m benchmarks.rerank            # tables
    python -m benchmarks.rerank --json     # the last line is one JSON object

`hashing`: how many of the nearest by Hamming distance hold a share of .95 and .99 of the 10 nearest by cosine.
`stages`: the same of each re-rank code over all items, and a pool of 150 cut to 20 by it and to 10 by real vectors.
`search`: vectors in, 10 items out (encode, walk, 4-bit codes, real vectors) beside hnswlib on real vectors (inner
product, M 16, efConstruction 100), each at its smallest list for the recall. One thread; contenders take turns;
times are CPU time, of a call for one query and of a query in one call for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from benchmarks import cifar
from benchmarks.measure import table
from vitrine import native
from vitrine.ann import hashing
from vitrine.ann.build import Parameters, build
from vitrine.ann.coarse import Coarse
from vitrine.ann.hashing import Floats, Hashing
from vitrine.ann.rabitq import RaBitQ

K = 10
KEPT = 2 * K  # real vectors read of a pool
RECALLS = (0.95, 0.99)
FUNCTIONS = [
    *(("turns", bits, dims) for bits in (64, 128, 256, 512, 1024) for dims in (64, 256)),
    *(("turns", 512, dims) for dims in (32, 48, 128)),
    *((method, bits, 256) for bits in (64, 128, 256) for method in ("itq", "lph")),
    *((method, 512, 64) for method in ("itq", "lph")),
    *(("signs", bits, 256) for bits in (256, 512)),
]
LISTS = (
    10,
    12,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    72,
    80,
    90,
    100,
    112,
    128,
    144,
    160,
    180,
    200,
    224,
    256,
    320,
    384,
)
TURNS = 6

Rows = NDArray[np.int64]


class Task:
    """Base, queries and the true neighbours."""

    def __init__(self, queries: int) -> None:
        self.base, asked = cifar.embedding()
        self.asked = np.ascontiguousarray(asked[:queries])
        self.near = cifar.neighbours(self.base, self.asked, K)

    def candidates(self, scores: Callable[[slice], NDArray[Any]], queries: int | None = None) -> dict[str, int]:
        """The least size of a pool of the best scores (q, n) that holds each share of the true neighbours."""
        ranks = []
        stop = min(queries or len(self.asked), len(self.asked))
        for start in range(0, stop, 100):
            part = slice(start, min(start + 100, stop))
            found, near = scores(part), self.near[part]
            for column in near.T:
                own = np.take_along_axis(found, column[:, None], axis=1)
                earlier = (found == own) & (np.arange(found.shape[1]) < column[:, None])
                ranks.append(((found > own) | earlier).sum(axis=1))
        ordered = np.sort(np.concatenate(ranks))
        return {f"pool_{r}": int(ordered[int(np.ceil(len(ordered) * r)) - 1]) + 1 for r in RECALLS}

    def recall(self, rows: NDArray[np.integer]) -> float:
        """Share of the true neighbours among the rows (q, k) found."""
        return float(np.mean([np.isin(near, found).mean() for near, found in zip(self.near, rows, strict=True)]))


def microseconds(
    contenders: Mapping[str, Callable[[], object]], rounds: int, queries: int
) -> dict[str, list[float]]:
    """CPU microseconds a query of each contender's rounds, which take turns."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            start = time.process_time()
            call()
            if turn:
                spent[name].append((time.process_time() - start) / queries * 1e6)
    return spent


def medians(spent: Mapping[str, list[float]]) -> dict[str, float]:
    return {f"{name}_us": statistics.median(times) for name, times in spent.items()}


def hamming(codes: NDArray[np.uint64], asked: NDArray[np.uint64]) -> Callable[[slice], NDArray[np.int16]]:
    """Scores of the queries: minus the distance."""

    def scores(part: slice) -> NDArray[np.int16]:
        total = np.zeros((len(asked[0, part]), codes.shape[1]), np.int16)
        for word, query in zip(codes, asked[:, part], strict=True):
            total -= np.bitwise_count(word ^ query[:, None])
        return total

    return scores


def measure_hashing(task: Task, method: str, bits: int, dims: int, rounds: int) -> dict[str, Any]:
    """One hash function."""
    started = time.process_time()
    function = hashing.fit(task.base, bits, method=method, dims=dims)
    fit_s = time.process_time() - started
    codes, asked = function.encode(task.base), function.encode(task.asked)
    spent = microseconds(
        {"encode": one_by_one(function.encode, task.asked), "encode_batched": lambda: function.encode(task.asked)},
        rounds,
        len(task.asked),
    )
    needed = task.candidates(hamming(codes, asked))
    say(f"hashing: {method} {bits} of {dims}: {needed}")
    row = {"method": method, "bits": bits, "dims": dims, **needed, **medians(spent)}
    return {**row, "fit_s": fit_s, "bytes_per_item": bits // 8}


def measure_stages(task: Task, rounds: int) -> list[dict[str, Any]]:
    """Each re-rank code."""
    draws = np.random.default_rng(0)
    pools = draws.integers(0, len(task.base), (len(task.asked), 150)).astype(np.uint32)
    n, rows = len(task.base), []
    for bits in (4, 8):
        coarse = Coarse.encode(task.base, bits)

        def staged(coarse: Coarse = coarse) -> object:
            return native.vector_topk(task.base, task.asked, coarse.best(task.asked, pools, KEPT)[0], K)

        rows.append(
            {
                "stage": f"{bits}-bit",
                **task.candidates(all_scores(coarse, task.asked, n)),
                **medians(microseconds({"staged": staged}, rounds, len(task.asked))),
                "bytes_per_item": (coarse.codes.nbytes + coarse.factors.nbytes) / n,
            }
        )
        say(f"stages: {rows[-1]}")
    floats = microseconds(
        {"x": lambda: native.vector_topk(task.base, task.asked, pools, K)}, rounds, len(task.asked)
    )
    rows.append(
        {
            "stage": "real vectors alone",
            **task.candidates(lambda part: task.asked[part] @ task.base.T),
            "staged_us": statistics.median(floats["x"]),
            "bytes_per_item": task.base.shape[1] * 4.0,
        }
    )
    for centres, bits in ((1, 256), (64, 256), (64, 512)):
        coded = RaBitQ.fit(task.base, bits, centres=centres).encode(task.base)
        needed = task.candidates(all_scores(coded, task.asked, n), 200)  # slow: numpy
        size = bits / 8 + 8 + (1 if centres > 1 else 0)
        rows.append(
            {"stage": f"RaBitQ {bits}, {centres} centres", **needed, "staged_us": "-", "bytes_per_item": size}
        )
        say(f"stages: {rows[-1]}")
    return rows


def all_scores(coded: Coarse | RaBitQ, asked: Floats, n: int) -> Callable[[slice], Floats]:
    """Scores of queries with every item."""
    return lambda part: np.stack([coded.scores(query, np.arange(n)) for query in asked[part]])


class Pipeline:
    """Vectors in, rows out: the stages of a search over one graph."""

    def __init__(self, task: Task, function: Hashing) -> None:
        self.task, self.function = task, function
        codes = np.ascontiguousarray(function.encode(task.base).T)
        with tempfile.TemporaryDirectory(prefix="vitrine-bench-") as folder:
            started = time.process_time()
            built = build(codes, Path(folder), Parameters())
            self.build_s = time.process_time() - started
            self.graph = native.Graph(np.array(built.codes), np.array(built.edges), built.entries)
            self.items = np.array(built.items).astype(np.uint32)
        if len(self.items) != len(built.codes):
            raise SystemExit("two pictures have one code: this benchmark takes nodes for items")
        self.coarse = Coarse.encode(task.base[self.items])  # by node, so that a pool's rows lie near each other
        self.vectors = task.base[self.items]

    def encode(self, queries: Floats) -> NDArray[np.uint64]:
        return np.ascontiguousarray(self.function.encode(queries).T)

    def search(self, queries: Floats, pool: int, turns: int) -> NDArray[np.uint32]:
        """Rows (q, K) of the base."""
        nodes = self.graph.walk(self.encode(queries), pool, turns)[0]
        kept, _ = self.coarse.best(queries, nodes, KEPT)
        return self.items[native.vector_topk(self.vectors, queries, kept, K)[0]]

    def parts(self, pool: int) -> dict[str, Callable[[], object]]:
        """Each stage of a batch alone."""
        asked, codes = self.task.asked, self.encode(self.task.asked)
        nodes = self.graph.walk(codes, pool, TURNS)[0]
        kept = self.coarse.best(asked, nodes, KEPT)[0]
        return {
            "encode": lambda: self.encode(asked),
            "walk": lambda: self.graph.walk(codes, pool, TURNS),
            "coarse": lambda: self.coarse.best(asked, nodes, KEPT),
            "vectors": lambda: native.vector_topk(self.vectors, asked, kept, K),
        }


def measure_search(task: Task, function: Hashing, rounds: int) -> dict[str, Any]:
    """The whole search beside hnswlib, for each recall."""
    own = Pipeline(task, function)
    peer = hnswlib.Index("ip", task.base.shape[1])
    peer.init_index(len(task.base), M=16, ef_construction=100)
    peer.set_num_threads(1)
    started = time.process_time()
    peer.add_items(task.base, num_threads=1)
    found: dict[str, Any] = {"build_s": own.build_s, "peer_build_s": time.process_time() - started}

    def ask_peer(queries: Floats) -> NDArray[np.uint64]:
        return peer.knn_query(queries, K, num_threads=1)[0]

    def peer_recall(size: int) -> float:
        peer.set_ef(size)
        return task.recall(ask_peer(task.asked))

    for wanted in RECALLS:
        pool, recall = smallest(lambda size: task.recall(own.search(task.asked, size, TURNS)), wanted)
        size, reached = smallest(peer_recall, wanted)
        peer.set_ef(size)
        spent = microseconds(
            {
                "single": one_by_one(lambda q, pool=pool: own.search(q, pool, 1), task.asked),
                "batched": lambda pool=pool: own.search(task.asked, pool, TURNS),
                "peer_single": one_by_one(ask_peer, task.asked),
                "peer_batched": lambda: ask_peer(task.asked),
                **own.parts(pool),
            },
            rounds,
            len(task.asked),
        )
        found[str(wanted)] = {
            "pool": pool,
            "recall": recall,
            "peer_ef": size,
            "peer_recall": reached,
            **medians(spent),
            "qps_ratio": ratio(spent["peer_single"], spent["single"]),
            "qps_ratio_batched": ratio(spent["peer_batched"], spent["batched"]),
        }
        say(f"search: {function.bits} bits: {found[str(wanted)]}")
    return found


def smallest(recall_of: Callable[[int], float], wanted: float) -> tuple[int, float]:
    """The first of LISTS that reaches a recall, and what it reaches; the last where none does."""
    for size in LISTS:
        reached = recall_of(size)
        if reached >= wanted:
            break
    return size, reached


def one_by_one(search: Callable[[Floats], object], queries: Floats) -> Callable[[], object]:
    """Each query in a call of its own."""
    return lambda: [search(queries[i : i + 1]) for i in range(len(queries))]


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of slow / fast."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rerank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--queries", type=int, default=1000, help="test pictures asked (1000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument(
        "--bits", type=int, action="append", help="of a search; may be repeated (256, 512 and 1024)"
    )
    parser.add_argument("--only", choices=["hashing", "stages", "search"], help="one part, not all three")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    args = parser.parse_args()
    task = Task(args.queries)
    report: dict[str, Any] = {
        "benchmark": "rerank",
        "kernel": native.kernel(),
        "threads": 1,
        "items": len(task.base),
    }
    if args.only in (None, "hashing"):
        report["hashing"] = [measure_hashing(task, *function, args.rounds) for function in FUNCTIONS]
    if args.only in (None, "stages"):
        report["stages"] = measure_stages(task, args.rounds)
    if args.only in (None, "search"):
        searches = {
            str(bits): measure_search(task, hashing.fit(task.base, bits), args.rounds)
            for bits in args.bits or (256, 512, 1024)
        }
        report["search"] = searches
        for field, name in (("rerank_qps_ratio", "qps_ratio"), ("rerank_qps_ratio_batched", "qps_ratio_batched")):
            report[field] = {
                f"{bits}@{r}": found[str(r)][name] for bits, found in searches.items() for r in RECALLS
            }
    if args.json:
        print(json.dumps(report))
        return
    for name in ("hashing", "stages"):
        if name in report:
            print(f"{name}\n{table(report[name])}\n")
    if "search" in report:
        rows = [{"bits": b, "wanted": r, **found[str(r)]} for b, found in report["search"].items() for r in RECALLS]
        print(f"search\n{table(rows)}")


if __name__ == "__main__":
    main()
