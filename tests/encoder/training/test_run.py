"""Pretraining: resumes bit for bit, learns what can be learnt, refuses clearly, releases whole."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from spoor.activity.events import Event, events_table
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.encoder.data.split import check_split
from spoor.encoder.release.folder import load_release
from spoor.encoder.release.inference import FrozenEncoder
from spoor.encoder.training.checkpoint import load_checkpoint, save_checkpoint
from spoor.encoder.training.loop import train
from spoor.encoder.training.plan import PretrainRequest, make_plan
from spoor.encoder.training.run import fresh_state, run_pretrain
from spoor.encoder.training.settings import PretrainSettings
from tests.conftest import wait_until

SETTINGS = PretrainSettings(model="tiny", epochs=4, token_budget=128, uniform_negatives=16, checkpoint_steps=5)
REPOSITORY = Path(__file__).parents[3]


def circle(*, users: int = 40, items: int = 60, length: int = 25) -> pa.Table:
    """Everyone walks round the same circle of items, from a place of their own: the next item is certain."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, items, users)
    joined = rng.integers(0, 1000, users)
    return events_table(
        Event(f"u{user}", f"i{(starts[user] + step) % items}", "save", "home", int(joined[user] + 1000 * step))
        for user in range(users)
        for step in range(length)
    )


THREE_LOSSES: dict[str, Any] = {"multi_token_weight": 0.5, "future_token_weight": 0.5, "target_window": 4}


@pytest.mark.parametrize(
    "changes",
    [
        {"negatives": "in-batch"},
        {"negatives": "mixed"},
        {"negatives": "full"},
        {"table_updates": "sparse"},
        {"accumulation": 2},
        THREE_LOSSES,
        {"model": "auto", "token_budget": 128},
    ],
    ids=str,
)
def test_twenty_steps_stopped_at_ten_and_resumed_give_the_same_losses(tmp_path: Path, changes) -> None:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, **changes)))
    whole = fresh_state(plan)
    train(whole, plan.schedule, stop_after=20)
    assert len(whole.losses) == 20

    train(fresh_state(plan), plan.schedule, stop_after=10)
    resumed = fresh_state(plan)
    load_checkpoint(plan.checkpoint, resumed, plan.schedule.identity)
    assert resumed.step == 10
    train(resumed, plan.schedule, stop_after=20)
    assert resumed.losses == whole.losses
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def test_a_killed_run_resumes_to_the_same_release(tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint; the resumed run's losses and weights equal those of a run left alone."""
    pq.write_table(circle(), tmp_path / "events.parquet")
    code = (
        "import sys\n"
        "import pyarrow.parquet as pq\n"
        "import torch\n"
        "from pathlib import Path\n"
        "from spoor.encoder.training.plan import PretrainRequest\n"
        "from spoor.encoder.training.run import run_pretrain\n"
        "from tests.encoder.training.test_run import SETTINGS, replace\n"
        "torch.set_num_threads(1)\n"
        "folder = Path(sys.argv[1])\n"
        "settings = replace(SETTINGS, epochs=10_000)\n"
        "events = pq.read_table(folder / 'events.parquet')\n"
        "run_pretrain(PretrainRequest(events, out=folder / 'base-1', settings=settings))\n"
    )
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, epochs=10_000)))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: plan.checkpoint.exists() or process.poll() is not None, "the first checkpoint")
        assert process.poll() is None, "the run ended before its first checkpoint"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "base-1").exists()

    resumed, whole = fresh_state(plan), fresh_state(plan)
    load_checkpoint(plan.checkpoint, resumed, plan.schedule.identity)
    stop = resumed.step + 7
    train(resumed, plan.schedule, stop_after=stop)
    train(whole, replace(plan.schedule, folder=tmp_path / "other"), stop_after=stop)
    assert resumed.losses == whole.losses


@pytest.mark.parametrize(
    ("negatives", "metric"), [("mixed", "recall_at_10"), ("full", "ndcg_at_10")], ids=["mixed", "full"]
)
def test_it_learns_a_certain_sequence(tmp_path: Path, negatives, metric: str) -> None:
    """`mixed` leaves a user's own positives out of the negatives, so it cannot tell the next item from the one after:
    it is asked for the ten best. `full` has to name the next item itself."""
    settings = replace(SETTINGS, epochs=20, learning_rate=1e-2, negatives=negatives)
    result = run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    assert result.metrics[metric] > 0.9
    assert result.metrics[f"popularity_{metric}"] < 0.5
    assert np.mean(result.losses[-10:]) < np.mean(result.losses[:10])


def test_a_release_says_where_it_comes_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    release = load_release(tmp_path / "base-1")
    assert release.info == result.release
    assert release.info.trained_through_ms == max(circle()["timestamp"].to_pylist())
    assert release.metrics == result.metrics
    measured = {"recall_at_10", "ndcg_at_10", "popularity_recall_at_10", "mean_cosine", "effective_rank"}
    assert measured <= release.metrics.keys()
    assert any(path.name.startswith("events.out.tfevents.") for path in (tmp_path / "base-1").iterdir())
    assert (tmp_path / "base-1" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "base-1" / "release.json").read_text())["training"]["epochs"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["base-1"]
    said = capfd.readouterr()
    assert said.out == ""
    assert "precision: float32" in said.err
    assert "tokens/s=" in said.err and "peak_memory_mb=" in said.err
    assert "\x1b[" not in said.err  # stderr is no terminal here: no progress bar


def test_equal_runs_give_equal_releases(tmp_path: Path) -> None:
    for name in ("base-1", "base-2"):
        run_pretrain(PretrainRequest(circle(), out=tmp_path / name, settings=SETTINGS))
    one, other = (FrozenEncoder(load_release(tmp_path / name)) for name in ("base-1", "base-2"))
    assert np.array_equal(one.item_vectors(one.item_hashes), other.item_vectors(other.item_hashes))


def test_events_after_until_have_no_part(tmp_path: Path) -> None:
    events = circle()
    before = events.filter(pc.less(events["timestamp"], 12_000))
    assert 0 < len(before) < len(events)
    result = run_pretrain(PretrainRequest(events, out=tmp_path / "base-1", settings=SETTINGS, until_ms=12_000))
    assert result.release is not None
    assert result.release.trained_through_ms == pc.max(before["timestamp"]).as_py()
    run_pretrain(PretrainRequest(before, out=tmp_path / "base-2", settings=SETTINGS))
    one, other = (load_release(tmp_path / name) for name in ("base-1", "base-2"))
    assert one.info.data_fingerprint == other.info.data_fingerprint
    assert one.vocabulary.item_ids == other.vocabulary.item_ids
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in other.weights)


def test_a_release_refuses_events_that_it_was_not_divided_by(tmp_path: Path) -> None:
    options: dict[str, Any] = {"settings": SETTINGS, "protocol": "leave-one-out"}
    run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", **options))
    recorded = load_release(tmp_path / "base-1").info.split
    assert recorded is not None and recorded["protocol"] == "leave-one-out"
    same, other = (
        make_plan(PretrainRequest(table, out=tmp_path / "x", **options)) for table in (circle(), circle(users=41))
    )
    check_split(recorded, same.split, release="base-1")
    with pytest.raises(DataError, match="was trained on other events"):
        check_split(recorded, other.split, release="base-1")


def test_held_out_events_change_no_input_and_no_loss(tmp_path: Path) -> None:
    """Under leave-one-out the last two events of a user may be anything (known): `fit` repeats its losses."""
    events = circle()
    times = events["timestamp"].to_numpy()
    last = np.isin(np.arange(len(events)) % 25, (23, 24))
    assert (times[last] > 23_000).all()
    items = events["item_id"].to_pylist()
    changed = events.set_column(1, "item_id", [["i7" if last[row] else item for row, item in enumerate(items)]])
    losses = []
    for name, table in (("one", events), ("other", changed.cast(events.schema))):
        plan = make_plan(PretrainRequest(table, out=tmp_path / name, settings=SETTINGS, protocol="leave-one-out"))
        state = fresh_state(plan)
        train(state, plan.schedule, stop_after=10)
        losses.append(state.losses)
    assert losses[0] == losses[1]


def test_a_full_disk_stops_with_one_message_and_leaves_no_half_of_a_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel then refuses the write alike."""
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    state = fresh_state(plan)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(InfrastructureError, match=r"cannot write .*checkpoint") as caught:
            save_checkpoint(plan.checkpoint, state, plan.schedule.identity)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free space" in caught.value.hint
    assert [path.name for path in plan.checkpoint.parent.iterdir()] == ["corpus"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS), dry_run=True)
    assert result.release is None
    assert "events: 1,000 of 40 users over 60 items" in result.plan
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_time_ends_the_first_stage(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=10_000, max_minutes=0.1, patience=0)
    result = run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    assert 4 < result.metrics["training_seconds"] < 8
    assert 0 < result.metrics["steps"] < 10_000


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    train(fresh_state(plan), plan.schedule, stop_after=5)
    with pytest.raises(UsageError, match="settings differ"):
        run_pretrain(
            PretrainRequest(circle(), out=plan.request.out, settings=replace(SETTINGS, learning_rate=1e-3)), resume=True
        )
    with pytest.raises(UsageError, match="data_fingerprint, split differ"):
        run_pretrain(PretrainRequest(circle(users=41), out=plan.request.out, settings=SETTINGS), resume=True)


def test_a_damaged_checkpoint_is_a_data_error(tmp_path: Path) -> None:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    train(fresh_state(plan), plan.schedule, stop_after=5)
    plan.checkpoint.write_bytes(plan.checkpoint.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        run_pretrain(PretrainRequest(circle(), out=plan.request.out, settings=SETTINGS), resume=True)


def test_an_existing_release_is_kept(tmp_path: Path) -> None:
    run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    with pytest.raises(UsageError, match="exists already"):
        run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))


def test_a_diverging_run_stops_before_the_weights_are_spoilt(tmp_path: Path) -> None:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    state = fresh_state(plan)
    train(state, plan.schedule, stop_after=3)
    with torch.no_grad():
        state.model.psi.out.bias[0] = float("nan")
    before = state.model.items.weight.clone()
    with pytest.raises(DataError, match="diverged at step 3"):
        train(state, plan.schedule)
    assert torch.equal(state.model.items.weight, before)


def test_unknown_positive_actions_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names saev") as caught:
        make_plan(
            PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, positive_actions=("saev",)))
        )
    assert "save" in caught.value.hint


def test_histories_of_one_event_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to predict"):
        make_plan(PretrainRequest(circle(length=1), out=tmp_path / "base-1", settings=SETTINGS))


@pytest.mark.parametrize("change", [{"epochs": 0}, {"learning_rate": 0.0}, {"average_decay": 1.0}, {"seed": -1}])
def test_settings_out_of_range_are_usage_errors(change) -> None:
    with pytest.raises(UsageError, match=f"pretrain.{next(iter(change))} must be"):
        replace(SETTINGS, **change)
