"""Every hint can be followed: the commands, options, settings and values that messages name exist and are taken."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

import click
import pytest

from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.base.times import parse_duration_ms, parse_time_ms
from spoor.broker.settings import KafkaSettings
from spoor.cli import app
from spoor.config import SECTIONS, load_settings
from spoor.encoder.data.split import Protocol, check_split

ROOT = Path(__file__).parents[2]
ROOMS = ("activity", "batch", "encoder", "feature_repo", "kernels", "ranking", "spoor", "store", "streaming")
UNKNOWN = "\0"  # what an f-string puts in
FILE, FOLDER = str(ROOT / "README.md"), str(ROOT / "docs")
MEANT = {"TIME": "2026-01-31T00:00:00Z", "DURATION": "1d", "DAY": "2026-01-31", "FILE": FILE, "FOLDER": FOLDER}
Spoor = Callable[..., Any]


class Said(NamedTuple):
    """A text that a user may read. `hint`: it is given as the way out of an error."""

    where: str
    text: str
    hint: bool


def texts(path: Path) -> Iterator[Said]:
    """Every string of a module, f-strings with UNKNOWN for what they put in."""
    tree = ast.parse(path.read_text())
    hints = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "hint"]
    named = {node.id for hint in hints for node in ast.walk(hint) if isinstance(node, ast.Name)} | {"hint"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and {n.id for n in node.targets if isinstance(n, ast.Name)} & named:
            hints.append(node.value)
    in_hints = {id(node) for hint in hints for node in ast.walk(hint)}
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else UNKNOWN for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        if text:
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            yield Said(place, " ".join(text.split()), id(node) in in_hints)


SAID = [said for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) for said in texts(path)]
HINTS = [said for said in SAID if said.hint]


def refusal(call: str) -> click.ClickException | None:
    """What the command line has against the call before anything is done. Words in capitals stand for values; what an
    f-string puts in is a name or a number, or else a time."""
    error = _refusal(call.replace(UNKNOWN, "1"))
    return error if error is None or UNKNOWN not in call else _refusal(call.replace(UNKNOWN, MEANT["TIME"]))


def _refusal(call: str) -> click.ClickException | None:
    words = [MEANT.get(word, word) for word in shlex.split(call)]
    command, context = app, None
    try:
        while True:
            context = command.make_context("spoor", words, parent=context)
            words = [*context._protected_args, *context.args]
            if not isinstance(command, click.Group) or not words:
                return None
            _, command, words = command.resolve_command(context, words)
    except (click.exceptions.NoArgsIsHelpError, click.exceptions.Exit):
        return None
    except click.ClickException as error:
        return error


def commands(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    yield path.strip(), command
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(inner, f"{path} {name}")


def calls(text: str) -> list[str]:
    return re.findall(r"`spoor ([^`]+)`", text)


def test_there_are_hints_to_follow():
    assert len(HINTS) > 200
    assert refusal("archive --until 1") is not None
    assert refusal("sideways") is not None
    assert refusal("backfill --as-of TIME --every DURATION") is None


def test_every_command_that_a_hint_names_is_taken_as_it_stands():
    """A user types it in; it must not end with `missing argument` or `no such option`."""
    named = [(said, call) for said in HINTS for call in calls(said.text)]
    assert len(named) > 40
    for said, call in named:
        assert (error := refusal(call)) is None, f"{said.where}: `spoor {call}`: {error.format_message()}"
        if call.startswith("pretrain"):
            assert ("--out " in call) != ("--release " in call), f"{said.where}: `spoor {call}` names no folder"


def test_every_command_that_another_text_names_is_one():
    for said in SAID:
        for call in calls(said.text):
            error = refusal(call)
            assert error is None or isinstance(error, click.MissingParameter | click.BadOptionUsage), (said.where, call)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_every_command_of_a_page_takes_the_values_that_stand_there(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a page names without its arguments is a name; anything else is what a reader types in."""
    monkeypatch.chdir(tmp_path)
    for line, quoted in re.findall(r"^\$? ?spoor (.+)$|`spoor ([^`]+)`", page.read_text(), re.MULTILINE):
        call = re.sub(r"\[.*?\]|#.*|&|\| .*", "", line or quoted).replace(" N", " 5")
        for file in re.findall(r"[\w./-]+\.(?:parquet|csv|jsonl)\b", call):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        error = refusal(call)
        named = error is None or isinstance(error, click.MissingParameter | click.BadOptionUsage) or "…" in call
        assert named, f"`spoor {call}`: {error.format_message() if error else ''}"


def test_every_option_that_a_hint_names_is_one_of_a_command():
    known = {option for _, each in commands(app) for p in each.params for option in p.opts + p.secondary_opts}
    known |= {"--nproc-per-node"}  # of torchrun
    for said in HINTS:
        if "kafka-configs" not in said.text:
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", said.text):
                assert option in known, f"{said.where}: {option}"


def test_kafka_s_own_command_is_told_which_broker():
    """It refuses to run without."""
    named = [said for said in SAID if "kafka-configs" in said.text]
    assert len(named) > 1
    assert [said for said in named if "kafka-configs --bootstrap-server " not in said.text and said.hint] == []
    change = replace(load_settings(environ={}).kafka, bootstrap_servers="b:9092").topic_change("t", "retention.ms=1")
    assert change.startswith("`kafka-configs --bootstrap-server b:9092 ") and change.endswith("retention.ms=1`")


def test_every_setting_that_a_hint_names_is_one():
    known = {key for key, _, _ in load_settings(environ={}).shown()}
    variables = {f"SPOOR_{key.upper().replace('.', '__')}" for key in known} | {"SPOOR_CONFIG", "SPOOR_"}
    for said in HINTS:
        for variable in re.findall(r"\bSPOOR_[A-Z_]*\b", said.text):
            assert variable.removesuffix("_FILE") in variables, said
        for key in re.findall(rf"\b((?:{'|'.join(SECTIONS)})\.[a-z_]+)\b(?![./…])", said.text):
            table = any(each.startswith(f"{key}.") for each in known)
            assert (
                table
                or key.removesuffix("_file") in known
                or key.endswith((".py", ".json", ".jsonl", ".csv", ".parquet", ".toml"))
            ), said


def test_every_value_that_a_hint_gives_a_setting_is_taken():
    value = r"\"([A-Za-z0-9_.-]+)\"|([0-9][0-9.]*)\b"
    given = [
        (said, key, quoted or number)
        for said in HINTS
        for key, quoted, number in re.findall(
            rf"\b((?:{'|'.join(SECTIONS)})\.[a-z_]+)(?: to | = |=)(?:{value})", said.text
        )
    ]
    assert len(given) > 3
    for said, key, text in given:
        assert load_settings(environ={}, flags={key: text}), said


def test_every_time_and_duration_that_a_text_gives_as_an_example_is_taken():
    examples = [said for said in SAID if "for example" in said.text or "e.g." in said.text or "write " in said.text]
    found = 0
    for said in examples:
        for text in re.findall(r"\b\d{4}-\d\d-\d\d[T\d:.Z+-]*", said.text):
            found += parse_time_ms(text.rstrip(".:")) > 0
        for text in re.findall(r"\b\d+(?:\.\d+)?[smhd]\b", said.text):
            found += parse_duration_ms(text) > 0
    assert found > 4


ODD_TIMES = (
    "1998-04-22", "19980422", "1998-W17", "1998-W17-3", "1998-04-22T10", "1998-04-22T10:30", "1998-04-22 10:30:00",
    "1998-04-22T10:30:00.5", "1998-04-22T10:30:00.123456", "19980422T103000", "1998-04-22T24:00:00", "1998-04-22 ",
    "1998-4-22", "22.04.1998", "1998-13-01", "1998-04-22T10:30:00 UTC", "1998-04-22T10:30:00+0200", "893236000", "now",
    "yesterday", "", " ", "Z", "1998-04-22Z", "1998-04-22T10Z", "1998-04-22T10:30:00ZZ", "9999-12-31", "0001-01-01",
    "٢٠٢٦-٠١-٠١",
)  # fmt: skip
ODD_DURATIONS = ("", "m", "5", "5 m", "-5m", "0h", "1w", "1e400d", "nan", "nand", "infs", "one day", "1,5h", "5M", "٥m")


@pytest.mark.parametrize(("parse", "odd"), [(parse_time_ms, ODD_TIMES), (parse_duration_ms, ODD_DURATIONS)])
def test_what_the_hint_of_a_refused_value_offers_is_taken(parse: Callable[[str], int], odd: tuple[str, ...]):
    """Whatever was given: the hint gives one value or several, and each of them is one."""
    refused = 0
    for text in odd:
        try:
            parse(text)
        except UsageError as error:
            offered = re.findall(r"(?:write|or|,|for example) (\S*\d\S*?)(?=,|$| )", error.hint)
            assert offered, (text, error.hint)
            for value in offered:
                parse(value)
            refused += 1
    assert refused > 5


NUMBERS = [
    (f"{section}.{each.name}", value)
    for section, cls in SECTIONS.items()
    for each in fields(cls)
    if each.type in ("int", "float")
    for value in ("-1", "0")
]


@pytest.mark.parametrize(("key", "value"), NUMBERS, ids=lambda text: text)
def test_the_least_value_that_a_setting_s_hint_names_is_taken(key: str, value: str):
    try:
        load_settings(environ={}, flags={key: value})
    except UsageError as error:
        assert key in error.message or key in error.hint, (error.message, error.hint)
        for least in re.findall(r"at least ([\d.]+)", error.hint):
            load_settings(environ={}, flags={key: least})


def given_up(done: Any) -> tuple[str, str]:
    """(message, hint) of a call that failed."""
    message, hint = done.err.splitlines()[-2:]
    assert message.startswith("error: ") and hint.startswith("hint: "), done.err
    return message.removeprefix("error: "), hint.removeprefix("hint: ")


@pytest.mark.parametrize("path", [path for path, _ in commands(app)])
def test_the_help_that_a_wrong_option_points_at_is_there(spoor: Spoor, path: str):
    _, hint = given_up(spoor(*path.split(), "--no-such-option"))
    [call] = re.findall(r"`spoor ?([^`]*)`", hint)
    assert spoor(*call.split()).code == 0


FOLLOWED = [
    (["--set", "kafka.prt=9092", "config", "show"], r"`(\S+)`", ["--set", "{0}=9092", "config", "show"]),
    (["--set", "kafka.port", "config", "show"], r"write (--set \S+)", ["{0}", "config", "show"]),
    (["release", "show", "none"], r"`spoor (release list)`", ["{0}"]),
    (["simulate", "--dry-run", "--events", "-1"], r"give (--events \d)", ["simulate", "--dry-run", "{0}"]),
    (["simulate", "--dry-run", "--users", "0"], r"give (--users \d)", ["simulate", "--dry-run", "{0}"]),
    (
        ["--set", "events.schema_registry=http://registry", "config", "show"],
        r'set it to "(avro)"',
        ["--set", "events.schema_registry=http://registry", "--set", "events.format={0}", "config", "show"],
    ),
    (
        ["--set", "features.user_id_type=int64", "config", "show"],
        r"set (events\.user_id_type) only",
        ["--set", "{0}=int64", "config", "show"],
    ),
]


@pytest.mark.parametrize(("arguments", "pattern", "following"), FOLLOWED, ids=[" ".join(f[0]) for f in FOLLOWED])
def test_a_hint_that_is_followed_word_by_word_leads_on(
    spoor: Spoor, arguments: list[str], pattern: str, following: list[str]
):
    _, hint = given_up(spoor(*arguments))
    found = re.search(pattern, hint)
    assert found, hint
    done = spoor(*(word for part in following for word in part.format(found[1]).split()))
    assert done.code == 0, done.err


def test_a_secret_goes_where_the_hint_says(spoor: Spoor, monkeypatch: pytest.MonkeyPatch):
    _, hint = given_up(spoor("--set", "kafka.sasl_password=s3cret", "config", "show"))
    variable, file = re.findall(r"SPOOR_\w+", hint)
    Path("password").write_text("s3cret\n")
    for name, value in ((variable, "s3cret"), (file, "password")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert spoor("config", "show").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["archive"],
        ["simulate", "--events", "1"],
        ["stream", "status"],
        ["dlq", "list"],
        ["forget", "--expire", "--yes"],
    ],
    ids=" ".join,
)
def test_where_another_broker_is_configured_no_hint_names_the_embedded_one(spoor: Spoor, arguments: list[str]):
    """`spoor services up` would be refused there. Without one it is the way."""
    configured = ("--set", "kafka.bootstrap_servers=127.0.0.1:1")
    assert "kafka.bootstrap_servers" in given_up(spoor(*configured, *arguments))[1]
    assert spoor(*configured, "services", "up").code == 2
    for before in ((), configured):
        assert ("spoor services up" in given_up(spoor(*before, *arguments))[1]) == (not before)


def test_a_kafka_client_s_own_errors_name_the_same_way_out():
    from spoor.batch.kafka.kafka_source import RangeReader
    from spoor.batch.kafka.publish import _publishing
    from spoor.broker.admin import topic_ids
    from spoor.broker.clients import no_broker

    kafka = load_settings(environ={}).kafka
    away = replace(kafka, bootstrap_servers="127.0.0.1:1", request_timeout_seconds=0.2)

    def publishing(kafka: KafkaSettings) -> str:
        with pytest.raises(InfrastructureError, match="cannot publish") as raised, _publishing():
            raise no_broker(kafka, OSError())
        return raised.value.hint

    hints = [publishing(away), no_broker(away, OSError()).hint]
    for asks in (lambda: RangeReader(away), lambda: topic_ids(away, ["activity"])):
        with pytest.raises(Exception, match=r"127\.0\.0\.1:1") as raised:
            asks()
        hints.append(raised.value.hint)
    assert [hint for hint in hints if "services up" in hint or "kafka.bootstrap_servers" not in hint] == []
    assert "spoor services up" in publishing(kafka)


@pytest.mark.parametrize("recorded", get_args(Protocol))
@pytest.mark.parametrize("asked", ["leave-one-out", "global-time"])
def test_a_protocol_that_an_evaluation_is_pointed_at_is_one_of_evaluate_s(recorded: str, asked: str):
    """A release for serving holds nothing out: evaluating it under its own protocol would be refused."""
    split: Any = SimpleNamespace(protocol=asked, digest="a")
    if recorded == asked:
        return
    with pytest.raises(DataError) as raised:
        check_split({"protocol": recorded, "digest": "b"}, split, release="base-1")
    for protocol in re.findall(r"evaluate it with --protocol (\S+?),", raised.value.hint):
        assert refusal(f"evaluate --data FILE --protocol {protocol}") is None
    for protocol in re.findall(r"train one with --protocol (\S+)", raised.value.hint):
        assert refusal(f"pretrain --release NAME --protocol {protocol}") is None


def test_an_interrupted_command_is_not_said_to_go_on_by_itself(spoor: Spoor, monkeypatch: pytest.MonkeyPatch):
    """Without --resume, pretrain and backfill begin anew."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spoor.services.local.status", interrupted)
    assert "--resume" in given_up(spoor("services", "status"))[1]
