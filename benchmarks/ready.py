"""How long a server takes from a verified local copy of an index to answers: mapped, checked and warmed.

    python -m benchmarks.ready                            # 1,000,000 items, a table
    python -m benchmarks.ready --n 10000000 --json        # about ten minutes, and 12 GB in --folder

Items are unit vectors of 64 dimensions around 1,000 centres, indexed by `trainers.bdg` with 256 bits. `ready_s` is
the time that a fresh process needs for what the service does before it is SERVING, once the files are verified:
`services.ann.loading.load`, which maps them, checks that they fit each other and searches for the first items.
`verify_s` is the SHA-256 of all files before it. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import table
from services.ann.loading import load
from services.ann.updates import Shard
from trainers.bdg.train import Config, Inputs, Means, train
from vitrine.ann import index
from vitrine.ann.build import Threads
from vitrine.ann.index import Options
from vitrine.artifacts import ArtifactStore

DIM, BITS = 64, 256
_CHUNK = 1 << 16


def publish(folder: Path, n: int, workers: int) -> None:
    """`embeddings` and `binary-index` of n items in folder/store."""
    made = folder / "embeddings"
    made.mkdir()
    np.save(made / "ids.npy", np.arange(1, n + 1, dtype=np.uint64))
    vectors = np.lib.format.open_memmap(made / "vectors.npy", mode="w+", shape=(n, DIM), dtype=np.float32)
    draws = np.random.default_rng(1)
    centres = draws.standard_normal((1000, DIM)).astype(np.float32)
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        points = centres[draws.integers(0, 1000, size)] + np.float32(0.6) * draws.standard_normal(
            (size, DIM), np.float32
        )
        vectors[start : start + size] = points / np.linalg.norm(points, axis=1, keepdims=True)
    vectors.flush()
    store = ArtifactStore(folder / "store")
    store.publish("embeddings", made, schema=1)
    config = Config(bits=BITS, splits=())
    train(store, Inputs(), folder / "work", config, Means(Threads(workers), 6_000))


def ready(root: str) -> dict[str, Any]:
    """In this process, which has not seen the files yet."""
    store = ArtifactStore(root)
    begin = time.perf_counter()
    artifact = store.fetch(index.KIND, max_schema=index.SCHEMA)
    store.fetch("embeddings", max_schema=1)
    verified = time.perf_counter()
    loaded, _, _ = load(artifact, store, Shard(0, 1))
    served = time.perf_counter()
    loaded.search_vectors(np.asarray(loaded.segments[0].segment.vectors[:1]), Options(10))
    return {
        "items": loaded.items,
        "verify_s": verified - begin,
        "ready_s": served - verified,
        "first_search_ms": (time.perf_counter() - served) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ready", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1_000_000, help="items (1000000)")
    parser.add_argument("--workers", type=int, default=2, help="threads of the build (2)")
    parser.add_argument("--folder", type=Path, help="where files are kept meanwhile")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    parser.add_argument("--ready", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ready:
        print(json.dumps(ready(args.ready)))
        return
    with tempfile.TemporaryDirectory(prefix="vitrine-bench-", dir=args.folder) as name:
        publish(Path(name), args.n, args.workers)
        command = [sys.executable, "-m", "benchmarks.ready", "--ready", f"{name}/store"]
        rows = []
        for _ in range(3):
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    row = {key: float(np.median([each[key] for each in rows])) for key in rows[0]}
    print(json.dumps({"benchmark": "ready"} | row) if args.json else table([row]))


if __name__ == "__main__":
    main()
