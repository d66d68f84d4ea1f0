"""Whether a version's files are what its manifest says: all of them, nothing else, size and SHA-256 of each."""

from pathlib import Path
from typing import NoReturn

from vitrine.artifacts.manifest import MANIFEST, ArtifactError, FileEntry, Manifest, damaged_way_out
from vitrine.artifacts.objects import LocalObjects, Objects, Stamps

# Folders that this process has hashed: path -> the manifest they matched, and the files' stamps at that time.
_hashed: dict[str, tuple[Manifest, Stamps]] = {}


def verify_files(objects: Objects, key: str, manifest: Manifest) -> None:
    """Read and compare every byte; raises ArtifactError naming the first file that differs."""
    verify_names(objects, key, manifest)
    for file, entry in manifest.files.items():
        try:
            compare(manifest, file, objects.download(f"{key}/{file}", entry["size"]))
        except FileNotFoundError:
            refuse(manifest, file, "is missing")


def verify_folder(objects: LocalObjects, key: str, manifest: Manifest, *, recheck: bool = False) -> Path:
    """`verify_files` once a process, and again when a file was touched since; returns the folder."""
    folder = objects.path / key
    stamps = objects.stamps(key)
    if recheck or _hashed.get(str(folder)) != (manifest, stamps):
        verify_files(objects, key, manifest)
        _hashed[str(folder)] = (manifest, stamps)
    return folder


def mark_verified(objects: LocalObjects, key: str, manifest: Manifest) -> Path:
    """Remember a folder whose bytes were hashed while they were written; returns it."""
    folder = objects.path / key
    _hashed[str(folder)] = (manifest, objects.stamps(key))
    return folder


def verify_names(objects: Objects, key: str, manifest: Manifest) -> None:
    """Compare names and sizes: one listing, no reading."""
    sizes = objects.sizes(key)
    sizes.pop(MANIFEST, None)
    for file, entry in manifest.files.items():
        if file not in sizes:
            refuse(manifest, file, "is missing")
        if sizes[file] < 0:
            refuse(manifest, file, "is not a regular file")
        if sizes[file] != entry["size"]:
            refuse(manifest, file, f"has {sizes[file]} bytes, not {entry['size']}")
    for file in sizes:
        if file not in manifest.files:
            refuse(manifest, file[:200], "is not in the manifest")


def compare(manifest: Manifest, file: str, found: FileEntry) -> None:
    """Raises ArtifactError where what was read of a file is not what the manifest says of it."""
    expected = manifest.files[file]
    if found["size"] != expected["size"]:
        refuse(manifest, file, f"ends after {found['size']} bytes of {expected['size']}")
    if found["sha256"] != expected["sha256"]:
        digests = f"SHA-256 {found['sha256']}, not {expected['sha256']}"
        refuse(manifest, file, f"its bytes have changed: {digests}")


def refuse(manifest: Manifest, file: str, what: str) -> NoReturn:
    """Raises ArtifactError about one file of a version."""
    raise ArtifactError(
        f"artifact {manifest.name} {manifest.version}: {file}: {what}; {damaged_way_out(manifest.name)}"
    )
