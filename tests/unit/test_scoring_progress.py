"""Chunks, budgets and the time to go, without Spark."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3_batch.scoring import identity
from phi3_batch.scoring.balance import Balance
from phi3_batch.scoring.batch import Budget, Progress
from phi3_batch.scoring.chunks import ScoredChunk
from phi3_batch.scoring.ledger import Ledger, RunRecord, _read, describe_commit
from phi3_batch.scoring.plan import Chunk


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


RECORD = RunRecord(
    fingerprint="a-b",
    settings={"model": "models:/phi3/1"},
    input="prompts",
    input_version=3,
    request_columns=["prompt"],
    ids=[],
    limit=None,
    rows=10,
    chunks=4,
    run_id="r",
)


def ledger(*commits: str) -> Ledger:
    return Ledger(tuple(_read(version, None, text) for version, text in enumerate(commits)))  # type: ignore[arg-type]


def test_a_commit_says_what_it_is_and_is_read_again() -> None:
    text = describe_commit("a-b", chunk=2, record=RECORD)
    assert next(iter(json.loads(text))) == "phi3_batch"  # what history is filtered by
    [commit] = ledger(text).commits
    assert (commit.fingerprint, commit.chunk, commit.start) == ("a-b", 2, None)
    assert commit.record == RECORD


def test_two_drivers_go_by_the_earlier_first_commit() -> None:
    begun = describe_commit("a-b", chunk=0, record=RECORD)
    other = describe_commit("c-d", chunk=0, record=RECORD)
    found = ledger(begun, other, begun, begun)
    first = found.first_start("a-b", above=0)
    assert first is not None
    assert first.version == 2
    latest = found.start_of("a-b")
    assert latest is not None
    assert latest.version == 3
    assert found.last_start == latest
    assert found.first_start("a-b", above=3) is None


def test_chunks_are_counted_under_their_first_commit() -> None:
    found = ledger(
        describe_commit("a-b", chunk=0, record=RECORD),
        describe_commit("a-b", chunk=1, start=0),
        describe_commit("a-b", chunk=2, record=RECORD),
        describe_commit("a-b", chunk=3, start=2),
    )
    start = found.start_of("a-b")
    assert start is not None
    assert found.chunks_since(start) == {2, 3}
