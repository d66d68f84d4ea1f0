"""The versioned artifact store: trainers publish here, services fetch, verify and follow (docs/artifacts.md)."""

from vitrine.artifacts.manifest import ArtifactError, FileEntry, Manifest, MissingArtifactError, Offsets
from vitrine.artifacts.store import ArtifactStore, LocalArtifact
from vitrine.artifacts.watch import Watcher

__all__ = [
    "ArtifactError",
    "ArtifactStore",
    "FileEntry",
    "LocalArtifact",
    "Manifest",
    "MissingArtifactError",
    "Offsets",
    "Watcher",
]
