"""Progress of the command line's own work: a bar on a terminal, a line a stage elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Report = Callable[[str, float], None]


@contextmanager
def stages(console: Console, title: str) -> Iterator[Report]:
    """Yield `report(stage, fraction)`, fraction from 0 to 1 within the stage."""
    if not console.is_terminal:
        seen: set[str] = set()

        def say(stage: str, fraction: float) -> None:
            if stage not in seen:
                seen.add(stage)
                console.print(f"{title}: {stage}", highlight=False)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, int] = {}

        def draw(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = int(bars.add_task(f"{title}: {stage}", total=1.0))
            bars.update(tasks[stage], completed=fraction)  # type: ignore[arg-type]

        yield draw
