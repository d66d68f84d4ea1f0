"""A live index against a plain dict: whatever is applied, folded, swapped and rolled back, it holds just that."""

import threading

import numpy as np
import pytest
from ann_kit import live_base, unit_vectors
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.waiting import wait_for
from vitrine.ann.index import Options
from vitrine.ann.live import LiveIndex
from vitrine.ann.updates import Update

DIM, BASE, FOLD_AT = 8, 20, 8
ids = st.integers(1, 40)


def vector(seed: int) -> np.ndarray:
    return unit_vectors(seed, 1, DIM)[0]


def held(live: LiveIndex) -> dict[int, bytes]:
    """Every item, by an exact search for as many as there can be: id -> vector."""
    current = live.current
    found = current.search_vectors(vector(0)[None], Options(k=200, over_recall=100, exact=True))
    got = current.get(found.ids)
    assert len(set(found.ids.tolist())) == len(found.ids) == len(got.ids) == current.items
    return {int(item): row.tobytes() for item, row in zip(got.ids, got.vectors, strict=True)}


def nearest(model: dict[int, np.ndarray], query: np.ndarray, k: int) -> list[int]:
    scores = {item: float(np.einsum("nd,d->n", row[None], query)[0]) for item, row in model.items()}
    return sorted(scores, key=lambda item: (-scores[item], item))[:k]


class Machine(RuleBasedStateMachine):
    """A log, live indexes over artifacts that contain prefixes of it, and what a dict makes of it."""

    @initialize(seed=st.integers(0, 5))
    def begin(self, seed):
        self.base = {item: vector(item) for item in range(1, BASE + 1)}
        self.log: list[Update] = []
        self.versions = [(0, seed)]  # records contained, seed of the hash function
        self.live = self.load(0)

    def load(self, version: int) -> LiveIndex:
        """As the service does: the artifact's items, and the log from where it ends."""
        contained, seed = self.versions[version]
        made = LiveIndex(live_base(self.items(contained), seed=seed), fold_at=FOLD_AT)
        made.apply(self.log[contained:])
        return made

    def items(self, upto: int | None = None) -> dict[int, np.ndarray]:
        model = dict(self.base)
        for update in self.log[:upto]:
            if update.vector is None:
                model.pop(update.item_id, None)
            else:
                model[update.item_id] = update.vector
        return model

    def apply(self, updates: list[Update]) -> None:
        self.log += updates
        self.live.apply(updates)

    @rule(items=st.lists(st.tuples(ids, st.integers(0, 10**6)), min_size=1, max_size=12))
    def upsert(self, items):
        self.apply([Update(item, vector(seed)) for item, seed in items])

    @rule(items=st.lists(ids, min_size=1, max_size=6))
    def delete(self, items):
        self.apply([Update(item, None) for item in items])

    @rule(items=st.lists(st.tuples(ids, st.none() | st.integers(0, 10**6)), min_size=1, max_size=30))
    def mixed(self, items):
        self.apply([Update(item, None if seed is None else vector(seed)) for item, seed in items])

    @rule()
    def fold(self):
        assert self.live.settle(60)

    @rule(share=st.floats(0, 1), seed=st.integers(0, 5))
    def swap_to_a_new_version(self, share, seed):
        contained = int(share * len(self.log))
        if self.items(contained):  # an artifact has an item at least
            self.versions.append((contained, seed))
            self.swap(len(self.versions) - 1)

    @rule(version=st.integers(0, 10))
    def roll_back(self, version):
        self.swap(version % len(self.versions))

    def swap(self, version: int) -> None:
        before, self.live = self.live, self.load(version)
        before.close()

    @invariant()
    def it_holds_what_the_dict_holds(self):
        model = self.items()
        assert self.live.current.items == len(model)
        assert held(self.live) == {item: row.tobytes() for item, row in model.items()}

    @rule(seed=st.integers(0, 100), k=st.integers(1, 10))
    def search(self, seed, k):
        query = vector(seed)
        model = self.items()
        found = self.live.current.search_vectors(query[None], Options(k=k, over_recall=100))
        assert found.ids.tolist() == nearest(model, query, k)

    def teardown(self):
        if hasattr(self, "live"):
            self.live.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


@pytest.fixture
def live():
    with LiveIndex(live_base({item: vector(item) for item in range(1, 101)}), fold_at=FOLD_AT) as made:
        yield made


def test_a_snapshot_stays_as_it_was(live):
    before = live.current
    query = vector(3)[None]
    found = before.search_vectors(query, Options(k=5, over_recall=100))
    live.apply([Update(int(item), None) for item in found.ids])
    live.apply([Update(item, vector(3)) for item in range(200, 240)])
    assert live.settle(60)
    again = before.search_vectors(query, Options(k=5, over_recall=100))
    assert np.array_equal(found.ids, again.ids)
    assert np.array_equal(found.scores, again.scores)


def test_searches_beside_upserts_always_find_the_item_and_once(live):
    """Item 7 is replaced by the same vector again and again: old and new row are never both, or neither, there."""
    ended, wrong = threading.Event(), []

    def look() -> None:
        query = vector(7)[None]
        while not ended.is_set():
            found = live.current.search_vectors(query, Options(k=3, over_recall=10)).ids.tolist()
            if found.count(7) != 1 or found[0] != 7:
                wrong.append(found)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for round_ in range(400):
            live.apply([Update(7, vector(7)), Update(1000 + round_, vector(1000 + round_))])
    finally:
        ended.set()
        for reader in readers:
            reader.join()
    assert wrong == []


def test_two_replicas_of_one_log_converge(live):
    rng = np.random.default_rng(5)
    log = [
        Update(int(item), None if gone else vector(int(seed)))
        for item, gone, seed in zip(
            rng.integers(1, 150, 600), rng.random(600) < 0.3, rng.integers(0, 10**6, 600), strict=True
        )
    ]
    live.apply(log)
    with LiveIndex(live_base({item: vector(item) for item in range(1, 101)}), fold_at=FOLD_AT) as other:
        begin = 0
        while begin < len(log):
            size = int(rng.integers(1, 40))
            other.apply(log[begin : begin + size])
            begin += size
        assert held(live) == held(other)
        queries = unit_vectors(9, 20, DIM)
        assert live.settle(60)
        assert other.settle(60)
        answers = [
            each.current.search_vectors(queries, Options(k=10, over_recall=100, exact=True))
            for each in (live, other)
        ]
    assert np.array_equal(answers[0].ids, answers[1].ids)
    assert np.array_equal(answers[0].scores, answers[1].scores)


def test_segments_stay_few_and_dead_rows_are_dropped(live):
    for round_ in range(25):
        live.apply([Update(1000 + item, vector(round_ * 8 + item)) for item in range(FOLD_AT)])
        assert live.settle(60)
    segments = live.current.segments
    assert len(segments) <= 4
    assert sum(len(view.segment.ids) for view in segments[1:]) <= 4 * FOLD_AT, "the same eight items all the time"


def test_a_segment_that_deletions_alone_leave_mostly_dead_is_built_anew(live):
    live.apply([Update(item, vector(item)) for item in range(200, 200 + FOLD_AT)])
    assert live.settle(60)
    live.apply([Update(item, None) for item in range(200, 200 + FOLD_AT - 1)])
    assert live.settle(30)
    assert [len(view.segment.ids) for view in live.current.segments] == [100, 1]


def test_what_folding_cannot_write_is_said_and_searched_flat(live, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrine.ann.live.fold", full)
    live.apply([Update(item, vector(item)) for item in range(200, 220)])
    wait_for(lambda: live.trouble is not None)
    assert "No space left" in live.trouble
    assert live.scanned == 20
    query = vector(210)
    assert live.current.search_vectors(query[None], Options(k=1)).ids.tolist() == [210]


def test_an_index_closed_while_it_folds_ends_at_once_and_its_snapshots_stay(live):
    live.apply([Update(item, vector(item)) for item in range(200, 300)])
    snapshot = live.current
    live.close()
    assert snapshot.search_vectors(vector(250)[None], Options(k=1, over_recall=100)).ids.tolist() == [250]
