"""Whatever ad-updates say, and whenever they are folded, the market is what a dictionary of ads would be."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matching_kit import small_catalog
from vitrine.api.events.v1.events_pb2 import Activation, AdDefinition, AdGate, AdUpdate
from vitrine.matching.catalog import NO_NUMBER, OFF, Catalog
from vitrine.matching.events import RecordError
from vitrine.matching.market import Market, ad_of
from vitrine.matching.merge import merged
from vitrine.matching.updates import Updates, activation_key, ad_key, gate_key, parse

CROWDS, ADS = range(1, 9), range(1, 13)
CATALOG = small_catalog(crowds=6, ads=8, items=4, bids=20)  # crowds 10..60, ads 3..24
SOME_ADS = [3, 6, 9, 24, 25, 1, 2**64 - 1]
SOME_CROWDS = [10, 20, 30, 60, 65, 5]


@dataclass
class Model:
    """The plain version: definitions, states and gates by ad."""

    base: dict = field(default_factory=lambda: {int(id): plain(ad_of(CATALOG, int(id))) for id in CATALOG.ads})
    defined: dict = field(default_factory=dict)
    state: dict = field(default_factory=dict)
    gates: dict = field(default_factory=dict)

    def ads(self):
        """ad -> (advertiser, bids by crowd, negatives, mask, cap, off)."""
        known = self.base | {ad: of for ad, of in self.defined.items() if of is not None}
        return {ad: (*of, self.state.get(ad, 0) | self.gates.get(ad, 0)) for ad, of in known.items()}


def plain(ad):
    bids = dict(zip(ad.crowds.tolist(), ad.bids.tolist(), strict=True))
    return ad.advertiser, bids, tuple(ad.negatives.tolist()), ad.groups, ad.max_impressions


definitions = st.builds(
    AdDefinition,
    advertiser_id=st.integers(1, 3),
    item_id=st.integers(0, 3),
    negative_crowd_ids=st.lists(st.sampled_from(SOME_CROWDS), unique=True, max_size=2),
    placement_groups=st.integers(0, 15),
    max_impressions=st.integers(0, 2),
)


@st.composite
def records(draw):
    """(key, value, what it does to a Model)."""
    ad = draw(st.sampled_from(SOME_ADS))
    kind = draw(st.sampled_from(["define", "state", "gate", "tombstone", "gate tombstone"]))
    if kind == "tombstone":
        return ad_key(ad), None, lambda m: (m.defined.pop(ad, None), m.state.pop(ad, None))
    if kind == "gate tombstone":
        return gate_key(ad), None, lambda m: m.gates.pop(ad, None)
    if kind == "gate":
        closed, spent = draw(st.booleans()), draw(st.booleans())
        gate = AdGate(ad_id=ad, out_of_schedule=closed, out_of_budget=spent)
        off = closed * OFF["schedule"] | spent * OFF["budget"]
        return gate_key(ad), gate.SerializeToString(), lambda m: m.gates.update({ad: off})
    state = draw(st.sampled_from([1, 2, 3]))
    update = AdUpdate(ad_id=ad, state=state)
    of = None
    if kind == "define":
        definition = draw(definitions)
        for crowd in draw(st.lists(st.sampled_from(SOME_CROWDS), unique=True, max_size=4)):
            definition.crowd_ids.append(crowd)
            definition.bids.append(draw(st.sampled_from([0.5, 1.0, 2.5])))
        update.definition.CopyFrom(definition)
        of = (
            definition.advertiser_id,
            dict(zip(definition.crowd_ids, definition.bids, strict=True)),
            tuple(sorted(definition.negative_crowd_ids)),
            definition.placement_groups or 15,
            definition.max_impressions,
        )

    def does(m):
        m.defined[ad] = of
        m.state[ad] = state - 1  # 0, OFF["paused"], OFF["ended"]

    return ad_key(ad), update.SerializeToString(), does


def assert_is(market: Market, model: Model) -> None:
    wanted = model.ads()
    for ad_id in {*SOME_ADS, *wanted}:
        ad = market.ad(ad_id)
        assert (ad and (*plain(ad), ad.off)) == wanted.get(ad_id)
        assert ad is None or ad.live == (ad.off == 0)
        assert ad is None or ad.number == (int(ad_id) // 3 - 1 if ad_id in model.base else None)
    ads = sorted({*SOME_ADS, *wanted})
    live = {ad for ad, of in wanted.items() if of[-1] == 0}
    assert market.live(ads).tolist() == [ad in live for ad in ads]
    assert market.live_ads == len(live)
    # What is to be matched, base and extra together, is the live ads' bids, each once.
    pairs = {}
    for catalog, dead in ((market.catalog, market.dead), (market.extra, np.zeros(len(market.extra.ads), bool))):
        for row in np.flatnonzero(~dead).tolist():
            ad_id = int(catalog.ads[row])
            crowds, bids = catalog.bids_of(ad_id)
            assert ad_id not in pairs
            pairs[ad_id] = dict(zip(crowds.tolist(), bids.tolist(), strict=True))
            assert tuple(catalog.negatives_of(row).tolist()) == wanted[ad_id][2]
            assert (catalog.ad_groups[row], catalog.ad_caps[row]) == wanted[ad_id][3:5]
        Catalog.__post_init__(catalog)
    assert pairs == {ad: wanted[ad][1] for ad in live}
    asked = [(ad, crowd) for ad in sorted(live) for crowd in [*SOME_CROWDS, *CATALOG.crowds.tolist()]]
    found = market.bids([a for a, _ in asked], [c for _, c in asked]) if asked else np.empty(0)
    np.testing.assert_array_equal(found, np.array([wanted[a][1].get(c, np.nan) for a, c in asked], np.float32))


@given(st.lists(st.tuples(records(), st.sampled_from(["", "look", "fold"])), max_size=25))
@settings(max_examples=150, deadline=None)
def test_a_market_is_what_a_dictionary_of_the_same_records_is(steps):
    updates, model, before = Updates(CATALOG, "c1", 0), Model(), []
    for offset, ((key, value, does), then) in enumerate(steps):
        updates.apply(offset, 0, key, value)
        does(model)
        if then:
            market = updates.market()
            assert market.position == offset + 1
            assert_is(market, model)
            before.append((market, dict(model.ads())))
        if then == "fold":
            updates.fold()
            folded = updates.market()
            assert_is(folded, model)
            assert folded.position == offset + 1
            assert not len(folded.extra.ads)
    assert_is(updates.market(), model)
    for market, ads in before:  # snapshots stayed as they were
        for ad_id in SOME_ADS:
            ad = market.ad(ad_id)
            assert (ad and (*plain(ad), ad.off)) == ads.get(ad_id)


@given(st.lists(records(), max_size=25), st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_catalog_contains_changes_nothing_of_it(steps, data):
    """Two ways to the same market: all records over the old catalog; a later catalog, from its offset on."""
    whole = Updates(CATALOG, "c1", 0)
    cut = data.draw(st.integers(0, len(steps)))
    for offset, (key, value, _) in enumerate(steps):
        whole.apply(offset, 0, key, value)
        if offset + 1 == cut:
            whole.fold()
    later = Updates(CATALOG, "c1", 0)
    for offset, (key, value, _) in enumerate(steps[:cut]):
        later.apply(offset, 0, key, value)
    later.fold()
    base = later.market().catalog
    tailed, moved = Updates(base, "c2", cut), whole.over(base, "c2", cut)
    for offset, (key, value, _) in enumerate(steps):
        tailed.apply(offset, 0, key, value)
    after = {key for key, _, _ in steps[cut:]}
    for ad_id in SOME_ADS:
        of_each = [
            ad and (*plain(ad), ad.off, ad.number) for ad in (u.market().ad(ad_id) for u in (tailed, moved, whole))
        ]
        assert of_each[0] == of_each[1]
        if not {ad_key(ad_id), gate_key(ad_id)} & after:  # else "as the catalog has it" is the later catalog's word
            assert of_each[1] == of_each[2]
    assert moved.market().changed(0) == whole.market().changed(0)


@given(st.lists(records(), max_size=10), st.lists(records(), max_size=10), st.lists(records(), max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_read_while_ads_are_folded_is_not_lost(before, meanwhile, after):
    updates, model = Updates(CATALOG, "c1", 0), Model()

    def read(some):
        for key, value, does in some:
            updates.apply(updates.position, 0, key, value)
            does(model)

    def slow(market):
        read(meanwhile)
        return merged(market)

    read(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrine.matching.updates.merged", slow)
        updates.fold()
    assert_is(updates.market(), model)
    read(after)
    assert_is(updates.market(), model)


def test_a_fold_that_loses_one_row_and_gains_another_keeps_the_others_bids():
    """As many rows as before, and in between each is another's."""
    updates, model = Updates(CATALOG, "c1", 0), Model()

    def define(ad_id, crowds):
        definition = AdDefinition(advertiser_id=1, crowd_ids=crowds, bids=[2.0] * len(crowds))
        updates.apply(
            updates.position,
            0,
            ad_key(ad_id),
            AdUpdate(ad_id=ad_id, state=1, definition=definition).SerializeToString(),
        )
        model.defined[ad_id] = 1, dict.fromkeys(crowds, 2.0), (), 15, 0

    define(10, [10, 20])
    updates.fold()
    updates.apply(updates.position, 0, ad_key(10), None)
    del model.defined[10]
    define(1, [10, 60])
    updates.fold()
    assert len(updates.market().catalog.ads) == len(CATALOG.ads) + 1
    assert_is(updates.market(), model)


def test_changed_names_each_ad_once_from_an_offset_on():
    updates = Updates(CATALOG, "c1", 0)
    for offset, ad in enumerate([3, 6, 3, 9]):
        updates.apply(offset, 0, ad_key(ad), AdUpdate(ad_id=ad, state=1).SerializeToString())
    market = updates.market()
    updates.apply(4, 0, gate_key(12), AdGate(ad_id=12).SerializeToString())
    assert [market.changed(since) for since in (0, 1, 2, 3, 4)] == [[3, 6, 9], [6, 3, 9], [3, 9], [9], []]
    assert updates.market().changed(3) == [9, 12]


def test_many_changes_of_few_ads_are_kept_once_each():
    updates = Updates(CATALOG, "c1", 0)
    value = AdUpdate(ad_id=3, state=1).SerializeToString()
    for offset in range(5_000):
        updates.apply(offset, 0, ad_key(3), value)
    market = updates.market()
    assert market.changed(0) == market.changed(4_999) == [3]
    assert len(market.changes.offsets) < 2_000


def test_markets_stay_the_same_object_while_nothing_is_read():
    updates = Updates(CATALOG, "c1", 0)
    updates.apply(0, 0, ad_key(3), AdUpdate(ad_id=3, state=2).SerializeToString())
    assert updates.market() is updates.market()
    paused = updates.market()
    assert paused.catalog is CATALOG
    with pytest.raises(RecordError):
        updates.apply(1, 0, b"3", b"\xff")
    assert updates.market().position == 2
    assert updates.market().dead is paused.dead


def test_more_than_so_many_redefined_ads_are_folded_in_the_background():
    updates = Updates(CATALOG, "c1", 0, fold_at=2)
    for offset, ad in enumerate([101, 102, 103]):
        definition = AdDefinition(advertiser_id=1, crowd_ids=[10], bids=[1.0])
        update = AdUpdate(ad_id=ad, state=1, definition=definition)
        updates.apply(offset, 0, ad_key(ad), update.SerializeToString())
    assert updates.market().catalog is CATALOG
    updates.wait_folded(30)
    market = updates.market()
    assert market.catalog.ads.tolist() == [*CATALOG.ads.tolist(), 101, 102, 103]
    assert market.catalog.ad_numbers[-3:].tolist() == [NO_NUMBER] * 3
    assert market.catalog_version == "c1"
    assert market.live([101, 102, 103]).all()


def activate(updates, offset, append_ms, effective_ms, **fields):
    said = Activation(catalog_version="c1", towers_version=f"t{offset}", effective_ms=effective_ms, **fields)
    updates.apply(offset, append_ms, activation_key(str(offset)), said.SerializeToString())


def test_an_activation_rules_from_its_time_and_never_before_its_append():
    updates = Updates(CATALOG, "c1", 0)
    assert updates.ruling(10**15) is None
    activate(updates, 0, append_ms=100, effective_ms=0)
    activate(updates, 1, append_ms=150, effective_ms=200)
    ruling = [active and active.offset for active in map(updates.ruling, (99, 100, 199, 200, 10**15))]
    assert ruling == [None, 0, 0, 1, 1]
    assert [active.effective_ms for active in updates.activations] == [100, 200]


def test_a_later_record_overtakes_one_that_has_not_ruled_yet():
    updates = Updates(CATALOG, "c1", 0)
    activate(updates, 0, append_ms=100, effective_ms=1_000)
    activate(updates, 1, append_ms=150, effective_ms=0)
    assert [updates.ruling(ms).offset for ms in (150, 1_000, 2_000)] == [1, 1, 1]
    assert updates.ruling(149) is None


BAD = [
    (None, b"", "key: absent"),
    (b"03", None, "key: b'03' is no ad id"),
    (b"0", None, "is no ad id"),
    (b"18446744073709551616", None, "is no ad id"),
    (b"x/gate", None, "is no ad id"),
    (b"3", AdUpdate(ad_id=4, state=1), "ad_id: 4, where the key is of 3"),
    (b"3", AdUpdate(ad_id=3), "state: 0 is none"),
    (b"3", AdUpdate(ad_id=3, state=9), "state: 9 is none"),
    (b"3/gate", AdGate(ad_id=4), "ad_id: 4"),
    (b"activation/x", Activation(towers_version="t"), "catalog_version: empty"),
    (b"activation/x", Activation(catalog_version="c"), "towers_version: empty"),
    (b"activation/x", Activation(catalog_version="c", towers_version="t", other_share=5), "other_towers_version"),
    (b"activation/x", Activation(catalog_version="c", towers_version="t", other_share=1001), "other_share: 1001"),
    (b"activation/x", Activation(catalog_version="c", towers_version="t", effective_ms=-1), "effective_ms: -1"),
]
BAD_DEFINITIONS = [
    ({"advertiser_id": 0}, "definition.advertiser_id: 0"),
    ({"crowd_ids": [1]}, "definition.bids: 0 for 1 crowd_ids"),
    ({"crowd_ids": [1, 1], "bids": [1, 2]}, "definition.crowd_ids: a crowd is there twice"),
    ({"crowd_ids": [0], "bids": [1]}, "definition.crowd_ids: 0 is reserved"),
    ({"crowd_ids": [1], "bids": [-1]}, "definition.bids: -1.0 on crowd 1 is not a finite number > 0"),
    ({"crowd_ids": [1], "bids": [0]}, "definition.bids: 0.0 on crowd 1"),
    ({"crowd_ids": [1], "bids": [float("nan")]}, "definition.bids: nan on crowd 1"),
    ({"crowd_ids": [1], "bids": [float("inf")]}, "definition.bids: inf on crowd 1"),
    ({"crowd_ids": [1], "bids": [2e6]}, "definition.bids: 2000000.0 on crowd 1 is above 1,000,000"),
    ({"negative_crowd_ids": [0]}, "definition.negative_crowd_ids: 0"),
    ({"placement_groups": 16}, "definition.placement_groups: 16"),
    ({"start_ms": -1}, "definition.start_ms: -1"),
    ({"start_ms": 5, "end_ms": 5}, "definition.end_ms: 5 is not after start_ms, 5"),
    ({"daily_budget": float("nan")}, "definition.daily_budget: nan"),
    ({"daily_budget": -1}, "definition.daily_budget: -1"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_a_record_that_is_wrong_is_refused_by_its_field(key, value, message):
    with pytest.raises(RecordError) as caught:
        parse(key, value.SerializeToString() if hasattr(value, "SerializeToString") else value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("fields", "message"), BAD_DEFINITIONS)
def test_a_definition_that_is_wrong_is_refused_by_its_field_and_changes_nothing(fields, message):
    updates = Updates(CATALOG, "c1", 0)
    update = AdUpdate(ad_id=3, state=1, definition=AdDefinition(**{"advertiser_id": 1} | fields))
    with pytest.raises(RecordError) as caught:
        updates.apply(0, 0, b"3", update.SerializeToString())
    assert message in str(caught.value)
    assert updates.market().changed(0) == []
    assert plain(updates.market().ad(3)) == plain(ad_of(CATALOG, 3))


def test_an_ad_in_no_crowd_is_an_ad():
    updates = Updates(CATALOG, "c1", 0)
    update = AdUpdate(ad_id=77, state=1, definition=AdDefinition(advertiser_id=1))
    updates.apply(0, 0, b"77", update.SerializeToString())
    market = updates.market()
    assert market.live([77]).tolist() == [True]
    assert market.ad(77).crowds.tolist() == []
