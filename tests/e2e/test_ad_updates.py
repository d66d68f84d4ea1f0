"""Ads and activations from the command line, over a real Kafka: what is sent is what every reader then has."""

import json
from collections.abc import Iterator

import pytest
from matching_kit import publish, small_catalog, small_towers
from typer.testing import CliRunner

from trainers.catalog.train import Options, train
from vitrine.api.events.v1.events_pb2 import AdGate
from vitrine.artifacts import ArtifactStore
from vitrine.cli import app
from vitrine.data.simulator import write_market
from vitrine.matching.ad_records import gate_key
from vitrine.matching.catalog import SCHEMA, Catalog
from vitrine.matching.market import Market
from vitrine.matching.updates import Updates
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics
from vitrine.runtime.ad_log import AdLog
from vitrine.runtime.contained import offsets_of
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.tail import Tail, stamped

AD = 3  # bids on crowds in the small catalog; 9_000 is no ad of it


class Shop:
    """A namespace with a catalog, towers and an operator."""

    def __init__(self, stack: EmbeddedStack, namespace: str, folder) -> None:
        self.url, self.namespace, self.folder = stack.kafka_url, namespace, folder
        self.topic = qualify(namespace, topics.AD_UPDATES)
        topics.create(self.url, namespace, 1)
        self.store = ArtifactStore(folder / "store", namespace=namespace)
        self.catalog = small_catalog()
        self._published = 0
        self.publish()

    def publish(self) -> tuple[str, str]:
        """Another catalog and other towers; their versions."""
        self._published += 1
        folder = self.folder / str(self._published)
        folder.mkdir()
        publish(self.store, folder, self.catalog, small_towers(self.catalog))
        return self.store.resolve("catalog"), self.store.resolve("towers")

    def run(self, *command: object) -> str:
        done = self.invoke(*command)
        assert done.exit_code == 0, done.output
        return done.stdout

    def refused(self, *command: object) -> str:
        done = self.invoke(*command)
        assert done.exit_code == 1, done.output
        return " ".join(done.stderr.split())

    def invoke(self, *command: object):
        environment = {
            "VITRINE_STORE": str(self.folder / "store"),
            "VITRINE_NAMESPACE": self.namespace,
            "VITRINE_KAFKA_URL": self.url,
        }
        return CliRunner().invoke(app, [str(part) for part in command], env=environment)

    def updates(self) -> Updates:
        found = Updates(self.catalog, "c", 0)
        tail = Tail(self.url, self.topic, stamped(self.topic, found.apply))
        tail.wait_caught_up(30)
        tail.close()
        assert tail.skipped == 0
        return found

    def market(self) -> Market:
        return self.updates().market()


@pytest.fixture
def shop(stack: EmbeddedStack, namespace: str, tmp_path) -> Iterator[Shop]:
    return Shop(stack, namespace, tmp_path)


def test_a_changed_ad_is_sent_whole_with_what_the_catalog_said_of_it(shop):
    before = shop.market().ad(AD)
    crowd = int(before.crowds[0])
    shop.run("ads", "set", AD, "--bid", f"{crowd}=7.5", "--bid", "99=1", "--avoid", 20, "--daily-budget", 5)
    after = shop.market().ad(AD)
    assert dict(zip(after.crowds.tolist(), after.bids.tolist(), strict=True)) == (
        dict(zip(before.crowds.tolist(), before.bids.tolist(), strict=True)) | {crowd: 7.5, 99: 1.0}
    )
    assert (after.negatives.tolist(), after.daily_budget) == ([20], 5.0)
    assert (after.advertiser, after.item, after.number, after.live) == (before.advertiser, before.item, 0, True)
    shop.run("ads", "set", AD, "--drop", crowd, "--unavoid", 20)
    assert crowd not in shop.market().ad(AD).crowds
    assert shop.market().ad(AD).negatives.tolist() == []


def test_a_pause_keeps_the_definition_and_ended_is_for_good(shop):
    shop.run("ads", "set", 9_000, "--advertiser", 5, "--bid", "10=2")
    shop.run("ads", "pause", 9_000, AD)
    assert shop.market().live([9_000, AD]).tolist() == [False, False]
    assert shop.market().ad(9_000).bids.tolist() == [2.0]
    shop.run("ads", "resume", 9_000, AD)
    assert shop.market().live([9_000, AD]).tolist() == [True, True]
    assert json.loads(shop.run("ads", "show", 9_000))["definition"]["advertiser_id"] == "5"
    shop.run("ads", "end", 9_000)
    assert "9000 has ended" in shop.refused("ads", "resume", 9_000)
    assert shop.market().live([9_000]).tolist() == [False]


def test_a_bad_bid_is_refused_by_its_field_and_nothing_is_sent(shop, tmp_path):
    for bid in ("-1", "nan", "2e6", "0"):
        said = shop.refused("ads", "set", AD, "--bid", f"10={bid}")
        assert f"ad {AD}, definition.bids:" in said
        assert "on crowd 10" in said
    assert "--bid" in shop.refused("ads", "set", AD, "--bid", "10")
    assert "definition.advertiser_id" in shop.refused("ads", "set", 9_000, "--bid", "10=1")
    good = {"ad_id": 9_001, "definition": {"advertiser_id": 1, "crowd_ids": [10], "bids": [1]}}
    bad = {"ad_id": 9_002, "definition": {"advertiser_id": 1, "crowd_ids": [10], "bids": ["NaN"]}}
    for line, told in (
        (json.dumps(bad), "line 2: ad 9002, definition.bids: nan on crowd 10"),
        (
            '{"ad_id": 9, "bidz": 1}',
            'line 2: Message type "vitrine.api.events.v1.AdUpdate" has no field named "bidz"',
        ),
        ("not json", "line 2"),
        (json.dumps(good), "line 2: ad 9001 is in line 1 too"),
    ):
        (tmp_path / "ads.jsonl").write_text(json.dumps(good) + "\n" + line + "\n")
        assert told in shop.refused("ads", "import", tmp_path / "ads.jsonl")
    assert shop.updates().position == 0


def test_a_file_of_ads_is_sent_whole_and_one_in_no_crowd_is_told(shop, tmp_path):
    lines = [
        {"ad_id": 9_001, "definition": {"advertiser_id": 1, "crowd_ids": [10], "bids": [1]}},
        {"ad_id": 9_002, "definition": {"advertiser_id": 1}},
        {"ad_id": AD, "state": "STATE_PAUSED"},
    ]
    (tmp_path / "ads.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert "3 are right, none is sent" in shop.run("ads", "import", tmp_path / "ads.jsonl", "--dry-run")
    assert shop.updates().position == 0
    done = shop.invoke("ads", "import", tmp_path / "ads.jsonl")
    assert "3 sent" in done.stdout
    assert "ad 9002 bids on no crowd" in done.stderr
    assert shop.market().live([9_001, 9_002, AD]).tolist() == [True, True, False]


def test_activations_rule_from_their_time_on_and_roll_back_ever_further(shop):
    versions = [(shop.store.resolve("catalog"), shop.store.resolve("towers")), *(shop.publish() for _ in range(2))]
    shop.run("artifacts", "activate", "--catalog", versions[0][0], "--towers", versions[0][1])
    (first,) = shop.updates().activations
    with AdLog(shop.url, shop.namespace) as log:
        (record,) = log.read().last.values()
    assert record.append_ms + 1_000 < first.effective_ms < record.append_ms + 3_000
    shop.run("artifacts", "activate", "--catalog", versions[1][0], "--in-s", 0)
    shop.run(
        "artifacts", "activate", "--towers", versions[2][1], "--arm-b", versions[0][1], "--share", 100, "--in-s", 0
    )

    def last():
        active = shop.updates().activations[-1]
        return active.catalog_version, active.towers_version, active.other_towers_version, active.other_share

    assert last() == (versions[1][0], versions[2][1], versions[0][1], 100)
    shop.run("artifacts", "rollback", "matching", "--in-s", 0)
    assert last() == (versions[1][0], versions[0][1], "", 0)
    shop.run("artifacts", "rollback", "matching", "--in-s", 0)
    assert last() == (versions[0][0], versions[0][1], "", 0)
    assert "nothing was activated before" in shop.refused("artifacts", "rollback", "matching")
    assert shop.store.resolve("catalog") == versions[2][0]  # the refs stay where their publishers put them
    shop.store.prune("catalog", keep=0)
    assert versions[0][0] in shop.store.versions("catalog")  # but what is active is not pruned


def test_a_namespace_without_topics_is_told_and_not_waited_for(shop, monkeypatch):
    monkeypatch.setattr("vitrine.runtime.ad_log._SILENT_S", 0.5)
    assert "`vitrine topics create` makes it" in shop.refused("ads", "pause", AD, "--namespace", "elsewhere")


def test_an_activation_of_what_is_not_there_is_refused(shop):
    version = shop.store.resolve("towers")
    assert "no version" in shop.refused("artifacts", "activate", "--catalog", "20200101T000000000000-00000000")
    assert "--share" in shop.refused("artifacts", "activate", "--arm-b", version)
    assert "--arm-b" in shop.refused("artifacts", "activate", "--share", 5)
    offsets = {"cluster": "another", "topics": {shop.topic: {0: 7}}}
    (shop.folder / "files").mkdir()
    shop.catalog.write(shop.folder / "files")
    shop.store.publish("catalog", shop.folder / "files", schema=SCHEMA, offsets=offsets)
    assert "offsets of one mean nothing in the other" in shop.refused("artifacts", "activate")
    assert shop.updates().position == 0


def test_a_catalog_made_with_updates_contains_them_and_says_up_to_where(shop, tmp_path):
    write_market(tmp_path / "market", users=10, ads=30, crowds=8, pictures=0, seed=1)

    def catalog(**options) -> Catalog:
        train(
            tmp_path / "market",
            str(tmp_path / "store"),
            namespace=shop.namespace,
            work=tmp_path / "work",
            options=Options(**options),
        )
        return Catalog.load(shop.store.fetch("catalog", max_schema=SCHEMA).path)

    plain = catalog()
    first, second, third = plain.ads[:3].tolist()
    shop.run("ads", "set", first, "--bid", "1=9", "--bid", "77=3")
    shop.run("ads", "pause", second)
    shop.run("ads", "end", third)
    shop.run("ads", "set", 9_000, "--advertiser", 5, "--bid", "2=2")
    with AdLog(shop.url, shop.namespace) as log:
        log.append([(gate_key(first), AdGate(ad_id=first, out_of_budget=True).SerializeToString())])
    made = catalog(updates=shop.url)
    over_plain, over_made = Updates(plain, "", 0), Updates(made, "", made.offset)
    for updates in (over_plain, over_made):
        tail = Tail(shop.url, shop.topic, stamped(shop.topic, updates.apply))
        tail.wait_caught_up(30)
        tail.close()
    assert made.offset == 5
    manifest = shop.store.manifest("catalog")
    assert offsets_of(manifest, shop.topic, kafka.cluster_id(shop.url)) == {0: 5}
    assert third not in made.ads
    assert over_made.market().overlay == {}
    for ad_id in (first, second, 9_000, int(plain.ads[4])):
        mine, theirs = over_made.market().ad(ad_id), over_plain.market().ad(ad_id)
        assert mine.defined_as(theirs)
        assert mine.off == theirs.off
    assert made.ads_of_numbers(plain.ad_numbers[:2])[0].tolist() == [first, second]
    assert made.ad_numbers[made.ad_ordinals([9_000])[0]].tolist() == [plain.next_ad_number]
