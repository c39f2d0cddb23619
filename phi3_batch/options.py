"""What may be said of a job: each option once, with its help text.

The command line and its documentation are derived from this; whoever calls from Python fills it in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

WriteMode = Literal["error", "append", "overwrite"]


@dataclass(frozen=True, slots=True)
class Help:
    """What the command line says of an option, and how it takes it.

    Attributes:
        text: the help.
        flag: where it is not the field's name.
        metavar: what stands for the value.
        minimum: of a number.
        cli_type: what the command line takes, where Python takes more.
    """

    text: str
    flag: str | None = None
    metavar: str | None = None
    minimum: int | None = None
    cli_type: Any = None


def _option(text: str, *, default: Any = None, **how: Any) -> Any:
    return field(default=default, metadata={"help": Help(text, **how)})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """A job as its user describes it; nothing of it has been looked at yet.

    A generation parameter that is not given has the model's own default. Models of prompts take
    all of them but ``n``; models of chats ``max_tokens``, ``temperature``, ``stop`` and ``n``.
    """

    model: str = _option("MLflow URI, such as models:/NAME@ALIAS.", default=MISSING)
    input: str = _option(
        "Delta table by name or path, or a .jsonl, .csv or .parquet file.",
        default=MISSING,
        metavar="TABLE_OR_PATH",
    )
    output: str = _option(
        "Delta table to write, by name or path.", default=MISSING, metavar="TABLE_OR_PATH"
    )
    column: str | None = _option(
        "Column of the prompts or messages; the one called prompt, or messages, by default, as the"
        " model wants."
    )
    user_template: str | None = _option(
        "Make messages of plain columns: a text with columns' names in braces.",
        metavar="'… {COLUMN} …'",
    )
    system: str | None = _option("System message of the messages so made.", metavar="TEXT")
    keep: str | Sequence[str] | None = _option(
        "Input columns to keep in the output; all by default.",
        metavar="A,B,…",
        cli_type=str | None,
    )
    keep_response: bool = _option(
        "Keep the whole chat completion, in a column response.", default=False
    )
    limit: int | None = _option(
        "Score this many rows at most, a sample that is the same each time.",
        minimum=1,
        metavar="ROWS",
    )
    mode: WriteMode = field(
        default="error", metadata={"help": Help("What to do when the output has another run.")}
    )
    ids: str | Sequence[str] | None = _option(
        "Columns that name a row: score only what is new, or has changed, since the output was"
        " written.",
        flag="--id",
        metavar="A,B,…",
        cli_type=str | None,
    )
    retry_errors: bool = _option("With --id, score rows with an error again.", default=False)
    delete_removed: bool = _option(
        "With --id, delete output rows that are no longer in the input.", default=False
    )
    max_tokens: int | None = _option("Most tokens to generate a row.", metavar="N")
    temperature: float | None = _option("0 is greedy; above 0 samples.", metavar="X")
    top_p: float | None = _option("Sample from this probability mass.", metavar="X")
    top_k: int | None = _option("Sample from the K likeliest tokens; 0 is all.", metavar="K")
    stop: Sequence[str] | None = _option(
        "String that ends a completion; may be given again.",
        metavar="TEXT",
        cli_type=list[str] | None,
    )
    seed: int | None = _option("Random seed for sampling.", metavar="N")
    n: int | None = _option("Choices of a chat; see --keep-response.", metavar="N")
    param: Mapping[str, str] | Sequence[str] | None = _option(
        "A chat's own temperature, max_tokens, stop or n, from a column; may be given again.",
        metavar="NAME=col:COLUMN",
        cli_type=list[str] | None,
    )


# Those that go to the model as they are.
GENERATION = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n")
