"""What a person sees of a training run: a bar on the terminal, and the curve at its end."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

_SMOOTHING = 0.98  # of the shown loss


class TrainingProgress:
    """A bar on stderr with tokens a second, loss and time left; silent when stderr is not a terminal."""

    def __init__(self, tokens: int, *, done: int) -> None:
        self._progress = Progress(
            TextColumn("pretraining"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]} events/s"),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task: TaskID = self._progress.add_task("", total=tokens, completed=done, rate="-", loss="-")
        self._loss: float | None = None

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, tokens: int, *, loss: float) -> None:
        self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        speed = self._progress.tasks[0].speed
        rate = f"{speed:,.0f}" if speed else "-"
        self._progress.update(self._task, advance=tokens, rate=rate, loss=f"{self._loss:.3f}")


def draw_curve(losses: Sequence[float], evaluations: Sequence[dict[str, float]], *, title: str) -> bytes:
    """A PNG: loss by step, and Recall@10 on the held-out events beside popularity's."""
    from matplotlib.figure import Figure  # half a second to import, needed once a run

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.plot(losses, color="0.8", linewidth=0.5)
    window = max(len(losses) // 100, 1)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(len(smooth)) + window - 1, smooth, color="tab:blue", label="loss")
    right = axes.twinx()
    right.set(ylabel="Recall@10, held-out events")
    steps = [found["step"] for found in evaluations]
    right.plot(steps, [found["recall_at_10"] for found in evaluations], "o-", color="tab:orange", label="Recall@10")
    popular = [found["popularity_recall_at_10"] for found in evaluations]
    right.plot(steps, popular, ":", color="tab:gray", label="Recall@10 of popularity")
    right.set_ylim(0, None)  # after the lines are drawn: before, it would pin the top at 1
    figure.legend(loc="outside lower center", ncols=3)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
