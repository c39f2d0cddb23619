"""The columns that scoring adds, declared once, and how a model's result becomes them."""

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DoubleType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from phi3_batch.contract import (
    COUNTS,
    ERROR_OBJECT,
    LOGPROBS,
    PROBABILITIES,
    REASON_SEPARATOR,
)
from phi3_batch.errors import RowErrorCode
from phi3_batch.scoring.rows.answers import DETAILS, NO_ANSWERS, AnswerColumns
from phi3_batch.scoring.rows.columns import find_field

_ERROR = StructType([StructField("code", StringType()), StructField("message", StringType())])

# What a model with usage returns for each row. Its UDF cannot return nulls (MLflow turns None into
# 'None' and fails on null numbers), so '' and 0 stand for them until `columns_from_usage`.
USAGE_RESULT = StructType(
    [
        StructField("completion", StringType()),
        StructField("finish_reason", StringType()),
        StructField("prompt_tokens", LongType()),
        StructField("completion_tokens", LongType()),
        StructField("total_tokens", LongType()),
        StructField("error", _ERROR),
    ]
)

# What a chat model returns for each row, as in its signature. A row that it could not answer has
# the object "error" and a choice whose finish_reason is "code: message".
_MESSAGE = StructType([StructField(name, StringType()) for name in ("content", "name", "role")])
_CHOICE = StructType(
    [
        StructField("finish_reason", StringType()),
        StructField("index", LongType()),
        StructField("message", _MESSAGE),
    ]
)
_TOKEN = StructType([StructField("logprob", DoubleType()), StructField("token", StringType())])
_LOGPROBS = StructType([StructField("content", ArrayType(_TOKEN))])
_COUNTS = StructType([StructField(name, LongType()) for name in sorted(COUNTS)])


def _completion(choice: StructType, *more: StructField) -> StructType:
    return StructType(
        [
            StructField("id", StringType()),
            StructField("object", StringType()),
            StructField("created", LongType()),
            StructField("model", StringType()),
            StructField("choices", ArrayType(choice)),
            StructField("usage", _COUNTS),
            *more,
        ]
    )


CHAT_COMPLETION = _completion(_CHOICE)
# With what is told of probabilities, where it is asked for.
_DETAILED_CHOICE = StructType([*_CHOICE, StructField(LOGPROBS, _LOGPROBS)])
DETAILED_COMPLETION = _completion(_DETAILED_CHOICE, DETAILS[PROBABILITIES])
DETAILED_USAGE = StructType([*USAGE_RESULT, *DETAILS])

# The whole completion object, where it is kept: a column of its own behind `error`.
RESPONSE = "response"

# What was asked, and in which run: by these two a run is resumed and verified.
REQUEST_ID, FINGERPRINT = "request_id", "fingerprint"


# Of what scoring adds, all that a row with an error has too.
ALWAYS_THERE = frozenset({REQUEST_ID, "model", "run_id", FINGERPRINT, "scored_at"})


def answer_columns(*, keep_response: bool, answers: AnswerColumns = NO_ANSWERS) -> StructType:
    """What comes of a row by its request alone."""
    response = [StructField(RESPONSE, CHAT_COMPLETION)] if keep_response else []
    return StructType([*USAGE_RESULT, *answers.fields(), *response])


def output_columns(*, keep_response: bool, answers: AnswerColumns = NO_ANSWERS) -> StructType:
    """What is written for each row, behind the columns it came with."""
    return StructType(
        [
            *answer_columns(keep_response=keep_response, answers=answers),
            StructField(REQUEST_ID, StringType()),
            StructField("model", StringType()),
            StructField("run_id", StringType()),
            StructField(FINGERPRINT, StringType()),
            StructField("scored_at", TimestampType()),
        ]
    )


def kept_columns(output: StructType, table: StructType) -> list[StructField]:
    """The columns of an input that an output has too, of the same type."""
    added, names = output_columns(keep_response=False), output.fieldNames()
    kept = []
    for field in output:
        of_scoring = find_field(added, field.name) is not None
        if field.name == RESPONSE:  # of the input where it stands before what scoring adds
            of_scoring = names.index(RESPONSE) > names.index(added[0].name)
        there = find_field(table, field.name)
        if not of_scoring and there and _type(there) == _type(field):
            kept.append(field)
    return kept


def _type(field: StructField) -> str:
    return field.dataType.simpleString()  # which leaves out what may be null: Delta does too


def columns_from_usage(result: Column, *, has_details: bool) -> dict[str, Column]:
    """Result columns from what a model with usage returned."""
    failed = result["error"]["code"] != ""
    counts = {name: result[name] for name in COUNTS}
    answer = {
        "completion": result["completion"],
        "finish_reason": result["finish_reason"],
        **({name: result[name] for name in DETAILS.names} if has_details else {}),
    }
    return _unless_failed(failed, result["error"], counts, answer)


def columns_from_chat(result: Column, *, has_details: bool) -> dict[str, Column]:
    """Result columns from a chat completion; its first choice is the completion."""
    failed = result["object"] == ERROR_OBJECT
    choice = result["choices"][0]
    code, message = (F.split(choice["finish_reason"], REASON_SEPARATOR, 2)[part] for part in (0, 1))
    counts = {name: result["usage"][name] for name in COUNTS}
    answer = {
        "completion": choice["message"]["content"],
        "finish_reason": choice["finish_reason"],
        RESPONSE: result,
    }
    if has_details:
        tokens = choice[LOGPROBS]["content"]
        answer[LOGPROBS] = F.transform(tokens, lambda token: token["logprob"])
        answer[PROBABILITIES] = result[PROBABILITIES]
        plain = F.transform(result["choices"], lambda choice: choice.dropFields(LOGPROBS))
        answer[RESPONSE] = result.dropFields(PROBABILITIES).withField("choices", plain)
    return _unless_failed(failed, error_struct(code, message), counts, answer)


def failed_chat(error: Column, *, has_details: bool) -> Column:
    """What a chat model returns for a row with this error, a struct of code and message."""
    of_choice = [F.lit(None).cast(_LOGPROBS)] if has_details else []
    of_all = [F.array().cast(DETAILS[PROBABILITIES].dataType)] if has_details else []
    no_name = F.lit(None).cast("string")
    message = F.struct(F.lit("").alias("content"), no_name.alias("name"), F.lit("assistant"))
    reason = F.concat_ws(REASON_SEPARATOR, error["code"], error["message"])
    zero = F.lit(0)
    return F.struct(
        F.concat(F.lit("chatcmpl-"), F.expr("uuid()")),
        F.lit(ERROR_OBJECT),
        F.unix_timestamp(),
        F.lit(""),
        F.array(F.struct(reason, zero, message, *of_choice)),
        F.struct(zero, zero, zero),
        *of_all,
    ).cast(DETAILED_COMPLETION if has_details else CHAT_COMPLETION)


def columns_from_text(text: Column) -> dict[str, Column]:
    """Result columns from what a model without usage returned: text, and nothing to count."""
    return _nulls() | {"completion": text}


def columns_from_bare_text(text: Column) -> dict[str, Column]:
    """Result columns from the bare form of our own model, which gives '' for a failed row."""
    reason = "the model, logged without params, gave no text and cannot say why"
    failed = text == ""
    error = error_struct(F.lit(RowErrorCode.ENGINE_ERROR.value), F.lit(reason))
    return _nulls() | {"completion": F.when(~failed, text), "error": F.when(failed, error)}


def columns_from_error(error: Column) -> dict[str, Column]:
    """Result columns of a row that no model sees."""
    return _nulls() | {"error": error.cast(_ERROR)}


def error_struct(code: Column, message: Column) -> Column:
    """The ``error`` column from its two fields."""
    return F.struct(code.alias("code"), message.alias("message"))


def _unless_failed(
    failed: Column, error: Column, counts: dict[str, Column], answer: dict[str, Column]
) -> dict[str, Column]:
    """Result columns of a model that says of each row whether it failed."""
    # a prompt that was too long was still counted
    prompt_tokens = F.when(counts["prompt_tokens"] != 0, counts["prompt_tokens"])
    of_answered = {name: F.when(~failed, column) for name, column in (counts | answer).items()}
    error = F.when(failed, error)
    return _nulls() | of_answered | {"prompt_tokens": prompt_tokens, "error": error}


def _nulls() -> dict[str, Column]:
    fields = [*USAGE_RESULT, StructField(RESPONSE, CHAT_COMPLETION), *DETAILS]
    return {field.name: F.lit(None).cast(field.dataType) for field in fields}
