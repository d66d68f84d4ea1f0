"""GetMatches' answer out of a stored list: the entries that may be shown, with the bids that won."""

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.matching.catalog import Catalog
from vitrine.matching.record import Header, decode_opened, open_record


def from_record(record: bytes, k: int, hidden: Set[int], catalog: Catalog) -> tuple[pb.GetMatchesResponse, Header]:
    """The first k entries that are not in `hidden`, with the user's features; without ads where all are hidden.

    `source`, `revision` and `age_ms` are left to the caller. Raises RecordError as `record.decode` does.
    """
    header = open_record(record)
    stored = decode_opened(header, record, catalog, group=0)
    (ranking,) = stored.rankings
    ads = ranking.ads.tolist()
    if hidden and not hidden.isdisjoint(ads):
        rows = [row for row, ad in enumerate(ads) if ad not in hidden][:k]
    else:
        rows = list(range(min(k, len(ads))))
    response = pb.GetMatchesResponse(catalog_version=stored.catalog_version, towers_version=stored.towers_version)
    response.ad_ids.extend(ranking.ads[rows].tolist())
    response.values.extend(ranking.values[rows].tolist())
    response.crowd_ids.extend(ranking.crowds[rows].tolist())
    response.bids.extend(bids(catalog, ranking.ads[rows], ranking.crowds[rows]).tolist())
    response.context.keys.extend(stored.keys.tolist())
    response.context.weights.extend(stored.weights.tolist())
    return response, header


def bids(catalog: Catalog, ads: NDArray[np.uint64], crowds: NDArray[np.uint64]) -> NDArray[np.float32]:
    """(n,) the ads' bids on the crowds beside them, nan where there is no such pair."""
    found = np.full(len(ads), np.nan, np.float32)
    for row, (ad, crowd) in enumerate(zip(ads.tolist(), crowds.tolist(), strict=True)):
        on, each = catalog.bids_of(ad)
        at = int(np.searchsorted(on, np.uint64(crowd)))
        if at < len(on) and on[at] == crowd:
            found[row] = each[at]
    return found
