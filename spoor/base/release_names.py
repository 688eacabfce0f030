"""The form of a release's name: it names a folder, objects in Feast and a topic."""

from __future__ import annotations

import re

from spoor.base.errors import UsageError

RELEASE_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")


def check_release_name(name: str) -> str:
    """Returns `name`. Raises UsageError if it cannot name a release."""
    if not RELEASE_NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot name a release",
            hint="start with a small letter, then at most 40 of a-z, 0-9 and `-`, for example base-1",
        )
    return name
