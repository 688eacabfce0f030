"""Progress of a training run: a bar on the terminal, scalars in TensorBoard (and in MLflow, if a server is named),
and a loss curve at the end."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.terminal import progress_bar

_SMOOTHING = 0.98  # decay per step of the exponential average shown as loss
# MLflow's defaults wait four minutes for a server that refuses, longer for one that does not answer.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def training_progress(tokens: int, *, done: int, quiet: bool = False) -> Iterator[Callable[[int, float], None]]:
    """Yields advance(tokens, loss), which updates a bar on stderr (events/s, loss, time left) unless `quiet`."""
    smooth: float | None = None
    with progress_bar("pretraining", total=tokens, done=done, unit="events", quiet=quiet) as show:

        def advance(count: int, loss: float) -> None:
            nonlocal smooth
            smooth = loss if smooth is None else _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
            show(advance=count, description=f"pretraining, loss {smooth:.3f}")

        yield advance


class TrainingLog:
    """Scalars by step. `tensorboard --logdir` shows the folder during the run."""

    def __init__(self, writer: Any, tracker: MlflowRun | None) -> None:
        self._writer = writer
        self._tracker = tracker

    @classmethod
    @contextmanager
    def open(cls, folder: Path, mlflow_uri: str, *, run_name: str, quiet: bool = False) -> Iterator[TrainingLog]:
        """Logs to `folder` and, if `mlflow_uri` is not empty, to a run on that tracking server. `quiet`: logs nothing.
        Raises UsageError if MLflow is needed and not installed, InfrastructureError if the server does not answer."""
        if quiet:
            yield cls(None, None)
            return
        from torch.utils.tensorboard.writer import SummaryWriter  # slow import (1 s), needed once per run

        with ExitStack() as stack:
            tracker = stack.enter_context(MlflowRun.open(mlflow_uri, run_name=run_name)) if mlflow_uri else None
            yield cls(stack.enter_context(SummaryWriter(str(folder))), tracker)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.scalars(step, values)


class MlflowRun:
    """One run on an MLflow tracking server. If the server fails during training, later scalars are dropped."""

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow
        self._lost = False

    @classmethod
    @contextmanager
    def open(cls, uri: str, *, run_name: str) -> Iterator[MlflowRun]:
        """Ends the run as FINISHED or FAILED. Raises UsageError, InfrastructureError."""
        for name, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow  # type: ignore[import-not-found]  # not a dependency of Spoor
        except ImportError:
            raise UsageError(
                "pretrain.mlflow_uri is set, but MLflow is not installed",
                hint="pip install mlflow-skinny, or leave pretrain.mlflow_uri empty",
            ) from None
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.start_run(run_name=run_name)
        except mlflow.exceptions.MlflowException as error:
            raise InfrastructureError(
                f"no MLflow tracking server takes runs at {uri}: {error}",
                hint="start it, or correct or empty pretrain.mlflow_uri",
            ) from None
        run, status = cls(mlflow), "FAILED"
        try:
            yield run
            status = "FINISHED"
        finally:
            with redirect_stdout(sys.stderr):  # MLflow prints when a run ends; stdout is for --json
                run._tell(
                    mlflow.end_run, status
                )  # also if the server is lost: otherwise the run stays active in this process

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if not self._lost:
            self._tell(self._mlflow.log_metrics, {name: float(value) for name, value in values.items()}, step=step)

    def _tell(self, action: Callable[..., object], *arguments: object, **options: object) -> None:
        try:
            action(*arguments, **options)
        except self._mlflow.exceptions.MlflowException as error:
            if self._lost:
                return
            self._lost = True
            print(f"MLflow is lost, training goes on without it: {error}", file=sys.stderr)


def draw_curve(losses: Sequence[float], evaluations: Sequence[dict[str, float]], *, title: str) -> bytes:
    """A PNG: loss by step, and Recall@10 of the model and of popularity on the validation events."""
    from matplotlib.figure import Figure  # slow import (0.5 s), needed once per run

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.plot(losses, color="0.8", linewidth=0.5)
    window = max(len(losses) // 100, 1)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(len(smooth)) + window - 1, smooth, color="tab:blue", label="loss")
    right = axes.twinx()
    right.set(ylabel="Recall@10, validation events")
    steps = [found["step"] for found in evaluations]
    right.plot(steps, [found["recall_at_10"] for found in evaluations], "o-", color="tab:orange", label="Recall@10")
    popular = [found["popularity_recall_at_10"] for found in evaluations]
    right.plot(steps, popular, ":", color="tab:gray", label="Recall@10 of popularity")
    right.set_ylim(0, None)  # after plotting: earlier, it would fix the top at 1
    figure.legend(loc="outside lower center", ncols=3)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
