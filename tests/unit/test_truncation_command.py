"""How the experiment is started, and what it says of wrong flags."""

import typer
from typer.testing import CliRunner

from experiments.truncation.command import main
from vitrine import cli


def test_vitrine_starts_it_by_module_name_and_passes_its_flags_on(monkeypatch):
    started = []
    monkeypatch.setattr(cli, "_become", started.append)
    result = CliRunner().invoke(cli.app, ["experiment", "truncation", "--quick", "--json"])
    assert result.exit_code == 0
    assert started == [["-m", "experiments.truncation", "--quick", "--json"]]


def test_an_unknown_experiment_is_told_with_those_that_there_are():
    result = CliRunner().invoke(cli.app, ["experiment", "truncations"])
    assert result.exit_code == 2
    assert "truncation" in result.output


def test_a_percentile_below_the_median_is_refused():
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--staleness-p50-ms", "20", "--staleness-p99-ms", "10"])
    assert result.exit_code == 2
    assert "median" in result.output
