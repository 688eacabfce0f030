import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from spoor.activity.events import EVENT_SCHEMA, Event, decode_event, encode_event
from spoor.activity.settings import EventSettings
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.base.errors import UsageError

FROM_MS, TO_MS = 1_700_000_000_000, 1_700_086_400_000
SETTINGS = SimulatorSettings(events=2_003, from_ms=FROM_MS, to_ms=TO_MS, seed=3, users=101, items=307)


def events(settings: SimulatorSettings) -> pa.Table:
    return pa.concat_tables([EVENT_SCHEMA.empty_table(), *simulate(settings)])


def test_the_same_seed_gives_the_same_events_and_another_seed_others():
    assert events(SETTINGS).equals(events(SETTINGS))
    assert not events(SETTINGS).equals(events(dataclasses.replace(SETTINGS, seed=4)))


@pytest.mark.parametrize("count", [0, 1, 2, 99, 200_001])
def test_exactly_the_wanted_number_of_events_oldest_first_within_the_range(count: int):
    table = events(dataclasses.replace(SETTINGS, events=count))
    times = table["timestamp"].to_numpy()
    assert table.schema == EVENT_SCHEMA and len(table) == count
    assert (np.diff(times) >= 0).all()
    assert ((times >= FROM_MS) & (times < TO_MS)).all()


def test_every_event_passes_the_decoder_with_either_type_of_user_id():
    for id_type in ("string", "int64"):
        settings = EventSettings(
            user_id_type=id_type, actions=SETTINGS.actions, surfaces=SETTINGS.surfaces, unknown_names="dead-letter"
        )
        for row in events(SETTINGS).to_pylist():
            event = Event(**row)
            assert decode_event(encode_event(event), append_time_ms=TO_MS, settings=settings) == event


def test_a_few_users_do_most():
    counts = np.sort(np.array(events(SETTINGS)["user_id"].value_counts().field("counts")))[::-1]
    assert counts[:10].sum() > 0.3 * counts.sum()


def test_one_user_one_item_one_action_one_surface():
    table = events(
        dataclasses.replace(SETTINGS, events=7, users=1, items=1, actions=("view",), surfaces=("home",), tastes=50)
    )
    assert set(table["user_id"].to_pylist()) == set(table["item_id"].to_pylist()) == {"1"}


@pytest.mark.parametrize(
    "change",
    [
        {"users": 0},
        {"items": 0},
        {"tastes": 0},
        {"events": -1},
        {"seed": -1},
        {"to_ms": FROM_MS},
        *({name: 10**20} for name in ("users", "items", "tastes", "events", "seed")),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, int]):
    with pytest.raises(UsageError, match=r"expected|the time range is empty"):
        dataclasses.replace(SETTINGS, **change)
