"""The options of jobs, as the command line takes them."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import StrEnum
from typing import Annotated, Any, get_args, get_type_hints

import typer

from phi3_batch.contract import ChoicesBy
from phi3_batch.options import Help, JobOptions, WriteMode

# typer makes choices of an enumeration
_ENUMS: dict[Any, Any] = {
    kind: StrEnum("_Choice", get_args(kind)) for kind in (WriteMode, ChoicesBy)
}


def takes(kind: type[JobOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, whose first parameter they are, an option for each field of these options."""

    def derive(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(kind)
        own = list(inspect.signature(command).parameters.values())[1:]
        names = [each.name for each in fields(kind)]

        def run(**values: Any) -> None:
            asked = {name: values.pop(name) for name in names}
            plain = {
                name: value.value for name, value in asked.items() if isinstance(value, StrEnum)
            }
            command(kind(**asked | plain), **values)

        derived = [
            _parameter(each.name, hints[each.name], each.default, each.metadata["help"])
            for each in fields(kind)
        ]
        derived.sort(key=lambda each: each.default is not inspect.Parameter.empty)
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        only = inspect.Parameter.KEYWORD_ONLY
        parameters = [*derived, *(each.replace(kind=only) for each in own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return derive


def help_of(name: str) -> str:
    """The help text of an option."""
    [text] = [each.metadata["help"].text for each in fields(JobOptions) if each.name == name]
    return str(text)


def _parameter(name: str, hint: Any, default: Any, of: Help) -> inspect.Parameter:
    kind: Any = of.cli_type or hint
    for literal, enum in _ENUMS.items():
        if hint == literal:
            kind, default = enum, enum(default)
        elif hint == literal | None:
            kind = enum | None
    flag = of.flag or f"--{name.replace('_', '-')}"
    option = typer.Option(
        flag,
        help=of.text,
        metavar=of.metavar,
        min=of.minimum,
        show_default=default is not MISSING,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, option],
    )
