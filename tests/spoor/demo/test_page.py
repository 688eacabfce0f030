import dataclasses
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from spoor.base.errors import InfrastructureError
from spoor.demo.page import CURVE, FRESHNESS, MAP, DemoResult, FinishedStep, HistoryLine, Rate, write_report
from spoor.demo.pictures import freshness_histogram
from spoor.ranking.ranker.lift import METRICS, Estimate, LiftRow, LiftTable
from spoor.ranking.ranker.serving import Recommendation

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects the addresses that the document would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def result() -> DemoResult:
    estimate = Estimate(0.25, 0.21, 0.29)
    worse = Estimate(-0.02, -0.03, -0.01)
    rows = tuple(LiftRow("all requests", metric, 9, 12, estimate, estimate, worse) for metric in METRICS)
    films = tuple(Recommendation(str(k), f"Film {k}", 1.0 - k / 10) for k in range(6))
    return DemoResult(
        data_name="MovieLens-100K",
        data_source="the wheel recbole==1.2.1",
        events=100_000,
        users=943,
        items=1_682,
        release="base-1",
        dimension=4,
        release_metrics={"recall_at_10": 0.0812, "steps": 900},
        curve_png=freshness_histogram(np.ones(3)),
        steps=(FinishedStep("Archive", "spoor archive --until 'x' && true", 9.94, "90,000 events"),),
        shown_user="4<05",
        history=(HistoryLine(891_382_309_000, "rate_5", "Fargo & Co <1996>"), HistoryLine(891_382_310_000, "v", "M")),
        todays_events=1,
        feature_row={"user_events_total": 12, "user_positive_rate": 0.5123, "none": None, "embedding": [0.5] * 64},
        before=films[:4],
        after=(films[5], films[0], films[2]),
        lift=LiftTable(rows, 3, 521, 24_850, 0.57, 254, 395_550, 0.63),
        freshness_ms=np.arange(1, 1001, dtype=np.float64),
        rates=(Rate("stream", 10_000, "events", 8.0), Rate("nothing", 0, "users", 0.0)),
        map_vectors=np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32),
        map_labels=tuple("War" if k % 2 else None for k in range(40)),
        verified_users=943,
        differences=0,
        machine="2 cores",
        finished_at=datetime(2026, 11, 22, 12, 0, tzinfo=UTC),
    )


def visible(html: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())


def test_the_report_is_one_file_that_needs_no_network(tmp_path, result):
    path = write_report(tmp_path / "runs" / "demo", result)
    html = path.read_text()
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert len(reader.addresses) == 3
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert "http" not in html.lower() and "@import" not in html and "url(" not in html
    assert {p.name for p in path.parent.iterdir()} == {CURVE, FRESHNESS, MAP, "report.html"}
    assert (path.parent / CURVE).read_bytes() == result.curve_png


def test_it_tells_every_figure_of_the_run(tmp_path, result):
    text = visible(write_report(tmp_path, result).read_text())
    for figure in (
        "100,000",
        "500 / 990 ms",
        "0 differences that verify found in 943 users",
        "1,250",  # events a second
        "0.2500 [0.2100, 0.2900]",
        "-0.0200 [-0.0300, -0.0100]",
        "worse with the embedding",
        "57% of the training requests and 63% of the test requests",
        "395,550 candidates",
        "0.0812",
        "0.5123",
        "none null",
        "[0.500, 0.500, 0.500, 0.500, 0.500, 0.500, …] 64 floats",
        "2026-11-22 12:00 UTC",
    ):
        assert figure in text, figure


def test_text_from_the_data_is_escaped(tmp_path, result):
    html = write_report(tmp_path, result).read_text()
    assert "Fargo &amp; Co &lt;1996&gt;" in html and "4&lt;05" in html
    assert "spoor archive --until &#39;x&#39; &amp;&amp; true" in html


def test_recommendations_say_what_moved_and_history_what_is_of_today(tmp_path, result):
    text = visible(write_report(tmp_path, result).read_text())
    assert "1 Film 0 Film 5 new 2 Film 1 Film 0 was 1 3 Film 2 Film 2 4 Film 3" in text
    assert "1998-03-31 22:11:50 v M today 1998-03-31 22:11:49 rate_5 Fargo" in text


def test_what_was_not_measured_is_said(tmp_path, result):
    nothing = dataclasses.replace(result, freshness_ms=np.empty(0), before=(), after=(), history=(), todays_events=0)
    assert "not measured" in visible(write_report(tmp_path, nothing).read_text())


def test_the_same_result_gives_the_same_report(tmp_path, result):
    first = write_report(tmp_path / "a", result).read_bytes()
    assert write_report(tmp_path / "b", result).read_bytes() == first


def test_a_folder_that_cannot_be_written_is_an_infrastructure_error(tmp_path, result):
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError):
        write_report(tmp_path / "file" / "demo", result)
