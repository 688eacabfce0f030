"""Restores the links `spoor/<room> -> ../<room>` before a build, where the copy of the repository has lost them.

The rooms are folders at the top of the repository and packages under `spoor`; a link for each joins the two. Git and
tar keep links; a zip unpacked by Python, or a checkout without `core.symlinks`, has a small file with its target
instead. Everything else about the build is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup

ROOMS = ("activity", "batch", "encoder", "feature_repo", "kernels", "ranking", "store", "streaming")


def restore_links(root: Path) -> None:
    """Leaves a link that leads to its room as it is, and the rooms of a source archive, which lie under spoor/ already.
    Where the file system has no links, the rooms are copied."""
    for room in ROOMS:
        link = root / "spoor" / room
        if link.is_dir():
            continue
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(f"../{room}", target_is_directory=True)
        except OSError:
            shutil.copytree(root / room, link)


restore_links(Path(__file__).absolute().parent)
setup()
