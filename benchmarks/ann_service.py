"""Searches over gRPC beside the library's own: what the service costs, and what batches and coalescing win.

    python -m benchmarks.ann_service                   # 300,000 items, 512 bits, a table
    python -m benchmarks.ann_service --n 1000000 --json

Items are unit vectors of 64 dimensions around 1,000 centres. `library` is `BinaryIndex.search_vectors` in this
process, batches of 64 on one thread; the server is a process of its own. Ways to ask it: one call at a time; calls
of 64 queries; single calls from 32 threads of another process, with coalescing and without (`--batches 0`); the
same through a router of one shard. Queries a second by the clock; callers and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import table
from vitrine.ann import hashing
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters, Threads
from vitrine.ann.index import BinaryIndex, Options, View
from vitrine.ann.segment import Segment
from vitrine.artifacts import ArtifactStore
from vitrine.client import AnnClient, VitrineError
from vitrine.runtime import process

DIM, BATCH, K = 64, 64, 10
CALLERS = 32
SECONDS = 4.0

Floats = NDArray[np.float32]


def generate(n: int, seed: int) -> Floats:
    """Unit vectors float32 (n, DIM)."""
    centres = np.random.default_rng(0).standard_normal((1000, DIM)).astype(np.float32)
    draws = np.random.default_rng(seed)
    points = centres[draws.integers(0, 1000, n)] + np.float32(0.6) * draws.standard_normal((n, DIM), np.float32)
    unit: Floats = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit


def publish(folder: Path, n: int) -> BinaryIndex:
    """`embeddings` without an encoder and `binary-index` in folder/store; the index."""
    store = ArtifactStore(folder / "store")
    vectors, ids = generate(n, 1), np.arange(1, n + 1, dtype=np.uint64)
    function = hashing.fit(vectors[:100_000])
    segment = Segment.build(
        ids, vectors, function, Attributes.none(n), Parameters(), folder / "build", executor=Threads(2)
    )
    index = BinaryIndex(function, (View(segment),), 20)
    for name in ("embeddings", "index"):
        (folder / name).mkdir()
    np.save(folder / "embeddings" / "ids.npy", ids[:1])
    np.save(folder / "embeddings" / "vectors.npy", vectors[:1])
    parent = store.publish("embeddings", folder / "embeddings", schema=1)
    index.write(folder / "index")
    store.publish("binary-index", folder / "index", schema=2, parents={"embeddings": parent.version})
    return index


@contextmanager
def serving(folder: Path, batches: int) -> Iterator[str]:
    """A server of the store, until the end; its address."""
    settings = {"VITRINE_STORE": str(folder / "store"), "VITRINE_BATCHES": str(batches)}
    with _started("services.ann", folder / f"address-{batches}", settings) as address:
        yield address


def routing(folder: Path, server: str) -> AbstractContextManager[str]:
    """A router before a server of the only shard."""
    return _started("services.ann.router", folder / "address-router", {"VITRINE_SHARDS": server})


@contextmanager
def _started(module: str, file: Path, settings: dict[str, str]) -> Iterator[str]:
    environment = os.environ | settings | {
        "VITRINE_ADDRESS_FILE": str(file), "VITRINE_LOG_LEVEL": "error", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    server = process.spawn([sys.executable, "-m", module], stdout=sys.stderr, env=environment)
    try:
        while not file.exists():
            time.sleep(0.05)
        address: str = json.loads(file.read_text())["address"]
        with AnnClient(address, timeout_s=60) as client:
            while True:
                try:
                    client.stats()
                    break
                except VitrineError:
                    time.sleep(0.1)
        yield address
    finally:
        process.stop(server)


def one_at_a_time(address: str, queries: Floats) -> tuple[float, float]:
    """(queries a second, median milliseconds) of single calls."""
    seconds = []
    with AnnClient(address, timeout_s=10) as client:
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            begin = time.perf_counter()
            client.search(queries[len(seconds) % len(queries)], k=K)
            seconds.append(time.perf_counter() - begin)
    return len(seconds) / sum(seconds), statistics.median(seconds) * 1e3


def in_batches(address: str, queries: Floats) -> float:
    """Queries a second in calls of BATCH from two threads."""
    return (
        _together(address, 2, lambda client, at: client.search(np.roll(queries, at, axis=0)[:BATCH], k=K)) * BATCH
    )


def from_many(address: str) -> float:
    """Queries a second of single calls from CALLERS threads of another process."""
    command = [sys.executable, "-m", "benchmarks.ann_service", "--call", address]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _together(address: str, threads: int, call: Any) -> float:
    """Calls a second."""
    done = [0] * threads
    until = time.perf_counter() + SECONDS

    def work(number: int) -> None:
        while time.perf_counter() < until:
            call(client, done[number])
            done[number] += 1

    with AnnClient(address, timeout_s=60) as client:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return sum(done) / SECONDS


def measure(n: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds, ways in turn."""
    queries = generate(1024, 2)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="vitrine-bench-") as name:
        folder = Path(name)
        print(f"{n:,} items: builds", file=sys.stderr, flush=True)
        index = publish(folder, n)
        default = max(1, (os.cpu_count() or 1) // 2)
        with serving(folder, default) as joined, serving(folder, 0) as apart, routing(folder, joined) as routed:
            for turn in range(rounds):
                print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
                begin = time.perf_counter()
                for start in range(0, len(queries), BATCH):
                    index.search_vectors(queries[start : start + BATCH], Options(K))
                note("library_batched_qps", len(queries) / (time.perf_counter() - begin))
                qps, ms = one_at_a_time(joined, queries)
                note("single_qps", qps)
                note("single_p50_ms", ms)
                note("grpc_batched_qps", in_batches(joined, queries))
                note("many_coalesced_qps", from_many(joined))
                note("many_alone_qps", from_many(apart))
                _, through = one_at_a_time(routed, queries)
                note("router_hop_ms", through - ms)
                note("router_qps", from_many(routed))
    row: dict[str, Any] = {"n": n, "callers": CALLERS} | {key: statistics.median(v) for key, v in found.items()}
    row["grpc_qps_share"] = statistics.median(
        g / own for g, own in zip(found["grpc_batched_qps"], found["library_batched_qps"], strict=True)
    )
    row["coalescing_ratio"] = statistics.median(
        a / b for a, b in zip(found["many_coalesced_qps"], found["many_alone_qps"], strict=True)
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ann_service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=300_000, help="items (300000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        queries = generate(1024, 3)
        print(_together(args.call, CALLERS, lambda client, at: client.search(queries[at % 1024], k=K)))
        return
    row = measure(args.n, args.rounds)
    print(json.dumps({"benchmark": "ann_service"} | row) if args.json else table([row]))


if __name__ == "__main__":
    main()
