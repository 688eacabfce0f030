"""Which of Feast's offline stores read the offline log, and what each of them leaves out (docs/feast.md)."""

from __future__ import annotations

import logging
from functools import cache

from feast.repo_config import RepoConfig

USE_DUCKDB = "set offline_store: {type: duckdb} in feature_store.yaml"
_log = logging.getLogger(__name__)


def offline_store_type(config: RepoConfig) -> str:
    """As feature_store.yaml names it; `dask` where it names none."""
    found = config.offline_config
    kind = found.get("type") if isinstance(found, dict) else getattr(found, "type", found)
    return str(kind or "dask")


def what_it_leaves_out(kind: str) -> str | None:
    """Of point-in-time reads; None for a store that answers all of them."""
    if kind == "duckdb":
        return None
    if kind in ("dask", "file"):
        return (
            f"Feast's offline store `{kind}` reads the offline log, but leaves out rows that repeat a key and time and "
            "rows before a key's first value, and may fail on keys without any"
        )
    return (
        f"Feast's offline store `{kind}` was not tried with Spoor: point-in-time reads of its views need "
        "one that reads folders of Parquet files (FileSource); online reads work with any"
    )


def warn_of_offline_store(config: RepoConfig) -> None:
    """Once a process."""
    _warn(offline_store_type(config))


@cache
def _warn(kind: str) -> None:
    problem = what_it_leaves_out(kind)
    if problem is not None:
        _log.warning("%s (hint: %s)", problem, USE_DUCKDB)
