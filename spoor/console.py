"""Output of the commands: one JSON object or text on stdout, logs and progress on stderr."""

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
    """The reader of stdout has closed it, for example `head`."""


def emit(result: Any, *, as_json: bool, text: str) -> None:
    """Prints `result` (a dataclass, dict or list) as the command's only JSON value, or else `text`. The JSON is ASCII
    with other characters escaped, so it is the same in every locale. Raises ReaderGone."""
    try:
        sys.stdout.write((json.dumps(to_json(result)) if as_json else text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def set_up_streams() -> None:
    """Makes stdout and stderr escape characters that the terminal's encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Prints a line on stderr, such as the next step of a command."""
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
    """Logs to stderr, one line per record: Spoor from INFO, libraries from ERROR (`verbose`: DEBUG and INFO)."""
    logging.captureWarnings(True)  # hides deprecation warnings of libraries
    root = logging.getLogger()
    root.addHandler(log_handler())
    root.setLevel(logging.INFO if verbose else logging.ERROR)
    # kafka-python logs every failed connection as an error, and Beam every failed work item; the command's own error
    # is enough.
    for library in ("kafka", "apache_beam"):
        logging.getLogger(library).setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger("spoor").setLevel(logging.DEBUG if verbose else logging.INFO)
