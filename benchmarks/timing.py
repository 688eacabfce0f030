"""Where contenders run, and how they are timed: in turns, on one device."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.rows import circumstances


def best_seconds(runs: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """The best time of each. They take turns, so that what else the machine does meets all of them, and each runs once
    a round: a minimum over more runs would favour its side. One round before is not counted."""
    found: dict[str, float] = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            _finished()
            started = time.perf_counter()
            run()
            _finished()
            took = time.perf_counter() - started
            found[name] = min(found[name], took) if number else found[name]
    return found


def _finished() -> None:
    """Waits for a GPU's work, where there is one."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of weights and activations"
    )
    parser.add_argument("--threads", type=int, help="of the processor; default: all cores")


def use_device(options: argparse.Namespace) -> torch.dtype:
    """From now on everything is made on --device; returns --dtype. Ends the process where there is no such device."""
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"no device `{options.device}` here: PyTorch finds no GPU")
    torch.set_default_device(options.device)
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    return getattr(torch, options.dtype)


def fastest(run: Callable[[int], object], sizes: Sequence[int]) -> int:
    """The batch size with which `run` takes least time."""
    found = best_seconds({str(size): partial(run, size) for size in sizes}, rounds=3)
    return int(min(found, key=found.__getitem__))


def device_circumstances(dtype: torch.dtype) -> dict[str, Any]:
    """As `circumstances`, for the default device."""
    device = torch.get_default_device().type
    about = {"device": device, "threads": torch.get_num_threads(), "dtype": str(dtype).removeprefix("torch.")}
    return about | circumstances(device=device)
