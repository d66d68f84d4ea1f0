"""The Hamming scan beside faiss.IndexBinaryFlat on the same codes, one thread each.

    python -m benchmarks.hamming                      # a table
    python -m benchmarks.hamming --json               # the last line is one JSON object
    python -m benchmarks.hamming --n 100000 --bits 256 --batch 1 --batch 16 --all-kernels

Contenders take turns; times are medians, ratios medians of the rounds' ratios. Read bandwidth is that of summing
the same codes with numpy, in the same rounds (of a cache, where it holds them); a share above 1 means that the scan
reads faster than the sum. Both sides' distances are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import platform

import faiss
import numpy as np

from benchmarks.measure import interleaved, median_ms, median_ratio, table
from vitrine import native


def measure(
    n: int, bits: int, batch: int, k: int, rounds: int, kernels: list[str], seed: int = 0
) -> dict[str, object]:
    """One size: milliseconds, ratios and bandwidth as a flat row."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2**64, (n, bits // 64), dtype=np.uint64)
    queries = rng.integers(0, 2**64, (batch, bits // 64), dtype=np.uint64)
    codes = np.ascontiguousarray(rows.T)
    index = faiss.IndexBinaryFlat(bits)
    index.add(rows.view(np.uint8))

    contenders = {"faiss": lambda: index.search(queries.view(np.uint8), k), "read": lambda: codes.sum()}
    for name in kernels:
        contenders[name] = lambda name=name: native.hamming_topk(codes, queries, k, 1, kernel=name)
        if not np.array_equal(contenders[name]()[1], contenders["faiss"]()[0]):
            raise SystemExit(f"kernel {name} and faiss disagree on distances at n={n}, bits={bits}, batch={batch}")
    seconds = interleaved(contenders, rounds=rounds, label=f"{n:,} x {bits} bits, batch {batch}")

    row: dict[str, object] = {"n": n, "bits": bits, "batch": batch, "faiss_ms": median_ms(seconds["faiss"])}
    for name in kernels:
        row[f"{name}_ms"] = median_ms(seconds[name])
        row[f"{name}_times_faiss"] = median_ratio(seconds["faiss"], seconds[name])
    first, ms = kernels[0], median_ms(seconds[kernels[0]])
    row["ns_per_distance"] = ms * 1e6 / (n * batch)
    row["scan_gb_s"] = codes.nbytes / ms / 1e6
    row["read_gb_s"] = codes.nbytes / median_ms(seconds["read"]) / 1e6
    row["bandwidth_share"] = median_ratio(seconds["read"], seconds[first])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hamming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--n", type=int, action="append", help="codes; may be repeated (100000 and 1000000)")
    parser.add_argument("--bits", type=int, default=512, help="bits a code, a multiple of 64 (512)")
    parser.add_argument("--batch", type=int, action="append", help="queries a call; may be repeated (1 and 64)")
    parser.add_argument("--k", type=int, default=10, help="neighbours asked for (10)")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each contender (11)")
    parser.add_argument(
        "--all-kernels", action="store_true", help="every instruction set of this machine, not the best alone"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    args = parser.parse_args()
    if args.bits < 64 or args.bits % 64:
        parser.error(f"--bits: expected a multiple of 64, got {args.bits}")

    faiss.omp_set_num_threads(1)
    kernels = native.supported_kernels() if args.all_kernels else [native.kernel()]
    sizes = [(n, batch) for n in args.n or [100_000, 1_000_000] for batch in args.batch or [1, 64]]
    rows = [measure(n, args.bits, batch, args.k, args.rounds, kernels) for n, batch in sizes]
    report = {
        "benchmark": "hamming",
        "kernel": kernels[0],
        "machine": platform.machine(),
        "faiss": faiss.__version__,
        "threads": 1,
        "k": args.k,
        "rounds": args.rounds,
        "least_times_faiss": min(row[f"{kernels[0]}_times_faiss"] for row in rows),
        "results": rows,
    }
    print(json.dumps(report) if args.json else table(rows))


if __name__ == "__main__":
    main()
