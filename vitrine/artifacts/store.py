"""Publish, resolve, fetch, roll back and prune versions of artifacts, on a folder or an object store alike.

`<root>/<name>/<version>/` holds the files and, written last, manifest.json: without it the version does not exist.
`<root>/<name>/refs/<ref>` holds a version's name, replaced whole. Nothing is ever renamed and nothing locked, so
where two writers can cross, each writes first and looks second: at least one of them sees the other (`prune`).
"""

import builtins
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vitrine.artifacts import cache as caching
from vitrine.artifacts.manifest import (
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    ArtifactError,
    FileEntry,
    Manifest,
    MissingArtifactError,
    check_name,
    check_namespace,
    check_ref,
    file_name_problem,
    is_name,
    is_version,
    parse,
    plain_metrics,
    plain_offsets,
)
from vitrine.artifacts.objects import LocalObjects, open_objects
from vitrine.artifacts.verify import verify_files, verify_folder
from vitrine.placement import qualify

ORPHAN_AGE = timedelta(hours=1)  # a folder without manifest, untouched for so long, is no publish in progress


@dataclass(frozen=True)
class LocalArtifact:
    """A verified version on this machine: `path` is the folder with the files that `manifest` names."""

    path: Path
    manifest: Manifest


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ArtifactStore:
    """The artifacts of one namespace below one folder or fsspec URL; safe for threads and for many processes.

    root:  a folder, or a URL such as s3://bucket/artifacts or memory://test
    cache: where fetched versions are kept; the user's cache folder where None. A store in a local folder is read
           in place unless a cache is named.
    now:   the clock that versions are named by and orphans judged by

    Every method raises ArtifactError (MissingArtifactError where there is no such thing), and UnavailableError
    where the store cannot be reached.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        namespace: str = "",
        cache: Path | None = None,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.objects = open_objects(os.fspath(root))
        self.root = self.objects.root
        self.namespace = check_namespace(namespace)
        self._in_place = isinstance(self.objects, LocalObjects) and cache is None
        digest = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self._cache = (cache or caching.default_folder()) / digest
        self._now = now

    # Reading

    def names(self) -> builtins.list[str]:
        """Names of the artifacts in this namespace, sorted."""
        folders = [(folder, folder.rpartition(".")[2]) for folder in self.objects.children("")]
        return [name for folder, name in folders if is_name(name) and folder == qualify(self.namespace, name)]

    def versions(self, name: str) -> builtins.list[str]:
        """The published versions, oldest first."""
        key = self._key(name)
        return [v for v in self.objects.children(key) if is_version(v) and self._is_published(name, v)]

    def refs(self, name: str) -> dict[str, str]:
        """{ref: version}, whatever the state of that version."""
        children = self.objects.children(f"{self._key(name)}/refs")
        return {ref: self._read_ref(name, ref) for ref in children if not ref.startswith(".")}

    def resolve(self, name: str, ref_or_version: str = "stable") -> str:
        """The version that a ref names, or the version itself where there is such a one."""
        version = self._version(name, ref_or_version)
        if version == ref_or_version and not self._is_published(name, version):
            raise self._missing(name, f"no version {version}")
        return version

    def manifest(self, name: str, ref_or_version: str = "stable") -> Manifest:
        """The manifest of a version, checked for itself; whether the files match it is `verify`."""
        return self._manifest(name, self._version(name, ref_or_version))

    def list(self, name: str | None = None) -> builtins.list[Manifest]:
        """Manifests of every version of one artifact or of all, by name and then oldest first."""
        names = self.names() if name is None else [name]
        manifests = []
        for each in names:
            for version in self.versions(each):
                try:
                    manifests.append(self._manifest(each, version))
                except MissingArtifactError:  # pruned since it was listed
                    continue
        return manifests

    def verify(self, name: str, ref_or_version: str = "stable") -> None:
        """Read every byte of a version and compare sizes and SHA-256 with its manifest."""
        manifest = self.manifest(name, ref_or_version)
        verify_files(self.objects, self._key(name, manifest.version), manifest)

    def fetch(
        self, name: str, ref_or_version: str = "stable", *, max_schema: int, recheck: bool = False
    ) -> LocalArtifact:
        """A verified copy on this machine; an artifact schema above max_schema is refused before any download.

        Bytes are hashed once a process and version; later calls only look whether a file was touched since.
        recheck: hash them again.
        """
        version = self._version(name, ref_or_version)
        manifest = self._manifest(name, version, max_schema)
        key = self._key(name, version)
        if self._in_place:
            assert isinstance(self.objects, LocalObjects)
            return LocalArtifact(verify_folder(self.objects, key, manifest, recheck=recheck), manifest)
        path = caching.fetch(
            self.objects, key, manifest, self._cache, in_store=lambda: self.versions(name), recheck=recheck
        )
        return LocalArtifact(path, manifest)

    # Writing

    def publish(
        self,
        name: str,
        files: Path,
        *,
        schema: int,
        kind: str | None = None,
        parents: Mapping[str, str] | None = None,
        offsets: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        ref: str | None = "stable",
    ) -> Manifest:
        """Copy every file below the folder `files` into a new version, then let `ref` name it.

        kind:    which loader reads it; the name where None
        parents: {artifact name: version} it was made from; each must be in this store
        offsets: {"cluster": id, "topics": {topic: {partition: next offset}}} that it contains
        metrics: finite numbers and text
        ref:     None publishes without serving
        """
        if ref is not None:
            check_ref(ref)
        if not 1 <= schema < 2**31:
            raise ArtifactError(f"artifact {name}: schema {schema}: use 1 or more")
        kind = check_name(kind or name)
        parents = dict(parents or {})
        plain = {"offsets": plain_offsets(offsets or {}), "metrics": plain_metrics(metrics or {})}
        self._check_parents(name, parents)
        sources = _sources(name, files)
        now = self._now()
        version = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
        key = self._key(name, version)
        try:
            entries = {file: self.objects.upload(source, f"{key}/{file}") for file, source in sources.items()}
            manifest = Manifest(
                name=name,
                kind=kind,
                schema=schema,
                version=version,
                created=now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                parents=parents,
                files=entries,
                **plain,  # type: ignore[arg-type]
            )
            data = manifest.to_bytes()
            parse(data, name, version)  # what no reader would take is not written
            self._check_arrived(name, version, entries)
            self.objects.put(f"{key}/{MANIFEST}", data)
            self._check_parents(name, parents)  # after the manifest: a prune in between has seen one or the other
        except BaseException:
            self._remove(name, version)
            raise
        if ref is not None:
            self.set_ref(name, version, ref)
        return manifest

    def set_ref(self, name: str, version: str, ref: str = "stable") -> None:
        """Let a ref name a published version."""
        key = f"{self._key(name)}/refs/{check_ref(ref)}"
        self._manifest(name, version)
        try:
            before = self._read_ref(name, ref)
        except ArtifactError:
            before = None
        self.objects.put(key, f"{version}\n".encode())
        if not self._is_published(name, version):  # pruned in between
            self._put_back(name, key, before)
            raise self._missing(name, f"version {version} was pruned meanwhile")

    def rollback(self, name: str, to: str | None = None, ref: str = "stable") -> str:
        """Let a ref name the version published before the one it names, or `to` (a version or ref); returns it."""
        if to is None:
            current = self._read_ref(name, ref)
            earlier = [version for version in self.versions(name) if version < current]
            if not earlier:
                raise self._missing(name, f"nothing was published before {current}, which {ref!r} names")
            to = earlier[-1]
        version = self._version(name, to)
        self.set_ref(name, version, ref)
        return version

    def prune(self, name: str, keep: int, *, dry_run: bool = False) -> builtins.list[str]:
        """Remove all but the newest `keep` versions, and folders left half-published; returns what went.

        What a ref names stays, and so does a parent of what stays, in this artifact or another: a manifest that
        cannot be read stops the pruning, since its parents are unknown. Manifests go first, so that a reader sees
        a version whole or not at all; those that a ref or a new child has come to need meanwhile are put back.
        """
        if keep < 0:
            raise ArtifactError(f"artifact {name}: keep {keep}: use 0 or more")
        versions = self.versions(name)
        newest = versions[max(0, len(versions) - keep) :]
        try:
            needed = self._needed(name, newest)
        except ArtifactError as error:
            raise ArtifactError(
                f"{error}; nothing is pruned while its parents are unknown: repair it or remove its folder"
            ) from error
        going = [version for version in versions if version not in needed]
        orphans = self._orphans(name, versions)
        if dry_run:
            return sorted(going + orphans)
        withdrawn: dict[str, bytes] = {}
        try:
            for version in going:
                manifest_key = f"{self._key(name, version)}/{MANIFEST}"
                try:
                    withdrawn[version] = self.objects.read(manifest_key, MAX_MANIFEST_BYTES)
                except FileNotFoundError:  # another prune was faster
                    continue
                self.objects.remove(manifest_key)
            while back := withdrawn.keys() & self._needed(name, newest):
                for version in back:
                    self.objects.put(f"{self._key(name, version)}/{MANIFEST}", withdrawn.pop(version))
        except BaseException:
            for version, data in withdrawn.items():
                self.objects.put(f"{self._key(name, version)}/{MANIFEST}", data)
            raise
        removed = sorted([*withdrawn, *orphans])
        for version in removed:
            self.objects.remove_tree(self._key(name, version))
        return removed

    # Helpers

    def _put_back(self, name: str, key: str, before: str | None) -> None:
        """Let a ref name what it named before, or the newest version where that is gone as well."""
        if before is None:
            self.objects.remove(key)
            return
        for version in (before, *reversed(self.versions(name))):
            self.objects.put(key, f"{version}\n".encode())
            if self._is_published(name, version):
                return

    def _key(self, name: str, version: str = "") -> str:
        folder = qualify(self.namespace, check_name(name))
        return f"{folder}/{version}" if version else folder

    def _version(self, name: str, ref_or_version: str) -> str:
        return ref_or_version if is_version(ref_or_version) else self._read_ref(name, ref_or_version)

    def _read_ref(self, name: str, ref: str) -> str:
        key = f"{self._key(name)}/refs/{check_ref(ref)}"
        try:
            text = self.objects.read(key, 100).decode("ascii", "replace").strip()
        except FileNotFoundError as error:
            raise self._missing(name, f"no ref {ref!r}") from error
        if not is_version(text):
            raise ArtifactError(
                f"artifact {name}: refs/{ref}: holds {text[:100]!r}, not a version; "
                f"name one: vitrine artifacts rollback {name} --ref {ref} --to VERSION"
            )
        return text

    def _manifest(self, name: str, version: str, max_schema: int | None = None) -> Manifest:
        if not is_version(version):
            raise ArtifactError(f"artifact {name}: {version[:100]!r} is not a version")
        try:
            data = self.objects.read(f"{self._key(name, version)}/{MANIFEST}", MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise self._missing(
                name, f"version {version} has no {MANIFEST}, so there is no such version"
            ) from error
        return parse(data, name, version, max_schema=max_schema)

    def _is_published(self, name: str, version: str) -> bool:
        return self.objects.exists(f"{self._key(name, version)}/{MANIFEST}")

    def _missing(self, name: str, what: str) -> MissingArtifactError:
        place = f"{self.root}, namespace {self.namespace!r}" if self.namespace else self.root
        return MissingArtifactError(
            f"artifact {name}: {what}, in store {place}; `vitrine artifacts ls` shows what is there "
            "(VITRINE_STORE, VITRINE_NAMESPACE)"
        )

    def _check_parents(self, name: str, parents: Mapping[str, str]) -> None:
        for parent, version in parents.items():
            if not is_version(version) or not self._is_published(parent, version):
                raise self._missing(name, f"its parent {parent} {version[:100]} does not exist")

    def _check_arrived(self, name: str, version: str, entries: Mapping[str, FileEntry]) -> None:
        sizes = self.objects.sizes(self._key(name, version))
        if sizes != {file: entry["size"] for file, entry in entries.items()}:
            raise ArtifactError(
                f"artifact {name} {version}: the store holds other files than were written (removed by another "
                "process?); publish again"
            )

    def _needed(self, name: str, newest: Sequence[str]) -> set[str]:
        """Versions of `name` that must stay: the newest, those that refs name, and parents of what stays."""
        needed = {*newest, *self.refs(name).values()}
        for other in self.names():
            if other != name:
                needed.update(m.parents[name] for m in self.list(other) if name in m.parents)
        waiting = list(needed)
        while waiting:
            version = waiting.pop()
            if self._is_published(name, version):
                parent = self._manifest(name, version).parents.get(name)
                if parent is not None and parent not in needed:
                    needed.add(parent)
                    waiting.append(parent)
        return needed

    def _orphans(self, name: str, published: Sequence[str]) -> builtins.list[str]:
        """Folders of versions that have had no manifest, and no write, for an hour."""
        before = self._now() - ORPHAN_AGE
        orphans = []
        for version in self.objects.children(self._key(name)):
            if is_version(version) and version not in published:
                started = datetime.strptime(version[:21], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
                written = datetime.fromtimestamp(self.objects.modified(self._key(name, version)), UTC)
                if max(started, written) < before and not self._is_published(name, version):
                    orphans.append(version)
        return orphans

    def _remove(self, name: str, version: str) -> None:
        """Withdraw what publish has written so far."""
        self.objects.remove(f"{self._key(name, version)}/{MANIFEST}")
        self.objects.remove_tree(self._key(name, version))


def _sources(name: str, folder: Path) -> dict[str, Path]:
    """The files below a folder that is to be published, by name; raises ArtifactError where one cannot be."""
    if not folder.is_dir():
        raise ArtifactError(f"artifact {name}: {folder} is not a folder; give the one that holds its files")
    sources: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        file = path.relative_to(folder).as_posix()
        problem = file_name_problem(file)
        if problem is None and (path.is_symlink() or not path.is_file()):
            problem = "not a regular file; copy what it points to"
        if problem:
            raise ArtifactError(f"artifact {name}: file {file!r}: {problem}; rename or remove it")
        sources[file] = path
    if not 1 <= len(sources) <= MAX_FILES:
        raise ArtifactError(f"artifact {name}: {folder} holds {len(sources)} files; publish 1 to {MAX_FILES}")
    return sources
