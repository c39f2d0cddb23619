"""The report says what the run came to, stands on its own, and is the same for the same run."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from phi3_batch.report.figures import RunReport, format_share, summarize
from phi3_batch.report.page import render
from phi3_batch.report.speed import busy_seconds, rate_curve
from phi3_batch.scoring.job.statistics import ChunkRecord, Histogram
from phi3_batch.words import format_duration

START = datetime(2026, 3, 2, 21, 14, 8, tzinfo=UTC)


def chunk(started, ended, *, number=0, rows=100, tokens=1000, errors=None):
    """A chunk that ran from one second to another."""
    return ChunkRecord(
        chunk=number,
        started=START + timedelta(seconds=started),
        committed=START + timedelta(seconds=ended),
        rows=rows,
        prompt_tokens=2 * tokens,
        completion_tokens=tokens,
        errors=errors or {},
    )


def run(chunks=(), **changed):
    rows = sum(record.rows for record in chunks)
    report = RunReport(
        state="complete",
        model="models:/phi3/7",
        input="catalog.prompts",
        output="catalog.summaries",
        fingerprint="9f3c2ab81d7e",
        run_id="3e0b8f6a9d2c",
        rows_expected=rows,
        rows=rows,
        requests=rows,
        prompt_tokens=sum(record.prompt_tokens for record in chunks),
        completion_tokens=sum(record.completion_tokens for record in chunks),
        errors={},
        chunks=chunks,
        prompt_lengths=Histogram([0, 64, 128], [70, 30]),
        completion_lengths=Histogram([0, 32, 64], [40, 60]),
        parameters={"max_tokens": "256"},
        versions={"pyspark": "4.2.0"},
    )
    return replace(report, **changed)


TWO_IN_FLIGHT = [chunk(30 * k, 30 * k + 60, number=k) for k in range(8)]
RESUMED = [*TWO_IN_FLIGHT, chunk(9000, 9060, number=8), chunk(9030, 9090, number=9)]


def tokens_curve(chunks):
    return rate_curve(chunks, [record.completion_tokens for record in chunks])


def area(curve):
    return float(np.sum(curve.rates * np.diff(curve.edges)))


class _Page(HTMLParser):
    """The tags of a page, with what they have, and its text in one line."""

    def __init__(self, html):
        super().__init__()
        self.tags, self._text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self._text.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self._text).split())

    def figures(self):
        return [attrs["aria-label"] for tag, attrs in self.tags if tag == "figure"]


# --- how fast ---


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(0, 60)],
        [chunk(0, 0)],
        [chunk(0, 60), chunk(20, 20)],
        [chunk(5, 3)],  # by two clocks
        TWO_IN_FLIGHT,
        RESUMED,
        list(reversed(RESUMED)),
        [chunk(7 * k, 7 * k + 11 + k % 5, number=k, tokens=900 + k) for k in range(200)],
    ],
)
def test_the_area_under_the_curve_is_all_that_was_done(chunks):
    curve = tokens_curve(chunks)
    assert area(curve) == pytest.approx(sum(record.completion_tokens for record in chunks))
    assert len(curve.edges) == len(curve.rates) + 1
    assert (np.diff(curve.edges) > 0).all()
    assert (curve.rates > -1e-9).all()


def test_chunks_that_overlap_add_up():
    curve = tokens_curve([chunk(0, 60, tokens=600), chunk(30, 90, tokens=1200)])
    rate_at = dict(zip(curve.edges[:-1].round(6), curve.rates, strict=True))
    assert rate_at[15.0] == pytest.approx(10)
    assert rate_at[45.0] == pytest.approx(10 + 20)
    assert rate_at[75.0] == pytest.approx(20)
    assert curve.edges[-1] == pytest.approx(90)


def test_a_short_gap_is_seen_as_zero():
    curve = tokens_curve([chunk(0, 60), chunk(120, 180)])
    between = (curve.edges[:-1] >= 60.1) & (curve.edges[1:] <= 119.9)
    assert between.sum() > 10
    assert not curve.rates[between].any()
    assert list(curve.resumed) == []
    assert curve.pauses_s == pytest.approx(0)


@pytest.mark.parametrize(("gap", "is_cut"), [(599, False), (601, True)])
def test_a_gap_of_more_than_ten_chunks_is_cut_out(gap, is_cut):
    curve = tokens_curve([chunk(0, 60), chunk(60 + gap, 120 + gap)])
    assert curve.edges[-1] == pytest.approx(120 if is_cut else 120 + gap)
    assert list(curve.resumed) == ([60.0] if is_cut else [])
    assert curve.pauses_s == pytest.approx(gap if is_cut else 0)


def test_the_curve_after_a_pause_is_what_it_would_be_without():
    curve = tokens_curve(RESUMED)
    assert curve.resumed == pytest.approx([270])
    assert curve.edges[-1] == pytest.approx(270 + 90)
    assert curve.rates[-1] == pytest.approx(1000 / 60)


def test_each_pause_is_marked():
    chunks = [chunk(at, at + 10) for at in (0, 1000, 5000)]
    assert tokens_curve(chunks).resumed == pytest.approx([10, 20])
    assert render(run(chunks)).count(">resumed<") == 2
    assert ">resumed<" not in render(run(TWO_IN_FLIGHT))


def test_duration_counts_time_with_work_once():
    assert busy_seconds([]) == 0
    assert busy_seconds(TWO_IN_FLIGHT) == 270
    assert busy_seconds(reversed(RESUMED)) == 360
    assert busy_seconds([chunk(0, 100), chunk(10, 20), chunk(300, 301)]) == 101


def test_a_chunk_committed_before_it_began_took_no_time():
    by_two_clocks = chunk(5, 3)
    assert by_two_clocks.seconds == 0
    assert busy_seconds([chunk(0, 10), by_two_clocks]) == 10


def test_speed_is_over_the_time_with_work():
    page = _Page(render(run(RESUMED)))
    assert "tokens out per second 27.8 while chunks were running" in page.text
    assert "duration 6 min 0 s of work, in 10 chunks" in page.text
    assert "2 h 26 min of pauses left out" in page.text


def test_a_chunk_whose_time_is_lost_does_not_make_the_run_faster():
    page = _Page(render(run([*TWO_IN_FLIGHT, chunk(-5000, -5000, tokens=10**6)])))
    assert "tokens out per second 29.6 while" in page.text  # 8000 in 270 s
    assert "duration 4 min 30 s of work, in 8 chunks; of 1 more no time is known" in page.text
    assert "up to 33.3 in 4 min 30 s." in page.figures()[0]
    assert "longest 1 min 0 s" in page.figures()[1]
    assert "1,000,000" in page.text


def test_without_token_counts_speed_is_in_rows():
    chunks = [chunk(0, 50, tokens=0), chunk(50, 100, tokens=0)]
    page = _Page(render(run(chunks, prompt_lengths=None, completion_lengths=None)))
    assert "rows per second 2.00" in page.text
    assert "Rows per second over time: up to 2.00" in page.figures()[0]
    assert "tokens out per second" not in page.text
    assert "The model does not count tokens." in page.text


def test_seconds_per_chunk_come_with_their_median_and_p95():
    chunks = [chunk(0, seconds, number=seconds) for seconds in range(1, 102)]
    (says,) = [says for says in _Page(render(run(chunks))).figures() if "Time per chunk" in says]
    assert "median 51.0 s, 95th percentile 1 min 36 s, longest 1 min 41 s" in says


def test_chunks_are_listed_in_the_order_of_their_commits():
    chunks = [chunk(30, 90, number=1002), chunk(0, 95, number=1001), chunk(0, 60, number=1003)]
    listed = re.findall(r'<tr><td class="number">(\d+)</td>', render(run(chunks)))
    assert listed == ["1003", "1002", "1001"]


# --- in words and numbers ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.2, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (3 * 3600 + 12 * 60, "3 h 12 min"),
        (4_500_000, "1,250 h 0 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "–"),
        (0, 10, "0%"),
        (10, 10, "100%"),
        (1, 3, "33.33%"),
        (1, 10, "10%"),
        (1, 1_000_000, "<0.01%"),
        (999_999, 1_000_000, ">99.99%"),
    ],
)
def test_a_share_never_hides_what_is_there(part, whole, text):
    assert format_share(part, whole) == text


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "All 800 rows of catalog.prompts were scored with models:/phi3/7, and all is well"),
        ({"errors": {"null_prompt": 0}}, "all is well"),
        ({"errors": {"null_prompt": 1}}, "1 row got an error in place of a completion (0.12%)"),
        ({"errors": {"a": 3, "b": 5}}, "8 rows got an error in place of a completion (1%)"),
        ({"rows": 799}, "has 799 rows of it where catalog.prompts has 800: this needs to be"),
        ({"rows_expected": 1600, "state": "interrupted"}, "Not finished (interrupted): 800 of 1,6"),
        ({"rows": 0, "rows_expected": 0}, "There was nothing to score"),
    ],
)
def test_the_first_sentence_says_whether_all_is_well(changed, says):
    report = run(TWO_IN_FLIGHT, **changed)
    assert says in summarize(report)
    page = _Page(render(report))
    assert says in page.text
    is_well = ("main", {}) in page.tags
    assert is_well == ("all is well" in says or "nothing" in says)


def test_numbers_have_their_thousands_separated():
    big = chunk(0, 3600, rows=1_234_567, tokens=98_765_432)
    page = _Page(render(run([big], requests=1_200_000, errors={"null_prompt": 12_345})))
    for shown in (
        "1,234,567",
        "1,200,000",
        "98,765,432",
        "197,530,864",
        "27,435",
        "12,345 (1%)",
        "12,345 rows",
    ):
        assert shown in page.text


def test_errors_are_shown_by_code_with_their_shares_most_frequent_first():
    html = render(run(TWO_IN_FLIGHT, errors={"engine_error": 4, "null_prompt": 40, "no": 0}))
    page = _Page(html)
    assert "null_prompt 40 5% engine_error 4 0.5%" in page.text
    assert "Errors by code: null_prompt 40, engine_error 4 rows." in page.figures()
    assert "error rate 5.5% 44 rows with an error" in page.text
    assert "No row failed." not in page.text


def test_a_run_without_errors_says_so():
    page = _Page(render(run(TWO_IN_FLIGHT)))
    assert "No row failed." in page.text
    assert len(page.figures()) == 3


def test_ids_parameters_and_versions_are_there():
    text = _Page(render(run(TWO_IN_FLIGHT))).text
    for shown in ("9f3c2ab81d7e", "3e0b8f6a9d2c", "max_tokens 256", "pyspark 4.2.0"):
        assert shown in text
    assert "first start 2026-03-02 21:14:08 UTC last commit 2026-03-02 21:18:38 UTC" in text


def ticks(html):
    return re.findall(r"<text [^>]*>([^<]*)</text>", html.partition("<h2>Lengths")[2])


def test_bins_that_grow_are_drawn_on_an_axis_that_grows():
    edges = [2 ** (k / 2) for k in range(10, 21)]
    grows = render(run([], prompt_lengths=Histogram(edges, range(10)), completion_lengths=None))
    assert ticks(grows)[:6] == ["32", "64", "128", "256", "512", "1,024"]
    assert "prompts of 32 to 1,024 tokens." in _Page(grows).figures()[0]
    one_width = Histogram([32 * k for k in range(1, 33)], range(31))
    even = render(run([], prompt_lengths=one_width, completion_lengths=None))
    assert ticks(even)[:2] == ["200", "400"]


def test_one_kind_of_length_can_be_missing():
    (says,) = [
        says
        for says in _Page(render(run(TWO_IN_FLIGHT, completion_lengths=None))).figures()
        if "length" in says
    ]
    assert says == "Rows by length in tokens: prompts of 0 to 128 tokens."


@pytest.mark.parametrize(
    "report",
    [
        run(),
        run(prompt_lengths=Histogram([], []), completion_lengths=Histogram([0, 1], [0])),
        run(parameters={}, versions={}),
        run([chunk(0, 4.2)]),
        run([chunk(0, 0)]),
        run([chunk(0, 0, tokens=0, rows=0)]),
        run([chunk(60 * k, 60 * k + 110, number=k) for k in range(200)]),
        run([chunk(0, 400_000)]),
    ],
    ids=["no chunk", "no length", "bare", "one", "no time", "nothing at all", "many", "days"],
)
@pytest.mark.filterwarnings("error")
def test_every_run_has_a_report(report):
    page = _Page(render(report))
    shown = [says for says in page.figures() if "per second" in says]
    assert len(shown) == (1 if report.chunks else 0)
    assert ("No chunk was scored." in page.text) == (not report.chunks)
    assert "nan" not in page.text.lower()


# --- as a file ---


@pytest.fixture(scope="module")
def whole():
    """A page with all there can be."""
    return render(run(RESUMED, errors={"null_prompt": 3, "worker_crashed": 1}))


def test_it_loads_nothing(whole):
    away = {link for link in re.findall(r"https?://[^\"' )<]*", whole) if "www.w3.org/" not in link}
    assert away == set()
    for loading in ("<script", "<link", "<img", "<iframe", "@import", "<?xml", "<!DOCTYPE svg"):
        assert loading not in whole
    assert set(re.findall(r"url\((.)", whole)) == {"#"}


def test_each_figure_says_what_it_shows(whole):
    page = _Page(whole)
    figures = [attrs for tag, attrs in page.tags if tag == "figure"]
    assert len(figures) == sum(tag == "svg" for tag, _ in page.tags) == 4
    assert all(attrs["role"] == "img" and attrs["aria-label"].endswith(".") for attrs in figures)


def test_no_id_is_there_twice_with_another_content(whole):
    elements = re.findall(r'<(?:path|clipPath)\b[^>]*\bid="([^"]+)"([^/]*)/>', whole)
    assert elements
    assert len({name for name, _ in elements}) == len(set(elements))
    assert 'id="axes_1"' not in whole


def test_the_page_sets_the_colours_of_its_plots(whole):
    plots = "".join(re.findall(r"<svg.*?</svg>", whole, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#\w+|var\(--\w+\))", plots)) == {
        f"var(--{name})" for name in ("ink", "muted", "rule", "accent")
    }


def test_equal_runs_have_equal_reports(whole):
    settings = dict(matplotlib.rcParams)
    again = render(run(RESUMED, errors={"null_prompt": 3, "worker_crashed": 1}))
    assert again == whole
    assert dict(matplotlib.rcParams) == settings
    assert render(run(RESUMED, errors={"null_prompt": 4})) != whole


def test_names_are_text_whatever_they_look_like():
    nasty = "<script>alert('1')</script>\"&$\\foo$"
    chunks = [chunk(0, 60, errors={nasty: 2})]
    html = render(
        run(
            chunks,
            state=nasty,
            model=nasty,
            input=nasty,
            output=nasty,
            fingerprint=nasty,
            run_id=nasty,
            errors={nasty: 2},
            parameters={nasty: nasty},
            versions={nasty: nasty},
        )
    )
    page = _Page(html)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(nasty) >= 10
    assert any(nasty in says for says in page.figures())
