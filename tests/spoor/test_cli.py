import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from spoor import cli
from spoor.activity.hashing import hash_items
from spoor.batch.users.backfill import BackfillResult
from spoor.config import Settings
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import save_release
from spoor.encoder.release.training_end import TrainingEnd
from spoor.operations.releases import RetirePlan
from spoor.services import local as services

HEAVY = ("apache_beam", "duckdb", "faust", "feast", "kafka", "matplotlib", "numpy", "pandas", "pyarrow", "torch")
COMMANDS = [
    "demo",
    "pretrain",
    "evaluate",
    "finetune",
    "lift",
    "features",
    "features-build",
    "backfill",
    "archive",
    "verify",
    "export",
    "forget",
    "merge-users",
    "stream",
    "stream-pause",
    "stream-reload",
    "stream-resume",
    "stream-status",
    "dlq",
    "dlq-list",
    "dlq-replay",
    "release",
    "release-compare",
    "release-drift",
    "release-list",
    "release-promote",
    "release-retire",
    "release-show",
    "release-tables",
    "release-tables-build",
    "release-tables-report",
    "show",
    "show-user",
    "services",
    "services-up",
    "services-down",
    "services-status",
    "topics",
    "topics-create",
    "simulate",
    "config",
    "config-show",
]


# The fixture of that name: it runs a command and gives its exit code and what it printed.
Spoor = Callable[..., Any]


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, inner in (command.commands if isinstance(command, click.Group) else {}).items():
        yield (*path, name), inner
        yield from walk(inner, (*path, name))


ALL = list(walk(cli.app))


def test_the_contract_s_commands_are_there_and_no_others():
    assert sorted("-".join(path) for path, _ in ALL) == sorted(COMMANDS)


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_has_help_and_few_options(spoor: Spoor, path: tuple[str, ...], command: click.Command):
    done = spoor(*path, "--help")
    assert done.code == 0
    assert (command.help or "").splitlines()[0] in done.out
    assert len(command.get_short_help_str(45)) <= 45 and "..." not in command.get_short_help_str(45)
    options = [option for option in command.params if isinstance(option, click.Option)]
    # pretrain reads the lake or a file, and starts anew; backfill writes the present or the past, here or on a cluster
    assert len(options) <= {("pretrain",): 13, ("backfill",): 12}.get(path, 10)
    assert all(option.help for option in options)
    assert isinstance(command, click.Group) or "--json" in done.out


SIZES = {"events", "users", "items", "seed"}  # of `simulate`: SimulatorSettings names their ranges


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_no_option_takes_a_number_without_bounds(path: tuple[str, ...], command: click.Command):
    for option in command.params:
        kind = option.type.name
        if not any(word in kind for word in ("integer", "float")) or (path == ("simulate",) and option.name in SIZES):
            continue
        for number in ("nan", "inf", "-inf", "1" + "0" * 400, "-" + "9" * 20):
            with pytest.raises(click.BadParameter):
                option.type.convert(number, option, None)


def test_help_and_settings_load_nothing_heavy():
    """What makes --help slow is imports, so they are what is measured: a time would depend on the machine."""
    for arguments in (["--help"], ["stream", "--help"], ["config", "show"]):
        code = (
            "import sys; from spoor.cli import run; code = run(sys.argv[1:]); "
            f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "0 []", arguments


def test_config_show_tells_values_and_origins_and_hides_secrets(spoor: Spoor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPOOR_KAFKA__SASL_PASSWORD", "s3cret-word")
    Path("spoor.toml").write_text("[kafka]\ntopic = 'clicks'\n")
    done = spoor("--set", "kafka.partitions=9", "config", "show", "--json")
    shown = done.json["settings"]
    assert shown["kafka.partitions"] == {"value": 9, "origin": "flag"}
    assert shown["kafka.topic"] == {"value": "clicks", "origin": "file spoor.toml"}
    assert shown["kafka.sasl_password"] == {"value": "(hidden)", "origin": "env SPOOR_KAFKA__SASL_PASSWORD"}
    assert shown["history.max_events"]["origin"] == "default"
    text = spoor("config", "show").out
    assert "clicks  (file spoor.toml)" in text
    assert "s3cret-word" not in done.out + text

    monkeypatch.delenv("SPOOR_KAFKA__SASL_PASSWORD")
    Path("password").write_text("s3cret-word\n")
    monkeypatch.setenv("SPOOR_KAFKA__SASL_PASSWORD_FILE", "password")
    done = spoor("config", "show", "--json")
    assert done.json["settings"]["kafka.sasl_password"] == {
        "value": "(hidden)",
        "origin": f"file {Path.cwd()}/password",
    }
    assert "s3cret-word" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--set", "kafka.prt=1", "config", "show"], "unknown setting `kafka.prt`", "kafka.port"),
        (["--set", "kafka.port", "config", "show"], "found no `=`", "kafka.port=9092"),
        (["--set", "kafka.sasl_password=s3cret", "config", "show"], "is seen by every user", "SASL_PASSWORD_FILE"),
        (["--set", "kafka.port=many", "config", "show"], "found 'many'", "docs/configuration.md"),
        (["--config", "none.toml", "config", "show"], "no settings file `none.toml`", "--config"),
        (["--config", "bad.toml", "config", "show"], "cannot read settings file", "docs/configuration.md"),
        (["--config", "unknown.toml", "services", "up"], "unknown setting `kafka.prot`", "kafka.port"),
        (["archive", "--frobnicate"], "No such option", "spoor archive --help"),
        (["services", "sideways"], "No such command", "spoor services --help"),
        (["nonsense"], "No such command", "spoor --help"),
        (["--frobnicate"], "No such option", "spoor --help"),
        (["show", "user"], "Missing argument", "spoor show user --help"),
        (["pretrain"], "give either --out or --release", "--release NAME"),
        (["pretrain", "--release", "a", "--shuffle-ties", "1"], "--shuffle-ties needs --data", "order of the lake"),
        (["simulate", "--from", "yesterday"], "not an ISO 8601 time", "spoor simulate --help"),
        (["simulate", "--from", "2026-01-01T00:00:00"], "no time zone", "spoor simulate --help"),
        (["simulate", "--events", "many"], "'many' is not a valid integer", "spoor simulate --help"),
        (["simulate", "--users", "0"], "users is 0", ""),
        (["simulate", "--data", "events.csv", "--users", "9"], "--users shapes made-up events", ""),
        (["simulate", "--data", "events.xls"], "unknown kind of file", ".parquet"),
        (["simulate", "--data", "none.csv"], "cannot read `none.csv`", "path"),
        (["backfill", "--from", "2026-01-01T00:00:00Z"], "belong together", "both"),
        (["forget", "--yes"], "no user to forget", "--users-from FILE"),
        (["forget", "--user", "ann"], "stdin is no terminal", "--dry-run"),
        (["forget", "--users-from", "none.txt"], "cannot read user ids from `none.txt`", "one id a line"),
        (["forget", "--user", "a" * 200, "--yes"], "200 bytes", "one a line"),
        (["forget", "--user", "ann", "--through", "2126-01-01T00:00:00Z", "--yes"], "in the future", "leave it out"),
        (["merge-users", "--from", "a", "--to", "a", "--yes"], "the same id", "anonymous"),
        (["merge-users", "--from", "a", "--to", "b"], "stdin is no terminal", "--dry-run"),
        (["stream", "--rewind", "soon"], "not a duration", "spoor stream --help"),
        (["stream", "--rewind", "1h", "--from-lake"], "--rewind moves one back", "one of them"),
        (["release", "show", "none"], "no release `none`", "spoor release list"),
        *(
            ([*command, "s3://bucket/x"], "`s3://bucket/x` is a URL, expected a local path", "mount what `s3:` names")
            for command in (
                ["pretrain", "--out"],
                ["pretrain", "--release", "a", "--data"],
                ["export", "--to"],
                ["finetune", "--release", "a", "--out"],
                ["evaluate", "--protocol", "global-time", "--data"],
                ["evaluate", "--data", "x.csv", "--protocol", "global-time", "--release"],
                ["forget", "--users-from"],
                ["simulate", "--data"],
                ["demo", "--folder"],
                ["stream", "--summary"],
                ["release", "tables", "build", "a"],
                ["--config"],
            )
        ),
        (["--set", "state_folder=gs://bucket", "services", "up"], "`gs://bucket` is a URL", "mount what"),
        (["pretrain", "--release", "s3://bucket/a"], "s3://bucket/a", ""),
    ],
)
def test_wrong_usage_and_settings_exit_with_2(spoor: Spoor, arguments: list[str], message: str, hint: str):
    Path("bad.toml").write_text("[kafka\n")
    Path("unknown.toml").write_text("[kafka]\nprot = 1\n")
    told = spoor(*arguments).failed_with(2)
    assert message in told
    assert hint in told.splitlines()[-1]
    assert "s3cret" not in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["archive"],
        ["archive", "--dry-run"],
        ["simulate"],
        ["topics", "create"],
        ["topics", "create", "--dry-run"],
        ["stream", "--count", "1"],
        ["stream", "--dry-run", "--rewind", "10m"],
        ["stream", "pause"],
        ["stream", "status"],
        ["dlq", "list"],
        ["dlq", "replay"],
    ],
    ids=" ".join,
)
def test_a_broker_that_is_down_exits_with_3(spoor: Spoor, arguments: list[str]):
    release(Path("releases/base-1").absolute())
    done = spoor(*arguments, "--json")
    told = done.failed_with(3)
    assert "no Kafka broker answers" in told and "spoor services up" in told
    assert done.json == {
        "error": told.splitlines()[0].removeprefix("error: "),
        "hint": told.splitlines()[1].removeprefix("hint: "),
        "exit_code": 3,
    }


@pytest.mark.parametrize("command", ["backfill", "stream"])
def test_an_unknown_release_is_told_before_anything_is_done(spoor: Spoor, command: str):
    """Before a topic is made for it, say: that no broker answers must not matter."""
    release(Path("releases/base-1").absolute())
    for arguments in (["--release", "nope"], ["--release", "nope", "--dry-run"]):
        told = spoor(command, *arguments).failed_with(2)
        assert "release `nope` is not in" in told and "found base-1" in told


def test_embeddings_that_could_not_be_computed_exit_with_1(spoor: Spoor, monkeypatch: pytest.MonkeyPatch):
    release(Path("releases/base-1").absolute())
    failed = BackfillResult(
        "backfill-1", ("base-1",), None, snapshots=0, items=2, skipped=0, dry_run=False, encode_failures=3
    )
    monkeypatch.setattr("spoor.batch.users.backfill.run_backfill", lambda *_, **__: failed)
    done = spoor("backfill", "--no-publish", "--json")
    assert (done.code, done.json["encode_failures"]) == (1, 3)
    assert "3 embeddings could not be computed" in spoor("backfill", "--no-publish").out


def test_a_release_that_workers_do_not_write_yet_exits_with_1(spoor: Spoor, monkeypatch: pytest.MonkeyPatch):
    release(Path("releases/base-1").absolute())
    done = BackfillResult("backfill-1", ("base-1",), None, 0, 2, 0, False, unwritten=("base-1",))
    monkeypatch.setattr("spoor.batch.users.backfill.run_backfill", lambda *_, **__: done)
    told = spoor("backfill", "--no-publish")
    assert told.code == 1
    assert "workers do not write base-1: `spoor stream reload` lets workers take up live releases; then run" in told.out


def test_a_state_folder_that_cannot_be_written_exits_with_3(spoor: Spoor, settings: Settings):
    settings.state_folder.write_text("a file, not a folder")
    assert "cannot write" in spoor("services", "up").failed_with(3)


def test_services_go_up_once_and_down_any_number_of_times(spoor: Spoor, settings: Settings):
    try:
        up = spoor("services", "up", "--json")
        assert (up.code, up.json["kafka"]["answering"]) == (0, True)
        assert spoor("services", "status").code == 0
        assert "already runs" in spoor("services", "up").failed_with(2)
        assert spoor("dlq", "list").failed_with(2)
        sent = spoor("simulate", "--events", "10", "--json")
        assert (sent.code, sent.json["events"], sent.json["topic"]) == (0, 10, "activity")
        assert spoor("dlq", "list", "--json").json == {"dead_letters": []}
        assert spoor("dlq", "replay", "--dry-run", "--json").json["replayed"] == 0
    finally:
        down = spoor("services", "down", "--json")
    assert (down.code, down.json) == (0, {"stopped": True})
    again = spoor("services", "down", "--json")
    assert (again.code, again.json) == (0, {"stopped": False})
    status = spoor("services", "status", "--json")
    assert (status.code, status.json["kafka"]["running"]) == (1, False)


def test_a_dry_run_of_simulate_needs_no_broker_and_the_seed_decides(spoor: Spoor):
    arguments = ["simulate", "--dry-run", "--events", "500", "--to", "2026-01-02T00:00:00Z", "--json"]
    first, again, other = (spoor(*arguments, "--seed", seed).json for seed in ("1", "1", "2"))
    assert first == again != other
    assert first["events"] == 500 and first["dry_run"] is True


def release(folder: Path, *, ended: TrainingEnd | None = None) -> Path:
    items = hash_items(["a", "b"])
    order = np.argsort(items)
    save_release(
        folder,
        model=MODEL_CONFIGS["tiny"],
        weights={"w": np.zeros(3, np.float32)},
        vocabulary=Vocabulary(
            items[order], np.zeros(1, np.uint16), np.zeros(1, np.uint16), tuple("ab"[i] for i in order)
        ),
        trained_through_ms=1_700_000_000_000,
        data_fingerprint="f" * 64,
        metrics={"hit_rate": 0.25},
        training={"seed": 0},
        curve_png=b"",
        ended=ended,
    )
    return folder


def test_a_release_whose_training_was_stopped_while_rising_says_so_in_the_list(spoor: Spoor):
    folder = Path("releases").absolute()
    ended = TrainingEnd(
        by="max_minutes", cut=False, rising=True, steps=40, planned_steps=40, ndcg_before=0.1, ndcg_at_end=0.2
    )
    release(folder / "base-1", ended=ended)
    release(folder / "base-2")
    first, second = spoor("release", "list").out.splitlines()
    assert "stopped by max_minutes while still rising" in first and "stopped" not in second
    listed = spoor("release", "list", "--json").json["releases"]
    assert listed[0]["ended"]["rising"] is True and listed[1]["ended"] is None
    assert "stopped by max_minutes while still rising" in spoor("release", "show", "base-1").out


def test_releases_are_listed_and_shown(spoor: Spoor):
    assert spoor("release", "list", "--json").json == {"releases": []}
    release(Path("releases/base-1").absolute())
    [listed] = spoor("release", "list", "--json").json["releases"]
    assert (listed["name"], listed["dimension"]) == ("base-1", 16)
    assert listed["trained_through"] == "2023-11-14T22:13:20.000+00:00"
    shown = spoor("release", "show", "base-1")
    assert shown.code == 0 and "checksums match" in shown.out and "0.25" in shown.out


def test_a_damaged_release_exits_with_1(spoor: Spoor):
    folder = release(Path("releases/base-1").absolute())
    (folder / "metrics.json").write_text("{}")
    assert "does not match its checksum" in spoor("release", "show", "base-1").failed_with(1)


def test_what_fails_inside_beam_is_told_once_and_without_beam_s_own_words(spoor: Spoor):
    release(Path("releases/base-1").absolute())  # its weights are no model's
    done = spoor("backfill", "--into", "offline")
    assert "the weights do not fit its configuration" in done.failed_with(1)
    assert "apache_beam" not in done.err and done.err.count("do not fit") == 1


def test_a_defect_gives_one_line_and_keeps_the_traceback(
    spoor: Spoor, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    def broken(_: Settings) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(services, "status", broken)
    told = spoor("services", "status", "--json").failed_with(70)
    assert "a defect in Spoor: ZeroDivisionError: two lines" in told
    [log] = (settings.state_folder / "logs").glob("spoor-error-*.log")
    assert str(log) in told
    assert "raise ZeroDivisionError" in log.read_text()


def test_an_interrupt_says_so(spoor: Spoor, monkeypatch: pytest.MonkeyPatch):
    def interrupted(_: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(services, "status", interrupted)
    assert "interrupted" in spoor("services", "status").failed_with(130)


@pytest.mark.parametrize(
    "arguments",
    [
        ["forget", "--user", "ann"],
        ["forget", "--expire"],
        ["merge-users", "--from", "ann", "--to", "bob"],
        ["release", "retire", "base-1"],
    ],
    ids=" ".join,
)
def test_the_answer_no_is_no_interrupt_and_nothing_has_been_changed(
    spoor: Spoor, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    """The settings' broker, store and releases are not there: whatever were done before the answer would fail."""
    monkeypatch.setattr(
        "spoor.operations.releases.plan_retirement",
        lambda *_, **__: RetirePlan("a", ("b", "c"), (), None, False, (), ()),
    )
    keyboard, terminal = os.openpty()
    with open(terminal) as stdin, open(keyboard, "wb", buffering=0) as keys:
        monkeypatch.setattr("sys.stdin", stdin)
        for answer, code, message in (
            (b"n\n", 1, "nothing was changed: the answer was no"),
            (b"\n", 1, "nothing was changed: the answer was no"),
            (b"\x04", 130, "interrupted"),  # the end of the input
        ):
            keys.write(answer)
            done = spoor(*arguments, "--json")
            assert (done.code, done.json["error"]) == (code, message)
            assert done.err.splitlines()[-1].startswith("hint: ")


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m spoor config show | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", str(cli.PIPE_CLOSED))
