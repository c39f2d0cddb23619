"""Functions that take options as keyword arguments, typed by the options' own dataclass."""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from phi3_batch.options import JobOptions, RequestOptions

P = ParamSpec("P")
First = TypeVar("First")
Second = TypeVar("Second")
Options = TypeVar("Options")
Result = TypeVar("Result")

_FLAGS = {f"--{each.name.replace('_', '-')}": each.name for each in fields(JobOptions)} | {
    each.metadata["help"].flag: each.name
    for each in fields(JobOptions)
    if each.metadata["help"].flag
}


def takes(
    kind: Callable[P, Options],
) -> Callable[[Callable[[First, Options], Result]], Callable[Concatenate[First, P], Result]]:
    """Let a function of something and options take the options as keyword arguments."""
    return lambda function: _with_keywords(function, kind)


def takes_after_two(
    kind: Callable[P, Options],
) -> Callable[
    [Callable[[First, Second, Options], Result]], Callable[Concatenate[First, Second, P], Result]
]:
    """The same of a function of two things and options."""
    return lambda function: _with_keywords(function, kind)


def _with_keywords(function: Callable[..., Any], kind: Any) -> Callable[..., Any]:
    leading = list(inspect.signature(function).parameters.values())[:-1]
    signature = inspect.Signature(
        [*leading, *inspect.signature(kind).parameters.values()],
        return_annotation=inspect.signature(function).return_annotation,
    )

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None
        first = [bound.pop(each.name) for each in leading]
        return function(*first, kind(**bound))

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{_describe(kind)}"
    return call


def _describe(kind: type[RequestOptions]) -> str:
    lines = [f"    {each.name}: {each.metadata['help'].text}" for each in fields(kind)]
    return re.sub(r"--[a-z-]+", lambda flag: _FLAGS[flag[0]], "\n".join(lines))
