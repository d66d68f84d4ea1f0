"""A market of the truncation experiment that is drawn in a blink, and cut-offs for it."""

from experiments.truncation.calibration import WAYS, Calibration, label
from experiments.truncation.latency import MEASURED
from experiments.truncation.matching import Cut
from experiments.truncation.settings import SHARES, Sizes

TINY = Sizes("tiny", users=60, ads=150, crowds=30, events_per_user=30.0, warm=2, before=2, main=2, dim=4, epochs=1)


def cut_offs(pairs: int = 24) -> Calibration:
    """A calibration that cuts by impact everywhere."""
    shares = (MEASURED.share, *SHARES)
    best = {s: {w: Cut(w, pairs, 4 if w in ("bid", "impact") else 0) for w in WAYS} for s in shares}
    tried = {s: {label(c): float(c.way == "impact") for c in best[s].values()} for s in shares}
    return Calibration("tiny", 200.0, best, tried)
