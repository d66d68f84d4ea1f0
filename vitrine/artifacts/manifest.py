"""The manifest: what a version contains, parsed strictly because every reader trusts it.

JSON, written last into a version's folder. `checksum` is the SHA-256 of the other fields in canonical form, so
that a flipped byte in an offset or a parent is found as one in a file is. A reader knows the manifest schemas
`MANIFEST_SCHEMA` and the one before it.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from numbers import Integral, Real
from typing import Any, NoReturn, TypedDict

from vitrine.errors import NotFoundError

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILES = 10_000
MAX_ENTRIES = 10_000  # of parents, metrics, topics, partitions: each far above any use, and still parsed at once

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_REF = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"[0-9]{8}T[0-9]{12}-[0-9a-f]{8}")
_FILE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTITION = re.compile(r"0|[1-9][0-9]{0,8}")


class ArtifactError(Exception):
    """An artifact cannot be used or published: the message names it, the file, what is wrong and the way out."""


class MissingArtifactError(ArtifactError, NotFoundError):
    """The store has no such artifact, version or ref (or not yet)."""


class FileEntry(TypedDict):
    """One file of a version: size in bytes, SHA-256 in lower-case hex."""

    size: int
    sha256: str


class Offsets(TypedDict, total=False):
    """What of each topic an artifact contains: {topic: {partition: next offset}}, in one Kafka cluster."""

    cluster: str
    topics: dict[str, dict[int, int]]


@dataclass(frozen=True)
class Manifest:
    """What a version is, where it comes from and which files it has.

    name:    as callers write it, without the namespace; kind says which loader reads it, usually the same word
    schema:  of the files, raised when their meaning changes
    version: sorts by time of publishing
    created: ISO 8601, UTC
    parents: {artifact name: version} that this one was made from, in the same store and namespace
    files:   {path below the version's folder, with "/": size and SHA-256}
    """

    name: str
    kind: str
    schema: int
    version: str
    created: str
    parents: dict[str, str]
    offsets: Offsets
    metrics: dict[str, float | int | str]
    files: dict[str, FileEntry]

    def to_bytes(self) -> bytes:
        """The bytes of manifest.json; `parse` is the inverse."""
        fields = {"manifest_schema": MANIFEST_SCHEMA, **asdict(self)}
        fields = json.loads(json.dumps(fields, allow_nan=False))  # partition numbers become JSON's string keys
        return json.dumps({**fields, "checksum": _checksum(fields)}, indent=1).encode()


def parse(data: bytes, name: str, version: str, *, max_schema: int | None = None) -> Manifest:
    """Read the manifest stored for `name` and `version`.

    Raises ArtifactError where it is not JSON, misses a field, has one too many or of another type, belongs to
    another version, names a file outside its folder, does not match its checksum, or is newer than this reader
    (its own schema, or the artifact's where max_schema is given).
    """

    def refuse(what: str, way_out: str = "") -> NoReturn:
        raise ArtifactError(f"artifact {name} {version}: {MANIFEST}: {what}; {way_out or damaged_way_out(name)}")

    if len(data) > MAX_MANIFEST_BYTES:
        refuse(f"larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        raw = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        refuse(f"not a JSON object: {str(error)[:200]}")
    if type(raw) is not dict:
        refuse("not a JSON object")

    schema = raw.get("manifest_schema")
    newer = "update this program, or roll back to a version that it reads: " + rollback_hint(name)
    if type(schema) is int and schema > MANIFEST_SCHEMA:
        refuse(
            f"manifest schema {schema} is newer than {MANIFEST_SCHEMA}, the newest that this program reads", newer
        )
    try:
        manifest = _checked(raw, name, version)
    except _FieldError as problem:
        refuse(str(problem))
    if max_schema is not None and manifest.schema > max_schema:
        refuse(f"artifact schema {manifest.schema} is newer than {max_schema}, the newest this reader knows", newer)
    if raw["checksum"] != _checksum({key: value for key, value in raw.items() if key != "checksum"}):
        refuse("does not match its own checksum: it was changed after it was published")
    return manifest


def damaged_way_out(name: str) -> str:
    """What to do about a damaged version, for the end of an error message."""
    return "publish it again or roll back: " + rollback_hint(name)


def rollback_hint(name: str) -> str:
    """The command that goes back to the version before."""
    return f"vitrine artifacts rollback {name}"


def is_name(text: str) -> bool:
    """Whether the text can name an artifact; a "." cannot be in it, since one ends the namespace."""
    return _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether the text has the form of a version, such as 20261124T073400123456-1a2b3c4d."""
    return _VERSION.fullmatch(text) is not None


def check_name(name: str) -> str:
    """Return an artifact's name; raises ArtifactError where it could not be a folder's or hides a namespace."""
    if not is_name(name):
        raise ArtifactError(
            f"artifact name {name[:100]!r}: use 1 to 80 letters, digits, '-' and '_', a letter or digit first"
        )
    return name


def check_namespace(namespace: str) -> str:
    """Return a namespace, perhaps empty; raises ArtifactError where it could not begin a folder's name."""
    if namespace and (_NAMESPACE.fullmatch(namespace) is None or ".." in namespace):
        raise ArtifactError(
            f"namespace {namespace[:100]!r}: use up to 80 letters, digits, '.', '-' and '_' (VITRINE_NAMESPACE)"
        )
    return namespace


def check_ref(ref: str) -> str:
    """Return a ref's name; raises ArtifactError where it is not a short lower-case word."""
    if _REF.fullmatch(ref) is None:
        raise ArtifactError(f"ref {ref[:100]!r}: use a word such as 'stable' or 'canary': a-z, 0-9, '-' and '_'")
    return ref


def file_name_problem(file: str) -> str | None:
    """Why a path below a version's folder is not safe on every store, or None where it is."""
    parts = file.split("/")
    if len(file) > 512 or len(parts) > 8:
        return "longer than 512 characters or 8 folders deep"
    if any(_FILE_PART.fullmatch(part) is None for part in parts):
        return "each part needs letters, digits and '._+=-' only, and must start with a letter, digit or '_'"
    if file.lower() == MANIFEST:
        return "this name is the store's own"
    return None


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float | int | str]:
    """Metrics as JSON holds them; numpy numbers become Python's.

    Raises ArtifactError naming the metric that is not a finite number or text.
    """
    plain: dict[str, float | int | str] = {}
    for key, value in metrics.items():
        if isinstance(value, str):
            plain[str(key)] = value
        elif isinstance(value, Integral):
            plain[str(key)] = int(value)
        elif isinstance(value, Real) and math.isfinite(value):
            plain[str(key)] = float(value)
        else:
            raise ArtifactError(f"metric {key!r} is {str(value)[:100]}: publish finite numbers and text only")
    return plain


def plain_offsets(offsets: Mapping[str, Any]) -> Offsets:
    """Offsets with integer partitions, as `Manifest` holds them; raises ArtifactError where the form is another."""
    if not offsets:
        return {}
    try:
        topics = {
            str(topic): {str(int(partition)): int(offset) for partition, offset in partitions.items()}
            for topic, partitions in offsets["topics"].items()
        }
        return _checked_offsets({**offsets, "topics": topics})
    except (_FieldError, KeyError, TypeError, ValueError, AttributeError) as error:
        form = '{"cluster": id, "topics": {topic: {partition: next offset}}}'
        raise ArtifactError(f"offsets {str(offsets)[:200]}: give {form} ({error})") from error


class _FieldError(Exception):
    """What is wrong with one field of a manifest."""


_FIELDS: dict[str, type] = {
    "manifest_schema": int,
    "name": str,
    "kind": str,
    "schema": int,
    "version": str,
    "created": str,
    "parents": dict,
    "offsets": dict,
    "metrics": dict,
    "files": dict,
    "checksum": str,
}


def _checked(raw: dict[str, Any], name: str, version: str) -> Manifest:
    """The manifest in `raw`, every field of the right type and inside its bounds; raises _FieldError."""
    _expect_fields("", raw, _FIELDS)
    if raw["manifest_schema"] < 1:
        raise _FieldError(f"manifest_schema is {raw['manifest_schema']}, not 1 or more")
    for field, expected in (("name", name), ("version", version)):
        if raw[field] != expected:
            raise _FieldError(f"field {field} is {raw[field][:100]!r} but it is stored as {expected!r}")
    if not is_name(raw["kind"]):
        raise _FieldError(f"field kind is {raw['kind'][:100]!r}, not a name")
    if not 1 <= raw["schema"] < 2**31:
        raise _FieldError(f"field schema is {raw['schema']}, not 1 or more")
    _check_created(raw["created"])
    for parent, parent_version in _bounded("parents", raw["parents"]).items():
        if not is_name(parent) or type(parent_version) is not str or not is_version(parent_version):
            raise _FieldError(f"parent {parent[:100]!r}: {str(parent_version)[:100]!r} is not a version of a name")
    for key, value in _bounded("metrics", raw["metrics"]).items():
        if type(value) not in (int, float, str) or (type(value) is float and not math.isfinite(value)):
            raise _FieldError(f"metric {key[:100]!r} is {str(value)[:100]}, not a finite number or text")
    return Manifest(
        name=name,
        kind=raw["kind"],
        schema=raw["schema"],
        version=version,
        created=raw["created"],
        parents=raw["parents"],
        offsets=_checked_offsets(raw["offsets"]),
        metrics=raw["metrics"],
        files=_checked_files(raw["files"]),
    )


def _checked_offsets(raw: dict[str, Any]) -> Offsets:
    if not raw:
        return {}
    _expect_fields("offsets.", raw, {"cluster": str, "topics": dict})
    topics: dict[str, dict[int, int]] = {}
    for topic, partitions in _bounded("offsets.topics", raw["topics"]).items():
        if type(partitions) is not dict:
            raise _FieldError(f"field offsets.topics.{topic[:100]} is not an object")
        topics[topic] = {}
        for partition, offset in _bounded(f"offsets.topics.{topic[:100]}", partitions).items():
            if _PARTITION.fullmatch(partition) is None or type(offset) is not int or not 0 <= offset < 2**63:
                raise _FieldError(
                    f"field offsets.topics.{topic[:100]}: {partition[:100]!r}: {str(offset)[:100]} is not "
                    "a partition and an offset of 0 or more"
                )
            topics[topic][int(partition)] = offset
    return {"cluster": raw["cluster"], "topics": topics}


def _checked_files(raw: dict[str, Any]) -> dict[str, FileEntry]:
    if not 1 <= len(raw) <= MAX_FILES:
        raise _FieldError(f"field files has {len(raw)} entries, not 1 to {MAX_FILES}")
    for file, entry in raw.items():
        problem = file_name_problem(file)
        if problem:
            raise _FieldError(f"file name {file[:100]!r}: {problem}")
        if type(entry) is not dict:
            raise _FieldError(f"field files.{file[:100]} is not an object")
        _expect_fields(f"files.{file[:100]}.", entry, {"size": int, "sha256": str})
        if not 0 <= entry["size"] < 2**53 or _SHA256.fullmatch(entry["sha256"]) is None:
            raise _FieldError(f"field files.{file[:100]} is not a size and a SHA-256 in lower-case hex")
    for file in raw:
        parts = file.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in raw:
                raise _FieldError(f"file name {file[:100]!r}: its folder is itself a file")
    return raw


def _expect_fields(prefix: str, raw: dict[str, Any], fields: dict[str, type]) -> None:
    """Exactly these fields, each of exactly its type (so that true is no integer)."""
    for field, kind in fields.items():
        if field not in raw:
            raise _FieldError(f"field {prefix}{field} is missing")
        if type(raw[field]) is not kind:
            raise _FieldError(f"field {prefix}{field} is a {type(raw[field]).__name__}, not a {kind.__name__}")
    for field in raw:
        if field not in fields:
            raise _FieldError(f"field {prefix}{field[:100]} is unknown to this reader")


def _bounded(field: str, raw: dict[str, Any]) -> dict[str, Any]:
    if len(raw) > MAX_ENTRIES:
        raise _FieldError(f"field {field} has {len(raw)} entries, more than {MAX_ENTRIES}")
    return raw


def _check_created(created: str) -> None:
    try:
        offset = datetime.fromisoformat(created).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):
        raise _FieldError(f"field created is {created[:100]!r}, not an ISO 8601 time in UTC")


def _checksum(fields: dict[str, Any]) -> str:
    """SHA-256 of the fields as JSON with sorted keys and no spaces, in hex."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is there twice")
    return fields


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
