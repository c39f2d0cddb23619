import math

import numpy as np
import pandas as pd
import pytest

from phi3_batch.errors import RowErrorCode
from phi3_batch.text import find_character_error, find_text_error


@pytest.mark.parametrize("text", [None, math.nan, np.float64("nan"), pd.NA], ids=repr)
def test_a_null_of_any_library_is_a_null_prompt(text):
    assert find_text_error(text).code is RowErrorCode.NULL_PROMPT


@pytest.mark.parametrize(
    "text", ["", " ", "\t\r\n\v\f", "\u00a0", "\u2003\u3000", "\u2028\u2029", "\u0085"], ids=ascii
)
def test_nothing_but_white_space_is_an_empty_prompt(text):
    assert find_text_error(text).code is RowErrorCode.EMPTY_PROMPT


@pytest.mark.parametrize("control", [*map(chr, range(9)), *map(chr, range(14, 32)), "\x7f"])
def test_a_control_character_is_named_with_its_place(control):
    error = find_text_error(f"secret{control}")
    assert error.code is RowErrorCode.INVALID_TEXT
    assert error.message == f"control character U+{ord(control):04X} at position 6"


@pytest.mark.parametrize("space", ["\n", "\t", "\r", "\f", "\v", "\u0085", "\u3000"], ids=ascii)
def test_white_space_of_real_documents_is_allowed(space):
    assert find_text_error(f"{space}one{space}two{space}") is None


@pytest.mark.parametrize("text", ["a", "né", "日本", "😀", "<|end|>", "\u200b", "\ufffd", "0"])
def test_ordinary_text_is_allowed(text):
    assert find_text_error(text) is None


@pytest.mark.parametrize("code", [0xD83D, 0xDE00, 0xDFFF], ids=hex)
def test_a_lone_surrogate_is_named_with_its_place(code):
    error = find_text_error(f"ab{chr(code)}c")
    assert error.code is RowErrorCode.INVALID_TEXT
    assert error.message == f"lone surrogate U+{code:04X} at position 2"


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (3, "int"),
        (0.5, "float"),
        (True, "bool"),
        (b"bytes", "bytes"),
        (["secret"], "list"),
        ({"prompt": "secret"}, "dict"),
        (np.array(["one", "secret"]), "ndarray"),
    ],
)
def test_what_is_no_string_is_named_by_its_type(value, type_name):
    error = find_text_error(value)
    assert error.code is RowErrorCode.INVALID_TEXT
    assert error.message == f"the prompt is a {type_name}, not a string"


@pytest.mark.parametrize("text", ["secret\x00secret", "secret\ud800", ["secret"]], ids=ascii)
def test_a_message_never_quotes_the_prompt(text):
    assert "secret" not in find_text_error(text).message


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\v\f", "a", "<|end|>", "\u200b", "\ufffd", "😀"])
def test_a_string_need_not_say_anything_to_be_text(text):
    assert find_character_error(text) is None


@pytest.mark.parametrize(
    "text", ["\x00", " \x1b", "secret\x7fsecret", "\ud800", "a\udfff\x00"], ids=ascii
)
def test_what_no_string_may_hold_no_prompt_may_hold(text):
    error = find_character_error(text)
    assert error.code is RowErrorCode.INVALID_TEXT
    assert error == find_text_error(f"{text}a")
    assert "secret" not in error.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\x00\ud800", "control character U+0000 at position 0"),
        ("\ud800\x00", "control character U+0000 at position 1"),
        ("😀\udc00\ud800", "lone surrogate U+DC00 at position 1"),
        ("\x1c", "control character U+001C at position 0"),
    ],
    ids=ascii,
)
def test_the_first_bad_character_is_named_control_characters_before_surrogates(text, message):
    assert find_character_error(text).message == message
