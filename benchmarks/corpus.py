"""Does the data path of pretraining need the same memory for any number of events?

    python -m benchmarks.corpus --json [--events 1000000 50000000] [--folder FOLDER] [--keep]

For each size: simulated events go to a Parquet file; then one process builds the corpus of it, and another reads one
whole epoch of batches from that corpus. The peer is the same code at the smallest size: `ratio` is its peak memory
over the peak at the largest size, where 1 is perfectly flat. A user has 50 events on average at every size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.shared.rows import circumstances, own_mb

RESULTS = Path(__file__).parent / "results" / "corpus.jsonl"
SIZES = (1_000_000, 50_000_000)
GOAL = 0.8
_EVENTS_PER_USER = 50
_ITEMS = 100_000
_YEAR_MS = 365 * 86_400_000
_FROM_MS = 1_700_000_000_000


def simulate_to(path: Path, *, events: int) -> None:
    """Writes the events piece by piece."""
    import pyarrow.parquet as pq

    from spoor.activity.events import EVENT_SCHEMA
    from spoor.activity.simulator import SimulatorSettings, simulate

    users = max(events // _EVENTS_PER_USER, 1)
    settings = SimulatorSettings(events=events, from_ms=_FROM_MS, to_ms=_FROM_MS + _YEAR_MS, users=users, items=_ITEMS)
    with pq.ParquetWriter(path, EVENT_SCHEMA, compression="zstd") as writer:
        for table in simulate(settings):
            writer.write_table(table)


def build(path: Path, folder: Path) -> dict[str, float]:
    from spoor.activity.settings import EventSettings
    from spoor.encoder.data.corpus import Corpus

    corpus = Corpus.build(path, folder, events=EventSettings())
    return {"users": corpus.users, "events": corpus.events}


def read(folder: Path) -> dict[str, float]:
    from spoor.encoder.data.batches import BatchReader, build_vocabulary
    from spoor.encoder.data.corpus import Corpus
    from spoor.encoder.data.split import TRAIN, make_split

    corpus = Corpus.open(folder)
    split = make_split(corpus, "global-time")
    vocabulary = build_vocabulary(corpus, split)
    reader = BatchReader(corpus, split, vocabulary, roles_upto=TRAIN, segment_length=200, token_budget=4096, seed=0)
    tokens = sum(batch.tokens for batch in reader.epoch(0))
    return {"tokens": tokens, "batches": reader.batches(0)}


def measure(events: int, folder: Path) -> dict[str, dict[str, float]]:
    """Each step in a process of its own, so that its peak memory is its own."""
    path, corpus = folder / f"{events}.parquet", folder / f"{events}"
    measured = {
        step: _in_a_process(step, *arguments)
        for step, arguments in (
            ("simulate", (str(path), str(events))),
            ("build", (str(path), str(corpus))),
            ("read", (str(corpus),)),
        )
    }
    path.unlink()
    return measured


def _in_a_process(step: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.corpus", "--step", step, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _step(step: str, *arguments: str) -> dict[str, float]:
    started = time.perf_counter()
    if step == "simulate":
        simulate_to(Path(arguments[0]), events=int(arguments[1]))
        found: dict[str, float] = {}
    elif step == "build":
        found = build(Path(arguments[0]), Path(arguments[1]))
    else:
        found = read(Path(arguments[0]))
    return found | {"seconds": round(time.perf_counter() - started, 2), "peak_mb": round(own_mb("VmHWM"), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=list(SIZES))
    parser.add_argument(
        "--folder", type=Path, help="where there is room: about 40 bytes an event, twice while building"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(_step(*options.step)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sizes = sorted(options.events)
        measured = {str(events): measure(events, Path(folder)) for events in sizes}
    small, large = measured[str(sizes[0])], measured[str(sizes[-1])]
    ratios = {step: round(small[step]["peak_mb"] / large[step]["peak_mb"], 3) for step in ("build", "read")}
    record = {"benchmark": "corpus", "ratio": min(ratios.values()), "goal": GOAL, "ratios": ratios, "sizes": measured}
    record |= {
        "command": " ".join(["python -m benchmarks.corpus", *sys.argv[1:]]),
    } | circumstances("pyarrow")
    if options.keep:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")
    print(json.dumps(record, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
