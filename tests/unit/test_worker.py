"""What stands around a model in a worker, by models of a line."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from phi3_batch.scoring.rows import worker

COLUMNS = [worker.TEXT, worker.ENGINE]
SEEN: list[list[str]] = []


def echo(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
    """A model that notes its batches, and answers each prompt with itself."""
    SEEN.clear()
    for batch in batches:
        SEEN.append(list(batch["prompt"]))
        yield batch["prompt"].reset_index(drop=True)


def answers(
    *batches: list[str | None],
    model: worker.Answer = echo,
    regroup: worker.Regroup = worker.as_they_come,
) -> list[str | None]:
    given = [pd.DataFrame({"prompt": batch}) for batch in batches]
    frames = list(worker.answer_requests(model, iter(given), regroup, COLUMNS, 60.0))
    assert all(list(frame.columns) == COLUMNS for frame in frames)
    return [None if pd.isna(text) else text for frame in frames for text in frame[worker.TEXT]]


def test_nulls_are_answered_with_nulls_and_no_model_sees_them() -> None:
    batches = [[None, None], ["a", None, "b"], [None], ["c"], [None]]
    assert answers(*batches) == [None, None, "a", None, "b", None, "c", None]
    assert SEEN == [["a", "b"], ["c"]]
    assert answers([None]) == [None]
    assert answers() == []


def test_requests_beside_nulls_have_their_types() -> None:
    seen = []

    def noting(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
        for batch in batches:
            seen.append(batch)
            yield batch["messages"]

    # as pandas has them where Spark's struct is null in between
    given = pd.DataFrame(
        {
            "messages": [["a"], None, ["b"]],
            "max_tokens": [1.0, None, 2.0**40],
            "temperature": [0.5, None, 1.0],
            "stream": pd.Series([True, None, False], dtype=object),
        }
    )
    list(worker.answer_requests(noting, iter([given]), worker.as_they_come, COLUMNS, 60.0))
    assert list(seen[0]["max_tokens"]) == [1, 2**40]
    assert list(seen[0].index) == [0, 1]
    assert [str(kind) for kind in seen[0].dtypes] == ["object", "int64", "float64", "bool"]


def test_a_model_gets_all_of_a_task_at_once_or_a_row_at_a_time() -> None:
    batches = [["a", "b"], ["c"], ["d", None]]
    whole = ["a", "b", "c", "d", None]
    assert answers(*batches, regroup=worker.together) == whole
    assert SEEN == [["a", "b", "c", "d"]]
    assert answers(*batches, regroup=worker.one_by_one) == whole
    assert SEEN == [["a"], ["b"], ["c"], ["d"]]
    assert answers(regroup=worker.together) == []


def test_another_number_of_results_is_told() -> None:
    def forgetful(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
        for batch in batches:
            yield batch["prompt"][1:]

    with pytest.raises(RuntimeError, match=worker.MISCOUNTED):
        answers(["a", "b"], model=forgetful)


def test_what_a_model_raises_is_told_without_its_text() -> None:
    def quoting(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
        for batch in batches:
            raise ValueError(f"cannot read {batch['prompt'][0]}")
        yield pd.Series()

    with pytest.raises(RuntimeError, match=r"^the model raised ValueError$") as caught:
        answers(["a secret"], model=quoting)
    assert caught.value.__cause__ is None


def ends(hang_s: float, allowed_s: float, takes_s: float) -> int:
    """How a process ends whose model takes so long."""

    def slow(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
        for batch in batches:
            time.sleep(takes_s)
            yield batch["prompt"]

    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            batch = pd.DataFrame({"prompt": ["a", "b"], worker.ALLOWED_S: [allowed_s, allowed_s]})
            list(worker.answer_requests(slow, iter([batch]), worker.together, COLUMNS, hang_s))
            time.sleep(hang_s + 2 * allowed_s)  # nothing is left that would end it now
            code = 7
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_model_that_hangs_ends_its_process_and_one_in_time_does_not() -> None:
    assert ends(hang_s=0.1, allowed_s=0.05, takes_s=20) == 1
    assert ends(hang_s=0.5, allowed_s=0.75, takes_s=0.3) == 7


@pytest.mark.parametrize("on_executors", [False, True])
def test_a_model_is_unpacked_where_spark_removes_it_with_the_executor(
    on_executors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path},/elsewhere")
    before, used = tempfile.gettempdir(), list[str]()

    def unpacking(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
        used.append(tempfile.gettempdir())
        yield from (batch["prompt"] for batch in batches)

    batches = iter([pd.DataFrame({"prompt": ["a"]})])
    regroup = worker.as_they_come
    list(
        worker.answer_requests(
            unpacking, batches, regroup, COLUMNS, 60.0, on_executors=on_executors
        )
    )
    assert used == [str(tmp_path) if on_executors else before]
    assert tempfile.gettempdir() == before
