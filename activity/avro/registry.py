"""Avro schemas by id, from a schema registry with Confluent's HTTP interface (also Apicurio, Karapace, Redpanda).

The schema of an id never changes, so each is requested once. A bad schema is the record's fault: EventError. A registry
that is down or gives an invalid answer is a server failure, InfrastructureError: no event may be refused for it.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from spoor.activity.json_objects import MAX_DEPTH, depth
from spoor.base.errors import EventError, InfrastructureError
from spoor.base.numbers import number_text

MAX_SCHEMAS = 1_000  # cached at once
MAX_ANSWER_BYTES = 1 << 20
ANSWER_SECONDS = 10.0
REFUSED_SECONDS = 60.0  # before a refused schema is requested again
_SCHEMA_NOT_FOUND = 40403
_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"


class SchemaRegistry:
    def __init__(self, url: str, *, user: str = "", password: str = "", answer_seconds: float = ANSWER_SECONDS) -> None:
        self._url = url.rstrip("/")
        self._answer_seconds = answer_seconds
        self._headers = {"Accept": _MEDIA_TYPE, "Content-Type": _MEDIA_TYPE}
        if user:
            self._headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._schemas: dict[int, dict[str, Any]] = {}
        self._refused: dict[int, tuple[float, EventError]] = {}  # id → time of the refusal, and its error

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The parsed Avro schema. Raises EventError if the registry has no such id or its schema is not an Avro record,
        InfrastructureError if the registry does not answer or its answer is invalid."""
        if schema_id in self._schemas:
            return self._schemas[schema_id]
        when, why = self._refused.get(schema_id, (0.0, None))
        if why is not None and time.monotonic() - when < REFUSED_SECONDS:
            raise why.with_traceback(None)  # a kept traceback would grow with every record
        try:
            schema = _parsed(schema_id, self._asked_for(schema_id))
        except EventError as error:
            _make_room(self._refused)
            self._refused[schema_id] = time.monotonic(), error
            raise
        _make_room(self._schemas)
        self._schemas[schema_id] = schema
        return schema

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        """Returns the id of `schema` under `subject`, and adds the schema if it is missing. Raises
        InfrastructureError."""
        content = json.dumps({"schema": json.dumps(schema)}).encode()
        answer = self._ask(f"/subjects/{subject}/versions", content)
        if not isinstance(answer.get("id"), int):
            raise self._failed(str(answer))
        return answer["id"]

    def _asked_for(self, schema_id: int) -> dict[str, Any]:
        answer = self._ask(f"/schemas/ids/{schema_id}")
        if answer.get("error_code") == _SCHEMA_NOT_FOUND:
            raise EventError(
                reason="unknown-schema",
                field="value",
                found=f"schema {schema_id}",
                expected="one that the registry has",
            )
        if not isinstance(answer.get("schema"), str):
            raise self._failed(str(answer))
        return answer

    def _ask(self, path: str, content: bytes | None = None) -> dict[str, Any]:
        """`_answer`, limited to `answer_seconds` in all. urllib limits each read only: slow name resolution, or a
        server that sends single bytes, would block the caller. The thread may outlive the call; as a daemon, it does
        not keep the process alive."""
        answer: Future[dict[str, Any]] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._answer(path, content))
            except BaseException as error:  # raised again in the caller
                answer.set_exception(error)

        threading.Thread(target=ask, name="schema-registry", daemon=True).start()
        try:
            return answer.result(self._answer_seconds)
        except TimeoutError:
            raise self._failed(f"no whole answer within {number_text(self._answer_seconds)} s") from None

    def _answer(self, path: str, content: bytes | None) -> dict[str, Any]:
        """The answer's JSON object, also of a 404: only the registry's own 404 has its error code, a proxy's or a wrong
        path's has not."""
        request = urllib.request.Request(self._url + path, data=content, headers=self._headers)
        try:
            try:
                with self._opener.open(request, timeout=self._answer_seconds) as response:
                    body = self._body(response)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 404:
                        raise self._failed(f"HTTP {error.code}") from None
                    body = self._body(error.fp)
            answer = json.loads(body)
        except InfrastructureError:
            raise
        except Exception as error:  # whatever the server sends: it is not an event's fault
            raise self._failed(str(error) or type(error).__name__) from error
        if not isinstance(answer, dict):
            raise self._failed(f"a JSON {type(answer).__name__}")
        return answer

    def _body(self, response: Any) -> bytes:
        deadline = time.monotonic() + self._answer_seconds
        body = bytearray()
        while part := response.read1(65_536):
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                raise self._failed(f"more than {MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                raise self._failed(f"no end within {number_text(self._answer_seconds)} s")
        return bytes(body)

    def _failed(self, found: str) -> InfrastructureError:
        return InfrastructureError(
            f"the schema registry at {self._url} does not answer as one: {found[:200]}",
            hint="check events.schema_registry, its user and password, and the registry; no event was refused",
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirects: only the configured server may get the user's password."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


def _parsed(schema_id: int, answer: dict[str, Any]) -> dict[str, Any]:
    from fastavro import parse_schema

    kind = answer.get("schemaType", "AVRO")
    if kind != "AVRO":
        raise _mismatch(schema_id, f"of type {kind}")
    if depth(answer["schema"].encode(errors="replace")) > MAX_DEPTH:
        raise _mismatch(schema_id, f"nested more than {MAX_DEPTH} deep")
    try:
        schema: Any = parse_schema(json.loads(answer["schema"]))
    except Exception as error:  # for instance a reference to another schema's type
        raise _mismatch(schema_id, f"that cannot be parsed: {error}") from None
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise _mismatch(schema_id, "of no record")
    try:
        _least_bytes(schema, schema.get("__named_schemas", {}), {})
    except ValueError as error:
        raise _mismatch(schema_id, str(error)) from None
    return schema


def _least_bytes(schema: Any, named: Mapping[str, Any], known: dict[str, int | None]) -> int:
    """The minimum size of a value of a parsed schema, in bytes. `known`: minimum by named type, None while it is
    computed.

    Raises ValueError for a type that contains itself and for an array of zero-byte items. A field that is read and
    dropped may have either, and then a few bytes can claim any depth or any length.
    """
    if isinstance(schema, list):
        for branch in schema:
            _least_bytes(branch, named, known)
        return 1
    kind = schema["type"] if isinstance(schema, dict) else schema
    if not isinstance(kind, str):
        return _least_bytes(kind, named, known)
    if kind in ("record", "error"):
        known[schema["name"]] = None
        known[schema["name"]] = least = sum(_least_bytes(field["type"], named, known) for field in schema["fields"])
        return least
    if kind in known:
        if (least := known[kind]) is None:
            raise ValueError(f"whose type {kind} contains itself")
        return least
    if kind in named:
        return _least_bytes(named[kind], named, known)
    if kind == "array" and not _least_bytes(schema["items"], named, known):
        raise ValueError("with an array of items that take no byte")
    if kind == "map":
        _least_bytes(schema["values"], named, known)
    if kind == "fixed":
        return schema["size"]
    return 0 if kind == "null" else 1


def _mismatch(schema_id: int, found: str) -> EventError:
    return EventError(
        reason="schema-mismatch",
        field="value",
        found=f"schema {schema_id} {found}"[:200],
        expected="an Avro record, complete in itself",
    )


def _make_room(cache: dict[int, Any]) -> None:
    if len(cache) >= MAX_SCHEMAS:
        del cache[next(iter(cache))]
