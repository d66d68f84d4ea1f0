"""Updates of an index: how many a core applies, what folding costs searches, and what it leaves of recall.

    python -m benchmarks.live                     # 200,000 items, a table
    python -m benchmarks.live --n 1000000 --json

Vectors are a Gaussian mixture of unit length (`generate`). Upserts replace half of the items, in batches of 2,000;
a core's are CPU seconds of the whole process, with folding and merging and without. Searches go one at a time,
before the upserts and beside them at `--rate` a second; the ratio is of their p99. Recall is of the true 10 nearest
by cosine, at the index's defaults, of what the upserts left and of a fresh build of the same items. End to end,
upserts go through a server of its own process and Kafka (VITRINE_KAFKA_HOME, else it is left out), in calls of 500
from four threads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import table
from vitrine.ann import hashing
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.index import BinaryIndex, Options, View
from vitrine.ann.live import LiveIndex
from vitrine.ann.segment import Segment
from vitrine.ann.updates import Update
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.artifacts import ArtifactStore
from vitrine.placement import qualify
from vitrine.runtime import kafka, process, topics
from vitrine.runtime.contained import offsets
from vitrine.runtime.embedded import EmbeddedStack, why_no_kafka

DIM, BITS, K = 128, 256, 10
BATCH = 2_000
CALL, CALLERS = 500, 4
ASKED = 500

Floats = NDArray[np.float32]


def generate(n: int, seed: int) -> Floats:
    """Unit vectors float32 (n, DIM): points of deviation 0.5 around 1,000 centres of deviation 1."""
    centres = np.random.default_rng(0).standard_normal((1_000, DIM)).astype(np.float32)
    draws = np.random.default_rng(seed)
    points = centres[draws.integers(0, len(centres), n)]
    points += np.float32(0.5) * draws.standard_normal((n, DIM), np.float32)
    unit: Floats = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit


def build(ids: NDArray[np.uint64], vectors: Floats, function: hashing.Hashing) -> BinaryIndex:
    """As trainers/bdg does."""
    with tempfile.TemporaryDirectory() as folder:
        segment = Segment.build(ids, vectors, function, Attributes.none(len(ids)), Parameters(), Path(folder))
    return BinaryIndex(function, (View(segment),), 10)


def replacements(n: int) -> Iterator[list[Update]]:
    """New vectors of every other item, in batches."""
    vectors = generate(n // 2, seed=3)
    items = np.random.default_rng(4).permutation(n // 2) * 2 + 1
    for start in range(0, len(items), BATCH):
        chosen = items[start : start + BATCH].tolist()
        yield [Update(item, vectors[item // 2]) for item in chosen]


def applied(base: BinaryIndex, n: int, fold_at: int) -> tuple[float, LiveIndex]:
    """(upserts a CPU second, the index after it) with all folding that they cause."""
    batches = list(replacements(n))
    live = LiveIndex(base, fold_at=fold_at)
    begin = time.process_time()
    for batch in batches:
        live.apply(batch)
    live.settle(600)
    return sum(map(len, batches)) / (time.process_time() - begin), live


def latencies(live: LiveIndex, queries: Floats, until: threading.Event, least: int) -> list[float]:
    """Seconds of single searches, of at least so many and until the event."""
    seconds = []
    while len(seconds) < least or not until.is_set():
        query = queries[len(seconds) % len(queries)][None]
        begin = time.perf_counter()
        live.current.search_vectors(query, Options(K))
        seconds.append(time.perf_counter() - begin)
        time.sleep(0.002)  # an open loop would measure its own queue
    return seconds


def beside_folding(base: BinaryIndex, n: int, rate: int, queries: Floats) -> dict[str, float]:
    """p50 and p99 of searches in milliseconds, before upserts and beside them."""
    found: dict[str, float] = {}
    with LiveIndex(base) as live, ThreadPoolExecutor(1) as searching:
        over = threading.Event()
        over.set()
        latencies(live, queries, over, 500)
        quiet = latencies(live, queries, over, 3_000)
        over.clear()
        busy = searching.submit(latencies, live, queries, over, 1_000)
        at = time.monotonic()
        for batch in replacements(n):
            for start in range(0, len(batch), BATCH // 10):
                live.apply(batch[start : start + BATCH // 10])
                at += BATCH / 10 / rate
                time.sleep(max(0.0, at - time.monotonic()))
        over.set()
        for name, seconds in (("quiet", quiet), ("folding", busy.result())):
            found[f"p50_ms_{name}"], found[f"p99_ms_{name}"] = np.percentile(
                np.array(seconds) * 1e3, [50, 99]
            ).tolist()
    return found | {"p99_ratio": found["p99_ms_folding"] / found["p99_ms_quiet"]}


def recall(index: BinaryIndex, vectors: Floats, queries: Floats) -> float:
    """recall@10 of exact cosines; item i + 1 is row i."""
    hits = index.search_vectors(queries, Options(K))
    right = 0
    for query, at in zip(queries, hits.slices(), strict=True):
        scores = vectors @ query
        tenth = np.partition(scores, -K)[-K] - 1e-6
        right += int((scores[hits.ids[at].astype(np.int64) - 1] >= tenth).sum())
    return right / (K * len(queries))


def measure(n: int, rate: int) -> dict[str, Any]:
    """All but the way through Kafka."""
    vectors, queries = generate(n, seed=1), generate(ASKED, seed=2)
    function = hashing.fit(vectors[:: max(1, n // 20_000)], BITS, seed=0)
    ids = np.arange(1, n + 1, dtype=np.uint64)
    base = build(ids, vectors, function)
    unfolded, live = applied(base, n, fold_at=n)
    live.close()
    folded, live = applied(base, n, fold_at=8192)
    after = vectors.copy()
    for batch in replacements(n):
        for update in batch:
            after[update.item_id - 1] = update.vector
    of_live, segments = recall(live.current, after, queries), len(live.current.segments)
    live.close()
    of_fresh = recall(build(ids, after, function), after, queries)
    return {
        "items": n,
        "upserts_per_core_s": folded,
        "upserts_per_core_s_unfolded": unfolded,
        "segments": segments,
        "recall_live": of_live,
        "recall_fresh": of_fresh,
        "recall_change": of_live - of_fresh,
        **beside_folding(base, n, rate, queries),
    }


def end_to_end(items: int, home: str) -> dict[str, Any]:
    """Items a second through gRPC, Kafka and back into a snapshot, of one server, and the wait of one alone."""
    namespace = "bench"
    with tempfile.TemporaryDirectory() as name, EmbeddedStack(kafka_home=home, redis_url="redis://none:1") as stack:
        folder = Path(name)
        topics.create(stack.kafka_url, namespace, 8)
        version = _publish(folder, namespace, stack.kafka_url)
        address = folder / "address"
        server = process.spawn(
            [sys.executable, "-m", "services.ann"],
            stdout=sys.stderr,
            env=os.environ
            | {
                "VITRINE_STORE": str(folder / "store"), "VITRINE_NAMESPACE": namespace,
                "VITRINE_KAFKA_URL": stack.kafka_url, "VITRINE_ADDRESS_FILE": str(address),
                "VITRINE_LOG_LEVEL": "error",
            },
        )  # fmt: skip
        try:
            return _through(address, version, items)
        finally:
            process.stop(server)


def _publish(folder: Path, namespace: str, url: str) -> str:
    """An index of 1,000 items; the version of its embeddings."""
    store = ArtifactStore(folder / "store", namespace=namespace)
    vectors = generate(1_000, seed=1)
    for name in ("embeddings", "index"):
        (folder / name).mkdir()
    np.save(folder / "embeddings" / "ids.npy", np.arange(1, 1_001, dtype=np.uint64))
    np.save(folder / "embeddings" / "vectors.npy", vectors)
    parent = store.publish("embeddings", folder / "embeddings", schema=1)
    build(np.arange(1, 1_001, dtype=np.uint64), vectors, hashing.fit(vectors, BITS, seed=0)).write(folder / "index")
    contained = offsets(qualify(namespace, topics.ITEM_UPDATES), kafka.cluster_id(url), {})
    store.publish(
        "binary-index", folder / "index", schema=2, parents={"embeddings": parent.version}, offsets=contained
    )
    return parent.version


def _through(address: Path, version: str, items: int) -> dict[str, Any]:
    while not address.exists():
        time.sleep(0.05)
    vectors = generate(CALL, seed=5).tobytes()
    with grpc.insecure_channel(json.loads(address.read_text())["address"]) as channel:
        stub = ann_pb2_grpc.AnnServiceStub(channel)

        def upsert(first: int, count: int) -> float:
            request = ann_pb2.UpsertRequest(
                item_ids=range(first, first + count), vectors=vectors[: 4 * DIM * count], embeddings_version=version
            )
            begin = time.perf_counter()
            stub.Upsert(request, timeout=60, wait_for_ready=True)
            return time.perf_counter() - begin

        while True:  # until it serves
            try:
                upsert(1, 1)
                break
            except grpc.RpcError:
                time.sleep(0.1)
        alone = [upsert(2 + i, 1) for i in range(300)]
        with ThreadPoolExecutor(CALLERS) as callers:
            begin = time.perf_counter()
            list(callers.map(lambda first: upsert(first, CALL), range(1, items + 1, CALL)))
            seconds = time.perf_counter() - begin
    return {
        "end_to_end_items_per_s": items / seconds,
        "upsert_p50_ms": float(np.median(alone) * 1e3),
        "upsert_p99_ms": float(np.percentile(alone, 99) * 1e3),
    }


def main() -> int:
    """Prints a table, or one JSON object a size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, action="append", help="items, again for several sizes; 200000")
    parser.add_argument("--rate", type=int, default=5_000, help="upserts a second beside the searches")
    parser.add_argument(
        "--end-to-end", type=int, default=50_000, help="items upserted through gRPC and Kafka; 0: none"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    args = parser.parse_args()
    home = os.environ.get("VITRINE_KAFKA_HOME", "")
    missing = why_no_kafka(home) if args.end_to_end else "not asked for"
    through = {} if missing else end_to_end(args.end_to_end, home)
    if missing:
        print(f"end to end is left out: {missing}", file=sys.stderr)
    for n in args.n or [200_000]:
        row = measure(n, args.rate) | through
        print(json.dumps({"live": row}) if args.json else table([{"": key, "value": row[key]} for key in row]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
