"""What every command is given: the settings of this call, its output, and the question before a change."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spoor.base.errors import Declined, UsageError
from spoor.base.handed_in import refuse_url
from spoor.console import emit

if TYPE_CHECKING:
    from spoor.config import Settings


@dataclass
class Invocation:
    """The options before the command's name, and what the error handler needs to know afterwards."""

    config: Path | None = None
    flags: dict[str, object] = field(default_factory=dict)
    as_json: bool = False
    loaded: Settings | None = None

    def settings(self) -> Settings:
        """The settings in force, read at the first call; from then on the kernels follow them. Raises UsageError."""
        if self.loaded is None:
            from spoor.config import load_settings
            from spoor.kernels.backend import force

            self.loaded = load_settings(file=self.config, flags=self.flags)
            force(self.loaded.kernels.backend)
        return self.loaded

    def emit(self, result: Any, text: str) -> None:
        """Prints the result: JSON if `--json` was given, else `text`."""
        emit(result, as_json=self.as_json, text=text)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def release_folder(text: str, releases: Path) -> Path:
    """A path as it stands, or a bare name in the folder of releases. Raises UsageError for a URL."""
    refuse_url(text, "release")
    return Path(text) if "/" in text else releases / text


def confirm(question: str) -> None:
    """Asks before a change. Raises UsageError where stdin is no terminal, Declined where the answer is no."""
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody is there to confirm: stdin is no terminal", hint="look with --dry-run, then give --yes"
        )
    if not click.confirm(question, err=True):
        raise Declined("nothing was changed: the answer was no", hint="--dry-run shows what it would do")


def time_text(time_ms: int | None) -> str:
    """UTC to the second, for people."""
    if time_ms is None:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
