"""Output on stderr while a command works: a progress bar, and log records as lines.

Rich is imported only when a bar is shown: commands without a terminal need not wait for the import.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def progress_bar(
    label: str, *, total: int | None, done: int = 0, unit: str = "", quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """Yields `update(advance=…, completed=…, total=…, description=…)`, each optional, as in Rich's Progress.

    The bar is on stderr and shows the count, the time left and, with a `unit`, the rate. `total` None: the end is
    unknown. Nothing is shown if stderr is not a terminal or `quiet` is set.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda **changes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    label_column = TextColumn("{task.description}")
    rate = [_rate_column(unit)] if unit else []
    columns = (label_column, BarColumn(), MofNCompleteColumn(), *rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield partial(bar.update, bar.add_task(label, total=total, completed=done))


def _rate_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    return RateColumn()


def log_handler() -> logging.Handler:
    """A handler that writes records to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    return handler


class _OneLine(logging.Formatter):
    """One line per record, errors of libraries included. If the root logger is at INFO or below (`--verbose`), records
    keep their line breaks and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if _verbose() else text.replace("\n", " ")

    def formatException(self, ei: Any) -> str:
        if _verbose():
            return super().formatException(ei)
        return f"{ei[0].__name__}: {' '.join(str(ei[1]).split())}" if ei and ei[0] else ""


def _verbose() -> bool:
    return logging.getLogger().level <= logging.INFO
