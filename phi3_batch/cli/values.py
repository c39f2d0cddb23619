"""The values of options and arguments, looked at before a command does anything.

What a type cannot say is said here for every option of every command: a number that no one could
mean, bytes that are no text, a name that is blank or has a line break in it, a path that is none.
"""

import math
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from typer.core import TyperCommand

from phi3_batch.errors import InvalidParameterError

# What goes to the model: any text. All other strings name something.
_FREE_TEXTS = frozenset({"stop", "system", "user_template"})
_MAY_BE_EMPTY = frozenset({"keep"})  # which keeps no column then
# What may be a path, beside what always is one.
_PERHAPS_PATHS = frozenset({"by_reference", "checkpoint", "input", "model", "output"})
# Spark's, MLflow's and the runtimes' whole numbers have 64 bits.
_LARGEST = 2**63 - 1
_LINE_BREAKERS = ("Cc", "Zl", "Zp")  # control characters, and separators of lines and paragraphs


class CheckedCommand(TyperCommand):
    """A command that runs when each of its values has been looked at."""

    def invoke(self, ctx: Any) -> Any:
        """Check the values, and run the command.

        Raises:
            InvalidParameterError: a value is none.
        """
        for param in self.params:
            name = param.name or ""
            shown = param.opts[0] if param.opts[0].startswith("-") else name.upper()
            for value in _each(ctx.params.get(name)):
                check_value(name, shown, value)
        return super().invoke(ctx)


def check_value(name: str, shown: str, value: object) -> None:
    """Look at one value.

    Args:
        name: of the parameter.
        shown: what the user calls it, such as ``--max-hours``.
        value: of the type that the command declares. Not quoted: it may be text for a model.

    Raises:
        InvalidParameterError: the value is none.
    """
    problem = None
    if isinstance(value, float):
        problem = None if math.isfinite(value) else f"must be a number, not {value}"
    elif isinstance(value, int):
        problem = None if abs(value) <= _LARGEST else "is too large a number"
    elif isinstance(value, str | Path):
        problem = _problem_of_text(str(value))
        may_be_anything = name in _FREE_TEXTS or (name in _MAY_BE_EMPTY and not value)
        if not problem and not may_be_anything:
            problem = _problem_of_name(str(value))
        if not problem and (isinstance(value, Path) or name in _PERHAPS_PATHS):
            problem = _problem_of_path(str(value))
    if problem:
        raise InvalidParameterError(f"{shown} {problem}")


def _each(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else (value,)


def _problem_of_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python has kept bytes of the command line that it could not read
        return "is not valid UTF-8"
    return "has a null character in it" if "\0" in text else None


def _problem_of_name(text: str) -> str | None:
    if not text.strip():
        return "is empty"
    if any(unicodedata.category(character) in _LINE_BREAKERS for character in text):
        return "has a line break or another control character in it"
    return None


def _problem_of_path(text: str) -> str | None:
    try:
        if not urlsplit(text).scheme:  # else it is no path of this machine
            os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        return None  # the command knows whether it has to be there
    except OSError as error:  # it is too long, or a loop of links, or nobody's business
        return f"cannot be a path here: {error.strerror}"
    except ValueError as error:
        return f"is not a URI: {error}"
    return None
