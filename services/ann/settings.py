"""Settings of the ann server: which indexes and shard it serves, by which engine, and how requests are batched."""

import os
import re
from typing import Literal

from pydantic import Field, field_validator

from vitrine.ann import index
from vitrine.artifacts import ArtifactError
from vitrine.artifacts.manifest import check_name
from vitrine.runtime.follow import FollowSettings

_SHARD = re.compile(r"(\d{1,4})/(\d{1,4})")

Engine = Literal["graph", "exact", "gpu-exact"]


class AnnSettings(FollowSettings):
    """What the ann server can be told."""

    indexes: str = Field(
        index.KIND, min_length=1, description="Artifacts to serve, separated by commas; the first is the default."
    )
    shard: str = Field("0/1", description="Shard served and how many there are, such as 0/2; items have one each.")
    engine: Engine = Field("graph", description="What finds candidates; gpu-exact needs faiss with a GPU.")
    batches: int = Field(
        default_factory=lambda: max(1, (os.cpu_count() or 1) // 2),
        ge=0,
        le=1024,
        description="Searches at a time; requests beyond wait and are searched as one. 0: each by itself, at once.",
    )
    fold_at: int = Field(8192, ge=16, le=1 << 20, description="Newest items scanned flat before they get a graph.")

    staleness_bound_s: float = Field(60, gt=0, description="Kafka silent for longer: answers are said to be stale.")

    @field_validator("indexes")
    @classmethod
    def _indexes_are_names(cls, value: str) -> str:
        names = value.split(",")
        for name in names:
            try:
                check_name(name)
            except ArtifactError as error:
                raise ValueError(f"write names of artifacts separated by commas: {error}") from error
        if len(set(names)) < len(names):
            raise ValueError("has a name twice")
        return value

    @field_validator("shard")
    @classmethod
    def _shard_is_one_of_several(cls, value: str) -> str:
        _shard_of(value)
        return value

    @property
    def index_names(self) -> tuple[str, ...]:
        """Artifacts to serve; the first is the default."""
        return tuple(self.indexes.split(","))

    @property
    def shard_of(self) -> tuple[int, int]:
        """(number of the shard from 0, how many there are)."""
        return _shard_of(self.shard)


def _shard_of(text: str) -> tuple[int, int]:
    found = _SHARD.fullmatch(text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not number < of <= 1024:
        raise ValueError("should be NUMBER/SHARDS with a number from 0, such as 0/2, of at most 1,024")
    return number, of
