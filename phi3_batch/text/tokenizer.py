"""The tokenizer of a model folder, on the ``tokenizers`` library.

There are two ways to encode, and the difference is a matter of safety. In a raw prompt, control
tokens such as ``<|end|>`` mean what they say. In the content of a message they are the author's
characters, and must never end a turn or open another (prompt injection); so contents are encoded
by a second tokenizer that has the same vocabulary and knows no control token.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from phi3_batch.errors import InvalidModelError

# How much of a text is looked at in one go where only its length counts.
_PIECE = 65_536


class ControlToken(NamedTuple):
    """An added token: its id, and whether it swallows the white space around it."""

    id: int
    strips_preceding_space: bool
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
            self._plain = tokenizers.Tokenizer.from_str(json.dumps(_of_contents(definition)))
        except Exception as error:  # the library raises bare Exception for a bad definition
            raise InvalidModelError(f"{path} is not a tokenizer.json: {error}") from error
        self._control_tokens = {
            token["content"]: ControlToken(
                token["id"], bool(token["lstrip"]), bool(token["rstrip"])
            )
            for token in added_tokens
        }
        self.most_bytes_per_token = _most_bytes_per_token(definition, self._raw)

    @property
    def vocab_size(self) -> int:
        """Tokens of ordinary text have ids below it; control tokens come on top."""
        vocabulary = self._raw.get_vocab(with_added_tokens=False)
        return max(vocabulary.values(), default=-1) + 1

    @property
    def size(self) -> int:
        """All tokens have ids below it, control tokens too."""
        return max(self._raw.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def drops_first_space(self) -> bool:
        """Whether a text loses the space that it begins with when it is decoded."""
        ids = self.encode_content("a a")
        return "".join(self.decode([token_id]) for token_id in ids) != self.decode(ids)

    def single_tokens(self, text: str) -> list[int]:
        """The tokens that are this text, or this text after a space; empty where there is none."""
        spelled = (self.encode_content(each) for each in (text, f" {text}"))
        found = {ids[0] for ids in spelled if len(ids) == 1}
        inside_a_word = self._raw.token_to_id(text)
        if inside_a_word is not None and text not in self._control_tokens:
            found.add(inside_a_word)
        return sorted(found)

    def to_json(self) -> str:
        """The definition, as the ``tokenizers`` library writes it."""
        return self._raw.to_str()

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

    def is_beyond(self, texts: Iterable[str], tokens: int) -> bool:
        """Whether texts are surely more tokens than that, by their bytes alone.

        That is found without encoding them. White space does not count: a control token may
        swallow any amount of it.
        """
        if self.most_bytes_per_token is None:
            return False
        room = tokens * self.most_bytes_per_token
        for text in texts:
            for start in range(0, len(text), _PIECE):
                room -= len("".join(text[start : start + _PIECE].split()).encode())
                if room < 0:
                    return True
        return False

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


def _of_contents(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer without control tokens, for text that is never the first of a prompt."""
    pre_tokenizer = copy.deepcopy(definition.get("pre_tokenizer"))
    for step in _steps(pre_tokenizer, "pretokenizers"):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return {**definition, "added_tokens": [], "pre_tokenizer": pre_tokenizer}


def _most_bytes_per_token(
    definition: Mapping[str, Any], tokenizer: tokenizers.Tokenizer
) -> int | None:
    """The most bytes of a text, white space aside, that one token can stand for.

    None where there is no saying: where the tokenizer may drop characters, make the text shorter
    before it is split, or make one token of any number of unknown characters.
    """
    model, vocabulary = definition["model"], tokenizer.get_vocab(with_added_tokens=True)
    steps = _steps(definition.get("pre_tokenizer"), "pretokenizers")
    if any(step["type"] == "ByteLevel" for step in steps):
        knows_all = vocabulary.keys() >= set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    else:
        all_bytes = {f"<0x{byte:02X}>" for byte in range(256)}
        knows_all = bool(model.get("byte_fallback")) and vocabulary.keys() >= all_bytes
    whole = (
        model.get("type") == "BPE"
        and knows_all
        and all(map(_drops_nothing, steps))
        and all(map(_shortens_nothing, _steps(definition.get("normalizer"), "normalizers")))
    )
    # a token's own text is never shorter than what it stands for: "▁" for a space, "Ã" for a byte
    return max(len(token.encode()) for token in vocabulary) if whole else None


def _steps(step: Any, names: str) -> list[Any]:
    if step is None:
        return []
    return [each for one in step[names] for each in _steps(one, names)] if names in step else [step]


def _drops_nothing(step: Mapping[str, Any]) -> bool:
    kept = step["type"] == "Split" and step.get("behavior") != "Removed"
    return kept or step["type"] in ("ByteLevel", "Metaspace")


def _shortens_nothing(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        replaced: str | None = step["pattern"].get("String")
        return replaced is not None and len(replaced.encode()) <= len(step["content"].encode())
    return bool(step["type"] == "Prepend")


def _decode(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> str:
    try:
        return tokenizer.decode(list(ids), skip_special_tokens=True)
    except Exception:  # bare, with a message that may quote the text: people's data
        raise ValueError(f"{len(ids)} tokens cannot be decoded") from None
