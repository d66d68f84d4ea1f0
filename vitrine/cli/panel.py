"""What a whole run shows while it works: a live panel on a terminal, one line a change elsewhere."""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

Status = Literal["waiting", "running", "done", "failed"]
_GLYPH = {"waiting": Text("·", "dim"), "done": Text("●", "green"), "failed": Text("●", "red")}


@dataclass
class _Row:
    title: str
    status: Status = "waiting"
    detail: str = ""
    fraction: float | None = None
    started: float | None = None
    seconds: float | None = None
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="yellow"))


class Panel:
    """Rows of work with a status each; safe to update from any thread."""

    def __init__(self, console: Console, rows: dict[str, str]) -> None:
        """`rows`: key -> title, in the order shown."""
        self._console = console
        self._rows = {key: _Row(title) for key, title in rows.items()}
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def start(self, key: str, detail: str = "") -> None:
        """Mark a row as running."""
        self._set(key, "running", detail)

    def update(self, key: str, detail: str, fraction: float | None = None) -> None:
        """Change a running row's detail and how far it is, 0 to 1."""
        with self._lock:
            row = self._rows[key]
            row.detail, row.fraction = detail, fraction

    def done(self, key: str, detail: str = "") -> None:
        """Mark a row as done."""
        self._set(key, "done", detail)

    def fail(self, key: str, detail: str = "") -> None:
        """Mark a row as failed."""
        self._set(key, "failed", detail)

    def _set(self, key: str, status: Status, detail: str) -> None:
        with self._lock:
            row = self._rows[key]
            now = time.monotonic()
            if status == "running":
                row.started = now
            elif row.started is not None:
                row.seconds = now - row.started
            row.status, row.detail, row.fraction = status, detail, None
            took = f" ({row.seconds:.1f} s)" if row.seconds is not None else ""
            if not self._console.is_terminal:
                self._console.print(
                    f"{row.title}: {status}{took} {detail}".rstrip(), highlight=False, soft_wrap=True
                )

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(width=14)
        table.add_column(justify="right", width=7)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        with self._lock:
            for row in self._rows.values():
                glyph: RenderableType = row.spinner if row.status == "running" else _GLYPH[row.status]
                bar: RenderableType = ""
                if row.fraction is not None:
                    bar = ProgressBar(total=1.0, completed=row.fraction, width=14)
                seconds = row.seconds
                if row.status == "running" and row.started is not None:
                    seconds = time.monotonic() - row.started
                took = "" if seconds is None else f"{seconds:5.1f} s"
                style = "dim" if row.status == "waiting" else ""
                table.add_row(glyph, Text(row.title, style), bar, Text(took, "dim"), Text(row.detail))
        return Group(table)
