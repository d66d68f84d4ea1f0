"""The baseline's cut-offs, found once and then fixed: the strongest way to spend a budget of pairs.

    python -m experiments.truncation.calibration

Every way of matching is replayed on markets that no comparison uses, under one model, and the way of the greatest
revenue is kept, for each share of pairs. `calibration.json` is what this printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.truncation import market as markets
from experiments.truncation.latency import MEASURED
from experiments.truncation.matching import EVERYTHING, Cut
from experiments.truncation.model import by_rate, smoothed, train
from experiments.truncation.replay import Replay
from experiments.truncation.settings import CALIBRATION_SEEDS, FULL, QUICK, SHARES, Sizes, Staleness

FILE = Path(__file__).with_name("calibration.json")

CROWDS = (4, 8, 16, 32, 64)
"""Numbers of crowds that the two-stage ways keep; the budget's rest is ads of each."""
WAYS = ("bid", "impact", "merged", "deadline")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Cut-offs of one market's sizes, by share of pairs, the measured one among the shares.

    sizes: name of the sizes; user_pairs: eligible pairs of a user, mean
    best:  {share: {way: its best cut-offs}}
    tried: {share: {cut-offs: revenue per thousand requests}}
    """

    sizes: str
    user_pairs: float
    best: dict[float, dict[str, Cut]]
    tried: dict[float, dict[str, float]]

    def strongest(self, share: float) -> Cut:
        """Of all ways at a share of pairs, the one that earned most."""
        return max(self.best[share].values(), key=lambda cut: self.tried[share][label(cut)])

    def baselines(self) -> dict[str, Cut]:
        """What near-line is compared with in full, at the measured share: the strongest way of all, and the
        strongest that cuts in two stages, where that is another."""
        strongest = self.strongest(MEASURED.share)
        staged = [cut for cut in self.best[MEASURED.share].values() if cut.crowds]
        two_stage = max(staged, key=lambda cut: self.tried[MEASURED.share][label(cut)])
        return {"strongest": strongest} | ({} if two_stage == strongest else {"two-stage": two_stage})

    def to_json(self) -> dict[str, Any]:
        """As calibration.json has it; `from_json` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Calibration:
        """Read one entry of calibration.json."""
        best = {float(s): {way: Cut(**c) for way, c in each.items()} for s, each in data["best"].items()}
        return Calibration(data["sizes"], data["user_pairs"], best, {float(s): t for s, t in data["tried"].items()})


def load(sizes: Sizes) -> Calibration:
    """The committed calibration of these sizes. KeyError for sizes that have none."""
    return Calibration.from_json(json.loads(FILE.read_text("utf-8"))[sizes.name])


def candidates(pairs: int) -> list[Cut]:
    """Every way to spend `pairs`."""
    fit = [crowds for crowds in CROWDS if crowds <= pairs] or [pairs]
    cuts = [Cut(way, pairs, crowds) for way in ("bid", "impact") for crowds in fit]
    return [*cuts, Cut("merged", pairs), Cut("deadline", pairs)]


def calibrate(
    sizes: Sizes, seeds: tuple[int, ...] = CALIBRATION_SEEDS, say: Callable[[str], None] = lambda text: None
) -> Calibration:
    """Replay every candidate of every share on every seed's market."""
    shares = sorted({MEASURED.share, *SHARES})
    revenue: dict[float, dict[Cut, list[float]]] = {share: {} for share in shares}
    user_pairs = 0.0
    for seed in seeds:
        market, truth = markets.draw(sizes, seed, Staleness())
        warmed = Replay(market, truth, EVERYTHING)
        warmed.warm_up(sizes.warm)
        user_pairs = user_pairs or float(markets.pairs_of(market, warmed.states).mean())
        start = warmed.fork(Cut("impact", round(MEASURED.share * user_pairs), 16))
        start.activate(by_rate(market, smoothed(start.impressions, start.clicks)))
        start.run(sizes.warm, sizes.warm + sizes.before)
        model = train(market, start.log.logged(), seed)
        for share in shares:
            for cut in candidates(max(2, round(share * user_pairs))):
                system = start.fork(cut)
                system.activate(model)
                system.run(sizes.warm + sizes.before, sizes.days)
                earned = 1000 * float(system.log.column("paid").sum()) / len(system.log.column("request"))
                revenue[share].setdefault(cut, []).append(earned)
                say(f"{sizes.name} seed {seed} share {share:.3f} {label(cut)}: {earned:.1f}")
    mean = {share: {cut: float(np.mean(v)) for cut, v in each.items()} for share, each in revenue.items()}
    best = {
        share: {way: max((c for c in each if c.way == way), key=each.__getitem__) for way in WAYS}
        for share, each in mean.items()
    }
    tried = {share: {label(cut): round(v, 2) for cut, v in each.items()} for share, each in mean.items()}
    return Calibration(sizes.name, user_pairs, best, tried)


_WORDS = {
    "bid": "by bid",
    "impact": "by impact",
    "merged": "merged by impact",
    "deadline": "best first to the deadline",
    "everything": "everything",
}


def label(cut: Cut) -> str:
    """A way in a few words."""
    if cut.crowds:
        return f"{_WORDS[cut.way]}, {cut.crowds} crowds x {max(1, cut.pairs // cut.crowds)} ads"
    return f"{_WORDS[cut.way]}, {cut.pairs} pairs" if cut.pairs else _WORDS[cut.way]


if __name__ == "__main__":
    found = {sizes.name: calibrate(sizes, say=print).to_json() for sizes in (QUICK, FULL)}
    FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
