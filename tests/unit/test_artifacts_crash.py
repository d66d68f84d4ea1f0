"""Writers killed anywhere leave versions whole or invisible; writers and readers at once see whole ones only."""

import os
import random
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.artifact_helpers import KINDS, open_store, read_files, write_files
from vitrine.artifacts import ArtifactStore, LocalArtifact, MissingArtifactError, Watcher

FILES = {"ads.npy": b"a" * 1000, "deep/meta.json": b"{}"}


def in_child(work) -> int:
    """Run `work` in a forked process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def killed_at(step: int, store: ArtifactStore, work) -> bool:
    """Kill a child just before its `step`-th touch of the store; False where it came to its end before that."""
    root, seen = store.root, 0

    def kill(event, arguments):
        nonlocal seen
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.scandir") and root in str(arguments):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def hooked():
        sys.addaudithook(kill)
        work()

    _, status = os.waitpid(in_child(hooked), 0)
    return os.WIFSIGNALED(status)


def assert_whole(store: ArtifactStore, files: dict[str, bytes]) -> None:
    """Every visible version is complete, the ref names one, and another publish and a later prune work."""
    for version in store.versions("towers"):
        store.verify("towers", version)
        assert read_files(store.fetch("towers", version, max_schema=1).path) == files
    assert store.resolve("towers") in store.versions("towers")
    later = ArtifactStore(store.root, now=lambda: datetime.now(UTC) + timedelta(hours=2))
    later.prune("towers", 100)
    assert store.objects.children("towers") == [*store.versions("towers"), "refs"]


@pytest.mark.parametrize("action", ["publish", "rollback", "prune"])
def test_killed_before_any_step_of_writing_nothing_or_all_is_visible(tmp_path, action):
    files = write_files(tmp_path / "files", FILES)
    for step in range(1, 200):
        store = ArtifactStore(tmp_path / f"store{step}")
        before = [store.publish("towers", files, schema=1).version for _ in range(3)]
        work = {
            "publish": lambda store=store: store.publish("towers", files, schema=1),
            "rollback": lambda store=store: store.rollback("towers"),
            "prune": lambda store=store: store.prune("towers", 1),
        }[action]
        killed = killed_at(step, store, work)
        left = store.versions("towers")
        if action == "publish":
            assert left[:3] == before
            assert len(left) <= 4
            assert store.resolve("towers") in left[2:]
        elif action == "rollback":
            assert left == before
            assert store.resolve("towers") in before[1:]
        else:
            assert before[-1] in left
            assert set(left) <= set(before)
        assert_whole(store, FILES)
        if not killed:
            assert step > 5
            return
    pytest.fail("the work never came to its end")


def test_killed_at_a_random_moment_nothing_or_all_is_visible(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    big = {f"part{i}.npy": rng.randbytes(1 << 20) for i in range(4)}
    files = write_files(tmp_path / "files", big)
    store = ArtifactStore(tmp_path / "store")
    started = time.monotonic()
    store.publish("towers", files, schema=1)
    usual = time.monotonic() - started

    def publish_on():
        while True:
            store.publish("towers", files, schema=1)

    for _ in range(5):
        child = in_child(publish_on)
        time.sleep(rng.uniform(0, 3 * usual))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert_whole(store, big)


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_rolling_back_pruning_and_watching_at_once_serves_whole_versions_only(tmp_path, kind):
    store = open_store(kind, tmp_path)
    served: list[str] = []
    refusals: list[str] = []
    failures: list[Exception] = []
    done = threading.Event()

    def publish(publisher: int) -> None:
        for number in range(12):
            data = f"{publisher} {number}".encode() * 100
            files = write_files(tmp_path / f"files{publisher}-{number}", {"a.npy": data, "b.npy": data})
            store.publish("towers", files, schema=1, metrics={"data": data.decode()})

    def until_done(action) -> None:
        while not done.is_set():
            try:
                action()
            except MissingArtifactError:  # nothing before it, or pruned meanwhile
                continue

    def run(action, *arguments) -> None:
        try:
            action(*arguments)
        except Exception as error:
            failures.append(error)

    def load(artifact: LocalArtifact) -> None:
        files = {name: (artifact.path / name).read_bytes() for name in artifact.manifest.files}
        assert files["a.npy"] == files["b.npy"] == artifact.manifest.metrics["data"].encode()
        served.append(artifact.manifest.version)

    store.publish(
        "towers", write_files(tmp_path / "files", {"a.npy": b"0", "b.npy": b"0"}), schema=1, metrics={"data": "0"}
    )
    publishers = [threading.Thread(target=run, args=(publish, number)) for number in range(2)]
    others = [
        threading.Thread(target=run, args=(until_done, lambda: store.rollback("towers"))),
        threading.Thread(target=run, args=(until_done, lambda: store.prune("towers", 4))),
    ]
    with Watcher(
        store,
        "towers",
        load,
        max_schema=1,
        interval_s=0.001,
        on_refused=lambda version, reason: refusals.append(reason),
    ) as watcher:
        for thread in publishers + others:
            thread.start()
        for thread in publishers:
            thread.join()
        done.set()
        for thread in others:
            thread.join()
        watcher.poll()
        assert watcher.current == store.resolve("towers") == served[-1]
    assert failures == []
    pruned = ("no such version", "FileNotFoundError")  # before, or while it was being loaded
    assert [reason for reason in refusals if not any(word in reason for word in pruned)] == []
    for version in store.versions("towers"):
        store.verify("towers", version)


def test_a_reader_killed_while_it_downloads_does_not_stop_the_next(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    big = {f"part{i}.npy": rng.randbytes(1 << 20) for i in range(4)}
    published = ArtifactStore(tmp_path / "store")
    published.publish("towers", write_files(tmp_path / "files", big), schema=1)
    for attempt in range(5):
        store = ArtifactStore(tmp_path / "store", cache=tmp_path / f"cache{attempt}")
        child = in_child(lambda store=store: store.fetch("towers", max_schema=1))
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        path = store.fetch("towers", max_schema=1).path
        assert read_files(path) == big
        assert [entry.name for entry in Path(path.parent).iterdir() if entry.name.endswith(".part")] == []
