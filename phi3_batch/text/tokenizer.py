"""The tokenizer of a model folder, on the ``tokenizers`` library.

There are two ways to encode, and the difference is a matter of safety. In a raw prompt, control
tokens such as ``<|end|>`` mean what they say. In the content of a message they are the author's
characters, and must never end a turn or open another (prompt injection); so contents are encoded
by a second tokenizer that has the same vocabulary and knows no control token.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers

from phi3_batch.errors import InvalidModelError


class ControlToken(NamedTuple):
    """An added token: its id, and whether it swallows the white space that follows it."""

    id: int
    strips_following_space: bool


class Tokenizer:
    """Text ↔ token ids for one model.

    Args:
        path: a ``tokenizer.json`` as the ``tokenizers`` library writes it.

    Raises:
        InvalidModelError: the file is not such a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        try:
            definition = json.loads(path.read_text(encoding="utf-8"))
            self._raw = tokenizers.Tokenizer.from_str(json.dumps(definition))
            added_tokens = definition["added_tokens"]
            self._plain = tokenizers.Tokenizer.from_str(
                json.dumps(definition | {"added_tokens": []})
            )
        except Exception as error:  # the library raises bare Exception for a bad definition
            raise InvalidModelError(f"{path} is not a tokenizer.json: {error}") from error
        self._control_tokens = {
            token["content"]: ControlToken(token["id"], bool(token["rstrip"]))
            for token in added_tokens
        }

    @property
    def vocab_size(self) -> int:
        """Tokens of ordinary text have ids below it; control tokens come on top."""
        vocabulary = self._raw.get_vocab(with_added_tokens=False)
        return max(vocabulary.values(), default=-1) + 1

    @property
    def control_tokens(self) -> Mapping[str, ControlToken]:
        """The added tokens, by what they are spelled as."""
        return self._control_tokens

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a raw prompt: control tokens in it are control tokens."""
        return self._raw.encode(text).ids

    def encode_content(self, text: str) -> list[int]:
        """Encode the content of a message: whatever it spells is ordinary characters."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Turn generated ids into text, without control tokens."""
        return _decode(self._raw, ids)

    def stream(self) -> "TextStream":
        """Start decoding a completion token by token."""
        return TextStream(self._raw)


class TextStream:
    """The text of a completion while it grows.

    A character may be spread over several tokens, three or four for an emoji in bytes. It joins
    the text with the last of them, so that the text never shows a broken character that the next
    token mends.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Tokens from `_shown` on have not joined the text; those from `_before` to there have, and
        # are decoded with them, for what a token looks like depends on the one before it.
        self._before = self._shown = 0
        self.text = ""

    def append(self, token_id: int) -> str:
        """Add a token; returns the characters that it completed, which may be none."""
        self._ids.append(token_id)
        known = _decode(self._tokenizer, self._ids[self._before : self._shown])
        text = _decode(self._tokenizer, self._ids[self._before :])
        if len(text) <= len(known) or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        piece = text[len(known) :]
        self._before, self._shown = self._shown, len(self._ids)
        self.text += piece
        return piece


def _decode(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> str:
    try:
        return tokenizer.decode(list(ids), skip_special_tokens=True)
    except Exception:  # bare, with a message that may quote the text: people's data
        raise ValueError(f"{len(ids)} tokens cannot be decoded") from None
