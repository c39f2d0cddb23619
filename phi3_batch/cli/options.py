"""The options of ``score`` and ``plan``, declared once, and what they come to."""

import csv
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from phi3_batch.errors import InvalidParameterError

if TYPE_CHECKING:  # the commands import what they need: --help must not wait for pyspark
    from phi3_batch.scoring.plan import ScoreOptions


class Mode(StrEnum):
    """What happens when the output table has other rows already."""

    error = "error"
    append = "append"
    overwrite = "overwrite"


Model = Annotated[
    str, typer.Option(help="MLflow URI, such as models:/NAME@ALIAS.", show_default=False)
]
Input = Annotated[
    str,
    typer.Option(
        help="Delta table by name or path, or a .jsonl, .csv or .parquet file.",
        metavar="TABLE_OR_PATH",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Option(
        help="Delta table to write, by name or path.",
        metavar="TABLE_OR_PATH",
        show_default=False,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Column of the prompts or messages; the one called prompt, or messages, by default,"
        " as the model wants."
    ),
]
UserTemplateText = Annotated[
    str | None,
    typer.Option(
        help="Make messages of plain columns: a text with columns' names in braces.",
        metavar="'… {COLUMN} …'",
    ),
]
System = Annotated[
    str | None,
    typer.Option(help="System message of the messages so made.", metavar="TEXT"),
]
Keep = Annotated[
    str | None,
    typer.Option(help="Input columns to keep in the output; all by default.", metavar="A,B,…"),
]
KeepResponse = Annotated[
    bool,
    typer.Option("--keep-response", help="Keep the whole chat completion, in a column response."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Score this many rows at most, a sample that is the same each time.",
        min=1,
        metavar="ROWS",
    ),
]
OutputMode = Annotated[Mode, typer.Option(help="What to do when the output has another run.")]
Ids = Annotated[
    str | None,
    typer.Option(
        "--id",
        help="Columns that name a row: score only what is new, or has changed, since the output"
        " was written.",
        metavar="A,B,…",
    ),
]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="With --id, score rows with an error again.")
]
DeleteRemoved = Annotated[
    bool,
    typer.Option(
        "--delete-removed", help="With --id, delete output rows that the input has no longer."
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate a row.", metavar="N")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy; above 0 samples.", metavar="X")
]
TopP = Annotated[float | None, typer.Option(help="Sample from this probability mass.", metavar="X")]
TopK = Annotated[
    int | None, typer.Option(help="Sample from the K likeliest tokens; 0 is all.", metavar="K")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="String that ends a completion; may be given again.", metavar="TEXT"),
]
Seed = Annotated[int | None, typer.Option(help="Of the random numbers of sampling.", metavar="N")]
Choices = Annotated[
    int | None, typer.Option("--n", help="Choices of a chat; see --keep-response.", metavar="N")
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        help="A chat's own temperature, max_tokens, stop or n, from a column; may be given again.",
        metavar="NAME=col:COLUMN",
    ),
]


def score_options(
    *,
    model: str,
    input: str,
    output: str,
    column: str | None,
    user_template: str | None,
    system: str | None,
    keep: str | None,
    keep_response: bool,
    limit: int | None,
    mode: Mode,
    ids: str | None,
    retry_errors: bool,
    delete_removed: bool,
    param: Sequence[str] | None,
    stop: Sequence[str] | None,
    **generation: float | None,
) -> "ScoreOptions":
    """What the user asked for.

    Raises:
        InvalidParameterError: a template, a list of columns or a ``--param`` cannot be read, or
            an option is out of range.
    """
    from phi3_batch.scoring.plan import ScoreOptions
    from phi3_batch.scoring.source import Source
    from phi3_batch.scoring.tables import Location
    from phi3_batch.scoring.user_template import UserTemplate

    given = generation | {"stop": tuple(stop) if stop else None}
    return ScoreOptions(
        model=model,
        input=Location(input),
        output=Location(output),
        source=Source(
            column=column,
            system=system,
            user_template=None if user_template is None else UserTemplate.parse(user_template),
            param_columns=_param_columns(param or []),
        ),
        keep=_names("--keep", keep),
        keep_response=keep_response,
        limit=limit,
        mode=mode.value,
        ids=_names("--id", ids) or (),
        retry_errors=retry_errors,
        delete_removed=delete_removed,
        generation={name: value for name, value in given.items() if value is not None},
    )


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    from phi3_batch.scoring.columns import split_names

    if text is None:
        return None
    try:
        names = split_names(text)
    except csv.Error as error:
        raise InvalidParameterError(
            f"{option} {text} cannot be read ({error}); a name with a comma in it goes between"
            " backticks"
        ) from error
    if not all(name.strip() for name in names):
        raise InvalidParameterError(f"{option} {text} has no column's name beside a comma")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise InvalidParameterError(f"{option} names column {doubled[0]!r} twice")
    return names


def _param_columns(given: Sequence[str]) -> dict[str, str]:
    """``["temperature=col:warmth"]`` → ``{"temperature": "warmth"}``."""
    found = {}
    for text in given:
        name, _, column = text.partition("=col:")
        if not name or not column:
            raise InvalidParameterError(
                f"--param {text} is not of the form NAME=col:COLUMN; a value for all rows has an"
                " option of its own, such as --temperature"
            )
        if name in found:
            raise InvalidParameterError(f"--param {name} is given twice")
        found[name] = column
    return found
