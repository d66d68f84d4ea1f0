"""A watcher hands over each new version once, and keeps the old one where the new one is bad or out of reach."""

import threading

import pytest

from tests.unit.artifact_helpers import KINDS, open_store, stored_key, write_files
from vitrine.artifacts import ArtifactStore, MissingArtifactError, Watcher
from vitrine.errors import UnavailableError


class Service:
    """A loader that remembers what it was given, and may be told to fail."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.happened = threading.Condition()

    def load(self, artifact) -> None:
        with self.happened:
            self.happened.notify_all()
            if self.error is not None:
                raise self.error
            self.loaded.append(artifact.manifest.version)

    def refuse(self, version: str, reason: str) -> None:
        with self.happened:
            self.refused.append((version, reason))
            self.happened.notify_all()

    def wait(self, condition) -> None:
        with self.happened:
            assert self.happened.wait_for(condition, timeout=30)


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> ArtifactStore:
    return open_store(request.param, tmp_path)


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "files", {"ads.npy": b"ads"})


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def watch(store, service):
    """Start watchers that look only when told to; they are closed at the end."""
    watchers = []

    def start(**options) -> Watcher:
        options = {"max_schema": 1, "interval_s": 3600, "on_refused": service.refuse, **options}
        watchers.append(Watcher(store, "towers", service.load, **options))
        watchers[-1].poll()
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.close()


def test_each_new_version_is_loaded_once(store, files, service, watch):
    first = store.publish("towers", files, schema=1).version
    watcher = watch()
    watcher.poll()
    second = store.publish("towers", files, schema=1).version
    watcher.poll()
    watcher.poll()
    store.rollback("towers")
    watcher.poll()
    assert service.loaded == [first, second, first]
    assert watcher.current == first
    assert service.refused == []


def test_it_follows_by_itself(store, files, service, watch):
    watch(interval_s=0.01)
    for count in range(1, 4):
        store.publish("towers", files, schema=1)
        service.wait(lambda count=count: len(service.loaded) == count)


def test_what_the_caller_has_already_is_not_loaded_again(store, files, service, watch):
    version = store.publish("towers", files, schema=1).version
    assert watch(current=version).current == version
    assert service.loaded == []


def test_another_ref_is_followed_alone(store, files, service, watch):
    store.publish("towers", files, schema=1)
    canary = store.publish("towers", files, schema=1, ref="canary").version
    watch(ref="canary")
    assert service.loaded == [canary]


def _truncate(store, manifest):
    store.objects.put(stored_key(store, manifest, "ads.npy"), b"ad")


def _flip(store, manifest):
    store.objects.put(stored_key(store, manifest, "ads.npy"), b"add")


def _cut_manifest(store, manifest):
    store.objects.put(stored_key(store, manifest), b"{")


@pytest.mark.parametrize("damage", [_truncate, _flip, _cut_manifest])
def test_a_damaged_version_is_refused_once_and_the_old_one_stays(store, files, service, watch, damage):
    good = store.publish("towers", files, schema=1).version
    watcher = watch()
    bad = store.publish("towers", files, schema=1, ref=None)
    damage(store, bad)
    store.objects.put("towers/refs/stable", bad.version.encode())
    for _ in range(3):
        watcher.poll()
    assert [version for version, _ in service.refused] == [bad.version]
    assert "rollback towers" in service.refused[0][1]
    assert (watcher.current, watcher.refusals) == (good, 1)
    assert service.loaded == [good]


def test_a_newer_schema_is_refused_and_the_next_version_taken(store, files, service, watch):
    first = store.publish("towers", files, schema=1).version
    watcher = watch()
    newer = store.publish("towers", files, schema=2).version
    watcher.poll()
    third = store.publish("towers", files, schema=1).version
    watcher.poll()
    assert service.loaded == [first, third]
    assert [version for version, _ in service.refused] == [newer]
    assert "artifact schema 2 is newer than 1" in service.refused[0][1]


def test_a_refused_version_is_tried_again_only_after_the_ref_has_moved(store, files, service, watch):
    good = store.publish("towers", files, schema=1).version
    watcher = watch()
    service.error = ValueError("recall is too low")
    bad = store.publish("towers", files, schema=1).version
    watcher.poll()
    service.error = None
    watcher.poll()
    assert service.loaded == [good]
    assert service.refused == [(bad, "ValueError: recall is too low")]
    store.rollback("towers")
    watcher.poll()
    store.set_ref("towers", bad)
    watcher.poll()
    assert service.loaded == [good, bad]
    assert watcher.current == bad


def test_a_version_whose_parent_is_gone_is_loaded_once_not_at_every_poll(store, files, service, watch):
    watcher = watch()
    service.error = MissingArtifactError("artifact embeddings: no such version")
    store.publish("towers", files, schema=1)
    watcher.poll()
    service.error = None
    watcher.poll()
    assert service.loaded == []
    assert len(service.refused) == 1


def test_a_version_not_yet_there_is_refused_and_taken_when_it_arrives(store, files, service, watch):
    store.publish("towers", files, schema=1)
    watcher = watch()
    late = store.publish("towers", files, schema=1, ref=None)
    store.objects.remove(stored_key(store, late))
    store.objects.put("towers/refs/stable", late.version.encode())
    watcher.poll()
    watcher.poll()
    assert [version for version, _ in service.refused] == [late.version]
    store.objects.put(stored_key(store, late), late.to_bytes())
    watcher.poll()
    assert watcher.current == late.version


def test_a_store_out_of_reach_is_waited_for(store, files, service, watch, monkeypatch, caplog):
    caplog.set_level("INFO", "vitrine.artifacts")
    watcher = watch()  # nothing is published yet
    first = store.publish("towers", files, schema=1).version
    watcher.poll()
    with monkeypatch.context() as broken:
        broken.setattr(store.objects, "_range", _unplugged)
        store_contact = watcher.last_contact
        for _ in range(3):
            watcher.poll()
        assert watcher.last_contact == store_contact
    second = store.publish("towers", files, schema=1).version
    watcher.poll()
    assert service.loaded == [first, second]
    assert service.refused == []
    assert sum("unplugged" in record.message for record in caplog.records) == 1


def test_a_store_lost_while_fetching_is_no_fault_of_the_version(store, files, service, watch, monkeypatch):
    watcher = watch()
    version = store.publish("towers", files, schema=1).version
    with monkeypatch.context() as broken:
        broken.setattr(store.objects, "sizes", _unplugged)
        broken.setattr(store.objects, "stamps", _unplugged, raising=False)
        watcher.poll()
    assert (service.loaded, service.refused) == ([], [])
    watcher.poll()
    assert service.loaded == [version]


def test_a_callback_that_fails_does_not_stop_the_watch(store, files, service, watch):
    def fail(version: str, reason: str) -> None:
        raise RuntimeError("callback")

    watcher = watch(on_refused=fail)
    store.publish("towers", files, schema=2)
    watcher.poll()
    good = store.publish("towers", files, schema=1).version
    watcher.poll()
    assert service.loaded == [good]


def test_closing_ends_the_thread_and_later_versions_are_not_loaded(store, files, service, watch):
    watcher = watch(interval_s=0.01)
    watcher.close()
    watcher.close()
    assert "watch-towers" not in [thread.name for thread in threading.enumerate()]
    store.publish("towers", files, schema=1)
    watcher.poll()
    assert service.loaded == []


def test_a_loader_may_close_its_watcher(store, files, service):
    store.publish("towers", files, schema=1)
    closed = threading.Event()
    watchers: list[Watcher] = []
    ready = threading.Event()

    def load(artifact):
        ready.wait(30)
        watchers[0].close()
        closed.set()

    watchers.append(Watcher(store, "towers", load, max_schema=1, interval_s=0.01))
    ready.set()
    assert closed.wait(30)
    watchers[0].close()


def _unplugged(*_):
    raise UnavailableError("unplugged")
