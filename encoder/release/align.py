"""Writes a release whose vectors are in another release's space: a model followed by the rotation of a comparison.

    release NEW, the map of its vectors to OLD's -> release OUT: NEW, rotated into OLD's space

OUT is a release like any other: views, topic, backfill, verify, promote and retire know nothing of rotations. If OLD
is aligned itself, OUT is in the space of OLD. A consumer trained on one release's vectors can so read any number of
later ones. docs/decisions/0010-aligned-releases.md gives the reasons.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors_numpy

from spoor.base.errors import ProblemsFound, UsageError
from spoor.base.release_names import check_release_name
from spoor.encoder.release.alignment import Compatibility, Floats
from spoor.encoder.release.folder import (
    BEFORE_REFIT_FILE,
    check_free,
    new_folder,
    training_record,
    verified_files,
    write_files,
)
from spoor.encoder.release.info import ReleaseInfo, read_info
from spoor.encoder.release.packed_tables import ROWS_FILE

_WEIGHTS, _ROTATION = "model.safetensors", "rotation"
_DESCRIBED_ANEW = {"release.json", "MODEL_CARD.md", BEFORE_REFIT_FILE}
_FARTHEST = 1.0  # residual of a map whose result is no nearer to the old vectors than zeros


def check_alignable(out: Path, *, old: ReleaseInfo, new: ReleaseInfo) -> None:
    """Raises UsageError for a bad name, a release that exists, or dimensions that differ."""
    check_release_name(out.name)
    check_free(out, overwrite=False, option="")
    if old.dimension != new.dimension:
        raise UsageError(
            f"release `{new.name}` has {new.dimension} dimensions, `{old.name}` has {old.dimension}: nothing turns one "
            "into the other",
            hint="train what reads the old vectors again on the new ones",
        )


def save_aligned(
    out: Path, *, old: ReleaseInfo, new: ReleaseInfo, map_DD: Floats, report: Compatibility, fitted_through_ms: int
) -> ReleaseInfo:
    """Writes the release atomically. `fitted_through_ms`: time of the newest event that the map was fitted on; the
    release is trained through the latest of this time and those of both models.

    Raises as `check_alignable`, ProblemsFound if mapped vectors of held-out users are no nearer to the old ones than
    zeros, DataError for a damaged release, InfrastructureError if the folder cannot be written.
    """
    check_alignable(out, old=old, new=new)
    fit = report.user_fit
    if fit is None or fit.residual >= _FARTHEST:
        found = "too few users were compared" if fit is None else f"the residual is {fit.residual:.2f}"
        raise ProblemsFound(
            f"vectors of `{new.name}` cannot stand in for those of `{old.name}`: {found}",
            hint="compare more users (--sample), start the training from the old release "
            f"(`spoor pretrain --release NAME --from {old.name}`), or train what reads the old vectors again",
        )
    metrics, training = training_record(new)
    files = verified_files(new, without=_DESCRIBED_ANEW)
    weights = safetensors_numpy.load(files[_WEIGHTS])
    earlier = weights.get(_ROTATION, np.eye(new.dimension, dtype=np.float32))
    files[_WEIGHTS] = safetensors_numpy.save(weights | {_ROTATION: np.asarray(earlier @ map_DD, np.float32)})
    info = replace(
        new,
        name=out.name,
        folder=out,
        trained_through_ms=max(new.trained_through_ms, old.trained_through_ms, fitted_through_ms),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=replace(new.model, rotated=True),
        aligned={"of": new.name, "to": old.name, "space": old.space, "report": asdict(report)},
        retired=False,
    )
    with new_folder(out) as folder:
        if new.packed is not None:
            _share(new.folder / ROWS_FILE, folder / ROWS_FILE)
        write_files(folder, info, files, metrics=metrics, training=training)
    return read_info(out)


def _share(source: Path, target: Path) -> None:
    """A hard link, else a copy: packed rows may fill most of a disk, and never change."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
