"""What requests would be, without generating: for plans of jobs that have not begun."""

from collections.abc import Iterable, Sequence

import pandas as pd

from phi3_batch.generation import Request, RowError
from phi3_batch.model_files import Limits
from phi3_batch.text import Tokenizer

_COLUMNS = ["prompt_tokens", "max_tokens", "error"]


def examine_rows(rows: Iterable[Sequence[Request] | RowError], limits: Limits) -> pd.DataFrame:
    """A table of what rows would take.

    Args:
        rows: for each the requests that it comes to, all of one prompt, or what is wrong with it.
        limits: of the model.

    Returns:
        A row for each, with prompt_tokens (0 where they are not known), max_tokens (the most that
        may be generated, for all its requests; 0 for a row that fails) and error, a dict of code
        and message, both empty where nothing is wrong.
    """
    table = pd.DataFrame([_examine(row, limits) for row in rows], columns=_COLUMNS)
    return table.astype({"prompt_tokens": "int64", "max_tokens": "int64"})  # where no row is, too


def most_bytes(tokenizer: Tokenizer, limits: Limits) -> int | None:
    """Bytes of a prompt, white space aside, beyond which it cannot fit; None if none are known."""
    each = tokenizer.most_bytes_per_token
    return None if each is None else each * (limits.context_length - 1)


def _examine(row: Sequence[Request] | RowError, limits: Limits) -> tuple[int, int, dict[str, str]]:
    if isinstance(row, RowError):
        return 0, 0, _error(row)
    length = len(row[0].prompt_ids)
    if (refused := limits.find_request_error(row[0])) and refused.error:
        return length, 0, _error(refused.error)
    return length, sum(map(limits.max_new_tokens, row)), {"code": "", "message": ""}


def _error(error: RowError) -> dict[str, str]:
    return {"code": error.code.value, "message": error.message}
