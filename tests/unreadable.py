"""Stored histories that cannot be read, as somebody else may leave them who writes the view."""

from __future__ import annotations

from collections.abc import Mapping

from spoor.feature_repo.names import USER_HISTORY
from spoor.store.guarded import protobytes
from spoor.store.guarded.guard import ViewRow
from spoor.store.online import OnlineStore

UNREADABLE: dict[str, dict[str, bytes]] = {
    "no history": {"history": protobytes.bytes_value(b"not a packed history")},
    "no bytes": {"history": protobytes.bytes_value(b"")},
    "a later version": {"history": protobytes.bytes_value(b"SPH\x09" + bytes(20))},
    "no value of Feast's": {"history": b"\xff\xff\xff"},
    "another kind of value": {"history": protobytes.int_value(7)},
    "no revision": {"revision": b"\xff\xff\xff"},
}


def plant(online: OnlineStore, user: str, values: Mapping[str, bytes], *, time_ms: int) -> None:
    """Writes these features of the user's history row past the guard."""
    row = ViewRow(online._view(USER_HISTORY), dict(values), time_ms, time_ms)
    online._guard.put(online.feast.config, [(online._keys([user])[0], row)])
