"""Typed settings from a TOML file, the environment and flags, with the origin of each value.

Sections are frozen dataclasses; a dataclass within a section is a section within it: `events.fields.user_id`,
SPOOR_EVENTS__FIELDS__USER_ID. An unknown key is an error that names the nearest known one. Later sources win: default <
file < environment (SPOOR_<SECTION>__<KEY>, SPOOR_<KEY> outside sections) < flag. Relative paths in the file are
relative to it, others to the working folder; `{state_folder}` in a path is the state folder. Two kinds of variables are
ignored: those that Kubernetes sets for a service called spoor, or spoor-…, and those without `__` that resemble no
setting (SPOOR_HOME, SPOOR_VERSION).

A secret (a field whose metadata say so) may be in its own file, named by its key plus `_file`. It is refused as a flag,
since every user of a machine sees command lines, and no error repeats it.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from spoor.base.errors import UsageError
from spoor.base.handed_in import decode_text, read_text, refuse_url

ENV_PREFIX = "SPOOR_"
_SECRET_BYTES = 65_536  # maximum of a secret's file
_SETTINGS_BYTES = 1 << 20  # maximum of a settings file


@dataclass(frozen=True)
class TopSettings:
    """Keys outside every section."""

    state_folder: Path = Path(".spoor")  # Kafka's data, lake, offline log, Feast's registry, manifests of jobs


@dataclass(frozen=True)
class Loaded:
    """`sections`: the dataclass instances by section name ("" is TopSettings); `origins`: the source of each
    `section.key`: `default`, `file FILE`, `env NAME` or `flag`."""

    sections: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)


def load(
    sections: Mapping[str, type],
    *,
    file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
    ignore_unknown: bool = False,
) -> Loaded:
    """Builds every section. `flags` maps `section.key` to a value. Raises UsageError.

    `ignore_unknown`: for a program that reads only some sections of a shared file.
    """
    classes: dict[str, type] = {"": TopSettings, **sections}
    known, hints = {}, {}
    for name, cls in classes.items():
        for key, known_field, hint in settings_of(name, cls):
            known[key], hints[key] = known_field, hint
    given: dict[str, tuple[object, str, Path]] = {}
    if file is not None:
        given |= {k: (v, f"file {file}", file.absolute().parent) for k, v in _flatten(_read(file)).items()}
    for variable, text in environ.items():
        key = _environment_key(variable)
        if key and not _of_kubernetes(variable, text, known=key in known) and _resembles_setting(key, known):
            given[key] = (text, f"env {variable}", Path.cwd())
    given |= {key: (value, "flag", Path.cwd()) for key, value in (flags or {}).items() if value is not None}
    secrets = {key for key, known_field in known.items() if known_field.metadata.get("secret")}
    for key in sorted(secrets):
        _read_secret(key, given)
    for key, (_, origin, _) in given.items():
        if key not in known and not ignore_unknown:
            raise _unknown(key, origin, list(known))
    values = {
        key: _convert(raw, hints[key], key=key, origin=origin, base=base, secret=key in secrets)
        for key, (raw, origin, base) in given.items()
        if key in known
    }
    state_folder = values.setdefault("state_folder", _anchor(TopSettings.state_folder, file))
    for key, known_field in known.items():
        values.setdefault(key, _default(known_field))
        if isinstance(values[key], Path):
            path = Path(str(values[key]).replace("{state_folder}", str(state_folder)))
            values[key] = path if path.is_absolute() else _anchor(path, file)
    built = {name: _build(name, cls, values) for name, cls in classes.items()}
    return Loaded(built, {key: given[key][1] if key in given else "default" for key in known})


def find_file(environ: Mapping[str, str], *, flag: Path | None = None) -> Path | None:
    """The settings file to use: the flag, else SPOOR_CONFIG, else ./spoor.toml if it exists. Raises UsageError."""
    chosen = flag or (Path(environ["SPOOR_CONFIG"]) if environ.get("SPOOR_CONFIG") else None)
    if chosen is None:
        return Path("spoor.toml") if Path("spoor.toml").is_file() else None
    refuse_url(str(chosen), "settings file (--config or SPOOR_CONFIG)")
    if not chosen.is_file():
        raise UsageError(f"there is no settings file `{chosen}`", hint="check --config or SPOOR_CONFIG")
    return chosen


def settings_of(section: str, cls: type) -> Iterator[tuple[str, Field[Any], Any]]:
    """(key, field, type) of every setting of a section's dataclass, including the dataclasses within it."""
    hints = get_type_hints(cls)
    for known in fields(cls):
        key, hint = _key(section, known.name), hints[known.name]
        if is_dataclass(hint):
            yield from settings_of(key, hint)  # pyright: ignore[reportArgumentType]
        else:
            yield key, known, hint


def _build(section: str, cls: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(
        **{
            known.name: _build(key, hints[known.name], values) if is_dataclass(hints[known.name]) else values[key]
            for known in fields(cls)
            for key in [_key(section, known.name)]
        }
    )


def _key(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _anchor(path: Path, file: Path | None) -> Path:
    return (file.absolute().parent if file else Path.cwd()) / path


def _default(known: Field[Any]) -> Any:
    return known.default_factory() if callable(known.default_factory) else known.default


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(file, _SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise UsageError(f"cannot read settings file `{file}`: {error}", hint="see docs/configuration.md") from None


def _read_secret(key: str, given: dict[str, tuple[object, str, Path]]) -> None:
    """Replaces `key`_file in `given` by `key` with the content of that file."""
    variable = _variable(key)
    if key in given and given[key][1] == "flag":
        raise UsageError(
            f"`{key}` is a secret, and a command line is seen by every user of the machine",
            hint=f"set {variable}, or {variable}_FILE to the path of a file that holds it",
        )
    raw, origin, base = given.pop(f"{key}_file", ("", "", Path()))
    if not raw:
        return
    if key in given:
        raise UsageError(f"both `{key}` ({given[key][1]}) and `{key}_file` ({origin}) are set", hint="set one of them")
    path = _convert(raw, Path, key=f"{key}_file", origin=origin, base=base)
    try:
        with open(path, "rb") as file:
            content = file.read(_SECRET_BYTES + 1)
        text = decode_text(content).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"  # its content is not shown
        raise UsageError(
            f"`{key}_file` ({origin}): cannot read `{path}`: {reason}", hint="check the path and its permissions"
        ) from None
    if not text or len(content) > _SECRET_BYTES:
        raise UsageError(
            f"`{key}_file` ({origin}): `{path}` holds {'more than 65,536' if text else 'no'} bytes",
            hint="it must hold the secret and nothing else",
        )
    given[key] = (text, f"file {path}", base)


def _flatten(content: dict[str, Any], section: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in content.items():
        key = _key(section, name)
        flat |= _flatten(value, key) if isinstance(value, dict) else {key: value}
    return flat


def _environment_key(variable: str) -> str | None:
    if not variable.startswith(ENV_PREFIX) or variable == "SPOOR_CONFIG":
        return None
    return variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")


# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_VARIABLE = re.compile(
    r"SPOOR(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def _of_kubernetes(variable: str, text: str, *, known: bool) -> bool:
    """Whether Kubernetes has set the variable. The value decides for names like SPOOR_PORT, which may also be a
    misspelt setting."""
    if variable.endswith("_PORT") and _SERVICE_ADDRESS.match(text):
        return True
    return not known and _SERVICE_VARIABLE.fullmatch(variable) is not None


def _resembles_setting(key: str, known: Iterable[str]) -> bool:
    """False for another program's variable: it names no section, and resembles no setting's name or part of one."""
    if "." in key or any(key.startswith(f"{setting.partition('.')[0]}_") for setting in known if "." in setting):
        return True
    names = {name for setting in known for name in (setting.rpartition(".")[2], setting.replace(".", "_"))}
    return _is_misspelt_config(key) or bool(difflib.get_close_matches(key, names, n=1, cutoff=0.75))


def _is_misspelt_config(key: str) -> bool:
    """Whether the key is close to `config`: SPOOR_CONFIG, misspelt."""
    return bool(difflib.get_close_matches(key, ["config", "config_file"], n=1, cutoff=0.75))


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", "__")


def _unknown(key: str, origin: str, known: list[str]) -> UsageError:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean `{nearest[0]}`?" if nearest else "`spoor config show` lists every setting"
    if origin.startswith("env ") and _is_misspelt_config(key):
        hint = "did you mean `SPOOR_CONFIG`?"
    elif nearest and origin.startswith("env "):
        hint = f"did you mean `{_variable(nearest[0])}`?"
    return UsageError(f"unknown setting `{key}` ({origin})", hint=hint)


def _convert(raw: object, hint: Any, *, key: str, origin: str, base: Path, secret: bool = False) -> Any:
    """`raw` as the type `hint`; text (from the environment or a flag) is parsed."""
    if get_origin(hint) in (Union, types.UnionType):
        if raw in (None, ""):
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    try:
        if hint is Path:
            refuse_url(str(raw), f"setting `{key}` ({origin})")
        value = _parse(raw, str if choices else hint, base)
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError):
        raise _mismatch(key, origin, "(hidden)" if secret else raw, _describe(hint)) from None
    if choices and value not in choices:
        raise _mismatch(key, origin, raw, "one of " + ", ".join(map(repr, choices)))
    return value


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _parse(raw: object, hint: Any, base: Path) -> Any:
    """Raises TypeError, ValueError, KeyError, OverflowError or RuntimeError (unknown user in `~user`) if `raw` is not a
    valid `hint`."""
    if get_origin(hint) is tuple:
        parts = [part.strip() for part in raw.split(",") if part.strip()] if isinstance(raw, str) else raw
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            return tuple(parts)
    elif hint is Path and isinstance(raw, str | Path) and "\0" not in str(raw) and str(raw).strip():
        path = Path(raw).expanduser()
        return path if path.is_absolute() or str(path).startswith("{") else base / path
    elif hint is bool:
        return raw if isinstance(raw, bool) else _BOOLEANS[raw.lower() if isinstance(raw, str) else ""]
    elif hint in (int, float) and isinstance(raw, str | int | hint) and not isinstance(raw, bool):
        number = hint(raw)
        if not math.isfinite(number):  # limits do not catch NaN, and no wait or loop ends at infinity
            raise ValueError
        if hint is int and not -(2**63) <= number < 2**63:  # the range of integers in arrays, Kafka and PyTorch
            raise ValueError
        return number
    elif hint is str and isinstance(raw, str):
        return raw
    raise TypeError


def _describe(hint: Any) -> str:
    if hint is int:
        return "a whole number of 64 bits"
    return "a list of strings" if get_origin(hint) is tuple else f"a {getattr(hint, '__name__', hint)}".lower()


def _mismatch(key: str, origin: str, raw: object, expected: str) -> UsageError:
    return UsageError(
        f"setting `{key}` ({origin}): found {raw!r}, expected {expected}", hint="see docs/configuration.md"
    )
