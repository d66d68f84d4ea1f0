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
    expected = brute(served, stored.rankings[group], k, group)
    showing = served.now.showing
    nobody = Excluded([], [])  # excludes nothing, and takes the way by ids
    for excluded in (None, nobody):
        response, header = answer.from_record(packed, k, group, showing, excluded)
        columns = (response.ad_ids, response.crowd_ids, response.values, response.bids)
        assert list(zip(*columns, strict=True)) == expected
        assert (response.catalog_version, response.towers_version, response.arm) == ("c1", "t1", "a")
        assert list(response.context.keys) == stored.keys.tolist()
        assert list(response.context.weights) == stored.weights.tolist()
        assert header.revision == 4


def test_the_usual_list_takes_the_native_way(monkeypatch):
    served = Served()
    served.hold()
    served.update(int(served.catalog.ads[0]), "paused")
    monkeypatch.setattr(answer, "_by_id", None)
    assert len(served.matches(10).ad_ids) == 10


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
    fields |= {"k": 5, "crowds": header.crowds, "closed": served.now.showing.closed(0)}
    reader = served.now.showing.base.reader
    assert reader.read(packed, **fields)[1] == 5
    with pytest.raises(ValueError, match=said):
        reader.read(packed, **(fields | wrong))


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
