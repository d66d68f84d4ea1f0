"""What was made from what, and who serves it: artifacts and processes as a graph, for wide pages and phones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

from services.console import numbers
from services.console.draw import svg
from services.console.scrape import Status
from vitrine.artifacts import Manifest

# Metrics that say most of an artifact, the first first, in words.
_TOLD = {
    "recall_at_10": "recall at 10",
    "search_same_category_at_10": "same category at 10",
    "ctr_auc": "AUC of clicks",
    "auc": "AUC",
    "accuracy": "accuracy",
    "postings": "bids",
    "ads": "ads",
    "crowds": "crowds",
    "items": "items",
    "bits": "bits",
}

_WHAT = "Artifacts, what they were made from, and the processes that serve them"


@dataclass
class Node:
    """A version of an artifact, or a process (`health` is not None)."""

    key: str
    title: str
    lines: list[str]
    parents: list[str] = field(default_factory=list)
    health: str | None = None
    depth: int = 0


def graph(
    manifests: Sequence[Manifest], refs: Mapping[str, Mapping[str, str]], statuses: Sequence[Status]
) -> list[Node]:
    """Versions that a ref names or a process serves, their ancestors, and the processes, each after its parents."""
    by_version = {(m.name, m.version): m for m in manifests}
    served = {(name, version) for s in statuses for name, version in s.versions.items()}
    wanted = [(name, version) for name, named in refs.items() for version in named.values()]
    wanted += [key for key in served if key in by_version]
    nodes: dict[str, Node] = {}

    def add(name: str, version: str) -> str:
        key = f"{name}/{version}"
        if key in nodes:
            return key
        manifest = by_version.get((name, version))
        named = [ref for ref, v in refs.get(name, {}).items() if v == version]
        lines = [f"{numbers.short(version)}  {', '.join(named)}".strip()]
        parents: list[str] = []
        if manifest is not None:
            parents = [add(*parent) for parent in sorted(manifest.parents.items())]
            lines += [f"{what} {value}" for what, value in figures(manifest.metrics, 1)]
        depth = 1 + max((nodes[p].depth for p in parents), default=-1)
        nodes[key] = Node(key, name, lines, parents, None, depth)
        return key

    for name, version in sorted(set(wanted)):
        add(name, version)
    _as_late_as_possible(nodes)
    last = 1 + max((node.depth for node in nodes.values()), default=-1)
    for status in statuses:
        parents = [f"{n}/{v}" for n, v in sorted(status.versions.items()) if f"{n}/{v}" in nodes]
        # What a parent was made from needs no second line to the process.
        above = {p for key in parents for p in nodes[key].parents}
        parents = [p for p in parents if p not in above]
        if parents:
            said = "serving" if status.serving else "not serving"
            nodes[f"process/{status.name}"] = Node(
                f"process/{status.name}", status.name, [said], parents, said.replace(" ", "-"), last
            )
    return list(nodes.values())


def _as_late_as_possible(nodes: Mapping[str, Node]) -> None:
    """Moves what nothing was made from to the last column, next to the processes, and its parents after it."""
    last = max((node.depth for node in nodes.values()), default=0)
    for node in sorted(nodes.values(), key=lambda n: -n.depth):
        below = [child.depth for child in nodes.values() if node.key in child.parents]
        node.depth = min(below, default=last + 1) - 1


_BOX, _HEIGHT, _GAP = 232, 66, 16  # pixels of a box, and between rows
_ACROSS = 1130  # of the page
_LANE = 26  # row of an edge that passes a column
_INDENT, _NARROW = 22, 328


def figures(metrics: Mapping[str, float | int | str], most: int) -> list[tuple[str, str]]:
    """(what, how much) of the metrics that say most."""
    told = [(words, metrics[key]) for key, words in _TOLD.items() if key in metrics]
    told = told or [(key.replace("_", " "), value) for key, value in sorted(metrics.items())]
    return [(what, numbers.figure(value)) for what, value in told[:most]]


def draw_wide(nodes: Sequence[Node]) -> Markup:
    """Columns by depth, edges from left to right; one that passes a column has a lane of its own there."""
    columns = 1 + max((node.depth for node in nodes), default=0)
    step = _BOX + min(200.0, max(48.0, (_ACROSS - columns * _BOX) / max(1, columns - 1)))
    places: dict[str, tuple[float, float]] = {}
    free = [1.0] * columns  # the first free y of each column
    edges: list[str] = []
    for node in _ordered(nodes):
        ends = {parent: _lanes(places[parent], node.depth, step, free) for parent in node.parents}
        wanted = [lane[-1][1] for lane in ends.values()]
        y = max(free[node.depth], sum(wanted) / len(wanted) - _HEIGHT / 2 if wanted else 1.0)
        places[node.key] = (1 + node.depth * step, y)
        free[node.depth] = y + _HEIGHT + _GAP
        for lane in ends.values():
            edges.append(_curve([*lane, (places[node.key][0], y + _HEIGHT / 2)]))
    boxes = [_box(node, *places[node.key], _BOX) for node in nodes]
    return svg("lineage wide", (columns - 1) * step + _BOX + 2, max(free) - _GAP + 1, _WHAT, edges + boxes)


def _lanes(place: tuple[float, float], depth: int, step: float, free: list[float]) -> list[tuple[float, float]]:
    """Points from a box's right side to the column before `depth`: two a column passed."""
    x, y = place[0] + _BOX, place[1] + _HEIGHT / 2
    points = [(x, y)]
    for column in range(round((place[0] - 1) / step) + 1, depth):
        y = max(y, free[column] + _LANE / 2)
        free[column] = max(free[column], y + _LANE / 2)
        points += [(1 + column * step, y), (1 + column * step + _BOX, y)]
    return points


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """An edge through points: a bend between columns, a straight line past one."""
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for i, ((x1, y1), (x2, y2)) in enumerate(pairwise(points)):
        bend = (x2 - x1) / 2 if i % 2 == 0 else 0.0
        path += f" C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
    return f'<path class="edge" d="{path}"/>'


def draw_narrow(nodes: Sequence[Node]) -> Markup:
    """One box a row, set in by depth, with rails at the left from a parent down to its children."""
    row = _HEIGHT + _GAP - 4
    places = {node.key: (1 + node.depth * _INDENT, 1 + i * row) for i, node in enumerate(_ordered(nodes))}
    edges = []
    for node in nodes:
        x2, y2 = places[node.key]
        for parent in node.parents:
            x1, y1 = places[parent]
            edges.append(f'<path class="edge" d="M{x1 + 10},{y1 + _HEIGHT} V{y2 + _HEIGHT / 2} H{x2}"/>')
    boxes = [_box(node, x, y, _NARROW - x - 1) for node in nodes for x, y in [places[node.key]]]
    return svg("lineage narrow", _NARROW, max(1, len(nodes)) * row, _WHAT, edges + boxes)


def _ordered(nodes: Sequence[Node]) -> list[Node]:
    """Depth first, so that what belongs together stands together; a node comes after the last of its parents."""
    children: dict[str, list[Node]] = {}
    for node in nodes:
        for parent in node.parents:
            children.setdefault(parent, []).append(node)
    order: list[Node] = []
    done: set[str] = set()

    def visit(node: Node) -> None:
        if node.key in done or any(parent not in done for parent in node.parents):
            return
        done.add(node.key)
        order.append(node)
        for child in sorted(children.get(node.key, ()), key=reach):
            visit(child)

    def reach(node: Node) -> tuple[int, str]:
        """How much hangs below it: what has least stands first, so that fewer edges cross."""
        return sum(1 + reach(child)[0] for child in children.get(node.key, ())), node.key

    for node in sorted(nodes, key=lambda n: (n.depth, reach(n))):
        visit(node)
    return order


def _box(node: Node, x: float, y: float, width: float) -> str:
    kind = "artifact" if node.health is None else f"process {node.health}"
    parts = [f'<rect width="{width}" height="{_HEIGHT}" rx="10"/>']
    parts.append(f'<text class="title" x="14" y="24">{escape(node.title)}</text>')
    if node.health is not None:
        parts.append(f'<circle class="health" cx="{width - 18}" cy="19" r="5"/>')
    for i, line in enumerate(node.lines[:2]):
        parts.append(f'<text class="note" x="14" y="{42 + 15 * i}">{escape(line[:34])}</text>')
    return f'<g class="{kind}" transform="translate({x:.1f},{y:.1f})">{"".join(parts)}</g>'
