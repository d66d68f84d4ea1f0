"""A market folder's tables: which files, which columns, of which types, and what each means (docs/data.md).

Ids are uint64 and never 0. A file may hold a wider or narrower type of the same family (pandas writes int64 ids,
float64 bids, dictionary strings): `accepts` says which, and `vitrine.data.market` casts on reading.
"""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

EVENT_KINDS: dict[str, str] = {
    "view": "item_id",
    "purchase": "item_id",
    "join": "crowd_id",
    "leave": "crowd_id",
    "impression": "ad_id",
    "click": "ad_id",
}
"""Kind of an event -> the id column that it cannot be without."""

SPLITS = ("train", "validation", "test")

MIN_TIME_MS, MAX_TIME_MS = 10**11, 4_102_444_800_000
"""1973 to 2100: what lies outside is seconds, micro- or nanoseconds taken for milliseconds."""


class DataError(ValueError):
    """A market folder is wrong; `problems` says each time which file, row and column, and what would be right."""

    def __init__(self, problems: list[str], *, more: bool = False) -> None:
        lines = problems + ["... and more; these are the first"] * more
        super().__init__("\n".join(lines))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `nullable` columns may hold nulls; `doc` is the sentence of docs/data.md.

    optional: the file may lack the column, which then is null in every row
    bounds:   of a number that is no id, both included; null and 0 say that there is none
    """

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False
    optional: bool = False
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One file of a market: `key` columns together are unique over the file; empty means no such promise."""

    name: str
    columns: tuple[Column, ...]
    doc: str
    key: tuple[str, ...] = ()
    optional: bool = False

    @property
    def file(self) -> str:
        """File name inside the market folder."""
        return f"{self.name}.parquet"

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, columns in the order they are written."""
        return self.schema_of([c.name for c in self.columns])

    def schema_of(self, names: Collection[str]) -> pa.Schema:
        """Arrow schema of those columns that are named, in the order they are written."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns if c.name in names])


def _bound(name: str, type: pa.DataType, doc: str, low: float, high: float) -> Column:
    return Column(name, type, doc, nullable=True, optional=True, bounds=(low, high))


_EVENT_COLUMNS = (
    Column("user_id", pa.uint64(), "who"),
    Column("time_ms", pa.int64(), "when, milliseconds since 1970 UTC; never decreasing within a user"),
    Column("kind", pa.string(), "one of " + ", ".join(EVENT_KINDS)),
    Column("item_id", pa.uint64(), "the item of a view or purchase", nullable=True),
    Column("crowd_id", pa.uint64(), "the crowd joined or left", nullable=True),
    Column("ad_id", pa.uint64(), "the ad shown or clicked", nullable=True),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table("users", (Column("user_id", pa.uint64(), "the user"),), "who may see ads", key=("user_id",)),
        Table(
            "crowds",
            (Column("crowd_id", pa.uint64(), "the crowd"), Column("name", pa.string(), "name for people")),
            "groups of users that advertisers bid on",
            key=("crowd_id",),
        ),
        Table(
            "items",
            (
                Column("item_id", pa.uint64(), "the item"),
                Column("crowd_ids", pa.list_(pa.uint64()), "crowds that an interest in the item speaks for"),
                Column("title", pa.string(), "title for people"),
            ),
            "what users look at and buy",
            key=("item_id",),
        ),
        Table(
            "ads",
            (
                Column("ad_id", pa.uint64(), "the ad"),
                Column("advertiser_id", pa.uint64(), "who pays"),
                Column("item_id", pa.uint64(), "the item advertised; null for an ad of none", nullable=True),
                Column("title", pa.string(), "title for people"),
                _bound(
                    "placement_groups",
                    pa.uint8(),
                    "placement groups it may stand in, bit 0 the first; none: all",
                    1,
                    15,
                ),
                _bound(
                    "max_impressions",
                    pa.uint32(),
                    "impressions to one user before it rests for the user",
                    1,
                    2**32 - 1,
                ),
                _bound(
                    "start_ms",
                    pa.int64(),
                    "shown from then on, milliseconds since 1970 UTC",
                    MIN_TIME_MS,
                    MAX_TIME_MS,
                ),
                _bound(
                    "end_ms", pa.int64(), "shown until then, milliseconds since 1970 UTC", MIN_TIME_MS, MAX_TIME_MS
                ),
                _bound(
                    "daily_budget", pa.float64(), "spend a UTC day after which it rests, currency units", 1e-6, 1e12
                ),
            ),
            "what is shown",
            key=("ad_id",),
        ),
        Table(
            "bids",
            (
                Column("crowd_id", pa.uint64(), "the crowd bid on"),
                Column("ad_id", pa.uint64(), "the bidding ad"),
                Column("bid", pa.float32(), "currency units a click, finite, > 0"),
            ),
            "what an ad pays for a click of a crowd's member",
            key=("crowd_id", "ad_id"),
        ),
        Table(
            "negatives",
            (
                Column("ad_id", pa.uint64(), "the ad"),
                Column("crowd_id", pa.uint64(), "the crowd whose members never see it"),
            ),
            "crowds that an ad keeps away from",
            key=("ad_id", "crowd_id"),
            optional=True,
        ),
        Table("events", _EVENT_COLUMNS, "what users did, in each user's order of time"),
        Table(
            "holdout",
            _EVENT_COLUMNS,
            "each user's last click or purchase, absent from events: what a model is judged by",
            key=("user_id",),
            optional=True,
        ),
        Table(
            "images",
            (
                Column("item_id", pa.uint64(), "the item pictured; need not be in items"),
                Column("split", pa.string(), "one of " + ", ".join(SPLITS)),
                Column("category", pa.string(), "label that the encoder learns"),
                Column("image", pa.binary(), "JPEG or PNG, as read from its file"),
            ),
            "product pictures",
            key=("item_id",),
            optional=True,
        ),
    )
}


def accepts(wanted: pa.DataType, found: pa.DataType) -> bool:
    """Whether a column of type `found` can be read as `wanted` (values are checked by the validator)."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return is_list and accepts(wanted.value_type, found.value_type)
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(found))
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))
