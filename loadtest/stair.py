"""The stair to the knee: the highest rate at which a server keeps up, fails nobody and answers in time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from loadtest.measured import Measured

KEPT_UP = 0.98  # share of the offered calls that must be answered within the window
BOUND_MS = 50.0  # p99, from the scheduled send
STEP = 1.15  # one step up; two halvings of the last one place the knee within 4%
HALVINGS = 2
LOWEST = 1.0  # calls a second; below it there is no knee


def holds(step: Measured, bound_ms: float = BOUND_MS) -> bool:
    """Whether a step stays below the knee: achieved >= 0.98 of offered, no failure, p99 under the bound."""
    kept_up = step.answered >= KEPT_UP * step.sent
    return step.sent > 0 and kept_up and step.failed == 0 and step.ms(99) < bound_ms


@dataclass
class Stair:
    """Climbs from `start` until a rate fails twice in a row, then halves the last step.

    One failure may be the machine's hiccup, so a rate is given up only when it fails again. `steps` has all.
    """

    start: float
    bound_ms: float = BOUND_MS
    steps: list[Measured] = field(default_factory=list)

    @property
    def knee(self) -> float:
        """Calls a second, the highest rate that held; 0 where none did."""
        return max((step.rate for step in self.steps if self.held(step)), default=0.0)

    def held(self, step: Measured) -> bool:
        return holds(step, self.bound_ms)

    def climb(self) -> Iterator[float]:
        """The rates to try; append what each measured to `steps` before the next is asked for."""
        rate, low, high = self.start, 0.0, 0.0
        while high == 0.0 or low == 0.0:
            yield rate
            if not self.held(self.steps[-1]):
                yield rate
            if self.held(self.steps[-1]):
                low = rate
                rate = rate * STEP if high == 0.0 else rate
            else:
                high = rate
                rate = rate * 0.7 if low == 0.0 else rate
            if rate < LOWEST:
                return
        for _ in range(HALVINGS):
            rate = (low * high) ** 0.5
            yield rate
            if not self.held(self.steps[-1]):
                yield rate
            if self.held(self.steps[-1]):
                low = rate
            else:
                high = rate


def climb_together(
    stairs: Mapping[str, Stair], drive: Callable[[str, float], Measured], show: Callable[[str, Stair], None]
) -> None:
    """Climb several stairs, a step of each in turn, so that a busy spell of the machine meets all of them.

    drive: (name, rate) -> what one step measured; show: called after every step.
    """
    climbs = {name: stair.climb() for name, stair in stairs.items()}
    while climbs:
        for name in list(climbs):
            rate = next(climbs[name], None)
            if rate is None:
                del climbs[name]
                continue
            stairs[name].steps.append(drive(name, rate))
            show(name, stairs[name])
