"""The clock as a process: real topics, kills at any moment, and gates that cross once each and end right."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from matching_kit import publish, small_catalog, small_towers
from matching_live import Service

from tests.waiting import wait_for
from vitrine.api.events.v1.events_pb2 import AdClick, AdGate, AdImpression, UserEvent
from vitrine.artifacts import ArtifactStore
from vitrine.cli import activation, ad_changes
from vitrine.matching.catalog import Catalog
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics
from vitrine.runtime.ad_log import AdLog
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.tail import Tail

AD, OTHER = 3, 6
PARTITIONS = 4


class Town:
    """A namespace with a catalog in which AD may spend 10 a day, and clocks that come and go."""

    def __init__(self, stack: EmbeddedStack, namespace: str, folder) -> None:
        self.stack, self.namespace, self.folder = stack, namespace, folder
        topics.create(stack.kafka_url, namespace, PARTITIONS)
        self.store = ArtifactStore(folder / "store", namespace=namespace)
        base = small_catalog()
        budgets = np.where(base.ads == AD, 10.0, 0.0)
        self.publish(replace(base, ad_budgets=budgets), "first")
        self.producer = kafka.producer(stack.kafka_url)
        self.clock: Service | None = None
        self.sent = 0

    def publish(self, catalog: Catalog, name: str) -> str:
        (self.folder / name).mkdir()
        publish(self.store, self.folder / name, catalog, small_towers(catalog))
        return self.store.resolve("catalog")

    def start(self) -> Service:
        environment = {
            "PYTHONPATH": ".",
            "VITRINE_NAMESPACE": self.namespace,
            "VITRINE_STORE": str(self.folder / "store"),
            "VITRINE_KAFKA_URL": self.stack.kafka_url,
            "VITRINE_TICK_MS": "20",
        }
        self.clock = Service(["services.matching", "clock"], environment, self.folder, "clock")
        return self.clock

    def click(self, price: float, ad_id: int = AD) -> None:
        """An impression and the click on it, of one user."""
        self.sent += 1
        user, request, now_ms = self.sent % 50 + 1, f"r{self.sent}", time.time_ns() // 1_000_000
        impression = AdImpression(ad_id=ad_id, price=price, request_id=request)
        for event in (
            UserEvent(user_id=user, time_ms=now_ms, impression=impression),
            UserEvent(user_id=user, time_ms=now_ms, click=AdClick(ad_id=ad_id, request_id=request)),
        ):
            topic = qualify(self.namespace, topics.USER_EVENTS)
            self.producer.send(topic, key=kafka.key_of(user), value=event.SerializeToString())

    def gates(self, ad_id: int) -> list[AdGate]:
        """Every gate of an ad that was ever written (nothing is compacted within seconds)."""
        found: list[AdGate] = []

        def take(records) -> int:
            for record in records.get(0, ()):
                if record.key == b"%d/gate" % ad_id:
                    found.append(AdGate.FromString(record.value))
            return 0

        tail = Tail(self.stack.kafka_url, qualify(self.namespace, topics.AD_UPDATES), take)
        tail.wait_caught_up(30)
        tail.close()
        return found

    def of(self, ad_id: int) -> list[tuple[bool, bool]]:
        return [(gate.out_of_schedule, gate.out_of_budget) for gate in self.gates(ad_id)]


@pytest.fixture
def town(stack: EmbeddedStack, namespace: str, tmp_path) -> Iterator[Town]:
    if time.time() % 86_400 > 86_400 - 180:
        pytest.skip("within three minutes of midnight UTC the day's budget would be another one")
    started = Town(stack, namespace, tmp_path)
    yield started
    if started.clock is not None and started.clock.process.poll() is None:
        started.clock.kill()
    started.producer.close()


@pytest.mark.slow
def test_a_budget_that_clicks_spend_closes_its_gate_once_whenever_the_clock_is_killed(town):
    rng = np.random.default_rng(3)
    town.start().wait_serving()
    for each in range(99):
        town.click(0.1)
        if each % 33 == 20:
            town.producer.flush()
            time.sleep(float(rng.uniform(0, 0.3)))
            town.clock.kill()
            town.start()
    town.producer.flush()
    town.clock.wait_serving()
    wait_for(lambda: town.clock.metric("vitrine_clock_clicks_total") >= 99, 30)
    assert town.of(AD) == []  # 9.9 of 10
    town.click(0.2)
    town.producer.flush()
    wait_for(lambda: town.of(AD) == [(False, True)], 30)
    assert town.gates(AD)[0].spent == pytest.approx(10.1)
    for _ in range(2):  # what it finds again is what it knew
        town.clock.kill()
        town.start().wait_serving()
        town.click(0.5)
        town.producer.flush()
        wait_for(lambda: town.clock.metric("vitrine_clock_clicks_total") >= 100, 30)
    time.sleep(0.2)
    assert town.of(AD) == [(False, True)]


@pytest.mark.slow
def test_schedules_and_budgets_follow_updates_and_the_catalog_that_rules(town):
    options = {"store": str(town.folder / "store"), "namespace": town.namespace, "kafka_url": town.stack.kafka_url}
    nothing = {"bids": [], "drop": [], "avoid": [], "unavoid": []}
    town.start().wait_serving()
    now_ms = time.time_ns() // 1_000_000
    start_ms, end_ms = now_ms + 2_000, now_ms + 4_000
    ad_changes.define(OTHER, {"start_ms": start_ms, "end_ms": end_ms}, **nothing, **options)
    wait_for(lambda: [gate.time_ms for gate in town.gates(OTHER)][-1:] > [end_ms], 30)
    gates = town.gates(OTHER)  # two are missed where this machine stands still for seconds
    assert [gate.out_of_schedule for gate in gates] in ([True, False, True], [True])
    assert all(gate.out_of_schedule != (start_ms <= gate.time_ms < end_ms) for gate in gates)
    town.click(11)
    town.producer.flush()
    wait_for(lambda: town.of(AD) == [(False, True)], 30)
    base = small_catalog()
    version = town.publish(replace(base, ad_budgets=np.where(base.ads == AD, 20.0, 0.0)), "second")
    activation.activate(version, "", "", None, in_s=0.5, **options)
    wait_for(lambda: town.of(AD) == [(False, True), (False, False)], 30)
    with AdLog(town.stack.kafka_url, town.namespace) as log:
        assert any(key.startswith(b"activation/") for key in log.read().last)
