"""What stands around a model in Spark's Python workers.

It travels to them by value, with what it imports from :mod:`~phi3_batch.contract`: the workers have
the release that the model was logged with, or none of their own.
"""

import faulthandler
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from phi3_batch.contract import loaded_engine
from phi3_batch.scoring.rows.columns import OURS

# Fields of a request and of a result, beside the model's own: seconds that a request may take, the
# text of a model that gives nothing else, and the engine that has answered.
ALLOWED_S = f"{OURS}allowed_s"
TEXT = "text"
ENGINE = f"{OURS}engine"

# Inputs of a chat that are whole numbers, which pandas makes floats of beside a null.
_INTEGERS = ("max_tokens", "n")

# A batch may take so long whatever is in it: a worker loads the model in its first one.
HANG_SECONDS = 600
_LONGEST_S = 1e9  # what a clock can still count

MISCOUNTED = "the model returned another number of results than rows"

Answer = Callable[[Iterator[pd.DataFrame]], Iterator[pd.Series | pd.DataFrame]]
Regroup = Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]


def as_they_come(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Spark's batches: 10,000 rows, by default."""
    return batches


def together(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """All of a task as one batch, for a model that tells copies of a request apart in it."""
    if all_of_them := list(batches):
        yield pd.concat(all_of_them, ignore_index=True)


def one_by_one(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Batches of one row, for a model that sees no other."""
    for batch in batches:
        for place in range(len(batch)):
            yield batch.iloc[[place]].reset_index(drop=True)


def answer_requests(
    answer: Answer,
    batches: Iterator[pd.DataFrame],
    regroup: Regroup,
    columns: list[str],
    hang_s: float,
    *,
    on_executors: bool = False,
) -> Iterator[pd.DataFrame]:
    """Answer requests, and nulls with nulls, and never wait for a model that hangs.

    A batch that takes longer than its requests may ends the process, which Spark tells the driver.
    Python's own watchdog does it, a thread in C: a model may hang with the interpreter's lock.

    Args:
        answer: MLflow's UDF; one result for each batch that it takes.
        batches: of requests, in Spark's order; those that have ALLOWED_S are watched.
        regroup: makes the model's batches of them.
        columns: of a result, ENGINE last.
        hang_s: what a batch may take beside its requests' own seconds.
        on_executors: whether MLflow unpacks the model where Spark removes it with the executor.
            Else it lies in the temporary folder, until this package starts there again.

    Yields:
        Results, as many rows as there were requests.

    Raises:
        RuntimeError: the model has raised something, or gives another number of results.
    """
    waiting = deque[pd.Series]()  # of each batch that was read, which rows are asked

    def asked() -> Iterator[pd.DataFrame]:
        for batch in regroup(batches):
            allowed_s = batch.pop(ALLOWED_S).sum() if ALLOWED_S in batch else None
            sound = batch.iloc[:, 0].notna()
            waiting.append(sound)
            if not sound.any():
                continue
            if allowed_s is not None:
                limit = min(hang_s + allowed_s, _LONGEST_S)
                faulthandler.dump_traceback_later(limit, exit=True, file=nowhere)
            yield batch if sound.all() else _without_nulls(batch[sound])

    def of_nulls(sound: pd.Series) -> pd.DataFrame:
        return pd.DataFrame({name: [None] * len(sound) for name in columns}, dtype=object)

    with Path("/dev/null").open("wb") as nowhere, _temporary_files(with_spark=on_executors):
        try:
            for answers in _quoting_nothing(answer, asked()):
                faulthandler.cancel_dump_traceback_later()
                while not waiting[0].any():
                    yield of_nulls(waiting.popleft())
                yield _in_place(answers, waiting.popleft(), columns)
        finally:
            faulthandler.cancel_dump_traceback_later()
    yield from map(of_nulls, waiting)


@contextmanager
def _temporary_files(*, with_spark: bool) -> Iterator[None]:
    """Have :mod:`tempfile`, and with it MLflow, use a folder that ends with the executor."""
    # Spark names its folders for blocks, where pyspark itself keeps what it spills
    folder = os.environ.get("SPARK_LOCAL_DIRS", "").partition(",")[0]
    before = tempfile.tempdir
    if with_spark and folder and Path(folder).is_dir():
        tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def _without_nulls(requests: pd.DataFrame) -> pd.DataFrame:
    """Requests in the types that they had before pandas made room for nulls beside them."""
    integers = [name for name in _INTEGERS if name in requests]
    # and numbered anew: MLflow numbers some columns of a result
    numbered = requests.reset_index(drop=True)
    return numbered.infer_objects().astype(dict.fromkeys(integers, "int64"))


def _in_place(
    answers: pd.Series | pd.DataFrame, sound: pd.Series, columns: list[str]
) -> pd.DataFrame:
    """Answers in the places of the rows that were asked, and nulls in the others'."""
    if len(answers) != sound.sum():
        raise RuntimeError(MISCOUNTED)
    frame = answers.to_frame(TEXT) if isinstance(answers, pd.Series) else answers
    frame = frame.assign(**{ENGINE: loaded_engine()})[columns]
    if sound.all():
        return frame
    # not by pandas' own means, which know one null for all types, and it is a float
    given = {name: iter(frame[name]) for name in columns}
    return pd.DataFrame(
        {name: [next(each) if asked else None for asked in sound] for name, each in given.items()},
        dtype=object,
    )


def _quoting_nothing(
    answer: Answer, batches: Iterator[pd.DataFrame]
) -> Iterator[pd.Series | pd.DataFrame]:
    """What a model answers; its exceptions say where it raised which, without their text.

    That may quote a row, and Spark writes it into its logs, its event log and its web pages. What
    our own models raise on purpose quotes nobody.
    """
    try:
        yield from answer(batches)
    except Exception as error:
        if type(error).__module__ == "phi3_batch.errors":
            raise error from None
        said = f"the model raised {type(error).__name__}"
        raise RuntimeError(said).with_traceback(error.__traceback__) from None
