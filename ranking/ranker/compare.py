"""`python -m spoor.ranking.ranker.compare` trains the ranker with and without the embedding and prints the table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow.compute as pc

from spoor.activity.settings import EventSettings
from spoor.activity.sources.event_files import read_events
from spoor.base.configuration import find_file, load
from spoor.base.errors import SpoorError
from spoor.base.times import parse_time_ms
from spoor.feature_repo.settings import FeatureSettings, agree_on_ids
from spoor.ranking.ranker.evaluate import LiftTable, measure_lift
from spoor.ranking.ranker.recommend import feast_reader


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m spoor.ranking.ranker.compare", description=__doc__)
    parser.add_argument("--config", type=Path, help="settings file (default: spoor.toml, if it exists)")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="events: who acted on what")
    parser.add_argument("--release", required=True, metavar="NAME", help="whose service the ranker reads")
    parser.add_argument("--train-from", required=True, metavar="TIME", help="ISO 8601 with a zone")
    parser.add_argument("--test-from", required=True, metavar="TIME", help="end of training, start of the test")
    parser.add_argument("--positive", action="append", default=[], metavar="ACTION", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    try:
        sections = load(
            {"features": FeatureSettings, "events": EventSettings},
            file=find_file({}, flag=options.config),
            environ={},
            ignore_unknown=True,
        ).sections
        settings, features = agree_on_ids(sections["events"], sections["features"])
        events = read_events(options.data, settings, now_ms=time.time_ns() // 1_000_000)
        train_from, test_from = parse_time_ms(options.train_from), parse_time_ms(options.test_from)
        lift = measure_lift(
            events,
            sorted(set(events.filter(pc.less(events["timestamp"], test_from))["item_id"].to_pylist())),
            feast_reader(features, options.release),
            train_ms=(train_from, test_from),
            test_ms=(test_from, int(pc.max(events["timestamp"]).as_py()) + 1),
            positive_actions=options.positive,
            progress=lambda line: print(line, file=sys.stderr),
        )
    except SpoorError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(lift.table)) if options.json else _text(lift.table))
    return 0


def _text(table: LiftTable) -> str:
    lines = [f"{'requests':<22} {'metric':<10} {'without':>8} {'with':>8} {'difference [95 %]':>28}"]
    for row in table.rows:
        difference = f"{row.difference.mean:+.4f} [{row.difference.low:+.4f}, {row.difference.high:+.4f}]"
        means = f"{row.without_embedding.mean:>8.4f} {row.with_embedding.mean:>8.4f}"
        lines.append(f"{row.subset:<22} {row.metric:<10} {means} {difference:>28}  {row.verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
