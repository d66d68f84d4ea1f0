"""`vitrine artifacts` as an operator uses it."""

import json

import pytest
from typer.testing import CliRunner

from tests.unit.artifact_helpers import open_store, stored_key, write_files
from vitrine.cli.artifacts import app


@pytest.fixture
def store(tmp_path):
    return open_store("folder", tmp_path, namespace="demo")


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "files", {"ads.npy": b"ads", "deep/meta.json": b"{}"})


@pytest.fixture
def run(store):
    """Run one command against the store; returns exit code, stdout, stderr."""

    def command(*arguments, **environment):
        variables = {"VITRINE_STORE": store.root, "VITRINE_NAMESPACE": "demo", **environment}
        result = CliRunner().invoke(app, list(arguments), env=variables)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    return command


def test_ls_lists_versions_with_refs_and_metrics(store, files, run):
    first = store.publish("towers", files, schema=1, metrics={"auc": 0.84321})
    second = store.publish("towers", files, schema=1, ref="canary")
    code, out, _ = run("ls")
    lines = out.splitlines()
    assert code == 0
    assert [first.version in lines[0], "stable" in lines[0], "auc=0.8432" in lines[1]] == [True] * 3
    assert [second.version in lines[2], "canary" in lines[2]] == [True] * 2
    listed = json.loads(run("ls", "towers", "--json")[1])
    assert [(row["version"], row["refs"], row["problem"]) for row in listed] == [
        (first.version, ["stable"], None),
        (second.version, ["canary"], None),
    ]
    assert listed[0]["manifest"]["metrics"] == {"auc": 0.84321}


def test_ls_lists_a_damaged_version_with_the_reason(store, files, run):
    manifest = store.publish("towers", files, schema=1)
    store.publish("catalog", files, schema=1)
    store.objects.put(stored_key(store, manifest), b"{")
    code, out, _ = run("ls")
    assert code == 0
    assert "catalog" in out
    assert f"artifact towers {manifest.version}: manifest.json: not a JSON object" in out
    assert json.loads(run("ls", "towers", "--json")[1])[0]["manifest"] is None


def test_ls_of_nothing_says_where_it_looked(store, run):
    assert run("ls")[1].strip() == f"no artifact in {store.root}, namespace demo"
    assert json.loads(run("ls", "--json")[1]) == []


def test_show_tells_where_a_version_comes_from(store, files, run):
    parent = store.publish("embeddings", files, schema=1)
    offsets = {"cluster": "abc", "topics": {"item-updates": {0: 7, 1: 9}}}
    manifest = store.publish(
        "binary-index",
        files,
        schema=2,
        parents={"embeddings": parent.version},
        offsets=offsets,
        metrics={"bits": 64},
    )
    code, out, _ = run("show", "binary-index")
    assert code == 0
    for word in (
        manifest.version,
        parent.version,
        "stable",
        "0: 7, 1: 9",
        "abc",
        "bits=64",
        "ads.npy",
        "deep/meta.json",
    ):
        assert word in out
    shown = json.loads(run("show", "binary-index", manifest.version, "--json")[1])
    assert shown["files"]["ads.npy"]["size"] == 3
    assert shown["refs"] == ["stable"]


def test_verify_names_what_is_damaged_and_fails(store, files, run):
    manifest = store.publish("towers", files, schema=1)
    store.publish("catalog", files, schema=1)
    assert run("verify")[0] == 0
    store.objects.put(stored_key(store, manifest, "ads.npy"), b"sda")
    code, out, _ = run("verify")
    assert code == 1
    assert "2 checked, 1 damaged" in out
    assert f"damaged  artifact towers {manifest.version}: ads.npy: its bytes have changed" in out
    assert run("verify", "catalog", "stable")[0] == 0
    assert run("verify", "catalogue")[0] == 1, "a name misspelled is not a name verified"


def test_rollback_and_prune_do_what_they_say(store, files, run):
    versions = [store.publish("towers", files, schema=1).version for _ in range(4)]
    assert run("rollback", "towers")[1].strip() == f"towers: stable is {versions[2]}"
    assert run("rollback", "towers", "--ref", "canary", "--to", versions[0])[0] == 0
    assert store.refs("towers") == {"stable": versions[2], "canary": versions[0]}
    assert f"would remove towers {versions[1]}" in run("prune", "towers", "--keep", "1", "--dry-run")[1]
    assert len(store.versions("towers")) == 4
    assert f"removed towers {versions[1]}" in run("prune", "towers", "--keep", "1")[1]
    assert store.versions("towers") == [versions[0], *versions[2:]]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["ls"], {"VITRINE_STORE": ""}, "VITRINE_STORE"),
        (["show", "towers"], {}, "artifact towers: no ref 'stable'"),
        (["rollback", "../x"], {}, "artifact name '../x'"),
        (["ls"], {"VITRINE_NAMESPACE": "../x"}, "VITRINE_NAMESPACE"),
        (["ls", "--store", "nonsense://x"], {}, "nonsense"),
        (["verify", "towers", "stable"], {}, "no ref 'stable'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(run, arguments, environment, message):
    code, out, err = run(*arguments, **environment)
    assert code == 1
    assert message in err + out
    assert "Traceback" not in err + out


@pytest.mark.parametrize("command", ["ls", "show", "verify", "rollback", "prune"])
def test_help_has_examples(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"vitrine artifacts {command}" in out
