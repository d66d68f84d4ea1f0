"""A market's recorded events as the `UserEvent` messages that carry them: history is replayed, never loaded."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitrine.api.events.v1.events_pb2 import AdClick, AdImpression, CrowdChange, ItemAction, UserEvent

_ACTIONS = {"view": ItemAction.ACTION_VIEW, "purchase": ItemAction.ACTION_PURCHASE}
_CHANGES = {"join": CrowdChange.CHANGE_JOIN, "leave": CrowdChange.CHANGE_LEAVE}


def user_event(kind: str, user_id: int, time_ms: int, item_id: int, crowd_id: int, ad_id: int) -> UserEvent:
    """One row of events.parquet as a message; ids that the kind does not use are ignored.

    Raises ValueError where the kind is none of view, purchase, join, leave, impression and click.
    """
    event = UserEvent(user_id=user_id, time_ms=time_ms)
    if kind in _ACTIONS:
        event.item.CopyFrom(ItemAction(item_id=item_id, action=_ACTIONS[kind]))
    elif kind in _CHANGES:
        event.crowd.CopyFrom(CrowdChange(crowd_id=crowd_id, change=_CHANGES[kind]))
    elif kind == "impression":
        event.impression.CopyFrom(AdImpression(ad_id=ad_id))
    elif kind == "click":
        event.click.CopyFrom(AdClick(ad_id=ad_id))
    else:
        raise ValueError(f"kind {kind!r} is none of view, purchase, join, leave, impression, click")
    return event


def user_events(file: Path, *, rows_per_run: int = 4_096) -> Iterator[UserEvent]:
    """All events of events.parquet or holdout.parquet, each user's in their order, a user's together.

    A user's events follow each other so that a worker, which merges a batch by user, computes a list once. The
    order of users is that of their first row. Reads the file once; holds its rows in memory (about 60 B a row).
    """
    table = pq.read_table(file).combine_chunks()
    if table.num_rows == 0:
        return
    users = table["user_id"].to_numpy()
    _, first, inverse = np.unique(users, return_index=True, return_inverse=True)
    order = np.argsort(first[inverse], kind="stable")
    for start in range(0, table.num_rows, rows_per_run):
        rows = table.take(pa.array(order[start : start + rows_per_run]))
        columns = [rows["kind"].to_pylist(), rows["user_id"].to_pylist(), rows["time_ms"].to_pylist()]
        columns += [pc.fill_null(rows[name], 0).to_pylist() for name in ("item_id", "crowd_id", "ad_id")]
        for row in zip(*columns, strict=True):
            yield user_event(*row)
