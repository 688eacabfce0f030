"""Chooses the releases of a batch job and loads their encoders, once per process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from spoor.base.errors import UsageError
from spoor.batch.settings import BatchSettings
from spoor.feature_repo.releases import live_releases
from spoor.feature_repo.settings import FeatureSettings
from spoor.kernels.backend import force
from spoor.kernels.settings import KernelSettings

if TYPE_CHECKING:
    from spoor.encoder.release.inference import FrozenEncoder


@dataclass(frozen=True)
class Releases:
    """`chosen`: the job's releases. `live`: all that Feast knows and that are not retired. `not_applied`: live releases
    that Feast does not know; empty if the caller names its releases."""

    chosen: tuple[str, ...]
    live: tuple[str, ...]
    not_applied: tuple[str, ...]


def live_names(settings: BatchSettings) -> list[str]:
    """The releases in the folder that are not retired and that Feast knows (store/feast_store.py)."""
    from spoor.store.feast_store import live_names  # imports Feast

    return live_names(settings.features).usable


def choose_releases(settings: BatchSettings, wanted: Sequence[str] | None) -> Releases:
    """The wanted releases, else all live ones that Feast knows, sorted by name. Raises UsageError for an unknown
    release, or if there is none; opening the store checks that the wanted ones are applied."""
    folder = settings.features.releases_folder
    live = [release.name for release in live_releases(folder)]
    found = f"found {', '.join(live)}" if live else "it holds no live release"
    for name in wanted or ():
        if name not in live:
            raise UsageError(f"release `{name}` is not in `{folder}`: {found}", hint="`spoor release list` shows them")
    if not live:
        raise UsageError(f"no release in `{folder}`: {found}", hint="train one with `spoor pretrain --release NAME`")
    applied = live_names(settings)
    not_applied = () if wanted else tuple(name for name in live if name not in applied)
    return Releases(tuple(sorted(set(wanted or applied))), tuple(applied), not_applied)


def encoders(features: FeatureSettings, kernels: KernelSettings, names: Sequence[str]) -> dict[str, FrozenEncoder]:
    """Encoders by release. Also sets the kernel backend of this process, which may be a remote worker. Raises
    UsageError or DataError for a missing or damaged release."""
    force(kernels.backend)
    folder = features.releases_folder
    return {name: _encoder(folder / name, _changed_ns(folder / name)) for name in names}


def _changed_ns(folder: Path) -> int | None:
    """When the release was written; None if its checksums are missing, which loading reports."""
    try:
        return (folder / "checksums.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


@lru_cache(maxsize=8)
def _encoder(folder: Path, changed_ns: int | None) -> FrozenEncoder:
    from spoor.encoder.release.inference import load_encoders

    del changed_ns  # only part of the cache key
    return load_encoders(folder.parent, [folder.name])[0]
