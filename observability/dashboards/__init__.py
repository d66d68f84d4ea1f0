"""The dashboards: one a process, and one for what all of it is about, an event's way into its list.

    python -m observability.dashboards       writes observability/grafana/dashboards/*.json

What a panel asks for and nobody exports fails tests/e2e/test_metrics_exported.py.
"""

import json
from pathlib import Path

from observability.dashboards import ann, console, ctr, freshness, matching, worker

FOLDER = Path(__file__).parents[1] / "grafana" / "dashboards"

_MAKERS = {
    "ann": ann,
    "matching": matching,
    "ctr": ctr,
    "worker": worker,
    "freshness": freshness,
    "console": console,
}


def files() -> dict[Path, str]:
    """Every dashboard's file and what belongs into it."""
    return {FOLDER / f"{name}.json": json.dumps(maker.board(), indent=1) + "\n" for name, maker in _MAKERS.items()}
