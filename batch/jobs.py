"""Runs the Beam pipelines of the batch jobs and carries errors across Beam.

Beam turns an exception in a DoFn into text. So a DoFn records a SpoorError in the job's folder before it raises it
(`Failures.recorded`), and `run_pipeline` raises the recorded error again in the driver.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection
from apache_beam.runners.runner import PipelineResult

from spoor.base.errors import DataError, InfrastructureError, SpoorError, UsageError
from spoor.base.files import atomic_write, writing

_FAILURE_FILE = "failure.json"
_ERRORS: dict[str, type[SpoorError]] = {
    cls.__name__: cls for cls in (DataError, InfrastructureError, SpoorError, UsageError)
}
_UNWRITTEN: dict[Path, SpoorError] = {}  # by job folder: errors that could not be recorded, e.g. on a full disk
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runner:
    """A Beam runner by Beam's name, and its Beam options (`--name=value`). A job that fails in the runner, for example
    with a machine, is retried up to `retries` times; finished work items are skipped."""

    name: str
    options: tuple[str, ...] = ()
    retries: int = 0


LOCAL = Runner("FnApiRunner")  # explicit, because Beam's default runner downloads a binary


@dataclass(frozen=True)
class Failures:
    """The error that stopped a DoFn, in the job's folder."""

    folder: Path

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records a SpoorError raised in the block, and re-raises it."""
        try:
            yield
        except SpoorError as error:
            if not self.folder.is_dir():  # the driver has ended and removed its folder
                raise
            content = {"kind": _kind(error), "message": error.message, "hint": error.hint}
            try:
                atomic_write(self.folder / _FAILURE_FILE, json.dumps(content).encode())
            except InfrastructureError:
                _UNWRITTEN[self.folder] = error  # reaches the driver only if the runner works in the driver's process
            raise

    def clear(self) -> None:
        _UNWRITTEN.pop(self.folder, None)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _FAILURE_FILE).unlink(missing_ok=True)

    def raise_recorded(self) -> None:
        if (unwritten := _UNWRITTEN.pop(self.folder, None)) is not None:
            raise _ERRORS[_kind(unwritten)](unwritten.message, hint=unwritten.hint) from None
        try:
            content = json.loads((self.folder / _FAILURE_FILE).read_bytes())
        except FileNotFoundError:
            return
        raise _ERRORS[content["kind"]](content["message"], hint=content["hint"]) from None


def _kind(error: SpoorError) -> str:
    return next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS)


def run_pipeline(
    build: Callable[[beam.Pipeline], object], *, runner: Runner, failures: Failures, namespace: str
) -> dict[str, int]:
    """Builds a pipeline and runs it to its end; returns the counters of `namespace` by name.

    Raises the SpoorError that a DoFn recorded, without retry. Raises InfrastructureError for any other failure after
    all retries (with LOCAL, the runner's own exception).
    """
    for retries_left in reversed(range(runner.retries + 1)):
        failures.clear()
        try:
            # Explicit options: Beam would otherwise parse sys.argv.
            pipeline = beam.Pipeline(runner=runner.name, options=PipelineOptions(flags=list(runner.options)))
            build(pipeline)
            result = pipeline.run()
            _await_end(result)
            return _counters(result, namespace)
        except Exception as error:
            failures.raise_recorded()
            if runner == LOCAL:
                raise
            if not retries_left:
                raise InfrastructureError(
                    f"the Beam runner {runner.name} failed: {_first_line(error)}",
                    hint="its own log tells more; what is done is noted, a second run goes on from there",
                ) from error
            _LOG.warning("the Beam runner %s failed, the job is run again: %s", runner.name, _first_line(error))
    raise AssertionError("a runner has no tries")


def run_items(
    items: Sequence[Any], work: beam.DoFn, *, of: str, doing: str, runner: Runner, failures: Failures, namespace: str
) -> dict[str, int]:
    """`run_pipeline` with one DoFn that gets every work item. `of` and `doing` name the items and the work in Beam's
    step labels."""
    return run_pipeline(
        lambda pipeline: spread(pipeline, items, of) | doing >> beam.ParDo(work),
        runner=runner,
        failures=failures,
        namespace=namespace,
    )


def spread(pipeline: beam.Pipeline, items: Sequence[Any], of: str) -> PCollection[Any]:
    """The work items as elements that the runner may distribute over its workers."""
    return (
        pipeline | f"List {of}" >> beam.Create(items, reshuffle=False) | f"Spread {of} over workers" >> beam.Reshuffle()
    )


def add_counts(namespace: str, counts: Mapping[str, int]) -> None:
    """Called in a DoFn: adds to the counters that `run_pipeline` returns."""
    for name, count in counts.items():
        Metrics.counter(namespace, name).inc(count)


def _await_end(result: PipelineResult) -> None:
    """Cancels the job if the wait is interrupted: the driver then releases the locks, so the job must not keep
    running."""
    try:
        result.wait_until_finish()
    except BaseException:
        with suppress(Exception):
            result.cancel()
        raise


def _counters(result: PipelineResult, namespace: str) -> dict[str, int]:
    found = result.metrics().query(MetricsFilter().with_namespace(namespace))
    # Runners with retries report only attempted values.
    return {counter.key.metric.name: counter.committed or counter.attempted or 0 for counter in found["counters"]}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-like `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
