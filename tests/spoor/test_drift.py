"""`spoor release drift` by its exit codes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from spoor.config import Settings
from spoor.store.offline import open_offline
from spoor.store.rows import EmbeddingRow
from tests.releases import save_untrained_release

Spoor = Callable[..., Any]


@pytest.fixture
def log(settings: Settings) -> Settings:
    """Two days of the same distribution, and a third on which every vector points the other way."""
    save_untrained_release(
        settings.features.releases_folder / "base-1", items=["i"], actions=["view"], surfaces=["home"]
    )
    for day, sign in ((1, 1.0), (2, 1.0), (3, -1.0)):
        vectors = np.random.default_rng(day).normal(size=(500, 16)) + 0.5
        vectors *= sign / np.linalg.norm(vectors, axis=1, keepdims=True)
        time_ms = int(datetime(2026, 1, day, tzinfo=UTC).timestamp() * 1000)
        rows = [
            EmbeddingRow(f"u{n}", vector, 1, 1, time_ms, time_ms, time_ms, "base-1")
            for n, vector in enumerate(vectors.astype(np.float32))
        ]
        open_offline(settings.features).write_embeddings("base-1", f"day-{day}", rows)
    return settings


@pytest.mark.usefixtures("log")
def test_a_quiet_pair_of_days_exits_with_0_and_a_planted_change_with_1(spoor: Spoor):
    quiet = spoor("release", "drift", "base-1", "--from", "2026-01-01", "--to", "2026-01-02")
    assert quiet.code == 0 and "EXCEEDED" not in quiet.out
    assert "base-1: 500 users on 2026-01-01, 500 on 2026-01-02" in quiet.out
    sampled = spoor(
        *("--set", "drift.min_users=50", "--set", "drift.max_users=400"),
        *("release", "drift", "base-1", "--from", "2026-01-01", "--to", "2026-01-02"),
    )
    assert "400 users on 2026-01-01, 400 on 2026-01-02 (samples of 400: drift.max_users)" in sampled.out
    planted = spoor("release", "drift", "base-1", "--from", "2026-01-01", "--to", "2026-01-03")
    assert planted.code == 1
    assert [line.endswith("EXCEEDED") for line in planted.out.splitlines()] == [False, False, True, True]
    shown = spoor("release", "drift", "base-1", "--from", "2026-01-01", "--to", "2026-01-03", "--json")
    assert (shown.code, shown.json["exceeded"]) == (1, ["coordinate means", "domain classifier"])
    assert shown.json["auc"]["limit"] == 0.65 < shown.json["auc"]["value"]
    limits = ["--set", "drift.max_auc=1", "--set", "drift.max_mean_shift=99"]
    assert spoor(*limits, "release", "drift", "base-1", "--from", "2026-01-01", "--to", "2026-01-03").code == 0


@pytest.mark.usefixtures("log")
def test_wrong_days_and_releases_exit_with_2(spoor: Spoor):
    days = ["--from", "2026-01-01", "--to"]
    assert "rows of 0 users on 2026-02-01" in spoor("release", "drift", "base-1", *days, "2026-02-01").failed_with(2)
    assert "no release `base-9`" in spoor("release", "drift", "base-9", *days, "2026-01-02").failed_with(2)
    assert "does not match the format" in spoor("release", "drift", "base-1", *days, "yesterday").failed_with(2)
