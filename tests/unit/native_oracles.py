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


def turn(vectors, flips):
    """Two rounds of sign flips and a Hadamard transform of the first, then the last, power of two of the width."""
    width = flips.shape[1]
    turned = np.zeros((len(vectors), width), np.float32)
    turned[:, : vectors.shape[1]] = vectors
    reach = 1 << width.bit_length() - 1
    for flip, first in zip(flips, (0, width - reach), strict=True):
        turned *= flip
        part = turned[:, first : first + reach].copy()
        step = 1
        while step < reach:
            pairs = part.reshape(-1, reach // (2 * step), 2, step)
            part = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
            step *= 2
        turned[:, first : first + reach] = part.reshape(-1, reach) * np.float32(1 / np.sqrt(reach))
    return turned


def coarse_encode(vectors, flips, bits):
    """Coordinates rounded to the grid that the largest spans; exact sums for the factor."""
    turned = turn(vectors, flips)
    share = turned / np.abs(turned).max(axis=1, keepdims=True)
    if bits == 8:
        integers = np.rint(share * np.float32(127)).astype(int)
        codes = integers.astype(np.int8).view(np.uint8)
    else:
        levels = np.minimum((share * np.float32(7.5) + np.float32(8)).astype(int), 15)
        integers = 2 * levels - 15
        halves = levels.reshape(len(levels), -1, 2, 32)
        codes = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(levels), -1).astype(np.uint8)
    exact = np.rint(turned.astype(float) * 2**24) / 2**24
    return codes, ((exact * exact).sum(axis=1) / (exact * integers).sum(axis=1)).astype(np.float32)


def coarse_integers(codes, width):
    """What the rows of `coarse_encode` stand for, int (n, width)."""
    if codes.shape[1] == width:
        return codes.view(np.int8).astype(int)
    halves = codes.astype(int).reshape(len(codes), width // 64, 1, 32)
    return 2 * np.concatenate((halves & 15, halves >> 4), axis=2).reshape(len(codes), width) - 15


def coarse_scores(codes, factors, flips, query, rows):
    """A query's scores with rows: integers from the query too, one product, two roundings."""
    width = flips.shape[1]
    turned = turn(query[None], flips)[0]
    unit = np.abs(turned).max() / np.float32(min(8191, (2**31 - 1) // (127 * width)))
    products = coarse_integers(codes[rows], width) @ np.rint(turned / unit).astype(int)
    return products.astype(np.float32) * factors[rows] * unit


def vector_scores(vectors, query, rows):
    """Element i goes to lane i mod 8; the eight lanes are summed as a tree, as in `tower_pctr`."""
    padded = -(-vectors.shape[1] // 8) * 8
    q, v = np.zeros(padded, np.float32), np.zeros((len(rows), padded), np.float32)
    q[: vectors.shape[1]], v[:, : vectors.shape[1]] = query, vectors[rows]
    lanes = np.zeros((len(rows), 8), np.float32)
    for i in range(0, padded, 8):
        lanes = lanes + q[i : i + 8] * v[:, i : i + 8]
    halves = lanes[:, :4] + lanes[:, 4:]
    quarters = halves[:, :2] + halves[:, 2:]
    return quarters[:, 0] + quarters[:, 1]


def topk(rows, scores, k):
    """The k best by score, then row; 2^32 - 1 and 0 beyond."""
    order = np.lexsort((rows, -scores))[:k]
    best_rows, best_scores = np.full(k, 2**32 - 1, np.uint32), np.zeros(k, np.float32)
    best_rows[: len(order)], best_scores[: len(order)] = rows[order], scores[order]
    return best_rows, best_scores
