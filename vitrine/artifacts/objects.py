"""Where the bytes lie: a local folder or any fsspec URL behind the same handful of operations.

Keys are "/"-joined paths below the store's root. A missing key raises FileNotFoundError; whatever else goes wrong
in between (network, permissions, a full disk) is UnavailableError: it says nothing about the artifact.
"""

import hashlib
import os
import re
import secrets
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from vitrine.artifacts.manifest import ArtifactError, FileEntry
from vitrine.errors import UnavailableError

# What changes when a file is written: path -> (size, modified ns, changed ns, inode).
Stamps = dict[str, tuple[int, int, int, int]]

CHUNK = 8 << 20  # bytes in memory at once while a file is copied or hashed

# A `put` under way, or one that was killed: no object yet. Names of objects do not start with a dot.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


class Objects(ABC):
    """A store's objects; safe for threads."""

    root: str

    def read(self, key: str, limit: int) -> bytes:
        """The first limit + 1 bytes of an object, so that the caller sees where one is too long."""
        with self._reaching(key):
            return self._range(key, 0, limit + 1)

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Replace a small object whole: readers see the old bytes or the new ones."""

    def upload(self, source: Path, key: str) -> FileEntry:
        """Copy a local file to a new object; returns the size and SHA-256 of what was copied."""
        digest, size = hashlib.sha256(), 0
        with self._reaching(key), open(source, "rb") as read, self._create(key) as write:
            while chunk := read.read(CHUNK):
                digest.update(chunk)
                write.write(chunk)
                size += len(chunk)
        return {"size": size, "sha256": digest.hexdigest()}

    def download(self, key: str, size: int, sink: BinaryIO | None = None) -> FileEntry:
        """Read at most `size` bytes of an object, to `sink` where one is given; returns what was read."""
        digest, done = hashlib.sha256(), 0
        with self._reaching(key):
            while done < size:
                chunk = self._range(key, done, min(size, done + CHUNK))
                if not chunk:
                    break
                digest.update(chunk)
                if sink is not None:
                    sink.write(chunk)
                done += len(chunk)
        return {"size": done, "sha256": digest.hexdigest()}

    @abstractmethod
    def children(self, key: str) -> list[str]:
        """Names of the objects and folders directly below, sorted; none where the folder does not exist."""

    @abstractmethod
    def sizes(self, key: str) -> dict[str, int]:
        """Size in bytes of every object at any depth below, by its path from there; -1: not a regular file."""

    @abstractmethod
    def modified(self, key: str) -> float:
        """When something below was last written, seconds since 1970; 0 where the store does not say."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object of this key now."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove one object, if it is there."""

    @abstractmethod
    def remove_tree(self, key: str) -> None:
        """Remove everything below, if there is anything."""

    @abstractmethod
    def _range(self, key: str, start: int, end: int) -> bytes: ...

    @abstractmethod
    def _create(self, key: str) -> Any:
        """Context manager around a new object's binary stream."""

    @contextmanager
    def _reaching(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ArtifactError, UnavailableError):
            raise
        except Exception as error:  # fsspec's backends raise their own libraries' classes
            raise UnavailableError(f"artifact store {self.root}: {key}: {error!r}") from error


class LocalObjects(Objects):
    """A folder. Written files are on disk, with the folders that lead to them, when a call returns."""

    def __init__(self, root: Path) -> None:
        self.path = root.expanduser().absolute()
        self.root = str(self.path)

    def put(self, key: str, data: bytes) -> None:
        with self._reaching(key):
            target = self.path / key
            _make_folder(target.parent)
            temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"  # as _TEMPORARY says
            try:
                with _synced(temporary) as file:
                    file.write(data)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def children(self, key: str) -> list[str]:
        with self._reaching(key):
            try:
                return sorted(os.listdir(self.path / key))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def sizes(self, key: str) -> dict[str, int]:
        with self._reaching(key):
            return {
                os.path.relpath(path, self.path / key): s.st_size if stat.S_ISREG(s.st_mode) else -1
                for path, s in self._entries(key)
                if not _TEMPORARY.fullmatch(os.path.basename(path))
            }

    def stamps(self, key: str) -> Stamps:
        """Stamps of every file below."""
        with self._reaching(key):
            return {
                path: (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
                for path, s in self._entries(key)
                if not _TEMPORARY.fullmatch(os.path.basename(path))
            }

    def modified(self, key: str) -> float:
        with self._reaching(key):
            return max((s.st_mtime for _, s in self._entries(key)), default=0.0)

    def exists(self, key: str) -> bool:
        with self._reaching(key):
            return (self.path / key).is_file()

    def remove(self, key: str) -> None:
        with self._reaching(key):
            try:
                (self.path / key).unlink()
            except FileNotFoundError:
                return
            _sync_folder((self.path / key).parent)

    def remove_tree(self, key: str) -> None:
        with self._reaching(key):
            try:
                shutil.rmtree(self.path / key)
            except FileNotFoundError:
                if (self.path / key).exists():  # another remover is at work in it
                    shutil.rmtree(self.path / key, ignore_errors=True)

    def _range(self, key: str, start: int, end: int) -> bytes:
        with open(self.path / key, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    @contextmanager
    def _create(self, key: str) -> Iterator[BinaryIO]:
        target = self.path / key
        _make_folder(target.parent)
        with _synced(target) as file:
            yield file
        _sync_folder(target.parent)

    def _entries(self, key: str) -> Iterator[tuple[str, os.stat_result]]:
        """Path and state of everything below that is not a folder; links are not followed.

        What goes while it is looked at is left out, as if it had gone before.
        """
        waiting = [str(self.path / key)]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                            continue
                        with suppress(FileNotFoundError):
                            yield entry.path, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


class FsspecObjects(Objects):
    """Any fsspec URL. Objects are read by ranges, since some backends share one position among readers."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ArtifactError(
                f"artifact store {url}: URLs need fsspec; pip install 'vitrine-serving[serve]'"
            ) from error
        try:
            self._files, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ArtifactError(f"artifact store {url}: {error}; a local folder works without it") from error
        self.root = url
        self._base = path.rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        with self._reaching(key):
            self._files.pipe_file(self._path(key), data)

    def children(self, key: str) -> list[str]:
        with self._reaching(key):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._path(key), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries})

    def sizes(self, key: str) -> dict[str, int]:
        with self._reaching(key):
            return {path: int(entry["size"]) for path, entry in self._found(key).items()}

    def modified(self, key: str) -> float:
        with self._reaching(key):
            try:
                times = [self._files.modified(entry["name"]).timestamp() for entry in self._found(key).values()]
            except NotImplementedError:
                return 0.0
            return max(times, default=0.0)

    def exists(self, key: str) -> bool:
        with self._reaching(key):
            self._files.invalidate_cache()
            return bool(self._files.isfile(self._path(key)))

    def remove(self, key: str) -> None:
        with self._reaching(key):
            try:
                self._files.rm_file(self._path(key))
            except FileNotFoundError:
                return

    def remove_tree(self, key: str) -> None:
        with self._reaching(key):
            self._files.invalidate_cache()
            try:
                self._files.rm(self._path(key), recursive=True)
            except FileNotFoundError:
                return

    def _range(self, key: str, start: int, end: int) -> bytes:
        path = self._path(key)
        try:
            return bytes(self._files.cat_file(path, start=start, end=end))
        except FileNotFoundError:
            raise
        except Exception:
            self._files.invalidate_cache()
            if self._files.size(path) == 0:  # S3 calls any range of an empty object an error
                return b""
            raise

    def _create(self, key: str) -> Any:
        path = self._path(key)
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)  # for those backends that have folders
        return self._files.open(path, "wb")

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    def _found(self, key: str) -> dict[str, dict[str, Any]]:
        """fsspec's details of each object below, by its path from there; folder markers left out."""
        self._files.invalidate_cache()
        prefix = self._path(key).strip("/") + "/"
        found = self._files.find(self._path(key), detail=True)
        paths = {path.lstrip("/").removeprefix(prefix): entry for path, entry in found.items()}
        return {path: entry for path, entry in paths.items() if path and not path.endswith("/")}


def open_objects(root: str) -> Objects:
    """The objects below a folder or URL; raises ArtifactError where no such kind of store can be opened."""
    if not root:
        raise ArtifactError("no artifact store is named: give --store or VITRINE_STORE, a folder or a URL")
    if root.startswith("file://"):
        return LocalObjects(Path(unquote(root.removeprefix("file://"))))
    if "://" in root:
        return FsspecObjects(root)
    return LocalObjects(Path(root))


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    """A new file, on disk when the block ends."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
