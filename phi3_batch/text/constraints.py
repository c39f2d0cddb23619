"""What an answer may be: JSON of a schema, a text of a regular expression, one of some choices.

The package ``llguidance`` says which tokens may come next; engines know nothing of schemas. Control
tokens never may, but for those that end an answer, where it is whole.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from phi3_batch.errors import InvalidParameterError
from phi3_batch.generation import GenerationParams
from phi3_batch.text.tokenizer import Tokenizer

# As Python writes JSON. White space is not left to a model, which may write it without end.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")  # in our own grammar
_MOST_KEPT = 64  # compiled grammars of an engine: a serving process may see many


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer may be: one of the three.

    Attributes:
        json_schema: a JSON schema, as text.
        regex: what the whole answer matches, in the syntax of Rust's package ``regex``.
        choices: of which the answer is one.
    """

    json_schema: str = ""
    regex: str = ""
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, params: GenerationParams) -> "Constraint":
        """That of a request."""
        return cls(params.json_schema, params.regex, params.choices)

    def check(self) -> None:
        """See whether answers can be had by it.

        Raises:
            InvalidParameterError: it cannot be read, or has something that is not supported.
        """
        failed, messages = LLMatcher.validate_grammar_with_warnings(self.grammar())
        if failed:
            raise InvalidParameterError(self.reason(messages[0]))

    def grammar(self, *, space: bool = False) -> str:
        """The constraint as llguidance takes it.

        Args:
            space: whether a space may come before the answer.

        Raises:
            InvalidParameterError: the schema is no JSON object.
        """
        if self.regex:
            pattern = f"(?:{self.regex})"
            return str(LLMatcher.grammar_from_regex(f" ?{pattern}" if space else pattern))
        if self.choices:
            answer = " | ".join(json.dumps(text, ensure_ascii=False) for text in self.choices)
        else:
            answer = f"%json {json.dumps({**self._schema(), 'x-guidance': _SPACING})}"
        begin = '" "? ' if space else ""
        return str(LLMatcher.grammar_from_lark(f"start: {begin}answer\nanswer: {answer}"))

    def reason(self, message: str) -> str:
        """What llguidance has said of it, in one line."""
        # of a regular expression, what is wrong stands behind a picture of where
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        said = next((line[7:] for line in lines if line.startswith("error: ")), lines[0])
        said = _PLACE.sub("", said)
        name = "json_schema" if self.json_schema else "regex" if self.regex else "choices"
        return f"{name} cannot be followed: {said}"

    def _schema(self) -> dict[str, object]:
        try:
            schema = json.loads(self.json_schema)
        except ValueError as error:
            raise InvalidParameterError(f"json_schema is not JSON: {error}") from None
        if not isinstance(schema, dict):
            raise InvalidParameterError("json_schema must be a JSON object")
        return schema


class AnswerConstraint:
    """Which tokens may come next in one answer.

    Args:
        matcher: at the answer's beginning; used for no other.
        end_token_ids: that end an answer.
        others: tokens that end one by the matcher alone.
    """

    def __init__(
        self, matcher: LLMatcher, end_token_ids: Sequence[int], others: Sequence[int]
    ) -> None:
        self._matcher = matcher
        self._end_token_ids = end_token_ids
        self._others = others

    @property
    def is_whole(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_over(self) -> bool:
        """Whether the answer has to end here."""
        return bool(self._matcher.is_stopped())

    def allowed(self, count: int) -> NDArray[np.bool_]:
        """Which tokens may come next, those that end the answer among them.

        Args:
            count: of tokens that are asked for.

        Returns:
            Shape ``(count,)``.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        known = np.unpackbits(bits, bitorder="little")[:count]
        allowed = np.zeros(count, np.bool_)
        allowed[: len(known)] = known
        allowed[self._others] = False
        allowed[self._end_token_ids] = self.is_whole
        return allowed

    def forced(self) -> list[int]:
        """The tokens that come next, as far as no others may."""
        return list(self._matcher.compute_ff_tokens())

    def accept(self, token_id: int) -> None:
        """Take an allowed token.

        Raises:
            ValueError: there is too much that could follow.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():  # whose text may quote the answer
            raise ValueError("the constraint is too complex for an answer such as this")


class Constraints:
    """Constraints in the tokens of one model, each compiled once.

    Args:
        tokenizer: of the model.
        end_token_ids: of the model, that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, end_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_token_ids = sorted(end_token_ids)
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def begin(self, constraint: Constraint) -> AnswerConstraint:
        """The constraint of one answer, at its beginning.

        Raises:
            InvalidParameterError: it cannot be read, or has something that is not supported.
        """
        matcher = self._compiled.pop(constraint, None) or self._compile(constraint)
        self._compiled[constraint] = matcher
        if len(self._compiled) > _MOST_KEPT:
            self._compiled.popitem(last=False)
        assert self._tokens is not None
        others = [each for each in self._tokens.eos_tokens if each not in self._end_token_ids]
        return AnswerConstraint(matcher.deep_copy(), self._end_token_ids, others)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        if self._tokens is None:
            # a model may have one that its tokenizer does not know
            known = [each for each in self._end_token_ids if each < self._tokenizer.size]
            self._tokens = LLTokenizer(self._tokenizer.to_json(), eos_token=known or None)
        # what a decoder drops at the beginning is how a model may well begin
        grammar = constraint.grammar(space=self._tokenizer.drops_first_space)
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidParameterError(constraint.reason(matcher.get_error()))
        return matcher
