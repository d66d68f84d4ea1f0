"""What was made from what, and who serves it: artifacts and processes as a graph, for wide pages and phones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from services.console import numbers
from services.console.draw import svg
from services.console.scrape import Status
from vitrine.artifacts import Manifest

_SHOWN_METRICS = (
    "search_same_category_at_10",
    "recall_at_10",
    "ctr_auc",
    "auc",
    "accuracy",
    "postings",
    "items",
    "ads",
)

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
            lines += [
                f"{k.replace('_', ' ')} {numbers.figure(manifest.metrics[k])}"
                for k in _SHOWN_METRICS
                if k in manifest.metrics
            ][:1]
        depth = 1 + max((nodes[p].depth for p in parents), default=-1)
        nodes[key] = Node(key, name, lines, parents, None, depth)
        return key

    for name, version in sorted(set(wanted)):
        add(name, version)
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


_WIDE = (196, 62, 56, 14)  # box width, height, gaps between columns and rows
_ROW, _INDENT, _NARROW = 74, 22, 320


def draw_wide(nodes: Sequence[Node]) -> Markup:
    """Columns by depth, edges from left to right."""
    width, height, gap_x, gap_y = _WIDE
    places: dict[str, tuple[float, float]] = {}
    columns: dict[int, float] = {}
    for node in _ordered(nodes):
        wanted = [places[p][1] for p in node.parents if p in places]
        y = max(columns.get(node.depth, 1.0), sum(wanted) / len(wanted) if wanted else 1.0)
        places[node.key] = (1 + node.depth * (width + gap_x), y)
        columns[node.depth] = y + height + gap_y
    edges = []
    for node in nodes:
        x2, y2 = places[node.key]
        for parent in node.parents:
            x1, y1 = places[parent]
            a, b, c, d = x1 + width, y1 + height / 2, x2, y2 + height / 2
            bend = max(24.0, min(60.0, (c - a) / 2))
            edges.append(
                f'<path class="edge" d="M{a},{b:.1f} C{a + bend},{b:.1f} {c - bend},{d:.1f} {c},{d:.1f}"/>'
            )
    boxes = [_box(node, *places[node.key], width, height) for node in nodes]
    across = max((x for x, _ in places.values()), default=0) + width + 2
    down = max(columns.values(), default=gap_y) - gap_y + 2
    return svg("lineage wide", across, down, _WHAT, edges + boxes)


def draw_narrow(nodes: Sequence[Node]) -> Markup:
    """One box a row, set in by depth, with rails at the left from a parent down to its children."""
    places = {node.key: (1 + node.depth * _INDENT, 1 + row * _ROW) for row, node in enumerate(_ordered(nodes))}
    height = 62
    edges = []
    for node in nodes:
        x2, y2 = places[node.key]
        for parent in node.parents:
            x1, y1 = places[parent]
            edges.append(f'<path class="edge" d="M{x1 + 10},{y1 + height} V{y2 + height / 2} H{x2}"/>')
    boxes = [_box(node, x, y, _NARROW - x - 1, height) for node in nodes for x, y in [places[node.key]]]
    return svg("lineage narrow", _NARROW, max(1, len(nodes)) * _ROW - 10, _WHAT, edges + boxes)


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
        for child in children.get(node.key, ()):
            visit(child)

    for node in sorted(nodes, key=lambda n: (n.depth, not children.get(n.key))):
        visit(node)
    return order + [node for node in nodes if node.key not in done]


def _box(node: Node, x: float, y: float, width: float, height: float) -> str:
    kind = "artifact" if node.health is None else f"process {node.health}"
    parts = [
        f'<rect width="{width}" height="{height}" rx="8"/>',
        f'<text class="title" x="14" y="25">{escape(node.title)}</text>',
    ]
    if node.health is not None:
        parts.append(f'<circle class="health" cx="{width - 18}" cy="20" r="5"/>')
    for i, line in enumerate(node.lines[:2]):
        parts.append(f'<text class="note" x="14" y="{42 + 13 * i}">{escape(line[:34])}</text>')
    return f'<g class="{kind}" transform="translate({x:.1f},{y:.1f})">{"".join(parts)}</g>'
