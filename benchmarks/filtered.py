"""Searches among the items that a filter leaves: recall and queries a second beside an exact scan and beside faiss.

    python -m benchmarks.filtered                    # 300,000 codes of 512 bits, a table
    python -m benchmarks.filtered --n 1000000 --json

Items have a place from 0 to 1 (benchmarks/codes.py), and a query's filter is a window of places: at its own cluster
(correlated), half of all places away (anti), or of another attribute that says nothing about it (random).
Selectivity is the window's width. `own` is `BinaryIndex.search_codes` with its filter, masks made before; `exact`
the same index with `exact=True`; faiss gets a bitmap of ids as its selector, made before, on IndexBinaryFlat and
IndexBinaryHNSW (M 16, efConstruction 100, efSearch 64 as the index's ef). One thread, one query a call; times are
CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.codes import Codes, generate
from benchmarks.measure import table
from vitrine.ann.attributes import Attributes, Column
from vitrine.ann.build import Parameters, Threads, build
from vitrine.ann.filters import Range
from vitrine.ann.hashing import Hashing
from vitrine.ann.index import BinaryIndex, Options, View
from vitrine.ann.segment import Segment, SegmentGraph

SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
QUERIES = 50
ROUNDS = 3
K = 10


def index_of(codes: Codes, columns: dict[str, NDArray[np.float64]]) -> BinaryIndex:
    """An index of codes alone; its vectors are one number an item and are not looked at."""
    n, words = codes.shape
    with tempfile.TemporaryDirectory(prefix="vitrine-bench-") as folder:
        built = build(codes, Path(folder), Parameters(), executor=Threads(2))
        graph = SegmentGraph(
            np.array(built.codes), np.array(built.edges), np.array(built.entries), np.array(built.items),
            np.array(built.starts),
        )  # fmt: skip
    attributes = Attributes(n, {name: Column("number", v, np.ones(n, bool)) for name, v in columns.items()})
    ids = np.arange(1, n + 1, dtype=np.uint64)
    segment = Segment(ids, np.ascontiguousarray(codes.T), np.ones((n, 1), np.float32), attributes, graph)
    nothing = Hashing(np.zeros(1, np.float32), np.ones((1, words * 64), np.float32))
    return BinaryIndex(nothing, (View(segment),), 10)


def window(kind: str, place: float, width: float) -> Range:
    """The filter of a query whose cluster is at `place`."""
    middle = place if kind == "correlated" else (place + 0.5) % 1
    low = min(max(middle - width / 2, 0), 1 - width)
    return Range("other" if kind == "random" else "place", at_least=low, below=low + width)


def measure(n: int) -> list[dict[str, Any]]:
    """One row a kind and selectivity."""
    codes, place = generate(n + QUERIES)
    base, asked = np.ascontiguousarray(codes[:n]), np.ascontiguousarray(codes[n:])
    columns = {"place": place[:n].astype(np.float64), "other": np.random.default_rng(2).random(n)}
    say(f"{n:,}: builds")
    index = index_of(base, columns)
    faiss.omp_set_num_threads(1)
    flat, hnsw = faiss.IndexBinaryFlat(base.shape[1] * 64), faiss.IndexBinaryHNSW(base.shape[1] * 64, 16)
    hnsw.hnsw.efConstruction = 100
    for peer in (flat, hnsw):
        peer.add(base.view(np.uint8))
    rows = []
    for kind in ("random", "correlated", "anti"):
        for width in SELECTIVITIES:
            say(f"{n:,}: {kind} {width:.1%}")
            filters = [window(kind, float(place[n + i]), width) for i in range(QUERIES)]
            rows.append({"kind": kind, "selectivity": width} | _row(index, flat, hnsw, asked, filters, columns))
    return rows


def _row(
    index: BinaryIndex,
    flat: Any,
    hnsw: Any,
    asked: Codes,
    filters: list[Range],
    columns: dict[str, NDArray[np.float64]],
) -> dict[str, Any]:
    bitmaps = []
    for each in filters:
        values = columns[each.attribute]
        bitmaps.append(np.packbits((values >= each.at_least) & (values < each.below), bitorder="little"))
    selectors = [faiss.IDSelectorBitmap(bitmap) for bitmap in bitmaps]
    raw = asked.view(np.uint8)
    ways: dict[str, Callable[[int], NDArray[Any]]] = {
        "own": lambda i: index.search_codes(asked[i : i + 1], Options(K, filter=filters[i])).distances,
        "exact": lambda i: (
            index.search_codes(asked[i : i + 1], Options(K, filter=filters[i], exact=True)).distances
        ),
        "flat": lambda i: flat.search(raw[i : i + 1], K, params=faiss.SearchParameters(sel=selectors[i]))[0][0],
        "hnsw": lambda i: hnsw.search(
            raw[i : i + 1], K, params=faiss.SearchParametersHNSW(efSearch=64, sel=selectors[i])
        )[0][0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    recalls: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(len(asked)):
        bound = ways["exact"](i)[-1]
        ways["own"](i)
        for name, way in ways.items():
            times = []
            for _ in range(ROUNDS):
                start = time.process_time()
                found = way(i)
                times.append(time.process_time() - start)
            seconds[name].append(sorted(times)[ROUNDS // 2])
            recalls[name].append(float((found <= bound).sum() / K))
    row: dict[str, Any] = {f"{name}_recall": float(np.mean(r)) for name, r in recalls.items() if name != "exact"}
    row |= {f"{name}_qps": len(asked) / sum(times) for name, times in seconds.items()}
    return row


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.filtered",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=300_000, help="codes (300000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    args = parser.parse_args()
    rows = measure(args.n)
    filtered = {f"{row['kind']}@{row['selectivity']}": {k: v for k, v in row.items() if "_" in k} for row in rows}
    print(json.dumps({"benchmark": "filtered", "n": args.n, "filtered": filtered}) if args.json else table(rows))


if __name__ == "__main__":
    main()
