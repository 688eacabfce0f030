"""What every batch job shares: errors that cross Beam, and running a pipeline.

Beam turns an exception in a DoFn into text. A DoFn therefore records a SpoorError in the job's folder before it raises
it (`Failures.recorded`), and `run_pipeline` raises the recorded error again where the job was started.
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
_UNWRITTEN: dict[Path, SpoorError] = {}  # by job folder: what could not be recorded, for lack of space say
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runner:
    """Who executes a pipeline: a runner's name as Beam knows it, and Beam's options for it (`--name=value`). A job that
    the runner loses, with a machine say, is run again up to `retries` times: what is noted as done is passed over."""

    name: str
    options: tuple[str, ...] = ()
    retries: int = 0


LOCAL = Runner("FnApiRunner")  # named explicitly: Beam's default looks for a binary on the internet


@dataclass(frozen=True)
class Failures:
    """Where a job's DoFns leave the error that stops them."""

    folder: Path

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records a SpoorError raised in the block, then lets it pass."""
        try:
            yield
        except SpoorError as error:
            if not self.folder.is_dir():  # the driver is gone, and its folder with it
                raise
            content = {"kind": _kind(error), "message": error.message, "hint": error.hint}
            try:
                atomic_write(self.folder / _FAILURE_FILE, json.dumps(content).encode())
            except InfrastructureError:
                _UNWRITTEN[self.folder] = error  # reaches the driver where the runner works in its process
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
    """Builds and runs a pipeline to its end; returns the counters of `namespace` by name.

    Raises the SpoorError that a DoFn recorded where the job failed, and InfrastructureError for a runner that failed
    for another reason; one that tried again and got through has not failed.
    """
    for retries_left in reversed(range(runner.retries + 1)):
        failures.clear()
        try:
            # Options are given: Beam would otherwise parse the flags of whatever command runs us.
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
    """As `run_pipeline`, for one DoFn that gets every work item. `of` and `doing` name the items and the work in Beam's
    steps."""
    return run_pipeline(
        lambda pipeline: spread(pipeline, items, of) | doing >> beam.ParDo(work),
        runner=runner,
        failures=failures,
        namespace=namespace,
    )


def spread(pipeline: beam.Pipeline, items: Sequence[Any], of: str) -> PCollection[Any]:
    """The work items as elements that the runner may give to any worker."""
    return (
        pipeline | f"List {of}" >> beam.Create(items, reshuffle=False) | f"Spread {of} over workers" >> beam.Reshuffle()
    )


def add_counts(namespace: str, counts: Mapping[str, int]) -> None:
    """For a DoFn: adds to the counters that `run_pipeline` returns."""
    for name, count in counts.items():
        Metrics.counter(namespace, name).inc(count)


def _await_end(result: PipelineResult) -> None:
    """An interrupted job must not go on where nobody waits for it: its locks are given back."""
    try:
        result.wait_until_finish()
    except BaseException:
        with suppress(Exception):
            result.cancel()
        raise


def _counters(result: PipelineResult, namespace: str) -> dict[str, int]:
    found = result.metrics().query(MetricsFilter().with_namespace(namespace))
    # A runner that may try again tells attempted values alone.
    return {counter.key.metric.name: counter.committed or counter.attempted or 0 for counter in found["counters"]}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fingerprint(*parts: Any) -> str:
    """A short stable name for what JSON-like `parts` say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
