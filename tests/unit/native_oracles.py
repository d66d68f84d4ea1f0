"""The slow, obvious versions of the kernels of `vitrine.native`, to the bit (definitions: docs/native.md)."""

from __future__ import annotations

import numpy as np


def hamming_topk(codes, queries, k):
    """Every distance, then a stable sort: equal distances leave the lower row first."""
    words, n = codes.shape
    distances = np.zeros((len(queries), n), np.uint32)
    for word in range(words):
        distances += np.bitwise_count(codes[word][None, :] ^ queries[:, word][:, None])
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k].astype(np.uint32)
    return rows, np.take_along_axis(distances, rows, axis=1)


def sigmoid(x):
    """float32 in, float32 out: every operation rounded once, in this order."""
    f = np.float32
    with np.errstate(all="ignore"):
        a = np.where(np.abs(x) < f(87), np.abs(x), f(87))
        shift = f(12582912)
        n = (-a * f(1.44269504088896341) + shift) - shift
        r = (-a - n * f(0.693359375)) - n * f(-2.12194440e-4)
        p = np.full_like(x, f(1.9875691500e-4))
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = p * r + f(c)
        e = ((p * (r * r) + r) + f(1)) * np.exp2(n)
        return np.where(x >= 0, f(1), e) / (f(1) + e)


def tower_pctr(user_bias, user_vec, ads, ad_bias, ad_vecs):
    """Element i of the dot product goes to lane i mod 8; the eight lanes are summed as a tree."""
    d = len(user_vec)
    padded = (d + 7) // 8 * 8
    u = np.zeros(padded, np.float32)
    u[:d] = user_vec
    v = np.zeros((len(ads), padded), np.float32)
    v[:, :d] = ad_vecs[ads]
    with np.errstate(all="ignore"):
        lanes = np.zeros((len(ads), 8), np.float32)
        for i in range(0, padded, 8):
            lanes = lanes + u[i : i + 8] * v[:, i : i + 8]
        halves = lanes[:, :4] + lanes[:, 4:]
        quarters = halves[:, :2] + halves[:, 2:]
        return sigmoid((np.float32(user_bias) + ad_bias[ads]) + (quarters[:, 0] + quarters[:, 1]))


def match_topk(
    user_bias, user_vecs, user_indptr, user_crowds, crowd_indptr, posting_ads, posting_bids, ad_bias, ad_vecs, k
):
    """A dictionary of best bids a user, every ad scored, one sort."""
    users = len(user_bias)
    counts, eligible = np.zeros(users, np.int32), np.zeros(users, np.uint64)
    ads, crowds = np.zeros((users, k), np.uint32), np.zeros((users, k), np.uint32)
    values, bids = np.zeros((users, k), np.float32), np.zeros((users, k), np.float32)
    for user in range(users):
        best: dict[int, tuple[float, int]] = {}
        for crowd in user_crowds[user_indptr[user] : user_indptr[user + 1]]:
            for p in range(crowd_indptr[crowd], crowd_indptr[crowd + 1]):
                ad, bid = int(posting_ads[p]), posting_bids[p]
                eligible[user] += 1
                if ad not in best or bid > best[ad][0]:
                    best[ad] = (bid, int(crowd))
        touched = np.array(sorted(best), np.uint32)
        pctr = tower_pctr(user_bias[user], user_vecs[user], touched, ad_bias, ad_vecs)
        ranked = sorted((-(best[int(ad)][0] * p), int(ad)) for ad, p in zip(touched, pctr, strict=True))[:k]
        counts[user] = len(ranked)
        for i, (value, ad) in enumerate(ranked):
            ads[user, i], values[user, i] = ad, -value
            bids[user, i], crowds[user, i] = best[ad]
    return counts, ads, values, crowds, bids, eligible


def market(rng, users=3, crowds=7, ads=20, d=5, postings=60, crowds_a_user=4, bid_levels=4):
    """Arguments of match_topk up to `k`: few distinct bids and repeated ads, so that ties are common."""
    lengths = np.bincount(rng.integers(0, crowds, postings), minlength=crowds) if crowds else np.zeros(0, int)
    posting_ads = [np.sort(rng.choice(ads, min(n, ads), replace=False)) for n in lengths]
    most = min(crowds, crowds_a_user)
    held = [np.sort(rng.choice(crowds, rng.integers(0, most + 1), replace=False)) for _ in range(users)]
    indptr = lambda parts: np.cumsum([0, *map(len, parts)]).astype(np.int64)  # noqa: E731
    flat = lambda parts: np.concatenate([np.zeros(0, int), *parts]).astype(np.uint32)  # noqa: E731
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    vectors = normal(ads, d)
    vectors[1::2] = vectors[: len(vectors[1::2])]  # equal pCTRs, where biases are equal too
    return (
        normal(users),
        normal(users, d),
        indptr(held),
        flat(held),
        indptr(posting_ads),
        flat(posting_ads),
        rng.integers(1, bid_levels + 1, len(flat(posting_ads))).astype(np.float32),
        np.zeros(ads, np.float32) if rng.integers(2) else normal(ads),
        vectors,
    )
