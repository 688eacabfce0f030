"""Pretraining: events to a release.

    request -> plan (plan.py) -> model -> training loop (loop.py) -> release

A killed run resumes from its last checkpoint and, on the same machine, reproduces the losses bit for bit. The
averaged weights are released.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from spoor.base.errors import DataError, UsageError
from spoor.base.release_names import check_release_name
from spoor.encoder.data.item_links import count_links
from spoor.encoder.data.split import TRAIN, VALIDATION
from spoor.encoder.evaluation.mixture import FILE as MIXTURE_FILE
from spoor.encoder.evaluation.mixture import Mixture
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.release.folder import BEFORE_REFIT_FILE, check_free, save_release
from spoor.encoder.release.inference import new_model
from spoor.encoder.release.info import ReleaseInfo
from spoor.encoder.release.training_end import TrainingEnd
from spoor.encoder.training.checkpoint import TrainState, load_checkpoint, look_at_checkpoint
from spoor.encoder.training.loop import train
from spoor.encoder.training.parallel import processes_of_torchrun
from spoor.encoder.training.plan import Plan, PretrainRequest, make_plan
from spoor.encoder.training.progress import draw_curve
from spoor.encoder.training.settings import PretrainSettings
from spoor.encoder.training.warm_start import start_from_links, start_from_release
from spoor.kernels.backend import require_usable

_LARGE_TABLE = 5_000_000  # floats; from this size, updates are sparse unless every row has a gradient


@dataclass(frozen=True, eq=False)
class PretrainResult:
    """`release` is None after a dry run, and in every torchrun process except the first."""

    plan: list[str]
    release: ReleaseInfo | None
    metrics: dict[str, float]
    losses: list[float]


def run_pretrain(
    request: PretrainRequest, *, resume: bool = False, dry_run: bool = False, overwrite: bool = False
) -> PretrainResult:
    """Trains on the request's events and writes its release folder.

    `resume` continues from the checkpoint of a killed run, if there is one. Prints plan and progress on stderr.
    Raises UsageError, DataError, InfrastructureError.
    """
    started = time.perf_counter()
    check_release_name(request.out.name)
    check_free(request.out, overwrite=overwrite)
    require_usable()
    with processes_of_torchrun() as processes, tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(request, folder=Path(scratch) if dry_run else None, processes=processes)
        if processes.first:
            print("\n".join(plan.lines()), file=sys.stderr)
        if dry_run:
            return PretrainResult(plan.lines(), None, {}, [])
        state = fresh_state(plan)
        if resume and plan.checkpoint.exists():
            load_checkpoint(plan.checkpoint, state, plan.schedule.identity)
        if processes.first:
            for line in _start_lines(plan, state, resume=resume):
                print(line, file=sys.stderr)
        train(state, plan.schedule, processes=processes, seconds_before=time.perf_counter() - started)
        if not processes.first:
            return PretrainResult(plan.lines(), None, {}, state.losses)
        metrics = _final_metrics(state, plan)
        ended = _training_end(state)
        if ended.line:
            print(f"pretrain: {ended.line}", file=sys.stderr)
        mixture = None
        if plan.settings.mixture == "fitted":
            mixture, measured = _mixture(state, plan)
            metrics |= measured
        info = _release(state, plan, metrics, mixture, ended, overwrite=overwrite)
    shutil.rmtree(plan.schedule.folder, ignore_errors=True)
    return PretrainResult(plan.lines(), info, metrics, state.losses)


def fresh_state(plan: Plan) -> TrainState:
    """The state before the first step."""
    settings = plan.settings
    model = new_model(plan.model, plan.vocabulary)
    model.initialise(settings.seed)
    if plan.warm is not None:
        start_from_release(model, plan.vocabulary, plan.warm)
    elif settings.item_start == "links":
        start_from_links(model, plan.corpus, plan.split, plan.vocabulary, seed=settings.seed)
    model.recompute = settings.activations == "recomputed"
    model.items.sparse = _sparse(model.items.weight.numel(), settings)
    return TrainState.of(model.to("cuda" if torch.cuda.is_available() else "cpu"), settings)


def _start_lines(plan: Plan, state: TrainState, *, resume: bool) -> list[str]:
    """Lines on an earlier run of the same name: resumed, replaced or missing."""
    if state.step:
        of = f" of {state.planned.total:,}" if state.planned else ""
        return [f"resuming after step {state.step:,}{of} from {plan.checkpoint}"]
    if resume:
        return [f"nothing to resume: there is no checkpoint {plan.checkpoint}; training starts from the beginning"]
    if not plan.checkpoint.exists():
        return []
    try:
        left = look_at_checkpoint(plan.checkpoint, plan.schedule.identity)
    except DataError as error:
        return [f"{error.message}; training starts from the beginning"]
    found = f"found an unfinished run of `{plan.request.out.name}`, stopped after step {left.step:,}"
    if left.changed:
        return [f"{found}, of other {', '.join(left.changed)}: training starts from the beginning and replaces it"]
    return [f"{found}: training starts from the beginning and replaces it; to continue it, stop and add --resume"]


def _sparse(table_floats: int, settings: PretrainSettings) -> bool:
    if settings.table_updates == "auto":
        return settings.negatives != "full" and table_floats >= _LARGE_TABLE
    if settings.table_updates == "sparse" and settings.negatives == "full":
        raise UsageError(
            "pretrain.table_updates is sparse, but with negatives = full every row has a gradient",
            hint='set pretrain.negatives to "mixed", or pretrain.table_updates to "auto"',
        )
    return settings.table_updates == "sparse"


def _best_model(state: TrainState, plan: Plan) -> UserEncoder:
    """The averaged weights of the best epoch, before the refit; not trained on validation events."""
    model = new_model(plan.model, plan.vocabulary)
    model.load_state_dict({name: value.cpu() for name, value in state.best.items()})
    return model.eval()


def _mixture(state: TrainState, plan: Plan) -> tuple[Mixture | None, dict[str, float]]:
    """The mixture for the best epoch's vectors, fitted on the validation events, and its metrics there. None if it does
    not improve NDCG@10. The links of the returned mixture are counted over the validation events too."""
    validator, model = plan.schedule.validator, _best_model(state, plan)
    links = count_links(plan.corpus, plan.split, plan.vocabulary, upto=TRAIN)
    mixture = Mixture.fit(links, validator.asked(model), seen=validator.seen)
    measured = validator.measure_mixture(model, mixture)
    if measured["mixture_ndcg_at_10"] <= state.evaluations[state.best_epoch]["ndcg_at_10"]:
        print("pretrain: the mixture ranks no better than the vectors alone, so it is left out", file=sys.stderr)
        return None, {}
    return Mixture(count_links(plan.corpus, plan.split, plan.vocabulary, upto=VALIDATION), mixture.weights), measured


def _release(
    state: TrainState,
    plan: Plan,
    metrics: dict[str, float],
    mixture: Mixture | None,
    ended: TrainingEnd,
    *,
    overwrite: bool,
) -> ReleaseInfo:
    training = asdict(plan.settings) | {
        "torch": torch.__version__,
        "processor": platform.machine(),
        "recipe": list(plan.reasons),
        "warm_start": plan.warm.info.name if plan.warm else None,
    }
    more_files = {path.name: path.read_bytes() for path in sorted(plan.schedule.folder.glob("events.out.tfevents.*"))}
    if mixture is not None:
        more_files[MIXTURE_FILE] = mixture.to_bytes()
    if plan.settings.refit_epochs and plan.split.protocol != "newest":
        more_files[BEFORE_REFIT_FILE] = save_tensors({name: value.cpu() for name, value in state.best.items()})
    return save_release(
        plan.request.out,
        model=plan.model,
        weights={name: value.cpu().numpy() for name, value in state.average.state_dict().items()},
        vocabulary=plan.vocabulary,
        trained_through_ms=plan.trained_through_ms,
        data_fingerprint=plan.corpus.fingerprint,
        metrics=metrics,
        training=training,
        curve_png=draw_curve(state.losses, state.evaluations, title=f"{plan.request.out.name}: pretraining"),
        split=plan.split.record(shuffle_ties=plan.request.shuffle_ties),
        ended=ended,
        more_files=more_files,
        overwrite=overwrite,
    )


def _training_end(state: TrainState) -> TrainingEnd:
    return TrainingEnd.of(
        by=state.ended_by,
        cut=state.cut,
        steps=state.step,
        planned_steps=state.planned.total if state.planned else 0,
        evaluations=state.evaluations,
    )


def _final_metrics(state: TrainState, plan: Plan) -> dict[str, float]:
    """Metrics of the best epoch, measured before the refit, and counts of the run."""
    best = state.evaluations[state.best_epoch] if state.evaluations else {}
    return {name: value for name, value in best.items() if name != "step"} | {
        "best_epoch": state.best_epoch + 1,
        "final_loss": float(np.mean(state.losses[-50:])),
        "steps": state.step,
        "planned_steps": state.planned.total if state.planned else 0,
        "stopped_while_rising": int(_training_end(state).rising),
        "training_seconds": round(state.seconds, 1),
        "training_events": int(plan.schedule.stages[-1].tokens),
        "training_users": plan.corpus.users,
        "known_items": len(plan.vocabulary.items),
    }
