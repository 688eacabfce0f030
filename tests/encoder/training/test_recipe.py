from __future__ import annotations

import dataclasses

import pytest

from spoor.encoder.data.corpus import CorpusStatistics
from spoor.encoder.training.recipe import choose
from spoor.encoder.training.settings import PretrainSettings

SHOP = CorpusStatistics(users=20_000, items=12_000, events=150_000, mean_length=7.0, tie_share=0.0, repeat_share=0.0)


def _with(**counts: float) -> CorpusStatistics:
    return dataclasses.replace(SHOP, **counts)


def test_a_small_catalogue_gets_narrow_vectors():
    assert choose(_with(items=1_999)).model.dimension == 64
    assert choose(_with(items=2_000)).model.dimension == 128


def test_long_histories_get_more_layers_and_longer_windows():
    assert choose(_with(mean_length=50.0)).model.layers == 1
    long = choose(_with(mean_length=51.0)).model
    assert (long.layers, long.segment_length, long.served_length) == (2, 200, 200)
    assert choose(_with(mean_length=51.0, events=500_000)).model.layers == 4


def test_the_refit_is_gentle_where_one_more_event_matters_little():
    short, long = choose(_with(mean_length=50.0)).settings, choose(_with(mean_length=51.0)).settings
    assert (short["refit_epochs"], short["refit_rate"]) == (4, 1.0)
    assert (long["refit_epochs"], long["refit_rate"]) == (1, 0.3)


def test_a_catalogue_too_large_for_rows_of_its_own_is_hashed():
    direct, hashed = choose(_with(items=1_000_000)), choose(_with(items=1_000_001))
    assert (direct.model.items, direct.settings["item_start"]) == ("direct", "links")
    assert (hashed.model.items, hashed.settings["item_start"]) == ("hashed", "random")
    assert hashed.model.hash_functions * hashed.model.table_rows >= 4 * 1_000_001


def test_every_item_is_a_negative_as_long_as_that_is_cheap():
    assert choose(_with(items=50_000)).settings["negatives"] == "full"
    assert choose(_with(items=50_001)).settings["negatives"] == "mixed"


def test_where_users_repeat_items_their_own_are_no_longer_left_out():
    assert not choose(_with(repeat_share=0.05)).repeats
    assert choose(_with(repeat_share=0.06)).repeats
    assert choose(_with(repeat_share=0.06)).settings["own_positives"] == "kept"


@pytest.mark.parametrize("events", [0, 1, 100_000, 1_000_000, 10**9])
@pytest.mark.parametrize("items", [0, 1, 3_000, 10**8])
def test_every_recipe_is_a_valid_model_with_valid_settings(events: int, items: int):
    recipe = choose(_with(events=events, items=items, users=min(events, 5)))
    PretrainSettings(**recipe.settings)
    assert len(recipe.reasons) == 7
