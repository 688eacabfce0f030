"""docs/faults.md, from the counters of the run that just ended, and the row of benchmarks/results/faults.jsonl."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

_BEFORE = """\
# Faults

Written by `make faults` from its own counters ({when}, {cores} cores, Python {python}):
**{kills:,} kills (`kill -9`) over {scenarios} scenarios and {records:,} records, {differences:,} differences**. Each
scenario runs workers (`spoor stream`) and jobs as processes against a genuine Kafka and, where nothing else is said, a
genuine Redis, and breaks something while events flow. One record in ten repeats an earlier event, one in fifty has a
key that is not its user, some are late by up to an hour.

At the end of each scenario the judge (tests/faults/judge.py) compares what is there with what was produced. It shares
no code with Spoor: it reads Kafka with kafka-python, the online store through Feast as a ranker does, the lake with
pyarrow, all by [data-formats.md](data-formats.md), and computes histories with sets and sorting. The column
*differences* is its count:

- the history of every user in the store is exactly the newest L of the set of accepted events, and nobody else has one;
- every live release has an embedding of that history's revision, time and length, and the last record of every user on
  its topic is that row; one revision never has two vectors;
- the lake holds every accepted record once, under its offset;
- every bad record is in the dead-letter topic with its key and value byte for byte, and nothing else is there;
- of forgotten users nothing is left that is made of their past, in any of these places or in the offline log.

It does not judge whether a vector is what the model computes from the history: that is what `spoor verify` recomputes,
whose differences are the column *verify* (– where the lake cannot have everything). A scenario that misses one of these
fails{failed}. *At work*: kills that hit a worker with a batch under way, or a job that held its lock. *Workers* counts
starts, *assignments* how often a worker was given partitions.

| scenario | faults | kills | at work | records | bad | workers | assignments | users | differences | verify | seconds |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""

_AFTER = """
## What was killed

{killed}

## What happened

{found}

## What this does not show

Everything ran on one machine: there was no network between the parts, and one Kafka broker without replicas. A
`kill -9` of a process does not lose what the kernel holds, so a power cut is imitated for Redis, by cutting its file
back. Where kills are many, processes are forked from one that has imported everything (tests/zygote.py) and
run the same main from there on. Each scenario ran once; when exactly something is killed differs from run to run.
"""


@dataclass(frozen=True)
class Row:
    """`commands`: kills by command; `places`: where workers were killed that were at work; `verify_differences` is None
    where the lake cannot have everything."""

    scenario: str
    test: str
    date: str  # when it ended
    faults: int
    kills: int
    at_work: int
    commands: dict[str, int]
    places: dict[str, int]
    records: int
    bad: int
    workers: int
    rebalances: int
    users: int
    events: int
    embeddings: int
    letters: int
    differences: int
    verify_differences: int | None
    seconds: float
    found: str


def text(rows: Sequence[Row], failed: Sequence[str]) -> str:
    """`failed`: tests of scenarios that have no row for that."""
    table = "".join(
        f"| {row.scenario} | {row.faults:,} | {row.kills:,} | {row.at_work:,} | {row.records:,} | {row.bad:,} | "
        f"{row.workers:,} | {row.rebalances:,} | {row.users:,} | {row.differences:,} | "
        f"{'–' if row.verify_differences is None else row.verify_differences} | {row.seconds:.0f} |\n"
        for row in rows
    )
    found = "\n".join(f"- **{row.scenario}**: {row.found}" for row in rows)
    without_row = f" and has no row; in this run: **{', '.join(failed)}**" if failed else ": in this run none did"
    before = _BEFORE.format(
        when=_between([row.date for row in rows]),
        cores=os.cpu_count(),
        python=platform.python_version(),
        kills=sum(row.kills for row in rows),
        scenarios=len(rows),
        records=sum(row.records for row in rows),
        differences=sum(row.differences + (row.verify_differences or 0) for row in rows),
        failed=without_row,
    )
    return before + table + _AFTER.format(killed=_killed(rows), found=found)


def _killed(rows: Sequence[Row]) -> str:
    commands, places = Counter[str](), Counter[str]()
    for row in rows:
        commands.update(row.commands)
        places.update(row.places)
    lines = [f"| `spoor {name}` | {count:,} |" for name, count in commands.most_common()]
    table = "| process | kills |\n|---|---|\n" + "\n".join(lines)
    if not places:
        return table
    at = "\n".join(f"| {name or 'decoding its first batch'} | {count:,} |" for name, count in places.most_common())
    return (
        f"{table}\n\nWorkers with a batch under way, by the last place of a batch that they had passed "
        f"([steps](delivery.md#the-workers-steps)):\n\n| after | kills |\n|---|---|\n{at}"
    )


def row(rows: Sequence[Row], failed: Sequence[str], *, command: str) -> str:
    """The row of benchmarks/results/faults.jsonl, as one line of JSON."""
    found = {
        "benchmark": "faults",
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("faust-streaming", "aiokafka", "feast", "kafka-python", "redis")},
        "kills": sum(row.kills for row in rows),
        "kills_at_work": sum(row.at_work for row in rows),
        "records": sum(row.records for row in rows),
        "differences": sum(row.differences for row in rows),
        "verify_differences": sum(row.verify_differences or 0 for row in rows),
        "failed": list(failed),
        "scenarios": [asdict(row) for row in rows],
    }
    return json.dumps(found, sort_keys=True)


def completed(
    line: str, rows: Sequence[Row], failed: Sequence[str], *, ran: Collection[str]
) -> tuple[list[Row], list[str]]:
    """The run of this `row`, with the scenarios of the tests that `ran` again in the place of theirs."""
    before = json.loads(line)
    kept = [found for each in before["scenarios"] if (found := Row(**each)).test not in ran]
    both = sorted([*kept, *rows], key=lambda row: row.date)
    return both, [*(test for test in before["failed"] if test not in ran), *failed]


def _between(dates: Sequence[str]) -> str:
    return (
        " to ".join(f"{date[:10]} {date[11:16]}" for date in (min(dates), max(dates))) + " UTC" if dates else "no row"
    )
