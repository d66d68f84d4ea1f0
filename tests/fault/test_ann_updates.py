"""Whatever is killed, swapped and rolled back, an index holds what was answered, and nothing that was deleted."""

import os
import secrets
import threading
import time

import numpy as np
import pytest
from ann_kit import unit_vectors
from ann_live import DIM, AnnLive, Replica, ann_live


class Operations:
    """Random operations on one replica, each checked against the model; the server is killed meanwhile.

    done: operations: items upserted or deleted, and queries
    """

    def __init__(self, run: AnnLive, replica: Replica, rng: np.random.Generator, ids: int, batch: int) -> None:
        self.run, self.replica, self.rng = run, replica, rng
        self.ids, self.batch = ids, batch
        self.done = 0

    def some(self) -> list[int]:
        count = int(self.rng.integers(1, self.batch + 1))
        return (1 + self.rng.choice(self.ids, min(count, self.ids), replace=False)).tolist()

    def upsert(self) -> None:
        items = self.some()
        self.run.upsert(self.replica, dict(zip(items, self.vectors(len(items)), strict=True)))
        self.done += len(items)

    def delete(self) -> None:
        items = self.some()[: self.batch // 2]
        if len(self.run.model) > len(items):
            self.run.delete(self.replica, items)
            self.done += len(items)

    def search(self) -> None:
        for query in self.vectors(4):
            self.run.check_search(self.replica, query)
        self.run.check_found(self.replica, int(self.rng.choice(list(self.run.model))))
        self.done += 5

    def swap(self) -> None:
        version = self.run.publish(seed=int(self.rng.integers(100)))
        self.run.wait_for_version(self.replica, version)

    def roll_back(self) -> None:
        version = str(self.rng.choice(self.run.versions))
        self.run.store.rollback("binary-index", to=version)
        self.run.wait_for_version(self.replica, version)

    def kill(self) -> None:
        """At a random moment of what follows."""
        killed, wait_s = self.replica.service, float(self.rng.uniform(0, 0.3))

        def later() -> None:
            time.sleep(wait_s)
            killed.process.kill()

        thread = threading.Thread(target=later)
        thread.start()
        while thread.is_alive() or self.replica.service is killed:
            self.step(self.upsert, self.delete, self.search)
        thread.join()

    def step(self, *among) -> None:
        among[int(self.rng.integers(len(among)))]()

    def vectors(self, count: int) -> np.ndarray:
        return unit_vectors(int(self.rng.integers(2**31)), count, DIM)

    def check(self) -> None:
        self.run.check_all(self.replica, range(1, self.ids + 1))


def seeded() -> np.random.Generator:
    seed = int(os.environ.get("VITRINE_TEST_SEED", secrets.randbelow(10**6)))
    print(f"VITRINE_TEST_SEED={seed}")
    return np.random.default_rng(seed)


@pytest.fixture
def run(stack, namespace, tmp_path):
    with ann_live(stack, namespace, tmp_path) as started:
        yield started


def begin(run: AnnLive, rng: np.random.Generator, ids: int, items: int, batch: int, **settings: str) -> Operations:
    """A first version, from before the log, and a server of it."""
    rows = unit_vectors(int(rng.integers(2**31)), items, DIM)
    run.model = {item: row.tobytes() for item, row in enumerate(rows, 1)}
    run.publish(seed=0)
    return Operations(run, run.replica(**settings), rng, ids, batch)


def test_kills_swaps_and_rollbacks_lose_nothing_and_bring_nothing_back(run):
    of = begin(run, seeded(), ids=300, items=200, batch=60, fold_at="64")
    plan = [of.kill, of.swap, of.roll_back, of.kill, of.roll_back]
    for step in plan:
        for _ in range(6):
            of.step(of.upsert, of.delete, of.search)
        step()
        of.search()
    of.check()
    assert of.replica.starts >= 3


def test_two_replicas_converge(run):
    rng = seeded()
    of = begin(run, rng, ids=300, items=200, batch=60, fold_at="64")
    other = run.replica("other", fold_at="32")
    for _ in range(20):
        of.replica = run.replicas[int(rng.integers(2))]
        of.step(of.upsert, of.delete)
    for replica in run.replicas:
        run.check_all(replica, range(1, 301))
    for query in of.vectors(10):
        answers = [run.search(replica, query, 20) for replica in run.replicas]
        assert list(answers[0].item_ids) == list(answers[1].item_ids)
        assert list(answers[0].scores) == list(answers[1].scores)
    assert other.starts == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_operations_lose_nothing_and_bring_nothing_back(run):
    rng = seeded()
    of = begin(run, rng, ids=20_000, items=10_000, batch=1_000, fold_at="2048")
    told = time.monotonic()
    while of.done < 1_000_000:
        rare = rng.random()
        if rare < 0.02:
            of.kill()
        elif rare < 0.03:
            of.swap()
        elif rare < 0.04:
            of.roll_back()
        else:
            of.step(of.upsert, of.delete, of.search)
        if rng.random() < 0.01:
            of.check()
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{of.done:,} operations, {of.replica.starts} starts, {len(run.versions)} versions")
    of.check()
