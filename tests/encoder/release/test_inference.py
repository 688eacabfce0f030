"""Frozen encoders: independent of the batch, of the process and of the thread; empty and unknown inputs."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spoor.activity.hashing import hash_items
from spoor.activity.history import Histories
from spoor.base.errors import DataError, UsageError
from spoor.encoder.release.folder import load_release
from spoor.encoder.release.inference import FrozenEncoder, LengthBatch, batches_by_length, load_encoders

LENGTHS = [7, 0, 1, 32, 33, 80, 2, 31, 0, 16, 5, 5]


@pytest.fixture
def encoder(parts, tmp_path: Path) -> FrozenEncoder:
    parts.save(tmp_path / "base-1")
    return FrozenEncoder(load_release(tmp_path / "base-1"))


def test_it_says_what_it_is(encoder: FrozenEncoder) -> None:
    assert (encoder.release, encoder.dimension, encoder.max_events) == ("base-1", 16, 32)
    assert encoder.trained_through_ms == 1_700_000_000_000


def test_vectors_have_norm_1_and_events_used_are_capped(encoder: FrozenEncoder, make_histories) -> None:
    vectors, used = encoder.encode(make_histories(LENGTHS))
    assert vectors.shape == (12, 16)
    assert vectors.dtype == np.float32
    assert used.tolist() == [min(length, 32) for length in LENGTHS]
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(norms, [1.0 if length else 0.0 for length in LENGTHS], atol=1e-6)


def test_users_without_events_get_zeros(encoder: FrozenEncoder) -> None:
    vectors, used = encoder.encode(Histories.empty(3))
    assert vectors.tolist() == [[0.0] * 16] * 3
    assert used.tolist() == [0, 0, 0]
    assert encoder.encode(Histories.empty(0))[0].shape == (0, 16)


@pytest.mark.parametrize("token_budget", [1, 40, 8192])
def test_a_vector_does_not_depend_on_the_batch(parts, tmp_path: Path, make_histories, token_budget: int) -> None:
    parts.save(tmp_path / "base-1")
    encoder = FrozenEncoder(load_release(tmp_path / "base-1"), token_budget=token_budget)
    histories = make_histories(LENGTHS)
    together, _ = encoder.encode(histories)
    alone = np.concatenate([encoder.encode(histories.take([user]))[0] for user in range(histories.count)])
    shuffled = np.random.default_rng(1).permutation(histories.count)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(histories.take(shuffled))[0], together[shuffled], atol=1e-5)


def test_only_the_newest_events_matter(encoder: FrozenEncoder, make_histories) -> None:
    histories = make_histories([100])
    np.testing.assert_allclose(encoder.encode(histories)[0], encoder.encode(histories.newest(32))[0], atol=1e-6)
    assert not np.allclose(encoder.encode(histories)[0], encoder.encode(histories.newest(31))[0], atol=1e-5)


def test_item_vectors_have_norm_1_and_unknown_items_share_one(encoder: FrozenEncoder) -> None:
    vectors = encoder.item_vectors(np.concatenate([encoder.item_hashes, hash_items(["new-1", "new-2"])]))
    assert vectors.shape == (52, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors[50], vectors[51])
    assert len(np.unique(vectors[:50], axis=0)) == 50
    assert encoder.item_vectors(np.empty(0, np.uint64)).shape == (0, 16)


def test_item_ids_stand_beside_their_hashes(encoder: FrozenEncoder) -> None:
    assert len(encoder.item_ids) == 50
    assert np.array_equal(hash_items(encoder.item_ids), encoder.item_hashes)


def test_threads_share_an_encoder(encoder: FrozenEncoder, make_histories) -> None:
    batches = [make_histories(LENGTHS, seed=seed) for seed in range(8)]
    expected = [encoder.encode(batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = [vectors for vectors, _ in pool.map(encoder.encode, batches * 4)]
    for place, vectors in enumerate(found):
        np.testing.assert_allclose(vectors, expected[place % 8], atol=1e-6)


def test_another_process_computes_the_same(encoder: FrozenEncoder, make_histories, tmp_path: Path) -> None:
    histories = make_histories(LENGTHS)
    np.savez(tmp_path / "histories.npz", values=histories.values, offsets=histories.offsets)
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from spoor.activity.history import Histories\n"
        "from spoor.encoder.release.inference import load_encoders\n"
        "folder = Path(sys.argv[1])\n"
        "stored = np.load(folder / 'histories.npz')\n"
        "encoder = load_encoders(folder, ['base-1'])[0]\n"
        "vectors, _ = encoder.encode(Histories(stored['values'], stored['offsets']))\n"
        "np.savez(folder / 'found.npz', users=vectors, items=encoder.item_vectors(encoder.item_hashes))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    found = np.load(tmp_path / "found.npz")
    assert np.array_equal(found["users"], encoder.encode(histories)[0])
    assert np.array_equal(found["items"], encoder.item_vectors(encoder.item_hashes))


def test_load_encoders_takes_the_named_ones_or_all(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    parts.save(tmp_path / "base-2", seed=1)
    assert [encoder.release for encoder in load_encoders(tmp_path, [])] == ["base-1", "base-2"]
    assert [encoder.release for encoder in load_encoders(tmp_path, ["base-2"])] == ["base-2"]
    with pytest.raises(UsageError, match="no release `base-3`"):
        load_encoders(tmp_path, ["base-3"])


def test_weights_that_do_not_fit_are_a_data_error(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    path = tmp_path / "base-1" / "release.json"
    record = json.loads(path.read_text())
    record["model"]["layers"] = 3
    path.write_text(json.dumps(record))
    checksums = tmp_path / "base-1" / "checksums.json"
    listed = json.loads(checksums.read_text())
    del listed["curve.png"]
    listed["release.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    checksums.write_text(json.dumps(listed))
    with pytest.raises(DataError, match="do not fit its configuration"):
        FrozenEncoder(load_release(tmp_path / "base-1"))


def test_a_release_whose_vectors_no_view_holds_is_refused_before_anything_is_written(parts, tmp_path: Path) -> None:
    replace(parts, config=replace(parts.config, score="dot")).save(tmp_path / "dot-1")
    with pytest.raises(UsageError, match="release `dot-1` scores by the dot product"):
        load_encoders(tmp_path, ["dot-1"])


def length_batches(lengths: list[int], *, token_budget: int) -> list[LengthBatch]:
    return list(batches_by_length(np.concatenate([[0], np.cumsum(lengths)]), token_budget=token_budget))


@pytest.mark.parametrize("token_budget", [1, 30, 10_000])
def test_every_user_with_events_is_in_one_batch(token_budget: int) -> None:
    lengths = np.array([3, 0, 20, 19, 1, 0, 21, 20])
    starts = np.cumsum(lengths) - lengths
    seen = []
    for batch in length_batches(lengths.tolist(), token_budget=token_budget):
        for place, user in enumerate(batch.users):
            begin, length = int(batch.offsets[place]), int(batch.lengths[place])
            assert length == lengths[user]
            assert batch.rows[begin : begin + length].tolist() == list(range(starts[user], starts[user] + length))
            seen.append(user)
    assert sorted(seen) == [0, 2, 3, 4, 6, 7]


def test_nearly_equal_histories_repeat_their_last_event() -> None:
    (batch,) = length_batches([19, 20, 20], token_budget=100)
    assert batch.offsets.tolist() == [0, 20, 40, 60]
    assert batch.rows[:20].tolist() == [*range(19), 18]
    assert batch.lengths.tolist() == [19, 20, 20]


def test_unequal_histories_are_not_padded() -> None:
    (batch,) = length_batches([2, 20], token_budget=100)
    assert batch.offsets.tolist() == [0, 2, 22]
