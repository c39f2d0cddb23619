"""Requests whose answer is one of some texts: the likeliest, without generating any."""

from collections.abc import Sequence

import numpy as np

from phi3_batch.engines.base import Engine, Question
from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import Completion, Request, Usage


def answer(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Answer requests: those whose choices are compared, and those that are generated.

    Returns:
        One completion for each, in the same order.
    """
    completions: list[Completion | None] = [None] * len(requests)
    generated = [i for i, request in enumerate(requests) if not request.params.are_compared]
    answers = engine.generate([requests[i] for i in generated])
    for index, completion in zip(generated, answers, strict=True):
        completions[index] = completion
    compared = [i for i, request in enumerate(requests) if request.params.are_compared]
    for index, completion in zip(
        compared, _compare(engine, [requests[i] for i in compared]), strict=True
    ):
        completions[index] = completion
    return [completion for completion in completions if completion is not None]


def _compare(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    completions: list[Completion | None] = []
    questions: list[Question] = []
    asked: list[int] = []
    known: dict[str, tuple[int, ...]] = {}  # most rows have the same choices
    for index, request in enumerate(requests):
        for text in request.params.choices:
            if text not in known:
                known[text] = tuple(engine.tokenizer.encode_content(text))
        choices = tuple(known[text] for text in request.params.choices)
        refused = engine.limits.find_request_error(request)
        if not refused and _is_too_long(request, choices, engine.limits.context_length):
            refused = Completion.failed(
                RowErrorCode.PROMPT_TOO_LONG,
                f"{len(request.prompt_ids)} tokens leave no room for the longest choice in a"
                f" context of {engine.limits.context_length}",
                prompt_tokens=len(request.prompt_ids),
            )
        completions.append(refused)
        if not refused:
            asked.append(index)
            questions.append(Question(request.prompt_ids, choices))
    for index, question, scores in zip(asked, questions, engine.score(questions), strict=True):
        completions[index] = _likeliest(engine, requests[index], question, scores)
    return [completion for completion in completions if completion is not None]


def _is_too_long(request: Request, choices: Sequence[Sequence[int]], context_length: int) -> bool:
    return len(request.prompt_ids) + max(map(len, choices)) > context_length


def _likeliest(
    engine: Engine, request: Request, question: Question, scores: Sequence[Sequence[float]] | None
) -> Completion:
    """The likeliest of a request's choices, the first of equal ones."""
    count = len(request.prompt_ids)
    if scores is None:
        message = f"{engine.name}: the choices behind {count} tokens could not be read"
        return Completion.failed(RowErrorCode.ENGINE_ERROR, message, count)
    totals = np.array([sum(score) for score in scores])
    if not np.isfinite(totals.max()):
        message = f"{engine.name}: the model's logits are not finite numbers"
        return Completion.failed(RowErrorCode.ENGINE_ERROR, message, count)
    weights = np.exp(totals - totals.max())
    best = int(totals.argmax())
    token_ids = question.continuations[best]
    return Completion(
        text=request.params.choices[best],
        token_ids=token_ids,
        finish_reason="stop",
        usage=Usage(count, len(token_ids)),
        log_probabilities=tuple(scores[best]) if request.params.logprobs else (),
        probabilities=tuple((weights / weights.sum()).tolist()),
    )
