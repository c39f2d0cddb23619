"""What a model is asked for each row, as Spark expressions, and which rows no model should see.

MLflow checks a whole Arrow batch against the model's signature before predict runs: one null
where the signature has none fails the batch, and with it the job. Bytes that are no UTF-8 fail it
earlier still. Such rows are recognised here, in Spark, and never reach Python.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StringType, StructField, StructType

from phi3_batch.contract import CHOICES, MESSAGES_INPUT, PROMPT_INPUT, STREAM
from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import MOST_STOP_CHARACTERS, MOST_STOP_STRINGS, TOO_MUCH_STOP
from phi3_batch.scoring.compat import is_valid_utf8
from phi3_batch.scoring.rows.columns import find_field

# What Spark calls the types of the parameters that a chat may have for itself.
PARAM_TYPES = {
    "temperature": "double",
    "max_tokens": "long",
    "stop": "array<string>",
    "n": "long",
    "choices": "array<string>",
    "repetition_penalty": "double",
    "min_tokens": "long",
}

# What a chat is made of; a message may have more fields, which no model is sent.
TURNS_TYPE = ArrayType(
    StructType([StructField("role", StringType()), StructField("content", StringType())])
)


@dataclass(frozen=True, slots=True)
class RowRequests:
    """The model's inputs for each row.

    Attributes:
        inputs: a column for each input of the model, by its name.
        refusal: struct of code and message for a row that no model should see, else null.
    """

    inputs: Mapping[str, Column]
    refusal: Column

    def struct(self, *more: Column) -> Column:
        """The inputs as one column; in a struct they have their names, which MLflow goes by."""
        return F.struct(*[column.alias(name) for name, column in self.inputs.items()], *more)

    def characters(self) -> Column:
        """How long the inputs are, written out."""
        return F.length(F.to_json(self.struct()))


def has_turns(kind: DataType) -> bool:
    """Whether a column of this type holds messages."""
    return isinstance(kind, ArrayType) and isinstance(kind.elementType, StructType | MapType)


def turns_of(messages: Column, kind: DataType) -> Column:
    """Messages as TURNS_TYPE, however the table stores them and spells their fields.

    A content that is a list of parts is their text; null where one of them is not of text.

    Args:
        messages: array of structs, or of maps, with role and content; anything may be null.
        kind: its type.
    """
    assert isinstance(kind, ArrayType)  # who calls has looked

    def part(message: Column, name: str) -> Column:
        if not isinstance(kind.elementType, StructType):
            return message[name]
        field = find_field(kind.elementType, name)
        assert field is not None  # the source was checked
        value = message.getField(field.name)
        return text_of_parts(value) if isinstance(field.dataType, ArrayType) else value

    def turn(message: Column) -> Column:
        parts = [part(message, name).cast("string").alias(name) for name in ("role", "content")]
        return F.when(message.isNotNull(), F.struct(*parts))

    return F.transform(messages, turn)


def prompt_requests(prompt: Column, *, most_bytes: int | None = None) -> RowRequests:
    """Raw prompts from a string column.

    Args:
        prompt: the column.
        most_bytes: of a prompt, white space aside, that the model may have room for.
    """
    refusal = F.coalesce(
        refuse(prompt.isNull(), RowErrorCode.NULL_PROMPT, "the prompt is null"),
        refuse(~is_valid_utf8(prompt), RowErrorCode.INVALID_TEXT, "the prompt is not valid UTF-8"),
        *_refuse_longer(F.array(prompt), most_bytes),
        refuse(
            ~prompt.rlike(r"(?U)\S"),
            RowErrorCode.EMPTY_PROMPT,
            "the prompt is empty or only white space",
        ),
    )
    return RowRequests({PROMPT_INPUT: prompt}, refusal)


def chat_requests(
    messages: Column,
    params: Mapping[str, Column],
    defaults: Mapping[str, object],
    *,
    most_bytes: int | None = None,
) -> RowRequests:
    """Chats from a column of messages, and columns of parameters where rows have their own.

    Args:
        messages: array of structs, or of maps, with role and content.
        params: columns for some of CHAT_PARAMS, MORE_CHAT_PARAMS and ``stream``.
        defaults: what null means in each of these columns; MLflow takes no null.
        most_bytes: of all contents, white space aside, that the model may have room for.
    """

    def refuse_first(bad: Callable[[Column], Column], code: RowErrorCode, what: str) -> Column:
        position = F.array_position(F.transform(messages, bad), True)
        message = F.concat(F.lit("message "), position.cast("string"), F.lit(f" {what}"))
        return refuse(position > 0, code, message)

    invalid = RowErrorCode.INVALID_MESSAGES
    refusals = [
        refuse(messages.isNull(), RowErrorCode.NULL_PROMPT, "the messages are null"),
        refuse_first(lambda message: message.isNull(), invalid, "is null"),
        refuse_first(lambda message: message["role"].isNull(), invalid, "has no role"),
        refuse_first(
            lambda message: message["content"].isNull(),
            invalid,
            "has no content, or some that is not text",
        ),
        refuse_first(
            lambda message: ~(is_valid_utf8(message["role"]) & is_valid_utf8(message["content"])),
            RowErrorCode.INVALID_TEXT,
            "is not valid UTF-8",
        ),
    ]
    for name in ("temperature", "repetition_penalty"):
        if name in params:
            not_a_number = F.isnan(params[name].cast("double"))
            refusals.append(_refuse_parameter(not_a_number, f"{name} is not a number"))
    if CHOICES in params:
        texts = params[CHOICES]
        none = F.coalesce(F.size(texts) < 1, F.lit(True))
        refusals.append(_refuse_parameter(texts.isNull() | none, "there are no choices"))
        bad_choice = F.exists(texts, lambda text: text.isNull() | ~is_valid_utf8(text))
        refusals.append(_refuse_parameter(bad_choice, "choices has a null or invalid UTF-8 in it"))
    if "stop" in params:
        bad_stop = F.exists(params["stop"], lambda text: text.isNull() | ~is_valid_utf8(text))
        refusals.append(_refuse_parameter(bad_stop, "stop has a null or invalid UTF-8 in it"))
        too_much_stop = (F.size(params["stop"]) > MOST_STOP_STRINGS) | F.exists(
            params["stop"], lambda text: F.length(text) > MOST_STOP_CHARACTERS
        )
        refusals.append(_refuse_parameter(too_much_stop, TOO_MUCH_STOP))
    texts = F.transform(messages, lambda message: message["content"])
    refusals += _refuse_longer(texts, most_bytes)
    types = PARAM_TYPES | {STREAM: "boolean"}
    conforming = F.transform(
        messages,
        lambda message: F.struct(
            message["role"].alias("role"), message["content"].alias("content")
        ),
    ).cast(TURNS_TYPE)
    filled = {
        name: F.coalesce(column.cast(types[name]), literal(defaults[name]).cast(types[name]))
        for name, column in params.items()
    }
    return RowRequests({MESSAGES_INPUT: conforming, **filled}, F.coalesce(*refusals))


def text_of_parts(parts: Column) -> Column:
    """The text of a content that is a list of parts; null where a part is not of text.

    Nothing comes between the parts: what is sent is what was written.
    """
    texts = F.transform(parts, lambda part: F.when(part["type"] == "text", part["text"]))
    whole = ~F.exists(texts, lambda text: text.isNull())
    return F.when(whole, F.array_join(texts, ""))


def refuse(condition: Column, code: RowErrorCode, message: str | Column) -> Column:
    """Code and message where a condition holds, else null."""
    text = F.lit(message) if isinstance(message, str) else message
    return F.when(condition, F.struct(F.lit(code.value).alias("code"), text.alias("message")))


def _refuse_longer(texts: Column, most_bytes: int | None) -> list[Column]:
    """Refuse what no model has room for, before it is handed to Python and tokenized."""
    if most_bytes is None:
        return []
    total = F.aggregate(texts, F.lit(0), lambda total, text: total + F.octet_length(text))
    # Long texts are looked at only as far as it takes to see that they are not white space.
    begin = F.array_join(F.transform(texts, lambda text: F.substring(text, 1, 2 * most_bytes)), "")
    dense = F.octet_length(F.regexp_replace(begin, r"(?U)\s+", "")) > most_bytes
    what = f"by its length alone, over {most_bytes:,} bytes, it leaves no room in the context"
    return [refuse((total > most_bytes) & dense, RowErrorCode.PROMPT_TOO_LONG, what)]


def _refuse_parameter(condition: Column, message: str) -> Column:
    return refuse(condition, RowErrorCode.INVALID_PARAMETER, message)


def literal(value: object) -> Column:
    """A parameter that holds for every row; a column is one already."""
    if isinstance(value, Column):
        return value
    if isinstance(value, list | tuple):
        return F.array(*[F.lit(item) for item in value]).cast("array<string>")
    return F.lit(value)
