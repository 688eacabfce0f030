import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from spoor import config_reference
from spoor.base.configuration import settings_of
from spoor.base.errors import UsageError
from spoor.config import SECTIONS, load_settings

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    file = folder / "spoor.toml"
    file.write_text(text)
    return file


def test_a_later_source_wins_and_the_origin_says_which(tmp_path: Path):
    file = write(tmp_path, "[kafka]\nport = 1\ncontroller_port = 2\ntopic = 'from-file'\n")
    environ = {"SPOOR_KAFKA__PORT": "3", "SPOOR_KAFKA__CONTROLLER_PORT": "4", "PATH": "/bin"}
    settings = load_settings(file=file, environ=environ, flags={"kafka.port": 5})
    assert (settings.kafka.port, settings.kafka.controller_port, settings.kafka.topic) == (5, 4, "from-file")
    origins = {key: origin for key, _, origin in settings.shown()}
    assert origins["kafka.port"] == "flag"
    assert origins["kafka.controller_port"] == "env SPOOR_KAFKA__CONTROLLER_PORT"
    assert origins["kafka.topic"] == f"file {file}"
    assert origins["kafka.partitions"] == "default"


def test_every_section_is_read_and_shown(tmp_path: Path):
    settings = load_settings(file=write(tmp_path, "state_folder = 'here'\n"), environ={})
    assert settings.state_folder == tmp_path / "here"
    assert settings.lake.folder == tmp_path / "here" / "lake"
    keys = [key for key, _, _ in settings.shown()]
    expected = [key for name, cls in SECTIONS.items() for key, _, _ in settings_of(name, cls)]
    assert keys == ["state_folder", *expected]


def test_secrets_are_shown_nowhere(tmp_path: Path):
    settings = load_settings(file=write(tmp_path, ""), environ={"SPOOR_KAFKA__SASL_PASSWORD": "s3cret-word"})
    assert settings.kafka.sasl_password == "s3cret-word"
    assert [value for key, value, _ in settings.shown() if key == "kafka.sasl_password"] == ["(hidden)"]
    assert "s3cret-word" not in repr(settings)


def test_the_user_id_s_type_is_set_once_for_events_and_features(tmp_path: Path):
    settings = load_settings(file=write(tmp_path, "[events]\nuser_id_type = 'int64'\n"), environ={})
    assert settings.features.user_id_type == "int64"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[kafka]\nprot = 1\n", "unknown setting `kafka.prot`", "kafka.port"),
        ("[kafak]\nport = 1\n", "unknown setting `kafak.port`", "kafka.port"),
        ("state_foldr = 'x'\n", "unknown setting `state_foldr`", "state_folder"),
        ("[kafka]\nport = 'many'\n", "found 'many', expected", "docs/configuration.md"),
        ("[kafka]\nport = 1.5\n", "found 1.5, expected", "docs/configuration.md"),
        (
            "[history]\nmax_events = 9223372036854775808\n",
            "expected a whole number of 64 bits",
            "docs/configuration.md",
        ),
        (f"[pretrain]\nmax_minutes = 1{'0' * 400}\n", "expected a float", "docs/configuration.md"),
        ("[stream]\nas_of = 'later'\n", "expected one of 'append', 'event'", "docs/configuration.md"),
        ("[kafka\n", "cannot read settings file", "docs/configuration.md"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, message: str, hint: str):
    with pytest.raises(UsageError) as caught:
        load_settings(file=write(tmp_path, text), environ={})
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("variable", ["SPOOR_CONFG", "SPOOR_CONFIG_FILE", "SPOOR_CONFIGFILE"])
def test_a_misspelt_name_of_the_settings_file_is_an_error(tmp_path: Path, variable: str):
    with pytest.raises(UsageError, match="unknown setting") as caught:
        load_settings(file=write(tmp_path, ""), environ={variable: "/etc/spoor.toml"})
    assert caught.value.hint == "did you mean `SPOOR_CONFIG`?"


def test_an_empty_path_is_not_the_working_folder(tmp_path: Path):
    with pytest.raises(UsageError, match=r"state_folder.*expected a path"):
        load_settings(file=write(tmp_path, ""), environ={"SPOOR_STATE_FOLDER": ""})
    with pytest.raises(UsageError, match=r"lake\.folder.*expected a path"):
        load_settings(file=write(tmp_path, ""), environ={}, flags={"lake.folder": " "})


def test_an_unknown_variable_of_ours_is_an_error_and_others_are_not(tmp_path: Path):
    with pytest.raises(UsageError, match="SPOOR_KAFKA__PROT"):
        load_settings(file=write(tmp_path, ""), environ={"SPOOR_KAFKA__PROT": "1"})
    load_settings(file=write(tmp_path, ""), environ={"KAFKA__PROT": "1"})


def test_the_reference_page_is_what_the_sections_say():
    assert config_reference.PAGE.read_text() == config_reference.page(), "python -m spoor.config_reference --write"


def test_a_stale_page_is_reported_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "configuration.md"
    monkeypatch.setattr(config_reference, "PAGE", page)
    assert config_reference.main(["--check"]) == 1
    page.write_text(config_reference.page())
    assert config_reference.main(["--check"]) == 0
    page.write_text(page.read_text().replace("19092", "9092"))
    assert config_reference.main(["--check"]) == 1
    assert config_reference.main(["--write"]) == 0
    assert config_reference.main(["--check"]) == 0
    assert config_reference.main([]) == 2


@pytest.mark.parametrize(("name", "cls"), SECTIONS.items())
def test_every_setting_has_a_meaning(name: str, cls: type):
    meanings = config_reference.comments(cls)
    assert [field.name for field in dataclasses.fields(cls) if not meanings.get(field.name)] == []


def test_reading_settings_loads_no_heavy_library():
    code = "import sys, spoor.config; print({'torch', 'feast', 'faust', 'apache_beam', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_section_within_a_section_is_set_by_file_environment_and_flag(tmp_path: Path):
    file = write(tmp_path, '[events.fields]\nuser_id = "userId"\nitem_id = "item.id"\n[events]\nmax_id_bytes = 9\n')
    environ = {"SPOOR_EVENTS__FIELDS__ITEM_ID": "sku", "SPOOR_EVENTS__DEFAULTS__SURFACE": "app"}
    settings = load_settings(file=file, environ=environ, flags={"events.fields.timestamp": "ts"})
    names = settings.events.fields
    assert (names.user_id, names.item_id, names.timestamp, names.action) == ("userId", "sku", "ts", "action")
    assert (settings.events.defaults.surface, settings.events.max_id_bytes) == ("app", 9)
    origins = {key: origin for key, _, origin in settings.shown()}
    assert origins["events.fields.user_id"] == f"file {file}"
    assert origins["events.fields.item_id"] == "env SPOOR_EVENTS__FIELDS__ITEM_ID"
    for text, message in (
        ('[events.fields]\nuser = "x"\n', "unknown setting `events.fields.user`"),
        ("[events.fields.user_id]\nx = 1\n", "unknown setting `events.fields.user_id.x`"),
        ('[events]\nfields = "x"\n', "unknown setting `events.fields`"),
        ("[events.fields]\nuser_id = 1\n", "expected a str"),
    ):
        with pytest.raises(UsageError, match=message):
            load_settings(file=write(tmp_path, text), environ={})


@pytest.mark.parametrize("section", ["events", "features"])
def test_the_item_id_s_type_is_one_for_events_and_features(tmp_path: Path, section: str):
    settings = load_settings(file=write(tmp_path, f"[{section}]\nitem_id_type = 'int64'\n"), environ={})
    assert (settings.events.item_id_type, settings.features.item_id_type) == ("int64", "int64")
