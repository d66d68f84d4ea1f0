"""The simulated market's truth: tastes, items, crowds, and the probability of a click (docs/data.md, "Simulator").

Everything follows from (seed, sizes) by counter-based draws, so that a test or a calibration can make the same
world again from market.json and ask it for true probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitrine.data import draws
from vitrine.data.pictures import CATEGORIES

STYLES = ("street", "classic", "outdoor")
TOPICS = tuple(f"{style} {category}" for category in CATEGORIES for style in STYLES)
"""What tastes are about: a category in a style; topic t is of category t // 3."""
DIM = 12

CLICK_BIAS, CLICK_SLOPE = -4.5, 5.0
FIRST_AD_ID = 1_000_001

F64 = NDArray[np.floating[Any]]
I64 = NDArray[np.int64]


def click_probability(tastes: F64, ads: F64, quality: F64) -> F64:
    """P(click | impression) = sigmoid(-4.5 + 5 taste.ad + quality), row by row.

    tastes: (n, DIM) unit vectors of users; ads: (n, DIM) unit vectors of ads; quality: (n,) of ads, about +-0.5
    """
    return 1.0 / (1.0 + np.exp(-(CLICK_BIAS + CLICK_SLOPE * affinity(tastes, ads) + quality)))


def affinity(a: F64, b: F64) -> F64:
    """Inner products of rows, in a fixed order, so that no batch size shows in the last bit."""
    total = a[..., 0] * b[..., 0]
    for k in range(1, a.shape[-1]):
        total = total + a[..., k] * b[..., k]
    return np.asarray(total)


@dataclass(frozen=True)
class Choice:
    """A discrete distribution for each topic: `draw` inverts the cumulative weights."""

    n: int
    cumulative: F64  # flat (topics * n,), row t rises from t to t + 1

    @classmethod
    def of(cls, weights: F64) -> Self:
        """weights: (topics, n), not negative, some above 0 in every row."""
        cumulative = np.cumsum(weights, axis=1)
        cumulative /= cumulative[:, -1:]
        return cls(weights.shape[1], (cumulative + np.arange(len(weights))[:, None]).ravel())

    def draw(self, topics: I64, u: F64) -> I64:
        """Index below n for each topic by its uniform draw."""
        at = np.searchsorted(self.cumulative, topics + u, side="right") - topics * self.n
        return np.asarray(np.clip(at, 0, self.n - 1))


@dataclass(frozen=True)
class World:
    """Item i < ads is advertised by ad i; ids are 1 + ordinal, of ads FIRST_AD_ID + ordinal.

    items, crowds: (n, DIM) unit vectors;  item_topics: (items,);  quality: (items,)
    item_indptr, item_crowds: CSR, crowd ordinals ascending inside an item
    item_choice, ad_choice, crowd_choice: what a user of a topic looks at, is shown, joins
    """

    seed: int
    ads: int
    topic_popularity: F64
    topics: F64
    items: F64
    item_topics: I64
    quality: F64
    crowds: F64
    crowd_topics: I64
    item_indptr: I64
    item_crowds: I64
    item_choice: Choice
    ad_choice: Choice
    crowd_choice: Choice
    any_ad: Choice

    @classmethod
    def build(cls, seed: int, *, ads: int, items: int, crowds: int) -> Self:
        """The world of a seed and its sizes; items >= ads. Memory is 30 numbers an item, not users times items."""
        if not 1 <= ads <= items or crowds < 1:
            raise ValueError(f"wanted are 1 <= ads <= items and 1 <= crowds; got {ads=} {items=} {crowds=}")
        category = np.repeat(_unit(seed, "category", len(CATEGORIES)), len(STYLES), axis=0)
        style = np.tile(_unit(seed, "style", len(STYLES)), (len(CATEGORIES), 1))
        topics = _normalise(category + 0.7 * style)
        popularity = (1 + _rank(seed, "topic", len(TOPICS))) ** -0.5

        item_topics = _topic_of(seed, "item/topic", popularity, items)
        crowd_topics = _topic_of(seed, "crowd/topic", popularity, crowds)
        vectors = _normalise(topics[item_topics] + 0.6 * _unit(seed, "item", items))
        crowd_vectors = _normalise(topics[crowd_topics] + 0.5 * _unit(seed, "crowd", crowds))
        reach = (1.0 + np.arange(crowds)) ** -0.75  # the crowds' long tail: crowd 1 is the largest
        fame = (1.0 + _rank(seed, "fame", items)) ** -0.6

        item_weights = fame * np.exp(6.0 * _products(topics, vectors))
        indptr, members = _crowds_of_items(seed, vectors, crowd_vectors, reach)
        return cls(
            seed=seed,
            ads=ads,
            topic_popularity=popularity / popularity.sum(),
            topics=topics,
            items=vectors,
            item_topics=item_topics,
            quality=0.4 * draws.normal(seed, "quality", np.arange(items)),
            crowds=crowd_vectors,
            crowd_topics=crowd_topics,
            item_indptr=indptr,
            item_crowds=members,
            item_choice=Choice.of(item_weights),
            ad_choice=Choice.of(item_weights[:, :ads]),
            crowd_choice=Choice.of(reach * np.exp(5.0 * _products(topics, crowd_vectors))),
            any_ad=Choice.of(fame[None, :ads]),
        )

    @classmethod
    def of_market(cls, meta: Mapping[str, Any]) -> Self:
        """The world that a simulated market was drawn from; meta is `Market.meta`. KeyError for another market."""
        return cls.build(meta["seed"], **meta["world"])

    def user_topics(self, users: NDArray[np.uint64]) -> tuple[I64, I64, F64]:
        """(first topic, second topic, share of the first in 0.55 to 0.9) of each user."""
        choice = Choice.of(self.topic_popularity[None])
        zero = np.zeros(len(users), np.int64)
        first = choice.draw(zero, draws.uniform(self.seed, "user/first", users))
        other = choice.draw(zero, draws.uniform(self.seed, "user/second", users))
        # Half of the second interests are another category in the same style.
        alike = other // len(STYLES) * len(STYLES) + first % len(STYLES)
        second = np.where(draws.uniform(self.seed, "user/alike", users) < 0.5, alike, other)
        return first, second, 0.55 + 0.35 * draws.uniform(self.seed, "user/share", users)

    def tastes(self, users: NDArray[np.uint64]) -> F64:
        """(n, DIM) unit vectors: what each user likes."""
        first, second, share = self.user_topics(users)
        mean = share[:, None] * self.topics[first] + (1 - share[:, None]) * self.topics[second]
        return _normalise(mean + 0.3 * _unit(self.seed, "user/taste", users))


def _crowds_of_items(seed: int, items: F64, crowds: F64, reach: F64) -> tuple[I64, I64]:
    """Each item's 2 to 6 crowds, no crowd twice, by reach and likeness (Gumbel top-k), by the thousand."""
    drawn = 2 + np.floor(5 * draws.uniform(seed, "item/crowds", np.arange(len(items)))).astype(np.int64)
    counts = np.minimum(drawn, len(crowds))
    members = []
    for start in range(0, len(items), 1000):
        rows = np.arange(start, min(start + 1000, len(items)))
        u = draws.uniform(seed, "item/crowd", rows[:, None], np.arange(len(crowds)))
        score = np.log(reach) + 6.0 * _products(items[rows], crowds) - np.log(-np.log(u))
        best = np.argsort(-score, axis=1, kind="stable")[:, :6]
        kept = np.arange(best.shape[1]) < counts[rows, None]
        ranked = np.sort(np.where(kept, best, len(crowds)), axis=1)
        members.append(ranked[ranked < len(crowds)])
    return np.concatenate(([0], np.cumsum(counts))), np.concatenate(members)


def _products(a: F64, b: F64) -> F64:
    """(n, m) inner products of rows, without a BLAS whose order depends on the shape."""
    return affinity(a[:, None, :], b[None, :, :])


def _topic_of(seed: int, stream: str, popularity: F64, n: int) -> I64:
    return Choice.of(popularity[None]).draw(np.zeros(n, np.int64), draws.uniform(seed, stream, np.arange(n)))


def _rank(seed: int, stream: str, n: int) -> I64:
    """A random order: each index's rank."""
    return np.argsort(np.argsort(draws.bits(seed, stream + "/rank", np.arange(n)), kind="stable"))


def _unit(seed: int, stream: str, rows: int | NDArray[np.uint64]) -> F64:
    """Random unit vectors, one a row number or id."""
    ids = np.arange(rows) if isinstance(rows, int) else rows
    return _normalise(draws.normal(seed, stream, ids[:, None], np.arange(DIM)))


def _normalise(x: F64) -> F64:
    return x / np.sqrt(affinity(x, x))[:, None]
