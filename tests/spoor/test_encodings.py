"""Commands in terminals and locales of any encoding, on names of any bytes."""

import json
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from spoor.activity.events import Event, events_table
from spoor.base.errors import UsageError
from spoor.config import load_settings
from spoor.demo.prepare import prepare, settings_file
from tests.conftest import settings_in

T0 = 1_700_000_000_000
ENCODINGS = [{"PYTHONIOENCODING": name} for name in ("ascii", "ascii:strict", "latin-1", "cp1252", "utf-8")]
LOCALES = [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}]


def run(folder: Path, environment: dict[str, str], *arguments: str | bytes, **options: object):
    command = [sys.executable, "-m", "spoor", *arguments]
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON", "SPOOR"))
    }
    path = str(Path(__file__).parents[2])
    return subprocess.run(
        command, cwd=folder, env=kept | {"PYTHONPATH": path} | environment, timeout=120, check=False, **options
    )


@pytest.mark.parametrize("environment", ENCODINGS + LOCALES, ids=str)
def test_a_path_of_any_characters_is_shown_in_any_encoding(tmp_path: Path, environment: dict[str, str]) -> None:
    """Umlauts, Japanese, an emoji, and a byte that is no UTF-8."""
    folder = tmp_path / "jürgen 日本 🦌"
    folder.mkdir()
    (folder / "spoor.toml").write_text('state_folder = "zustände"\n', encoding="utf-8")
    for arguments in (
        ["config", "show"],
        ["config", "show", "--json"],
        ["--set", b"lake.folder=\xff", "config", "show"],
    ):
        done = run(folder, environment, *arguments, capture_output=True)
        assert done.returncode == 0, done.stderr
    done = run(folder, environment, "config", "show", "--json", capture_output=True)
    shown = json.loads(done.stdout.decode("ascii"))["settings"]
    assert shown["state_folder"]["origin"] == "file spoor.toml"
    if not environment.get("PYTHONUTF8"):
        assert shown["state_folder"]["value"] == str(folder / "zustände")
    done = run(folder, environment, "release", "show", "ü-→", "--json", capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr and b"error: " in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2


@pytest.mark.parametrize("environment", [ENCODINGS[0], LOCALES[0]], ids=str)
def test_progress_is_drawn_on_a_terminal_without_unicode(tmp_path: Path, environment: dict[str, str]) -> None:
    lines = [f"ü{k % 4},i{k % 5},v,h,{T0 + k * 1000}" for k in range(40)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,action,surface,timestamp", *lines]), "utf-8")
    screen, terminal = pty.openpty()
    asked = ["--data", "events.csv", "--protocol", "leave-one-out", "--baselines", "popularity"]
    try:
        done = run(
            tmp_path, environment | {"TERM": "xterm"}, "evaluate", *asked, stdout=subprocess.PIPE, stderr=terminal
        )
        os.close(terminal)
        drawn = os.read(screen, 1 << 16)
    finally:
        os.close(screen)
    assert done.returncode == 0, drawn
    assert b"evaluating" in drawn and b"Traceback" not in drawn


ODD = ['bü"y', "view\\", "→ 🦌", "a'b", "line\u2028", "# no", "[x]", "del\x7f"]


def test_the_demo_s_settings_file_holds_any_name(tmp_path: Path) -> None:
    table = events_table([Event("u", "i", name, name, T0 + n) for n, name in enumerate(ODD)])
    named = {
        "kafka__sasl_username": 'a"\\b',
        "kafka__ssl_cafile": "ü",
        "kafka__topic": "t",
    }  # Kafka's own names are ASCII
    settings = settings_in(tmp_path, kafka__bootstrap_servers="h:1", **named)
    text = settings_file(settings, table, tuple(ODD))
    assert tomllib.loads(text)["events"]["actions"] == sorted(ODD)
    (tmp_path / "demo.toml").write_text(text, encoding="utf-8")
    loaded = load_settings(file=tmp_path / "demo.toml", environ={})
    assert loaded.pretrain.positive_actions == tuple(ODD)
    kafka = loaded.kafka
    assert (kafka.sasl_username, kafka.ssl_cafile, kafka.topic) == ('a"\\b', "ü", "spoor-demo.t")


@pytest.mark.parametrize("holds", ["spoor.toml", "notes.txt", ".git"])
def test_the_demo_takes_no_folder_that_holds_other_things(tmp_path: Path, holds: str) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / holds).write_text("[kafka]\n")
    lines = [f"u{k % 4},i{k % 5},v,h,{T0 + k * 1000}" for k in range(40)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,action,surface,timestamp", *lines]))
    with pytest.raises(UsageError, match="exists and holds no demo"):
        prepare(settings_in(tmp_path), folder, tmp_path / "events.csv", None)
    assert os.listdir(folder) == [holds] and (folder / holds).read_text() == "[kafka]\n"
