"""Where contenders run, and how they are timed: in turns, on one device."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.shared.rows import circumstances
from spoor.encoder.release.allocator import keep_freed_memory

Run = Callable[[], object]


def best_seconds(runs: Mapping[str, Run], *, rounds: int) -> dict[str, float]:
    """The best time of each. They take turns, so that what else the machine does meets all of them, and each runs once
    a round: a minimum over more runs would favour its side. One round before is not counted."""
    return _best({name: partial(_turn, run) for name, run in runs.items()}, rounds=rounds, calls=1)


def best_seconds_apart(makers: Mapping[str, Callable[[], Run]], *, rounds: int, calls: int) -> dict[str, float]:
    """As `best_seconds`, each in a process of its own, as a service would run it: none finds its memory where another
    left it. `makers` are pickled, and make the runs there; `calls` in a row are a turn, so that short runs find the
    caches as they left them."""
    with ExitStack() as stack:
        turns = {}
        for name, make in makers.items():
            worker = ProcessPoolExecutor(1, get_context("spawn"), initializer=_make, initargs=(make,))
            turns[name] = partial(_turn_apart, stack.enter_context(worker))
        return _best(turns, rounds=rounds, calls=calls)


def _best(turns: Mapping[str, Callable[[int], float]], *, rounds: int, calls: int) -> dict[str, float]:
    """`turns`: from a number of calls in a row to the best time among them."""
    found: dict[str, float] = dict.fromkeys(turns, float("inf"))
    for number in range(rounds + 1):
        for name, turn in turns.items():
            took = turn(calls)
            found[name] = min(found[name], took) if number else found[name]
    return found


def _turn(run: Run, calls: int) -> float:
    best = float("inf")
    for _ in range(calls):
        _finished()
        started = time.perf_counter()
        run()
        _finished()
        best = min(best, time.perf_counter() - started)
    return best


_made: Run | None = None  # in a process of its own


def _make(make: Callable[[], Run]) -> None:
    global _made
    _made = make()


def _turn_made(calls: int) -> float:
    assert _made is not None
    return _turn(_made, calls)


def _turn_apart(worker: ProcessPoolExecutor, calls: int) -> float:
    return worker.submit(_turn_made, calls).result()


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
    """From now on everything is made on --device; returns --dtype. Memory is kept as encoders at work keep it, for all
    contenders. Ends the process where there is no such device."""
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"no device `{options.device}` here: PyTorch finds no GPU")
    keep_freed_memory()
    if options.device != "cpu":  # a default device costs every operation a call in Python, which services do not pay
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
