"""A limit to the time of an answer. A hang in native code has one way out: the process ends.

A Spark job notices that its worker has died, and finds the row by trying. Nobody's notebook or
server is ended: the limit holds only where the job has asked for it.
"""

import faulthandler
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from phi3_batch.contract import TIME_LIMITS_VARIABLE
from phi3_batch.generation import Request
from phi3_batch.model_files import Limits

# Phi-3-mini reads some 60 tokens and writes 9 a second on two cores: this is 15 times as long.
_SECONDS = 120.0
_SECONDS_PER_PROMPT_TOKEN = 0.25
_SECONDS_PER_NEW_TOKEN = 2.0


@contextmanager
def time_limit(requests: Sequence[Request], limits: Limits) -> Iterator[None]:
    """End this process, with exit code 1, if the block takes longer than its requests may.

    The names of the functions that hang go to the standard error, and no data. A process has one
    timer of this kind: Spark's own, of ``spark.python.worker.tracebackDumpIntervalSeconds``, is
    off once the first block has ended.

    Args:
        requests: what the block answers, one after another or as one batch.
        limits: of the model.
    """
    if os.environ.get(TIME_LIMITS_VARIABLE) != "1":
        yield
        return
    with _standard_error() as file:
        faulthandler.dump_traceback_later(seconds_for(requests, limits), exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def seconds_for(requests: Sequence[Request], limits: Limits) -> float:
    """The longest that sound requests may take together."""
    return _SECONDS + sum(
        _SECONDS_PER_PROMPT_TOKEN * len(request.prompt_ids)
        # not max_tokens, which may be beyond any clock
        + _SECONDS_PER_NEW_TOKEN * limits.max_new_tokens(request)
        for request in requests
    )


@contextmanager
def _standard_error() -> Iterator[int]:
    """The file descriptor of the process's own standard error, or of nowhere: the limit holds."""
    descriptor = _descriptor(sys.__stderr__)
    if descriptor is not None:
        yield descriptor
        return
    with Path(os.devnull).open("wb") as nowhere:
        yield nowhere.fileno()


def _descriptor(file: object) -> int | None:
    try:
        descriptor: int = file.fileno()  # type: ignore[attr-defined]  # None has none
        return descriptor
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed
        return None
