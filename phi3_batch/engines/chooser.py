"""The tokens of one completion, chosen one after another: what every engine does with logits.

What shapes the choice is applied in the order of transformers' logits processors: repetition
penalty, bias, minimum length or constraint, then temperature, top_k and top_p.
https://github.com/huggingface/transformers/blob/main/src/transformers/generation/logits_process.py
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phi3_batch.engines.base import CompletionBuilder
from phi3_batch.engines.sampling import choose_token, log_softmax
from phi3_batch.errors import InvalidParameterError, RowErrorCode
from phi3_batch.generation import Completion, GenerationParams, Request
from phi3_batch.model_files import Limits
from phi3_batch.text import AnswerConstraint, Constraint, Constraints, Tokenizer


class TokenRules:
    """What an engine needs to choose tokens, for any request.

    Args:
        tokenizer: of the model.
        limits: of the model.
        end_token_ids: that end a completion.
    """

    def __init__(self, tokenizer: Tokenizer, limits: Limits, end_token_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.limits = limits
        self.end_token_ids = end_token_ids
        self.constraints = Constraints(tokenizer, end_token_ids)

    def score(self, tokens: Sequence[int], logits: NDArray[np.float32]) -> list[float]:
        """How likely a text is behind a prompt.

        Args:
            tokens: of the text.
            logits: behind the prompt and behind each token; shape ``(tokens + 1, vocab_size)``.

        Returns:
            The log-probability of each token, and that of an end behind them.
        """
        known = [log_softmax(each) for each in logits]
        behind = [float(each[token_id]) for each, token_id in zip(known, tokens, strict=False)]
        return [*behind, self.end_log_probability(known[-1])]

    def end_log_probability(self, known: NDArray[np.float64]) -> float:
        """How likely it is that a completion ends, by all tokens' log-probabilities."""
        return float(np.logaddexp.reduce(known[sorted(self.end_token_ids)]))

    def chooser(self, request: Request) -> "TokenChooser":
        """For a request that the limits have not refused."""
        return TokenChooser(self, request)


def find_bias(tokenizer: Tokenizer, params: GenerationParams) -> dict[int, float]:
    """What is added to the logits of which tokens.

    Raises:
        InvalidParameterError: a text is no token of the model.
    """
    found: dict[int, float] = {}
    for number, (text, bias) in enumerate(params.logit_bias, start=1):
        token_ids = tokenizer.single_tokens(text)
        if not token_ids:
            raise InvalidParameterError(f"text {number} of logit_bias is no token of the model")
        found |= dict.fromkeys(token_ids, bias)
    return found


class TokenChooser:
    """Chooses the tokens of one completion.

    Attributes:
        needs_logits: whether it chooses by all logits; else the likeliest token will do.
    """

    def __init__(self, rules: TokenRules, request: Request) -> None:
        params = request.params
        max_tokens = rules.limits.max_new_tokens(request)
        self._request = request
        self._params = params
        self._builder = CompletionBuilder(request, rules.tokenizer, rules.end_token_ids, max_tokens)
        self._end_token_ids = sorted(rules.end_token_ids)
        self._rng = np.random.default_rng(params.seed)
        self._count = 0
        self._log_probabilities: list[float] = []
        self._constraints = rules.constraints
        self._constraint: AnswerConstraint | None = None
        self._tokenizer = rules.tokenizer
        self._bias: dict[int, float] = {}
        # tokens of prompt and completion, where they are to be told from others
        self._seen = set(request.prompt_ids) if params.repetition_penalty != 1 else None
        self.needs_logits = not params.greedy or params.changes_logits

    def begin(self) -> list[int] | None:
        """The tokens that the completion has to begin with; None where it is over with them.

        Raises:
            InvalidParameterError: its constraint cannot be followed, or a text of logit_bias is no
                token of the model.
        """
        params = self._params
        self._bias = find_bias(self._tokenizer, params)
        if params.is_constrained:
            self._constraint = self._constraints.begin(Constraint.of(params))
        return self._take_forced()

    def take(self, logits: NDArray[np.float32]) -> list[int] | None:
        """Choose the next token; those that have to come behind it are taken with it.

        Args:
            logits: shape ``(vocab_size,)``; not changed.

        Returns:
            The tokens, which the model reads next; None where the completion is over.

        Raises:
            ValueError: the logits are not numbers, or the answer is too complex for its
                constraint.
        """
        return self._take(*choose_token(self._allowed(logits), self._params, self._rng))

    def take_best(self, token_id: int, log_probability: float) -> list[int] | None:
        """As :meth:`take`, by the likeliest token alone, where no logits are needed.

        Raises:
            ValueError: the log-probability is not a number.
        """
        if not math.isfinite(log_probability):
            raise ValueError("the model's logits are not finite numbers")
        return self._take(token_id, log_probability)

    def completion(self) -> Completion:
        """The finished completion."""
        if self._builder.is_cut and self._constraint and not self._constraint.is_whole:
            return Completion.failed(
                RowErrorCode.ANSWER_CUT,
                f"the answer is not whole after {self._count} tokens: give more max_tokens",
                prompt_tokens=len(self._request.prompt_ids),
            )
        return self._builder.build(self._log_probabilities if self._params.logprobs else ())

    def _allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits by which a token is chosen."""
        if self._seen is not None:
            logits = logits.copy()
            seen = np.fromiter(self._seen, np.intp, len(self._seen))
            penalty = np.float32(self._params.repetition_penalty)
            logits[seen] = np.where(
                logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty
            )
        if self._bias:
            logits = logits.copy()
            for token_id, bias in self._bias.items():
                logits[token_id] += np.float32(bias)
        if self._constraint is not None:
            return np.where(self._constraint.allowed(len(logits)), logits, np.float32(-np.inf))
        if self._count < self._params.min_tokens:
            logits = logits.copy()
            logits[self._end_token_ids] = -np.inf
        return logits

    def _take(self, token_id: int, log_probability: float) -> list[int] | None:
        if not self._add(token_id, log_probability):
            return None
        forced = self._take_forced()
        return None if forced is None else [token_id, *forced]

    def _take_forced(self) -> list[int] | None:
        """Take what has to come next; None where that ends the completion."""
        if self._constraint is None:
            return []
        forced = [] if self._constraint.is_over else self._constraint.forced()
        for token_id in forced:
            if not self._add(token_id, 0.0):
                return None
        if self._constraint.is_over:
            self._builder.finish()
            return None
        return forced

    def _add(self, token_id: int, log_probability: float) -> bool:
        """Add a token; returns whether the completion goes on."""
        self._log_probabilities.append(log_probability)
        self._count += 1
        goes_on = self._builder.add(token_id)
        if self._constraint is not None and token_id not in self._end_token_ids:
            self._constraint.accept(token_id)
        if self._seen is not None:
            self._seen.add(token_id)
        return goes_on
