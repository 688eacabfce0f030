"""What the worker counts adds up."""

import inspect
import re

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from spoor.activity import events, fields, json_objects, rules
from spoor.activity.avro import codec as avro
from spoor.activity.avro import registry as schema_registry
from spoor.activity.avro import schemas as avro_schemas
from spoor.streaming.records.dead_letters import REASONS
from spoor.streaming.status import metrics as streaming_metrics
from spoor.streaming.status.metrics import FRESHNESS_EDGES_MS, Freshness, FreshnessSeconds, StreamMetrics


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


def test_the_histogram_of_freshness_is_prometheus_own():
    waited = np.random.default_rng(0).lognormal(6, 2, 1_000).astype(np.int64)
    waited[:3] = 50, 1000, 0  # on a limit: inside it
    ours, own = FreshnessSeconds(), CollectorRegistry()
    for part in np.array_split(waited, 3):
        ours.add(part)
    theirs = Histogram("spoor_stream_freshness_seconds", "x", buckets=FreshnessSeconds.LIMITS, registry=own)
    for milliseconds in waited.tolist():
        theirs.observe(milliseconds / 1000)

    def samples(families) -> dict[tuple[str, str], float]:
        found = [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]
        return {(sample.name, sample.labels.get("le", "")): sample.value for sample in found}

    assert samples(ours.collect()) == pytest.approx(samples(own.collect()))


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


def test_a_user_of_several_batches_is_one_user(monkeypatch: pytest.MonkeyPatch):
    metrics = StreamMetrics()
    for users in (["ann", "bob"], ["bob", "cem"], ["ann"]):
        metrics.handled(users)
    assert (metrics.summary().users, metrics.summary().user_rows) == (3, 5)
    monkeypatch.setattr("spoor.streaming.status.metrics.MOST_USERS", 4)
    metrics.handled(["dan", "eve", "fay"])
    metrics.handled(["gus"])
    assert (metrics.summary().users, metrics.summary().user_rows) == (4, 9)  # the text says `at least`


def test_lag_is_by_partition_and_that_of_partitions_given_away_goes():
    lag = {0: 7, 3: 0}
    metrics = StreamMetrics(lambda: lag)

    def shown() -> list[str]:
        return [line for line in generate_latest(metrics.registry).decode().splitlines() if "lag_records{" in line]

    assert shown() == ['spoor_stream_lag_records{partition="0"} 7.0', 'spoor_stream_lag_records{partition="3"} 0.0']
    del lag[0]
    assert shown() == ['spoor_stream_lag_records{partition="3"} 0.0']


def test_every_metric_is_in_the_worker_s_table():
    names = {
        metric.name.removeprefix("spoor_stream_") + ("_total" if metric.type == "counter" else "")
        for metric in StreamMetrics().registry.collect()
    }
    assert names
    assert [name for name in sorted(names) if f" {name} " not in (streaming_metrics.__doc__ or "")] == []


def test_counters_with_labels_are_served_before_anything_happens():
    """An alert on their increase would otherwise miss the first one."""
    text = generate_latest(StreamMetrics().registry).decode()
    for name in ('dead_letters_total{reason="not-json"}', 'retries_total{step="store"}'):
        assert f"spoor_stream_{name} " in text


def test_every_reason_of_the_decoder_has_its_counter():
    sources = "".join(
        map(inspect.getsource, (avro, avro_schemas, events, fields, json_objects, rules, schema_registry))
    )
    found = set(re.findall(r'(?:reason=|_refused\()"([a-z-]+)"', sources))
    assert found | {"unknown-action", "unknown-surface", "decoder-error"} == set(REASONS)
