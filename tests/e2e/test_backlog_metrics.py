"""The worker's metrics of its backlog: they grow while nothing can be written, and move with their partitions."""

import urllib.request

import numpy as np
import pytest
from matching_kit import START_MS
from matching_live import PARTITIONS, Live, Service, live, wait_for
from prometheus_client.parser import text_string_to_metric_families

from vitrine.data.replay import user_event
from vitrine.runtime import redis
from vitrine.runtime.embedded import EmbeddedStack

AGE, LAG = "vitrine_matching_backlog_age_seconds", "vitrine_matching_lag_records"


@pytest.fixture
def run(stack: EmbeddedStack, namespace: str, tmp_path):
    with live(stack, namespace, tmp_path) as started:
        yield started


def by_partition(worker: Service, name: str) -> dict[int, float]:
    with urllib.request.urlopen(f"http://{worker.address('metrics')}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {int(s.labels["partition"]): s.value for family in families for s in family.samples if s.name == name}


def test_the_backlog_grows_old_while_redis_takes_no_writes_and_is_gone_thereafter(run: Live):
    worker = run.worker().wait_serving()
    run.send_random(np.random.default_rng(1), 300, poison=0)
    run.wait_applied()
    quiet = dict.fromkeys(range(PARTITIONS), 0.0)
    wait_for(lambda: by_partition(worker, AGE) == by_partition(worker, LAG) == quiet, 20)
    client = redis.connect(run.stack.redis_url)
    client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        for user_id in range(1, 9):
            run.send(user_event("purchase", user_id, START_MS, int(run.catalog.items[0]), 0, 0))
        run.producer.flush()
        waiting = [0.0, 0.0, 0.0]
        for n in range(3):
            older_than = max(waiting) + 0.5
            wait_for(lambda n=n, older=older_than: _older(worker, waiting, n, older), 30)
        wait_for(lambda: sum(by_partition(worker, LAG).values()) == 8, 20)
        assert worker.metric("vitrine_matching_event_to_write_seconds_count") == 300
    finally:
        client.execute_command("CLIENT", "UNPAUSE")
    run.wait_applied()
    wait_for(lambda: by_partition(worker, AGE) == by_partition(worker, LAG) == quiet, 20)
    assert worker.metric("vitrine_redis_contact_age_seconds") < 30


def _older(worker: Service, waiting: list[float], n: int, than: float) -> bool:
    waiting[n] = max(by_partition(worker, AGE).values(), default=0.0)
    return waiting[n] > than


def test_a_partition_that_moves_takes_its_samples_along(run: Live):
    first = run.worker("first").wait_serving()
    wait_for(lambda: sorted(by_partition(first, LAG)) == list(range(PARTITIONS)), 20)
    second = run.worker("second").wait_serving()

    def shared() -> bool:
        parts = [sorted(by_partition(worker, name)) for worker in (first, second) for name in (LAG, AGE)]
        return (
            parts[0] == parts[1] and parts[2] == parts[3] and sorted(parts[0] + parts[2]) == list(range(PARTITIONS))
        )

    wait_for(shared, 60)
    assert by_partition(first, LAG), "the first gave everything away"
    assert by_partition(second, LAG), "the second got nothing"
