"""Writes to Feast's online stores that happen only if the user's revision is still the one that was read.

guard: the interface · redis_guard, sqlite_guard: in one step · fallback: any other store, not atomic · protobytes:
Feast's keys and values as bytes · redis_settings: servers that may lose rows.
"""
