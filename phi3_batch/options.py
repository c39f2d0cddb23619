"""What may be said of a job: each option once, with its help text.

The command line, the Python functions and their documentation are derived from this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from phi3_batch.contract import ChoicesBy
from phi3_batch.errors import InvalidParameterError

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
class RequestOptions:
    """What a model is asked for each row of a table, and what is kept beside its answer.

    A generation parameter that is not given has the model's own default. Models of prompts take
    all of them but ``n``.

    Raises:
        InvalidParameterError: a value is of the wrong type, or below its minimum.
    """

    column: str | None = _option(
        "Column of the prompts or messages. By default prompt, or messages for a chat model."
    )
    user_template: str | None = _option(
        "Build messages from columns: a text with column names in braces.",
        metavar="'… {COLUMN} …'",
    )
    system: str | None = _option("System message, with --user-template.", metavar="TEXT")
    keep: str | Sequence[str] | None = _option(
        "Input columns to keep in the output. By default all.",
        metavar="A,B,…",
        cli_type=str | None,
    )
    keep_response: bool = _option(
        "Keep the whole chat completion in a column named response.", default=False
    )
    max_tokens: int | None = _option("Maximum number of tokens to generate for a row.", metavar="N")
    temperature: float | None = _option("0 decodes greedily; higher values sample.", metavar="X")
    top_p: float | None = _option(
        "Sample from the most likely tokens with this total probability.", metavar="X"
    )
    top_k: int | None = _option("Sample from the K most likely tokens; 0 means all.", metavar="K")
    stop: Sequence[str] | None = _option(
        "String that ends a completion; repeatable.",
        metavar="TEXT",
        cli_type=list[str] | None,
    )
    seed: int | None = _option("Random seed for sampling.", metavar="N")
    n: int | None = _option("Number of choices for a chat; see --keep-response.", metavar="N")
    repetition_penalty: float | None = _option(
        "Above 1, makes tokens less likely that the prompt or the completion has already.",
        metavar="X",
    )
    min_tokens: int | None = _option("Minimum number of tokens to generate.", metavar="N")
    logit_bias: Mapping[str, float] | Sequence[str] | None = field(
        default=None,
        metadata={
            "help": Help(
                "Add this to the logit of a token, from -100 to 100; repeatable.",
                metavar="TOKEN=X",
                cli_type=list[str] | None,
            )
        },
    )
    choices: str | Sequence[str] | None = _option(
        "Answer with one of these texts.", metavar="A,B,…", cli_type=str | None
    )
    choices_by: ChoicesBy | None = field(
        default=None,
        metadata={"help": Help("Take the most likely of --choices, or generate one of them.")},
    )
    probabilities: bool = _option(
        "Add a column with the probability of each of --choices.", default=False
    )
    json_schema: str | Mapping[str, Any] | type | None = field(
        default=None,
        metadata={
            "help": Help(
                "Answer with JSON that follows the schema in this file.",
                metavar="FILE",
                cli_type=str | None,
            )
        },
    )
    regex: str | None = _option(
        "Answer with a text that matches this regular expression.", metavar="PATTERN"
    )
    logprobs: bool = _option(
        "Add columns with the completion's log-probability and its mean by token.", default=False
    )
    token_logprobs: bool = _option(
        "Add a column with the log-probability of each token.", default=False
    )
    param: Mapping[str, str] | Sequence[str] | None = _option(
        "Take temperature, max_tokens, stop, n, choices, repetition_penalty or min_tokens of a chat"
        " from a column; repeatable.",
        metavar="NAME=col:COLUMN",
        cli_type=list[str] | None,
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value, kinds = getattr(self, each.name), _kinds(type(self))[each.name]
            if not any(_fits(value, kind) for kind in kinds):
                words = " or ".join(_WORDS[kind] for kind in kinds if kind is not NoneType)
                raise InvalidParameterError(f"{each.name} must be {words}")
            minimum = each.metadata["help"].minimum
            if minimum is not None and value is not None and value < minimum:
                raise InvalidParameterError(f"{each.name} must be {minimum} or above")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions(RequestOptions):
    """A job as its user describes it; nothing of it has been looked at yet."""

    model: str = _option("MLflow URI of the model, such as models:/NAME@ALIAS.", default=MISSING)
    input: str = _option(
        "Delta table by name or path, or a .jsonl, .csv or .parquet file.",
        default=MISSING,
        metavar="TABLE_OR_PATH",
    )
    output: str = _option(
        "Delta table to write, by name or path.", default=MISSING, metavar="TABLE_OR_PATH"
    )
    limit: int | None = _option(
        "Score at most this many rows, the same sample each time.",
        minimum=1,
        metavar="ROWS",
    )
    mode: WriteMode = field(
        default="error",
        metadata={"help": Help("What to do if the output already holds another run.")},
    )
    ids: str | Sequence[str] | None = _option(
        "Columns that identify a row: score only rows that are new or have changed.",
        flag="--id",
        metavar="A,B,…",
        cli_type=str | None,
    )
    retry_errors: bool = _option("With --id, score rows that have an error again.", default=False)
    delete_removed: bool = _option(
        "With --id, delete output rows no longer in the input.", default=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(JobOptions):
    """A job, and when it is to stop before its end."""

    max_hours: float | None = _option(
        "Start no new chunk after this many hours; run the same command to continue.",
        minimum=0,
        metavar="X",
    )
    max_output_tokens: int | None = _option(
        "Start no new chunk after this many generated tokens; run the same command to continue.",
        minimum=1,
        metavar="N",
    )


def _kinds(options: Any) -> dict[str, tuple[Any, ...]]:
    """The types that each field may have."""
    return {
        name: get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        for name, hint in get_type_hints(options).items()
    }


_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    WriteMode: "error, append or overwrite",
    Sequence[str]: "a list of strings",
    Mapping[str, str]: "a mapping of strings",
    Mapping[str, Any]: "a schema",
    Mapping[str, float]: "a mapping of numbers",
    type: "a dataclass or a model of pydantic",
    ChoicesBy: "likelihood or generate",
}


def _fits(value: object, kind: Any) -> bool:
    if kind in (WriteMode, ChoicesBy):
        return value in get_args(kind)
    if kind == Mapping[str, Any]:
        return isinstance(value, Mapping)
    if kind == Mapping[str, float]:
        return isinstance(value, Mapping) and all(_fits(each, float) for each in value.values())
    if kind == Mapping[str, str]:
        return isinstance(value, Mapping) and _fits([*value, *value.values()], Sequence[str])
    if kind == Sequence[str]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        return all(isinstance(each, str) for each in value)
    if kind in (int, float) and isinstance(value, bool):  # which Python takes for a number
        return False
    if kind is float:
        return isinstance(value, int | float) and value == value
    return isinstance(value, kind)


# Those that go to the model as they are.
GENERATION = (
    *("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n"),
    *("repetition_penalty", "min_tokens", "logit_bias"),
    *("choices", "choices_by", "json_schema", "regex", "logprobs"),
)
