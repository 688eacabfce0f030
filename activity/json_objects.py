"""One JSON object from bytes: the one decoder, of records in Kafka and of lines in files. And names with dots, which
lead into the objects of a record, in JSON or Avro.

The same bytes get the same verdict wherever they are read: nesting is limited to MAX_DEPTH before anything is parsed,
so that no process's stack decides it. NaN and Infinity are not JSON. Integers are exact. Of names that come twice in an
object, the last value counts, unless it is an event's field: `Repeated` tells.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from spoor.activity.fields import brief
from spoor.base.errors import EventError

MAX_DEPTH = 100  # objects and arrays within each other, the outermost included
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
_SPACE = " \t\r\n"


class Repeated(dict[str, Any]):
    """An object with names that came twice."""

    names: frozenset[str]


def parse_object(value: bytes) -> dict[str, Any]:
    """Raises EventError (`not-json`)."""
    if len(value) > 2 * MAX_DEPTH and value.count(b"{") + value.count(b"[") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise _refused(f"objects or arrays more than {MAX_DEPTH} deep", f"at most {MAX_DEPTH}")
    try:
        text = value.decode().lstrip(_SPACE)
        found, end = _DECODER.raw_decode(text)
        if end < len(text) and (rest := text[end:].strip(_SPACE)):
            raise ValueError(f"Extra data: {rest}")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise _refused(brief(error), "JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise _refused(f"a JSON {type(found).__name__}", "a JSON object")
    return found


def found_at(fields: dict[str, Any], source: str) -> Any:
    """What the object has under this name; else, where the name has dots, under its parts within each other."""
    value = _value(fields, source)
    if value is None and "." in source:
        value = fields
        for part in source.split("."):
            if not isinstance(value, dict):
                return None
            value = _value(value, part)
    return value


def _value(fields: dict[str, Any], name: str) -> Any:
    if type(fields) is Repeated and name in fields.names:
        raise EventError(reason="repeated-field", field=name, found="it more than once", expected="it once")
    return fields.get(name)


def nested_values(fields: Mapping[str, Any], sources: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The values of `fields` where each (field, name with dots) of `sources` puts them."""
    nested: dict[str, Any] = {}
    for name, source in sources:
        inside = nested
        *outer, last = source.split(".")
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = fields[name]
    return nested


def depth(value: bytes) -> int:
    """How deep brackets outside strings lie within each other."""
    at = deepest = 0
    for bracket in _BRACKETS.findall(_STRING.sub(b"", value)):
        at += 1 if bracket in b"[{" else -1
        deepest = max(deepest, at)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = Repeated(found)
    repeated.names = frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeated


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)


def _refused(found: str, expected: str) -> EventError:
    return EventError(reason="not-json", field="value", found=found, expected=expected)
