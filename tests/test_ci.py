"""What `.ci/run` demands of its machine: nothing passes there because a server is missing."""

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.redis_servers import require_redis

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
TELL = '#!/bin/sh\necho "$(basename "$0") $* with REQUIRE_REDIS_SERVER=$REQUIRE_REDIS_SERVER"\n'


def machine(folder: Path, *programs: str) -> Path:
    """A PATH on which the script itself can run, and these programs, which say how they are called."""
    path = folder / "bin"
    path.mkdir()
    for name in ("bash", "dirname", "basename"):
        (path / name).symlink_to(str(shutil.which(name)))
    for name in programs:
        (path / name).write_text(TELL)
    (path / "id").write_text("#!/bin/sh\necho 0\n")
    for program in path.iterdir():
        if not program.is_symlink():
            program.chmod(stat.S_IRWXU)
    return path


def run(path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), "HOME": os.environ.get("HOME", "/")}
    return subprocess.run([str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("programs", [(), ("apt-get",)])  # an apt-get that installs nothing
def test_it_fails_where_redis_server_cannot_be_had(tmp_path: Path, programs: Sequence[str]):
    done = run(machine(tmp_path, "make", *programs))
    assert done.returncode == 3
    assert "error: there is no redis-server here" in done.stderr
    assert "make" not in done.stdout


def test_it_makes_check_and_test_and_lets_no_test_of_redis_be_skipped(tmp_path: Path):
    done = run(machine(tmp_path, "make", "redis-server"))
    assert (done.returncode, done.stdout) == (0, "make check test with REQUIRE_REDIS_SERVER=1\n")


def test_a_missing_redis_server_skips_a_test_on_a_person_s_machine_and_fails_it_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("REQUIRE_REDIS_SERVER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="redis-server is not installed"):
        require_redis()
    monkeypatch.setenv("REQUIRE_REDIS_SERVER", "1")
    with pytest.raises(pytest.fail.Exception, match="redis-server is not installed"):
        require_redis()
