"""What PromQL expressions ask for: the metrics and labels in dashboards and rules, read by a small scanner.

It knows as much of the language as ours use: strings hold no brackets, and functions are told by their parenthesis.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

OBSERVABILITY = Path(__file__).parents[1] / "observability"

_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\}|\()?")
_MATCHER = re.compile(r"""(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)\"""")
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


@dataclass(frozen=True)
class Asked:
    """One expression's needs. metrics: (name, matchers as (label, operator, value)); grouped: labels it sums by."""

    metrics: list[tuple[str, list[tuple[str, str, str]]]]
    grouped: set[str] = field(default_factory=set)


def read(expr: str) -> Asked:
    """What `expr` asks for."""
    grouped = {label.strip() for found in _GROUPING.findall(expr) for label in found.split(",") if label.strip()}
    bare = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", expr))
    metrics = []
    for match in _SELECTOR.finditer(bare):
        name, rest = match[1], match[2] or ""
        if rest != "(" and name not in _WORDS and not _within_a_number(bare, match.start()):
            metrics.append((name, _MATCHER.findall(rest)))
    return Asked(metrics, grouped)


def _within_a_number(text: str, at: int) -> bool:
    return at > 0 and text[at - 1].isdigit()  # 1e3, 5m


@cache
def recorded() -> dict[str, tuple[Asked, set[str]]]:
    """Recording rules: name -> (what it is made of, labels it has)."""
    found: dict[str, tuple[Asked, set[str]]] = {}
    for rule in _rules():
        if "record" in rule:
            asked = read(rule["expr"])
            labels = (asked.grouped | set(rule.get("labels", {}))) - {"le"}
            found[rule["record"]] = asked, labels | found.get(rule["record"], (asked, set()))[1]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """(where it stands, expression) of every rule and panel; Grafana's variables as they stand."""
    for rule in _rules():
        yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]
    for file in sorted((OBSERVABILITY / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{file.stem}: {panel['title']}", target["expr"]


@cache
def _rules() -> list[dict]:
    files = sorted((OBSERVABILITY / "rules").glob("*.yml"))
    return [
        rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
    ]
