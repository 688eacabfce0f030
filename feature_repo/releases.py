"""The live releases for Feast, and the promoted one. Both come from JSON files: no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spoor.base.errors import DataError, UsageError
from spoor.base.files import read_at_most
from spoor.base.release_names import check_release_name

_JSON_BYTES = 16 << 20
PROMOTED_FILE = "promoted.json"  # beside the release folders; written by `spoor release promote`


@dataclass(frozen=True)
class LiveRelease:
    name: str
    dimension: int  # floats in an embedding
    trained_through_ms: int  # newest event the model may have seen, ms since 1970 UTC
    space: str  # the release whose vectors its own may replace: itself, unless aligned to another

    @property
    def trained_through(self) -> str:
        return datetime.fromtimestamp(self.trained_through_ms / 1000, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Promotion:
    """The release of the service `ranker`, and by space that of the service `aligned_ranker_<space>`."""

    release: str
    previous: str | None  # the earlier release of `ranker`
    promoted_at_ms: int  # wall clock, ms since 1970 UTC
    aligned: Mapping[str, str] = field(default_factory=dict)  # release by space
    previous_aligned: str | None = None  # the earlier release of the space of `release`


def live_releases(folder: Path) -> list[LiveRelease]:
    """Every release in the folder that is not retired, by name. Raises DataError for a damaged release.json."""
    found = [_read(path) for path in sorted(folder.glob("[!.]*/release.json"))]
    return [release for release in found if release is not None]


def is_retired(folder: Path) -> bool:
    """Whether the release in this folder is retired; False if the folder cannot be read."""
    try:
        return bool(_json(folder / "release.json")["retired"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def promotion(folder: Path) -> Promotion | None:
    """The last promotion in this folder of releases; None without one. Raises DataError for a damaged file."""
    path = folder / PROMOTED_FILE
    try:
        content = _json(path)
        previous, previous_aligned = content["previous"], content.get("previous_aligned")
        return Promotion(
            release=check_release_name(content["release"]),
            previous=None if previous is None else check_release_name(previous),
            promoted_at_ms=int(content["promoted_at_ms"]),
            aligned={check_release_name(s): check_release_name(r) for s, r in content.get("aligned", {}).items()},
            previous_aligned=None if previous_aligned is None else check_release_name(previous_aligned),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise DataError(
            f"`{path}` does not say which release is promoted: {type(error).__name__}: {error}",
            hint="remove it, then run `spoor release promote NAME` again",
        ) from None


def promoted_release(folder: Path, live: Sequence[LiveRelease]) -> LiveRelease | None:
    """The promoted one of the live releases; None without a promotion. Raises DataError if the promoted release is not
    live."""
    promoted = promotion(folder)
    if promoted is None:
        return None
    for release in live:
        if release.name == promoted.release:
            return release
    raise _not_live(folder, promoted.release)


def aligned_releases(folder: Path, live: Sequence[LiveRelease]) -> dict[str, str]:
    """The served release by space, without spaces whose release is retired. Raises DataError if a release is missing
    but not retired."""
    promoted, names = promotion(folder), {release.name for release in live}
    served = {} if promoted is None else promoted.aligned
    for release in served.values():
        if release not in names and not is_retired(folder / release):
            raise _not_live(folder, release)
    return {space: release for space, release in served.items() if release in names}


def _not_live(folder: Path, release: str) -> DataError:
    return DataError(
        f"`{folder / PROMOTED_FILE}` promotes release `{release}`, which is not live in that folder",
        hint="put its folder back, or promote another with `spoor release promote NAME`",
    )


def _json(path: Path) -> Any:
    return json.loads(read_at_most(path, _JSON_BYTES))


def _read(path: Path) -> LiveRelease | None:
    try:
        content = _json(path)
        if content.get("retired", False):
            return None
        name = check_release_name(content["name"])
        return LiveRelease(
            name=name,
            dimension=int(content["dimension"]),
            trained_through_ms=int(content["trained_through_ms"]),
            space=check_release_name(content["aligned"]["space"]) if content.get("aligned") else name,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"`{path}` does not describe a release: {type(error).__name__}: {error}",
            hint="copy the release folder again, or remove it",
        ) from None
