"""Why an ad is, or is not, in a user's list: the state and the list as of one write, the ad as it is now."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.matching.serving import Now
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.matching.catalog import OFF
from vitrine.matching.events import RecordError
from vitrine.matching.market import Ad
from vitrine.matching.match import Matcher, Reason
from vitrine.matching.record import Ranking, StoredList
from vitrine.matching.state import SeenAd, UserState, capped

_NONE = Ranking(np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.uint64), False, 0.0, 0)


@dataclass(frozen=True, slots=True)
class _About:
    """What verdicts on one user's ads need."""

    user: UserState
    ranking: Ranking
    group: int
    cap_window_ms: int
    ranks: dict[int, int]
    advertisers: dict[int, int]
    advertiser_cap: int


def explain(
    now: Now, user: UserState, stored: StoredList | None, ad_ids: Sequence[int], group: int
) -> pb.ExplainResponse:
    """stored: the list, None where the user has none yet, and everything eligible is owed.

    NotFoundError for a user who was deleted; UnavailableError where list or tower are not of the artifacts held.
    """
    if user.is_tombstone:
        raise NotFoundError(f"user {user.user_id} was deleted, and no event came since")
    matcher = _matcher(now, user, stored)
    market = now.showing.market
    rankings = () if stored is None else stored.rankings
    ranking = rankings[group] if group < len(rankings) else _NONE
    try:
        reasons = matcher.explain(user, list(ad_ids), group)
    except RecordError as error:
        raise UnavailableError(f"{error}; ask again after the user's next event") from error
    listed = ranking.ads.tolist()
    payers = now.showing.advertisers(ranking.ads).tolist() if matcher.advertiser_cap else []
    about = _About(
        user,
        ranking,
        group,
        market.catalog.cap_window_ms,
        {ad: rank for rank, ad in enumerate(listed, start=1)},
        dict(zip(listed, payers, strict=bool(payers))),
        matcher.advertiser_cap,
    )
    response = pb.ExplainResponse(
        catalog_version=matcher.catalog_version,
        towers_version=matcher.towers_version,
        floor_value=ranking.floor_value,
        user_crowd_ids=sorted(user.crowds),
        arm=now.arm(user.user_id) if stored is None else stored.arm,
    )
    for reason in reasons:
        ad = market.ad(reason.ad)
        negatives = [] if ad is None else [crowd for crowd in ad.negatives.tolist() if crowd in user.crowds]
        response.explanations.add(
            ad_id=reason.ad,
            verdict=_verdict(about, ad, reason, bool(negatives)),
            rank=about.ranks.get(reason.ad, 0),
            shared_crowd_ids=reason.crowds.tolist(),
            shared_bids=reason.bids.tolist(),
            crowd_id=reason.crowd,
            bid=reason.bid,
            pctr=reason.pctr,
            value=reason.value,
            negative_crowd_ids=negatives,
        )
    return response


def _matcher(now: Now, user: UserState, stored: StoredList | None) -> Matcher:
    """The one that the list was made by. UnavailableError where this server does not hold its artifacts."""
    held = {(each.catalog_version, each.towers_version): each for each in now.matchers.values()}
    if stored is None:
        return now.matchers[now.arm(user.user_id)].moved(now.showing.market)
    made_from = (stored.catalog_version, stored.towers_version)
    if made_from not in held:
        here = " or ".join(f"{catalog} and {towers}" for catalog, towers in held)
        raise UnavailableError(
            f"the list of user {user.user_id} was made from catalog {made_from[0]} and towers {made_from[1]}, and"
            f" this server holds {here}; it can explain the list after the user's next event, or once server and"
            " worker run the same versions"
        )
    return held[made_from].moved(now.showing.market)


def _verdict(about: _About, ad: Ad | None, reason: Reason, negative: bool) -> pb.Verdict.ValueType:
    """The first that applies, in the order in which a reader would want to know."""
    if ad is None:
        return pb.VERDICT_UNKNOWN_AD
    if ad.off & (OFF["paused"] | OFF["ended"]):
        return pb.VERDICT_PAUSED
    if ad.off & OFF["schedule"]:
        return pb.VERDICT_OUT_OF_SCHEDULE
    if ad.off & OFF["budget"]:
        return pb.VERDICT_OUT_OF_BUDGET
    if not ad.groups >> about.group & 1:
        return pb.VERDICT_OTHER_PLACEMENT
    if not len(reason.crowds):
        return pb.VERDICT_NO_SHARED_CROWD
    if negative:
        return pb.VERDICT_NEGATIVE_CROWD
    if ad.ad_id in about.user.blocked:
        return pb.VERDICT_BLOCKED
    seen = about.user.ads.get(ad.ad_id, SeenAd())
    if capped(seen, ad.max_impressions, about.user.clock_ms, about.cap_window_ms):
        return pb.VERDICT_FREQUENCY_CAP
    if ad.ad_id in about.ranks:
        return pb.VERDICT_LISTED
    return _unlisted(about, ad, reason)


def _unlisted(about: _About, ad: Ad, reason: Reason) -> pb.Verdict.ValueType:
    """Of an eligible ad that is not listed."""
    ranking = about.ranking
    above = (-reason.value, ad.ad_id) < (-ranking.floor_value, ranking.floor_ad)
    better = sum(
        about.advertisers.get(other) == ad.advertiser and (-value, other) < (-reason.value, ad.ad_id)
        for other, value in zip(ranking.ads.tolist(), ranking.values.tolist(), strict=True)
    )
    if about.advertiser_cap and better >= about.advertiser_cap:
        return pb.VERDICT_ADVERTISER_CAP
    if ranking.complete or above:
        return pb.VERDICT_OWED
    return pb.VERDICT_BELOW_FLOOR
