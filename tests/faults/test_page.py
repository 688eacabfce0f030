"""The page adds up what the scenarios counted, and says which scenario has no row."""

import json
from dataclasses import replace

from tests.faults.page import Row, completed, row, text

ONE = Row(
    scenario="Workers",
    test="test_workers",
    date="2026-11-30T16:00:00+00:00",
    faults=3,
    kills=700,
    at_work=400,
    commands={"stream": 700},
    places={"after-write": 390, "": 10},
    records=1000,
    bad=10,
    workers=701,
    rebalances=900,
    users=80,
    events=900,
    embeddings=80,
    letters=10,
    differences=0,
    verify_differences=0,
    seconds=60.0,
    found="as told",
)
TWO = replace(ONE, scenario="Jobs", test="test_jobs", date="2026-11-30T17:30:00+00:00", commands={"archive": 700})


def test_the_page_adds_up_and_names_what_failed():
    page = " ".join(text([ONE, TWO], ["test_disks"]).split())
    assert "2026-11-30 16:00 to 2026-11-30 17:30 UTC" in page
    assert "**1,400 kills (`kill -9`) over 2 scenarios and 2,000 records, 0 differences**" in page
    assert "| `spoor stream` | 700 | | `spoor archive` | 700 |" in page
    assert "in this run: **test_disks**" in page
    assert "in this run none did" in " ".join(text([ONE], []).split())


def test_a_run_is_completed_by_the_scenarios_that_run_again():
    line = row([ONE], ["test_jobs", "test_disks"], command="make faults")
    rows, failed = completed(line, [TWO], [], ran={"test_jobs"})
    assert (rows, failed) == ([ONE, TWO], ["test_disks"])
    again = replace(ONE, kills=5)
    assert completed(line, [again], [], ran={"test_workers"}) == ([again], ["test_jobs", "test_disks"])
    assert completed(line, [], ["test_workers"], ran={"test_workers"}) == (
        [],
        ["test_jobs", "test_disks", "test_workers"],
    )
    assert json.loads(line)["kills"] == 700
