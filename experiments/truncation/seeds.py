"""One seed: the baseline's pre-period, the models of its logs, then every system over the same days."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.truncation import market as markets
from experiments.truncation.calibration import WAYS, Calibration
from experiments.truncation.latency import MEASURED
from experiments.truncation.market import Market
from experiments.truncation.matching import EVERYTHING, Cut
from experiments.truncation.measure import Groups, changes, summary
from experiments.truncation.model import Logged, Model, by_rate, smoothed, train
from experiments.truncation.replay import Replay
from experiments.truncation.settings import BUDGETS, FEWER_CROWDS, SHARES, Sizes, Staleness
from experiments.truncation.truth import Truth

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Started:
    """The end of the baseline's pre-period, where systems are forked from, and the baseline's main period.

    models: (for the main period's first half, for its second), of the baseline's logs alone; all systems use them
    """

    before: Replay
    models: tuple[Model, Model]
    groups: Groups
    base: Replay


NEAR: dict[str, Any] = {"cut": EVERYTHING, "near_line": True}


def compared(cut: Cut) -> dict[str, dict[str, Any]]:
    """What is replayed beside a baseline, by name, as options of `replay`: near-line, and the A/A."""
    return {"near-line": NEAR, "again": {"cut": cut, "noise": 1}}


def others(calibration: Calibration) -> dict[str, dict[str, Any]]:
    """What is replayed besides, under the models of the strongest baseline: other cut-offs, budgets, staleness."""
    baseline = calibration.strongest(MEASURED.share)
    out: dict[str, dict[str, Any]] = {
        "near-line, always behind": NEAR | {"always_behind": True},
        "online, everything": {"cut": EVERYTHING},
    }
    for way in WAYS:
        if calibration.best[MEASURED.share][way] != baseline:
            out[f"way {way}"] = {"cut": calibration.best[MEASURED.share][way]}
    for crowds in FEWER_CROWDS:
        out[f"crowds {crowds}"] = {"cut": Cut("impact", baseline.pairs, min(crowds, baseline.pairs))}
    for share in SHARES:
        out[f"share {share:g}"] = {"cut": calibration.strongest(share)}
    for scale in BUDGETS:
        out[f"budgets {scale:g}, base"] = {"cut": baseline, "budgets": scale}
        out[f"budgets {scale:g}, near-line"] = NEAR | {"budgets": scale}
    return out


def steps(calibration: Calibration) -> int:
    """How often `run` calls `tick`."""
    return sum(1 + len(compared(cut)) for cut in calibration.baselines().values()) + len(others(calibration))


def run(
    sizes: Sizes, calibration: Calibration, seed: int, staleness: Staleness, tick: Callable[[str], None]
) -> dict[str, Any]:
    """All figures of a seed; tick(name) before each of its systems.

    {"seed", "groups": {baseline: ...}, "systems": {baseline: {system: figures}}}; what `others` names stands with
    the strongest baseline.
    """
    tick("market")
    market, truth = markets.draw(sizes, seed, staleness)
    out: dict[str, Any] = {"seed": seed, "groups": {}, "systems": {}}
    for baseline, cut in calibration.baselines().items():
        if out["systems"]:
            tick(f"{baseline} baseline")
        at = start(market, truth, cut, seed)
        out["groups"][baseline] = _members(at)
        figures = out["systems"][baseline] = {"base": summary(at.base, at.groups)}
        more = others(calibration) if baseline == "strongest" else {}
        for name, options in (compared(cut) | more).items():
            tick(name)
            system = replay(at, **options)
            figures[name] = summary(system, at.groups) | changes(system, at.base)
    return out


def start(market: Market, truth: Truth, cut: Cut, seed: int) -> Started:
    """Replay the baseline; train on what it logged.

    The pre-period's first half ranks by historical click rates, its second by a model of the first half's log, and
    in this second half it is counted whom the cut-offs keep out.
    """
    sizes = market.sizes
    before = Replay(market, truth, cut)
    before.warm_up(sizes.warm)
    half, end, middle = sizes.warm + sizes.before // 2, sizes.warm + sizes.before, _middle(sizes)
    before.activate(by_rate(market, smoothed(before.impressions, before.clicks)))
    before.run(sizes.warm, half)
    before.activate(train(market, before.log.logged(), seed))
    before.run(half, end, count=True)
    first = train(market, before.log.logged(), seed)
    base = before.fork(cut)
    base.activate(first)
    base.run(end, middle)
    second = train(market, _joined(before.log.logged(), base.log.logged()), seed)
    base.activate(second)
    base.run(middle, sizes.days)
    requests = np.bincount(before.log.column("user"), minlength=market.users)
    groups = Groups.of(before, requests, markets.pairs_of(market, before.states))
    return Started(before, (first, second), groups, base)


def replay(
    at: Started, cut: Cut, *, always_behind: bool = False, near_line: bool = False, **options: Any
) -> Replay:
    """A system over the main period, with the same models from the same days on as the baseline.

    always_behind: no list has seen the event of its own page, as if lists took seconds to be written
    """
    market = at.before.market
    timeline = market.always_behind if always_behind else market.lagged if near_line else market.timeline
    system = at.before.fork(cut, near_line=near_line, timeline=timeline, **options)
    days = (market.sizes.warm + market.sizes.before, _middle(market.sizes), market.sizes.days)
    for model, first, last in zip(at.models, days[:-1], days[1:], strict=True):
        system.activate(model)
        system.run(first, last)
    return system


def _members(at: Started) -> Figures:
    """How many ads and advertisers each group has, and what share the cut-offs kept out in the pre-period."""
    counts: Figures = {"kept_out": float(at.before.dropped.sum() / max(1.0, at.before.wanted.sum()))}
    for g, name in enumerate(at.groups.names):
        counts[f"ads {name}"] = float((at.groups.ad == g).sum())
        counts[f"advertisers {name}"] = float((at.groups.advertiser == g).sum())
    return counts


def _middle(sizes: Sizes) -> int:
    return sizes.warm + sizes.before + sizes.main // 2


def _joined(a: Logged, b: Logged) -> Logged:
    return Logged(*(np.concatenate([getattr(a, n), getattr(b, n)]) for n in ("user", "ad", "time_ms", "clicked")))
