"""The loop: golden losses, early stopping, the clock, what it refuses, what it writes down."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from spoor.base.errors import DataError, UsageError
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.release.folder import load_release
from spoor.encoder.training.loop import available_threads, train
from spoor.encoder.training.parallel import Processes
from spoor.encoder.training.plan import PretrainRequest, make_plan
from spoor.encoder.training.progress import MlflowRun
from spoor.encoder.training.run import fresh_state, run_pretrain
from spoor.encoder.training.settings import PretrainSettings
from tests.encoder.training.test_run import SETTINGS, THREE_LOSSES, circle

GOLDEN = Path(__file__).parent / "golden_losses.json"
GOLDEN_RUNS: dict[str, dict[str, Any]] = {
    "mixed": {"negatives": "mixed"},
    "full": {"negatives": "full"},
    "three losses": {"negatives": "in-batch", **THREE_LOSSES},
    "sparse": {"table_updates": "sparse"},
}


def losses_of(folder: Path, changes: dict[str, Any], steps: int) -> list[float]:
    plan = make_plan(PretrainRequest(circle(), out=folder / "base-1", settings=replace(SETTINGS, **changes)))
    state = fresh_state(plan)
    train(state, plan.schedule, stop_after=steps)
    return state.losses


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_losses_are_the_golden_ones(tmp_path: Path, name: str) -> None:
    """To 1e-4 of their value: processors add in various orders.
    `python -m tests.encoder.training.test_loop` writes them."""
    found = losses_of(tmp_path, GOLDEN_RUNS[name], steps=12)
    assert found == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-4)


class Falling:
    """A validator whose best epoch is the second."""

    questions = 1

    def __init__(self) -> None:
        self.calls = 0

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        self.calls += 1
        assert not model.training
        return {"recall_at_10": 0.5, "popularity_recall_at_10": 0.1, "ndcg_at_10": 0.4 - abs(self.calls - 2) / 10}


def test_it_stops_when_patience_is_over_and_refits_the_best_weights(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=50, patience=3, refit_epochs=1)
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    schedule = replace(plan.schedule, validator=Falling())
    second = fresh_state(plan)
    train(second, replace(schedule, validator=Falling()), stop_after=2 * plan.schedule.stages[0].reader.batches(0))
    state = fresh_state(plan)
    train(state, schedule, stop_after=5 * plan.schedule.stages[0].reader.batches(0) + 1)
    assert len(state.evaluations) == 5 and state.best_epoch == 1
    assert state.stage == 1 and state.optimiser.steps == 1  # one step of the refit is done
    for name, value in second.average.state_dict().items():
        assert torch.equal(value, state.best[name]), name


def test_a_future_token_loss_without_a_pair_fails(tmp_path: Path) -> None:
    """As at the end of a stage in which no segment was long enough."""
    settings = replace(SETTINGS, **THREE_LOSSES)
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    state = fresh_state(plan)
    state.stage, state.epoch = 0, settings.epochs
    with pytest.raises(DataError, match=r"the future-token loss has weight 0[.]5 and saw no pair"):
        train(state, plan.schedule)


def test_an_hour_is_not_used_by_a_short_run(tmp_path: Path) -> None:
    plain = losses_of(tmp_path / "one", {}, steps=10)
    assert losses_of(tmp_path / "other", {"max_minutes": 60.0}, steps=10) == plain


def test_tables_beyond_memory_are_refused_with_the_figures(tmp_path: Path) -> None:
    assert psutil.virtual_memory().total < MODEL_CONFIGS["paper"].hash_functions * 80_000_000 * 32 * 4 * 5
    with pytest.raises(UsageError, match=r"need 410 GB in each process.*not supported"):
        make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, model="paper")))


def test_sparse_updates_of_a_full_softmax_are_refused(tmp_path: Path) -> None:
    plan = make_plan(
        PretrainRequest(
            circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, negatives="full", table_updates="sparse")
        )
    )
    with pytest.raises(UsageError, match="every row has a gradient"):
        fresh_state(plan)


def test_mlflow_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import of it now fails
    with pytest.raises(UsageError, match="MLflow is not installed") as caught:
        run_pretrain(
            PretrainRequest(
                circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, mlflow_uri="http://127.0.0.1:9")
            )
        )
    assert "pip install" in caught.value.hint


class LosesItsServer(ModuleType):
    """As MLflow behaves whose server goes away after the run has begun; it talks on stdout, too."""

    class exceptions:
        class MlflowException(Exception): ...

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.asked: list[object] = []

    def set_tracking_uri(self, uri: str) -> None:
        self.asked.append(uri)

    def start_run(self, run_name: str) -> None:
        self.asked.append(run_name)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.asked.append(step)
        if step > 30:
            raise self.exceptions.MlflowException("no answer")

    def end_run(self, status: str) -> None:
        print("View run")
        self.asked.append(status)


def test_a_lost_mlflow_server_does_not_end_the_training(tmp_path: Path, monkeypatch, capsys) -> None:
    mlflow = LosesItsServer()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    uri = "http://127.0.0.1:9"
    result = run_pretrain(
        PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, epochs=6, mlflow_uri=uri))
    )
    assert result.release is not None
    assert mlflow.asked == [uri, "base-1", 8, 16, 20, 24, 32, "FINISHED"]  # nothing was logged after 32 had failed
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("MLflow is lost, training goes on without it: no answer") == 1


def test_a_training_that_fails_is_a_failed_run_of_mlflow(tmp_path: Path, monkeypatch, capsys) -> None:
    mlflow = LosesItsServer()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with pytest.raises(ZeroDivisionError), MlflowRun.open("http://127.0.0.1:9", run_name="base-1"):
        raise ZeroDivisionError
    assert mlflow.asked[-1] == "FAILED" and capsys.readouterr().out == ""


@pytest.mark.parametrize(("here", "expected"), [(1, 8), (3, 2), (8, 1), (20, 1)])
def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, here: int, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert available_threads(Processes(0, 40, here)) == expected


def test_tensorboard_finds_losses_and_quality(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, epochs=6)))
    log = EventAccumulator(str(tmp_path / "base-1"))
    log.Reload()
    assert {"loss", "learning_rate", "ndcg_at_10", "mean_cosine"} <= set(log.Tags()["scalars"])
    assert [scalar.step for scalar in log.Scalars("loss")][:2] == [20, 40]
    assert log.Scalars("loss")[0].value == pytest.approx(result.losses[19], rel=1e-5)
    assert len(log.Scalars("ndcg_at_10")) == 6


def test_a_later_release_starts_from_an_earlier_one(tmp_path: Path) -> None:
    """It knows ten more items; what both know is taken over."""
    settings = replace(SETTINGS, epochs=20, learning_rate=1e-2)
    run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    few = replace(SETTINGS, epochs=1, learning_rate=1e-3)
    cold = run_pretrain(PretrainRequest(circle(items=70), out=tmp_path / "cold", settings=few))
    warm = run_pretrain(
        PretrainRequest(circle(items=70), out=tmp_path / "warm", settings=few, warm_start=tmp_path / "base-1")
    )
    assert warm.metrics["ndcg_at_10"] > cold.metrics["ndcg_at_10"] + 0.2
    told = json.loads((tmp_path / "warm" / "release.json").read_text())["training"]
    assert told["warm_start"] == "base-1"


def test_direct_rows_are_matched_by_item(tmp_path: Path) -> None:
    settings = PretrainSettings(epochs=1)
    run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    plan = make_plan(
        PretrainRequest(circle(items=70), out=tmp_path / "base-2", settings=settings, warm_start=tmp_path / "base-1")
    )
    started = fresh_state(plan).model.items.weight
    earlier = load_release(tmp_path / "base-1")
    for index, item in enumerate(plan.vocabulary.item_ids, 1):
        if item in earlier.vocabulary.item_ids:
            row = earlier.weights["items.weight"][1 + earlier.vocabulary.item_ids.index(item)]
            assert torch.equal(started[index], torch.from_numpy(row)), item


def test_a_release_of_another_shape_is_refused(tmp_path: Path) -> None:
    run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    plan = make_plan(
        PretrainRequest(
            circle(), out=tmp_path / "x", settings=replace(SETTINGS, model="base"), warm_start=tmp_path / "base-1"
        )
    )
    with pytest.raises(UsageError, match=r"has another shape: hash_functions, .*differ"):
        fresh_state(plan)


def test_the_recipe_leaves_what_was_chosen(tmp_path: Path) -> None:
    plan = make_plan(
        PretrainRequest(circle(), out=tmp_path / "base-1", settings=PretrainSettings(epochs=3), fixed={"token_budget"})
    )
    assert (plan.settings.epochs, plan.settings.token_budget) == (3, 512)
    assert plan.settings.negatives == "full" and plan.model.items == "direct"
    assert any("rows" in line or "row for each item" in line for line in plan.lines())


def test_recomputed_activations_change_no_loss(tmp_path: Path) -> None:
    kept = losses_of(tmp_path / "kept", {}, steps=20)
    assert losses_of(tmp_path / "recomputed", {"activations": "recomputed"}, steps=20) == pytest.approx(kept, rel=1e-4)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        torch.set_num_threads(1)
        golden = {name: losses_of(Path(scratch) / name, run, 12) for name, run in GOLDEN_RUNS.items()}
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n")
