"""The settings half of a fingerprint: equal for runs that ask the same, and for no others."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyspark.sql.types import (
    DoubleType,
    FloatType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.job import check
from phi3_batch.scoring.job.asked import ScoreOptions
from phi3_batch.scoring.rows.model import FoundModel
from phi3_batch.scoring.rows.source import Source
from phi3_batch.scoring.rows.user_template import UserTemplate

TABLE = StructType(
    [
        StructField("a", DoubleType()),
        StructField("b", StringType()),
        StructField("at", TimestampType()),
        StructField("warmth", FloatType()),
    ]
)


def settings(source: Source, **generation: Any) -> dict[str, str]:
    found = FoundModel("models:/m/1", "models:/m/1", None)  # type: ignore[arg-type]
    options = ScoreOptions(
        "models:/m/1", Location("in"), Location("out"), source=source, generation=generation
    )
    return check._settings(found, options, TABLE)


def of(text: str = "{b}", **param_columns: str) -> Source:
    return Source(user_template=UserTemplate.parse(text), param_columns=param_columns)


def test_a_value_beside_a_column_is_a_setting_too() -> None:
    """It is what rows have in which the column is null."""
    alone, column = settings(of(), temperature=0.2), settings(of(temperature="a"))
    both = settings(of(temperature="a"), temperature=0.2)
    assert alone["params.temperature"] == "0.2"
    assert column["params.temperature"] == both["params.temperature"] == "col:a"
    assert both["params.temperature.default"] == "0.2"
    assert len({str(sorted(one.items())) for one in (alone, column, both)}) == 3


TEXTS = st.text(alphabet='a"\0,[]\\u', min_size=1, max_size=3)
GENERATION = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.0, -0.0, 1, 1.0, 0.2]),
        "top_p": st.sampled_from([1, 1.0, 0.5]),
        "max_tokens": st.sampled_from([1, 10]),
        "stop": st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
    },
)
COLUMNS = st.dictionaries(
    st.sampled_from(["temperature", "max_tokens", "stop"]), st.sampled_from(["a", "b"])
)
ASKED = st.tuples(st.sampled_from(["{b}", "{a}", "{a}{b}", "{a,b}"]), COLUMNS, GENERATION)


@example(("{b}", {"stop": "a"}, {"max_tokens": 1}), ("{b}", {"max_tokens": "a"}, {"max_tokens": 1}))
@given(ASKED, ASKED)
def test_settings_are_equal_where_what_is_asked_is(one: Any, other: Any) -> None:
    texts = [settings(of(text, **columns), **options) for text, columns, options in (one, other)]
    assert (texts[0] == texts[1]) == (one == other)


@example(["a\0b"], ["a", "b"])
@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(TEXTS, min_size=1, max_size=3))
def test_lists_of_stop_strings_are_told_apart(one: list[str], other: list[str]) -> None:
    found = [settings(of(), stop=tuple(texts))["params.stop"] for texts in (one, other)]
    assert (found[0] == found[1]) == (one == other)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (of("{b} {a}", temperature="a"), None),
        (of("{at}"), "exact, in UTC"),
        (of("{AT} {b}"), "exact, in UTC"),
        (of("{b}", temperature="warmth"), "exact, in UTC"),
    ],
)
def test_only_runs_whose_ids_have_changed_are_other_runs(source: Source, said: str | None) -> None:
    assert settings(source).get("values") == said


def test_settings_are_worded_as_they_were() -> None:
    """A run that was begun by an earlier release is gone on with."""
    assert settings(of("{b}", n="a"), max_tokens=5, temperature=0.2, stop=("x", "y")) == {
        "model": "models:/m/1",
        "user_template_sha256": "75e5e9d68022b515a5c1bed65ce2086997a95ce3cd7b740fd7dd02444e6a38c6",
        "user_template_columns": "b",
        "params.n": "col:a",
        "params.max_tokens": "5",
        "params.temperature": "0.2",
        "params.stop": "sha256 ce3890a816f5237a17aa7e1436113bbac398dfe216cf965537cd035bdbad900a",
    }
