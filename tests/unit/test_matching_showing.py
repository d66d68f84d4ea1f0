"""What may be shown: the native reader of lists, the way round by ids, and an ad-by-ad look all say the same."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_kit import small_catalog
from matching_served import Served

from vitrine import native
from vitrine.matching import answer, record
from vitrine.matching.catalog import NO_NUMBER, Catalog
from vitrine.matching.record import Ranking, StoredList
from vitrine.matching.showing import Base, Excluded, Showing

SMALL = small_catalog(ads=30, bids=120)


def with_gaps(catalog: Catalog, seed: int) -> Catalog:
    """Numbers in another order than ids, with gaps; two ads and a crowd without one; masks of two groups."""
    rng = np.random.default_rng(seed)
    ad_numbers = rng.permutation(2 * len(catalog.ads))[: len(catalog.ads)].astype(np.uint32)
    crowd_numbers = rng.permutation(3 * len(catalog.crowds))[: len(catalog.crowds)].astype(np.uint32)
    ad_numbers[:2] = crowd_numbers[:1] = NO_NUMBER
    masks = rng.integers(1, 4, len(catalog.ads)).astype(np.uint8)
    return replace(
        catalog,
        ad_numbers=ad_numbers,
        crowd_numbers=crowd_numbers,
        ad_groups=masks,
        groups=("one", "two"),
        next_ad_number=0,
        next_crowd_number=0,
    )


def random_list(rng: np.random.Generator, catalog: Catalog, entries: int) -> StoredList:
    """Two rankings of any pairs, bids or none, of known ads and others."""
    rankings = []
    for _ in range(2):
        n = int(rng.integers(0, entries + 1))
        values = np.sort(rng.random(n).astype(np.float32))[::-1].copy()
        ads = rng.choice(catalog.ads, n, replace=False) if n <= len(catalog.ads) else catalog.ads
        rankings.append(Ranking(ads, values[: len(ads)], rng.choice(catalog.crowds, len(ads)), True, 0.0, 0))
    keys = rng.integers(1, 2**63, 5).astype(np.uint64)
    return StoredList(9, tuple(rankings), keys, rng.random(5).astype(np.float32), 10, "c1", "t1", revision=4)


def brute(served: Served, ranking: Ranking, k: int, group: int) -> list[tuple[int, int, float, float]]:
    """(ad, crowd, value, bid) of what may be shown, ad by ad."""
    found = []
    for ad_id, crowd, value in zip(
        ranking.ads.tolist(), ranking.crowds.tolist(), ranking.values.tolist(), strict=True
    ):
        ad = served.market.ad(ad_id)
        if ad is None or not ad.live or not ad.groups >> group & 1 or crowd not in ad.crowds:
            continue
        found.append((ad_id, crowd, value, float(ad.bids[ad.crowds == crowd][0])))
    return found[:k]


def disturb(served: Served, rng: np.random.Generator) -> None:
    """A few ad updates of every kind."""
    for ad_id in rng.choice(served.catalog.ads, int(rng.integers(0, 6))).tolist():
        kind = rng.integers(6)
        if kind == 0:
            served.update(ad_id, "paused")
        elif kind == 1:
            served.gate(ad_id, budget=True)
        elif kind == 2:
            served.forget(ad_id)
        else:
            crowds = rng.choice(served.catalog.crowds, int(rng.integers(1, 4)), replace=False).tolist()
            served.update(
                ad_id,
                "" if kind < 5 else "ended",
                served.definition(
                    ad_id,
                    crowd_ids=crowds,
                    bids=[float(b) for b in rng.integers(1, 9, len(crowds))],
                    placement_groups=int(rng.integers(1, 4)),
                ),
            )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(0, 1))
def test_an_answer_is_the_first_entries_that_may_be_shown(seed, k, group):
    rng = np.random.default_rng(seed)
    served = Served(with_gaps(SMALL, seed))
    stored = random_list(rng, served.catalog, 25)
    packed = record.encode(stored, served.catalog)
    disturb(served, rng)
    shown = brute(served, stored.rankings[group], k, group)
    showing = served.now.showing
    hidden = rng.choice(served.catalog.ads, 3).tolist()
    without = [row for row in brute(served, stored.rankings[group], 25, group) if row[0] not in hidden][:k]
    # An advertiser that pays for nothing excludes nothing, and takes the way by ids.
    for ads, advertisers, expected in [
        ([], [], shown),
        ([], [9], shown),
        (hidden, [], without),
        (hidden, [9], without),
    ]:
        excluded = Excluded(ads, advertisers)
        response, header = answer.from_record(packed, k, group, showing, excluded)
        columns = (response.ad_ids, response.crowd_ids, response.values, response.bids)
        assert list(zip(*columns, strict=True)) == expected
        assert (response.catalog_version, response.towers_version, response.arm) == ("c1", "t1", "a")
        assert list(response.context.keys) == stored.keys.tolist()
        assert list(response.context.weights) == stored.weights.tolist()
        assert header.revision == 4


def test_ads_of_updates_alone_are_read_by_their_ids():
    served = Served(with_gaps(SMALL, 5))
    for new, model in ((100_000, 1), (100_001, 2)):
        bid_on = served.catalog.crowds[:2].tolist()
        served.update(new, "", served.definition(int(served.catalog.ads[model]), crowd_ids=bid_on, bids=[3.0, 4.0]))
    ads = np.array([100_001, served.catalog.ads[0], 100_000, 100_002], np.uint64)
    ranking = Ranking(ads, np.array([4, 3, 2, 1], np.float32), served.catalog.crowds[[0, 1, 1, 0]], True, 0.0, 0)
    stored = replace(random_list(np.random.default_rng(1), served.catalog, 3), rankings=(ranking, ranking))
    packed = record.encode(stored, served.catalog)
    for group in range(2):
        response, _ = answer.from_record(packed, 5, group, served.now.showing)
        columns = (response.ad_ids, response.crowd_ids, response.values, response.bids)
        assert list(zip(*columns, strict=True)) == brute(served, ranking, 5, group)


def test_lists_take_the_native_way(monkeypatch):
    served = Served()
    listed = served.hold().rankings[0]
    served.update(int(listed.ads[0]), "paused")
    served.update(int(listed.ads[1]), "", served.definition(int(listed.ads[1]), item_id=3))
    monkeypatch.setattr(answer, "_by_id", None)
    assert list(served.matches(10).ad_ids) == listed.ads[1:11].tolist()
    assert list(served.matches(10, excluded_ad_ids=[int(listed.ads[1])]).ad_ids) == listed.ads[2:12].tolist()


def test_a_folded_base_shows_what_the_overlay_did():
    served = Served(SMALL)
    stored = served.hold()
    disturb(served, np.random.default_rng(3))
    before = answer.from_record(served.store.stored, 10, 0, served.now.showing)[0]
    served.updates.fold()
    folded = Showing(served.updates.market(), served.now.showing.base)
    assert folded.base is not served.now.showing.base
    assert answer.from_record(served.store.stored, 10, 0, folded)[0] == before
    assert len(stored.rankings[0].ads) >= len(before.ad_ids) > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"entries": 10_000}, "entries: "),
        ({"entries_at": -1}, "entries: "),
        ({"entry_bits": 58}, "entry_bits: "),
        ({"falls_at": 10_000}, "falls: "),
        ({"crowds": 2**40}, "crowds: "),
        ({"extras_at": 10_000}, "extras: "),
        ({"ad_extras": 70_000}, "ad_extras, crowd_extras: "),
        ({"group": 8}, "group: "),
        ({"k": 0}, "k: "),
        ({"closed": np.zeros(3, np.uint8)}, "closed: "),
    ],
)
def test_a_column_outside_the_record_is_refused(wrong, said):
    served = Served(SMALL)
    served.hold()
    packed = served.store.stored
    header = record.open_record(packed)
    columns = record.columns_of(packed, header, 0)
    fields = columns._asdict() | {"ad_bits": header.ad_bits, "crowd_bits": header.crowd_bits}
    showing = served.now.showing
    fields |= {"k": 5, "crowds": header.crowds, "closed": showing.closed(0), "extra": showing.extra, "group": 0}
    fields |= {"extras_at": header.columns_at + 12 * header.features, "ad_extras": 0, "crowd_extras": 0}
    fields |= {"excluded": np.empty(0, np.uint64)}
    reader = showing.base.reader
    assert reader.read(packed, **fields)
    with pytest.raises(ValueError, match=said):
        reader.read(packed, **(fields | wrong))


def test_definitions_that_lead_nowhere_are_refused():
    ads, groups, crowds, bids = np.array([3], np.uint64), np.ones(1, np.uint8), np.array([4], np.uint64), np.ones(1)
    tables = [ads, groups, np.array([0, 1]), crowds, bids.astype(np.float32)]
    native.ListExtra(*tables)
    for place, wrong in [(1, groups[:0]), (2, np.array([0, 2])), (4, bids[:0].astype(np.float32))]:
        with pytest.raises(ValueError, match=r".+: "):
            native.ListExtra(*[wrong if i == place else each for i, each in enumerate(tables)])


def test_tables_that_lead_nowhere_are_refused():
    base = Base(SMALL)
    indptr, crowds, bids = SMALL.ad_postings
    tables = [base.ad_at, base.crowd_at, base.ads, base.crowds, indptr, crowds, bids, b"\x01\x02\x03\x04"]
    native.ListReader(*tables)
    for place, wrong in [
        (0, np.full(3, 31, np.int64)),
        (1, np.full(3, -1, np.int64)),
        (4, indptr[:-1].copy()),
        (6, bids[:-1].copy()),
        (7, b"\x01"),
    ]:
        with pytest.raises(ValueError, match=r".+: "):
            native.ListReader(*[wrong if i == place else each for i, each in enumerate(tables)])
