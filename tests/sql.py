"""The independent judge: histories as an SQL query over the produced events gives them, without any of our merging."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from spoor.activity.events import Event
from spoor.activity.hashing import hash_item, hash_name


def newest_by_sql(events: Sequence[Event], max_events: int, *, before: int | None = None) -> dict[str, list[tuple]]:
    """Every user's newest distinct events by (timestamp, item hash, action hash, surface hash), oldest first.
    `before`: in ms, events from then on do not count."""
    rows = [(e.user_id, e.timestamp, hash_item(e.item_id), hash_name(e.action), hash_name(e.surface)) for e in events]
    names = ["user_id", "timestamp", "item", "action", "surface"]
    types = [pa.string(), pa.int64(), pa.uint64(), pa.uint64(), pa.uint64()]
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    table = pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=names)
    query = f"""
        select user_id, timestamp, item, action, surface
        from (select distinct * from events where $before is null or timestamp < $before)
        qualify row_number() over (
            partition by user_id order by timestamp desc, item desc, action desc, surface desc) <= {max_events}
        order by user_id, timestamp, item, action, surface"""
    with duckdb.connect() as connection:
        connection.register("events", table)
        found: dict[str, list[tuple]] = {}
        for user, *event in connection.execute(query, {"before": before}).fetchall():
            found.setdefault(user, []).append(tuple(event))
    return found
