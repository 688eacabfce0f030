"""`spoor release compare`: compares two releases on the histories of the same users and on the same items. Fits the
orthogonal map between their spaces, and can write the new release mapped into the old one's space."""

from __future__ import annotations

from dataclasses import dataclass

from spoor.base.errors import UsageError
from spoor.config import Settings
from spoor.encoder.release.align import check_alignable, save_aligned
from spoor.encoder.release.alignment import Compatibility, compare, save_alignment
from spoor.encoder.release.inference import load_encoders
from spoor.encoder.release.info import read_info
from spoor.operations.probe import sample_users, stored_histories
from spoor.store.online import open_online


@dataclass(frozen=True)
class Comparison:
    """`stored`: the map was written to the new release's folder. `aligned`: the release written with it, if any."""

    report: Compatibility
    stored: bool
    aligned: str | None
    dry_run: bool


def compare_releases(
    settings: Settings,
    old: str,
    new: str,
    *,
    sample: int,
    neighbours: int,
    aligned: str | None = None,
    dry_run: bool = False,
) -> Comparison:
    """Compares on at most `sample` users of the online store and as many items; writes the map to the new release's
    folder. `aligned`: name of another release to write, the new one mapped into the old one's space.

    Raises UsageError for an unknown release, two equal ones or an empty store, DataError for a damaged release,
    InfrastructureError if the store does not answer; for `aligned` as `save_aligned`.
    """
    folder = settings.features.releases_folder
    if old == new:
        raise UsageError("a release is compared with another one", hint="name two")
    infos = read_info(folder / old), read_info(folder / new)
    if aligned is not None:
        check_alignable(folder / aligned, old=infos[0], new=infos[1])
    online = open_online(settings.features)
    histories = stored_histories(online, sample_users(online, sample))
    if not histories.count:
        raise UsageError("the online store holds no history to compare releases on", hint="run `spoor backfill` first")
    first, second = load_encoders(folder, [old, new])
    report, map_DD = compare(first, second, histories, items=sample, neighbours=neighbours)
    stored = map_DD is not None and not dry_run
    if map_DD is not None and stored:
        save_alignment(folder / new, folder / old, map_DD, report)
        if aligned is not None:
            through_ms = int(histories.last_times().max())
            save_aligned(
                folder / aligned, old=infos[0], new=infos[1], map_DD=map_DD, report=report, fitted_through_ms=through_ms
            )
    return Comparison(report, stored, aligned if stored else None, dry_run)
