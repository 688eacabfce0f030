"""How well does the default recipe rank the next item, beside the best published figures?

    python -m benchmarks.quality --set amazon_beauty [--shuffle-ties SEED] [--seeds 0 1 2] [--sasrec] --json

For each seed it runs the two commands that a user would type, `spoor pretrain` and `spoor evaluate` (leave one out,
full ranking, seen items filtered; kept where more than 5 % of events repeat), and appends one row to
benchmarks/results/quality.jsonl. With `--sasrec` our own SASRec (refitted on the validation events, as the release is)
trains as many minutes as the release did, and the row holds the paired differences. `ratio` is the mean Recall@10 over
the goal's (published figures, see GOALS), or over the best floor of the same run where nothing is published. Data are
read from ../shared/data and never committed.

    python -m benchmarks.quality --set ml1m_order --users 1000                    that many of its users, drawn once
    python -m benchmarks.quality --set simulated --users 200000 --max-minutes 15  what `spoor simulate` makes up
    python -m benchmarks.quality --table     the committed rows: means over the seeds, of each the newest row
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spoor.activity.simulator import SimulatorSettings, simulate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
GOALS = {  # Recall@10, NDCG@10: what the best published models reach, and a little more
    ("amazon_beauty", False): (0.0950, 0.0560),
    ("amazon_beauty", True): (0.0880, 0.0515),
    ("amazon_toys", False): (0.1000, 0.0600),
    ("ml1m_order", False): (0.3294, 0.1893),
}
FLOORS = ("popularity", "recent", "markov", "item-knn")
SASREC = "sasrec-refit"
SIMULATED = "simulated"
REPEATING = ("deskdrop", "online_retail_0910", "tmall2014", SIMULATED)
_SIMULATED_EVENTS = 10  # of a user, on average, those without any included


def measure(
    name: str, *, users: int | None, seed: int, shuffle_ties: int | None, sasrec: bool, max_minutes: float
) -> dict[str, Any]:
    """One seed: train, evaluate, and the row that is kept."""
    ties = [] if shuffle_ties is None else ["--shuffle-ties", str(shuffle_ties)]
    limit = ["--max-minutes", f"{max_minutes:g}"] if max_minutes else []
    with tempfile.TemporaryDirectory() as folder:
        data = _data(name, users, Path(folder))
        release = str(Path(folder) / "releases" / "quality-1")
        shared = ["--data", str(data), "--protocol", "leave-one-out", *ties, "--json"]
        trained = _spoor("pretrain", *shared, "--out", release, "--seed", str(seed), *limit)
        asked = [
            "--baselines",
            ",".join([*FLOORS, *sasrec * [SASREC]]),
            *(["--keep-seen"] if name in REPEATING else []),
        ]
        if sasrec:
            asked += ["--max-minutes", f"{trained['metrics']['training_seconds'] / 60:.2f}"]
        evaluated = _spoor("evaluate", *shared, "--release", release, *asked)
    part = [] if users is None else ["--users", str(users)]
    asked_for = [f"{users:,} users"] * (users is not None) + [f"{max_minutes:g} minutes"] * (max_minutes > 0)
    options = [*part, "--seeds", str(seed), *ties, *sasrec * ["--sasrec"], *limit]
    return {
        "set": ", ".join([name, *asked_for]),
        "seed": seed,
        "shuffle_ties": shuffle_ties,
        "max_minutes": max_minutes,
        "command": " ".join(["python -m benchmarks.quality --set", name, *options]),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}",
        "training": trained["metrics"],
        "evaluation": evaluated,
    }


def _data(name: str, users: int | None, folder: Path) -> Path:
    """An event file: a set of ../shared/data, or some of its users, or simulated ones."""
    if users is None:
        return DATA / name / "events.parquet"
    path = folder / "events.parquet"
    table = _simulated(users) if name == SIMULATED else pq.read_table(DATA / name / "events.parquet")
    known = table["user_id"].unique().to_numpy(zero_copy_only=False)
    chosen = np.random.default_rng(0).choice(known, users, replace=False)
    pq.write_table(table.filter(pc.is_in(table["user_id"], pa.array(chosen))), path)
    return path


def _simulated(users: int) -> pa.Table:
    """Events of more users than asked for: a Zipf law leaves half of them without any."""
    from_ms, year, users_drawn = 1_700_000_000_000, 365 * 86_400_000, 3 * users
    made = SimulatorSettings(
        events=_SIMULATED_EVENTS * users_drawn,
        users=users_drawn,
        items=max(users // 10, 100),
        tastes=100,
        from_ms=from_ms,
        to_ms=from_ms + year,
    )
    return pa.concat_tables(simulate(made))


def _spoor(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "spoor.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    return json.loads(done.stdout)


def table() -> str:
    """Markdown: Recall@10 / NDCG@10 of each set, means over seeds; SASRec's is of the seeds that have it."""
    newest = {}
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        newest[row["set"], row["shuffle_ties"] is not None, row["seed"]] = row
    lines = [
        "| set | seeds | release | transformer alone | before the refit | best floor | SASRec, refitted | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, shuffled in dict.fromkeys((name, shuffled) for name, shuffled, _ in sorted(newest)):
        rows = [row for (set_, ties, _), row in sorted(newest.items()) if (set_, ties) == (name, shuffled)]
        ranked = [row["evaluation"]["rows"] for row in rows]
        floor = max(FLOORS, key=lambda floor: ranked[0][floor]["ndcg@10"])
        cells = [_mean(ranked, key) for key in ("release", "transformer", "before-refit")]
        minutes = np.mean([row["training"]["training_seconds"] for row in rows]) / 60
        compared = [found for found in ranked if SASREC in found]
        cells += [f"{_mean(ranked, floor)} ({floor})", _mean(compared, SASREC) if compared else "not run"]
        title = f"{name}, {'ties shuffled' if shuffled else 'published order'}, {rows[0]['evaluation']['seen']}"
        lines.append(f"| {title} | {len(rows)} | {' | '.join(cells)} | {minutes:.0f} |")
    return "\n".join(lines)


def _mean(ranked: list[dict[str, Any]], row: str) -> str:
    recall, ndcg = (float(np.mean([found[row][key] for found in ranked])) for key in ("recall@10", "ndcg@10"))
    return f"{recall:.4f} / {ndcg:.4f}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="name")
    parser.add_argument("--table", action="store_true", help="of the committed rows; trains nothing")
    parser.add_argument("--users", type=int, help="this many of the set's users, drawn once for all seeds")
    parser.add_argument("--shuffle-ties", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sasrec", action="store_true", help="train our own SASRec for as long, too")
    parser.add_argument("--max-minutes", type=float, default=0.0, help="of `spoor pretrain`; 0 = no limit")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    if arguments.name is None:
        parser.error("name a --set, or ask for the --table")
    if arguments.name == SIMULATED:
        if arguments.users is None:
            parser.error(f"--set {SIMULATED} needs --users")
    elif not (DATA / arguments.name / "events.parquet").exists():
        sys.exit(f"skipped: {DATA / arguments.name / 'events.parquet'} is not there")
    rows = []
    for seed in arguments.seeds:
        row = measure(
            arguments.name,
            users=arguments.users,
            seed=seed,
            shuffle_ties=arguments.shuffle_ties,
            sasrec=arguments.sasrec,
            max_minutes=arguments.max_minutes,
        )
        with RESULTS.open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        rows.append(row)
    recall, ndcg = (float(np.mean([row["evaluation"][key] for row in rows])) for key in ("recall@10", "ndcg@10"))
    whole = arguments.users is None and not arguments.max_minutes
    goal = GOALS.get((arguments.name, arguments.shuffle_ties is not None)) if whole else None
    floors = [row["evaluation"]["rows"] for row in rows]
    peer = goal[0] if goal else max(rank["recall@10"] for name, rank in floors[0].items() if name != "release")
    result = {
        "benchmark": "quality",
        "set": arguments.name,
        "seeds": arguments.seeds,
        "recall@10": recall,
        "ndcg@10": ndcg,
        "goal_recall@10": peer,
        "goal_ndcg@10": goal[1] if goal else None,
        "ratio": recall / peer,
        "goal": 1.0,
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
