"""The columns that a job asks for beside the usual ones: typed answers, and how sure a model is."""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DoubleType,
    LongType,
    MapType,
    NullType,
    StringType,
    StructField,
    StructType,
)

from phi3_batch.contract import CHOICES
from phi3_batch.errors import InvalidParameterError

ANSWER, PROBABILITIES = "answer", "probabilities"
LOGPROB, MEAN_LOGPROB, TOKEN_LOGPROBS = "logprob", "mean_logprob", "token_logprobs"

# What a model gives beside its completion where it is asked for log-probabilities or has compared
# choices: of tokens, and of choices. Lists without nulls, empty where there are none.
DETAILS = StructType(
    [
        StructField("logprobs", ArrayType(DoubleType())),
        StructField(
            "probabilities",
            ArrayType(
                StructType(
                    [StructField("choice", StringType()), StructField("probability", DoubleType())]
                )
            ),
        ),
    ]
)


@dataclass(frozen=True, slots=True)
class AnswerColumns:
    """Which of these columns a job wants.

    Attributes:
        answer: type of the column ``answer``; None for none.
        probabilities: of the choices, by their texts.
        logprobs: the completion's log-probability, and its mean by token.
        token_logprobs: each token's.
    """

    answer: DataType | None = None
    probabilities: bool = False
    logprobs: bool = False
    token_logprobs: bool = False

    def fields(self) -> list[StructField]:
        """The columns, in their order."""
        answer = [] if self.answer is None else [StructField(ANSWER, self.answer)]
        wanted = [
            (self.probabilities, PROBABILITIES, MapType(StringType(), DoubleType())),
            (self.logprobs, LOGPROB, DoubleType()),
            (self.logprobs, MEAN_LOGPROB, DoubleType()),
            (self.token_logprobs, TOKEN_LOGPROBS, ArrayType(DoubleType())),
        ]
        return answer + [StructField(name, kind) for is_wanted, name, kind in wanted if is_wanted]

    def columns(self, result: Mapping[str, Column]) -> dict[str, Column]:
        """The columns, from those that were read of a model's result; null where these are."""
        made = {}
        if self.answer is not None:
            text, of = result["completion"], self.answer
            made[ANSWER] = F.from_json(text, of) if isinstance(of, StructType) else text
        if self.probabilities:
            made[PROBABILITIES] = F.map_from_entries(result["probabilities"])
        logprobs = result.get("logprobs")
        if self.logprobs and logprobs is not None:
            total = F.aggregate(logprobs, F.lit(0.0), lambda total, each: total + each)
            made[LOGPROB] = total
            # of no tokens there is no mean, and a model that ends at once has the end's
            made[MEAN_LOGPROB] = F.when(F.size(logprobs) > 0, total / F.size(logprobs))
        if self.token_logprobs and logprobs is not None:
            made[TOKEN_LOGPROBS] = logprobs
        return made


NO_ANSWERS = AnswerColumns()


def answer_type(generation: Mapping[str, Any], row_params: Container[str] = ()) -> DataType | None:
    """The type of the column ``answer``; None where there is none.

    Args:
        generation: the parameters of a job.
        row_params: names of those that rows have of their own.

    Raises:
        InvalidParameterError: a value of the schema may be of several types.
    """
    if schema := generation.get("json_schema"):
        return _type_of(json.loads(schema), "answer")
    is_text = CHOICES in row_params or generation.get(CHOICES) or generation.get("regex")
    return StringType() if is_text else None


def _type_of(schema: Mapping[str, Any], where: str) -> DataType:
    """The type of what follows a schema that is in full."""
    if "anyOf" in schema:
        return _common([_type_of(each, where) for each in schema["anyOf"]], where)
    if "const" in schema:
        return _type_of_value(schema["const"], where)
    if "enum" in schema:
        return _common([_type_of_value(value, where) for value in schema["enum"]], where)
    if schema["type"] == "array":
        return ArrayType(_type_of(schema["items"], f"{where}[]"))
    if schema["type"] == "object":
        if "properties" not in schema:
            return MapType(StringType(), _type_of(schema["additionalProperties"], f"{where}.*"))
        return StructType(
            [
                StructField(name, _storable(_type_of(each, f"{where}.{name}")))
                for name, each in schema["properties"].items()
            ]
        )
    return _TYPES[schema["type"]]


def _type_of_value(value: object, where: str) -> DataType:
    # bool first, which is an int to Python
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return _TYPES[name]
    if value is None:
        return NullType()
    raise InvalidParameterError(f"json_schema: {where} has an enum of lists or objects")


def _common(kinds: Sequence[DataType], where: str) -> DataType:
    found = list(dict.fromkeys(kind for kind in kinds if not isinstance(kind, NullType)))
    if len(found) > 1 and all(isinstance(kind, LongType | DoubleType) for kind in found):
        return DoubleType()
    if len(found) > 1:
        names = " or ".join(kind.simpleString() for kind in found)
        raise InvalidParameterError(
            f"json_schema: {where} may be {names}, and a column is of one type"
        )
    return found[0] if found else NullType()


def _storable(kind: DataType) -> DataType:
    """What is null and nothing else is a string that is null: Delta stores no other."""
    return StringType() if isinstance(kind, NullType) else kind


_TYPES: dict[str, DataType] = {
    "string": StringType(),
    "integer": LongType(),
    "number": DoubleType(),
    "boolean": BooleanType(),
    "null": NullType(),
}
