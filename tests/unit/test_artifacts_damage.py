"""A damaged, hostile or newer artifact is refused with its name, version, file and the way out; never misread."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.artifact_helpers import KINDS, open_store, rewrite_manifest, stored_key, write_files
from vitrine.artifacts import ArtifactError, ArtifactStore, Manifest, MissingArtifactError
from vitrine.artifacts.manifest import MAX_MANIFEST_BYTES, parse

FILES = {"ads.npy": bytes(range(256)), "deep/meta.json": b'{"bias": 1}'}
VERSION = "20261124T073400123456-1a2b3c4d"
SAMPLE = Manifest(
    name="towers",
    kind="towers",
    schema=2,
    version=VERSION,
    created="2026-11-24T07:34:00.123456Z",
    parents={"catalog": VERSION},
    offsets={"cluster": "c", "topics": {"user-events": {0: 7, 1: 9}}},
    metrics={"auc": 0.8, "steps": 3, "model": "fm"},
    files={"ads.npy": {"size": 256, "sha256": "0" * 64}, "deep/meta.json": {"size": 11, "sha256": "1" * 64}},
)
LINE = SAMPLE.to_bytes()

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> ArtifactStore:
    return open_store(request.param, tmp_path)


@pytest.fixture
def manifest(store, tmp_path) -> Manifest:
    return store.publish("towers", write_files(tmp_path / "files", FILES), schema=2)


def refused(store: ArtifactStore, manifest: Manifest, *words: str, max_schema: int = 2) -> None:
    """Every reader refuses the version, and say which, and what, and what to do."""
    readers = [lambda: store.fetch("towers", max_schema=max_schema)]
    if max_schema >= manifest.schema:
        readers.append(lambda: store.verify("towers"))
    for call in readers:
        with pytest.raises(ArtifactError) as caught:
            call()
        for word in ("towers", manifest.version, "vitrine artifacts", *words):
            assert word in str(caught.value)


def test_a_truncated_file_is_refused(store, manifest):
    store.objects.put(stored_key(store, manifest, "ads.npy"), FILES["ads.npy"][:-1])
    refused(store, manifest, "ads.npy", "has 255 bytes, not 256", "rollback towers")


def test_a_flipped_byte_is_refused(store, manifest):
    store.objects.put(stored_key(store, manifest, "ads.npy"), b"\x01" + FILES["ads.npy"][1:])
    refused(store, manifest, "ads.npy", "bytes have changed", "rollback towers")


def test_a_byte_flipped_after_it_was_verified_is_refused(tmp_path):
    store = open_store("folder", tmp_path)
    manifest = store.publish("towers", write_files(tmp_path / "files", FILES), schema=2)
    path = store.fetch("towers", max_schema=2).path
    (path / "ads.npy").write_bytes(b"\x01" + FILES["ads.npy"][1:])
    refused(store, manifest, "ads.npy", "bytes have changed")


def test_a_missing_file_is_refused(store, manifest):
    store.objects.remove(stored_key(store, manifest, "deep/meta.json"))
    refused(store, manifest, "deep/meta.json", "is missing", "rollback towers")


def test_an_extra_file_is_refused(store, manifest):
    store.objects.put(stored_key(store, manifest, "more.npy"), b"x")
    refused(store, manifest, "more.npy", "is not in the manifest", "rollback towers")


def test_what_a_killed_write_left_is_no_part_of_the_version(tmp_path):
    store = open_store("folder", tmp_path)
    published = store.publish("towers", write_files(tmp_path / "files", {"a.npy": b"1"}), schema=1)
    left = tmp_path / "store" / "towers" / published.version / ".manifest.json.0123456789abcdef.tmp"
    left.write_bytes(b"half")
    store.verify("towers", published.version)
    assert store.fetch("towers", max_schema=1).manifest == published


def test_a_version_without_manifest_does_not_exist(store, manifest):
    store.objects.remove(stored_key(store, manifest))
    assert store.versions("towers") == []
    assert store.list() == []
    for call in (lambda: store.resolve("towers", manifest.version), lambda: store.fetch("towers", max_schema=2)):
        with pytest.raises(MissingArtifactError, match=manifest.version):
            call()


def test_a_newer_artifact_schema_is_refused_before_anything_is_downloaded(store, manifest):
    store.objects.remove(stored_key(store, manifest, "ads.npy"))
    refused(store, manifest, "artifact schema 2 is newer than 1", "update this program", max_schema=1)


def test_a_newer_manifest_schema_is_refused_whatever_else_it_says(store, manifest):
    store.objects.put(stored_key(store, manifest), b'{"manifest_schema": 2, "shape": "unknown"}')
    refused(store, manifest, "manifest.json", "manifest schema 2 is newer than 1", "update this program")


@pytest.mark.parametrize(
    "file",
    ["../../x", "/etc/passwd", "a/../../x", "..", "a//b", "a\\..\\b", "C:x", "a\x00b", ".x", "", "manifest.json"],
)
def test_a_hostile_file_name_is_refused_and_nothing_written(store, manifest, tmp_path, file):
    before = sorted(tmp_path.rglob("*"))
    rewrite_manifest(store, manifest, files={file: {"size": 1, "sha256": "0" * 64}})
    refused(store, manifest, "manifest.json", "file name")
    cached = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert not [path for path in cached if path.is_file()]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        *(({field: None}, f"field {field} is missing") for field in json.loads(LINE) if field != "checksum"),
        *(({field: [1]}, f"field {field} is a list") for field in json.loads(LINE)),
        ({"schema": True}, "field schema is a bool"),
        ({"schema": 0}, "field schema is 0"),
        ({"manifest_schema": 0}, "manifest_schema is 0"),
        ({"extra": 1}, "field extra is unknown"),
        ({"name": "catalog"}, "field name is 'catalog' but it is stored as 'towers'"),
        ({"version": VERSION}, "field version"),
        ({"kind": "../x"}, "field kind"),
        ({"created": "yesterday"}, "field created"),
        ({"created": "2026-11-24T07:34:00+02:00"}, "field created"),
        ({"parents": {"../x": VERSION}}, "parent '../x'"),
        ({"parents": {"catalog": "../../x"}}, "parent 'catalog'"),
        ({"metrics": {"auc": None}}, "metric 'auc'"),
        ({"metrics": {"auc": True}}, "metric 'auc'"),
        ({"offsets": {"cluster": "c"}}, "field offsets.topics is missing"),
        ({"offsets": {"cluster": "c", "topics": {"t": {"-1": 0}}}}, "field offsets.topics.t"),
        ({"offsets": {"cluster": "c", "topics": {"t": {"0": -1}}}}, "field offsets.topics.t"),
        ({"offsets": {"cluster": "c", "topics": {"t": {"00": 1}}}}, "field offsets.topics.t"),
        ({"files": {}}, "field files has 0 entries"),
        ({"files": {"a": 1}}, "field files.a"),
        ({"files": {"a": {"size": 1}}}, "field files.a.sha256 is missing"),
        ({"files": {"a": {"size": -1, "sha256": "0" * 64}}}, "field files.a"),
        ({"files": {"a": {"size": 1, "sha256": "0" * 63}}}, "field files.a"),
        ({"files": {f: {"size": 1, "sha256": "0" * 64} for f in ("a", "a/b")}}, "its folder is itself a file"),
        ({"checksum": "0" * 64}, "does not match its own checksum"),
    ],
    ids=str,
)
def test_a_manifest_with_a_wrong_field_is_refused(tmp_path, fields, words):
    store = open_store("folder", tmp_path)
    manifest = store.publish("towers", write_files(tmp_path / "files", FILES), schema=2)
    rewrite_manifest(store, manifest, **fields)
    refused(store, manifest, "manifest.json", words, "rollback towers")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{",
        b"[" * 100_000,
        LINE[:-1],
        LINE + b"x",
        b'{"a": 1, "a": 1}',
        b'{"a": NaN}',
    ],
    ids=range(10),
)
def test_what_is_not_one_json_object_is_refused(data):
    with pytest.raises(ArtifactError, match=r"towers .*manifest\.json: not a JSON object.*rollback towers"):
        parse(data, "towers", VERSION)


def test_an_endless_manifest_is_refused_after_a_bounded_read(store, manifest):
    store.objects.put(stored_key(store, manifest), b" " * (MAX_MANIFEST_BYTES + 10))
    refused(store, manifest, f"larger than {MAX_MANIFEST_BYTES} bytes")


@given(st.integers(0, len(LINE) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_in_a_manifest_is_never_read_as_something_else(position, change):
    data = bytearray(LINE)
    data[position] ^= change
    try:
        assert parse(bytes(data), "towers", VERSION) == SAMPLE  # white space became other white space
    except ArtifactError:
        return


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_in_any_field_is_read_or_refused_but_never_crashes(data):
    raw = json.loads(LINE)
    place = raw
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(_json)
    try:
        assert parse(json.dumps(raw).encode(), "towers", VERSION) == SAMPLE
    except ArtifactError:
        return


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"../../x", b"stable", b"x" * 1000, VERSION.encode() + b"\nmore"]
)
def test_a_ref_that_holds_no_version_is_refused_and_can_be_set_again(store, manifest, text):
    store.objects.put("towers/refs/stable", text)
    with pytest.raises(ArtifactError, match=r"artifact towers: refs/stable: .*rollback towers --ref stable --to"):
        store.fetch("towers", max_schema=2)
    assert store.rollback("towers", to=manifest.version) == manifest.version
    store.fetch("towers", max_schema=2)


def test_pruning_stops_at_a_manifest_whose_parents_are_unknown(store, manifest, tmp_path):
    index = store.publish("binary-index", tmp_path / "files", schema=1)
    store.publish("towers", tmp_path / "files", schema=2)
    store.objects.put(stored_key(store, index), b"{")
    with pytest.raises(ArtifactError, match=r"binary-index .*nothing is pruned"):
        store.prune("towers", 1)
    assert len(store.versions("towers")) == 2


def test_a_link_in_place_of_a_file_is_refused(tmp_path):
    store = open_store("folder", tmp_path)
    manifest = store.publish("towers", write_files(tmp_path / "files", FILES), schema=2)
    path = store.fetch("towers", max_schema=2).path / "ads.npy"
    path.rename(tmp_path / "ads.npy")
    path.symlink_to(tmp_path / "ads.npy")
    refused(store, manifest, "ads.npy", "not a regular file")
