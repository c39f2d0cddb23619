"""``--user-template``: which texts are templates, and what a table must have for them."""

import string

import pytest
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DoubleType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.scoring.rows.user_template import NOT_IN_BRACES, UserTemplate

TABLE = StructType(
    [
        StructField("country", StringType()),
        StructField("year of", LongType()),
        StructField("share", DoubleType()),
        StructField("at", TimestampType()),
        StructField("tags", ArrayType(StringType())),
        StructField("raw", BinaryType()),
    ]
)


def test_a_template_names_each_column_once_in_the_order_of_the_text() -> None:
    template = UserTemplate.parse("Is {country} in {year of} {{still}} {country}?")
    assert template.columns == ("country", "year of")
    assert template.parts[-2:] == ((" ", "country"), ("?", None))


@pytest.mark.parametrize("character", string.punctuation)
def test_what_a_column_s_name_may_have_in_it(character: str) -> None:
    try:
        is_named = UserTemplate.parse(f"{{a{character}b}}").columns == (f"a{character}b",)
    except InvalidParameterError:
        is_named = False
    assert is_named == (character not in NOT_IN_BRACES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("What of {country", "cannot be read"),
        ("What of country}", "cannot be read"),
        ("What of {}?", "a column's name and nothing else"),
        ("What of {country!r}?", "a column's name and nothing else"),
        ("What of {share:.2f}?", "a column's name and nothing else"),
        ("What?", "names no column"),
        ("What of {{country}}?", "names no column"),
        ("", "names no column"),
    ],
)
def test_what_is_no_template_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said) as error:
        UserTemplate.parse(text)
    assert "\n" not in str(error.value)


def test_a_table_must_have_every_column_whatever_its_case() -> None:
    UserTemplate.parse("{COUNTRY} {year of} {share} {at}").check(TABLE, "t")
    with pytest.raises(TableError) as error:
        UserTemplate.parse("{country} {town}").check(TABLE, "sales")
    assert str(error.value) == (
        "the user template names 'town', but the columns of sales are country, year of, share, at,"
        " tags, raw"
    )


@pytest.mark.parametrize(("column", "kind"), [("tags", "array<string>"), ("raw", "binary")])
def test_a_column_must_have_plain_values(column: str, kind: str) -> None:
    with pytest.raises(TableError, match=f"names '{column}', which is {kind}:"):
        UserTemplate.parse(f"{{{column}}}").check(TABLE, "t")
