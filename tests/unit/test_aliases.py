"""Aliases of indexes, in the library and by `vitrine index alias`."""

import json

import pytest
from typer.testing import CliRunner

from tests.unit.artifact_helpers import open_store, write_files
from tests.waiting import wait_for
from vitrine.artifacts import ArtifactError, aliases
from vitrine.cli import app

KEY = "demo._aliases"


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    """Indexes a, b and c, each with a stable version."""
    made = open_store(request.param, tmp_path, namespace="demo")
    files = write_files(tmp_path / "files", {"ids.npy": b"ids"})
    for name in ("a", "b", "c"):
        made.publish(name, files, schema=1)
    return made


def test_an_alias_is_set_switched_rolled_back_and_removed(store):
    assert aliases.read(store) == {}
    assert aliases.set_alias(store, "shop", "a") is None
    assert aliases.set_alias(store, "shop", "b") == "a"
    assert aliases.set_alias(store, "other", "c") is None
    assert aliases.read(store) == {"other": ["c"], "shop": ["b", "a"]}
    assert aliases.rollback(store, "shop") == "a"
    assert aliases.rollback(store, "shop") == "b", "a second time goes forward again"
    aliases.set_alias(store, "shop", "c")
    aliases.set_alias(store, "shop", "c")
    assert aliases.read(store)["shop"] == ["c", "b"], "setting what is set forgets nothing"
    aliases.remove(store, "shop")
    assert aliases.read(store) == {"other": ["c"]}


def test_the_object_is_no_artifact(store):
    aliases.set_alias(store, "shop", "a")
    assert store.names() == ["a", "b", "c"]
    assert store.objects.exists(KEY)


@pytest.mark.parametrize(
    ("alias", "index", "said"),
    [
        ("shop", "nothing", "nothing has no stable version"),
        ("a", "b", "is the name of an artifact"),
        ("a", "a", "is the name of an artifact"),
        ("two words", "a", "use 1 to 80 letters"),
        ("shop", "../a", "use 1 to 80 letters"),
    ],
)
def test_what_cannot_be_served_is_not_set(store, alias, index, said):
    with pytest.raises(ArtifactError, match=said):
        aliases.set_alias(store, alias, index)
    assert aliases.read(store) == {}


def test_what_is_not_there_is_neither_removed_nor_rolled_back(store):
    for change in (aliases.remove, aliases.rollback):
        with pytest.raises(ArtifactError, match=r"no such alias .* there are: none"):
            change(store, "shop")
    aliases.set_alias(store, "shop", "a")
    with pytest.raises(ArtifactError, match="stood for nothing before a"):
        aliases.rollback(store, "shop")


def test_of_two_writers_who_cross_one_is_told(store, monkeypatch):
    put = store.objects.put

    def crossed(key, data):
        put(key, data)
        monkeypatch.setattr(store.objects, "put", put)
        put(key, json.dumps({"aliases": {"theirs": ["b"]}}).encode())

    monkeypatch.setattr(store.objects, "put", crossed)
    with pytest.raises(ArtifactError, match="somebody else has written"):
        aliases.set_alias(store, "shop", "a")


DAMAGED = (
    b"",
    b"{",
    b"[]",
    b'{"aliases": []}',
    b'{"aliases": {"shop": "a"}}',
    b'{"aliases": {"shop": []}}',
    b'{"aliases": {"shop": [7]}}',
    b'{"aliases": {"shop": ["../a"]}}',
    b'{"aliases": {}, "more": 1}',
)


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_object_is_refused_and_not_written_over(store, data):
    store.objects.put(KEY, data)
    for refused in (aliases.read, lambda s: aliases.set_alias(s, "shop", "a"), aliases.Aliases):
        with pytest.raises(ArtifactError, match="_aliases: does not hold aliases; remove it"):
            refused(store)


def test_a_reader_follows_and_keeps_what_it_had_while_the_object_is_damaged(store):
    aliases.set_alias(store, "shop", "a")
    with aliases.Aliases(store, interval_s=0.02) as followed:
        assert [followed.resolve(name) for name in ("shop", "a", "")] == ["a", "a", ""]
        aliases.set_alias(store, "shop", "b")
        wait_for(lambda: followed.resolve("shop") == "b", 10)
        store.objects.put(KEY, b"{")
        wait_for(lambda: followed.trouble, 10)
        assert followed.resolve("shop") == "b"
        store.objects.put(KEY, b'{"aliases": {}}')
        wait_for(lambda: followed.resolve("shop") == "shop", 10)
        assert followed.trouble is None


def test_the_command_line_switches_and_records_who_did(tmp_path, capfd):
    store = open_store("folder", tmp_path, namespace="demo")
    files = write_files(tmp_path / "files", {"ids.npy": b"ids"})
    for name in ("a", "b"):
        store.publish(name, files, schema=1)
    variables = {"VITRINE_STORE": store.root, "VITRINE_NAMESPACE": "demo"}

    def run(*arguments):
        result = CliRunner().invoke(app, ["index", "alias", *arguments], env=variables)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    assert run("list")[1].strip() == f"no alias in {store.root}, namespace demo"
    assert "shop is a\n" in run("set", "shop", "a")[1]
    code, out = run("set", "shop", "b")
    assert (code, "shop is b, was a" in out) == (0, True)
    recorded = json.loads(next(line for line in out.splitlines() if '"audit"' in line))
    assert (recorded["action"], recorded["target"], recorded["before"]) == ("aliases.set", "shop", "a")
    assert run("list")[1].strip() == "shop  b  before: a"
    assert json.loads(run("list", "--json")[1]) == {"shop": {"index": "b", "before": ["a"]}}
    assert "shop is a\n" in run("rollback", "shop")[1]
    assert "shop is removed\n" in run("remove", "shop")[1]
    code, out = run("rollback", "shop")
    assert (code, "vitrine index: alias 'shop': there is no such alias" in out) == (1, True)
