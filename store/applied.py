"""Which of the live releases Feast knows. Between placing a release's folder and `feast apply` a release has no view:
whoever writes or reads leaves it out, says so, and goes on with the others."""

from __future__ import annotations

import logging
from typing import NamedTuple

from feast.errors import FeastError

from spoor.base.errors import UsageError
from spoor.feature_repo.releases import live_releases
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import open_feature_store, registered_releases

_LOG = logging.getLogger(__name__)


class LiveNames(NamedTuple):
    applied: list[str]
    not_applied: list[str]

    @property
    def usable(self) -> list[str]:
        """The applied ones; all of them where none is, which whoever opens the store reports."""
        return self.applied or self.not_applied


def live_names(features: FeatureSettings) -> LiveNames:
    """The names of the releases in the folder that are not retired, in order. Raises DataError for a damaged one."""
    live = [release.name for release in live_releases(features.releases_folder)]
    try:
        known = set(registered_releases(open_feature_store(features)[0], features)) if live else set()
    except (UsageError, FeastError):  # no Feast repo, or one that was never applied: reported where the store is opened
        known = set[str]()
    found = LiveNames([name for name in live if name in known], [name for name in live if name not in known])
    if found.applied:
        for name in found.not_applied:
            _LOG.warning(
                "release %s is in %s and not applied: it is left out, in use are %s. Run `feast -c %s apply`, then "
                "`spoor stream reload`",
                name, features.releases_folder, ", ".join(found.applied), features.feature_repo,
            )  # fmt: skip
    return found
