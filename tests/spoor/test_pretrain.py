"""`spoor pretrain` on an event file: what strangers type."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spoor.encoder.release.folder import load_release
from spoor.encoder.release.inference import FrozenEncoder

Spoor = Callable[..., Any]
USERS = 30
COMMON = ["--protocol", "leave-one-out", "--seed", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Walks round a circle of items at one time a user, and two users with one and two events; order is in `pos`."""
    lengths = [12] * USERS + [1, 2]
    events = [(f"u{user}", f"i{(user * 3 + step) % 40}", step) for user, n in enumerate(lengths) for step in range(n)]
    users, items, places = zip(*events, strict=True)
    columns = {"user_id": users, "item_id": items, "timestamp": [1_600_000_000_000] * len(events), "pos": places}
    columns |= {"action": ["view"] * len(events), "surface": ["home"] * len(events)}
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_a_file_becomes_a_release(spoor: Spoor, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "releases" / "first"
    done = spoor("pretrain", "--data", str(data), "--out", str(out), *COMMON, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["release"]["split"]["protocol"] == "leave-one-out"
    assert 0 < found["metrics"]["ndcg_at_10"] <= 1
    release = load_release(out)
    assert release.info.split is not None and release.info.split["shuffle_ties"] is None
    assert json.loads((out / "release.json").read_text())["training"]["seed"] == 1
    assert FrozenEncoder(release).item_vectors(release.vocabulary.items).shape[0] == 40

    again = spoor("pretrain", "--data", str(data), "--out", str(out), *COMMON)
    assert again.code == 2 and "exists already" in again.err
    options = ["--shuffle-ties", "7", "--max-minutes", "5"]
    second = spoor("pretrain", "--data", str(data), "--out", str(out.with_name("second")), *COMMON, *options)
    assert second.code == 0, second.err
    shuffled = load_release(out.with_name("second")).info.split
    assert shuffled is not None and shuffled["shuffle_ties"] == 7
    assert shuffled["digest"] != release.info.split["digest"]


def test_a_start_that_may_know_what_is_held_out_is_refused(spoor: Spoor, data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "releases" / "first", tmp_path / "releases" / "second"
    assert spoor("pretrain", "--data", str(data), "--out", str(first), *COMMON).code == 0
    same = spoor("pretrain", "--data", str(data), "--out", str(second), *COMMON, "--from", str(first))
    assert same.code == 0, same.err
    other = ["--from", str(first), "--shuffle-ties", "7", "--overwrite"]
    refused = spoor("pretrain", "--data", str(data), "--out", str(second), *COMMON, *other)
    assert refused.code == 1
    assert "release `first` may have trained on the events that leave-one-out holds out" in refused.err


def test_a_dry_run_leaves_nothing(spoor: Spoor, data: Path, tmp_path: Path) -> None:
    done = spoor("pretrain", "--data", str(data), "--out", str(tmp_path / "none"), *COMMON, "--dry-run", "--json")
    assert done.code == 0
    assert json.loads(done.out)["dry_run"]
    assert "row for each item" in done.err
    assert [path.name for path in tmp_path.glob("*none*")] == []


def test_tables_are_packed_and_looked_at(spoor: Spoor, data: Path, tmp_path: Path) -> None:
    first, second = str(tmp_path / "releases" / "first"), str(tmp_path / "releases" / "second")
    assert spoor("pretrain", "--data", str(data), "--out", first, *COMMON).code == 0
    build = ("release", "tables", "build", first, second, "--layout", "int8")
    planned = json.loads(spoor(*build, "--dry-run", "--json").out)
    assert planned["dry_run"] and planned["row_bytes"].keys() == {"int4", "int8", "fp16"}
    assert not Path(second).exists()
    built = json.loads(spoor(*build, "--json").out)
    assert built["release"]["packed"] == {"layout": "int8", "of": "first"} and len(built["errors"]) == 1
    found = json.loads(spoor("release", "tables", "report", second, "--data", str(data), "--json").out)
    assert (found["layout"], found["items"], found["unseen"]) == ("int8", 40, 0.0)
    asked = ["--data", str(data), "--protocol", "leave-one-out", "--baselines", "none", "--json"]
    assert json.loads(spoor("evaluate", "--release", second, *asked).out)["ndcg@10"] > 0
    refused = spoor(*build)
    assert refused.code == 2 and "exists already" in refused.err


def test_a_damaged_table_is_not_used(spoor: Spoor, data: Path, tmp_path: Path) -> None:
    first, second = str(tmp_path / "releases" / "first"), str(tmp_path / "releases" / "second")
    assert spoor("pretrain", "--data", str(data), "--out", first, *COMMON).code == 0
    assert spoor("release", "tables", "build", first, second).code == 0
    rows = Path(second) / "tables.bin"
    damaged = bytearray(rows.read_bytes())
    damaged[-1] ^= 1
    rows.write_bytes(damaged)
    done = spoor("evaluate", "--release", second, "--data", str(data), "--protocol", "leave-one-out", "--json")
    assert done.code == 1 and "do not match their checksum" in done.err
