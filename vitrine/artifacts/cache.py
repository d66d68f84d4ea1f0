"""Versions kept on this machine: downloaded once whichever processes want them, verified, renamed into place."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vitrine.artifacts.manifest import MANIFEST, ArtifactError, Manifest, is_version
from vitrine.artifacts.objects import LocalObjects, Objects
from vitrine.artifacts.verify import compare, mark_verified, refuse, verify_folder, verify_names
from vitrine.errors import UnavailableError

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """The user's cache folder for artifacts (XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vitrine" / "artifacts"


def fetch(
    objects: Objects,
    key: str,
    manifest: Manifest,
    cache: Path,
    *,
    in_store: Callable[[], Sequence[str]],
    recheck: bool,
) -> Path:
    """The folder of a verified copy of `key` below `cache`, downloaded where there is none or a damaged one.

    A lock a version makes concurrent fetchers wait for the first. The system drops it with its holder, so what a
    killed fetcher left half-done is known to be that. After a download, copies of versions that are no longer
    `in_store` are removed.
    Raises ArtifactError where the store's bytes are not what the manifest says.
    """
    local = LocalObjects(cache)
    final = local.path / key
    name_folder = final.parent
    try:
        name_folder.mkdir(parents=True, exist_ok=True)
        with _locked(name_folder / f".{manifest.version}.lock"):
            if final.exists():
                try:
                    return verify_folder(local, key, manifest, recheck=recheck)
                except (ArtifactError, FileNotFoundError) as error:
                    log.warning("a cached artifact is damaged and is fetched again: %s", error)
                    shutil.rmtree(final)
            part = name_folder / f".{manifest.version}.part"
            shutil.rmtree(part, ignore_errors=True)
            try:
                _download(objects, key, manifest, part)
                part.rename(final)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            verified = mark_verified(local, key, manifest)
        kept = in_store()
    except OSError as error:
        raise UnavailableError(f"artifact cache {cache}: {error}") from error
    for copy in name_folder.iterdir():
        if is_version(copy.name) and copy.name not in kept and copy != final:
            shutil.rmtree(copy, ignore_errors=True)
            (name_folder / f".{copy.name}.lock").unlink(missing_ok=True)
    return verified


def _download(objects: Objects, key: str, manifest: Manifest, folder: Path) -> None:
    verify_names(objects, key, manifest)
    for file, entry in manifest.files.items():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as sink:
            try:
                compare(manifest, file, objects.download(f"{key}/{file}", entry["size"], sink))
            except FileNotFoundError:
                refuse(manifest, file, "is missing")
    (folder / MANIFEST).write_bytes(manifest.to_bytes())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
