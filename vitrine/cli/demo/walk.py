"""The scripted walk: one user's list before and after an event, a killed worker, a photo and its neighbours."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vitrine.api.events.v1.events_pb2 import UserEvent
from vitrine.artifacts import ArtifactStore
from vitrine.cli.applications import applications_root
from vitrine.cli.bringup import Running, start_worker
from vitrine.cli.demo.market import MarketView, Photo
from vitrine.cli.system import RunError
from vitrine.client import AnnClient, CtrClient, MatchingClient
from vitrine.matching.catalog import SCHEMA, Catalog
from vitrine.matching.record import StoredList, decode
from vitrine.placement import qualify
from vitrine.runtime import topics

MEASURED_EVENTS = 200  # events whose way from the send to the stored list is timed, one after the other
CRASH_EVENTS = 2_000  # events in flight while the worker is killed
CALLS = 300  # calls whose median is reported, after a tenth as many to warm up
SCORED = 500  # candidates a Score call
SHOWN = 10


@dataclass(frozen=True)
class Ranked:
    """An ad in a shown list, with its reason."""

    ad_id: int
    crowd_id: int
    bid: float
    pctr: float
    value: float
    was: int | None  # rank before the event, 1 is best; None where it is new among those served


@dataclass
class Walk:
    """What the walk saw; `facts` are the fields of the demo's JSON."""

    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # step's title -> how long it took
    user_id: int = 0
    event: str = ""
    before: list[Ranked] = field(default_factory=list)
    after: list[Ranked] = field(default_factory=list)
    event_to_list_ms: list[float] = field(default_factory=list)
    search: list[tuple[Photo, list[tuple[Photo, float]]]] = field(default_factory=list)
    auction: str = ""


@dataclass
class Stage:
    """What the walk acts on."""

    up: Running
    market: MarketView
    say: Callable[[str], None]

    def stored(self, user_id: int) -> StoredList | None:
        """The user's list as it lies in Redis."""
        record = self.up.store.read_list(user_id)
        return None if record is None else decode(record, self.catalog)

    @cached_property
    def catalog(self) -> Catalog:
        """Whose numbers stored lists hold."""
        store = ArtifactStore(str(self.up.store_folder), namespace=self.up.namespace)
        return Catalog.load(store.fetch("catalog", "stable", max_schema=SCHEMA).path)


def walk(stage: Stage) -> Walk:
    """Run the steps in turn and measure each."""
    seen = Walk()
    matching = MatchingClient(stage.up.system.services["matching"].address)
    ctr = CtrClient(stage.up.system.services["ctr"].address)
    ann = AnnClient(stage.up.system.services["ann"].address)
    with matching, ctr, ann:
        steps: dict[str, Callable[[], None]] = {
            "a purchase changes a list": lambda: _one_event(stage, seen, matching),
            "events to lists": lambda: _many_events(stage, seen),
            "worker killed with -9": lambda: _crash(stage, seen),
            "an auction": lambda: _auction(stage, seen),
            "calls": lambda: _calls(stage, seen, matching, ctr),
            "photos": lambda: _photos(stage, seen, ann),
        }
        for title, step in steps.items():
            with _timed(seen, title, stage.say):
                step()
    stage.up.wait_applied(60)
    seen.facts["events_sent"] = stage.up.sent
    seen.facts["events_applied"] = stage.up.applied()
    seen.facts["lists_stored"] = stage.up.store.lists()
    return seen


@contextmanager
def _timed(seen: Walk, title: str, say: Callable[[str], None]) -> Iterator[None]:
    started = time.monotonic()
    yield
    seen.seconds[title] = time.monotonic() - started
    say(f"  [dim]{title}: {seen.seconds[title]:.1f} s[/dim]")


def _explained(matching: MatchingClient, user_id: int, ads: Sequence[int], was: Sequence[int]) -> list[Ranked]:
    explanations = matching.explain(user_id, ads).ads
    place = {ad: rank for rank, ad in enumerate(was, 1)}
    return [Ranked(e.ad, e.crowd, e.bid, e.pctr, e.value, place.get(e.ad)) for e in explanations]


def _one_event(stage: Stage, seen: Walk, matching: MatchingClient) -> None:
    """A user's ten ads; one purchase; the ten ads after it, each with its reason."""
    event = next(e for e in stage.market.purchases if stage.stored(e.user_id) is not None)
    user = seen.user_id = event.user_id
    before = matching.get_matches(user, k=50)
    seen.before = _explained(matching, user, before.ads[:SHOWN].tolist(), before.ads.tolist())
    milliseconds, _ = _send_and_wait(stage, event)
    after = matching.get_matches(user, k=50)
    seen.after = _explained(matching, user, after.ads[:SHOWN].tolist(), before.ads.tolist())
    seen.event = (
        f"bought {stage.market.item(event.item.item_id)}; the stored list changed {milliseconds:.1f} ms later"
    )
    stage.say(f"user {user} {seen.event}")


def _send_and_wait(stage: Stage, event: UserEvent) -> tuple[float, bool]:
    """Milliseconds from the send until the list in Redis reflects the event, and whether its served ads changed."""
    before = stage.stored(event.user_id)
    revision = before.revision if before is not None else 0
    started = time.perf_counter()
    stage.up.send(event, wait=True)
    while True:
        after = stage.stored(event.user_id)
        if after is not None and after.revision > revision:
            break
        if time.perf_counter() - started > 30:
            raise RunError(f"user {event.user_id}'s list did not change within 30 s of the event")
        time.sleep(0.0005)
    milliseconds = (time.perf_counter() - started) * 1e3
    served = after.served
    changed = before is None or not np.array_equal(before.rankings[0].ads[:served], after.rankings[0].ads[:served])
    return milliseconds, changed


def _many_events(stage: Stage, seen: Walk) -> None:
    """Purchases of other users, one at a time: how long each takes to show in its user's list."""
    others = [event for event in stage.market.purchases if event.user_id != seen.user_id]
    results = [_send_and_wait(stage, event) for event in others[:MEASURED_EVENTS]]
    seen.event_to_list_ms = [milliseconds for milliseconds, _ in results]
    seen.facts["event_to_list_ms_p50"] = round(float(np.percentile(seen.event_to_list_ms, 50)), 2)
    seen.facts["event_to_list_ms_p99"] = round(float(np.percentile(seen.event_to_list_ms, 99)), 2)
    seen.facts["lists_changed_by_event"] = sum(changed for _, changed in results)
    seen.facts["lists_compared"] = len(results)


def _crash(stage: Stage, seen: Walk) -> None:
    """Kill the worker while events stream in, restart it, and count: nothing lost, nothing doubled."""
    before = stage.up.applied()
    for event in itertools.islice(itertools.cycle(reversed(stage.market.purchases)), CRASH_EVENTS):
        stage.up.send(event)
    stage.up.producer.flush()
    deadline = time.monotonic() + 30
    while stage.up.applied() == before and time.monotonic() < deadline:
        time.sleep(0.001)
    stage.up.system.kill("worker")
    at_kill = stage.up.applied()
    start_worker(stage.up.system)
    stage.up.system.wait_serving("worker")
    started = time.monotonic()
    stage.up.wait_applied(60)
    seen.facts["recovered_s"] = round(time.monotonic() - started, 2)
    stage.say(
        f"worker killed with -9 at {at_kill:,} of {stage.up.sent:,} events and restarted: "
        f"{stage.up.applied():,} applied, none lost, none twice"
    )


def _auction(stage: Stage, seen: Walk) -> None:
    """The ad front end of `examples/`, as anyone would run it."""
    up, services = stage.up, stage.up.system.services
    arguments = ["--matching", services["matching"].address, "--ctr", services["ctr"].address]
    arguments += ["--kafka", up.stack.kafka_url, "--topic", qualify(up.namespace, topics.USER_EVENTS)]
    arguments += ["--user", str(seen.user_id), "--click"]
    example = [sys.executable, str(applications_root() / "examples" / "ad_frontend.py"), *arguments]
    done = subprocess.run(
        example, env=up.system.environment, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode != 0:
        raise RunError(f"examples/ad_frontend.py ended with {done.returncode}: {done.stderr}")
    up.sent += 2  # an impression and its click
    seen.auction = done.stdout.strip()
    stage.say(seen.auction)


def _calls(stage: Stage, seen: Walk, matching: MatchingClient, ctr: CtrClient) -> None:
    """Median of sequential calls from this process."""
    users = [event.user_id for event in stage.market.purchases]
    ads = list(stage.market.titles)[:SCORED]
    context = matching.get_matches(seen.user_id, k=50).context
    seen.facts["getmatches_ms_p50"] = _median_ms(lambda i: matching.get_matches(users[i % len(users)], k=50))
    seen.facts["score_ms_p50"] = _median_ms(lambda i: ctr.score(context, ads))
    seen.facts["score_candidates"] = len(ads)


def _median_ms(call: Callable[[int], object]) -> float:
    for i in range(CALLS // 10):
        call(i)
    milliseconds = []
    for i in range(CALLS):
        started = time.perf_counter()
        call(i)
        milliseconds.append((time.perf_counter() - started) * 1e3)
    return round(float(np.median(milliseconds)), 3)


def _photos(stage: Stage, seen: Walk, ann: AnnClient) -> None:
    """Every test photo against the indexed photos: time a search, share of neighbours of the same category."""
    milliseconds, same = [], []
    for query in stage.market.queries:
        started = time.perf_counter()
        found = ann.search(picture=query.image, k=SHOWN)
        milliseconds.append((time.perf_counter() - started) * 1e3)
        assert found.scores is not None
        near = [(stage.market.photos[int(i)], float(s)) for i, s in zip(found.ids[0], found.scores[0], strict=True)]
        same.append(np.mean([photo.category == query.category for photo, _ in near]))
        if len(seen.search) < 4 and query.category not in {q.category for q, _ in seen.search}:
            seen.search.append((query, near))
    seen.facts["search_ms_p50"] = round(float(np.median(milliseconds)), 3)
    seen.facts["search_same_category_at_10"] = round(float(np.mean(same)), 4)
    query, near = seen.search[0]
    stage.say(f"a photo of {query.category}: its ten neighbours are {', '.join(p.category for p, _ in near)}")
