"""What the console promises others: settings, port of metrics, no inline code in pages, one vendored script."""

import re
from pathlib import Path

from services.console import guard
from services.console.settings import ConsoleSettings
from vitrine.cli.applications import SERVICES
from vitrine.runtime import metrics

HERE = Path(__file__).resolve().parents[2] / "services" / "console"


def test_the_settings_are_those_agreed():
    fields = set(ConsoleSettings.model_fields)
    assert fields >= {
        "ann_address",
        "matching_address",
        "ctr_address",
        "metrics_pages",
        "store",
        "kafka_url",
        "port",
    }
    assert SERVICES["console"] == ["services.console"]


def test_templates_hold_no_code_or_style_of_their_own_and_lead_nowhere_else():
    for file in (HERE / "templates").iterdir():
        text = file.read_text()
        assert not re.search(
            r"<style|\sstyle=|\son\w+=|<script(?! src=\"/static/)|javascript:|hx-on|hx-vals=.js:", text
        ), file
        assert not re.search(r"(src|href|action|hx-get|hx-post)=\"(?!/|#|\{\{)", text), file
        assert "|safe" not in text, file
        assert "{% autoescape" not in text, file


def test_every_trigger_is_one_that_needs_no_evaluated_code():
    for file in (HERE / "templates").iterdir():
        for trigger in re.findall(r'hx-trigger="([^"]*)"', file.read_text()):
            assert "[" not in trigger, f"{file}: {trigger}: a filter is JavaScript, which the policy refuses"


def test_the_vendored_script_is_the_one_that_its_licence_note_names():
    note = (HERE / "static" / "htmx.LICENSE.txt").read_text()
    script = (HERE / "static" / "htmx.min.js").read_text()
    (version,) = re.findall(r"^htmx (\d+\.\d+\.\d+)", note)
    assert f'version="{version}"' in script
    assert "Permission to use, copy, modify" in note
    assert "http://" not in (HERE / "static" / "console.js").read_text()


def test_the_consoles_metrics_are_on_its_page():
    guard.requests.labels("search_page", "200")
    names = {metric.name for metric in metrics.REGISTRY.collect()}
    assert {"vitrine_console_requests", "vitrine_console_request_seconds"} <= names
