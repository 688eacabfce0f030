"""A release with packed tables: the same model but for the error of packing, whole or absent, never trained further."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors_numpy

from spoor.base.errors import DataError, UsageError
from spoor.encoder.release.folder import load_release, save_release
from spoor.encoder.release.inference import FrozenEncoder, item_rows, load_encoders
from spoor.encoder.release.info import read_info
from spoor.encoder.release.pack import pack_release, plan_packing, report_tables
from spoor.encoder.release.packed_tables import open_packed
from spoor.encoder.release.tuning import trainable
from spoor.kernels.backend import force
from spoor.kernels.hashed_gather import Layout, hashed_gather
from spoor.kernels.hashed_gather.layouts import pack_rows

LAYOUTS = ["int4", "int8", "fp16"]


def packed(source: Path, layout: Layout, name: str = "packed-1") -> Path:
    pack_release(plan_packing(source, out=source.parent / name, layout=layout))
    return source.parent / name


def with_rounded_tables(source: Path, layout: Layout, name: str = "rounded-1") -> Path:
    """A float release whose table holds what the packed rows say."""
    release = load_release(source)
    table = torch.from_numpy(release.weights["items.weight"].astype(np.float32))
    rows = torch.arange(len(table))[:, None]
    rounded = hashed_gather(pack_rows(table, layout), rows, width=table.shape[1], layout=layout)
    save_release(
        source.parent / name,
        model=release.info.model,
        weights=release.weights | {"items.weight": rounded.numpy()},
        vocabulary=release.vocabulary,
        trained_through_ms=release.info.trained_through_ms,
        data_fingerprint=release.info.data_fingerprint,
        metrics=release.metrics,
        training={},
        curve_png=b"\x89PNG",
    )
    return source.parent / name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("items", ["hashed", "direct"])
def test_vectors_are_those_of_the_rounded_table(parts, make_histories, tmp_path: Path, layout, items: str) -> None:
    shape = {"items": "direct", "hash_functions": 1, "table_rows": 0, "table_width": 16} if items == "direct" else {}
    replace(parts, config=replace(parts.config, **shape)).save(tmp_path / "base-1")
    expected = FrozenEncoder(load_release(with_rounded_tables(tmp_path / "base-1", layout)))
    (found,) = load_encoders(tmp_path, [packed(tmp_path / "base-1", layout).name])
    histories = make_histories([5, 0, 1, 32])
    np.testing.assert_allclose(found.encode(histories)[0], expected.encode(histories)[0], atol=1e-6)
    hashes = found.item_hashes
    np.testing.assert_allclose(found.item_vectors(hashes), expected.item_vectors(hashes), atol=1e-6)
    torch.testing.assert_close(found.model.every_target(), expected.model.every_target(), atol=1e-6, rtol=0)


def test_the_new_release_says_what_it_is_and_the_old_one_stays(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base-1").iterdir()}
    new = load_release(packed(tmp_path / "base-1", "int4"))
    assert new.info.packed == {"layout": "int4", "of": "base-1"} and new.info.name == "packed-1"
    assert "items.weight" not in new.weights and new.metrics == {"recall_at_10": 0.25}
    assert "packed as int4 from release `base-1`" in (tmp_path / "packed-1" / "MODEL_CARD.md").read_text()
    assert {path.name: path.read_bytes() for path in (tmp_path / "base-1").iterdir()} == before


def test_packed_tables_are_not_trained_further(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    with pytest.raises(UsageError, match="packed item tables") as raised:
        trainable(load_release(packed(tmp_path / "base-1", "int8")))
    assert "`base-1`" in raised.value.hint


def test_what_cannot_be_packed_is_told_before_anything_is_written(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    packed(tmp_path / "base-1", "int4")
    with pytest.raises(UsageError, match="packed already"):
        plan_packing(tmp_path / "packed-1", out=tmp_path / "again", layout="int8")
    with pytest.raises(UsageError, match="exists already"):
        plan_packing(tmp_path / "base-1", out=tmp_path / "packed-1", layout="int4")
    odd = replace(parts, config=replace(parts.config, items="direct", hash_functions=1, table_rows=0, table_width=15))
    odd.save(tmp_path / "odd-1")
    with pytest.raises(UsageError, match="15 floats cannot be packed as int4"):
        plan_packing(tmp_path / "odd-1", out=tmp_path / "odd-2", layout="int4")


def test_a_release_is_not_packed_over_itself(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    with pytest.raises(UsageError, match="cannot take the place of its source"):
        plan_packing(tmp_path / "base-1", out=tmp_path / "." / "base-1", layout="int4", overwrite=True)
    assert "items.weight" in load_release(tmp_path / "base-1").weights


def test_a_direct_table_with_too_few_rows_is_refused(parts, tmp_path: Path) -> None:
    direct = replace(parts.config, items="direct", hash_functions=1, table_rows=0, table_width=16)
    replace(parts, config=direct).save(tmp_path / "base-1")
    folder = packed(tmp_path / "base-1", "int8")
    with pytest.raises(DataError, match="which are not its model's"):
        open_packed(read_info(folder), known_items=51)


def test_weights_without_a_table_are_a_damaged_source(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    safetensors_numpy.save_file({"other": np.zeros(3)}, tmp_path / "base-1" / "model.safetensors")
    with pytest.raises(DataError, match=r"items[.]weight has the shape \[\], expected rows of 8 floats"):
        plan_packing(tmp_path / "base-1", out=tmp_path / "packed-1", layout="int4")


def test_the_backend_of_attention_does_not_matter(parts, make_histories, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    force("triton")
    try:
        folder = packed(tmp_path / "base-1", "int4")
        assert FrozenEncoder(load_release(folder)).model.every_target().shape == (50, 16)
    finally:
        force("auto")


def test_a_damaged_source_gives_no_release(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    plan = plan_packing(tmp_path / "base-1", out=tmp_path / "packed-1", layout="int4")
    weights = tmp_path / "base-1" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match=r"model[.]safetensors does not match its checksum"):
        pack_release(plan)
    assert [path.name for path in tmp_path.iterdir()] == ["base-1"]


def test_tables_of_another_model_are_refused(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    replace(parts, config=replace(parts.config, table_rows=128)).save(tmp_path / "small-1")
    one, other = packed(tmp_path / "base-1", "int4"), packed(tmp_path / "small-1", "int4", "packed-2")
    assert open_packed(read_info(one), known_items=50).record.rows == 512
    with pytest.raises(DataError, match="2 tables of 256 rows of 8 floats together, which are not its model's"):
        open_packed(replace(read_info(one), folder=other), known_items=50)


@pytest.mark.parametrize("layout", [None, "int8"])
def test_the_report_counts_as_a_dictionary_of_rows_does(parts, tmp_path: Path, layout: Layout | None) -> None:
    config = replace(parts.config, table_rows=20)  # 50 items in 19 rows collide
    replace(parts, config=config).save(tmp_path / "base-1")
    folder = tmp_path / "base-1" if layout is None else packed(tmp_path / "base-1", layout)
    found = report_tables(folder, event_items=["item-1", "item-2", "new", "item-3"])
    rows = item_rows(config, parts.vocabulary)[1:]
    for number, table in enumerate(found.tables):
        used = Counter(rows[:, number].tolist())
        assert table.fill == pytest.approx(len(used) / 20)
        assert table.colliding == pytest.approx(sum(n for n in used.values() if n > 1) / 50)
        assert (table.error is None) == (layout is None)
    whole = Counter(map(tuple, rows.tolist()))
    assert found.confused == pytest.approx(sum(n for n in whole.values() if n > 1) / 50)
    assert found.unseen == 0.25 and found.items == 50
