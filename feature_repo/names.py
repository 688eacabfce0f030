"""The names of Spoor's objects in Feast. A release's views and service carry its name, with `_` for `-`."""

from __future__ import annotations

import re
from functools import lru_cache

from spoor.base.release_names import check_release_name

USER_HISTORY = "user_history"
USER_ACTIVITY = "user_activity"
ITEM_ACTIVITY = "item_activity"
PROMOTED_RANKER = "ranker"  # the service of the promoted release
_ANY = re.compile(
    rf"{USER_HISTORY}|{USER_ACTIVITY}|{ITEM_ACTIVITY}|{PROMOTED_RANKER}|(user_embedding|item_embedding|ranker|aligned_ranker)_.+"
)


def user_embedding_view(release: str) -> str:
    return "user_embedding_" + _in_feast(release)


def item_embedding_view(release: str) -> str:
    return "item_embedding_" + _in_feast(release)


def ranker_service(release: str) -> str:
    return "ranker_" + _in_feast(release)


def aligned_ranker(space: str) -> str:
    """The service of the promoted release in the space of release `space`. No `ranker_service` begins with this
    prefix."""
    return "aligned_ranker_" + _in_feast(space)


def is_spoor_name(name: str) -> bool:
    """Whether a name, without the configured prefix, has the form of one of these."""
    return _ANY.fullmatch(name) is not None


@lru_cache
def _in_feast(release: str) -> str:
    return check_release_name(release).replace("-", "_")
