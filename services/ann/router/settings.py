"""Settings of the router: where the replicas of each shard are, and how long it waits for one of them."""

import re

from pydantic import Field, field_validator

from vitrine.runtime.settings import Settings

_ADDRESS = re.compile(r"[^\s;,]+:\d{1,5}")


class RouterSettings(Settings):
    """What the router can be told."""

    shards: str = Field(
        min_length=1,
        description="Shards in order: host:port of each replica, ',' between replicas, ';' between shards.",
    )
    hedge_ms: int = Field(
        0, ge=0, description="Time without an answer after which another replica is asked too; 0: never."
    )
    look_s: float = Field(1, gt=0, le=60, description="Time between looks at the version that each replica serves.")
    max_workers: int = Field(64, ge=1, le=1024, description="Calls handled at the same time; they wait for shards.")

    @field_validator("shards")
    @classmethod
    def _shards_are_addresses(cls, value: str) -> str:
        parse_shards(value)
        return value


def parse_shards(text: str) -> tuple[tuple[str, ...], ...]:
    """Addresses of the replicas of each shard; ValueError for what is not "host:port,host:port;host:port"."""
    shards = tuple(tuple(address.strip() for address in shard.split(",")) for shard in text.strip().split(";"))
    seen: dict[str, int] = {}
    for number, shard in enumerate(shards):
        for address in shard:
            if _ADDRESS.fullmatch(address) is None:
                raise ValueError(
                    f"shard {number}: {address[:200]!r} should be host:port; write host:port,host:port;host:port, "
                    "',' between the replicas of a shard, ';' between shards"
                )
            if address in seen:
                raise ValueError(f"shard {number}: {address!r} is of shard {seen[address]} already")
            seen[address] = number
    return shards
