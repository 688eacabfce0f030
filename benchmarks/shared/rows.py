"""What every benchmark's row says of its run, and where rows and sizes of processes are written and read."""

from __future__ import annotations

import json
import os
import platform
import sys
from argparse import Namespace
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


def circumstances(library: str = "torch", *, device: str = "cpu") -> dict[str, str]:
    """When and where; `library`: whose version matters."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {library} {version(library)}"
    if device != "cpu":
        import torch

        machine = (
            f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, triton {version('triton')}, {machine}"
        )
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine}


def finish(found: dict[str, Any], options: Namespace, results: Path, *, module: str) -> None:
    """Adds the command, appends the row to `results` if --keep was given, and prints it: for people, or --json."""
    found["command"] = " ".join([f"python -m {module}", *sys.argv[1:]])
    if options.keep:
        with results.open("a") as file:
            file.write(json.dumps(found, sort_keys=True) + "\n")
    print(json.dumps(found) if options.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


def tree_mb(pid: int) -> float:
    """Resident memory of a process and its children now; 0 once it has ended."""
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0
    for each in tree:
        with suppress(psutil.NoSuchProcess):  # ended since it was listed
            total += each.memory_info().rss
    return total / 2**20


def own_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process alone: ru_maxrss would start with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
