from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from spoor.base.configuration import find_file, load
from spoor.base.errors import UsageError


@dataclass(frozen=True)
class Sample:
    folder: Path = Path("{state_folder}/sample")
    count: int = 3
    rate: float = 0.5
    on: bool = False
    names: tuple[str, ...] = ()
    mode: Literal["a", "b"] = "a"
    password: str = field(default="", repr=False, metadata={"secret": True})


def load_sample(tmp_path, text="", environ=None, flags=None):
    file = tmp_path / "spoor.toml"
    file.write_text(text)
    return load({"sample": Sample}, file=file, environ=environ or {}, flags=flags)


def test_defaults_and_paths_below_the_state_folder(tmp_path):
    loaded = load_sample(tmp_path, 'state_folder = "state"')
    assert loaded.sections["sample"] == Sample(folder=tmp_path / "state" / "sample")
    assert loaded.origins["sample.count"] == "default"
    assert loaded.origins["state_folder"] == f"file {tmp_path / 'spoor.toml'}"


def test_flag_beats_environment_beats_file(tmp_path):
    text = '[sample]\ncount = 4\nrate = 1\nmode = "b"'
    environ = {"SPOOR_SAMPLE__COUNT": "5", "SPOOR_SAMPLE__NAMES": "x, y", "SPOOR_SAMPLE__ON": "true", "OTHER": "1"}
    loaded = load_sample(tmp_path, text, environ, {"sample.count": 6, "sample.rate": None})
    sample = loaded.sections["sample"]
    assert (sample.count, sample.rate, sample.mode, sample.names, sample.on) == (6, 1.0, "b", ("x", "y"), True)
    assert loaded.origins["sample.count"] == "flag"
    assert loaded.origins["sample.names"] == "env SPOOR_SAMPLE__NAMES"


def test_relative_paths_follow_the_file_and_flags_the_working_folder(tmp_path):
    assert load_sample(tmp_path, '[sample]\nfolder = "x"').sections["sample"].folder == tmp_path / "x"
    loaded = load_sample(tmp_path, flags={"sample.folder": Path("y")})
    assert loaded.sections["sample"].folder == Path.cwd() / "y"


@pytest.mark.parametrize(
    ("text", "hint"), [("[sample]\ncuont = 1", "sample.count"), ("[smaple]\ncount = 1", "sample.count"), ("x = 1", "")]
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path, text, hint):
    with pytest.raises(UsageError, match="unknown setting") as error:
        load_sample(tmp_path, text)
    assert hint in error.value.hint


def test_an_unknown_variable_is_an_error_too_unless_only_some_sections_are_read(tmp_path):
    environ = {"SPOOR_SAMPLE__CUONT": "1"}
    with pytest.raises(UsageError, match="SPOOR_SAMPLE__CUONT"):
        load_sample(tmp_path, environ=environ)
    assert load({"sample": Sample}, file=None, environ=environ, ignore_unknown=True).sections["sample"].count == 3


@pytest.mark.parametrize(
    "line",
    [
        'count = "x"',
        "count = 1.5",
        "count = true",
        "rate = nan",
        'rate = "nan"',
        "rate = inf",
        'rate = "-inf"',
        'rate = "1e999"',
        "on = 1",
        'on = "maybe"',
        'names = "a"\nmode = "c"',
        "names = [1]",
        "folder = 1",
    ],
)
def test_a_wrong_type_says_what_was_found_and_expected(tmp_path, line):
    with pytest.raises(UsageError, match=r"found .* expected"):
        load_sample(tmp_path, f"[sample]\n{line}")


def test_files_that_are_absent_or_no_toml_are_usage_errors(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="cannot read settings file"):
        load_sample(tmp_path, "not toml")
    with pytest.raises(UsageError, match="no settings file"):
        find_file({}, flag=tmp_path / "absent.toml")
    monkeypatch.chdir(tmp_path)
    assert find_file({}) == Path("spoor.toml")
    assert find_file({"SPOOR_CONFIG": str(tmp_path / "spoor.toml")}) == tmp_path / "spoor.toml"


@pytest.mark.parametrize("by", ["file", "environment"])
def test_a_secret_may_lie_in_a_file_of_its_own(tmp_path, by):
    (tmp_path / "password").write_text("s3cret-word\n")
    text = '[sample]\npassword_file = "password"\n' if by == "file" else ""
    environ = {"SPOOR_SAMPLE__PASSWORD_FILE": str(tmp_path / "password")} if by == "environment" else {}
    loaded = load_sample(tmp_path, text, environ)
    assert loaded.sections["sample"].password == "s3cret-word"
    assert loaded.origins["sample.password"] == f"file {tmp_path / 'password'}"


def test_an_empty_name_of_a_secret_s_file_is_none(tmp_path):
    assert load_sample(tmp_path, environ={"SPOOR_SAMPLE__PASSWORD_FILE": ""}).sections["sample"].password == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "holds no bytes"), (b"\n", "holds no bytes"), (b"\xff\xfe", "not UTF-8"),
     (b"s3cret" * 20_000, "holds more than 65,536 bytes")],
)  # fmt: skip
def test_a_secret_s_file_that_cannot_be_one_is_named_and_not_shown(tmp_path, content, message):
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        load_sample(tmp_path, '[sample]\npassword_file = "password"')
    assert str(tmp_path / "password") in error.value.message
    assert "s3cret" not in error.value.message + error.value.hint


def test_a_secret_set_twice_a_secret_on_the_command_line_and_one_of_the_wrong_type_are_refused_unseen(tmp_path):
    twice = '[sample]\npassword = "s3cret"\npassword_file = "password"'
    for text, flags, message in (
        (twice, {}, "both `sample.password`"),
        ("", {"sample.password": "s3cret"}, "seen by every user"),
        ("[sample]\npassword = [530291, 3]", {}, r"found '\(hidden\)', expected a str"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            load_sample(tmp_path, text, flags=flags)
        assert "s3cret" not in error.value.message and "530291" not in error.value.message


def test_only_a_secret_has_a_file_of_its_own(tmp_path):
    with pytest.raises(UsageError, match=r"unknown setting `sample\.count_file`"):
        load_sample(tmp_path, '[sample]\ncount_file = "password"')


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "spoor.toml").write_bytes(b"\xef\xbb\xbf[sample]\r\ncount = 4\r\n")
    loaded = load({"sample": Sample}, file=tmp_path / "spoor.toml", environ={})
    assert loaded.sections["sample"].count == 4


def test_a_settings_file_in_utf_16_is_called_so(tmp_path):
    (tmp_path / "spoor.toml").write_bytes("[sample]\ncount = 4\n".encode("utf-16"))
    with pytest.raises(UsageError, match="UTF-16, expected UTF-8"):
        load({"sample": Sample}, file=tmp_path / "spoor.toml", environ={})


def test_a_secret_s_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbfhush\r\n")
    environ = {"SPOOR_SAMPLE__PASSWORD_FILE": str(tmp_path / "secret")}
    assert load_sample(tmp_path, environ=environ).sections["sample"].password == "hush"


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs:/bucket/x", "hdfs://name/x", "file:///srv/x"])
def test_a_url_is_refused_where_a_folder_is_meant_whoever_sets_it(tmp_path, url):
    for given in ({"text": f'state_folder = "{url}"'}, {"text": f'[sample]\nfolder = "{url}"'}):
        with pytest.raises(UsageError, match=r"\(file .*is a URL, expected a local path"):
            load_sample(tmp_path, **given)
    with pytest.raises(UsageError, match=r"`sample.folder` \(env SPOOR_SAMPLE__FOLDER\).*is a URL"):
        load_sample(tmp_path, environ={"SPOOR_SAMPLE__FOLDER": url})
    for value in (url, Path(url)):
        with pytest.raises(UsageError, match=r"`sample.folder` \(flag\).*is a URL"):
            load_sample(tmp_path, flags={"sample.folder": value})
    with pytest.raises(UsageError, match=r"settings file .*is a URL"):
        find_file({"SPOOR_CONFIG": url})


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\\u0000b"])
def test_a_path_that_cannot_be_is_a_usage_error(tmp_path, path):
    with pytest.raises(UsageError, match="expected a path"):
        load_sample(tmp_path, f'[sample]\nfolder = "{path}"')


KUBERNETES = {  # of the services spoor, spoor-stream and spoor-kafka--controller, as a pod sees them
    "SPOOR_PORT": "tcp://10.0.0.1:9100",
    "SPOOR_SERVICE_HOST": "10.0.0.1",
    "SPOOR_SERVICE_PORT": "9100",
    "SPOOR_SERVICE_PORT_METRICS": "9100",
    "SPOOR_PORT_9100_TCP": "tcp://10.0.0.1:9100",
    "SPOOR_PORT_9100_TCP_PROTO": "tcp",
    "SPOOR_PORT_9100_TCP_PORT": "9100",
    "SPOOR_PORT_9100_TCP_ADDR": "10.0.0.1",
    "SPOOR_STREAM_PORT": "udp://[fd00::1]:53",
    "SPOOR_STREAM_PORT_53_UDP_ADDR": "fd00::1",
    "SPOOR_STREAM_PORT_53_SCTP": "sctp://10.0.0.1:53",
    "SPOOR_STREAM_SERVICE_HOST": "fd00::1",
    "SPOOR_STREAM_SERVICE_PORT_DNS_TCP": "53",
    "SPOOR_SAMPLE__COUNT_PORT": "tcp://10.0.0.1:9100",
    "SPOOR_SAMPLE__COUNT_SERVICE_HOST": "10.0.0.1",
    "SPOOR_CONFIG_SERVICE_HOST": "10.0.0.1",
}


@pytest.mark.parametrize("variable", KUBERNETES)
def test_what_kubernetes_sets_for_a_service_is_no_setting(tmp_path, variable):
    loaded = load_sample(tmp_path, environ={variable: KUBERNETES[variable]})
    assert set(loaded.origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("SPOOR_STATE_FOLDR", "SPOOR_STATE_FOLDER"),
        ("SPOOR_SAMPLE__CUONT", "SPOOR_SAMPLE__COUNT"),
        ("SPOOR_SAMPLE_COUNT", "SPOOR_SAMPLE__COUNT"),
        ("SPOOR_COUNTS", "SPOOR_SAMPLE__COUNT"),
        ("SPOOR_SAMPLE_PORT", ""),
        ("SPOOR_OTHER__COUNT", ""),
    ],
)
def test_a_variable_that_is_misspelt_is_still_an_error(tmp_path, variable, hint):
    with pytest.raises(UsageError, match=f"unknown setting .*env {variable}") as error:
        load_sample(tmp_path, environ={variable: "9092"})
    assert hint in error.value.hint


@pytest.mark.parametrize("variable", ["SPOOR_SRC", "SPOOR_PY", "SPOOR_HOME", "SPOOR_VERSION", "SPOOR_"])
def test_a_variable_of_somebody_elses_scripts_is_no_setting(tmp_path, variable):
    loaded = load_sample(tmp_path, environ={variable: "/opt/spoor"})
    assert set(loaded.origins.values()) == {"default"}
