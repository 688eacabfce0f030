"""What the worker counts adds up, and is served."""

import re
import urllib.request

import numpy as np
import pytest

from streaming import worker
from streaming.metrics import FRESHNESS_EDGES_MS, Freshness, StreamMetrics
from tests.conftest import free_port


@pytest.mark.parametrize("q", [0.5, 0.99])
def test_quantiles_are_right_to_the_width_of_a_bin(q):
    times = np.random.default_rng(0).lognormal(5, 1, 10_001).astype(np.int64)
    freshness = Freshness()
    for part in np.array_split(times, 7):
        freshness.add(part)
    assert freshness.quantile(q) == pytest.approx(np.quantile(times, q), rel=0.06)


def test_without_events_there_is_no_quantile():
    assert Freshness().quantile(0.5) is None
    assert Freshness().bins() == ([], [])


def test_times_outside_the_bins_are_counted_in_the_outermost():
    freshness = Freshness()
    freshness.add(np.array([-5, 0, 10**12]))
    assert freshness.counts[0] == 2
    assert freshness.counts[-1] == 1
    edges, counts = freshness.bins()
    assert (len(edges), sum(counts)) == (len(FRESHNESS_EDGES_MS), 3)


def test_the_summary_adds_up():
    metrics = StreamMetrics()
    metrics.batch_started(3)
    metrics.written(np.array([1_000, 1_500]), 2_000)
    metrics.dead.add(1, "not-json")
    metrics.dead.add(2, "too-large")
    metrics.batch_done()
    summary = metrics.summary()
    assert (summary.events, summary.dead_letters, summary.batches) == (2, 3, 1)
    assert summary.freshness_p99_ms == pytest.approx(1000, rel=0.06)


def test_metrics_are_served_on_the_loopback_address():
    metrics, port = StreamMetrics(), free_port()
    metrics.serve(port)
    metrics.written(np.array([0]), 7)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        (value,) = re.findall(rb"^spoor_stream_events_total (.+)$", answer.read(), re.MULTILINE)
    assert float(value) >= 1  # of all workers in this process, if Feast was imported before prometheus_client


def test_every_metric_is_in_the_worker_s_table():
    names = {
        metric.name.removeprefix("spoor_stream_") + ("_total" if metric.type == "counter" else "")
        for metric in StreamMetrics().registry.collect()
    }
    assert names
    assert [name for name in sorted(names) if f" {name} " not in (worker.__doc__ or "")] == []
