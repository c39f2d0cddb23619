"""Schemas of answers: read in full, the types of their columns, and what is refused by name."""

import json
from dataclasses import dataclass
from typing import Literal

import pydantic
import pytest

from phi3_batch.errors import InvalidParameterError
from phi3_batch.json_schema import read_schema
from phi3_batch.scoring.rows.answers import answer_type
from phi3_batch.text import Constraint


def of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


def type_of(schema):
    return answer_type({"json_schema": json.dumps(read_schema(schema))}).simpleString()


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "string"),
        ({"type": "string", "format": "date"}, "string"),
        ({"type": "integer"}, "bigint"),
        ({"type": "number"}, "double"),
        ({"type": "boolean"}, "boolean"),
        ({"type": "null"}, "string"),
        ({"type": ["integer", "null"]}, "bigint"),
        ({"type": ["integer", "number"]}, "double"),
        ({"enum": ["a", "b", None]}, "string"),
        ({"enum": [1, 2.5]}, "double"),
        ({"enum": [True, False]}, "boolean"),
        ({"const": 3}, "bigint"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string"),
        ({"oneOf": [{"const": "a"}, {"const": "b"}]}, "string"),
        ({"allOf": [{"type": "integer"}], "minimum": 3}, "bigint"),
        (
            {"type": "array", "items": {"type": "array", "items": {"enum": ["x"]}}},
            "array<array<string>>",
        ),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "map<string,double>"),
        (
            of(b={"type": "integer"}, a=of(c={"type": "string"})),
            "struct<b:bigint,a:struct<c:string>>",
        ),
        ({"$ref": "#/$defs/price"}, "double"),
    ],
)
def test_each_schema_has_a_type(schema, expected):
    whole = of(it=schema) | {"$defs": {"price": {"type": "number", "minimum": 0}}}
    assert type_of(whole) == f"struct<it:{expected}>"
    Constraint(json_schema=json.dumps(read_schema(whole))).check()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "items": {"type": "string"}}, "the whole answer must be an object"),
        ({"type": "object"}, "answer is an object without properties"),
        (of(a={}), "answer.a may be anything: say what it is"),
        (of(a={"type": "array"}), "answer.a[] may be anything: say what it is"),
        (of(a=True), "answer.a may be anything: say what it is"),
        (of(a={"type": "object"}), "answer.a is an object without properties"),
        (
            of(a={"type": ["string", "integer"]}),
            "answer.a may be string or bigint, and a column is",
        ),
        (of(a={"enum": ["a", 1]}), "answer.a may be string or bigint"),
        (of(a={"enum": [[1]]}), "answer.a has an enum of lists or objects"),
        (of(a={"type": "string"}, A={"type": "string"}), "answer has two properties 'a', but for"),
        (of(a={"$ref": "#/$defs/none"}), "answer.a refers to #/$defs/none, which is not there"),
        (of(a={"$ref": "other.json"}), "answer.a refers to other.json, which is not there"),
        (
            of(a=of(b={"type": "string"}) | {"additionalProperties": {"type": "string"}}),
            "answer.a has properties of any name beside those that are named",
        ),
        (
            of(a={"$ref": "#/$defs/tree"})
            | {"$defs": {"tree": of(below={"type": "array", "items": {"$ref": "#/$defs/tree"}})}},
            "answer.a.below[] contains itself (#/$defs/tree), and no column does",
        ),
    ],
)
def test_what_no_column_can_be_is_refused_by_its_place(schema, message):
    with pytest.raises(InvalidParameterError) as error:
        type_of(schema)
    assert str(error.value).startswith(f"json_schema: {message}")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (of(a={"type": "string", "format": "rhyme"}), "Unknown format: rhyme"),
        (of(a={"type": "string", "pattern": "(?=a)b"}), "look-around, including"),
        (of(a={"type": "integer", "minimum": 5, "maximum": 1}), "Unsatisfiable schema"),
        (
            of(a={"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
            "Unimplemented",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(schema, message):
    with pytest.raises(InvalidParameterError) as error:
        Constraint(json_schema=json.dumps(read_schema(schema))).check()
    assert str(error.value).startswith(f"json_schema cannot be followed: {message}")
    assert "\n" not in str(error.value)


def test_classes_of_python_are_schemas():
    class Line(pydantic.BaseModel):
        text: str
        price: float | None

    @dataclass
    class Order:
        product: Literal["phone", "laptop"]
        lines: list[Line]
        gift: bool = False

    expected = "struct<product:string,lines:array<struct<text:string,price:double>>,gift:boolean>"
    assert type_of(Order) == expected
    with pytest.raises(
        InvalidParameterError, match=r"^json_schema: int is neither a dataclass nor"
    ):
        read_schema(int)


def test_what_is_left_open_is_closed():
    tree = read_schema(of(a=of(b={"type": "integer"}, c={"type": "integer", "minimum": 5})))
    inner = tree["properties"]["a"]
    assert tree["additionalProperties"] is inner["additionalProperties"] is False
    most = 10**18 - 1  # beyond which a number might not fit into a bigint
    assert inner["properties"]["b"] == {"type": "integer", "minimum": -most, "maximum": most}
    assert inner["properties"]["c"] == {"type": "integer", "minimum": 5, "maximum": most}
    assert inner["required"] == ["b", "c"]


def test_notes_to_a_reader_are_no_part_of_it_and_the_order_is():
    plain = of(b={"type": "string"}, a={"type": "boolean"})
    noted = of(b={"type": "string", "description": "…"}, a={"type": "boolean", "title": "A"})
    assert read_schema(
        noted | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    ) == read_schema(plain)
    assert list(read_schema(plain)["properties"]) == ["b", "a"]


def test_hostile_schemas_end_in_bounded_time():
    huge = of(a={"enum": [f"value {number}" for number in range(10_000)]})
    Constraint(json_schema=json.dumps(read_schema(huge))).check()
    Constraint(choices=tuple(f"value {number}" for number in range(10_000))).check()
    Constraint(regex="(a+)+(b+)*(((a|b)*)*)*c").check()
    deep = {"type": "string"}
    for _ in range(60):
        deep = of(a=deep)
    Constraint(json_schema=json.dumps(read_schema(deep))).check()
