"""How commands speak: one JSON object or lines for people on stdout, logs on stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

from spoor.base.terminal import log_handler


class ReaderGone(Exception):
    """Whoever read our stdout has closed it, as `head` does."""


def emit(result: Any, *, as_json: bool, text: str) -> None:
    """Prints `result` (a dataclass, dict or list) as the one JSON object of the command, or `text` for people. The JSON
    is ASCII, other characters escaped: it is the same in every locale. Raises ReaderGone."""
    try:
        sys.stdout.write((json.dumps(to_json(result)) if as_json else text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def set_up_streams() -> None:
    """A character that the terminal's encoding lacks is written as an escape, and never ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """A line for the person at the terminal, on stderr: what a command is about to do."""
    print(line, file=sys.stderr, flush=True)


def to_json(value: Any) -> Any:
    """`value` in JSON's types: dataclasses become objects, paths and other values text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if tolist := getattr(value, "tolist", None):  # NumPy's arrays and scalars
        return to_json(tolist())
    return str(value)


def set_up_logging(*, verbose: bool) -> None:
    """Our rooms from INFO and libraries from ERROR (`verbose`: DEBUG and INFO), one line each, to stderr."""
    logging.captureWarnings(True)  # libraries' deprecations are for their developers
    root = logging.getLogger()
    root.addHandler(log_handler())
    root.setLevel(logging.INFO if verbose else logging.ERROR)
    # Each failed connection is an error to kafka-python, each failed work item one to Beam; what it means for the
    # command is in the command's error.
    for library in ("kafka", "apache_beam"):
        logging.getLogger(library).setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger("spoor").setLevel(logging.DEBUG if verbose else logging.INFO)
