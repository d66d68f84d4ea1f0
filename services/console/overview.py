"""The System page: how every process stands, what was published from what, and what could not be applied."""

from dataclasses import dataclass
from typing import Any

from services.console import draw, lineage
from services.console.backend import Backend
from services.console.letters import Box
from services.console.scrape import Status
from vitrine.artifacts import ArtifactError, Manifest
from vitrine.errors import UnavailableError


@dataclass(frozen=True)
class ProcessView:
    """A process, with its last minutes drawn."""

    status: Status
    health: str  # serving, degraded, not-serving or away
    said: str
    rate: Any
    p99: Any


@dataclass(frozen=True)
class Now:
    """What changes from moment to moment; figures are None where nobody tells them."""

    processes: list[ProcessView]
    healthy: int
    lag: float | None
    backlog_age: float | None
    dead_letters: float | None
    events_rate: float | None
    lag_chart: Any
    minutes: float


@dataclass(frozen=True)
class VersionRow:
    """A published version; `serving` names the processes that use it."""

    manifest: Manifest
    refs: list[str]
    serving: list[str]
    octets: int

    @property
    def figures(self) -> list[tuple[str, str]]:
        """The three of its metrics that say most, in words."""
        return lineage.figures(self.manifest.metrics, 3)


@dataclass(frozen=True)
class Shelved:
    """Artifacts and their lineage; trouble where the store cannot tell."""

    rows: list[VersionRow]
    wide: Any = ""
    narrow: Any = ""
    trouble: str = ""


def now(backend: Backend) -> Now:
    """From the scraper's readings; waits for nobody."""
    statuses = backend.scraper.statuses()
    worker = [s for s in statuses if s.work == "events" or s.last.lag is not None]
    lags = [s.last.lag for s in worker if s.last.lag is not None]
    ages = [s.last.backlog_age for s in worker if s.last.backlog_age is not None]
    rates = [s.last.rate for s in worker if s.work == "events" and s.last.rate is not None]
    letters = [s.dead_letters for s in statuses if s.dead_letters is not None]
    processes = [_process(status) for status in statuses]
    longest = max((len(s.points) for s in statuses), default=0)
    return Now(
        processes,
        sum(p.health in ("serving", "degraded") for p in processes),
        sum(lags) if lags else None,
        max(ages) if ages else None,
        sum(letters) if letters else None,
        sum(rates) if rates else None,
        draw.sparkline(_lag_history(worker), "Records of user-events not yet applied"),
        longest * backend.config.scrape_s / 60,
    )


def artifacts(backend: Backend) -> Shelved:
    """Versions and the graph, from the store's manifests and the versions that processes report."""
    try:
        published = backend.shelf.published()
    except (UnavailableError, ArtifactError) as error:
        return Shelved([], trouble=str(error))
    statuses = backend.scraper.statuses()
    serving: dict[tuple[str, str], list[str]] = {}
    for status in statuses:
        for name, version in status.versions.items():
            serving.setdefault((name, version), []).append(status.name)
    rows = [
        VersionRow(
            m,
            [ref for ref, version in sorted(published.refs.get(m.name, {}).items()) if version == m.version],
            serving.get((m.name, m.version), []),
            sum(entry["size"] for entry in m.files.values()),
        )
        for m in published.manifests
    ]
    nodes = lineage.graph(published.manifests, published.refs, statuses)
    return Shelved(rows, lineage.draw_wide(nodes), lineage.draw_narrow(nodes))


def letters(backend: Backend) -> tuple[Box | None, str]:
    """(the last dead letters, why there are none to show)."""
    try:
        return backend.letters.last(), ""
    except UnavailableError as error:
        return None, str(error)


def _process(status: Status) -> ProcessView:
    rates = [p.rate for p in status.points]
    p99s = [p.p99 for p in status.points]
    if status.trouble is not None:
        health, said = "away", f"Its metrics page does not answer: {status.trouble}"
    elif not status.serving:
        health, said = "not-serving", f"Not serving: {', '.join(status.not_ready) or 'draining'}"
    elif status.degraded:
        health, said = "degraded", f"Serving with less: {', '.join(status.degraded)}"
    else:
        health, said = "serving", "Serving"
    return ProcessView(
        status,
        health,
        said,
        draw.sparkline(rates, f"{status.name}: {status.work} a second"),
        draw.sparkline(p99s, f"{status.name}: 99th percentile"),
    )


def _lag_history(worker: list[Status]) -> list[float | None]:
    length = max((len(s.points) for s in worker), default=0)
    summed: list[float | None] = []
    for back in range(length, 0, -1):
        lags = [s.points[-back].lag for s in worker if len(s.points) >= back]
        known = [lag for lag in lags if lag is not None]
        summed.append(sum(known) if known else None)
    return summed
