"""What the bytes of a graph depend on besides codes, and what they do not."""

from dataclasses import asdict, dataclass
from typing import Any

from vitrine.errors import FieldError

# A cluster's codes, leaves and lists are worked on in memory: about this many members at a time.
CLUSTER = 12_000
MAX_CENTRES = 1000


@dataclass(frozen=True)
class Parameters:
    """Of a build; docs/ann.md, "Parameters", has what each does to quality and time.

    overlap:    leaves that a node is in (t of the paper), over both levels; 2 to 64
    leaf:       members of a leaf at most
    neighbours: found of a node in each of its leaves; 1 to 31
    kept:       of a node's neighbours in one cluster
    rounds:     of propagation (propagate.py); at equal cost a larger overlap gives more
    degree:     edges of a node at most, a multiple of 16; a row of edges is degree * 4 bytes
    slack:      percent; 100 is the relative neighbourhood rule (q is dropped where a kept r has d(r, q) < d(p, q)),
                more keeps more
    entries:    nodes that a search looks at first; 0 for a 512th of all, 256 to 2,048
    seed:       of the samples
    """

    overlap: int = 4
    leaf: int = 400
    neighbours: int = 8
    kept: int = 16
    rounds: int = 0
    degree: int = 32
    slack: int = 110
    entries: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises FieldError."""
        bounds = {
            "overlap": (2, 64), "leaf": (8, 32_768), "neighbours": (1, 31), "kept": (1, 256), "rounds": (0, 16),
            "degree": (16, 128), "slack": (100, 200), "entries": (0, 32_768), "seed": (0, 2**63 - 1),
        }  # fmt: skip
        for field, (least, most) in bounds.items():
            value = getattr(self, field)
            if not least <= value <= most:
                raise FieldError(field, f"is {value}; use {least} to {most}")
        if self.degree % 16:
            raise FieldError("degree", f"is {self.degree}; use a multiple of 16, a cache line of edges")

    @property
    def forward(self) -> int:
        """Edges that a node chooses itself; the others are those that chose it."""
        return self.degree * 3 // 4

    def entries_of(self, nodes: int) -> int:
        """Entries of a graph of so many nodes, where it has them: few lead to long walks, many to long scans."""
        return self.entries or max(256, min(2048, nodes // 512))

    def as_dict(self) -> dict[str, Any]:
        """For a manifest, and for the fingerprint of a task."""
        return asdict(self)
