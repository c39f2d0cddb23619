import dataclasses
import math

import pytest

from phi3_batch.errors import InvalidParameterError, RowErrorCode
from phi3_batch.generation import (
    Completion,
    GenerationParams,
    Request,
    RowError,
    Usage,
    check_choices,
)


def test_the_defaults_are_greedy_and_256_tokens():
    assert dataclasses.asdict(GenerationParams()) == {
        "max_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "stop": (),
        "seed": 0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "logit_bias": (),
        "choices": (),
        "choices_by": "likelihood",
        "json_schema": "",
        "regex": "",
        "logprobs": False,
    }
    assert GenerationParams().greedy


def test_a_temperature_above_zero_samples():
    assert not GenerationParams(temperature=1e-9).greedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 1),
        ("max_tokens", 10**9),
        ("temperature", 0),
        ("temperature", 100.0),
        ("top_p", 1),
        ("top_p", 1e-9),
        ("top_k", 0),
        ("top_k", 10**9),
        ("stop", ("a", "\n", " ")),
        ("stop", ("é" * 1_000,) * 64),
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("max_tokens", 2**31 - 1),
        ("top_k", 2**31 - 1),
    ],
)
def test_a_value_in_range_is_kept(name, value):
    assert getattr(GenerationParams(**{name: value}), name) == value


@pytest.mark.parametrize("name", ["max_tokens", "top_k", "seed"])
@pytest.mark.parametrize("value", [True, False, 1.0, math.nan, "3", None, [3]])
def test_a_count_is_a_whole_number(name, value):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(**{name: value})
    assert str(error.value) == f"{name} must be a whole number, not {value!r}"


@pytest.mark.parametrize(
    ("name", "value", "minimum"),
    [
        ("max_tokens", 0, 1),
        ("max_tokens", -5, 1),
        ("top_k", -1, 0),
        ("seed", -1, 0),
    ],
)
def test_a_count_below_its_minimum_is_refused(name, value, minimum):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(**{name: value})
    assert str(error.value) == f"{name} must be {minimum} or above, not {value}"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_tokens", 2**31, "from 1 to 2147483647"),
        ("max_tokens", 2**62, "from 1 to 2147483647"),
        pytest.param("max_tokens", -(10**5000), "from 1 to 2147483647", id="more than str takes"),
        ("top_k", 2**31, "from 0 to 2147483647"),
        ("seed", 2**63, "from 0 to 9223372036854775807"),
        ("seed", 10**30, "from 0 to 9223372036854775807"),
    ],
)
def test_a_count_beyond_what_runtimes_hold_is_refused(name, value, said):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(**{name: value})
    assert str(error.value) == f"{name} must be {said}"


@pytest.mark.parametrize("value", [0, -1, 129, 10**30, 1.0, True, "2", None])
def test_choices_are_as_many_as_openai_gives(value):
    with pytest.raises(InvalidParameterError) as error:
        check_choices(value)
    assert str(error.value) == "n must be a whole number from 1 to 128"
    assert (check_choices(1), check_choices(128)) == (1, 128)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, "0.5", None])
def test_temperature_and_top_p_are_finite_numbers(name, value):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(**{name: value})
    assert str(error.value) == f"{name} must be a number, not {value!r}"


@pytest.mark.parametrize("value", [tuple(map(str, range(65))), ("a", "b" * 1_001)], ids=len)
def test_more_stop_strings_than_a_row_may_look_for_are_refused(value):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(stop=value)
    assert str(error.value) == "stop may have 64 strings of 1,000 characters at most"


@pytest.mark.parametrize("value", [-0.1, -1])
def test_a_negative_temperature_is_refused(value):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(temperature=value)
    assert str(error.value) == f"temperature must be 0 (greedy) or above, not {value}"


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.0001, 2])
def test_top_p_is_a_probability_above_zero(value):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(top_p=value)
    assert str(error.value).startswith("top_p must be above 0 and at most 1")
    assert str(error.value).endswith(f"not {value}")


@pytest.mark.parametrize("value", ["stop", ["a"], ("",), ("a", ""), (1,), (None,), None])
def test_stop_is_a_tuple_of_strings_none_of_them_empty(value):
    with pytest.raises(InvalidParameterError) as error:
        GenerationParams(stop=value)
    assert str(error.value) == "stop must be a list of strings, none of them empty"


def test_parameters_cannot_change_under_a_request():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request((1, 2)).params.max_tokens = 3


def test_total_tokens_are_prompt_and_completion_together():
    assert Usage(prompt_tokens=7, completion_tokens=5).total_tokens == 12


def test_a_failed_completion_has_an_error_and_no_text():
    completion = Completion.failed(RowErrorCode.PROMPT_TOO_LONG, "too long", prompt_tokens=9)
    assert completion == Completion(
        text="",
        token_ids=(),
        finish_reason=None,
        usage=Usage(9, 0),
        error=RowError(RowErrorCode.PROMPT_TOO_LONG, "too long"),
    )
