"""Event times are the same in every time zone: SQLite's own column, which Feast keeps in local time, is not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.store.conftest import make_repo

ROOT = Path(__file__).parents[2]
ZONES = ("America/New_York", "Asia/Tokyo", "UTC")
# Around New York's changes of 2024: the hour that is left out, and the one that comes twice.
MOMENTS = [
    datetime(2024, 3, 10, 2, 30, 0, 123_000, UTC), datetime(2024, 3, 10, 7, 30, tzinfo=UTC),
    datetime(2024, 11, 3, 1, 30, 0, 1_000, UTC), datetime(2024, 11, 3, 5, 30, tzinfo=UTC),
    datetime(2024, 11, 3, 6, 30, tzinfo=UTC),
]  # fmt: skip
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from feast import FeatureStore
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.online import open_online
from spoor.store.reads import user_vectors
from spoor.store.rows import EmbeddingRow, UserWrite
folder, what, times = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
features = FeatureSettings(
    feature_repo=folder / "feature_repo", releases_folder=folder / "releases", offline_folder=folder / "offline"
)
online, users = open_online(features), [str(n) for n in range(len(times))]
if what == "write":
    rows = [
        EmbeddingRow(user, np.eye(8, dtype=np.float32)[n], 1, 1, time, time, time, "base-1")
        for n, (user, time) in enumerate(zip(users, times))
    ]
    writes = [UserWrite(row.user_id, 0, 1, b"packed", 1, row.event_time_ms, row.created_ms, [row]) for row in rows]
    assert online.write(writes).all()
else:
    rows = online.read_embeddings("base-1", users)
    vectors, known = user_vectors(online, "base-1", users)
    plain = FeatureStore(repo_path=str(features.feature_repo)).get_online_features(
        ["user_embedding_base_1:event_time_ms"], [{"user_id": user} for user in users]
    ).to_dict()["event_time_ms"]
    found = [[row.event_time_ms, row.created_ms] for row in rows]
    print(json.dumps([found, plain, vectors.argmax(1).tolist(), known.tolist()]))
"""


def run(folder: Path, zone: str, what: str, times_ms: list[int]) -> str:
    environ = os.environ | {"TZ": zone, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", PROGRAM, str(folder), what, json.dumps(times_ms)]
    ran = subprocess.run(arguments, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("writer", ZONES[:2])
def test_what_one_time_zone_writes_every_other_reads(tmp_path: Path, writer: str):
    make_repo(tmp_path, {"type": "sqlite"})
    times = [round(moment.timestamp() * 1000) for moment in MOMENTS]
    run(tmp_path, writer, "write", times)
    for reader in ZONES[:2]:
        found, plain, places, known = json.loads(run(tmp_path, reader, "read", times).splitlines()[-1])
        assert found == [[time, time] for time in times] and plain == times
        assert places == list(range(len(times))) and all(known)
