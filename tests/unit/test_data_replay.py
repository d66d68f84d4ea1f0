"""Recorded events come back as messages: every row once, each user's in their order and together."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.errors import KafkaTimeoutError
from kafka.future import Future
from typer.testing import CliRunner

from vitrine.cli import data as command
from vitrine.data.replay import user_event, user_events
from vitrine.data.schemas import EVENT_KINDS
from vitrine.data.simulator import write_market

rows = st.lists(
    st.tuples(
        st.integers(1, 5), st.integers(1, 10**12), st.sampled_from(sorted(EVENT_KINDS)), st.integers(1, 2**64 - 1)
    ),
    max_size=40,
)


@settings(deadline=None)
@given(rows, st.integers(1, 7))
def test_a_users_events_come_together_and_in_their_order(tmp_path_factory, recorded, rows_per_run):
    file = tmp_path_factory.mktemp("replay") / "events.parquet"
    columns = {
        "user_id": [r[0] for r in recorded],
        "time_ms": [r[1] for r in recorded],
        "kind": [r[2] for r in recorded],
    }
    columns |= {name: pa.array([r[3] for r in recorded], pa.uint64()) for name in ("item_id", "crowd_id", "ad_id")}
    columns["user_id"] = pa.array(columns["user_id"], pa.uint64())
    pq.write_table(pa.table(columns), file)
    sent = [(e.user_id, e.time_ms) for e in user_events(file, rows_per_run=rows_per_run)]
    users = list(dict.fromkeys(r[0] for r in recorded))
    assert sent == [(r[0], r[1]) for user in users for r in recorded if r[0] == user]
    assert [user for user, _ in itertools.groupby(sent, key=lambda s: s[0])] == users


@pytest.mark.parametrize(
    ("kind", "field", "names"),
    [
        ("view", "item", {"item_id": 7}), ("purchase", "item", {"item_id": 7}), ("join", "crowd", {"crowd_id": 8}),
        ("leave", "crowd", {"crowd_id": 8}), ("impression", "impression", {"ad_id": 9}),
        ("click", "click", {"ad_id": 9}),
    ],
)  # fmt: skip
def test_each_kind_has_its_message(kind, field, names):
    event = user_event(kind, 1, 2, 7, 8, 9)
    assert (event.user_id, event.time_ms, event.WhichOneof("kind")) == (1, 2, field)
    assert {name: getattr(getattr(event, field), name) for name in names} == names


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'wish'"):
        user_event("wish", 1, 2, 0, 0, 0)


class LossyProducer:
    """Loses every second record."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, topic: str, *, key: bytes, value: bytes) -> Future:
        self.sent += 1
        done = Future()
        return done.failure(KafkaTimeoutError("too old")) if self.sent % 2 else done.success(None)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def replayed(folder) -> str:
    """What a replay that fails says."""
    ended = CliRunner().invoke(command.app, ["replay", str(folder), "--kafka-url", "memory://127.0.0.1:9"])
    assert ended.exit_code == 1
    assert isinstance(ended.exception, SystemExit)
    return ended.output


def test_a_replay_that_loses_events_says_how_many_and_fails(tmp_path, monkeypatch):
    write_market(tmp_path, users=20, ads=10, crowds=5, pictures=0)
    monkeypatch.setattr(command.topics, "existing", lambda *_: [])
    monkeypatch.setattr(command, "producer", lambda url: LossyProducer())
    total = pq.read_metadata(tmp_path / "events.parquet").num_rows
    assert f"{(total + 1) // 2:,} of {total:,} events did not reach user-events" in replayed(tmp_path)


def test_a_replay_of_wrong_events_sends_none_and_names_the_column(tmp_path):
    write_market(tmp_path, users=20, ads=10, crowds=5, pictures=0)
    file = tmp_path / "events.parquet"
    pq.write_table(pq.read_table(file).drop_columns("time_ms"), file)
    assert "events.parquet, column time_ms: missing" in replayed(tmp_path)
