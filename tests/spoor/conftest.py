"""Running `spoor` as a user does."""

import dataclasses
import json
from collections.abc import Callable

import pytest

from spoor import cli
from spoor.config import Settings


@dataclasses.dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """What --json promised: one object, nothing else."""
        return json.loads(self.out)

    def failed_with(self, code: int) -> str:
        """The error line, after the checks that hold for every failure: a message, a hint, no traceback."""
        lines = self.err.splitlines()
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        assert lines[-1].startswith("hint: ") and len(lines[-1]) > len("hint: ")
        assert lines[-2].startswith("error: ")
        return lines[-2] + "\n" + lines[-1]


@pytest.fixture
def spoor(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs a command in this process, in an empty folder, with the settings' broker and state folder."""
    monkeypatch.chdir(settings.state_folder.parent)
    monkeypatch.setenv("SPOOR_KAFKA__PORT", str(settings.kafka.port))
    monkeypatch.setenv("SPOOR_KAFKA__CONTROLLER_PORT", str(settings.kafka.controller_port))
    monkeypatch.setenv("SPOOR_KAFKA__FOLDER", str(settings.kafka.folder))
    monkeypatch.setenv("SPOOR_STATE_FOLDER", str(settings.state_folder))

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = cli.run(list(arguments))
        return Done(code, *capsys.readouterr())

    return run
