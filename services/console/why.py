"""The Why page: how one ad stands with one user, step by step, with the figures that decide."""

from dataclasses import dataclass
from typing import Any

from services.console import draw
from services.console.backend import Backend
from services.console.numbers import money, percent
from services.console.trouble import Trouble, calling, need
from services.console.user import matches_of
from vitrine.client import Explanation, NotFoundError, Source, Verdict, VitrineError

MOST_FOUND = 12


@dataclass(frozen=True)
class Step:
    """A question on the way into the list. passed: None where an earlier one has settled it"""

    title: str
    text: str
    passed: bool | None


@dataclass(frozen=True)
class Shared:
    """A crowd that user and ad share, and the bid on it."""

    crowd: int
    name: str
    bid: float
    wins: bool


@dataclass(frozen=True)
class WhyView:
    """The explanation of one ad for one user."""

    user_id: int
    ad: int
    title: str
    item: int
    photo: bool
    known: bool
    headline: str
    lead: str
    listed: bool
    explained: Explanation
    shared: list[Shared]
    user_crowds: list[tuple[int, str]]
    ad_crowds: list[tuple[int, str, float]]
    floor: float
    served: int
    last_served: float
    steps: list[Step]
    chart: Any
    model_pctr: float | None
    model_version: str
    catalog_version: str
    towers_version: str


def view(backend: Backend, user_id: int, ad: int) -> WhyView:
    """Raises Trouble, with 404 for a user without a state."""
    matching = need(backend.matching, "matching server", "VITRINE_MATCHING_ADDRESS")
    matches = matches_of(backend, user_id)
    try:
        with calling("matching server", backend.config.matching_address):
            explained = matching.explain(user_id, [ad])
    except NotFoundError as error:
        text = "No event of theirs has been applied: there is no state to explain from; they get the fallback."
        raise Trouble(f"User {user_id} is not known", text, 404) from error
    one, floor = explained.ads[0], explained.floor_value
    names, photos = backend.names.current, backend.photos.current
    stored = matches.source is Source.STORED
    values = matches.values.tolist() if stored else []
    shared = [
        Shared(int(crowd), _crowd(backend, int(crowd)), float(bid), int(crowd) == one.crowd)
        for crowd, bid in zip(one.shared_crowds, one.shared_bids, strict=True)
    ]
    shared_ids = {each.crowd for each in shared}
    theirs = [(int(c), _crowd(backend, int(c))) for c in explained.user_crowds]
    crowd_ids, bids = names.catalog.bids_of(ad) if names else ([], [])
    item = names.item_of(ad) if names else 0
    model_pctr, model_version = _second_opinion(backend, matches, ad)
    headline, lead = _told(one, floor, user_id, len(values))
    known = one.verdict is not Verdict.UNKNOWN_AD
    return WhyView(
        user_id,
        ad,
        names.ad(ad) if names else f"ad {ad}",
        item,
        bool(item and photos and photos.has(item)),
        known,
        headline,
        lead,
        one.verdict is Verdict.LISTED and one.rank <= len(values),
        one,
        shared,
        sorted(theirs, key=lambda each: each[0] not in shared_ids),
        sorted(
            ((int(c), _crowd(backend, int(c)), float(b)) for c, b in zip(crowd_ids, bids, strict=True)),
            key=lambda x: -x[2],
        ),
        floor,
        len(values),
        values[-1] if values else 0.0,
        _steps(one, floor, len(values)),
        draw.list_values(values, floor, one.value if len(one.shared_crowds) else None, one.rank) if values else "",
        model_pctr,
        model_version,
        explained.catalog_version,
        explained.towers_version,
    )


def _crowd(backend: Backend, crowd: int) -> str:
    return backend.names.current.crowd(crowd) if backend.names.current else f"crowd {crowd}"


def _second_opinion(backend: Backend, matches: Any, ad: int) -> tuple[float | None, str]:
    """What the ctr service says of the same pair; it is asked for comparison, so its absence is no trouble."""
    if backend.ctr is None:
        return None, ""
    try:
        scores = backend.ctr.score(matches.context, [ad])
    except VitrineError:
        return None, ""
    return (None if scores.unknown else float(scores.pctrs[0])), scores.version


_RESTING = {
    Verdict.PAUSED: "the ad is paused",
    Verdict.OUT_OF_SCHEDULE: "the ad is out of its schedule",
    Verdict.OUT_OF_BUDGET: "the ad's budget is spent",
}
_EXCLUDED = {
    Verdict.NEGATIVE_CROWD: "one of the user's crowds excludes it",
    Verdict.BLOCKED: "the user blocked it",
    Verdict.FREQUENCY_CAP: "the user has seen it as often as it allows",
    Verdict.OTHER_PLACEMENT: "it is not for this placement",
}


def _told(one: Explanation, floor: float, user_id: int, served: int) -> tuple[str, str]:
    """The verdict in a few words, and in a sentence."""
    worth = f"It is worth {money(one.value)} an impression to this user"
    if one.verdict is Verdict.LISTED and one.rank > served > 0:
        text = f"{worth}. The first {served} are served; it moves up when one of them is hidden."
        return f"Stored at rank {one.rank}, below what is served", text
    if one.verdict is Verdict.LISTED:
        return (
            f"Listed at rank {one.rank}",
            f"{worth}, a bid of {money(one.bid)} at a click rate of {percent(one.pctr, 2)}.",
        )
    if one.verdict in _RESTING:
        stands = f", and stands at rank {one.rank} of the stored list" if one.rank else ""
        return f"Hidden: {_RESTING[one.verdict]}", f"{worth}{stands}."
    if one.verdict in _EXCLUDED:
        stands = " It leaves the stored list with the next write." if one.rank else ""
        return f"Not eligible: {_EXCLUDED[one.verdict]}", f"{worth} otherwise.{stands}"
    if one.verdict is Verdict.ADVERTISER_CAP:
        return (
            "Left out: its advertiser has better ads",
            f"{worth}; the list holds as many of this advertiser as may be.",
        )
    if one.verdict is Verdict.OWED:
        text = f"{worth}, more than the floor of {money(floor)}: the list is owed a rematch."
        return "Not listed yet", text
    if one.verdict is Verdict.BELOW_FLOOR:
        text = f"{worth}; an ad must beat {money(floor)}."
        if one.pctr > 0 and one.bid > 0:
            wanted = money(floor / one.pctr)
            text += f" At this click rate that takes a bid of {wanted}; its best is {money(one.bid)}."
        return "Below the floor of the list", text
    if one.verdict is Verdict.NO_SHARED_CROWD:
        return "Not eligible: no shared crowd", f"None of its bids is on a crowd that user {user_id} belongs to."
    if one.verdict is Verdict.UNKNOWN_AD:
        return "The catalog does not hold this ad", "It has no bids, so it can be in nobody's list."
    return "This console does not know the verdict", "The server is newer; update the console."


def _steps(one: Explanation, floor: float, served: int) -> list[Step]:
    """In the order that an ad has to pass them; a verdict that came first settles the rest."""
    known = one.verdict is not Verdict.UNKNOWN_AD
    shares = len(one.shared_crowds) > 0
    excluded = _EXCLUDED.get(one.verdict, "")
    resting = _RESTING.get(one.verdict, "")
    above = one.rank > 0
    count = len(one.shared_crowds)
    crowds = f"{count} shared crowd{'s' if count != 1 else ''}"
    beaten = (
        "every eligible ad is listed" if floor == 0 else f"{money(one.value)} against the floor of {money(floor)}"
    )
    passed = above or (one.verdict in _RESTING and one.value > floor > 0)
    if one.verdict is Verdict.OWED:
        beaten += "; the list is owed a rematch"
    if one.verdict is Verdict.ADVERTISER_CAP:
        beaten = "its advertiser has as many better ads as may be"
    return [
        Step("In the catalog", "its bids are known" if known else "no such ad", known),
        Step("Shares a crowd", crowds if shares else "no bid on a crowd of the user", shares if known else None),
        Step("Not excluded", excluded or "nothing keeps it from this user", not excluded if shares else None),
        Step("Above the floor", beaten, passed if shares and not excluded else None),
        Step("Running", resting or "active", not resting if known and (above or resting) else None),
        Step(
            "Served",
            f"rank {one.rank} of the first {served}" if above else "",
            (one.verdict is Verdict.LISTED and one.rank <= served) if above else None,
        ),
    ]
