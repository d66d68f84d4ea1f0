"""`vitrine doctor` and `vitrine topics` as a user runs them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitrine import native, placement
from vitrine.cli import app, doctor
from vitrine.runtime.embedded import EmbeddedStack


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.stdout


def examined(*arguments: str, code: int = 0) -> tuple[bool, Mapping[str, tuple[str, str]]]:
    found = json.loads(run("doctor", "--json", *arguments, code=code))
    return found["ok"], {check["name"]: (check["status"], check["detail"]) for check in found["checks"]}


def test_without_servers_the_doctor_tries_the_embedded_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VITRINE_KAFKA_HOME", "VITRINE_KAFKA_URL", "VITRINE_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    sound, checks = examined()
    assert sound
    assert checks["kernel"][1].startswith(native.kernel())
    assert checks["Kafka"][0] == "note"
    assert "for a first look only" in checks["Kafka"][1]
    assert checks["Redis"][0] == "ok"
    assert checks["producers partition alike"][0] == "ok"
    assert "4 partitions" in checks["producers partition alike"][1]


def test_on_real_servers_all_is_well_and_no_topic_is_left(stack: EmbeddedStack) -> None:
    sound, checks = examined("--kafka-url", stack.kafka_url, "--redis-url", stack.redis_url)
    assert sound
    assert checks["Kafka"][0] == checks["Redis"][0] == checks["producers partition alike"][0] == "ok"
    assert "8 partitions" in checks["producers partition alike"][1]


def test_servers_that_do_not_answer_are_problems() -> None:
    sound, checks = examined(
        "--kafka-url", "kafka://127.0.0.1:1", "--redis-url", "redis://:secret@127.0.0.1:1", code=1
    )
    assert not sound
    assert checks["Kafka"][0] == checks["Redis"][0] == "problem"
    assert "secret" not in checks["Redis"][1]
    assert checks["producers partition alike"][0] == "note"


def test_a_hash_that_differs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "murmur2", lambda key: 17)
    check = doctor.partitioning("")
    assert (check.status, check.detail.startswith("the murmur2 functions differ")) == ("problem", True)


def test_the_doctor_runs_where_the_extension_does_not_load() -> None:
    broken = "import sys; sys.modules['vitrine.native._native'] = None; from vitrine.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", broken, "doctor", "--json", "--kafka-url", "kafka://127.0.0.1:1"],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["kernel"]["status"] == "problem"
    assert "C++ extension" in checks["kernel"]["detail"]


def test_topics_are_made_and_listed(stack: EmbeddedStack, namespace: str) -> None:
    where = ("--kafka-url", stack.kafka_url, "--namespace", namespace)
    assert json.loads(run("topics", "ls", "--json", *where))["topics"] == []
    assert f"made  {namespace}.ad-updates" in run("topics", "create", "--partitions", "4", *where)
    listed = json.loads(run("topics", "ls", "--json", *where))
    assert {topic["name"]: topic["partitions"] for topic in listed["topics"]}[f"{namespace}.user-events"] == 4
    assert listed["missing"] == []
    assert "kept" in run("topics", "create", "--partitions", "4", *where)
    run("topics", "create", "--partitions", "8", *where, code=1)
    run("topics", "create", "--partitions", "7", *where, code=1)
    run("topics", "ls", "--kafka-url", "", code=1)
