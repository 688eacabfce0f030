"""Metrics of the batch jobs: files for node exporter's textfile collector.

    STATE_FOLDER/metrics/spoor_<job>_running.prom   planned and finished work items of the current or last run
    STATE_FOLDER/metrics/spoor_<job>.prom           when the job last finished, and its result

A job that dies does not write the second file: alert on the age of the last finish.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spoor.base.errors import InfrastructureError
from spoor.base.files import atomic_write

_LOG = logging.getLogger(__name__)


class JobMetrics:
    """`job`: archive, backfill, verify or expire."""

    def __init__(self, state_folder: Path, job: str, *, clock: Callable[[], float] = time.time) -> None:
        self.running_file = state_folder / "metrics" / f"spoor_{job}_running.prom"
        self.ended_file = state_folder / "metrics" / f"spoor_{job}.prom"
        self._job = job
        self._clock = clock
        self._started = clock()
        self._told: tuple[int, int] | None = None

    def items(self, *, done: int, planned: int) -> None:
        """Writes the file if a count has changed. An unwritable file only warns: the job's own files raise errors."""
        if (done, planned) == self._told:
            return
        self._told = done, planned
        self._write(
            self.running_file,
            self._of_job("spoor_job_started_timestamp_seconds", "when the job was last started", self._started),
            self._of_job("spoor_job_items", "work items of the job", planned),
            self._of_job("spoor_job_items_done", "work items that are done", done),
        )

    def ended(self, *figures: Metric) -> None:
        """Writes the job's end and its result, as `gauge` and `gauges` return it."""
        if self._told is None:
            self.items(done=0, planned=0)  # there was nothing to do
        text = "when the job last came to its end"
        self._write(self.ended_file, self._of_job("spoor_job_ended_timestamp_seconds", text, self._clock()), *figures)

    def _of_job(self, name: str, text: str, value: float) -> Metric:
        return gauges(name, text, "job", {self._job: value})

    def _write(self, path: Path, *metrics: Metric) -> None:
        registry = CollectorRegistry()
        registry.register(_Given(metrics))
        try:
            atomic_write(path, generate_latest(registry))
        except InfrastructureError as error:
            _LOG.warning("%s", error.message)


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """One sample per value of the label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class _Given(Collector):
    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
