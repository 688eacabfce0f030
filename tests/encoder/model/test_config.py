"""Model configurations: what does not fit is refused, the named files are what they were, JSON round trips."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import spoor.encoder.model.config
from spoor.base.errors import DataError, UsageError
from spoor.encoder.model.config import MODEL_CONFIGS, ModelConfig, named_config
from spoor.encoder.release.inference import new_model


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_named_configurations_survive_json(name: str) -> None:
    config = MODEL_CONFIGS[name]
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_the_file_of_a_named_configuration_holds_all_of_it(name: str) -> None:
    path = Path(spoor.encoder.model.config.__file__).parent / "configs" / f"{name}.json"
    assert path.read_text() == json.dumps(MODEL_CONFIGS[name].to_json(), indent=2) + "\n"


def test_the_named_sizes_stay_what_they_are() -> None:
    """A release's weights fit one shape only: a change here is a new name."""
    assert [(name, c.item_width, c.width, c.layers, c.dimension) for name, c in MODEL_CONFIGS.items()] == [
        ("tiny", 16, 16, 2, 16),
        ("base", 64, 64, 2, 64),
        ("paper", 256, 768, 6, 256),
    ]


def test_the_papers_tables_have_the_papers_parameters(parts) -> None:
    paper = MODEL_CONFIGS["paper"]
    with torch.device("meta"):
        model = new_model(paper, parts.vocabulary)
    assert (paper.dimension, paper.served_length) == (256, 256)
    assert model.items.weight.shape == (8 * 80_000_000, 32)
    assert model.items.weight.numel() == 20_480_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"table_rows": 1}, "row 0 is reserved"),
        ({"width": 18, "heads": 4}, "multiple of 2 x heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"input_dropout": -0.1}, "input_dropout"),
        ({"temperature": 0.01, "temperature_floor": 0.01}, "temperature"),
        ({"items": "indexed"}, "items must be one of hashed, direct"),
        ({"items": "direct"}, "hash_functions 1 and table_rows 0"),
        ({"projections": "residual", "width": 32}, "to be equal; found 16, 32 and 16"),
        ({"projection_width": 0}, "projection_width must be at least 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MODEL_CONFIGS["tiny"], **change)


@pytest.mark.parametrize("damage", [{"width": 17}, {"wdith": 16}, {"layers": "two"}])
def test_a_foreign_record_is_a_data_error(damage: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not a model configuration"):
        ModelConfig.from_json(MODEL_CONFIGS["tiny"].to_json() | damage)


def test_a_configuration_may_come_from_a_file(tmp_path: Path) -> None:
    wider = replace(MODEL_CONFIGS["tiny"], feed_forward_width=48)
    path = tmp_path / "wider.json"
    path.write_text(json.dumps(wider.to_json()))
    assert named_config(str(path)) == wider
    assert named_config("tiny") == MODEL_CONFIGS["tiny"]


@pytest.mark.parametrize("text", [None, "", "[1]", "not json"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "model.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"model\.json"):
        named_config(str(path))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match="there is no model `large`") as raised:
        named_config("large")
    assert "paper" in raised.value.hint
