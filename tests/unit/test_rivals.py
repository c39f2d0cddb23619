"""What the commits of other runs mean for a run, by what the history says of them."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from phi3_batch.errors import SupersededError
from phi3_batch.scoring.delta.ledger import Ledger
from phi3_batch.scoring.delta.record import Commit, RunIdentity, RunRecord
from phi3_batch.scoring.delta.rivals import (
    check_comparison,
    check_order,
    check_standing,
    find_own_start,
)

OURS = RunIdentity(
    fingerprint="a-1",
    settings={},
    input="prompts",
    input_id="t",
    input_version=3,
    request_columns=["prompt"],
    ids=[],
    delete_removed=False,
    limit=None,
)
BY_ID = replace(OURS, ids=["id"])


def record(fingerprint: str, mode: str = "append", **fields: Any) -> RunRecord:
    run = replace(OURS, fingerprint=fingerprint, **fields)
    return RunRecord(run, rows=10, chunks=4, run_id="r", mode=mode, commits=3)


def begins(told: RunRecord, version: int = 5) -> Commit:
    return Commit(version, datetime(2026, 1, 1), told.run.fingerprint, None, None, told)


def goes_on(fingerprint: str, version: int = 6) -> Commit:
    return Commit(version, datetime(2026, 1, 1), fingerprint, 5, 1, None)


def newer(fingerprint: str = "a-2", **fields: Any) -> RunRecord:
    return record(fingerprint, **{"ids": ["id"], "input_version": 4} | fields)


def test_a_run_that_was_replaced_may_not_write() -> None:
    for mode in ("overwrite", "error"):
        for run in (OURS, BY_ID):
            for fingerprint in ("b-1", "a-1"):
                with pytest.raises(SupersededError, match="has replaced output out"):
                    check_standing(run, "out", 2, [begins(record(fingerprint, mode))])
    # what came before it is nothing to it
    check_standing(OURS, "out", 5, [begins(record("b-1", "overwrite"), version=4)])


def test_runs_that_add_rows_stand_side_by_side() -> None:
    check_standing(OURS, "out", 2, [begins(record("b-1")), goes_on("b-1")])
    check_standing(OURS, "out", None, [begins(newer()), goes_on("a-2")])


def test_a_run_that_was_begun_anew_is_left_to_who_began_it() -> None:
    with pytest.raises(SupersededError, match="restarted this run"):
        check_standing(OURS, "out", 2, [begins(record("a-1"))])


def test_with_ids_a_later_run_takes_the_rows_over() -> None:
    with pytest.raises(SupersededError, match="has all rows of this one"):
        check_standing(BY_ID, "out", 2, [begins(newer())])
    with pytest.raises(SupersededError, match="start this one again"):
        check_standing(BY_ID, "out", 2, [begins(newer("b-2"))])  # another model or parameter
    elsewhere = newer(input="others", input_id="u")
    check_standing(BY_ID, "out", 2, [begins(elsewhere), goes_on("a-2")])
    with pytest.raises(SupersededError):  # its rows would be deleted
        check_standing(replace(BY_ID, delete_removed=True), "out", 2, [begins(elsewhere)])


def test_files_have_no_ids_and_are_told_apart_by_name() -> None:
    of_files = replace(BY_ID, input_id=None, input_version=None)
    check_standing(of_files, "out", 2, [begins(newer(input="more.jsonl", input_id=None))])
    with pytest.raises(SupersededError):
        check_standing(of_files, "out", 2, [begins(newer(input_id=None, input_version=None))])


def test_a_run_begins_on_the_table_that_it_was_planned_by() -> None:
    assert find_own_start(OURS, "out", []) is None
    assert find_own_start(OURS, "out", [goes_on("b-1")]) is None  # its rows are none of this one's
    own = begins(record("a-1"))
    assert find_own_start(OURS, "out", [goes_on("b-1", version=4), own]) is own
    with pytest.raises(SupersededError, match="since this one looked at it"):
        find_own_start(OURS, "out", [begins(record("b-1"))])


def test_with_ids_a_run_begins_beside_runs_that_score_alike() -> None:
    with pytest.raises(SupersededError, match="start this one again"):
        find_own_start(BY_ID, "out", [begins(record("b-2", ids=["id"]))])
    with pytest.raises(SupersededError, match="start this one again"):
        find_own_start(BY_ID, "out", [goes_on("b-2")])
    with pytest.raises(SupersededError, match="version 4 of the input"):
        find_own_start(BY_ID, "out", [begins(newer())])
    older = begins(record("a-0", ids=["id"], input_version=2))
    assert find_own_start(BY_ID, "out", [older, goes_on("a-0")]) is None


def test_with_ids_a_comparison_holds_if_no_run_of_the_same_input_has_written_since() -> None:
    older = begins(record("a-0", ids=["id"], input_version=2))
    elsewhere = begins(newer(input="others", input_id="u"))
    history = Ledger((older, elsewhere), 0, 9)
    check_comparison(BY_ID, "out", history, [elsewhere, goes_on("a-2")])
    for commit in (older, goes_on("a-0"), goes_on("a-9")):
        with pytest.raises(SupersededError, match="start this one again, it goes on"):
            check_comparison(BY_ID, "out", history, [commit])


def test_versions_are_compared_within_one_table() -> None:
    with pytest.raises(SupersededError, match=r"of version 4 of the input, .* reads version 3"):
        check_order(BY_ID, "out", newer().run)
    check_order(BY_ID, "out", newer(input_id="u").run)
    check_order(OURS, "out", newer().run)
    check_order(BY_ID, "out", record("a-1", ids=["id"]).run)
