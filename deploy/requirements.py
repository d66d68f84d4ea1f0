"""Prints what the package and the extras named as arguments require, one a line, for `pip install -r`.

The image installs these before it copies the code, so that a change of code rebuilds one small layer.
"""

import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Requirements of a `[project]` table and of those of its extras."""
    optional = project["optional-dependencies"]
    unknown = set(extras) - set(optional)
    if unknown:
        raise SystemExit(f"pyproject.toml has no extra {', '.join(sorted(unknown))}: it has {', '.join(optional)}")
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    print("\n".join(requirements(table, sys.argv[1:])))
