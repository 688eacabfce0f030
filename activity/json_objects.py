"""Decodes one JSON object, of a Kafka record or a line of a file, and finds dotted names in nested objects of JSON or
Avro.

The same bytes get the same verdict everywhere: nesting is limited to MAX_DEPTH before parsing, so that the stack of a
process does not decide. NaN and Infinity are not JSON. Integers are exact. If an object has a name twice, the last
value counts, but a repeated event field is refused (`Repeated`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from spoor.activity.fields import brief
from spoor.base.errors import EventError

MAX_DEPTH = 100  # of nested objects and arrays, the outermost included
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
_SPACE = " \t\r\n"


class Repeated(dict[str, Any]):
    """An object in which `names` occurred more than once."""

    names: frozenset[str]


def parse_object(value: bytes) -> dict[str, Any]:
    """The JSON object in `value`. Raises EventError (`not-json`)."""
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
    """The object's value under this name; if there is none and the name has dots, the value at that path of nested
    objects. Raises EventError for a repeated name."""
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
    """The values of `fields` under the names of `sources`, pairs of (field, dotted name); dots make nested objects."""
    nested: dict[str, Any] = {}
    for name, source in sources:
        inside = nested
        *outer, last = source.split(".")
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = fields[name]
    return nested


def depth(value: bytes) -> int:
    """The nesting depth of brackets outside strings."""
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
