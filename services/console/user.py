"""The User page: what the system knows of a user, the user's list, and what an event does to it."""

import time
from dataclasses import dataclass

import numpy as np

from services.console.backend import Backend
from services.console.events import KINDS, Fired, user_event
from services.console.inputs import InputError, an_id
from services.console.shown import Names
from services.console.trouble import Trouble, calling, need
from vitrine.client import InvalidArgumentError, Matches, MatchingClient, Source, VitrineError
from vitrine.errors import UnavailableError
from vitrine.runtime import audit, tracing

SHOWN = 20
_LENGTHS = (100, 50, 20, 10, 5, 1)  # asked for in turn, where the server serves shorter lists
_SOON_S = 0.3  # how long the answer to a fired event waits for its list; later ones are polled for
_GIVE_UP_S = 30.0


@dataclass(frozen=True)
class Row:
    """An ad of the list. was: its rank before the event, None where it is new; None too without an event"""

    rank: int
    ad: int
    title: str
    item: int
    photo: bool
    crowd: int
    crowd_name: str
    bid: float
    pctr: float
    value: float
    was: int | None

    def change(self, fired: Fired | None) -> str:
        """new, up, down or nothing."""
        if fired is None or self.was == self.rank:
            return ""
        return "new" if self.was is None else "up" if self.was > self.rank else "down"


@dataclass(frozen=True)
class Weight:
    """Something that the user's state holds; share: of the largest weight of its kind."""

    id: int
    name: str
    photo: bool
    share: float


@dataclass(frozen=True)
class UserView:
    """All that the page shows."""

    user_id: int
    source: str
    stored: bool
    revision: int
    age_s: float
    catalog_version: str
    towers_version: str
    rows: list[Row]
    served: int
    crowds: list[Weight]
    items: list[Weight]
    unknown: int
    floor: float | None
    fired: Fired | None = None
    token: str = ""
    waiting: bool = False
    late: bool = False
    arm: str = ""
    took_s: float | None = None

    @property
    def new(self) -> int:
        return sum(row.change(self.fired) == "new" for row in self.rows)

    @property
    def risen(self) -> int:
        return sum(row.change(self.fired) == "up" for row in self.rows)


def matches_of(backend: Backend, user_id: int) -> Matches:
    """The user's served list. Raises Trouble."""
    matching = need(backend.matching, "matching server", "VITRINE_MATCHING_ADDRESS")
    with calling("matching server", backend.config.matching_address):
        return _served(matching, user_id)


def view(backend: Backend, user_id: int, token: str = "") -> UserView:
    """The page, after a fired event where `token` names one. Raises Trouble."""
    fired = backend.fired.get(token) if token else None
    if fired is not None and fired.user_id != user_id:
        fired = None
    return _seen(backend, user_id, matches_of(backend, user_id), fired, token)


@tracing.span("fire event", kind="producer")
def fire(backend: Backend, user_id: int, kind: str, target: int, caller: str) -> UserView:
    """Sends an event and looks whether its list comes soon. Raises Trouble."""
    before = matches_of(backend, user_id)
    try:
        with audit.recorded("console.event", f"user {user_id}", caller=caller, kind=kind, about=target):
            backend.sender.send(user_event(kind, user_id, target, int(time.time() * 1000)))
    except UnavailableError as error:
        raise Trouble("The event was not sent", str(error)) from error
    said = f"{KINDS[kind][1]} {_target_name(backend.names.current, kind, target)}"
    fired = Fired(user_id, said, before.revision, tuple(before.ads.tolist()))
    token = backend.fired.keep(fired)
    after = matches_of(backend, user_id)
    while after.revision <= before.revision and time.monotonic() - fired.sent < _SOON_S:
        time.sleep(0.003)
        after = matches_of(backend, user_id)
    took_s = time.monotonic() - fired.sent
    return _seen(backend, user_id, after, fired, token, took_s)


def target_of(backend: Backend, kind: str, text: str) -> int:
    """The id that an event is about; a crowd may be given by its name. Raises InputError."""
    what = KINDS[kind][0]
    names = backend.names.current
    if what == "crowd" and names is not None and not text.strip().isdigit():
        found = names.crowd_named(text.strip()[:200])
        if not found:
            raise InputError(f"crowd: the catalog has none named {text.strip()[:40]!r}")
        return found
    return an_id(what, text)


def some_users(backend: Backend) -> list[int]:
    """A few users who have a list, for a page that has none yet; none where the server is away."""
    if backend.matching is None:
        return []
    found = []
    try:
        for user_id in np.random.default_rng(7).permutation(np.arange(1, 400))[:24].tolist():
            if backend.matching.get_matches(user_id, k=1, timeout_s=0.5).source is Source.STORED:
                found.append(user_id)
            if len(found) == 8:
                break
    except VitrineError:
        return []
    return sorted(found)


def _served(matching: MatchingClient, user_id: int) -> Matches:
    """As many as the server serves: what it takes as k is a setting of its own that no answer names."""
    for k in _LENGTHS[:-1]:
        try:
            return matching.get_matches(user_id, k=k)
        except InvalidArgumentError as error:
            if "k" not in error.fields:
                raise
    return matching.get_matches(user_id, k=_LENGTHS[-1])


def _seen(
    backend: Backend, user_id: int, matches: Matches, fired: Fired | None, token: str, took_s: float | None = None
) -> UserView:
    names, photos = backend.names.current, backend.photos.current
    was = {ad: rank for rank, ad in enumerate(fired.ads, 1)} if fired else {}
    waiting = fired is not None and matches.revision <= fired.revision
    rows = []
    columns = (matches.ads.tolist(), matches.crowds.tolist(), matches.bids.tolist(), matches.values.tolist())
    for rank, (ad, crowd, bid, value) in enumerate(list(zip(*columns, strict=True))[:SHOWN], 1):
        item = names.item_of(ad) if names else 0
        rows.append(
            Row(
                rank,
                ad,
                names.ad(ad) if names else f"ad {ad}",
                item,
                bool(item and photos and photos.has(item)),
                crowd,
                names.crowd(crowd) if names else f"crowd {crowd}",
                bid,
                value / bid if bid else 0.0,
                value,
                was.get(ad) if fired and not waiting else rank,
            )
        )
    crowds, items, unknown, floor = _state(backend, user_id, matches)
    gone = fired is not None and time.monotonic() - fired.sent > _GIVE_UP_S
    return UserView(
        user_id,
        str(matches.source),
        matches.source is Source.STORED,
        matches.revision,
        matches.age_ms / 1000,
        matches.catalog_version,
        matches.towers_version,
        rows,
        len(matches.ads),
        crowds,
        items,
        unknown,
        floor,
        fired,
        token if fired else "",
        waiting and not gone,
        waiting and gone,
        matches.arm,
        took_s if fired and not waiting else None,
    )


def _state(
    backend: Backend, user_id: int, matches: Matches
) -> tuple[list[Weight], list[Weight], int, float | None]:
    """(crowds, items, features that the catalog cannot name, the list's floor)."""
    names, photos = backend.names.current, backend.photos.current
    weights: dict[str, dict[int, float]] = {"crowd": {}, "item": {}, "": {}}
    unknown = 0
    if names is not None:
        meanings = names.meaning(matches.context.keys)
        for (kind, id), weight in zip(meanings, matches.context.weights.tolist(), strict=True):
            unknown += not kind
            weights[kind][id] = weight
    floor = None
    if matches.source is Source.STORED and len(matches.ads) and backend.matching is not None:
        try:
            explained = backend.matching.explain(user_id, matches.ads[:1].tolist())
            floor = explained.floor_value
            for crowd in explained.user_crowds.tolist():
                weights["crowd"].setdefault(crowd, 0.0)
        except VitrineError:
            pass  # the list is of another catalog than the server's; the features still say most
    crowds = [(id, names.crowd(id) if names else f"crowd {id}", False, w) for id, w in weights["crowd"].items()]
    items = [
        (id, names.item(id) if names else f"item {id}", bool(photos and photos.has(id)), w)
        for id, w in weights["item"].items()
    ]
    return _ranked(crowds), _ranked(items), unknown, floor


def _ranked(found: list[tuple[int, str, bool, float]]) -> list[Weight]:
    largest = max((weight for *_, weight in found), default=0.0) or 1.0
    ordered = sorted(found, key=lambda each: (-each[3], each[0]))
    return [Weight(id, name, photo, weight / largest) for id, name, photo, weight in ordered]


def _target_name(names: Names | None, kind: str, target: int) -> str:
    what = KINDS[kind][0]
    if names is None:
        return f"{what} {target}"
    return {"item": names.item, "ad": names.ad, "crowd": names.crowd}[what](target)
