"""What is published comes back; refs, namespaces, rollback and pruning keep the right versions."""

import tempfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.artifact_helpers import KINDS, open_store, read_files, stored_key, write_files
from vitrine.artifacts import ArtifactError, ArtifactStore, MissingArtifactError
from vitrine.artifacts.objects import CHUNK, Objects

_parts = st.from_regex(r"[a-z0-9_][a-z0-9._+=-]{0,8}", fullmatch=True)
_paths = st.lists(_parts, min_size=1, max_size=3).map("/".join)
_files = st.dictionaries(_paths, st.binary(max_size=300), min_size=1, max_size=5).filter(
    lambda files: "manifest.json" not in files and not any(f"{a}/" in b[: len(a) + 1] for a in files for b in files)
)
_offsets = st.dictionaries(st.text(max_size=8), st.dictionaries(st.integers(0, 64), st.integers(0, 2**63 - 1)))
_metrics = st.dictionaries(
    st.text(max_size=8),
    st.integers(-(2**60), 2**60) | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False),
)


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> ArtifactStore:
    return open_store(request.param, tmp_path)


@pytest.fixture
def files(tmp_path) -> Path:
    return write_files(tmp_path / "files", {"ads.npy": b"ads", "deep/er/meta.json": b"{}", "empty": b""})


@pytest.mark.parametrize("kind", KINDS)
@given(files=_files, topics=_offsets, metrics=_metrics)
@settings(max_examples=20, deadline=None)
def test_what_is_published_is_fetched(kind, files, topics, metrics):
    with tempfile.TemporaryDirectory() as base:
        store = open_store(kind, Path(base))
        source = write_files(Path(base) / "files", files)
        offsets = {"cluster": "c", "topics": topics}
        published = store.publish("catalog", source, schema=3, offsets=offsets, metrics=metrics)
        fetched = store.fetch("catalog", max_schema=3)
        assert fetched.manifest == published == store.manifest("catalog", published.version)
        assert read_files(fetched.path) == files
        assert published.offsets == offsets
        assert published.metrics == metrics
        store.verify("catalog", published.version)


def test_a_ref_names_the_version_published_last(store, files):
    first = store.publish("towers", files, schema=1)
    second = store.publish("towers", files, schema=1)
    third = store.publish("towers", files, schema=1, ref="canary")
    unserved = store.publish("towers", files, schema=1, ref=None)
    assert store.refs("towers") == {"stable": second.version, "canary": third.version}
    assert store.resolve("towers") == second.version
    assert store.resolve("towers", first.version) == first.version
    assert store.list("towers") == [first, second, third, unserved]


def test_versions_sort_by_time_and_two_in_one_microsecond_do_not_collide(tmp_path, files):
    moment = datetime(2026, 11, 24, 7, 34, 0, 123456, UTC)
    store = ArtifactStore(tmp_path / "store", now=lambda: moment)
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda _: store.publish("towers", files, schema=1), range(16)))
    versions = {manifest.version for manifest in published}
    assert len(versions) == 16
    assert {version[:22] for version in versions} == {"20261124T073400123456-"}
    assert published[0].created == "2026-11-24T07:34:00.123456Z"
    assert store.resolve("towers") in versions


def test_numpy_metrics_become_numbers(store, files):
    manifest = store.publish(
        "ctr-model", files, schema=1, metrics={"auc": np.float32(0.5), "steps": np.int64(3), "model": "fm"}
    )
    assert manifest.metrics == {"auc": 0.5, "steps": 3, "model": "fm"}
    assert [type(value) for value in manifest.metrics.values()] == [float, int, str]


def test_namespaces_do_not_see_each_other(tmp_path, files):
    plain, demo, other = (ArtifactStore(tmp_path / "store", namespace=ns) for ns in ("", "demo", "demo.two"))
    for store, count in ((plain, 1), (demo, 2), (other, 3)):
        for _ in range(count):
            store.publish("catalog", files, schema=1)
    assert [len(store.list()) for store in (plain, demo, other)] == [1, 2, 3]
    assert [store.names() for store in (plain, demo, other)] == [["catalog"]] * 3
    assert plain.manifest("catalog").name == "catalog"


def test_rollback_goes_back_one_version_at_a_time(store, files):
    versions = [store.publish("towers", files, schema=1).version for _ in range(3)]
    assert store.rollback("towers") == versions[1]
    assert store.rollback("towers") == versions[0]
    assert store.resolve("towers") == versions[0]
    with pytest.raises(MissingArtifactError, match="nothing was published before"):
        store.rollback("towers")
    assert store.rollback("towers", to=versions[2]) == versions[2]
    store.set_ref("towers", versions[1], ref="canary")
    assert store.rollback("towers", to="canary") == store.resolve("towers") == versions[1]


def test_a_ref_is_never_moved_to_a_version_that_is_not_there(store, files):
    version = store.publish("towers", files, schema=1).version
    absent = "20200101T000000000000-00000000"
    with pytest.raises(MissingArtifactError, match=absent):
        store.set_ref("towers", absent)
    with pytest.raises(MissingArtifactError, match=absent):
        store.rollback("towers", to=absent)
    assert store.resolve("towers") == version


def test_pruning_keeps_the_newest_what_refs_name_and_parents_of_what_stays(store, files):
    embeddings = [store.publish("embeddings", files, schema=1).version for _ in range(6)]
    store.set_ref("embeddings", embeddings[0], "canary")
    store.publish("binary-index", files, schema=1, parents={"embeddings": embeddings[2]})
    assert store.prune("embeddings", 1, dry_run=True) == [embeddings[1], *embeddings[3:5]]
    assert store.prune("embeddings", 1) == [embeddings[1], *embeddings[3:5]]
    assert store.versions("embeddings") == [embeddings[0], embeddings[2], embeddings[5]]
    assert store.prune("embeddings", 1) == []
    store.verify("embeddings", embeddings[2])


def test_pruning_keeps_the_chain_of_parents_of_a_delta(store, files):
    chain = [store.publish("ctr-model", files, schema=1).version]
    for _ in range(3):
        chain.append(store.publish("ctr-model", files, schema=1, parents={"ctr-model": chain[-1]}).version)
    alone = store.publish("ctr-model", files, schema=1, ref=None).version
    last = store.publish("ctr-model", files, schema=1, ref=None).version
    assert store.prune("ctr-model", 1) == [alone]
    assert store.versions("ctr-model") == [*chain, last]


def test_a_parent_must_be_there(store, files):
    absent = "20200101T000000000000-00000000"
    with pytest.raises(MissingArtifactError, match=f"embeddings {absent}"):
        store.publish("binary-index", files, schema=1, parents={"embeddings": absent})
    assert store.versions("binary-index") == []


def test_half_published_folders_go_after_an_hour_and_not_before(store, files, monkeypatch):
    kept = store.publish("towers", files, schema=1)
    started = datetime.now(UTC)
    half = f"{started:%Y%m%dT%H%M%S%f}-0000abcd"
    store.objects.upload(files / "ads.npy", f"towers/{half}/ads.npy")
    monkeypatch.setattr(store, "_now", lambda: started + timedelta(minutes=59))
    assert store.prune("towers", 5) == []
    monkeypatch.setattr(store, "_now", lambda: started + timedelta(minutes=61))
    assert store.prune("towers", 5) == [half]
    assert store.objects.children("towers") == [kept.version, "refs"]


def test_a_ref_set_while_pruning_rescues_the_version(store, files, monkeypatch):
    old, _ = (store.publish("towers", files, schema=1).version for _ in range(2))
    remove = store.objects.remove

    def remove_and_refer(key):
        remove(key)
        monkeypatch.undo()
        store.objects.put("towers/refs/canary", old.encode())  # the last step of a set_ref that looked just before

    monkeypatch.setattr(store.objects, "remove", remove_and_refer)
    assert store.prune("towers", 1) == []
    store.verify("towers", "canary")


def test_a_version_pruned_while_a_ref_is_set_is_not_served(store, files, monkeypatch):
    old, new = (store.publish("towers", files, schema=1).version for _ in range(2))
    put = store.objects.put

    def put_late(key, data):
        monkeypatch.undo()
        store.prune("towers", 1)
        put(key, data)

    monkeypatch.setattr(store.objects, "put", put_late)
    with pytest.raises(MissingArtifactError, match="pruned meanwhile"):
        store.set_ref("towers", old)
    assert store.resolve("towers") == new


def test_a_parent_pruned_while_its_child_is_published_withdraws_the_child(store, files, monkeypatch):
    parent, _ = (store.publish("embeddings", files, schema=1).version for _ in range(2))
    put = store.objects.put

    def put_late(key, data):
        monkeypatch.undo()
        store.prune("embeddings", 1)
        put(key, data)

    monkeypatch.setattr(store.objects, "put", put_late)
    with pytest.raises(MissingArtifactError, match=parent):
        store.publish("binary-index", files, schema=1, parents={"embeddings": parent})
    assert store.versions("binary-index") == []


def test_a_version_is_hashed_once_a_process(store, files, monkeypatch):
    store.publish("towers", files, schema=1)
    store.fetch("towers", max_schema=1)
    reads: list[str] = []
    monkeypatch.setattr(Objects, "download", _counting(Objects.download, reads))
    store.fetch("towers", max_schema=1)
    assert reads == []
    again = store.fetch("towers", max_schema=1, recheck=True)
    assert len(reads) == 3
    (again.path / "ads.npy").touch()  # the same bytes, but how should we know
    store.fetch("towers", max_schema=1)
    assert len(reads) == 6


def test_concurrent_fetchers_download_once(tmp_path, files, monkeypatch):
    store = open_store("memory", tmp_path)
    store.publish("towers", files, schema=1)
    reads: list[str] = []
    monkeypatch.setattr(Objects, "download", _counting(Objects.download, reads))
    barrier = threading.Barrier(8)

    def fetch(_):
        barrier.wait()
        return ArtifactStore(store.root, cache=tmp_path / "cache").fetch("towers", max_schema=1).path

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch, range(8)))
    assert len(paths) == 1
    assert read_files(paths.pop()) == read_files(files)
    assert len(reads) == 3


def test_a_half_downloaded_copy_is_fetched_again(tmp_path, files):
    store = open_store("memory", tmp_path)
    manifest = store.publish("towers", files, schema=1)
    path = store.fetch("towers", max_schema=1).path
    part = path.parent / f".{manifest.version}.part"
    path.rename(part)
    (part / "left-over").write_bytes(b"x")
    assert read_files(store.fetch("towers", max_schema=1).path) == read_files(files)
    assert not part.exists()


def test_a_damaged_copy_is_fetched_again(tmp_path, files):
    store = open_store("memory", tmp_path)
    store.publish("towers", files, schema=1)
    path = store.fetch("towers", max_schema=1).path
    (path / "ads.npy").write_bytes(b"sda")
    (path / "empty").unlink()
    assert read_files(store.fetch("towers", max_schema=1).path) == read_files(files)


def test_the_cache_forgets_what_the_store_has_pruned(tmp_path, files):
    store = open_store("memory", tmp_path)
    old = store.publish("towers", files, schema=1).version
    old_path = store.fetch("towers", max_schema=1).path
    store.publish("towers", files, schema=1)
    store.fetch("towers", max_schema=1)
    assert old_path.exists()
    assert store.prune("towers", 1) == [old]
    store.publish("towers", files, schema=1)
    store.fetch("towers", max_schema=1)
    assert not old_path.exists()


def test_big_files_pass_through_little_memory(tmp_path):
    with open(tmp_path / "big.npy", "wb") as file:
        file.truncate(8 * CHUNK)
    (tmp_path / "files").mkdir()
    (tmp_path / "big.npy").rename(tmp_path / "files" / "big.npy")
    store = open_store("cached folder", tmp_path)
    tracemalloc.start()
    try:
        store.publish("embeddings", tmp_path / "files", schema=1)
        store.fetch("embeddings", max_schema=1)
        assert tracemalloc.get_traced_memory()[1] < 3 * CHUNK
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a.b", ".hidden", "x" * 81, "a\nb", "-x", "é"])
def test_a_name_that_is_not_a_plain_word_is_refused(store, files, name):
    with pytest.raises(ArtifactError, match="artifact name"):
        store.publish(name, files, schema=1)
    with pytest.raises(ArtifactError, match="artifact name"):
        store.fetch(name, max_schema=1)


@pytest.mark.parametrize("ref", ["", "..", "../../x", "Stable", "a b", "x" * 65])
def test_a_ref_that_is_not_a_plain_word_is_refused(store, files, ref):
    store.publish("towers", files, schema=1)
    for call in (lambda: store.resolve("towers", ref), lambda: store.publish("towers", files, schema=1, ref=ref)):
        with pytest.raises(ArtifactError, match="ref"):
            call()
    assert len(store.versions("towers")) == 1


@pytest.mark.parametrize("file", [".hidden", "a b", "deep/.git/x", "manifest.json", "Manifest.json", "x" * 129])
def test_a_file_name_that_some_store_could_not_hold_is_refused(store, files, file):
    write_files(files, {file: b"x"})
    with pytest.raises(ArtifactError, match=r"artifact towers: file .*; rename or remove it"):
        store.publish("towers", files, schema=1)
    assert store.objects.children("towers") == []


def test_a_link_is_not_published(store, files):
    (files / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="'link': not a regular file"):
        store.publish("towers", files, schema=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schema": 0}, "schema 0"),
        ({"metrics": {"loss": float("nan")}}, "metric 'loss' is nan"),
        ({"metrics": {"loss": [1.0]}}, "metric 'loss'"),
        ({"offsets": {"topics": {"t": {0: 1}}}}, "offsets"),
        ({"offsets": {"cluster": "c", "topics": {"t": {-1: 1}}}}, "offsets"),
        ({"offsets": {"cluster": "c", "topics": {"t": {0: -1}}}}, "offsets"),
        ({"offsets": {"cluster": "c", "topics": [1]}}, "offsets"),
        ({"parents": {"embeddings": "stable"}}, "parent embeddings stable"),
        ({"kind": "../x"}, "artifact name"),
    ],
)
def test_what_no_reader_would_take_is_not_published(store, files, options, message):
    with pytest.raises(ArtifactError, match=message):
        store.publish("towers", files, **{"schema": 1, **options})
    assert store.versions("towers") == []
    assert store.objects.children("towers") == []


def test_an_empty_or_absent_folder_is_not_published(store, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ArtifactError, match="0 files"):
        store.publish("towers", tmp_path / "nothing", schema=1)
    with pytest.raises(ArtifactError, match="not a folder"):
        store.publish("towers", tmp_path / "absent", schema=1)


@pytest.mark.parametrize("root", ["", "nonsense://x"])
def test_a_store_that_cannot_be_is_refused(root):
    with pytest.raises(ArtifactError, match="artifact store"):
        ArtifactStore(root)


def test_a_namespace_that_could_leave_the_store_is_refused(tmp_path):
    for namespace in ("..", "a/b", "a..b", ".a", "x" * 81):
        with pytest.raises(ArtifactError, match="namespace"):
            ArtifactStore(tmp_path, namespace=namespace)


def test_a_file_url_is_a_folder(tmp_path, files):
    version = ArtifactStore(f"file://{tmp_path}/a%20store").publish("towers", files, schema=1).version
    assert ArtifactStore(tmp_path / "a store").resolve("towers") == version


def test_what_is_not_there_is_said_with_the_way_out(store, files):
    for call in (
        lambda: store.resolve("towers"),
        lambda: store.fetch("towers", max_schema=1),
        lambda: store.verify("towers"),
        lambda: store.manifest("towers", "20200101T000000000000-00000000"),
    ):
        with pytest.raises(MissingArtifactError, match=r"artifact towers: .*vitrine artifacts ls"):
            call()
    assert store.list() == []
    assert store.prune("towers", 1) == []


def test_other_things_in_the_store_are_left_alone(store, files):
    manifest = store.publish("towers", files, schema=1)
    store.objects.put("towers/README", b"mine")
    store.objects.put("README.md", b"mine")
    assert store.versions("towers") == [manifest.version]
    assert store.names() == ["towers"]
    assert store.prune("towers", 0) == []
    assert store.objects.read("towers/README", 100) == b"mine"
    assert store.objects.exists(stored_key(store, manifest))


def _counting(method, reads):
    def counted(self, key, *arguments, **options):
        reads.append(key)
        return method(self, key, *arguments, **options)

    return counted
