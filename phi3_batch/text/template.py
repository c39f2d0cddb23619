r"""Phi-3's chat template, straight from messages to token ids.

Source of the format: the ``chat_template`` in the tokenizer_config.json of the published
microsoft/Phi-3-mini-4k-instruct, ``<|role|>\n`` content ``<|end|>\n`` for each message and
``<|assistant|>\n`` at the end.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from phi3_batch.errors import InvalidModelError
from phi3_batch.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

_ROLE_TOKENS = {role: f"<|{role}|>" for role in ROLES}
_END_TOKEN = "<|end|>"  # noqa: S105  # no password
CHAT_TOKENS = (*_ROLE_TOKENS.values(), _END_TOKEN)


class Message(NamedTuple):
    """One turn of a chat."""

    role: Role
    content: str


def missing_tokens(tokenizer: Tokenizer) -> list[str]:
    """The control tokens of the format that a tokenizer lacks."""
    return [token for token in CHAT_TOKENS if token not in tokenizer.control_tokens]


class ChatTemplate:
    """Encodes chats for one tokenizer.

    Args:
        tokenizer: of a Phi-3 model.
        newlines: with the line feeds of the published template, or in the compact form
            (``<|user|>Hi<|end|><|assistant|>``) that many examples use. The tokenizers of
            Phi-3-mini drop white space after a control token, and so give the same ids for both.

    Raises:
        InvalidModelError: the tokenizer lacks control tokens of the format.
    """

    def __init__(self, tokenizer: Tokenizer, *, newlines: bool = True) -> None:
        if missing := missing_tokens(tokenizer):
            raise InvalidModelError(
                f"the tokenizer lacks {', '.join(missing)} of Phi-3's chat format"
            )
        self._tokenizer = tokenizer
        self._newline = "\n" if newlines else ""
        # what the tokenizer puts before any text: `<s>` in the first builds of Phi-3-mini, whose
        # templates have it too, and nothing in later ones
        self._opening = tokenizer.encode_prompt("")

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Encode a chat, with the opening of the assistant's answer at its end.

        Control tokens come from the template alone: content that spells one is encoded as
        ordinary characters.
        """
        ids = list(self._opening)
        for message in messages:
            ids += self._encode_after(_ROLE_TOKENS[message.role], message.content)
            ids += self._encode_after(_END_TOKEN, "")
        ids += self._encode_after(_ROLE_TOKENS["assistant"], "")
        return ids

    def _encode_after(self, token_name: str, content: str) -> list[int]:
        token = self._tokenizer.control_tokens[token_name]
        text = self._newline + content
        if token.strips_following_space:
            text = text.lstrip()
        return [token.id, *self._tokenizer.encode_content(text)]
