"""Whatever is killed, states and lists end as one undisturbed pass over the topic, to the byte.

Every test mixes poison messages into its events, and `Live.check` also compares counters and dead letters.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from matching_live import PARTITIONS, Live, live, wait_for

from vitrine.matching.owner import Owner
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.kafka import cluster_id

FAILPOINTS = ("before-write:2", "mid-buckets:3", "after-write:2", "before-commit:3", "after-dead-letters:2")


@pytest.fixture(scope="module")
def own_stack(kafka_home: str) -> Iterator[EmbeddedStack]:
    """A stack of this module's own: its servers are killed."""
    with EmbeddedStack(kafka_home=kafka_home) as started:
        yield started


@pytest.fixture
def run(own_stack: EmbeddedStack, namespace: str, tmp_path) -> Iterator[Live]:
    with live(own_stack, namespace, tmp_path) as started:
        yield started


@contextmanager
def sending(run: Live, seed: int, *, pause_s: float = 0.05) -> Iterator[None]:
    """Random events, 40 at a time, for as long as the block runs."""
    done = threading.Event()

    def send() -> None:
        rng = np.random.default_rng(seed)
        while not done.wait(pause_s):
            run.send_random(rng, 40)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_worker_killed_between_its_write_and_what_follows_loses_and_doubles_nothing(run: Live):
    rng = np.random.default_rng(1)
    for failpoint in FAILPOINTS:
        run.send_random(rng, 600)
        worker = run.worker(failpoint=failpoint)
        assert worker.wait_end() == -9, f"{failpoint}: {worker.said()}"
    run.worker()
    run.check()


def test_a_worker_killed_at_random_points_of_its_batches_loses_and_doubles_nothing(run: Live):
    seed = int(os.environ.get("VITRINE_TEST_SEED", secrets.randbelow(10**6)))
    print(f"VITRINE_TEST_SEED={seed}")
    rng = np.random.default_rng(seed)
    run.send_random(rng, 3_000)
    for _ in range(4):
        before = run.store.applied()
        worker = run.worker(batch_records=str(int(rng.integers(20, 400))))
        wait_for(lambda before=before: run.store.applied() > before, 60, worker.said)
        time.sleep(float(rng.uniform(0, 0.2)))
        worker.kill()
        run.send_random(rng, 500)
    run.worker()
    run.check()


def test_two_workers_join_leave_and_die_without_loss(run: Live):
    with sending(run, 2):
        first = run.worker("first", session_timeout_s="3").wait_serving()
        second = run.worker("second", session_timeout_s="3").wait_serving()
        wait_for(lambda: second.metric("vitrine_matching_events_applied_total") > 0, 30)
        first.kill()  # and does not come back: its partitions go to the second
        applied = run.store.applied()
        wait_for(lambda: run.store.applied() > applied + 400, 30)
    run.check()


def test_redis_killed_in_the_middle_is_waited_for_and_read_again(run: Live):
    worker = run.worker().wait_serving()
    with sending(run, 3):
        wait_for(lambda: run.store.applied() > 200, 30)
        run.stack.kill_redis()
        try:
            wait_for(lambda: worker.metric("vitrine_degraded") == 1, 30)
            assert worker.serving()
        finally:
            run.stack.start_redis()
        before = run.store.applied()
        wait_for(lambda: run.store.applied() > before, 30)
    run.check()
    assert worker.metric("vitrine_degraded") == 0
    assert worker.process.poll() is None


def test_a_broker_killed_and_restarted_is_waited_for(run: Live):
    worker = run.worker().wait_serving()
    rng = np.random.default_rng(4)
    run.send_random(rng, 1_000)
    run.stack.kill_kafka()
    run.stack.start_kafka()
    run.send_random(rng, 1_000)
    run.check()
    assert worker.process.poll() is None


def test_a_zombies_write_is_rejected_by_the_real_script_and_its_bucket_reloaded(run: Live):
    def owner() -> Owner:
        made = Owner(
            run.store, run.matcher, lambda partition, record, reason: None, cluster="k", partitions=PARTITIONS
        )
        made.assigned(range(PARTITIONS))
        return made

    run.send_random(np.random.default_rng(5), 400, poison=0)
    log = dict(enumerate(run.log()))
    half = {p: records[: len(records) // 2] for p, records in log.items()}
    zombie, heir = owner(), owner()
    zombie.batch(half)
    late = heir.batch(half)  # the heir's tokens are from before the zombie's last write
    assert late.rejected == late.reloaded > 0
    assert late.appended == []
    heir.batch({p: records[len(records) // 2 :] for p, records in log.items()})
    woken = zombie.batch({p: records[len(records) // 2 :] for p, records in log.items()})
    assert woken.rejected == woken.reloaded > 0
    assert woken.appended == []
    run.check()


def test_a_log_that_lost_its_watermark_ends_the_worker_loudly(run: Live):
    rng = np.random.default_rng(6)
    run.send_random(rng, 200, poison=0)
    worker = run.worker().wait_serving()
    run.wait_applied()
    worker.kill()
    beyond = {"token": "t", "events": 1_000_000, "log": f"{cluster_id(run.stack.kafka_url)}/{PARTITIONS}"}
    for bucket in range(1, 1024, PARTITIONS):  # as if the topic had been made anew, with fewer records
        run.store.client.hset(run.store.key(bucket, "mark"), mapping=beyond)
    worker = run.worker()
    assert worker.wait_end() == 1
    said = worker.said()
    assert "wanted offset 1000000" in said
    assert "fresh VITRINE_NAMESPACE" in said


def test_watermarks_of_another_cluster_end_the_worker_loudly(run: Live):
    run.store.client.hset(
        run.store.key(1, "mark"), mapping={"token": "t", "events": 0, "log": f"another/{PARTITIONS}"}
    )
    worker = run.worker()
    assert worker.wait_end() == 1
    assert "Kafka cluster another" in worker.said()
    assert "fresh VITRINE_NAMESPACE" in worker.said()
