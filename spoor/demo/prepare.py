"""Prepares a run of the demo: data, settings file, Feast repo, and `Demo`, the input of every step."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tomli_w

from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.files import Manifest, atomic_path, atomic_write
from spoor.config import Settings, load_settings
from spoor.demo.data import MOVIELENS, DemoData, cut_timeline, load_demo_data
from spoor.store.repo import create_repo

LIKED = ("rate_4", "rate_5")  # positive ratings of MovieLens
PRETRAIN_MINUTES = 1.0, 10.0  # without events, and limit; one more per 100,000 events; pretrain.max_minutes overrides
_CONFIG_HEAD = """\
# Written by `spoor demo`; a password comes from the environment (SPOOR_KAFKA__SASL_PASSWORD).
# stream.as_of is "event" since the traffic is from the past: rows were known when their newest event happened.
"""


@dataclass(frozen=True)
class Demo:
    """Input of every step. Times are ms since 1970 UTC."""

    folder: Path
    settings: Settings
    data: DemoData
    t70: int  # end of the encoder's training events
    t90: int  # start of today's events
    positive_actions: tuple[str, ...]

    @property
    def end(self) -> int:
        return int(pc.max(self.data.events["timestamp"]).as_py()) + 1

    @property
    def events_file(self) -> Path:
        return self.folder / "events.parquet"

    @property
    def steps(self) -> Manifest:
        return Manifest(self.folder / "steps")

    @property
    def config(self) -> Path:
        return self.folder / "spoor.toml"


def prepare(settings: Settings, folder: Path, data: Path | None, items: Path | None) -> Demo:
    """Loads the data and creates the settings file and the Feast repo, or reuses them. Raises UsageError if the folder
    holds a demo on other data, or other files."""
    loaded = load_demo_data(settings, data=data, items=items)
    t70, t90 = cut_timeline(loaded.events)
    positive = LIKED if loaded.name == MOVIELENS else ()
    identity = {"data": loaded.name, "events": _fingerprint(loaded.events)}
    known = Manifest(folder).get("demo")
    if known is not None and known != identity:
        raise UsageError(
            f"`{folder}` holds the demo on {known['data']}, this is {loaded.name}",
            hint="give another folder with --folder, or stop its Kafka with "
            f"`spoor --config {quote(str(folder / 'spoor.toml'))} services down` and remove this one",
        )
    config = folder / "spoor.toml"
    if known is None:
        _refuse_foreign(folder, config)
        atomic_write(config, settings_file(settings, loaded.events, positive).encode())
        demo_settings = load_settings(file=config)
        create_repo(folder / "feature_repo", online_store={"type": "sqlite"}, state_folder=folder / "state" / "feast")
        with atomic_path(folder / "events.parquet") as temporary:
            pq.write_table(loaded.events, temporary)
        Manifest(folder).add("demo", identity)
    else:
        demo_settings = load_settings(file=config)
    return Demo(folder, demo_settings, loaded, t70, t90, positive)


def _refuse_foreign(folder: Path, config: Path) -> None:
    """Raises UsageError unless the folder is missing or empty, or holds an interrupted demo."""
    begun = config.is_file() and config.read_bytes().startswith(_CONFIG_HEAD.splitlines()[0].encode())
    if os.path.lexists(folder) and not begun and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"`{folder}` exists and holds no demo, whose files would replace those of the same name",
            hint="give a new or empty folder with --folder",
        )


def settings_file(settings: Settings, events: pa.Table, positive_actions: tuple[str, ...]) -> str:
    """The demo's settings file. It uses the user's configured broker, if any, with the demo's own topic names."""
    kafka = settings.kafka
    broker: dict[str, Any]
    if kafka.embedded:
        port = _free_port(kafka.port)
        broker = {"port": port, "controller_port": _free_port(max(kafka.controller_port, port + 1))}
    else:
        keys = ["bootstrap_servers", "security_protocol", "sasl_mechanism", "sasl_username"]
        keys += ["ssl_cafile", "ssl_certfile", "ssl_keyfile"]
        broker = {key: getattr(kafka, key) for key in keys if getattr(kafka, key)}
        names = ("topic", "dead_letter_topic", "embedding_topic_prefix")
        broker |= {name: f"spoor-demo.{getattr(kafka, name)}" for name in names}
    content = {
        "state_folder": "state",
        "kafka": broker,
        "events": {f"{kind}s": sorted(pc.unique(events[kind]).to_pylist()) for kind in ("action", "surface")},
        "stream": {"as_of": "event"},
        "pretrain": {
            "positive_actions": list(positive_actions),
            "max_minutes": pretrain_minutes(settings, len(events)),
        },
    }
    return _CONFIG_HEAD + tomli_w.dumps(content)


def pretrain_minutes(settings: Settings, events: int) -> float:
    """The demo's pretrain.max_minutes: preparation counts, and takes longer with more events."""
    if "max_minutes" in settings.given("pretrain"):
        return settings.pretrain.max_minutes
    least, most = PRETRAIN_MINUTES
    return round(min(least + events / 100_000, most), 1)


def _free_port(first: int) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise InfrastructureError(f"no free port from {first} to {first + 99}", hint="set kafka.port to a free one")


def _fingerprint(events: pa.Table) -> str:
    digest = hashlib.sha256()
    for column in events.combine_chunks().columns:
        for value in column.to_pylist():
            digest.update(f"{value}\0".encode())
    return digest.hexdigest()
