"""Spoor's definitions, as any Feast repo takes them in. The containers' feature_store.yaml lies beside this file: it is
a secret, because it holds the online store's password."""

from pathlib import Path

from spoor.feature_repo.definitions import build
from spoor.feature_repo.settings import load_feature_settings

globals().update({f"spoor_{o.name}": o for o in build(load_feature_settings(Path(__file__).parent))})
