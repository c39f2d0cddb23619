"""Which texts are refused before they reach a tokenizer, and with which error code."""

import math
import re
from collections.abc import Iterable

from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import RowError
from phi3_batch.text.tokenizer import Tokenizer

# C0 controls and DEL, but for the white space that real documents hold (tab, line feed, vertical
# tab, form feed, carriage return). They come from broken extraction or binary data; the model has
# never seen them, and they can hide text from whoever reads the table.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def find_text_error(text: object) -> RowError | None:
    """Say why ``text`` cannot be a prompt, or None when it can.

    Null is ``null_prompt``; nothing but white space is ``empty_prompt``; what is no string, has
    control characters or is no valid Unicode (a lone surrogate) is ``invalid_text``.
    """
    if is_null(text):
        return RowError(RowErrorCode.NULL_PROMPT, "the prompt is null")
    if not isinstance(text, str):
        return RowError(
            RowErrorCode.INVALID_TEXT, f"the prompt is a {type(text).__name__}, not a string"
        )
    if not text.strip():
        return RowError(RowErrorCode.EMPTY_PROMPT, "the prompt is empty or only white space")
    return find_character_error(text)


def find_character_error(text: str) -> RowError | None:
    """Say which character keeps a string, empty or not, from being text, or None when none does.

    A control character or a lone surrogate is ``invalid_text``.
    """
    if found := _CONTROL_CHARACTER.search(text):
        return RowError(
            RowErrorCode.INVALID_TEXT,
            f"control character U+{ord(found.group()):04X} at position {found.start()}",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return RowError(
            RowErrorCode.INVALID_TEXT,
            f"lone surrogate U+{ord(text[error.start]):04X} at position {error.start}",
        )
    return None


def find_length_error(
    texts: Iterable[str], tokenizer: Tokenizer, context_length: int
) -> RowError | None:
    """Say that a prompt cannot fit, whatever its tokens are: text that is not worth encoding.

    Args:
        texts: of which the prompt is made.
        tokenizer: of the model.
        context_length: of the model, in tokens; a prompt has to leave room for one more.
    """
    if not tokenizer.is_beyond(texts, context_length - 1):
        return None
    return RowError(
        RowErrorCode.PROMPT_TOO_LONG,
        f"by its length alone it leaves no room in a context of {context_length}",
    )


def is_null(value: object) -> bool:
    """Whether a value is a null in any form that pandas gives it: None, NaN or pandas.NA."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ == "NAType"  # by name: text/ knows no pandas
