"""Dashboards: the JSON is what the Python file makes, and what Grafana can show."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from observability.dashboards import FOLDER, files

ROOT = Path(__file__).parents[2]
UNITS = {"short", "s", "bytes", "percentunit", "reqps", "cps"}


def boards() -> dict[str, dict]:
    return {file.stem: json.loads(text) for file, text in files().items()}


def panels(board: dict) -> list[dict]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_committed_json_is_what_the_python_files_make():
    committed = {file: file.read_text() for file in FOLDER.glob("*.json")}
    assert committed == files(), "run `python -m observability.dashboards`"


def test_there_is_a_board_for_each_service_and_one_for_freshness():
    assert {"ann", "matching", "ctr", "worker", "freshness", "console"} == set(boards())
    assert {board["uid"] for board in boards().values()} == {f"vitrine-{name}" for name in boards()}


@pytest.mark.parametrize("name", sorted(boards()))
def test_panels_fill_the_grid_without_lying_on_each_other(name: str):
    places = [panel["gridPos"] for panel in boards()[name]["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 and p["w"] > 0 and p["h"] > 0 for p in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)
    ids = [panel["id"] for panel in boards()[name]["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", sorted(boards()))
def test_every_panel_says_what_it_shows_in_which_unit_and_of_which_source(name: str):
    board = boards()[name]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert {"datasource", "namespace"} == variables
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        if panel["type"] != "table":
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            used = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables
            grouped = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert panel["type"] == "table" or target["legendFormat"]
            summed = re.match(
                r"(?:histogram_quantile\([\d.]+, )?(?:sum|max|count) (?:by \(([\w, ]+)\) )?\(", target["expr"]
            )
            if summed:  # a legend can only name what the sum leaves
                assert grouped <= set(re.findall(r"\w+", summed[1] or "")), target["expr"]


@pytest.mark.parametrize("name", sorted(boards()))
def test_titles_are_not_given_twice_on_a_board(name: str):
    titles = [panel["title"] for panel in panels(boards()[name])]
    assert len(set(titles)) == len(titles)


def test_a_p99_turns_orange_at_the_objective_that_the_alert_has():
    groups = yaml.safe_load((ROOT / "observability/rules/vitrine.yml").read_text())["groups"]
    objectives = {
        rule["labels"]["grpc_method"]: float(rule["expr"].removeprefix("vector(").removesuffix(")"))
        for group in groups
        for rule in group["rules"]
        if rule.get("record") == "vitrine:latency_objective:seconds"
    }
    shown = {
        panel["title"].removesuffix(", p99"): panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"]
        for name in ("ann", "matching", "ctr")
        for panel in panels(boards()[name])
        if panel["type"] == "stat" and panel["title"].endswith(", p99")
    }
    assert shown == objectives


def test_grafana_is_told_where_prometheus_and_the_boards_are():
    provisioning = ROOT / "observability/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((provisioning / "dashboards/vitrine.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    scrape = yaml.safe_load((ROOT / "observability/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
