"""The demo's data: MovieLens-100K, or the user's own file, as activity events; and the cuts of its timeline.

Sources in this order: the given file, the cache in the state folder, GroupLens' zip, and the copy in the `recbole`
wheel (downloaded and read as a zip, never installed). GroupLens forbids redistribution, so the data are downloaded, not
committed.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spoor.activity.events import EVENT_SCHEMA
from spoor.activity.settings import EventSettings
from spoor.activity.sources.columns import python_values
from spoor.activity.sources.event_files import read_events, read_table, spread_ties
from spoor.base.errors import DataError, InfrastructureError, SpoorError, UsageError
from spoor.base.files import atomic_path
from spoor.config import Settings

log = logging.getLogger(__name__)

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),  # the item's id if no title is known
        pa.field("genres", pa.list_(pa.string()), nullable=False),
    ]
)
MOVIELENS = "MovieLens-100K"
_EXPECTED = {"events": 100_000, "users": 943, "items": 1_682}
_ZIP_ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_ZIP_MAX_BYTES = 64 * 1024 * 1024
_ZIP_TIMEOUT_SECONDS = 5.0
_WHEEL = "recbole==1.2.1"
_WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
_PIP_TIMEOUT_SECONDS = 120.0
_HINT = "connect to the internet once, or pass your own events with --data FILE"

Tables = tuple[pa.Table, pa.Table]  # events, items


@dataclass(frozen=True)
class DemoData:
    """`events`: EVENT_SCHEMA, oldest first. `items`: ITEM_SCHEMA, a row for each item of the events, perhaps others."""

    events: pa.Table
    items: pa.Table
    name: str  # of the data set
    source: str  # of this copy, for the report


def load_demo_data(settings: Settings, *, data: Path | None = None, items: Path | None = None) -> DemoData:
    """Loads the demo's events and items. Raises UsageError for a bad file, InfrastructureError if no source provides
    MovieLens."""
    if data is not None:
        events = read_events(data, settings.events, now_ms=time.time_ns() // 1_000_000)
        return DemoData(events, _read_items(items, events, settings.events), data.stem, str(data))
    if items is not None:
        raise UsageError("an items file was given without events", hint="add --data FILE, or leave --items out")
    cache = settings.state_folder / "demo-data" / "ml-100k"
    if (cached := _from_cache(cache)) is not None:
        return DemoData(*cached, MOVIELENS, f"cache {cache}")
    failures: list[str] = []
    for name, fetch in _sources():
        try:
            found = fetch()
            check_movielens(*found)
        except SpoorError as error:
            log.info("%s: %s", name, error.message)
            failures.append(f"{name}: {error.message}")
            continue
        _to_cache(cache, *found)
        return DemoData(*found, MOVIELENS, name)
    raise InfrastructureError(f"{MOVIELENS} could not be had ({'; '.join(failures)})", hint=_HINT)


def cut_timeline(events: pa.Table) -> tuple[int, int]:
    """The times (ms) that cut the events at 70 % and 90 % of their count: earlier events pretrain the encoder, those
    between train the ranker, the rest are "today". Events of equal time stay together.

    Raises DataError for under ten events, or too few distinct times for two cuts."""
    ordered = np.sort(events["timestamp"].to_numpy())
    if len(ordered) >= 10:
        first, t70, t90 = (int(ordered[len(ordered) * tenths // 10]) for tenths in (0, 7, 9))
        if first < t70 < t90:
            return t70, t90
    raise DataError(
        f"the timeline of {len(ordered)} events cannot be cut at 70 % and 90 %",
        hint="the demo needs ten events or more at different times",
    )


def check_movielens(events: pa.Table, items: pa.Table) -> None:
    """Raises DataError unless the counts match those that GroupLens publishes."""
    found = {
        "events": len(events),
        "users": len(events["user_id"].unique()),
        "items": len(events["item_id"].unique()),
    }
    known = len(items["item_id"].unique())
    if found != _EXPECTED or known != _EXPECTED["items"]:
        raise DataError(f"found {found} and {known} titles, expected {_EXPECTED}", hint=_HINT)


def read_grouplens_zip(content: bytes) -> Tables:
    """GroupLens' `ml-100k.zip` → events and items. Raises DataError."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            ratings = archive.read("ml-100k/u.data").decode()
            titles = archive.read("ml-100k/u.item").decode("latin-1")
            names = archive.read("ml-100k/u.genre").decode("latin-1")
        genre_of = {int(code): name for name, code in (r.split("|") for r in names.split() if "|" in r)}
        items = [
            (row[0], row[1], [genre_of[k] for k, flag in enumerate(row[5:]) if flag == "1"])
            for row in (line.split("|") for line in titles.splitlines() if line)
        ]
        return _rated_events([line.split("\t") for line in ratings.splitlines() if line]), _items_table(items)
    except (KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"not the ml-100k.zip that was expected: {error!r}", hint=_HINT) from None


def read_recbole_wheel(content: bytes) -> Tables:
    """The example data inside RecBole's wheel → events and items. Raises DataError."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            ratings = archive.read(f"{_WHEEL_FOLDER}/ml-100k.inter").decode()
            titles = archive.read(f"{_WHEEL_FOLDER}/ml-100k.item").decode()
        items = [
            (item, f"{title} ({year})" if year.isdigit() else title, [g for g in genres.split(" ") if g])
            for item, title, year, genres in (line.split("\t") for line in titles.splitlines()[1:] if line)
        ]
        return _rated_events([line.split("\t") for line in ratings.splitlines()[1:] if line]), _items_table(items)
    except (KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"not the recbole wheel that was expected: {error!r}", hint=_HINT) from None


def _sources() -> tuple[tuple[str, Callable[[], Tables]], ...]:
    return (
        (_ZIP_ADDRESS, lambda: read_grouplens_zip(_download_zip())),
        (f"the wheel {_WHEEL}", lambda: read_recbole_wheel(_download_wheel())),
    )


def _download_zip() -> bytes:
    try:
        with urllib.request.urlopen(_ZIP_ADDRESS, timeout=_ZIP_TIMEOUT_SECONDS) as response:
            content = response.read(_ZIP_MAX_BYTES + 1)
    except (urllib.error.URLError, OSError) as error:
        raise InfrastructureError(f"not reachable ({error})", hint=_HINT) from None
    if len(content) > _ZIP_MAX_BYTES:
        raise DataError(f"larger than {_ZIP_MAX_BYTES} bytes", hint=_HINT)
    return content


def _download_wheel() -> bytes:
    with tempfile.TemporaryDirectory(prefix="spoor-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", folder, _WHEEL]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_PIP_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InfrastructureError(f"pip took over {_PIP_TIMEOUT_SECONDS:.0f} s", hint=_HINT) from None
        wheels = sorted(Path(folder).glob("recbole-*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise InfrastructureError(f"pip could not download it ({reason})", hint=_HINT)
        return wheels[0].read_bytes()


def _rated_events(rows: list[list[str]]) -> pa.Table:
    """(user, item, rating, seconds) in published order → events; spreads ties over their second."""
    users, items, ratings, seconds = zip(*rows, strict=True)
    columns = [
        list(users),
        list(items),
        [f"rate_{int(float(rating))}" for rating in ratings],
        ["movielens"] * len(rows),
        [int(float(second)) * 1000 for second in seconds],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, EVENT_SCHEMA, strict=True)]
    return _oldest_first(spread_ties(pa.table(arrays, schema=EVENT_SCHEMA), resolution_ms=1000))


def _oldest_first(events: pa.Table) -> pa.Table:
    """Sorts by time, user and item, so that every source gives the same table."""
    return events.sort_by([(name, "ascending") for name in ("timestamp", "user_id", "item_id")]).combine_chunks()


def _items_table(rows: list[tuple[str, str, list[str]]]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ITEM_SCHEMA, strict=True)]
    return pa.table(arrays, schema=ITEM_SCHEMA)


def _read_items(path: Path | None, events: pa.Table, settings: EventSettings) -> pa.Table:
    """The items file (item_id; optional title and genres), and the items that are only in the events."""
    rows: dict[str, tuple[str, str, list[str]]] = {}
    if path is not None:
        table = read_table(path, settings)
        if "item_id" not in table.column_names:
            raise UsageError(f"`{path}` has no column item_id", hint="columns: item_id, title, genres")
        names = [name for name in ITEM_SCHEMA.names if name in table.column_names]
        for values in zip(*(python_values(table[name], name) for name in names), strict=True):
            row = dict(zip(names, values, strict=True))
            item = row["item_id"]
            rows[item] = (item, str(row.get("title") or item), _labels(row.get("genres")))
    for item in events["item_id"].unique().to_pylist():
        rows.setdefault(item, (item, item, []))
    return _items_table(list(rows.values()))


def _labels(value: object) -> list[str]:
    """The labels of a list, or of a text that separates them by `|`."""
    parts = value if isinstance(value, list) else str(value or "").split("|")
    return [str(part).strip() for part in parts if part is not None and str(part).strip()]


def _from_cache(folder: Path) -> Tables | None:
    paths = folder / "events.parquet", folder / "items.parquet"
    if not all(path.is_file() for path in paths):
        return None
    try:
        events = pq.read_table(paths[0]).cast(EVENT_SCHEMA)
        items = pq.read_table(paths[1]).cast(ITEM_SCHEMA)
        check_movielens(events, items)
    except (OSError, ValueError, pa.ArrowException, DataError) as error:
        log.warning("the cached data in %s are damaged and are fetched again: %s", folder, error)
        return None
    return events, items


def _to_cache(folder: Path, events: pa.Table, items: pa.Table) -> None:
    for name, table in (("items", items), ("events", events)):
        with atomic_path(folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")
