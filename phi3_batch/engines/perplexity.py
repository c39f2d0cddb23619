"""How well a model foretells a text: what tells two forms of its weights apart.

Answers do not: of a good and a bad rounding of the same weights, both may know a capital.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phi3_batch.errors import EngineError, InvalidParameterError
from phi3_batch.text import Tokenizer
from phi3_batch.words import first_line

# Written for this, and not to be changed: figures of different days are to be compared.
SAMPLE_TEXT = Path(__file__).with_name("sample_text.txt")

# Phi-3-mini reads 60 tokens a second on two cores: half a minute, and two or three times as long
# as a checkpoint in float32.
_MOST_TOKENS = 2048
_FEWEST_TOKENS = 64
_WINDOW = 512


class _Reader(Protocol):
    """An engine that gives all of a text's logits."""

    def read_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]: ...


def read_text(file: Path, tokenizer: Tokenizer) -> list[int]:
    """The first 2,048 tokens of a text.

    Raises:
        InvalidParameterError: as of :func:`read_tokens`.
    """
    return read_tokens(file, tokenizer.encode_content, _FEWEST_TOKENS, _MOST_TOKENS)


def read_tokens(
    file: Path, encode: Callable[[str], list[int]], fewest: int, most: int
) -> list[int]:
    """The first tokens of a text, so many at most.

    Raises:
        InvalidParameterError: the file cannot be read, is not UTF-8, or holds too little.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidParameterError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InvalidParameterError(f"{file} is no text in UTF-8") from None
    # of a book, no more is tokenised than may be needed
    ids = encode(text[: 32 * most])[:most]
    if len(ids) < fewest:
        raise InvalidParameterError(
            f"{file} holds {len(ids)} tokens: give a text of {fewest} or more"
        )
    return ids


def perplexity(model: _Reader, token_ids: Sequence[int], context_length: int) -> float:
    """Exponential of the mean negative log-likelihood of a text's tokens, in nats.

    It is read in windows of 512 tokens, each from nothing; the first token of each is not counted,
    for nothing foretells it.

    Raises:
        EngineError: the runtime fails, or the model's logits are not finite numbers.
    """
    window = min(_WINDOW, context_length)
    losses = []
    for start in range(0, len(token_ids) - 1, window):
        ids = token_ids[start : start + window]
        try:
            logits = model.read_logits(ids)[:-1].astype(np.float64)
        except Exception as error:  # of whatever runtime
            raise EngineError(f"the model cannot read a text: {first_line(error)}") from error
        highest = logits.max(-1)
        total = highest + np.log(np.exp(logits - highest[:, None]).sum(-1))
        losses.append(total - logits[np.arange(len(ids) - 1), ids[1:]])
    mean = np.concatenate(losses).mean()
    if not np.isfinite(mean):
        raise EngineError("the model's logits are not finite numbers")
    return float(np.exp(mean))
