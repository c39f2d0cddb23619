"""Chunks, budgets and the time to go, without Spark."""

import io
import json
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from phi3_batch.progress import progress_display
from phi3_batch.scoring.delta.balance import Balance
from phi3_batch.scoring.delta.ledger import Ledger
from phi3_batch.scoring.delta.record import RunIdentity, RunRecord, describe_commit, read_commit
from phi3_batch.scoring.job.chunks import ScoredChunk
from phi3_batch.scoring.job.cut import Chunk
from phi3_batch.scoring.job.run import Budget, Progress
from phi3_batch.scoring.rows import identity


@given(st.integers(0, 10**9))
def test_chunks_are_a_power_of_two_small_and_not_too_many(requests: int) -> None:
    count = identity.chunk_count(requests)
    assert count & (count - 1) == 0
    assert count <= 256
    assert requests <= 512 * count or count == 256
    assert requests <= 1024 or requests > 128 * count  # none is cut finer than it has to be


@pytest.mark.parametrize(
    ("requests", "chunks"),
    [(1, 1), (256, 1), (257, 2), (513, 4), (2_048, 4), (2_049, 8), (10**6, 256)],
)
def test_small_tables_are_cut_finer_than_large_ones(requests: int, chunks: int) -> None:
    assert identity.chunk_count(requests) == chunks


def test_a_fingerprint_has_a_half_for_the_settings() -> None:
    settings = identity.settings_digest({"model": "a", "params.max_tokens": "5"})
    same = identity.settings_digest({"params.max_tokens": "5", "model": "a"})
    other = identity.settings_digest({"model": "a", "params.max_tokens": "6"})
    assert settings == same != other
    first, second = (identity.fingerprint(settings, {"version": v}) for v in (1, 2))
    assert first != second
    assert identity.settings_of(first) == identity.settings_of(second) == settings


@pytest.mark.parametrize(
    ("budget", "seconds", "tokens", "spent"),
    [
        (Budget(), 1e9, 10**9, False),
        (Budget(hours=0.5), 1799, 0, False),
        (Budget(hours=0.5), 1800, 0, True),
        (Budget(output_tokens=100), 0, 99, False),
        (Budget(output_tokens=100), 0, 100, True),
    ],
)
def test_a_budget_is_spent_by_time_or_by_tokens(
    budget: Budget, seconds: float, tokens: int, spent: bool
) -> None:
    assert budget.is_spent(seconds, tokens) is spent


def test_progress_counts_what_others_wrote_as_done_and_not_as_ours() -> None:
    progress = Progress(rows=100, rows_done=10, requests_left=45)
    assert progress.seconds_left is None
    progress.seconds = 2.0
    progress.add(ScoredChunk(Chunk(0, 40, 20), 2.0, 400, {"engine_error": 3}, retries=2))
    assert (progress.rows_done, progress.requests_left) == (50, 25)
    assert progress.tokens_per_second == 200
    assert progress.seconds_left == 2.5
    progress.add(ScoredChunk(Chunk(1, 50, 25), 2.0, by_us=False))
    assert (progress.rows_done, progress.rows_scored, progress.requests_left) == (100, 40, 0)
    assert (progress.errors.total(), progress.retries, progress.chunks_done) == (3, 2, 1)


def test_a_balance_is_kept_by_each_row_being_there_once() -> None:
    assert Balance(5, 5, 0, 0, 0, 0, orphans_allowed=False).ok
    for wrong in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert not Balance(5, 5, *wrong, orphans_allowed=False).ok
    assert Balance(5, 6, 0, 0, 1, 0, orphans_allowed=True).ok
    assert str(Balance(5, 5, 1, 1, 0, 0, orphans_allowed=False)) == (
        "5 in, 5 out, 1 missing, 1 doubled, 0 orphaned"
    )


NOON = datetime(2026, 1, 1, 12)
RECORD = RunRecord(
    RunIdentity(
        fingerprint="a-b",
        settings={"model": "models:/phi3/1"},
        input="prompts",
        input_id="t",
        input_version=3,
        request_columns=("prompt",),
        ids=(),
        delete_removed=False,
        limit=None,
    ),
    rows=10,
    chunks=4,
    run_id="r",
    mode="append",
    commits=None,
)


def ledger(*commits: str) -> Ledger:
    read = (read_commit(version, NOON, text) for version, text in enumerate(commits))
    return Ledger(tuple(filter(None, read)), 0, len(commits) - 1)


def says(fingerprint: str, chunk: int | None, number: int = 1, **told: Any) -> str:
    return describe_commit(fingerprint, chunk=chunk, number=number, driver="d", **told)


def test_a_commit_says_what_it_is_and_is_read_again() -> None:
    text = says("a-b", 2, number=7, record=RECORD)
    assert next(iter(json.loads(text))) == "phi3_batch"  # what history is filtered by
    [commit] = ledger(text).commits
    assert (commit.fingerprint, commit.chunk, commit.start) == ("a-b", 2, None)
    assert (commit.number, commit.driver, commit.record) == (7, "d", RECORD)


def test_commits_of_other_releases_are_read_as_far_as_they_go() -> None:
    told = json.loads(says("a-b", 2, record=RECORD))
    told["phi3_batch"]["run"]["mood"] = "good"
    told["phi3_batch"]["weather"] = "fine"
    for name in ("number", "driver"):
        del told["phi3_batch"][name]
    for name in ("input_id", "mode", "commits", "version", "delete_removed"):
        del told["phi3_batch"]["run"][name]
    strange = '{"phi3_batch": {"chunk": 1}}', '{"phi3_batch": [', '{"phi3_batch": null}'
    [commit] = ledger(json.dumps(told), *strange).commits
    assert commit.record == replace(
        RECORD, run=replace(RECORD.run, input_id=None), mode=None, version=1
    )
    assert commit.number is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
OF_A_RUN = [*json.loads(says("a-b", 2, record=RECORD))["phi3_batch"]["run"]]


@given(st.sampled_from([*OF_A_RUN, "run", "start", "chunk", "number", "driver"]), JSON)
@example("number", -1)
def test_whatever_a_field_of_another_release_holds_is_no_failure(name: str, value: object) -> None:
    told = json.loads(says("a-b", 2, record=RECORD))
    (told["phi3_batch"]["run"] if name in OF_A_RUN else told["phi3_batch"])[name] = value
    found = ledger(json.dumps(told))
    [commit] = found.commits
    assert commit.fingerprint == "a-b"
    record = commit.record
    assert record is not None
    assert not record.run.reads_older_than(RECORD.run)
    assert found.next_number >= 1
    assert found.is_finished(commit) in (True, False)
    assert isinstance(record.replaces, bool)
    assert isinstance(record.is_of_newer_release, bool)
    describe_commit("a-b", chunk=None, number=1, driver="d", record=record)


def test_numbers_go_on_where_the_last_commit_was() -> None:
    assert Ledger().next_number == 1
    assert ledger("{}", says("a-b", 0, number=1), "{}", says("a-b", 1, number=2)).next_number == 3
    assert ledger(says("a-b", 0, number=1), says("a-b", 1, number=2)).as_of(0).next_number == 2
    # of a history that was cut, no number can be above the version
    assert Ledger((), first_version=40, last_version=50).next_number == 52


def test_a_run_is_known_by_its_latest_first_commit() -> None:
    begun, other = says("a-b", 0, record=RECORD), says("c-d", 0, record=RECORD)
    found = ledger(begun, other, begun)
    latest = found.start_of("a-b")
    assert latest is not None
    assert latest.version == 2
    assert found.last_start == latest
    assert found.start_of("e-f") is None


def test_chunks_are_counted_under_their_first_commit() -> None:
    record = replace(RECORD, commits=1)
    found = ledger(
        says("a-b", 0, record=record),
        says("a-b", 1, start=0),
        says("a-b", 2, record=record),
        says("c-d", 3, start=2),
    )
    first, second = (commit for commit in found.commits if commit.record)
    assert found.is_finished(first)
    assert not found.is_finished(second)
    assert found.is_finished(ledger(says("a-b", 2, record=RECORD)).commits[0])  # nobody knows


def test_a_table_is_all_ours_since_a_run_has_made_or_replaced_it() -> None:
    added = says("a-b", 0, record=replace(RECORD, mode="append"))
    made = says("c-d", 0, record=replace(RECORD, mode="overwrite"))
    assert not ledger(added, says("a-b", 1, start=0)).is_all_ours
    found = ledger(added, made, added)
    assert found.is_all_ours
    assert [commit.version for commit in found.since_replaced()] == [1, 2]
    assert found.has_no_others
    assert ledger("{}", made, added).has_no_others  # what was before has been replaced
    assert not ledger(made, "{}", added).has_no_others
    assert not ledger(made, added, "{}").has_no_others
    assert not ledger(added).has_no_others  # to a table that others may have made
    assert not Ledger().has_no_others
    of_older_release = replace(RECORD, mode=None)
    assert not ledger("{}", says("a-b", 0, record=of_older_release)).is_all_ours


@pytest.mark.filterwarnings("ignore:install .ipywidgets")  # rich looks for them itself
@pytest.mark.parametrize("has_widgets", [True, False])
def test_a_notebook_has_a_bar_where_it_can_be_drawn(
    has_widgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, drawn = io.StringIO(), list[Any]()
    console = Console(force_jupyter=True, file=said)
    monkeypatch.setattr("phi3_batch.progress.find_spec", lambda name: has_widgets or None)
    monkeypatch.setattr("phi3_batch.progress.Bar.refresh", lambda bar: drawn.append(bar.tasks[:]))
    plan: Any = SimpleNamespace(counts_tokens=True, total=4)
    with progress_display(plan, console) as show:
        show(Progress(rows=4, rows_done=2, requests_left=2))
    if has_widgets:
        assert drawn[-1][0].completed == 2
    else:
        assert not drawn
