"""Brute-force matching beside the plain numpy version, one thread each, in users a second.

    python -m benchmarks.match                        # a table
    python -m benchmarks.match --json                 # the last line is one JSON object
    python -m benchmarks.match --ads 1000000 --crowds 100000 --postings 5000000 --d 32

The market is drawn: crowd sizes long-tailed, bids lognormal, each user in `--user-crowds` crowds. Contenders take
turns; times are medians. Both sides' ads are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import platform

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import interleaved, median_ms, median_ratio, table
from vitrine import native


def market(
    users: int, ads: int, crowds: int, postings: int, d: int, user_crowds: int, seed: int = 0
) -> tuple[NDArray[np.generic], ...]:
    """The array arguments of `native.match_topk`."""
    rng = np.random.default_rng(seed)
    crowd = (crowds * rng.random(postings) ** 2).astype(np.int64)  # low ordinals are the large crowds
    pairs = np.unique(crowd * ads + rng.integers(0, ads, postings))
    held = [np.unique((crowds * rng.random(4 * user_crowds) ** 2).astype(np.uint32)) for _ in range(users)]
    held = [np.sort(rng.permutation(own)[:user_crowds]) for own in held]

    def normal(scale: float, *shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    return (
        normal(1, users) - np.float32(3),
        normal(d**-0.5, users, d),
        np.cumsum([0, *map(len, held)]),
        np.concatenate(held),
        np.searchsorted(pairs // ads, np.arange(crowds + 1)),
        (pairs % ads).astype(np.uint32),
        rng.lognormal(size=len(pairs)).astype(np.float32),
        normal(1, ads),
        normal(1, ads, d),
    )


def match_numpy(
    user_bias, user_vecs, user_indptr, user_crowds, crowd_indptr, posting_ads, posting_bids, ad_bias, ad_vecs, k
):
    """What one writes first: gather a user's postings, the best bid an ad, a matrix product, argpartition."""
    lists = []
    for user in range(len(user_bias)):
        own = user_crowds[user_indptr[user] : user_indptr[user + 1]]
        spans = [slice(crowd_indptr[crowd], crowd_indptr[crowd + 1]) for crowd in own]
        ads = np.concatenate([posting_ads[span] for span in spans])
        bids = np.concatenate([posting_bids[span] for span in spans])
        order = np.lexsort((-bids, ads))
        ads, bids = ads[order], bids[order]
        first = np.r_[True, ads[1:] != ads[:-1]]
        ads, bids = ads[first], bids[first]
        value = bids / (1 + np.exp(-(user_bias[user] + ad_bias[ads] + ad_vecs[ads] @ user_vecs[user])))
        best = np.argpartition(-value, min(k, len(value)) - 1)[:k]
        lists.append(ads[best[np.lexsort((ads[best], -value[best]))]])
    return lists


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.match", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=200, help="users a call (200)")
    parser.add_argument("--ads", type=int, default=100_000, help="ads of the catalog (100000)")
    parser.add_argument("--crowds", type=int, default=10_000, help="crowds of the catalog (10000)")
    parser.add_argument("--postings", type=int, default=2_000_000, help="bids drawn, repeats dropped (2000000)")
    parser.add_argument("--d", type=int, default=16, help="dimensions of the towers (16)")
    parser.add_argument("--user-crowds", type=int, default=20, help="crowds a user (20)")
    parser.add_argument("--k", type=int, default=100, help="ads of a list (100)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (7)")
    parser.add_argument(
        "--all-kernels", action="store_true", help="every instruction set of this machine, not the best alone"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    args = parser.parse_args()

    arrays = market(args.users, args.ads, args.crowds, args.postings, args.d, args.user_crowds)
    kernels = native.supported_kernels() if args.all_kernels else [native.kernel()]
    contenders = {"numpy": lambda: match_numpy(*arrays, args.k)}
    for name in kernels:
        contenders[name] = lambda name=name: native.match_topk(*arrays, args.k, 1, kernel=name)
    counts, best, _, _, _, eligible = contenders[kernels[0]]()
    shared = [
        len(np.intersect1d(mine[:n], theirs))
        for mine, n, theirs in zip(best, counts, contenders["numpy"](), strict=True)
    ]
    if (
        sum(shared) < 0.999 * counts.sum()
    ):  # numpy rounds otherwise: a tie at the end of a list may fall differently
        raise SystemExit(f"numpy agrees on {sum(shared)} of {counts.sum()} ads only")
    seconds = interleaved(contenders, rounds=args.rounds, label=f"{args.users:,} users, {args.ads:,} ads")

    pairs = int(eligible.sum())
    rows: list[dict[str, object]] = [
        {
            "contender": name,
            "ms": median_ms(seconds[name]),
            "users_s": args.users / median_ms(seconds[name]) * 1e3,
            "ns_per_pair": median_ms(seconds[name]) * 1e6 / pairs,
            "times_numpy": median_ratio(seconds["numpy"], seconds[name]),
        }
        for name in contenders
    ]
    fastest = rows[1]
    report = {
        "benchmark": "match",
        "kernel": kernels[0],
        "machine": platform.machine(),
        "threads": 1,
        **{
            name: getattr(args, name)
            for name in ("users", "ads", "crowds", "postings", "d", "user_crowds", "k", "rounds")
        },
        "pairs_a_user": pairs / args.users,
        "users_s": fastest["users_s"],
        "times_numpy": fastest["times_numpy"],
        "results": rows,
    }
    print(json.dumps(report) if args.json else table(rows))


if __name__ == "__main__":
    main()
