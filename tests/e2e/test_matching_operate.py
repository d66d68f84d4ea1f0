"""The operator's commands against real servers and a real worker: delete, dead letters, replay, pause."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from matching_kit import START_MS
from matching_live import Live, live, partition_of, wait_for
from typer.testing import CliRunner

from vitrine.cli import app
from vitrine.data.replay import user_event
from vitrine.matching import state
from vitrine.placement import bucket_of, qualify
from vitrine.runtime import kafka, letters

USER = 42


@pytest.fixture
def run(stack, namespace: str, tmp_path) -> Iterator[Live]:
    with live(stack, namespace, tmp_path) as started:
        yield started


def vitrine(run: Live, *arguments: str, redis: bool = True, fails: bool = False) -> str:
    urls = ["--kafka-url", run.stack.kafka_url] if arguments[0] != "workers" or arguments[1] == "status" else []
    urls += ["--redis-url", run.stack.redis_url] if redis else []
    if arguments[:2] == ("user", "show"):
        urls = urls[2:]
    done = CliRunner().invoke(app, [*arguments, *urls, "--namespace", run.namespace])
    assert (done.exit_code != 0) == fails, done.output + repr(done.exception)
    return done.output


def poison(run: Live, user_id: int) -> None:
    run.producer.send(run.topic, key=kafka.key_of(user_id), value=b"\xff\xff").get(timeout=10)
    run.poisoned += 1


def of_letters(run: Live) -> dict[bytes, bytes]:
    found = letters.read(run.stack.kafka_url, qualify(run.namespace, "dead-letters"))
    return {key: letter.key for key, letter in found.items()}


def test_a_deleted_user_stays_deleted_when_all_is_replayed(run: Live):
    rng = np.random.default_rng(5)
    run.worker().wait_serving()
    run.send_random(rng, 300, users=20, poison=0)
    for item in run.catalog.items[:3].tolist():
        run.send(user_event("purchase", USER, START_MS, item, 0, 0))
    poison(run, USER)
    poison(run, 7)
    run.wait_applied()
    shown = json.loads(vitrine(run, "user", "show", str(USER), "--json"))
    assert shown["state"]["revision"] == shown["list"]["revision"] == 3
    wait_for(lambda: set(of_letters(run).values()) == {b"42", b"7"}, 20)

    # Deleted: a tombstone, no list, no letter of the user's; others as they were.
    run.valid += 1  # the Deletion itself
    assert "1 dead letters are gone" in vitrine(run, "user", "delete", str(USER))
    held, listed = run.store.read_user(USER)
    assert state.decode(held).is_tombstone
    assert listed is None
    assert set(of_letters(run).values()) == {b"7"}
    tombstone = held

    # An event after it begins a new user.
    run.send(user_event("view", USER, START_MS, int(run.catalog.items[0]), 0, 0))
    run.wait_applied()
    before = {user_id: run.store.read_user(user_id) for user_id in [*range(1, 21), USER]}
    assert state.decode(before[USER][0]).revision == 1

    # Replayed from the first offset: the same bytes, and no letter of the user's has come back.
    assert "records are read again" in vitrine(run, "replay", "--from-offset", "0", "--yes")
    assert run.store.read_deleted({bucket_of(USER): [USER]}) == {USER: tombstone}
    run.wait_applied()
    after = {user_id: run.store.read_user(user_id) for user_id in before}
    assert after == before
    assert set(of_letters(run).values()) == {b"7"}

    # From an offset on: what was before it is forgotten, in that partition alone.
    place = partition_of(USER)
    end = len(run.log()[place])
    out = vitrine(run, "replay", "--from-offset", str(end), "--partition", str(place), "--yes")
    assert out.endswith("0 records are read again\n")
    held, listed = run.store.read_user(USER)
    assert (held, listed) == (tombstone, None)
    kept = [u for u in range(1, 21) if partition_of(u) != place]
    assert {u: run.store.read_user(u) for u in kept} == {u: before[u] for u in kept}
    assert "has offsets 0 to" in vitrine(run, "replay", "--from-offset", "10000", "--yes", fails=True)


def test_paused_workers_apply_nothing_and_go_on_when_resumed(run: Live):
    worker = run.worker().wait_serving()
    vitrine(run, "workers", "pause", "moving Redis")
    wait_for(lambda: worker.metric("vitrine_degraded") == 1, 20)
    run.send(user_event("view", USER, START_MS, int(run.catalog.items[0]), 0, 0))
    run.producer.flush()
    told = json.loads(vitrine(run, "workers", "status", "--json"))
    assert told["paused"] == "moving Redis"
    assert told["partitions"][partition_of(USER)] == {"partition": partition_of(USER), "end": 1, "behind": 1}
    assert run.store.applied() == 0
    assert worker.serving()
    vitrine(run, "workers", "resume")
    run.wait_applied()
    wait_for(lambda: worker.metric("vitrine_degraded") == 0, 20)
    assert "paused  no" in vitrine(run, "workers", "status")


def test_a_dead_letter_is_listed_and_sent_again_once_it_can_be_applied(run: Live):
    """A producer that did not partition by murmur2: the record was in a partition that does not own its user."""
    run.worker().wait_serving()
    wrong = (partition_of(USER) + 1) % 4
    event = user_event("view", USER, START_MS, int(run.catalog.items[0]), 0, 0)
    run.producer.send(run.topic, key=b"42", value=event.SerializeToString(), partition=wrong).get(timeout=10)
    poison(run, 7)
    wait_for(lambda: len(of_letters(run)) == 2, 20)
    told = json.loads(vitrine(run, "deadletters", "list", "--json", redis=False))
    assert told["total"] == 2
    (row,) = (row for row in told["letters"] if row["record_key"] == "42")
    assert row["key"] == f"{run.topic}/{wrong}/0"
    assert "murmur2_random" in row["reason"]
    assert (
        len(json.loads(vitrine(run, "deadletters", "list", "--json", "--user", "7", redis=False))["letters"]) == 1
    )

    assert "sent  1 (dry run)" in vitrine(run, "deadletters", "resend", "--all", "--dry-run", redis=False)
    assert len(of_letters(run)) == 2
    out = vitrine(run, "deadletters", "resend", "--all", redis=False)
    assert "sent  1" in out
    assert "no UserEvent" in out, "the other would only come back"
    wait_for(lambda: run.store.read_user(USER)[1] is not None, 20)
    assert set(of_letters(run).values()) == {b"7"}
    assert "no such letter" in vitrine(run, "deadletters", "resend", "x/0/0", redis=False, fails=True)
