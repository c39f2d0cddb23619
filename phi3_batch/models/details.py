"""How sure a model is, as its results say it: plain lists, which MLflow hands to Spark."""

from collections.abc import Iterable, Sequence
from typing import Any

from phi3_batch.contract import LOGPROBS, PROBABILITIES
from phi3_batch.generation import Completion


def details(
    completions: Sequence[Completion], choices: Iterable[Sequence[str]]
) -> dict[str, list[Any]]:
    """What stands beside completions where it was asked for.

    Args:
        completions: of rows.
        choices: of each row, what its answer was one of.

    Returns:
        For each row, under LOGPROBS the log-probabilities of its tokens and of the end, and under
        PROBABILITIES a dict of choice and probability for each of the choices. Both are empty
        where there is an error, or nothing was asked for.
    """
    return {
        LOGPROBS: [list(completion.log_probabilities) for completion in completions],
        PROBABILITIES: [
            [
                {"choice": choice, "probability": probability}
                # none for an error, nor for what was generated
                for choice, probability in zip(texts, completion.probabilities, strict=False)
            ]
            for completion, texts in zip(completions, choices, strict=True)
        ],
    }
