"""Base and extra made one catalog: what the overlay says becomes rows (docs/decisions/0021-catalog-position.md)."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.matching.catalog import NO_NUMBER, Catalog
from vitrine.matching.market import Ad, Market, joined

I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]


def merged(market: Market) -> Catalog:
    """A catalog with every ad of a market as it is, live or not; ads and crowds keep their numbers.

    Ads that records define and the base lacks get rows without a number.
    """
    base = market.catalog
    said = [ad for ad in market.overlay.values() if ad is not None]
    rows, known = base.ad_ordinals([ad.ad_id for ad in said])
    off, schedule, budgets = base.ad_off.copy(), base.ad_schedule.copy(), base.ad_budgets.copy()
    for row, ad in zip(_rows(rows, known), said, strict=True):
        if row >= 0:
            off[row], schedule[row], budgets[row] = ad.off, (ad.start_ms, ad.end_ms), ad.daily_budget
    new = sorted(
        (ad for ad, row in zip(said, _rows(rows, known), strict=True) if row < 0 or market.redefined[row]),
        key=lambda ad: ad.ad_id,
    )
    lost = base.ad_ordinals([ad_id for ad_id, ad in market.overlay.items() if ad is None])[0]
    return _with(replace(base, ad_off=off, ad_schedule=schedule, ad_budgets=budgets), new, lost)


def without(base: Catalog, rows: U32) -> Catalog:
    """A catalog without these ads. Crowds stay, and numbers."""
    return _with(base, [], rows)


def adjusted(extra: Catalog, base: Catalog, new: list[Ad], gone: list[int]) -> Catalog:
    """The small catalog beside `base` with these ads in it, instead of its own of those ids, and without the gone.

    Crowds that it had stay.
    """
    rows, _ = extra.ad_ordinals(np.array(sorted(gone), np.uint64))
    moved = _with(extra, sorted(new, key=lambda ad: ad.ad_id), rows)
    known, there = base.crowd_ordinals(moved.crowds)
    numbers = np.full(len(moved.crowds), NO_NUMBER, np.uint32)
    numbers[there] = base.crowd_numbers[known]
    return replace(moved, crowd_numbers=numbers)


def _with(base: Catalog, new: list[Ad], lost: U32) -> Catalog:
    """The base with these ads in the place of its own of the same ids, and without the rows that are lost."""
    if not new and not len(lost):
        return base
    new_ids = np.array([ad.ad_id for ad in new], np.uint64)
    bid_crowds = joined([ad.crowds for ad in new], np.uint64)
    bids = joined([ad.bids for ad in new], np.float32)
    bid_ads = np.repeat(new_ids, [len(ad.crowds) for ad in new])
    neg_ids = joined([ad.negatives for ad in new], np.uint64)
    crowds = np.union1d(base.crowds, np.concatenate([bid_crowds, neg_ids]))
    stay = np.ones(len(base.ads), bool)
    stay[lost] = False
    ads = np.union1d(base.ads[stay], new_ids)
    crowd_at, ad_at = np.searchsorted(crowds, base.crowds), np.searchsorted(ads, base.ads)  # old ordinal -> new
    place = np.searchsorted(ads, new_ids)
    replaced, _ = base.ad_ordinals(new_ids)
    gone = ~stay  # rows whose postings go
    gone[replaced] = True

    def column(of: NDArray[Any], values: list[Any]) -> NDArray[Any]:
        out = np.zeros((len(ads), *of.shape[1:]), of.dtype)
        out[ad_at[stay]] = of[stay]
        out[place] = np.array(values, of.dtype).reshape(len(new), *of.shape[1:])
        return out

    bid_crowd, bid_ad = np.searchsorted(crowds, bid_crowds), np.searchsorted(ads, bid_ads)
    indptr, posting_ads, posting_bids = _replaced(
        base.crowd_indptr, base.posting_ads, base.posting_bids, gone[base.posting_ads],
        crowd_at, len(crowds), ad_at, bid_crowd, bid_ad, bids,
    )  # fmt: skip
    by_indptr, by_crowds, by_bids = base.ad_postings
    ad_indptr, ad_crowds, ad_bids = _replaced(
        by_indptr, by_crowds, by_bids, np.repeat(gone, np.diff(by_indptr)),
        ad_at, len(ads), crowd_at, bid_ad, bid_crowd, bids,
    )  # fmt: skip
    neg_indptr, neg_crowds, _ = _replaced(
        base.neg_indptr, base.neg_crowds, np.zeros(len(base.neg_crowds), np.float32),
        np.repeat(gone, np.diff(base.neg_indptr)), ad_at, len(ads), crowd_at,
        np.repeat(place, [len(ad.negatives) for ad in new]), np.searchsorted(crowds, neg_ids),
        np.zeros(len(neg_ids), np.float32),
    )  # fmt: skip
    crowd_numbers = np.full(len(crowds), NO_NUMBER, np.uint32)
    crowd_numbers[crowd_at] = base.crowd_numbers
    fields: dict[str, list[Any]] = {
        "ad_advertisers": [ad.advertiser for ad in new],
        "ad_items": [ad.item for ad in new],
        "ad_groups": [ad.groups for ad in new],
        "ad_caps": [ad.max_impressions for ad in new],
        "ad_off": [ad.off for ad in new],
        "ad_schedule": [(ad.start_ms, ad.end_ms) for ad in new],
        "ad_budgets": [ad.daily_budget for ad in new],
        "ad_numbers": [NO_NUMBER if ad.number is None else ad.number for ad in new],
    }
    columns: dict[str, Any] = {name: column(getattr(base, name), values) for name, values in fields.items()}
    return replace(
        base,
        crowds=crowds,
        crowd_indptr=indptr,
        posting_ads=posting_ads,
        posting_bids=posting_bids,
        ads=ads,
        item_crowd_ordinals=crowd_at[base.item_crowd_ordinals].astype(np.uint32),
        neg_indptr=neg_indptr,
        neg_crowds=neg_crowds,
        crowd_numbers=crowd_numbers,
        ad_indptr=ad_indptr,
        ad_crowds=ad_crowds,
        ad_bids=ad_bids,
        **columns,
    )


def _replaced(
    indptr: I64, columns: U32, values: F32, gone: NDArray[np.bool_],
    row_at: I64, rows: int, column_at: I64, new_rows: I64, new_columns: I64, new_values: F32,
) -> tuple[I64, U32, F32]:  # fmt: skip
    """A sparse table (rows of ascending columns) without what is `gone`, renamed, with new entries in their places.

    row_at, column_at: old ordinal -> new, rising, so that what stays is in order already
    """
    lengths = np.diff(indptr)
    out = np.flatnonzero(gone)
    lengths = lengths - np.bincount(np.searchsorted(indptr, out, "right") - 1, minlength=len(lengths))
    sizes = np.zeros(rows + 1, np.int64)
    np.add.at(sizes, row_at, lengths)  # a lost row, whose place is another's or the end, has length 0
    kept = np.concatenate(([0], np.cumsum(sizes[:rows]))).astype(np.int64)
    stay = ~gone
    columns = columns[stay]
    if not np.array_equal(column_at, np.arange(len(column_at))):
        columns = column_at.astype(np.uint32)[columns]
    order = np.lexsort((new_columns, new_rows))
    new_rows, new_columns, new_values = new_rows[order], new_columns[order], new_values[order]
    at = _lower_bounds(kept[new_rows], kept[new_rows + 1], columns, new_columns)
    grown = kept + np.concatenate(([0], np.cumsum(np.bincount(new_rows, minlength=rows)))).astype(np.int64)
    columns = np.insert(columns, at, new_columns)  # one after the other: there may be gigabytes of each
    return grown, columns, np.insert(values[stay], at, new_values)


def _lower_bounds(low: I64, high: I64, columns: U32, wanted: I64) -> I64:
    """For each n the first place in columns[low[n]:high[n]], ascending, that is not below wanted[n]."""
    low, high = low.copy(), high.copy()
    while np.any(low < high):
        open_ = np.flatnonzero(low < high)
        middle = (low[open_] + high[open_]) >> 1
        below = columns[middle] < wanted[open_]
        low[open_[below]] = middle[below] + 1
        high[open_[~below]] = middle[~below]
    return low


def _rows(rows: U32, known: NDArray[np.bool_]) -> list[int]:
    """Row of each ad, -1 for those that the base lacks."""
    out = np.full(len(known), -1, np.int64)
    out[known] = rows
    return out.tolist()
