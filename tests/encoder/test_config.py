"""Model configurations: what does not fit is refused, JSON round trips."""

from dataclasses import replace

import pytest

from activity.errors import DataError
from encoder.config import MODEL_CONFIGS, ModelConfig


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_named_configurations_survive_json(name: str) -> None:
    config = MODEL_CONFIGS[name]
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"table_rows": 1}, "row 0 is reserved"),
        ({"width": 18, "heads": 4}, "multiple of 2 x heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"temperature": 0.01, "temperature_floor": 0.01}, "temperature"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MODEL_CONFIGS["tiny"], **change)


@pytest.mark.parametrize("damage", [{"width": 17}, {"wdith": 16}, {"layers": "two"}])
def test_a_foreign_record_is_a_data_error(damage: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not a model configuration"):
        ModelConfig.from_json(MODEL_CONFIGS["tiny"].to_json() | damage)
