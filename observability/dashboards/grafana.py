"""Grafana's JSON as small functions: a dashboard is rows of panels, laid out from left to right.

Fields as Grafana writes them itself (schemaVersion 39, which Grafana 11 and later read); what is left out has its
default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One expression; `legend` is a template over its labels, `format` "time_series" or "table"."""

    expr: str
    legend: str
    format: str = "time_series"


@dataclass(frozen=True)
class Panel:
    """What is drawn, without its place. width and height are grid units: a row has 24 columns."""

    kind: str
    title: str
    description: str
    queries: tuple[Query, ...]
    width: int
    height: int
    field: Json
    options: Json
    transformations: tuple[Json, ...] = ()


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stack: bool = False,
    most: float | None = None,
    dashed: str = "",
) -> Panel:
    """Lines over time. most: the axis' end. dashed: legend of the query that is a bound, drawn as a dashed line."""
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
    }
    defaults = {"unit": unit, "min": 0, "color": {"mode": "palette-classic"}, "custom": custom}
    if most is not None:
        defaults["max"] = most
    overrides = []
    if dashed:
        line = [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}},
            {"id": "custom.fillOpacity", "value": 0},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        ]
        overrides = [{"matcher": {"id": "byRegexp", "options": f".*{dashed}.*"}, "properties": line}]
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel(
        "timeseries", title, description, queries, width, 8, {"defaults": defaults, "overrides": overrides}, options
    )


def stat(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *steps: tuple[float, str],
    width: int = 4,
    decimals: int | None = None,
) -> Panel:
    """One number and its course. steps: (from this value on, colour) above green, which everything else is."""
    thresholds = [{"color": "green", "value": None}, *({"color": colour, "value": at} for at, colour in steps)]
    defaults: Json = {
        "unit": unit,
        "noValue": "none",
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": thresholds},
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return Panel("stat", title, description, (query,), width, 4, {"defaults": defaults, "overrides": []}, options)


def table(title: str, description: str, expr: str, *columns: str, width: int = 12) -> Panel:
    """The labels of what an expression gives now. columns: the labels shown, in order."""
    organise = {
        "id": "organize",
        "options": {
            "includeByName": dict.fromkeys(columns, True),
            "indexByName": {name: n for n, name in enumerate(columns)},
            "excludeByName": {"Time": True, "Value": True},
        },
    }
    field = {"defaults": {"custom": {"align": "auto", "cellOptions": {"type": "auto"}}}, "overrides": []}
    options = {"showHeader": True, "cellHeight": "sm"}
    return Panel("table", title, description, (Query(expr, "", "table"),), width, 8, field, options, (organise,))


def dashboard(uid: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[Panel]]]) -> Json:
    """rows: (heading, panels); panels wrap where a row is full."""
    panels: list[Json] = []
    y = 0
    for heading, contents in rows:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": heading,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in contents:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            panels.append(_placed(panel, len(panels) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["vitrine"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "Vitrine", "tags": ["vitrine"], "asDropdown": True, "includeVars": True,
             "keepTime": True, "icon": "external link", "targetBlank": False, "tooltip": "", "url": ""}
        ],
        "templating": {"list": [_datasource(), _namespace()]},
        "panels": panels,
    }  # fmt: skip


def _placed(panel: Panel, id: int, x: int, y: int) -> Json:
    instant = panel.kind == "table"
    placed: Json = {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "fieldConfig": panel.field,
        "options": panel.options,
        "targets": [
            {
                "refId": "ABCDEFGH"[n],
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend,
                "format": query.format,
                "instant": instant,
                "range": not instant,
            }
            for n, query in enumerate(panel.queries)
        ],
    }
    if panel.transformations:
        placed["transformations"] = list(panel.transformations)
    return placed


def _datasource() -> Json:
    return {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0,
        "current": {}, "options": [], "refresh": 1, "regex": "", "multi": False, "includeAll": False,
    }  # fmt: skip


def _namespace() -> Json:
    """All by default, which is whatever has none, too."""
    query = "label_values(vitrine_serving, namespace)"
    return {
        "name": "namespace", "label": "Namespace", "type": "query", "datasource": DATASOURCE, "hide": 0,
        "definition": query, "query": {"query": query, "refId": "namespaces"}, "refresh": 2, "regex": "", "sort": 1,
        "multi": True, "includeAll": True, "allValue": ".*", "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }  # fmt: skip
