"""What the artifact tests share: stores of both kinds, folders to publish, and damage to what was published."""

import json
import uuid
from pathlib import Path
from typing import Any

from vitrine.artifacts import ArtifactStore, Manifest
from vitrine.artifacts.manifest import _checksum

KINDS = ("folder", "memory", "cached folder")


def open_store(kind: str, base: Path, **options: Any) -> ArtifactStore:
    """A store in a folder read in place, in fsspec's memory, or in a folder but read through a cache."""
    if kind == "memory":
        return ArtifactStore(f"memory://{uuid.uuid4().hex}/artifacts", cache=base / "cache", **options)
    cache = base / "cache" if kind == "cached folder" else None
    return ArtifactStore(base / "store", cache=cache, **options)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write {path: bytes} below a folder; returns it."""
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the manifest: {path: bytes}."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    files.pop("manifest.json", None)
    return files


def stored_key(store: ArtifactStore, manifest: Manifest, file: str = "manifest.json") -> str:
    """Where a store keeps a file of a version."""
    folder = f"{store.namespace}.{manifest.name}" if store.namespace else manifest.name
    return f"{folder}/{manifest.version}/{file}"


def rewrite_manifest(store: ArtifactStore, manifest: Manifest, **fields: Any) -> None:
    """Change fields of a stored manifest (None removes one) under a checksum that fits, as a forger would."""
    raw = json.loads(manifest.to_bytes())
    raw.update(fields)
    raw = {key: value for key, value in raw.items() if value is not None and key != "checksum"}
    store.objects.put(
        stored_key(store, manifest),
        json.dumps({**raw, "checksum": fields.get("checksum", _checksum(raw))}).encode(),
    )
