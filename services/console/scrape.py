"""The metrics pages of the other processes, read again and again: what each does and did in the last minutes."""

import ssl
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from vitrine.runtime import logs

_MOST_BYTES = 4 << 20  # of one page
_KEPT_POINTS = 180
_WINDOW_S = 60.0  # that a percentile is over

# What counts as a process's work: a counter of it, and the histogram of its seconds.
_WORK = (
    ("grpc_server_handled_total", "grpc_server_handling_seconds_bucket", "calls"),
    ("vitrine_matching_events_applied_total", "vitrine_matching_event_to_write_seconds_bucket", "events"),
    ("vitrine_console_requests_total", "vitrine_console_request_seconds_bucket", "pages"),
)
_HEALTH = "grpc.health.v1.Health"

_log = logs.get_logger(__name__)

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """One reading of a metrics page: samples by name."""

    at: float  # monotonic seconds
    samples: dict[str, list[tuple[Labels, float]]]

    def sum(self, name: str) -> float:
        return sum(value for _, value in self.of(name))

    def of(self, name: str) -> list[tuple[Labels, float]]:
        return [s for s in self.samples.get(name, ()) if s[0].get("grpc_service") != _HEALTH]

    def buckets(self, name: str) -> dict[float, float]:
        """Upper bound -> cumulative count, over all labels."""
        found: dict[float, float] = {}
        for labels, value in self.of(name):
            bound = float(labels["le"])
            found[bound] = found.get(bound, 0.0) + value
        return found


@dataclass(frozen=True, slots=True)
class Point:
    """What a process did between two readings; None where that cannot be said."""

    rate: float | None
    p99: float | None
    lag: float | None
    backlog_age: float | None


@dataclass(frozen=True)
class Status:
    """How a process stands, for the System page.

    trouble: why its page cannot be read, None where it can; work: what `rate` counts
    """

    name: str
    trouble: str | None
    work: str
    points: list[Point]
    serving: bool = False
    not_ready: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    uptime_s: float | None = None
    resident_bytes: float = 0.0
    dead_letters: float | None = None

    @property
    def last(self) -> Point:
        return self.points[-1] if self.points else Point(None, None, None, None)


class Scraper:
    """Reads every page each `interval_s` on a thread of its own; `statuses` never waits."""

    def __init__(
        self,
        pages: Mapping[str, str],
        *,
        interval_s: float,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched = {name: _Watched(url) for name, url in pages.items()}
        self._interval_s, self._timeout_s, self._tls, self._clock = interval_s, timeout_s, tls, clock
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(max(1, min(8, len(pages))), thread_name_prefix="scrape")
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s + 1)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def statuses(self) -> list[Status]:
        return [_status(name, watched) for name, watched in self._watched.items()]

    def look(self) -> None:
        """Reads every page once, side by side."""
        list(self._pool.map(self._read, self._watched.items()))

    def _run(self) -> None:
        while not self._closed.is_set():
            begun = self._clock()
            try:
                self.look()
            except RuntimeError:  # the pool was shut down meanwhile
                return
            self._closed.wait(max(0.05, self._interval_s - (self._clock() - begun)))

    def _read(self, item: tuple[str, "_Watched"]) -> None:
        name, watched = item
        try:
            with urllib.request.urlopen(watched.url, timeout=self._timeout_s, context=self._tls) as answer:  # noqa: S310
                data = answer.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise ValueError(f"the page has more than {_MOST_BYTES:,} bytes")
            page = Page(self._clock(), parse(data.decode("utf-8", "replace")))
        except Exception as error:  # a page that breaks in a new way is away, and the others are read on
            watched.fail(str(error) or repr(error))
        else:
            watched.take(page)
        if watched.trouble != watched.told:
            watched.told = watched.trouble
            _log.info("metrics page", page=name, url=watched.url, trouble=watched.trouble)


@dataclass
class _Watched:
    url: str
    trouble: str | None = "not read yet"
    told: str | None = "not read yet"
    recent: deque[Page] = field(default_factory=lambda: deque(maxlen=256))
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=_KEPT_POINTS))

    def take(self, page: Page) -> None:
        before = self.recent[-1] if self.recent else None
        self.recent.append(page)
        while len(self.recent) > 2 and page.at - self.recent[1].at >= _WINDOW_S:
            self.recent.popleft()
        self.points.append(point(before, self.recent[0], page))
        self.trouble = None

    def fail(self, trouble: str) -> None:
        self.trouble = trouble
        self.points.append(Point(None, None, None, None))
        self.recent.clear()


def parse(text: str) -> dict[str, list[tuple[Labels, float]]]:
    """Samples of a Prometheus page by name; ValueError where it is none."""
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def point(before: Page | None, oldest: Page, page: Page) -> Point:
    """Rate since the reading before, percentile since the oldest of the window, lag and age as they are."""
    counter, histogram, _ = _work(page)
    rate = p99 = None
    if before is not None and page.at > before.at:
        done, earlier = page.sum(counter), before.sum(counter)
        rate = (done - earlier if done >= earlier else done) / (page.at - before.at)
        p99 = quantile(0.99, _grown(oldest.buckets(histogram), page.buckets(histogram)))
    ages = [value for _, value in page.of("vitrine_matching_backlog_age_seconds")]
    lag = page.sum("vitrine_matching_lag_records") if page.of("vitrine_matching_lag_records") else None
    return Point(rate, p99, lag, max(ages) if ages else None)


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """The q-quantile of cumulative counts by upper bound, linear inside a bucket; None of nothing.

    What lies above the last finite bound counts as that bound, as in Prometheus.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank, low, below = q * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return low
            share = (rank - below) / (buckets[bound] - below) if buckets[bound] > below else 1.0
            return low + (bound - low) * share
        low, below = bound, buckets[bound]
    return low


def _grown(before: Mapping[float, float], now: dict[float, float]) -> dict[float, float]:
    if any(value < before.get(bound, 0.0) for bound, value in now.items()):
        return now  # the process was started anew
    return {bound: value - before.get(bound, 0.0) for bound, value in now.items()}


def _work(page: Page) -> tuple[str, str, str]:
    return next((work for work in _WORK if page.of(work[0])), _WORK[0])


def _status(name: str, watched: _Watched) -> Status:
    points = list(watched.points)
    page = watched.recent[-1] if watched.recent else None
    if watched.trouble is not None or page is None:
        return Status(name, watched.trouble, _WORK[0][2], points)
    started = page.sum("process_start_time_seconds")
    letters = page.of("vitrine_matching_dead_letters_total")
    return Status(
        name,
        None,
        _work(page)[2],
        points,
        serving=page.sum("vitrine_serving") > 0,
        not_ready=_raised(page.of("vitrine_not_ready"), "check"),
        degraded=_raised(page.of("vitrine_degraded"), "reason"),
        versions={labels["name"]: labels["version"] for labels, value in page.of("vitrine_artifact_info") if value},
        uptime_s=time.time() - started if started else None,
        resident_bytes=page.sum("process_resident_memory_bytes"),
        dead_letters=sum(value for _, value in letters) if letters else None,
    )


def _raised(samples: Iterable[tuple[Labels, float]], label: str) -> list[str]:
    return [labels[label] for labels, value in samples if value]
