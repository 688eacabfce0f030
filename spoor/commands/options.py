"""Options that mean the same in every command, and the types of options' values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from spoor.base.errors import UsageError
from spoor.base.handed_in import refuse_url
from spoor.base.times import parse_duration_ms, parse_time_ms
from spoor.commands.invocation import Invocation


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


EXISTING = LocalPath(exists=True)  # a file, or a folder of them
TIME = _Parsed("time", parse_time_ms)  # ISO 8601 with a zone → ms since 1970 UTC
POSITIVE = _Number(min=1e-6, max=1e12)
NOT_NEGATIVE = _Number(min=0, max=1e12)
COUNT = click.IntRange(min=0, max=2**63 - 1)
SEED = COUNT  # PyTorch and NumPy take no other
DURATION = _Parsed("duration", parse_duration_ms)  # a number and s, m, h or d → ms


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Invocation).as_json |= value


json = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_json,
    help="Print one JSON object on stdout.",
)
dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, change nothing.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")


def runner(command: Callable[..., Any]) -> Callable[..., Any]:
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


positive = click.option(
    "--positive", multiple=True, metavar="ACTION", help="A positive action; may be repeated. Default: all actions."
)
release = click.option(
    "--release", "releases", multiple=True, metavar="NAME", help="A release; may be repeated. Default: all live ones."
)
