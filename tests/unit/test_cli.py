"""The command line says what it can do, with examples, and refuses what it cannot."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vitrine.cli import app

COMMANDS = [
    ("serve",), ("train",), ("demo",), ("doctor",),
    ("artifacts", "ls"), ("artifacts", "show"), ("artifacts", "verify"), ("artifacts", "rollback"),
    ("artifacts", "prune"), ("topics", "create"), ("data", "simulate"), ("data", "convert"), ("data", "validate"),
    ("data", "replay"), ("artifacts", "activate"),
    *(("ads", name) for name in ("show", "set", "pause", "resume", "end", "import")),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_commands_help_has_an_example(command):
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert f"vitrine {' '.join(command)}" in shown.output


@pytest.mark.parametrize(
    ("command", "choices"),
    [("serve", "ann, ann-router, matching, matching-clock, ctr, console"), ("train", "des, softmax, bdg, catalog")],
)
def test_an_unknown_name_is_answered_with_the_known_ones(command, choices):
    shown = CliRunner().invoke(app, [command, "nothing"], env={"COLUMNS": "200"})
    assert shown.exit_code == 2
    assert choices in shown.output


STARTERS = [
    ["work"],
    *(["serve", name] for name in ("ann", "ann-router", "matching", "matching-clock", "ctr", "console")),
]
STARTERS += [["train", "--processes", "1", name] for name in ("des", "softmax", "bdg", "catalog")]


@pytest.mark.parametrize("command", [["work", "--no-such-flag"], *([*c, "--help"] for c in STARTERS)], ids=" ".join)
def test_flags_after_the_name_belong_to_the_process_that_is_started(command):
    shown = subprocess.run(
        [sys.executable, "-m", "vitrine.cli", *command], capture_output=True, text=True, check=False, timeout=60
    )
    said = shown.stdout + shown.stderr
    assert "store" in said or "no-such-flag" in said
    assert "vitrine serve ann --store" not in said, "this is the help of `vitrine serve`, not the service's"


def test_several_processes_fail_with_their_own_words_and_no_traceback_of_torchruns(tmp_path):
    command = ["train", "softmax", "--images", str(tmp_path / "nothing.parquet"), "--store", str(tmp_path)]
    failed = subprocess.run(
        [sys.executable, "-m", "vitrine.cli", *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert failed.returncode == 1
    assert {line.split(":")[0] for line in failed.stderr.splitlines()} == {"softmax"}


def test_the_demo_leaves_alone_a_market_that_no_demo_has_made(tmp_path):
    (tmp_path / "market").mkdir()
    shown = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert shown.exit_code == 1
    assert "was not made by a demo" in shown.output
    assert (tmp_path / "market").is_dir()
