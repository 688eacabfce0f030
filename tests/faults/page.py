"""docs/faults.md, from the counters of the run that just ended."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

_BEFORE = """\
# Faults

Written by `make faults` from its own counters ({when}, {cores} cores, Python {python}). Each scenario runs workers
as processes (`spoor stream`) against a genuine Kafka and, where nothing else is said, a genuine Redis, and breaks
something while events flow. One record in ten repeats an earlier event, one in fifty has a foreign key, some are late
by up to an hour. At the end of each scenario, without exception:

- `spoor archive`, then `spoor verify`: the column *differences*;
- an SQL query (DuckDB) over what was produced gives, for every user, exactly the history that the store holds;
- the last record of every user in the embedding topic is the store's row;
- every bad record is in the dead-letter topic with its key and value byte for byte, and nothing else is there.

A scenario that misses one of these fails{failed}. *Workers* counts starts, *assignments* how often a worker was
given partitions.

| scenario | faults | records | bad | workers | assignments | users | differences | seconds |
|---|---|---|---|---|---|---|---|---|
"""

_AFTER = """
## What happened

{found}

## What this does not show

Everything ran on one machine: there was no network between the parts, and one Kafka broker without replicas. A
`kill -9` of a process does not lose what the kernel holds, so a power cut is imitated for Redis, by cutting its file
back. Each scenario ran once; when exactly something is killed differs from run to run.
"""


@dataclass(frozen=True)
class Row:
    scenario: str
    faults: int
    records: int
    bad: int
    workers: int
    rebalances: int
    users: int
    differences: int
    seconds: float
    found: str


def text(rows: Sequence[Row], failed: Sequence[str]) -> str:
    """`failed`: tests of scenarios that have no row for that."""
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    table = "".join(
        f"| {row.scenario} | {row.faults:,} | {row.records:,} | {row.bad:,} | {row.workers:,} | {row.rebalances:,} | "
        f"{row.users:,} | {row.differences:,} | {row.seconds:.0f} |\n"
        for row in rows
    )
    found = "\n".join(f"- **{row.scenario}**: {row.found}" for row in rows)
    without_row = f" and has no row; in this run: **{', '.join(failed)}**" if failed else ": in this run none did"
    before = _BEFORE.format(when=when, cores=os.cpu_count(), python=platform.python_version(), failed=without_row)
    return before + table + _AFTER.format(found=found)
