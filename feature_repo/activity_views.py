"""Example features that a company has before Spoor: counts and rates per user and item, as
`ranking/features/existing_features.py` writes them.

The demo, the tests and the benchmarks use them. A company's repo has its own views, so `definitions.build` does not
make these: plain Feast materialises them, and they would be empty there.
"""

from __future__ import annotations

from feast import FeatureView, Field
from feast.types import Float32, Int64

from spoor.feature_repo.definitions import log_view
from spoor.feature_repo.entities import item_entity, user_entity
from spoor.feature_repo.names import ITEM_ACTIVITY, USER_ACTIVITY
from spoor.feature_repo.settings import FeatureSettings

USER_ACTIVITY_FIELDS = [
    Field(name="user_events_total", dtype=Int64, description="events up to the row's time"),
    Field(name="user_events_7d", dtype=Int64, description="events in the last 7 days"),
    Field(name="user_events_28d", dtype=Int64, description="events in the last 28 days"),
    Field(name="user_positive_rate", dtype=Float32, description="share of positive actions, 0 to 1"),
]
ITEM_ACTIVITY_FIELDS = [
    Field(name="item_events_total", dtype=Int64, description="events up to the row's time"),
    Field(name="item_users_total", dtype=Int64, description="distinct users up to the row's time"),
    Field(name="item_events_7d", dtype=Int64, description="events in the last 7 days"),
    Field(name="item_events_28d", dtype=Int64, description="events in the last 28 days"),
    Field(name="item_positive_rate", dtype=Float32, description="share of positive actions, 0 to 1"),
]


def build_activity(settings: FeatureSettings) -> list[FeatureView]:
    """The two views, for `build(settings, beside=…)`. Feast itself may materialise them."""
    user, item = user_entity(settings), item_entity(settings)
    return [
        log_view(settings, settings.named(USER_ACTIVITY), user, USER_ACTIVITY_FIELDS, online=True),
        log_view(settings, settings.named(ITEM_ACTIVITY), item, ITEM_ACTIVITY_FIELDS, online=True),
    ]
