"""Text to token ids and back: the tokenizer, Phi-3's chat template, and what text is refused."""

from phi3_batch.text.checks import (
    find_character_error,
    find_length_error,
    find_text_error,
    is_null,
)
from phi3_batch.text.template import CHAT_TOKENS, ROLES, ChatTemplate, Message, missing_tokens
from phi3_batch.text.tokenizer import TextStream, Tokenizer

__all__ = [
    "CHAT_TOKENS",
    "ROLES",
    "ChatTemplate",
    "Message",
    "TextStream",
    "Tokenizer",
    "find_character_error",
    "find_length_error",
    "find_text_error",
    "is_null",
    "missing_tokens",
]
