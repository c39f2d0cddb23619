"""How sure a model is, as its results say it: plain lists, which MLflow hands to Spark."""

from collections.abc import Sequence
from typing import Any

from phi3_batch.generation import Completion
from phi3_batch.text import Tokenizer


def probabilities(completion: Completion, choices: Sequence[str]) -> list[dict[str, Any]]:
    """A dict of choice and probability for each of the choices that were compared.

    Args:
        completion: of a row; there are none for an error, nor for what was generated.
        choices: that its answer was one of.
    """
    return [
        {"choice": choice, "probability": probability}
        for choice, probability in zip(choices, completion.probabilities, strict=False)
    ]


def choice_logprobs(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``logprobs`` of a choice, as OpenAI's API has it; the end is a token without text."""
    texts = [tokenizer.decode([token_id]) for token_id in completion.token_ids]
    texts += [""] * (len(completion.log_probabilities) - len(texts))
    return {
        "content": [
            {"token": text, "logprob": log_probability}
            for text, log_probability in zip(texts, completion.log_probabilities, strict=False)
        ]
    }
