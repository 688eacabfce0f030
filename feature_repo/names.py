"""What Spoor's objects are called in Feast. A release's views and service carry its name, with `_` for `-`."""

from __future__ import annotations

import re

from activity.errors import UsageError

USER_HISTORY = "user_history"
USER_ACTIVITY = "user_activity"
ITEM_ACTIVITY = "item_activity"
_RELEASE = re.compile(r"[a-z][a-z0-9-]{0,40}")


def check_release_name(release: str) -> str:
    """The name itself. Raises UsageError if it is not a lower-case word of letters, digits and `-`."""
    if not _RELEASE.fullmatch(release):
        raise UsageError(
            f"`{release}` is not a release name: found other characters or length than [a-z][a-z0-9-]{{0,40}}",
            hint="name releases like base-3",
        )
    return release


def user_embedding_view(release: str) -> str:
    return "user_embedding_" + _in_feast(release)


def item_embedding_view(release: str) -> str:
    return "item_embedding_" + _in_feast(release)


def ranker_service(release: str) -> str:
    return "ranker_" + _in_feast(release)


def _in_feast(release: str) -> str:
    return check_release_name(release).replace("-", "_")
