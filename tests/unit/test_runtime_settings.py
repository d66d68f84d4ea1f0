"""Settings: flags over variables over defaults, and one clear line for what is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from vitrine.runtime.settings import Settings, load, redact_url


class Server(Settings):
    """A server under test."""

    store: str = Field(min_length=1, description="Artifact store: a folder or a URL.")
    poll_ms: int = Field(500, ge=10)


def test_a_flag_wins_over_its_variable_and_a_variable_over_the_default(monkeypatch):
    monkeypatch.setenv("VITRINE_STORE", "/var/store")
    monkeypatch.setenv("VITRINE_POLL_MS", "40")
    monkeypatch.setenv("VITRINE_MAX_WORKERS", "3")
    own = load(Server, ["--poll-ms", "20", "--reflection"])
    assert (own.store, own.poll_ms, own.max_workers, own.reflection, own.port) == ("/var/store", 20, 3, True, 0)


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("VITRINE_PORT", "")
    assert load(Settings, []).port == 0


@pytest.mark.parametrize(
    ("variables", "flags", "line"),
    [
        ({"VITRINE_PORT": "abc"}, [], "srv: VITRINE_PORT: should be a valid integer, not 'abc'"),
        ({}, ["--port", "70000"], "srv: --port: should be less than or equal to 65535, not '70000'"),
        ({"VITRINE_PORT": "1"}, ["--port=-1"], "srv: --port: should be greater than or equal to 0, not '-1'"),
        ({}, ["--no-such", "3"], "srv: unrecognized arguments: --no-such 3; see --help"),
        ({"VITRINE_REFLECTION": "maybe"}, [], "srv: VITRINE_REFLECTION: should be a valid boolean, not 'maybe'"),
        (
            {"VITRINE_NAMESPACE": "a.b"},
            [],
            "srv: VITRINE_NAMESPACE: should be at most 64 letters, digits, '-' and '_', not 'a.b'",
        ),
    ],
)
def test_a_bad_value_ends_the_process_with_one_line_that_names_it(monkeypatch, capsys, variables, flags, line):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        load(Settings, flags, prog="srv")
    assert ended.value.code == 2
    assert capsys.readouterr().err == line + "\n"


def test_a_required_setting_that_is_missing_names_flag_variable_and_meaning(capsys):
    with pytest.raises(SystemExit):
        load(Server, [], prog="srv")
    assert (
        capsys.readouterr().err
        == "srv: --store (or VITRINE_STORE) is required: Artifact store: a folder or a URL.\n"
    )


def test_help_says_what_each_flag_is_for(capsys):
    with pytest.raises(SystemExit) as ended:
        load(Server, ["--help"])
    assert ended.value.code == 0
    assert "--redis-url" in capsys.readouterr().out


def test_every_setting_is_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text()
    for field in Settings.model_fields:
        assert f"`VITRINE_{field.upper()}`" in page


def test_a_password_is_neither_printed_nor_shown_by_repr(monkeypatch, capsys):
    monkeypatch.setenv("VITRINE_REDIS_URL", "redis://app:hunter2@cache:6379/0")
    own = load(Settings, [])
    assert own.redis_url == "redis://app:hunter2@cache:6379/0"
    assert "hunter2" not in f"{own} {own!r}"
    with pytest.raises(SystemExit):
        load(Settings, ["--port", "redis://:hunter2@cache"])
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("kafka://a:9092,b:9092", "kafka://a:9092,b:9092"),
        ("redis://:pw@cache:6379/0", "redis://:***@cache:6379/0"),
        ("kafka://app:p/w:x@a:9092 lost", "kafka://app:***@a:9092 lost"),
        ("kafka://a:9092?sasl_password=pw&x=1", "kafka://a:9092?sasl_password=***&x=1"),
    ],
)
def test_redaction_keeps_everything_but_the_password(url, shown):
    assert redact_url(url) == shown


@given(st.text(alphabet=st.characters(exclude_categories=["Z", "C"], exclude_characters="*"), min_size=1))
def test_no_password_survives_redaction(password):
    assert redact_url(f"redis://user:{password}@h") == "redis://user:***@h"
