"""What every command shares: the settings of this call, and the options that mean the same everywhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spoor.base.errors import Declined, UsageError
from spoor.base.handed_in import refuse_url
from spoor.base.times import parse_duration_ms, parse_time_ms
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


class _Parsed(click.ParamType):
    """Text → int, by a function that raises UsageError; a number is taken as it is."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(f"{error.message} ({error.hint})", param, ctx)


class _Number(click.FloatRange):
    """A range that NaN, which is below and above nothing, lies outside of."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is no number", param, ctx)
        return number


class LocalPath(click.Path):
    """A file or folder of this machine; a URL is refused."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        refuse_url(str(value), param.get_error_hint(ctx) if param and ctx else "path")
        return super().convert(value, param, ctx)


def release_folder(text: str, releases: Path) -> Path:
    """A path as it stands, or a bare name in the folder of releases. Raises UsageError for a URL."""
    refuse_url(text, "release")
    return Path(text) if "/" in text else releases / text


EXISTING = LocalPath(exists=True)  # a file, or a folder of them
TIME = _Parsed("time", parse_time_ms)  # ISO 8601 with a zone → ms since 1970 UTC
POSITIVE = _Number(min=1e-6, max=1e12)
NOT_NEGATIVE = _Number(min=0, max=1e12)
COUNT = click.IntRange(min=0, max=2**63 - 1)
SEED = COUNT  # PyTorch and NumPy take no other
DURATION = _Parsed("duration", parse_duration_ms)  # a number and s, m, h or d → ms


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Invocation).as_json |= value


json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_json,
    help="Print one JSON object on stdout.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, change nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def confirm(question: str) -> None:
    """For before anything is changed. Raises UsageError where nobody can answer, Declined where the answer is no."""
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody is there to confirm: stdin is no terminal", hint="look with --dry-run, then give --yes"
        )
    if not click.confirm(question, err=True):
        raise Declined("nothing was changed: the answer was no", hint="--dry-run shows what it would do")


def with_runner(command: Callable[..., Any]) -> Callable[..., Any]:
    """Who runs the job: the arguments `runner` and `runner_options` of the command."""
    options = click.option(
        "--runner-option",
        "runner_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of Beam's for the runner; may be repeated.",
    )
    name = click.option(
        "--runner",
        default="local",
        show_default=True,
        metavar="NAME",
        help="Who runs the job: local, flink (settings in [flink]), or another runner by Beam's name.",
    )
    return name(options(command))


positive_option = click.option(
    "--positive", multiple=True, metavar="ACTION", help="A positive action; may be repeated. Default: all actions."
)
release_option = click.option(
    "--release", "releases", multiple=True, metavar="NAME", help="A release; may be repeated. Default: all live ones."
)


def time_text(time_ms: int | None) -> str:
    """UTC to the second, for people."""
    if time_ms is None:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
