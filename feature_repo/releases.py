"""The live releases as Feast needs them: each folder's release.json, read without loading a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from activity.errors import DataError
from activity.release_names import check_release_name


@dataclass(frozen=True)
class LiveRelease:
    name: str
    dimension: int  # floats in an embedding
    trained_through_ms: int  # newest event the model may have seen, ms since 1970 UTC

    @property
    def trained_through(self) -> str:
        return datetime.fromtimestamp(self.trained_through_ms / 1000, UTC).isoformat(timespec="milliseconds")


def live_releases(folder: Path) -> list[LiveRelease]:
    """Every release in the folder that is not retired, by name. Raises DataError for a damaged release.json."""
    found = [_read(path) for path in sorted(folder.glob("[!.]*/release.json"))]
    return [release for release in found if release is not None]


def _read(path: Path) -> LiveRelease | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("retired", False):
            return None
        return LiveRelease(
            name=check_release_name(content["name"]),
            dimension=int(content["dimension"]),
            trained_through_ms=int(content["trained_through_ms"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"`{path}` does not describe a release: {type(error).__name__}: {error}",
            hint="copy the release folder again, or remove it",
        ) from None
