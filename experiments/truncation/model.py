"""The one click model of both systems: trainers/des on what the baseline logged, impressions and clicks alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.truncation.market import Market
from experiments.truncation.settings import HALF_LIFE_MS
from trainers.des import examples as building
from trainers.des.history import States, user_bags
from trainers.des.inputs import CLICK, IMPRESSION, Rows
from trainers.des.train import Config, Trainer
from trainers.runtime.dist import Group
from vitrine.features import feature_keys, towers

__all__ = ["Logged", "Model", "by_rate", "smoothed", "train", "user_bags"]

F32 = NDArray[np.float32]

PRIOR_IMPRESSIONS = 20.0
"""Impressions at the mean rate that every ad's historical click rate starts from."""


@dataclass(frozen=True, slots=True)
class Logged:
    """Impressions of one system in the order of time: user, ad (ordinals), time_ms, clicked."""

    user: NDArray[np.int64]
    ad: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    clicked: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Model:
    """A factorization machine cut in two: logit = user's bias + ad's bias + <user's vector, ad's vector>.

    w, v: (F,), (F, d) of a user's features, items and then crowds; ad_bias (A,), ad_vecs (A, d)
    """

    bias: float
    w: F32
    v: F32
    ad_bias: F32
    ad_vecs: F32

    def user(self, states: States, users: NDArray[np.int64]) -> tuple[F32, F32]:
        """The user's half, (n,) and (n, d), of states as they are now."""
        bags = states.features(users)
        b, vec = towers_of(self.w, self.v, bags.indptr, bags.ids, bags.x)
        return np.float32(self.bias) + b, vec

    def click_rate(self, user_bias: F32, user_vecs: F32, ads: NDArray[np.integer]) -> F32:
        """pCTR of ads (n, m) to users (n,), (n, d)."""
        logit = user_bias[:, None] + self.ad_bias[ads] + np.einsum("nd,nmd->nm", user_vecs, self.ad_vecs[ads])
        return np.asarray(1.0 / (1.0 + np.exp(-logit)), np.float32)


def towers_of(w: F32, v: F32, indptr: NDArray[np.int64], ids: NDArray[np.integer], x: F32) -> tuple[F32, F32]:
    """`vitrine.features.towers` by segmented sums: thousands of users a call, the last bit aside."""
    n = len(indptr) - 1
    b, vec, own = np.zeros(n, np.float32), np.zeros((n, v.shape[1]), np.float32), np.zeros(n, np.float32)
    some = np.flatnonzero(np.diff(indptr))
    if len(some):
        xv = v[ids] * x[:, None]
        starts = indptr[some]
        vec[some] = np.add.reduceat(xv, starts)
        own[some] = np.add.reduceat((xv * xv).sum(axis=1), starts)
        b[some] = np.add.reduceat(w[ids] * x, starts)
    return b + ((vec * vec).sum(axis=1) - own) / 2, vec


def smoothed(impressions: NDArray[np.floating], clicks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Historical click rate of ads, drawn to the mean of all where an ad was shown little."""
    mean = (clicks.sum() + 1.0) / (impressions.sum() + 50.0)
    return np.asarray((clicks + PRIOR_IMPRESSIONS * mean) / (impressions + PRIOR_IMPRESSIONS))


def by_rate(market: Market, rate: NDArray[np.float64]) -> Model:
    """The model before there is any: an ad's historical click rate, the same to everyone."""
    features, dim = len(market.base.items) + len(market.base.crowds), market.sizes.dim
    return Model(
        bias=0.0,
        w=np.zeros(features, np.float32),
        v=np.zeros((features, dim), np.float32),
        ad_bias=np.log(rate / (1 - rate)).astype(np.float32),
        ad_vecs=np.zeros((market.ads, dim), np.float32),
    )


def train(market: Market, logged: Logged, seed: int) -> Model:
    """A model of the log: every impression counts the same, with the label that its click gave it.

    No negatives are drawn and no impression is weighed down, so that the probabilities need no offset.
    """
    until = int(logged.time_ms.max()) + 1
    inputs = replace(market.base, events=_rows(market, logged, until), holdout=_none())
    examples = building.build(inputs, HALF_LIFE_MS, seed)
    examples = replace(examples, weight=np.ones_like(examples.weight))
    config = Config(
        dim=market.sizes.dim, epochs=market.sizes.epochs, batch=1024, pool=1, negatives=0.0, lr=0.05, seed=seed
    )
    torch.set_num_threads(1)
    trainer = Trainer(config, examples, Group(0, 1, torch.device("cpu")))
    for number in range(len(trainer.batches)):
        trainer.step(number)
    values = trainer.table.values.numpy()
    values = np.where((trainer.table.sums.numpy() > 0).any(axis=1, keepdims=True), values, 0).astype(np.float32)
    named = [feature_keys("user_item", inputs.items), feature_keys("user_crowd", inputs.crowds)]
    rows = np.searchsorted(examples.keys, np.concatenate(named))
    ads = examples.bags.take(examples.ad_bags(np.arange(market.ads)))
    v, w = np.ascontiguousarray(values[:, :-1]), np.ascontiguousarray(values[:, -1])
    ad_bias, ad_vecs = towers(w, v, ads.indptr, ads.ids.astype(np.int64), ads.x)
    return Model(float(trainer.bias[0]), w[rows], v[rows], ad_bias, ad_vecs)


def _rows(market: Market, logged: Logged, until: int) -> Rows:
    """Organic events before `until`, impressions and clicks, each user's in order; a click after its impression."""
    e = market.base.events
    old = e.time_ms < until
    c = logged.clicked
    shown, item = logged.ad, market.ad_item[logged.ad]
    user = np.concatenate([e.user[old], logged.user, logged.user[c]])
    time_ms = np.concatenate([e.time_ms[old], logged.time_ms, logged.time_ms[c]])
    n = len(logged.user)
    kind = np.concatenate([e.kind[old], np.full(n, IMPRESSION), np.full(int(c.sum()), CLICK)])
    items = np.concatenate([e.item[old], item, item[c]]).astype(np.int32)
    crowds = np.concatenate([e.crowd[old], np.full(n + int(c.sum()), -1)]).astype(np.int32)
    ads = np.concatenate([e.ad[old], shown, shown[c]]).astype(np.int32)
    order = np.lexsort((kind, time_ms, user))  # organic kinds, impression and click are numbered in this order
    return Rows(user[order], kind[order], time_ms[order], items[order], crowds[order], ads[order])


def _none() -> Rows:
    i64, i32 = np.empty(0, np.int64), np.empty(0, np.int32)
    return Rows(i64, i64, i64, i32, i32, i32)
