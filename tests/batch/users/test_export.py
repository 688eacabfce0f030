"""`spoor export` on a genuine Feast repo: what lies in Parquet is what the store and the release hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import spoor.batch.users.export
from spoor.base.errors import InfrastructureError, UsageError
from spoor.batch.releases import encoders
from spoor.batch.users.export import item_table, run_export, write_parts
from spoor.store.feast_store import open_feature_store
from spoor.store.guarded.fallback import UnguardedStore
from spoor.store.online import OnlineStore, open_online


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def test_embeddings_and_item_vectors_are_those_of_the_store_and_the_release(filled: Any, tmp_path: Path) -> None:
    filled.add_release("base-2", seed=5)
    result = run_export(filled.settings, tmp_path / "vectors")
    assert [(r.release, r.users, r.items) for r in result.releases] == [("base-1", 20, 40), ("base-2", 0, 40)]
    assert (result.listed, result.without_embedding) == (20, 20)  # base-2 was not backfilled
    users = read(tmp_path / "vectors" / "users" / "base-1")
    assert users.schema.field("embedding").type == pa.list_(pa.float32(), result.releases[0].dimension)
    rows = open_online(filled.settings.features).read_embeddings("base-1", users["user_id"].to_pylist())
    for exported, row in zip(users.to_pylist(), rows, strict=True):
        assert row is not None
        assert exported == dataclasses.asdict(row) | {"embedding": row.embedding.tolist()}
    items = read(tmp_path / "vectors" / "items" / "base-1")
    encoder = encoders(filled.settings.features, filled.settings.kernels, ["base-1"])["base-1"]
    assert items["item_id"].to_pylist() == list(encoder.item_ids)
    vectors = items["item_embedding"].combine_chunks().flatten().to_numpy().reshape(40, -1)
    np.testing.assert_array_equal(vectors, encoder.item_vectors(encoder.item_hashes))
    assert (
        pq.read_metadata(next((tmp_path / "vectors").rglob("*.parquet"))).row_group(0).column(0).compression == "ZSTD"
    )
    summary = json.loads((tmp_path / "vectors" / "export.json").read_text())
    assert summary["releases"][0] == {"release": "base-1", "dimension": 16, "users": 20, "items": 40}
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_one_kind_and_one_release_are_enough_where_no_more_is_asked(filled: Any, tmp_path: Path) -> None:
    run_export(filled.settings, tmp_path / "u", what="users", releases=["base-1"])
    run_export(filled.settings, tmp_path / "i", what="items")
    assert [p.name for p in (tmp_path / "u").iterdir() if p.is_dir()] == ["users"]
    assert [p.name for p in (tmp_path / "i").iterdir() if p.is_dir()] == ["items"]
    with pytest.raises(UsageError, match="release `nope`"):
        run_export(filled.settings, tmp_path / "n", releases=["nope"])


def test_a_dry_run_counts_and_writes_nothing(filled: Any, tmp_path: Path) -> None:
    result = run_export(filled.settings, tmp_path / "vectors", dry_run=True)
    assert (result.listed, result.releases[0].items, result.files) == (20, 40, 0)
    assert not (tmp_path / "vectors").exists()


def test_a_folder_that_is_no_export_is_never_replaced_and_an_export_only_when_asked(
    filled: Any, tmp_path: Path
) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is no export") as caught:
            run_export(filled.settings, other, overwrite=overwrite)
        assert caught.value.hint
    run_export(filled.settings, tmp_path / "vectors", what="items")
    with pytest.raises(UsageError, match="earlier export"):
        run_export(filled.settings, tmp_path / "vectors")
    run_export(filled.settings, tmp_path / "vectors", what="users", overwrite=True)
    assert not (tmp_path / "vectors" / "items").exists()
    assert (other / "cat.png").exists()
    (tmp_path / "vectors" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match=r"also holds notes\.txt"):
        run_export(filled.settings, tmp_path / "vectors", overwrite=True)
    (other / "export.json").write_text("[]")  # somebody else's
    with pytest.raises(UsageError, match="is no export"):
        run_export(filled.settings, other, overwrite=True)


def test_an_export_that_fails_leaves_the_earlier_one(
    filled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_export(filled.settings, tmp_path / "vectors", what="items")
    before = sorted((tmp_path / "vectors").rglob("*"))

    def full(*_: Any, **__: Any) -> None:
        raise InfrastructureError("no space left", hint="make room")

    monkeypatch.setattr(spoor.batch.users.export, "write_parts", full)
    with pytest.raises(InfrastructureError, match="no space left"):
        run_export(filled.settings, tmp_path / "vectors", overwrite=True)
    assert sorted((tmp_path / "vectors").rglob("*")) == before
    assert [path.name for path in tmp_path.glob(".vectors*")] == []


def test_where_the_store_cannot_list_its_users_the_lake_s_are_exported(
    filled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unguarded(features: Any) -> OnlineStore:
        store, _ = open_feature_store(features)
        provider = store._get_provider()
        provider._online_store = None  # Feast makes its own again
        return OnlineStore(features, store, UnguardedStore(provider.online_store))

    monkeypatch.setattr(spoor.batch.users.export, "open_online", unguarded)
    result = run_export(filled.settings, tmp_path / "vectors", what="users")
    assert (result.releases[0].users, result.without_embedding) == (20, 0)


@pytest.mark.parametrize(
    ("sizes", "files"), [([], []), ([0, 0], []), ([3, 0, 2], [5]), ([4, 4, 4], [4, 4, 4]), ([9, 1], [9, 1])]
)
def test_parts_are_bounded_and_empty_ones_are_not_written(tmp_path: Path, sizes: list[int], files: list[int]) -> None:
    tables = (item_table([f"i{n}" for n in range(size)], np.zeros((size, 2), np.float32), "r") for size in sizes)
    assert write_parts(tmp_path / "out", "b-", tables, part_rows=7) == sum(sizes)
    written = [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("out/*.parquet"))]
    assert written == files
