"""Importing the store brings Feast in without runtime type checks, and leaves typeguard as it was for all others."""

import subprocess
import sys


def test_typeguard_is_as_it_was_and_feast_is_whole_after_the_store_is_imported():
    script = """
import typeguard
before = typeguard.typechecked
import spoor.store
from feast import FeatureView
assert typeguard.typechecked is before
assert FeatureView.__name__ == "FeatureView"
assert "check_argument_types_internal" not in FeatureView.__init__.__code__.co_names
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
