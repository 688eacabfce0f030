"""What the kernels could reach on GPUs, by a roofline model: docs/roofline.md.

    python -m benchmarks.roofline [--write]

A step takes as long as the longer of its arithmetic at the peak rate and its bytes at the peak bandwidth; steps follow
one another; launches cost nothing. That is a model, an upper bound on what is hoped for and no measurement.

Legend: d = width, L events of a history, r candidates of a user, H heads, D = d / H.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "roofline.md"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- begin: python -m benchmarks.roofline --write -->", "<!-- end -->"
WIDTH = LENGTH = 256
LAYERS = 4
_BYTES = 2  # of a number: bfloat16
_STATISTIC = 4  # of the float32 that attention keeps per query and head
_HEADS = 4


@dataclass(frozen=True)
class Device:
    """Public peak figures: dense bfloat16 FLOP/s, bytes/s."""

    name: str
    flops: float
    bandwidth: float

    def seconds(self, steps: Iterable[Step]) -> float:
        return sum(max(step.flops / self.flops, step.bytes / self.bandwidth) for step in steps)


@dataclass(frozen=True)
class Step:
    flops: float
    bytes: float


DEVICES = (
    Device("A100 SXM 80 GB", 312e12, 2.039e12),
    Device("H100 SXM", 989e12, 3.35e12),
    Device("MI300X", 1307e12, 5.3e12),
)


def product(rows: int, inputs: int, outputs: int) -> Step:
    """A linear layer: activations in and out, weights once."""
    return Step(2.0 * rows * inputs * outputs, _BYTES * float(rows * (inputs + outputs) + inputs * outputs))


def jagged(sequences: int, length: int) -> Step:
    """jagged_attention, forward: q, k, v in, out and a statistic per query and head out."""
    rows, pairs = sequences * length, sequences * length * (length + 1) / 2
    return Step(4 * WIDTH * pairs, rows * (4 * WIDTH * _BYTES + _HEADS * _STATISTIC))


def crossing(users: int, candidates: int, *, tile: int = 64) -> Step:
    """dcat_attention, forward: as `jagged` for the candidates, and the user's context once per tile of them."""
    rows, tiles = users * candidates, users * -(-candidates // tile)
    context = tiles * LENGTH * 2 * WIDTH * _BYTES
    own = rows * (4 * WIDTH * _BYTES + _HEADS * _STATISTIC)
    return Step(4.0 * WIDTH * rows * (LENGTH + 1), own + context)


def copied(users: int, candidates: int) -> list[Step]:
    """What replaces `crossing` where keys and values are copied for each candidate: the copy, then attention."""
    rows = users * candidates
    context, copy = (count * LENGTH * 2 * WIDTH * _BYTES for count in (users, rows))
    return [Step(0, context + copy), Step(4.0 * WIDTH * rows * (LENGTH + 1), copy + rows * 4 * WIDTH * _BYTES)]


def gather(items: int, *, row_bytes: int, tables: int = 8, width: int = 32) -> Step:
    """hashed_gather: packed rows in, float32 out."""
    rows = items * tables
    return Step(2.0 * rows * width, rows * (row_bytes + 8 + 4 * width))


def backward(step: Step, *, attention: bool) -> Step:
    """Two products for each of forward's, and in attention the scores once more; twice the bytes."""
    return Step(step.flops * (2.5 if attention else 2.0), step.bytes * 2)


def block(rows: int, attention: Step) -> list[tuple[Step, bool]]:
    """The steps of a block, and which of them is attention."""
    inner = 4 * WIDTH
    shapes = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, inner), (inner, WIDTH))
    return [(product(rows, *shape), False) for shape in shapes] + [(attention, True)]


def expected_ratio(device: Device, *, users: int, candidates: int, training: bool) -> float:
    """The naive transformer's time over DCAT's, whole passes; the last layer only at the candidates on both sides."""
    rows = users * candidates
    last = crossing(rows, 1)
    keys_and_values = (product(rows * LENGTH, WIDTH, 2 * WIDTH), False)
    naive = (LAYERS - 1) * block(rows * (LENGTH + 1), jagged(rows, LENGTH + 1)) + [keys_and_values, *block(rows, last)]
    # Both passes in one: events and candidates go through a layer's products together.
    dcat = (LAYERS - 1) * [*block(users * LENGTH + rows, jagged(users, LENGTH)), (crossing(users, candidates), True)]
    dcat += [(product(users * LENGTH, WIDTH, 2 * WIDTH), False), *block(rows, crossing(users, candidates))]

    def whole(steps: list[tuple[Step, bool]]) -> float:
        back = [backward(step, attention=attention) for step, attention in steps] if training else []
        return device.seconds([*(step for step, _ in steps), *back])

    return whole(naive) / whole(dcat)


CASES = (  # what is asked, users, candidates of each, training, where the CPU's figure is
    ("serving, r = 10", 64, 10, False, ("dcat_serving", "ratio_r10")),
    ("training, r = 16", 64, 16, True, ("dcat_training", "ratio")),
    ("serving, r = 1,000", 1, 1_000, False, ("dcat_serving", "ratio")),
)


def tables() -> str:
    """Markdown: the kernels, and DCAT's ratios."""
    kernels = {
        "jagged_attention, 64 histories of 256": jagged(64, LENGTH),
        "its backward": backward(jagged(64, LENGTH), attention=True),
        "dcat_attention, 1 user, r = 1,000": crossing(1, 1_000),
        "dcat_attention, 64 users, r = 16": crossing(64, 16),
        "its backward ": backward(crossing(64, 16), attention=True),
        "hashed_gather int4, 1,000 items x 8 rows": gather(1_000, row_bytes=20),
        "hashed_gather int8, the same": gather(1_000, row_bytes=40),
    }
    names = [device.name for device in DEVICES]
    lines = [
        f"| kernel | MFLOP | MB | FLOP/byte | {' | '.join(f'{name}, µs' for name in names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for name, step in kernels.items():
        took = [f"{device.seconds([step]) * 1e6:.1f}" for device in DEVICES]
        shown = [f"{step.flops / 1e6:,.1f}", f"{step.bytes / 1e6:,.2f}", f"{step.flops / step.bytes:,.1f}"]
        lines.append(f"| {' | '.join([name.strip(), *shown, *took])} |")
    lines += [
        "",
        f"| naive over DCAT, 4 layers | {' | '.join(names)} | measured on a CPU |",
        "|---" * (2 + len(names)) + "|",
    ]
    for name, users, candidates, training, (benchmark, key) in CASES:
        ratios = [
            f"{expected_ratio(device, users=users, candidates=candidates, training=training):.1f}" for device in DEVICES
        ]
        lines.append(
            f"| {' | '.join([f'{name}, {users} users' if users > 1 else name, *ratios, _measured(benchmark, key)])} |"
        )
    by_copies = [device.seconds(copied(64, 16)) / device.seconds([crossing(64, 16)]) for device in DEVICES]
    lines += [
        "",
        f"| keys and values copied per candidate, over dcat_attention alone | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
        f"| 64 users, r = 16 | {' | '.join(f'{ratio:.1f}' for ratio in by_copies)} |",
    ]
    return "\n".join(lines)


def _measured(benchmark: str, key: str) -> str:
    """The newest row of a CPU's two cores; a dash where none is kept."""
    path = RESULTS / f"{benchmark}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row["device"] == "cpu" and row["dtype"] == "float32" and row["threads"] == 2]
    return f"{rows[-1][key]:.1f}" if rows else "–"


def page(text: str) -> str:
    """The page with the tables as they are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.parent.name}/{PAGE.name}")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text()))
    else:
        print(tables())


if __name__ == "__main__":
    main()
