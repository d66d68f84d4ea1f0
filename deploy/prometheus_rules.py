"""Makes k8s/components/prometheus/rules.yaml of observability/rules: the same alerts for the Prometheus operator.

`python deploy/prometheus_rules.py`, after a change of the rules; a test tells where that was forgotten.
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "observability" / "rules"
TARGET = ROOT / "k8s" / "components" / "prometheus" / "rules.yaml"
HEADER = "# Made by deploy/prometheus_rules.py of observability/rules; change those.\n"


def manifest() -> str:
    """The PrometheusRule with the groups of every rule file, in the files' order."""
    files = [yaml.safe_load(file.read_text("utf-8")) for file in sorted(SOURCES.glob("*.yml"))]
    groups = [group for file in files for group in file["groups"]]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vitrine"},
        "spec": {"groups": groups},
    }
    return HEADER + yaml.safe_dump(rule, sort_keys=False, width=110, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(manifest(), "utf-8")
    print(f"wrote {TARGET.relative_to(ROOT)}")
