"""Spoor as its users have it: a wheel in an environment of its own, beside packages whose names it once took."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEIGHBOURS = ("kernels", "mosaicml-streaming")  # packages `kernels` and `streaming`


def copy_of_checkout(folder: Path) -> Path:
    """What a commit of the working tree would hold, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel that pip builds from a checkout, a source archive or a zip of the repository."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("spoor-*.whl")
    return wheel


def new_environment(folder: Path, wheel: Path) -> Path:
    """Its `bin` folder. The dependencies are those of the environment that runs the tests, without the Spoor there:
    a path file inside a path file is not read, and an editable package is one."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    run(*pip, str(wheel), *NEIGHBOURS)
    packages = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def feast(python: Path, *arguments: str, cwd: Path) -> str:
    """Feast's command line in an environment."""
    return run(str(python), "-c", "from feast.cli.cli import cli; cli()", *arguments, cwd=cwd)


def run(*command: str, cwd: Path | None = None) -> str:
    """Its output. It does not see the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPOOR_", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=environment | {"FEAST_USAGE": "False"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
