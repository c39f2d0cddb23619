r"""A model's own chat template, from messages to token ids.

A template is Jinja, as transformers has it: the ``chat_template`` of a model folder. Here it is
rendered with marks in place of the contents. Control tokens are those that the template itself
spells; contents come in afterwards, as ordinary characters. So no content ends a turn or opens
another, whatever it spells and whatever the template does with it.

Source of what a template may use: "Chat templates" in the documentation of transformers, and
``transformers.utils.chat_template_utils``.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Literal, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from phi3_batch.errors import InvalidModelError
from phi3_batch.text.tokenizer import Tokenizer
from phi3_batch.words import first_line

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

# As the tokenizer_config.json of the published microsoft/Phi-3-mini-4k-instruct has it, after what
# the tokenizer puts before any text: `<s>` in the first builds, and nothing in later ones.
PHI3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    r"{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    r"{% endfor %}{{ '<|assistant|>\n' }}"
)
_PHI3_TOKENS = (*(f"<|{role}|>" for role in ROLES), "<|end|>")
# how control tokens are spelled, by Phi-3 and most others
_LIKE_A_TOKEN = re.compile(r"<\|\w+\|>")

# in place of a content: characters for private use, which no template spells
_MARK = "\ue000{}\ue001"
_MARKED = re.compile("\ue000([0-9]+)\ue001")


class Message(NamedTuple):
    """One turn of a chat."""

    role: Role
    content: str


# what every template takes, and what most do
_SIMPLEST = (Message("user", "1"), Message("assistant", "2"), Message("user", "3"))
_WITH_SYSTEM = (Message("system", "0"), *_SIMPLEST)


class RefusedChatError(Exception):
    """A chat that the model's template does not take; says why, without the chat's contents."""


class ChatTemplate:
    """Encodes chats for one model.

    Args:
        tokenizer: of the model.
        source: the template, in Jinja.
        special_tokens: what it may call ``bos_token``, ``eos_token`` and the like.

    Raises:
        InvalidModelError: the template cannot be read, or refuses the simplest of chats.
    """

    def __init__(
        self, tokenizer: Tokenizer, source: str, special_tokens: Mapping[str, str]
    ) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        longest_first = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        try:
            self._template = _environment().from_string(source)
            self.encode(_SIMPLEST)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidModelError(
                f"its chat template is not Jinja (line {error.lineno}: {error.message})"
            ) from error
        except RefusedChatError as error:
            raise InvalidModelError(f"its chat template does not take a chat: {error}") from error

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, source: str | None, special_tokens: Mapping[str, str]
    ) -> "ChatTemplate":
        """The template of a model, which is Phi-3's where it has none.

        It is Phi-3's as well where its own is an older form of that: the first builds of
        Phi-3-mini have one that leaves out system messages, for which the format has a place.

        Args:
            tokenizer: of the model.
            source: its own template; None where it has none.
            special_tokens: as above.

        Raises:
            InvalidModelError: as above; or the tokenizer lacks control tokens that the template
                spells, which a content could spell as well.
        """
        missing = [token for token in _PHI3_TOKENS if token not in tokenizer.control_tokens]
        if missing and source is None:
            raise InvalidModelError(
                "it has no chat template, and its tokenizer lacks"
                f" {', '.join(missing)} of Phi-3's chat format"
            )
        phi3 = None if missing else cls._of_phi3(tokenizer)
        if source is None:
            assert phi3 is not None
            return phi3
        own = cls(tokenizer, source, special_tokens)
        own._require_tokens()
        return phi3 if phi3 and own._is_older_than(phi3) else own

    @classmethod
    def _of_phi3(cls, tokenizer: Tokenizer) -> "ChatTemplate":
        names = {token.id: name for name, token in tokenizer.control_tokens.items()}
        begin = "".join(names.get(token_id, "") for token_id in tokenizer.encode_prompt(""))
        return cls(tokenizer, PHI3_TEMPLATE, {"bos_token": begin})

    def _is_older_than(self, other: "ChatTemplate") -> bool:
        """Whether the other gives the same turns, of all that this one takes."""
        opening = self._tokenizer.encode_prompt("")

        def turns(ids: list[int]) -> list[int]:
            return ids[len(opening) :] if ids[: len(opening)] == opening else ids

        for chat in (_SIMPLEST, _WITH_SYSTEM):
            with contextlib.suppress(RefusedChatError):
                if turns(self.encode(chat)) != turns(other.encode(chat)):
                    return False
        return True

    def _require_tokens(self) -> None:
        spelled = dict.fromkeys(_LIKE_A_TOKEN.findall("".join(self._renderings())))
        if missing := [name for name in spelled if name not in self._tokenizer.control_tokens]:
            raise InvalidModelError(
                f"its tokenizer lacks {', '.join(missing)} of its chat template"
            )

    def _renderings(self) -> Iterator[str]:
        for chat in (_SIMPLEST, _WITH_SYSTEM):
            with contextlib.suppress(RefusedChatError):  # not every template knows the system's
                yield self._render(chat)

    def control_tokens(self) -> dict[str, int]:
        """The control tokens that it puts around the messages of each role that it takes."""
        names = self._spelled.findall("".join(self._renderings()))
        return {name: self._tokenizer.control_tokens[name].id for name in names}

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Encode a chat, with the opening of the assistant's answer at its end.

        Raises:
            RefusedChatError: the template raises an error, or leaves out a message.
        """
        ids: list[int] = []
        swallows = False  # the control token before, the white space after it
        for text, name in self._pieces(self._render(messages), messages):
            token = self._tokenizer.control_tokens[name] if name else None
            text = text.lstrip() if swallows else text
            if token and token.strips_preceding_space:
                text = text.rstrip()
            if text:
                ids += self._tokenizer.encode_content(text)
            if token:
                ids.append(token.id)
                swallows = token.strips_following_space
        return ids

    def _render(self, messages: Sequence[Message]) -> str:
        """The chat as text, with marks for its contents.

        White space around a content stays around its mark, for a template may trim it; one that
        is nothing but white space stays as it is.
        """
        marked = []
        for index, (role, content) in enumerate(messages):
            core = content.strip()
            before, _, after = content.partition(core) if core else (content, "", "")
            mark = _MARK.format(index) if core else ""
            marked.append({"role": role, "content": before + mark + after})
        try:
            rendered = self._template.render(
                self._special_tokens, messages=marked, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise RefusedChatError(
                f"the model's chat template refuses it ({first_line(error)})"
            ) from error
        except Exception as error:  # whatever an expression of it comes to
            raise RefusedChatError(
                f"the model's chat template fails on it ({type(error).__name__})"
            ) from error
        there = {int(index) for index in _MARKED.findall(rendered)}
        for index, (role, content) in enumerate(messages):
            if content.strip() and index not in there:
                raise RefusedChatError(
                    f"the model's chat template leaves out message {index + 1}, the {role}'s"
                )
        return rendered

    def _pieces(
        self, rendered: str, messages: Sequence[Message]
    ) -> Iterator[tuple[str, str | None]]:
        """Ordinary text and the control token after it; None after the last."""
        text = ""
        # text of the template, index of a content, text, index, ..., text
        for place, part in enumerate(_MARKED.split(rendered)):
            if place % 2:
                text += messages[int(part)].content.strip()
                continue
            start = 0
            for found in self._spelled.finditer(part):
                yield text + part[start : found.start()], found.group()
                text, start = "", found.end()
            text += part[start:]
        yield text, None


class _Generation(Extension):
    """``{% generation %}`` … ``{% endgeneration %}``, which says what training is to learn."""

    tags = {"generation"}  # noqa: RUF012  # as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    # strftime_now is left out: a prompt that changes with the day has no place in a batch
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja's is for HTML
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
