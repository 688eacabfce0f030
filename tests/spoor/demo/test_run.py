"""What the demo decides from the data and the settings."""

import pytest

from spoor.config import load_settings
from spoor.demo.prepare import pretrain_minutes


@pytest.mark.parametrize(("events", "minutes"), [(100_000, 2.0), (500_000, 6.0), (50_000_000, 10.0)])
def test_pretraining_gets_more_time_for_more_events(events: int, minutes: float) -> None:
    assert pretrain_minutes(load_settings(environ={}), events) == minutes


def test_a_limit_that_is_given_is_kept() -> None:
    settings = load_settings(environ={}, flags={"pretrain.max_minutes": "0.5"})
    assert pretrain_minutes(settings, 500_000) == 0.5
