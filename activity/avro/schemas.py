"""Avro schemas of events: how to read a record of any schema, and the schema that Spoor writes.

Values are read as Avro's plain types; a logical type only gives the meaning of an integer. So a time of any unit
becomes ms by one division, rounded down, and a date is refused as an id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastavro import parse_schema
from fastavro.schema import expand_schema

from spoor.activity.settings import EventSettings
from spoor.base.errors import EventError

_KEPT = "decimal"  # the only logical type whose bytes are meaningless without it
_PER_MS = {"timestamp-millis": 1, "timestamp-micros": 1_000, "timestamp-nanos": 1_000_000}
_NO_NUMBERS = ("date", "time-", "timestamp-", "local-timestamp-")  # logical types whose integers are not numbers
_Schema = Any


@dataclass(frozen=True)
class ReadPlan:
    """How to read records of one schema. `writer` and `reader`: schemas for fastavro. `columns`: per event field its
    name, its place in the record, and the conversion of its value for activity/fields.py."""

    writer: _Schema
    reader: _Schema  # None: the whole record
    columns: tuple[tuple[str, str, Callable[[Any], Any]], ...]


def read_plan(schema: Mapping[str, Any], settings: EventSettings) -> ReadPlan:
    """The plan for records of `schema`, which must not contain itself. Raises EventError (`schema-mismatch`) if the
    schema lacks a field that has no default."""
    whole: Any = expand_schema(json.loads(json.dumps(schema, default=_no_cache)))
    roots: list[str] = []
    columns: list[tuple[str, str, Callable[[Any], Any]]] = []
    for name, source in settings.sources:
        path = [source] if _field(whole, source) else source.split(".")
        leaves = _leaves(whole, path)
        if not leaves and not getattr(settings.defaults, name, ""):
            found = f"a schema `{schema['name']}` without the field {source}"
            raise EventError(reason="schema-mismatch", field=name, found=found[:200], expected="a schema with it")
        if leaves:
            roots.append(path[0])
        columns.append((name, source, _conversion(name, leaves)))
    plain = _plain(whole)
    kept = [field for field in plain["fields"] if field["name"] in roots]
    reader = (
        None if len(kept) == len(plain["fields"]) else parse_schema(_defined_once({**plain, "fields": kept}, set()))
    )
    return ReadPlan(parse_schema(_defined_once(plain, set())), reader, tuple(columns))


def nested_schema(schema: Mapping[str, Any], sources: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """`schema` with its fields renamed by `sources`, pairs of (field, dotted name); dots make nested records."""
    types = {field["name"]: field for field in schema["fields"]}
    fields: list[dict[str, Any]] = []
    for name, source in sources:
        inside, at = fields, str(schema["name"])
        *outer, last = source.split(".")
        for part in outer:
            at += f"_{part}"
            found = next((field for field in inside if field["name"] == part), None)
            if found is None:
                found = {"name": part, "type": {"type": "record", "name": at, "fields": []}}
                inside.append(found)
            inside = found["type"]["fields"]
        inside.append({**types[name], "name": last})
    return {**schema, "fields": fields}


def _no_cache(value: object) -> None:
    """Writes null for the objects that fastavro caches in a parsed schema."""


def _field(record: _Schema, name: str) -> Any:
    return next((field for field in record["fields"] if field["name"] == name), None)


def _leaves(schema: _Schema, path: Sequence[str]) -> list[_Schema]:
    """The types, without null, of a value at the end of the path."""
    branches = [branch for branch in (schema if isinstance(schema, list) else [schema]) if branch != "null"]
    if not path:
        return branches
    found: list[_Schema] = []
    for branch in branches:
        if isinstance(branch, dict) and branch.get("type") == "record" and (field := _field(branch, path[0])):
            found += _leaves(field["type"], path[1:])
    return found


def _conversion(name: str, leaves: list[_Schema]) -> Callable[[Any], Any]:
    kinds = {_logical(leaf) for leaf in leaves}
    times = {kind for kind in kinds if kind.startswith(_NO_NUMBERS)}
    if not times:
        return _as_it_is
    if name != "timestamp" or len(kinds) > 1 or kinds - _PER_MS.keys():
        expected = "text or an integer" if name != "timestamp" else "a time with a zone, in one unit"
        return partial(
            _refuse, EventError(reason="bad-type", field=name, found=", ".join(sorted(kinds)), expected=expected)
        )
    return partial(_divide, _PER_MS[times.pop()])


def _logical(leaf: _Schema) -> str:
    """The logical type of an integer, else the plain type."""
    if not isinstance(leaf, dict):
        return str(leaf)
    plain = str(leaf.get("type"))
    return str(leaf.get("logicalType", plain)) if plain in ("int", "long") else plain


def _as_it_is(value: Any) -> Any:
    return value


def _divide(per_ms: int, value: Any) -> Any:
    return value // per_ms if isinstance(value, int) else value


def _refuse(error: EventError, value: Any) -> None:
    if value is not None:
        raise error.with_traceback(None)


def _plain(schema: _Schema) -> Any:
    """The schema without logical types, except `decimal`."""
    if isinstance(schema, list):
        return [_plain(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if not key.startswith("__")}
    if kept.get("logicalType") != _KEPT:
        kept.pop("logicalType", None)
    return _with_types(kept, _plain)


def _defined_once(schema: _Schema, known: set[str]) -> Any:
    """Replaces repeated definitions of a named type by its name: `expand_schema` repeats them."""
    if isinstance(schema, list):
        return [_defined_once(branch, known) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("record", "error", "enum", "fixed"):
        if schema["name"] in known:
            return schema["name"]
        known.add(schema["name"])
    return _with_types(schema, lambda inner: _defined_once(inner, known))


def _with_types(schema: Mapping[str, Any], change: Callable[[_Schema], _Schema]) -> dict[str, Any]:
    """A copy with `change` applied to every type directly within the schema."""
    kept = {key: change(value) if key in ("type", "items", "values") else value for key, value in schema.items()}
    if "fields" in kept:
        kept["fields"] = [{**field, "type": change(field["type"])} for field in kept["fields"]]
    return kept
