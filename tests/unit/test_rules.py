"""Alert rules: each has a severity and a runbook, fires when it should, and does not when it should not."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "observability/rules/vitrine.yml"
CASES = sorted((ROOT / "observability/rules/tests").glob("*.yml"))


def alerts() -> list[dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def names() -> list[str]:
    return sorted({alert["alert"] for alert in alerts()})


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning"), alert["alert"]
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{alert['alert']}.md"
        assert alert["annotations"]["summary"].endswith((".", "}}.")), alert["alert"]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    pages = {page.stem: page.read_text() for page in (ROOT / "docs/runbooks").glob("*.md")}
    assert sorted(pages) == names()
    severities = {name: [a["labels"]["severity"] for a in alerts() if a["alert"] == name] for name in names()}
    for name, page in pages.items():
        assert re.findall(r"^#+ (.*)", page, re.MULTILINE) == [name, "See", "Do", "End"]
        assert all(severity in page.split("## See")[0] for severity in severities[name]), name
        for link in re.findall(r"\]\((.+?)\)", page):
            assert (ROOT / "docs/runbooks" / link).exists(), f"{name} links to {link}"


def test_every_alert_is_tested_to_fire_and_not_to():
    fires, rests = set(), set()
    for file in CASES:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for each in case.get("alert_rule_test", ()):
                (fires if each["exp_alerts"] else rests).add(each["alertname"])
    assert sorted(fires) == sorted(rests) == names()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_rules_and_configuration_are_what_prometheus_takes():
    files = [ROOT / "observability/prometheus.yml"]
    ended = subprocess.run(["promtool", "check", "config", *files], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "SUCCESS: 1 rule files found" in ended.stdout


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_not_else(file: Path):
    ended = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
