"""What a caller may ask of the matching service: each field checked, the error names it."""

from collections.abc import Sequence

from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.errors import FieldError

MAX_EXPLAINED = 1_000
MAX_EXCLUDED_ADS = 1_000
MAX_EXCLUDED_ADVERTISERS = 100
MAX_CROWDS = 64


def check_matches(request: pb.GetMatchesRequest, served: int, groups: Sequence[str]) -> None:
    """Raises FieldError; `served` is the served length of a list, `groups` names the placement groups."""
    check_user(request.user_id)
    if not 1 <= request.k <= served:
        raise FieldError("k", f"{request.k} is not in 1..{served}, the served length of a list")
    check_group(request.placement_group, groups)
    # Each of these is rare, and len() of a repeated field is cheap.
    if len(request.excluded_ad_ids) > MAX_EXCLUDED_ADS:
        _too_many("excluded_ad_ids", len(request.excluded_ad_ids), MAX_EXCLUDED_ADS)
    if len(request.excluded_advertiser_ids) > MAX_EXCLUDED_ADVERTISERS:
        _too_many("excluded_advertiser_ids", len(request.excluded_advertiser_ids), MAX_EXCLUDED_ADVERTISERS)
    if len(request.crowd_ids) > MAX_CROWDS:
        _too_many("crowd_ids", len(request.crowd_ids), MAX_CROWDS)


def check_explain(request: pb.ExplainRequest, groups: Sequence[str]) -> None:
    """Raises FieldError."""
    check_user(request.user_id)
    if not 1 <= len(request.ad_ids) <= MAX_EXPLAINED:
        raise FieldError("ad_ids", f"{len(request.ad_ids)} ads; 1 to {MAX_EXPLAINED} can be explained at once")
    check_group(request.placement_group, groups)


def check_user(user_id: int) -> None:
    """Raises FieldError for the reserved id."""
    if not user_id:
        raise FieldError("user_id", "0 is reserved; name the user")


def check_group(group: int, groups: Sequence[str]) -> None:
    """Raises FieldError for a placement group that the catalog does not have."""
    if group >= len(groups):
        named = ", ".join(f"{number} ({name})" for number, name in enumerate(groups))
        raise FieldError("placement_group", f"{group} is none of the catalog's: {named}")


def _too_many(field: str, count: int, most: int) -> None:
    raise FieldError(field, f"has {count}; send at most {most:,}")
