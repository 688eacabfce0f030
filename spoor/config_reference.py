"""Generates docs/configuration.md from the dataclasses of the sections.

    python -m spoor.config_reference --write     after a change of a setting
    python -m spoor.config_reference --check     exit code 1 if the page is stale (a test checks it too)

A setting's description is the comment beside its field, next to its type and default.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import tokenize
from dataclasses import fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

from spoor.base.configuration import TopSettings
from spoor.config import SECTIONS

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m spoor.config_reference --write`: change the sections' dataclasses, not this page. -->

Every setting has a default; a file holds what differs. A value is taken from the last of these that has it:

1. the default below;
2. the settings file (TOML): `--config FILE`, else `SPOOR_CONFIG`, else `spoor.toml` in the working folder;
3. the environment: `SPOOR_<SECTION>__<KEY>`, for example `SPOOR_KAFKA__PORT=9092` or
   `SPOOR_EVENTS__FIELDS__USER_ID=userId`; outside sections `SPOOR_<KEY>`; lists are separated by commas;
4. the command line: `--set kafka.port=9092`, before the command's name.

An unknown key is an error that names the nearest known one; the variables that Kubernetes sets for a service called
`spoor` or `spoor-…` are no settings, nor are others without `__` that resemble none (`SPOOR_HOME`, `SPOOR_VERSION`).
The file is UTF-8. A path is a local one: URLs are refused. Relative paths in the file are relative to it, all others
to the working folder; `{state_folder}` in a path stands for the state folder. `spoor config show` prints every value
and where it came from, secrets hidden.

A secret is not taken from the command line, which others can see. It may lie in a file of its own, as container
engines mount it: `sasl_password_file = "/run/secrets/kafka-password"`, or `SPOOR_KAFKA__SASL_PASSWORD_FILE`.

    # spoor.toml
    state_folder = "/var/lib/spoor"

    [kafka]
    bootstrap_servers = "kafka-1:9092,kafka-2:9092"
    security_protocol = "SASL_SSL"
    sasl_mechanism = "SCRAM-SHA-512"
    sasl_username = "spoor"        # the password: SPOOR_KAFKA__SASL_PASSWORD, or in a file

    [events]
    actions = ["view", "click", "save"]
"""


def page() -> str:
    """The expected page."""
    parts = [_INTRODUCTION, _section("", TopSettings)]
    parts += [_section(name, cls) for name, cls in SECTIONS.items()]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        from spoor.base.files import atomic_write

        atomic_write(PAGE, page().encode())
        return 0
    if arguments == ["--check"]:
        current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if current == page():
            return 0
        print(f"error: {PAGE} is stale\nhint: python -m spoor.config_reference --write", file=sys.stderr)
        return 1
    print("usage: python -m spoor.config_reference --write | --check", file=sys.stderr)
    return 2


def _section(name: str, cls: type) -> str:
    hints, meanings, within = get_type_hints(cls), comments(cls), []
    lines = [f"## [{name}]" if name else "## Outside sections", ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for known in fields(cls):
        if is_dataclass(hints[known.name]):
            within.append(_section(f"{name}.{known.name}", hints[known.name]))  # pyright: ignore[reportArgumentType]
            continue
        default = known.default_factory() if callable(known.default_factory) else known.default
        secret = "secret, never shown. " if known.metadata.get("secret") else ""
        meaning = (secret + meanings.get(known.name, "")).strip()
        lines.append(f"| `{known.name}` | {_type(hints[known.name])} | {_default(default)} | {_sentence(meaning)} |")
    return "\n".join([*lines, "", *within])


def comments(cls: type) -> dict[str, str]:
    """Field → the comment beside it (on the last line of its declaration)."""
    source = textwrap.dedent(inspect.getsource(cls))
    by_line = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
            found[statement.target.id] = " ".join(by_line[line] for line in lines if line in by_line)
    return found


def _type(hint: object) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(f'`"{choice}"`' for choice in get_args(hint))
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return " or ".join(_type(option) for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is tuple:
        return "list of strings"
    names = {str: "string", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return names.get(hint, str(hint)) if isinstance(hint, type) else str(hint)


def _default(value: object) -> str:
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{part}"' for part in value) + "]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str | Path) else f"`{value}`"


def _sentence(text: str) -> str:
    return (text[:1].upper() + text[1:]).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
