"""The matching server on real Kafka and Valkey: what callers may ask for, and what ad-updates change, live.

Lists are written into Redis by the test, as a worker would.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from kafka import KafkaConsumer, TopicPartition
from matching_kit import DAY_MS, publish, small_catalog, small_towers
from matching_live import SERVED, Live, live, partition_of, wait_for

from vitrine.api.events.v1.events_pb2 import Activation, AdDefinition, AdGate, AdUpdate, UserEvent
from vitrine.artifacts import ArtifactStore
from vitrine.client import InvalidArgumentError, MatchingClient, Source, UnavailableError, Verdict
from vitrine.data.replay import user_event
from vitrine.matching import record, state
from vitrine.matching.record import StoredList
from vitrine.matching.state import UserState, fold
from vitrine.matching.store import BucketWrite
from vitrine.placement import arm_of, bucket_of, qualify
from vitrine.runtime import kafka
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.health import is_serving

USER = 42


@dataclass
class Front:
    """A server, a client of it, and the pens that others write with."""

    run: Live
    client: MatchingClient

    def hold(self, user_id: int = USER, items: int = 3, **changes: object) -> StoredList:
        """The user's state and list, as of a moment ago."""
        now_ms = int(time.time() * 1000)
        user = UserState(user_id)
        for offset, item in enumerate(self.run.catalog.items[:items].tolist()):
            fold(user, user_event("purchase", user_id, now_ms, item, 0, 0), now_ms, offset, self.run.matcher.table)
        (stored,) = self.run.matcher.lists([user])
        user.listed = user.revision
        stored = replace(stored, **changes)
        bucket = bucket_of(user_id)
        (mark,) = self.run.store.read_marks([bucket])
        write = (user_id, state.encode(user), record.encode(stored, self.run.catalog))
        (token,) = self.run.store.write([BucketWrite(bucket, mark.token, "test/4", items, items, [write])])
        assert token is not None
        return stored

    def update(self, key: str, value: AdUpdate | AdGate | Activation | None) -> None:
        topic = qualify(self.run.namespace, "ad-updates")
        body = None if value is None else value.SerializeToString()
        self.run.producer.send(topic, key=key.encode(), value=body).get(timeout=10)

    def define(self, ad_id: int, **changes: object) -> None:
        """An ad of the catalog with another definition."""
        ad = self.run.matcher.market.ad(ad_id)
        fields = {
            "advertiser_id": ad.advertiser,
            "crowd_ids": ad.crowds.tolist(),
            "bids": ad.bids.tolist(),
        }
        definition = AdDefinition(**(fields | changes))
        self.update(str(ad_id), AdUpdate(ad_id=ad_id, state=AdUpdate.STATE_ACTIVE, definition=definition))

    def ads(self, k: int = SERVED, user_id: int = USER) -> list[int]:
        return self.client.get_matches(user_id, k).ads.tolist()


@pytest.fixture
def front(stack: EmbeddedStack, namespace: str, tmp_path) -> Iterator[Front]:
    with live(stack, namespace, tmp_path) as run:
        server = run.server().wait_serving()
        with MatchingClient(server.address(), timeout_s=10) as client:
            yield Front(run, client)


def test_callers_choose_what_they_get(front: Front):
    stored = front.hold()
    listed = stored.rankings[0].ads.tolist()
    whole = front.client.get_matches(USER, SERVED)
    assert (whole.source, whole.ads.tolist(), whole.arm) == (Source.STORED, listed[:SERVED], "a")
    assert whole.bids.tolist() == front.run.matcher.market.bids(whole.ads, whole.crowds).tolist()
    some = front.client.get_matches(USER, SERVED, excluded_ads=listed[:2])
    assert some.ads.tolist() == listed[2 : SERVED + 2]
    nobody = front.client.get_matches(USER, SERVED, excluded_advertisers=[1])
    assert not len(nobody.ads), "all ads are of this advertiser"
    time.sleep(0.05)
    old = front.client.get_matches(USER, SERVED, max_age_ms=1)
    assert (old.source, len(old.ads)) == (Source.TOO_OLD, SERVED)
    assert front.client.get_matches(USER, SERVED, max_age_ms=60_000).source is Source.STORED
    crowd = int(front.run.catalog.crowds[4])
    stranger = front.client.get_matches(7, 3, crowds=[crowd])
    assert (stranger.source, stranger.crowds.tolist()) == (Source.NO_LIST, [crowd] * 3)
    for field, wrong in [
        ("placement_group", {"placement_group": 1}),
        ("excluded_ad_ids", {"excluded_ads": range(1, 1_002)}),
        ("excluded_advertiser_ids", {"excluded_advertisers": range(1, 102)}),
        ("crowd_ids", {"crowds": range(1, 66)}),
    ]:
        with pytest.raises(InvalidArgumentError) as refused:
            front.client.get_matches(USER, 1, **wrong)
        assert list(refused.value.fields) == [field]


def test_ad_updates_hide_ads_and_explain_says_why(front: Front):
    listed = front.hold().rankings[0]
    ads = listed.ads.tolist()
    paused, gated, unbid, moved, negative = ads[:5]
    front.update(str(paused), AdUpdate(ad_id=paused, state=AdUpdate.STATE_PAUSED))
    front.update(f"{gated}/gate", AdGate(ad_id=gated, out_of_budget=True))
    front.define(unbid, crowd_ids=[999_979], bids=[5.0])
    front.define(moved, placement_groups=2)
    front.define(negative, negative_crowd_ids=listed.crowds[4:5].tolist())
    front.update("100000", AdUpdate(ad_id=100_000, state=AdUpdate.STATE_ACTIVE, definition=AdDefinition(
        advertiser_id=9, crowd_ids=listed.crowds[:1].tolist(), bids=[10_000.0]
    )))  # fmt: skip
    wait_for(lambda: front.ads()[0] == negative, 20)
    assert front.ads() == ads[4 : SERVED + 4]
    explained = front.client.explain(USER, [paused, gated, unbid, moved, negative, 100_000, ads[5], 999_961])
    assert [each.verdict for each in explained.ads] == [
        Verdict.PAUSED,
        Verdict.OUT_OF_BUDGET,
        Verdict.NO_SHARED_CROWD,
        Verdict.OTHER_PLACEMENT,
        Verdict.NEGATIVE_CROWD,
        Verdict.OWED,
        Verdict.LISTED,
        Verdict.UNKNOWN_AD,
    ]
    assert explained.ads[4].negative_crowds.tolist() == [int(listed.crowds[4])]
    assert explained.ads[5].value > explained.floor_value
    assert (explained.ads[6].rank, explained.ads[6].value) == (6, listed.values[5])
    for ad_id in (paused, unbid, moved):
        front.update(str(ad_id), None)
    front.update(f"{gated}/gate", AdGate(ad_id=gated))
    wait_for(lambda: front.ads() == ads[:SERVED], 20)


def test_rematch_is_a_record_of_the_users_partition(front: Front):
    asked = front.client.rematch(USER)
    assert asked.partition == partition_of(USER)
    place = TopicPartition(front.run.topic, asked.partition)
    consumer = KafkaConsumer(**kafka.parse_url(front.run.stack.kafka_url).kwargs(), enable_auto_commit=False)
    try:
        consumer.assign([place])
        consumer.seek(place, asked.offset)
        found = []
        wait_for(lambda: found.extend(consumer.poll(500).get(place, ())) or found, 20)
    finally:
        consumer.close(autocommit=False)
    event = UserEvent.FromString(found[0].value)
    assert (found[0].key, event.user_id) == (b"42", USER)
    assert event.rematch.request_id == asked.request_id


def test_an_activation_is_served_once_it_rules_and_lists_of_before_stay(front: Front, tmp_path):
    run = front.run
    old = front.hold()
    artifacts = ArtifactStore(tmp_path / "store", namespace=run.namespace)
    other = replace(small_catalog(), half_life_ms=10 * DAY_MS)
    for name, seed in (("two", 3), ("three", 4)):
        (tmp_path / name).mkdir()
        publish(artifacts, tmp_path / name, other, small_towers(other, seed))
    before, _, after = artifacts.versions("catalog")
    first, second, third = artifacts.versions("towers")
    server = run.services[0]

    def activate(catalog: str, towers: str, other: str = "", share: int = 0) -> None:
        value = Activation(
            catalog_version=catalog, towers_version=towers, other_towers_version=other, other_share=share
        )
        front.update(f"activation/{towers}-{share}", value)

    activate(after, second, third, 400)
    wait_for(lambda: front.client.get_matches(1, 1).catalog_version == after, 30)
    arms = {user_id: front.client.get_matches(user_id, 1) for user_id in range(1, 30)}
    assert {user_id: answer.arm for user_id, answer in arms.items()} == {
        user_id: arm_of(user_id, 400) for user_id in arms
    }
    assert {answer.arm: answer.towers_version for answer in arms.values()} == {"a": second, "b": third}
    kept = front.client.get_matches(USER, SERVED)
    assert (kept.source, kept.catalog_version, kept.towers_version) == (Source.STORED, before, first)
    assert kept.ads.tolist() == old.rankings[0].ads[:SERVED].tolist()
    with pytest.raises(UnavailableError, match=before):
        front.client.explain(USER, [3])

    # An activation of what is not there is refused, said to be, and what was active is served on.
    activate("20200101T000000000000-00000000", second)
    wait_for(lambda: server.metric("vitrine_degraded") == 1, 20)
    assert is_serving(server.address("health"))
    assert front.client.get_matches(1, 1).catalog_version == after

    # Back to what it was; a server that starts now begins there.
    activate(before, first)
    wait_for(lambda: front.client.get_matches(1, 1).catalog_version == before, 20)
    wait_for(lambda: server.metric("vitrine_degraded") == 0, 20)
    assert front.client.explain(USER, old.rankings[0].ads[:1].tolist()).ads[0].verdict is Verdict.LISTED
    late = run.server(catalog=after, towers=third).wait_serving()
    with MatchingClient(late.address(), timeout_s=10) as client:
        assert client.get_matches(1, 1).catalog_version == before
