"""Which releases a worker keeps fresh, and that Feast is whole after its quick import."""

import dataclasses
import subprocess
import sys

import pytest

from activity.errors import UsageError
from streaming.stores import releases_to_keep_fresh


def with_releases(settings, folder, *releases):
    features = dataclasses.replace(settings.features, releases_folder=folder)
    stream = dataclasses.replace(settings.stream, releases=releases)
    return dataclasses.replace(settings, features=features, stream=stream)


def test_every_live_release_or_the_configured_ones(settings, untrained_release):
    assert releases_to_keep_fresh(with_releases(settings, untrained_release)) == ["base-1"]
    assert releases_to_keep_fresh(with_releases(settings, untrained_release, "base-1")) == ["base-1"]


def test_no_release_is_a_usage_error_that_says_how_to_get_one(settings, tmp_path):
    with pytest.raises(UsageError, match="no live release") as raised:
        releases_to_keep_fresh(with_releases(settings, tmp_path))
    assert "spoor pretrain" in raised.value.hint


def test_the_quick_import_leaves_typeguard_as_it_was():
    script = """
import typeguard
from streaming.stores import _quick_feast_import
before = typeguard.typechecked
with _quick_feast_import():
    from feast import FeatureView
assert typeguard.typechecked is before
assert FeatureView.__name__ == "FeatureView"
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0
