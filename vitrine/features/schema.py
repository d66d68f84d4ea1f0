"""The feature schema: which fields a model reads, and the 64-bit key of a field's value.

A key is a stable function of field name and value, never of the process, the run or the order of first sight, so
training, matching and scoring meet in the same rows. `tests/unit/golden_features.json` holds the function still.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vitrine.errors import FieldError

VERSION = 1
Side = Literal["user", "ad"]
Norm = Literal["none", "l2"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the schema.

    name: enters the key of every value
    side: whose feature it is, the user's or the ad's
    norm: "none" takes weights as they are, "l2" scales a field's weights to a vector of length 1
    """

    name: str
    side: Side
    norm: Norm


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The fields that a model was trained on, stored in its artifact as schema.json."""

    fields: tuple[Field, ...]

    def to_json(self) -> str:
        """The schema as JSON with its version; `from_json` is the inverse."""
        return json.dumps({"version": VERSION, "fields": [asdict(field) for field in self.fields]}, indent=1) + "\n"

    @staticmethod
    def load(path: Path) -> FeatureSchema:
        """Read an artifact's schema.json; FieldError as in `from_json`, and where the file is missing."""
        try:
            return FeatureSchema.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise FieldError("schema", f"{path.name} cannot be read ({error}); publish it again") from None

    @staticmethod
    def from_json(text: str) -> FeatureSchema:
        """Read a schema; FieldError where it is not one, or is of a version that this reader does not know."""
        try:
            data: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise FieldError("schema", f"not JSON: {error}") from None
        if not isinstance(data, dict) or not isinstance(data.get("fields"), list):
            raise FieldError("schema", 'an object with "version" and "fields" was expected')
        if data.get("version") != VERSION:
            raise FieldError("schema.version", f"{data.get('version')!r} is not {VERSION}; use a newer reader")
        return FeatureSchema(tuple(_field(row, i) for i, row in enumerate(data["fields"])))


SCHEMA = FeatureSchema(
    (
        Field("user_item", "user", "l2"),
        Field("user_crowd", "user", "l2"),
        Field("ad", "ad", "none"),
        Field("ad_crowd", "ad", "l2"),
    )
)
"""The schema of `vitrine.features.context`: what a user did, the user's crowds, the ad, and the ad's crowds."""


def feature_keys(field: str, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys of a field's values: (n,) uint64 -> (n,) uint64, never 0.

    Within a field no two values share a key: the mix is a bijection, and only the value that would map to 0, and so
    maps to the field's seed instead, can meet another. Text becomes a value through `string_id`.
    """
    seed = np.uint64(string_id(field))
    x = np.asarray(values, dtype=np.uint64) ^ seed
    # splitmix64 (Steele, Lea and Flood 2014): increment, then its finalizer. Unsigned arithmetic wraps.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.where(x == 0, seed, x)


@lru_cache(maxsize=1024)
def string_id(text: str) -> int:
    """The id of a text, never 0: BLAKE2b of its NFC form in UTF-8, 8 bytes, little-endian.

    Texts that Unicode calls canonically equal ("é" as one code point or as two) are one id.
    """
    digest = hashlib.blake2b(unicodedata.normalize("NFC", text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _field(row: Any, i: int) -> Field:
    if not isinstance(row, dict) or set(row) != {"name", "side", "norm"} or not isinstance(row["name"], str):
        raise FieldError(f"schema.fields[{i}]", "an object with name, side and norm was expected")
    for key, allowed in (("side", get_args(Side)), ("norm", get_args(Norm))):
        if row[key] not in allowed:
            raise FieldError(f"schema.fields[{i}].{key}", f"{row[key]!r} is not one of {', '.join(allowed)}")
    return Field(row["name"], row["side"], row["norm"])
