"""Text to token ids and back: tokenizer, templates, constraints, and what text is refused."""

from phi3_batch.text.checks import (
    find_character_error,
    find_length_error,
    find_text_error,
    is_null,
)
from phi3_batch.text.constraints import AnswerConstraint, Constraint, Constraints
from phi3_batch.text.template import ROLES, ChatTemplate, Message, RefusedChatError
from phi3_batch.text.tokenizer import TextStream, Tokenizer

__all__ = [
    "ROLES",
    "AnswerConstraint",
    "ChatTemplate",
    "Constraint",
    "Constraints",
    "Message",
    "RefusedChatError",
    "TextStream",
    "Tokenizer",
    "find_character_error",
    "find_length_error",
    "find_text_error",
    "is_null",
]
