"""The number of steps: decided once from a measured speed, kept, repeatable on any machine, ended by the clock."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
from safetensors import safe_open

from spoor.base.errors import UsageError
from spoor.encoder.release.folder import load_release
from spoor.encoder.release.info import read_info
from spoor.encoder.release.training_end import TrainingEnd
from spoor.encoder.training.checkpoint import TrainState, load_checkpoint
from spoor.encoder.training.loop import train
from spoor.encoder.training.pace import MEASURED_STEPS, StepPlan, divide, rounded_down
from spoor.encoder.training.plan import Plan, PretrainRequest, make_plan
from spoor.encoder.training.run import fresh_state, run_pretrain
from spoor.encoder.training.settings import PretrainSettings
from tests.encoder.training.test_run import SETTINGS, circle

LONG = replace(SETTINGS, epochs=200, patience=0)


def steady(step_seconds: float) -> Callable[[int], float]:
    """The time after so many steps of a machine that is equally fast throughout."""
    return lambda steps: steps * step_seconds


def trained(plan: Plan, time_after: Callable[[int], float], *, stop_after: int | None = None) -> TrainState:
    """A run on a machine whose clock reads `time_after(steps)`."""
    state = fresh_state(plan)
    train(state, plan.schedule, now=lambda: time_after(state.step), stop_after=stop_after)
    return state


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, TrainState]:
    """A run whose steps follow from the speed that it measured."""
    folder = tmp_path_factory.mktemp("limited")
    plan = make_plan(PretrainRequest(circle(), out=folder / "base-1", settings=replace(LONG, max_minutes=0.05)))
    return plan, trained(plan, steady(0.05))


def test_the_steps_that_a_speed_allows_are_decided_once_and_taken(limited: tuple[Plan, TrainState]) -> None:
    state = limited[1]
    assert state.planned is not None and state.planned.source == "max_minutes"
    assert MEASURED_STEPS < state.step == len(state.losses) == state.planned.total
    assert 0 < state.planned.refit < state.planned.fit
    assert (state.ended_by, state.cut) == ("max_minutes", False)


def test_the_same_steps_give_the_same_losses_on_a_slow_machine(
    tmp_path: Path, limited: tuple[Plan, TrainState]
) -> None:
    first = limited[1]
    assert first.planned is not None
    given = replace(LONG, steps=first.planned.total)
    slow = trained(make_plan(PretrainRequest(circle(), out=tmp_path / "slow", settings=given)), steady(30.0))
    assert slow.losses == first.losses
    hurried = replace(given, max_minutes=60.0)
    assert (
        trained(make_plan(PretrainRequest(circle(), out=tmp_path / "b", settings=hurried)), steady(0.5)).losses
        == first.losses
    )


def test_a_resumed_run_keeps_its_steps_however_slow_it_has_become(
    tmp_path: Path, limited: tuple[Plan, TrainState]
) -> None:
    settings = replace(LONG, max_minutes=0.05)
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    stopped = trained(plan, steady(0.05), stop_after=25)
    resumed = fresh_state(plan)
    load_checkpoint(plan.checkpoint, resumed, plan.schedule.identity)
    assert resumed.planned == stopped.planned == limited[1].planned
    train(resumed, plan.schedule, now=lambda: 0.053 * resumed.step)
    assert resumed.planned == stopped.planned and resumed.losses == limited[1].losses


def test_a_run_that_becomes_slower_than_measured_is_cut_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(LONG, max_minutes=0.05)))
    state = trained(plan, lambda steps: 0.05 * steps if steps < 30 else 0.5 * (steps - 27))
    assert state.planned is not None and MEASURED_STEPS < state.step < state.planned.total
    assert (state.ended_by, state.cut) == ("max_minutes", True)
    assert f"of {state.planned.fit} planned steps of stage fit, slower than measured" in capfd.readouterr().err


def test_a_time_that_is_over_while_the_speed_is_measured_gives_what_there_is(tmp_path: Path) -> None:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(LONG, max_minutes=0.05)))
    state = trained(plan, steady(0.25))
    assert 0 < state.step < MEASURED_STEPS and state.best and state.ended_by == "max_minutes"
    assert state.planned == StepPlan(state.step, 0, False, "max_minutes")
    again = make_plan(PretrainRequest(circle(), out=tmp_path / "again", settings=replace(LONG, steps=state.step)))
    assert trained(again, steady(9.0)).losses == state.losses


def test_a_time_that_is_over_while_the_first_batch_is_read_takes_one_step(tmp_path: Path) -> None:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(LONG, max_minutes=1.0)))
    times = chain([0.0] * 3, repeat(1e9))  # it is over between the look at the clock and the first step
    state = trained(plan, lambda _: next(times))
    assert state.step == 1 and len(state.losses) == 1 and state.ended_by == "max_minutes"


def test_a_time_that_is_over_before_the_first_step_is_refused_and_the_hint_helps(tmp_path: Path) -> None:
    settings = replace(SETTINGS, max_minutes=0.0001)
    with pytest.raises(UsageError, match="nothing was learned, no release was written") as caught:
        run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    assert not (tmp_path / "base-1").exists()
    minutes = float(caught.value.hint.partition("--max-minutes ")[2].partition(",")[0])
    result = run_pretrain(
        PretrainRequest(circle(), out=tmp_path / "base-1", settings=replace(SETTINGS, max_minutes=minutes))
    )
    assert result.metrics["steps"] > 0


def test_a_release_says_that_its_training_was_stopped_while_rising(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = replace(LONG, steps=24, learning_rate=1e-2)
    result = run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    ended = read_info(tmp_path / "base-1").ended
    assert ended is not None and ended.rising and ended.by == "steps"
    assert result.metrics["stopped_while_rising"] == 1
    assert result.metrics["planned_steps"] == result.metrics["steps"] == 24
    assert ended.line in capfd.readouterr().err
    assert "validation NDCG@10 was still rising" in (tmp_path / "base-1" / "MODEL_CARD.md").read_text()
    assert json.loads((tmp_path / "base-1" / "release.json").read_text())["ended"]["rising"] is True
    assert load_release(tmp_path / "base-1").info.ended == ended


def test_a_training_that_its_epochs_ended_has_nothing_to_say(tmp_path: Path) -> None:
    run_pretrain(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    ended = read_info(tmp_path / "base-1").ended
    assert ended is not None and (ended.by, ended.note, ended.line) == ("epochs", "", "")


@pytest.mark.parametrize(
    ("by", "values", "rising"),
    [
        ("max_minutes", [0.1, 0.2], True),
        ("max_minutes", [0.1], True),
        ("max_minutes", [0.2, 0.2005], False),
        ("max_minutes", [0.2, 0.3, 0.25], False),
        ("epochs", [0.1, 0.2], False),
    ],
)
def test_rising_is_a_gain_at_the_end_of_a_run_that_a_limit_ended(by: str, values: list[float], rising: bool) -> None:
    found = [{"ndcg_at_10": value} for value in values]
    ended = TrainingEnd.of(by=by, cut=False, steps=10, planned_steps=10, evaluations=found)
    assert ended.rising is rising and bool(ended.note) is rising


def test_a_checkpoint_header_does_not_grow_with_the_losses(tmp_path: Path) -> None:
    from spoor.encoder.training.checkpoint import save_checkpoint

    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    state, sizes = fresh_state(plan), []
    for steps in (0, 200_000):
        state.losses = [1.0 / (k + 1) for k in range(steps)]
        state.evaluations = [{"ndcg_at_10": 0.1, "step": k} for k in range(steps // 10)]
        save_checkpoint(plan.checkpoint, state, plan.schedule.identity)
        sizes.append(int.from_bytes(plan.checkpoint.read_bytes()[:8], "little"))
    assert sizes[1] - sizes[0] < 2_000  # offsets have more digits
    loaded = fresh_state(plan)
    load_checkpoint(plan.checkpoint, loaded, plan.schedule.identity)
    assert (loaded.losses, loaded.evaluations) == (state.losses, state.evaluations)


def test_a_checkpoint_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """Losses and evaluations were in its header, it had no planned steps, and settings were fewer."""
    from safetensors.torch import save_file

    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=SETTINGS))
    whole = trained(plan, steady(0.01), stop_after=20)
    state = trained(plan, steady(0.01), stop_after=10)
    with safe_open(plan.checkpoint, framework="pt") as file:
        header = json.loads(file.metadata()["spoor"])
        names = [name for name in file.keys() if not name.startswith("log.")]  # noqa: SIM118 (not a mapping)
        tensors = {name: file.get_tensor(name) for name in names}
    header["place"] |= {"losses": state.losses, "evaluations": state.evaluations}
    for name in ("ended_by", "cut"):
        del header["place"][name]
    del header["planned"], header["identity"]["settings"]["steps"]
    save_file(tensors, plan.checkpoint, metadata={"spoor": json.dumps(header)})
    resumed = fresh_state(plan)
    load_checkpoint(plan.checkpoint, resumed, plan.schedule.identity)
    train(resumed, plan.schedule, stop_after=20)
    assert resumed.losses == whole.losses


def test_an_unfinished_run_is_mentioned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    short = replace(SETTINGS, epochs=2)
    out = tmp_path / "base-1"

    def said(*, settings: PretrainSettings = short, resume: bool = False) -> str:
        trained(make_plan(PretrainRequest(circle(), out=out, settings=short)), steady(0.01), stop_after=10)
        capfd.readouterr()
        run_pretrain(PretrainRequest(circle(), out=out, settings=settings), resume=resume, overwrite=True)
        return capfd.readouterr().err

    anew = said()
    assert "found an unfinished run of `base-1`, stopped after step 10" in anew and "add --resume" in anew
    other = said(settings=replace(short, seed=7))
    assert "stopped after step 10, of other settings: training starts from the beginning" in other
    assert "resuming after step 10 from" in said(resume=True)
    run_pretrain(PretrainRequest(circle(), out=out, settings=short), resume=True, overwrite=True)
    assert "nothing to resume: there is no checkpoint" in capfd.readouterr().err


def test_a_refit_gets_what_it_asks_for_up_to_half_and_nothing_of_the_measured_steps() -> None:
    assert divide(1_000, fit=500, refit=60, source="steps") == StepPlan(500, 60, True, "steps")
    assert divide(400, fit=500, refit=60, source="steps") == StepPlan(340, 60, False, "steps")
    assert divide(100, fit=500, refit=60, source="steps") == StepPlan(50, 50, False, "steps")
    assert divide(25, fit=500, refit=60, source="steps") == StepPlan(20, 5, False, "steps")
    assert divide(7, fit=500, refit=60, source="steps") == StepPlan(7, 0, False, "steps")


def test_shares_begin_after_what_is_measured_and_end_at_one() -> None:
    plan = StepPlan(120, 10, False, "steps")
    assert [plan.share_done("fit", steps) for steps in (0, 20, 70, 120)] == [0.0, 0.0, 0.5, 1.0]
    assert plan.share_done("refit", 5) == 0.5


@pytest.mark.parametrize(("steps", "expected"), [(0, 0), (7, 7), (99, 99), (119, 110), (12_345, 12_000)])
def test_steps_are_rounded_to_two_digits(steps: int, expected: int) -> None:
    assert rounded_down(steps) == expected
