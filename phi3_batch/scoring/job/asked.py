"""What was asked of a job, read and in range; nothing of it was looked up yet."""

import csv
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phi3_batch.contract import CHOICES, LOGIT_BIAS
from phi3_batch.errors import InvalidParameterError
from phi3_batch.generation import GenerationParams, check_choices
from phi3_batch.json_schema import read_schema
from phi3_batch.options import GENERATION, JobOptions, RequestOptions, WriteMode
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.rows.answers import NO_ANSWERS, AnswerColumns, answer_type
from phi3_batch.scoring.rows.columns import split_names
from phi3_batch.scoring.rows.source import Source
from phi3_batch.scoring.rows.user_template import UserTemplate

_LARGEST_LIMIT = 2**31 - 1  # Spark's own, whose LIMIT is an int of the JVM


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRequests:
    """What the user wants a model to be asked for each row.

    Attributes:
        source: which columns are the requests.
        keep: input columns to carry into the output; None carries all.
        keep_response: for a chat model, keep the whole completion object too.
        generation: generation parameters given by the user; the model's defaults for the others.
        answers: columns of typed answers and probabilities that are wanted.

    Raises:
        InvalidParameterError: a parameter is out of range.
    """

    source: Source = field(default_factory=Source)
    keep: tuple[str, ...] | None = None
    keep_response: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    answers: AnswerColumns = NO_ANSWERS

    @classmethod
    def of_rows(cls, options: RequestOptions) -> "AskedRequests":
        """Read what the user has said.

        Raises:
            InvalidParameterError: a template, a list of columns or a parameter's column cannot be
                read, or an option is out of range.
        """
        return AskedRequests(**_read_requests(options))

    def __post_init__(self) -> None:
        _check_generation(self.generation, self.answers, self.source.param_columns)


@dataclass(frozen=True, slots=True)
class ScoreOptions(AskedRequests):
    """What the user asked for.

    Attributes:
        model: MLflow URI of the model.
        input: table or files to score.
        output: Delta table to write.
        limit: score this many rows at most; None scores all.
        mode: what happens when the output has rows that are not this run's.
        ids: columns that name a row: score only what is new or has changed since.
        retry_errors: with ids, score rows again that have an error.
        delete_removed: with ids, delete output rows that the input has no longer.

    Raises:
        InvalidParameterError: an option is out of range, or goes with no other that is given.
    """

    model: str
    input: Location
    output: Location
    limit: int | None = None
    mode: WriteMode = "error"
    ids: tuple[str, ...] = ()
    retry_errors: bool = False
    delete_removed: bool = False

    @classmethod
    def of(cls, options: JobOptions) -> "ScoreOptions":
        """Read what the user has said.

        Raises:
            InvalidParameterError: a template, a list of columns or a parameter's column cannot be
                read, or an option is out of range.
        """
        return ScoreOptions(
            model=options.model,
            input=Location(options.input),
            output=Location(options.output),
            limit=options.limit,
            mode=options.mode,
            ids=() if options.ids is None else _names("--id", options.ids),
            retry_errors=options.retry_errors,
            delete_removed=options.delete_removed,
            **_read_requests(options),
        )

    def __post_init__(self) -> None:
        AskedRequests.__post_init__(self)
        _check_incremental(self)
        if self.limit is not None and not 1 <= self.limit <= _LARGEST_LIMIT:
            raise InvalidParameterError(f"the limit must be from 1 to {_LARGEST_LIMIT} rows")


def _read_requests(options: RequestOptions) -> dict[str, Any]:
    template = options.user_template
    given = {name: getattr(options, name) for name in GENERATION}
    given["stop"] = tuple(given["stop"] or ()) or None
    if options.choices is not None:
        given["choices"] = _texts("--choices", options.choices, "a text")
    if options.json_schema is not None:
        given["json_schema"] = json.dumps(read_schema(options.json_schema), ensure_ascii=False)
    given[LOGIT_BIAS] = _biases(options.logit_bias or ()) or None
    given["logprobs"] = options.logprobs or options.token_logprobs or None
    generation = {name: value for name, value in given.items() if value is not None}
    param_columns = _param_columns(options.param or ())
    return {
        "source": Source(
            column=options.column,
            system=options.system,
            user_template=None if template is None else UserTemplate.parse(template),
            param_columns=param_columns,
        ),
        "keep": None if options.keep is None else _names("--keep", options.keep),
        "keep_response": options.keep_response,
        "generation": generation,
        "answers": AnswerColumns(
            answer=answer_type(generation, param_columns),
            probabilities=options.probabilities,
            logprobs=options.logprobs,
            token_logprobs=options.token_logprobs,
        ),
    }


def _check_generation(
    generation: Mapping[str, Any], answers: AnswerColumns, row_params: Container[str]
) -> None:
    """Raise for a value out of range."""
    params = GenerationParams(**{name: value for name, value in generation.items() if name != "n"})
    by_rows = CHOICES in row_params
    if by_rows and params.is_constrained:
        raise InvalidParameterError("choices are taken from a column: give no others, nor a schema")
    if "choices_by" in generation and not params.choices and not by_rows:
        raise InvalidParameterError("--choices-by needs --choices")
    are_compared = params.are_compared or (by_rows and params.choices_by == "likelihood")
    if answers.probabilities and not are_compared:
        raise InvalidParameterError(
            "--probabilities are those of --choices that are compared, with --choices-by likelihood"
        )
    if "n" in generation:
        check_choices(generation["n"])


def _check_incremental(options: ScoreOptions) -> None:
    """Raise for options that go together in no way."""
    for name, given in (
        ("--retry-errors", options.retry_errors),
        ("--delete-removed", options.delete_removed),
    ):
        if given and not options.ids:
            raise InvalidParameterError(f"{name} needs --id, which identifies a row")
    if options.delete_removed and options.limit is not None:
        raise InvalidParameterError(
            "--delete-removed would delete all rows beyond --limit: give one of them"
        )


def _texts(option: str, given: str | Sequence[str], one: str) -> tuple[str, ...]:
    """Texts from a list of them, or as the command line writes it; each is one of these."""
    try:
        return split_names(given) if isinstance(given, str) else tuple(given)
    except csv.Error as error:
        raise InvalidParameterError(
            f"{option} {given} cannot be read ({error}); {one} with a comma in it goes between"
            " backticks"
        ) from error


def _names(option: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of columns, from a list of them or as the command line writes it."""
    names = _texts(option, given, "a name")
    if not all(name.strip() for name in names):
        raise InvalidParameterError(f"{option} {given} has no column's name beside a comma")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise InvalidParameterError(f"{option} names column {doubled[0]!r} twice")
    return names


def _biases(given: Mapping[str, float] | Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Biases from a mapping, or from ``["yes=2.5"]``."""
    if isinstance(given, Mapping):
        return tuple(given.items())
    found: dict[str, float] = {}
    for number, each in enumerate(given, start=1):
        text, _, bias = each.rpartition("=")
        try:
            found[text] = float(bias)
        except ValueError:
            raise InvalidParameterError(
                f"--logit-bias {number} is not of the form TOKEN=X, with a number behind the sign"
            ) from None
    return tuple(found.items())


def _param_columns(given: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Columns by the parameters' names, from a mapping or from ``["temperature=col:warmth"]``."""
    if isinstance(given, Mapping):
        return dict(given)
    found: dict[str, str] = {}
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
