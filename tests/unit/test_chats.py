"""Rows of a chat model, read without a model: what a caller may give, and what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3_batch.errors import InvalidParameterError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request, RowError
from phi3_batch.models.chats import Chat, parse_chat, parse_params
from phi3_batch.text import Message

DEFAULTS = GenerationParams(
    max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, stop=("END",), seed=3
)
HI = Message("user", "Hi")
NULLS = [None, math.nan, np.float64("nan"), pd.NA]


def turn(role, content):
    return {"role": role, "content": content}


def user(content):
    return turn("user", content)


def read(messages, **params):
    return parse_chat({"messages": messages, **params}, DEFAULTS)


def read_params(**params):
    """What becomes of parameters beside a sound message."""
    return read([user("Hi")], **params)


def refusal(row_error):
    """Code and message of what must be an error."""
    assert isinstance(row_error, RowError)
    return row_error.code, row_error.message


# messages


CONVERSATION = [turn("system", "Be short."), user("One?"), turn("assistant", "Two."), user("Why?")]


@pytest.mark.parametrize(
    "messages",
    [CONVERSATION, tuple(CONVERSATION), np.array(CONVERSATION, dtype=object)],
    ids=["list", "tuple", "array, as Spark hands it over"],
)
def test_messages_are_read_in_order(messages):
    assert read(messages).messages == (
        Message("system", "Be short."),
        Message("user", "One?"),
        Message("assistant", "Two."),
        Message("user", "Why?"),
    )


def test_strings_of_numpy_are_strings():
    [message] = read([{"role": np.str_("user"), "content": np.str_("Hi")}]).messages
    assert message == HI


@pytest.mark.parametrize(
    "roles",
    [
        ["system"],
        ["user", "system"],
        ["user", "system", "user"],
        ["system", "system", "user", "system"],
        ["assistant", "user"],
        ["user", "user"],
        ["user", "assistant", "assistant", "system"],
    ],
    ids=" ".join,
)
def test_any_order_of_roles_is_a_chat_that_does_not_end_with_the_assistant(roles):
    messages = [turn(role, f"content {number}") for number, role in enumerate(roles)]
    assert [tuple(message) for message in read(messages).messages] == [
        (role, f"content {number}") for number, role in enumerate(roles)
    ]


@pytest.mark.parametrize("name", ["Ada", "", 3, ["Ada"], "\x00", *NULLS], ids=ascii)
def test_the_name_of_a_message_is_ignored(name):
    assert read([{**user("Hi"), "name": name}]) == read([user("Hi")])


def test_other_keys_and_columns_are_left_alone():
    row = {"messages": [{**user("Hi"), "id": 3}], "id": 7, "prompt": "\x00"}
    assert parse_chat(row, DEFAULTS) == Chat((HI,), DEFAULTS, 1)


@pytest.mark.parametrize("content", ["  Hi\n", "\u200b", "<|end|>", "\ufffd", "0", "😀", "a\tb\fc"])
def test_a_content_is_kept_letter_by_letter(content):
    assert read([user(content)]).messages == (Message("user", content),)


@pytest.mark.parametrize("content", ["", " ", "\n\t\u3000"], ids=ascii)
def test_only_the_last_message_must_say_something(content):
    assert read([turn("system", content), user("Hi")]).messages == (Message("system", content), HI)


@pytest.mark.parametrize("messages", NULLS, ids=repr)
def test_null_messages_are_a_null_prompt(messages):
    assert refusal(read(messages)) == (RowErrorCode.NULL_PROMPT, "the messages are null")


def test_missing_messages_are_a_null_prompt():
    error = parse_chat({"temperature": 0.0}, DEFAULTS)
    assert refusal(error) == (RowErrorCode.NULL_PROMPT, "the messages are null")


@pytest.mark.parametrize("messages", [[], (), np.array([])], ids=["list", "tuple", "array"])
def test_no_message_at_all_is_named(messages):
    error = (RowErrorCode.INVALID_MESSAGES, "the list of messages is empty")
    assert refusal(read(messages)) == error


@pytest.mark.parametrize(
    ("messages", "type_name"),
    [
        ("secret", "str"),
        (user("secret"), "dict"),
        (3, "int"),
        (np.int64(3), "int"),
        (0.5, "float"),
        (True, "bool"),
        (np.array("secret"), "str"),
        (pd.Series(["secret"]), "Series"),
    ],
    ids=str,
)
def test_messages_that_are_no_list_are_named_by_their_type(messages, type_name):
    error = (RowErrorCode.INVALID_MESSAGES, f"messages is a {type_name}, not a list")
    assert refusal(read(messages)) == error


@pytest.mark.parametrize(
    "message", ["secret", None, 3, ("user", "secret"), [user("secret")], math.nan, pd.NA], ids=str
)
def test_a_message_that_is_no_dict_is_counted_from_one(message):
    error = (RowErrorCode.INVALID_MESSAGES, "message 2 has no role and content")
    assert refusal(read([user("Hi"), message])) == error


@pytest.mark.parametrize(
    "role",
    [
        *("secret", "User", "user ", "", "human", "\ud800"),
        *(3, True, ["user"], {"user": 1}, np.array(["user"] * 2), *NULLS),
    ],
    ids=ascii,
)
def test_a_role_that_phi3_does_not_know_is_refused(role):
    error = (
        RowErrorCode.INVALID_MESSAGES,
        "message 2 has a role other than system, user, assistant",
    )
    assert refusal(read([user("Hi"), turn(role, "secret")])) == error


def test_a_missing_role_is_refused_as_an_unknown_one():
    error = read([{"content": "secret"}])
    assert refusal(error) == refusal(read([turn("secret", "secret")]))


@pytest.mark.parametrize(
    "message", [{"role": "user"}, *(user(null) for null in NULLS)], ids=lambda turn: repr(turn)
)
def test_a_message_without_content_is_refused(message):
    error = (RowErrorCode.INVALID_MESSAGES, "message 2 has no content")
    assert refusal(read([user("Hi"), message])) == error


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["Hi"], "Hi"),
        (["One ", "two", "", "\n three"], "One two\n three"),
    ],
)
@pytest.mark.parametrize("as_list", [list, tuple, lambda parts: np.array(parts, dtype=object)])
def test_a_content_that_is_a_list_of_texts_is_their_text_and_nothing_between(parts, text, as_list):
    content = as_list([{"type": "text", "text": part} for part in parts])
    assert read([user(content)]).messages == read([user(text)]).messages


@pytest.mark.parametrize(
    "part",
    [
        "secret",
        None,
        {"type": "image_url", "image_url": {"url": "secret"}},
        {"type": "text"},
        {"type": "text", "text": None},
        {"type": "text", "text": ["secret"]},
        {"text": "secret"},
    ],
    ids=repr,
)
def test_a_part_that_is_not_text_is_refused(part):
    error = (RowErrorCode.INVALID_MESSAGES, "message 2 has a part that is not text")
    content = [{"type": "text", "text": "secret"}, part]
    assert refusal(read([user("Hi"), user(content)])) == error


def test_parts_are_checked_as_any_text_is():
    chat = read([user([{"type": "text", "text": "a"}, {"type": "text", "text": "\x00"}])])
    assert refusal(chat) == (
        RowErrorCode.INVALID_TEXT,
        "message 1: control character U+0000 at position 1",
    )
    assert refusal(read([user([])]))[0] is RowErrorCode.EMPTY_PROMPT


@pytest.mark.parametrize(
    ("content", "type_name"),
    [
        ({"text": "secret"}, "dict"),
        (3, "int"),
        (0.5, "float"),
        (True, "bool"),
        (b"secret", "bytes"),
    ],
    ids=str,
)
def test_a_content_that_is_no_string_is_named_by_its_type(content, type_name):
    error = (
        RowErrorCode.INVALID_MESSAGES,
        f"the content of message 2 is a {type_name}, not a string",
    )
    assert refusal(read([user("Hi"), user(content)])) == error


@pytest.mark.parametrize("content", ["secret", "", " "])
def test_a_chat_whose_last_word_is_the_assistants_is_refused(content):
    error = (
        RowErrorCode.INVALID_MESSAGES,
        "the last message is the assistant's: there is nothing to answer",
    )
    assert refusal(read([user("Hi"), turn("assistant", content)])) == error


@pytest.mark.parametrize("role", ["user", "system"])
@pytest.mark.parametrize("content", ["", " ", "\n\t\r\v\f", "\u00a0\u3000", "\u2028"], ids=ascii)
def test_a_last_message_of_white_space_is_an_empty_prompt(role, content):
    error = (RowErrorCode.EMPTY_PROMPT, "the last message is empty or only white space")
    assert refusal(read([user("Hi"), turn(role, content)])) == error


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("secret\x00secret", "control character U+0000 at position 6"),
        ("\x1b[2J", "control character U+001B at position 0"),
        ("secret\ud83d", "lone surrogate U+D83D at position 6"),
    ],
    ids=["null character", "escape", "surrogate"],
)
def test_what_is_no_text_is_found_in_any_message(role, number, content, found):
    messages = [user("Hi")] * 4
    messages[number - 1] = turn(role, content)
    assert refusal(read(messages)) == (RowErrorCode.INVALID_TEXT, f"message {number}: {found}")


def test_the_first_thing_wrong_is_the_one_that_is_named():
    error = read([user("Hi"), user("\x00"), turn("secret", "Hi"), user("\x01")], n=0)
    assert refusal(error) == (
        RowErrorCode.INVALID_TEXT,
        "message 2: control character U+0000 at position 0",
    )


# parameters


def test_a_row_without_parameters_gets_the_defaults():
    assert read_params() == Chat((HI,), DEFAULTS, 1)


@pytest.mark.parametrize("null", NULLS, ids=repr)
@pytest.mark.parametrize(
    "name", ["temperature", "max_tokens", "stop", "n", "stream", "top_p", "top_k", "seed"]
)
def test_a_null_parameter_is_one_that_is_not_given(name, null):
    assert read_params(**{name: null}) == Chat((HI,), DEFAULTS, 1)


def test_nan_is_null_in_any_width():
    assert read_params(temperature=np.float32("nan")) == read_params()


def test_a_row_goes_before_the_defaults_in_every_parameter():
    params = {
        "temperature": 0.0,
        "max_tokens": 60,
        "stop": ["\n"],
        "top_p": 1.0,
        "top_k": 0,
        "seed": 4,
    }
    chat = read_params(n=2, stream=False, **params)
    assert chat == Chat((HI,), GenerationParams(**{**params, "stop": ("\n",)}), 2)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("max_tokens", 60.0, 60),
        ("max_tokens", np.float64(60), 60),
        ("max_tokens", np.int32(60), 60),
        ("top_k", 2.0, 2),
        ("seed", np.uint64(2**63 - 1), 2**63 - 1),
        ("temperature", 1, 1),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", np.int64(2), 2),
        ("stop", ("a", "b"), ("a", "b")),
        ("stop", np.array(["a", "b"]), ("a", "b")),
        ("stop", np.array(["a", "b"], dtype=object), ("a", "b")),
        ("stop", [], ()),
        ("stop", np.array([]), ()),
    ],
    ids=repr,
)
def test_values_in_the_forms_of_pandas_and_spark_are_understood(name, value, meant):
    got = getattr(read_params(**{name: value}).params, name)
    assert (got, type(got)) == (meant, type(meant))


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float64(3)], ids=repr)
def test_n_is_how_many_answers_a_chat_gets(value):
    choices = read_params(n=value).choices
    assert (choices, type(choices)) == (3, int)


@pytest.mark.parametrize("value", [1, 128])
def test_n_may_be_from_1_to_128(value):
    assert read_params(n=value).choices == value


@pytest.mark.parametrize(
    "value",
    [0, -1, 129, 10**6, 1.5, math.inf, True, False, np.True_, "2", [1], np.int64(0)],
    ids=repr,
)
def test_another_n_is_refused(value):
    error = (RowErrorCode.INVALID_PARAMETER, "n must be a whole number from 1 to 128")
    assert refusal(read_params(n=value)) == error


@pytest.mark.parametrize("value", [False, np.False_, 0.0], ids=repr)
def test_a_row_may_say_that_it_does_not_stream(value):
    assert read_params(stream=value) == read_params()


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "secret"], ids=repr)
def test_a_row_that_streams_is_refused(value):
    error = (
        RowErrorCode.INVALID_PARAMETER,
        "stream has no meaning in a batch: leave it out or give false",
    )
    assert refusal(read_params(stream=value)) == error


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens must be 1 or above, not 0"),
        ("max_tokens", -1.0, "max_tokens must be 1 or above, not -1"),
        ("max_tokens", 1.5, "max_tokens must be a whole number, not 1.5"),
        ("max_tokens", math.inf, "max_tokens must be a whole number, not inf"),
        ("max_tokens", True, "max_tokens must be a whole number, not True"),
        ("top_k", -1, "top_k must be 0 or above, not -1"),
        ("seed", -1, "seed must be 0 or above, not -1"),
        ("temperature", -1, "temperature must be 0 (greedy) or above, not -1"),
        ("temperature", math.inf, "temperature must be a number, not inf"),
        ("temperature", True, "temperature must be a number, not True"),
        ("temperature", [0.5], "temperature must be a number, not [0.5]"),
        ("top_p", 0.0, "top_p must be above 0 and at most 1 (1 keeps every token), not 0.0"),
    ],
)
def test_a_parameter_out_of_range_is_named(name, value, message):
    assert refusal(read_params(**{name: value})) == (RowErrorCode.INVALID_PARAMETER, message)


def test_a_temperature_beyond_any_float_is_out_of_range():
    code, message = refusal(read_params(temperature=10**400))
    assert code is RowErrorCode.INVALID_PARAMETER
    assert message.startswith("temperature must be a number")


STOP_REFUSED = (
    RowErrorCode.INVALID_PARAMETER,
    "stop must be a list of strings, none of them empty",
)


@pytest.mark.parametrize(
    "value",
    [
        "secret",
        b"secret",
        "",
        [""],
        ["secret", ""],
        ["secret", None],
        ["secret", 3],
        [["secret"]],
        {"secret": 1},
        np.array(["secret", ""], dtype=object),
        np.array([1.5]),
        3,
    ],
    ids=repr,
)
def test_stop_is_a_list_of_strings_none_of_them_empty(value):
    assert refusal(read_params(stop=value)) == STOP_REFUSED


# errors


SECRET = "qzx"  # in no word of any message

BAD_ROWS = [
    {"messages": SECRET},
    {"messages": {"role": SECRET, "content": SECRET}},
    {"messages": [SECRET]},
    {"messages": [turn(SECRET, SECRET)]},
    {"messages": [turn([SECRET], SECRET)]},
    {"messages": [user([SECRET])]},
    {"messages": [{"role": "user", SECRET: SECRET}]},
    {"messages": [user(f"{SECRET}\x00{SECRET}")]},
    {"messages": [user(f"{SECRET}\ud800{SECRET}")]},
    {"messages": [user(SECRET), user(" ")]},
    {"messages": [user(SECRET), turn("assistant", SECRET)]},
    {"messages": [user(SECRET)], "stop": SECRET},
    {"messages": [user(SECRET)], "stop": [SECRET, ""]},
    {"messages": [user(SECRET)], "stop": [SECRET, 3]},
    {"messages": [user(SECRET)], "n": SECRET},
    {"messages": [user(SECRET)], "stream": SECRET},
    {"messages": [user(SECRET)], "max_tokens": 0, "stop": [SECRET]},
]


@pytest.mark.parametrize("row", BAD_ROWS, ids=ascii)
def test_no_message_quotes_a_content_a_role_or_a_stop_string(row):
    _, message = refusal(parse_chat(row, DEFAULTS))
    assert message
    assert SECRET not in message


anything = st.one_of(
    st.sampled_from([*NULLS, True, np.int64(3), np.True_, b"a", "\x00", "\ud800"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    st.lists(st.sampled_from(["a", "", 1, None]), max_size=2),
    st.lists(st.sampled_from(["a", ""]), max_size=2).map(np.array),
)
any_message = anything | st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant"]) | anything,
        "content": st.text(max_size=3) | anything,
        "name": anything,
    },
)
any_messages = (
    anything
    | st.lists(any_message, max_size=3)
    | st.lists(
        st.builds(turn, st.sampled_from(["system", "user"]), st.text(max_size=3)), min_size=1
    )
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    row=st.fixed_dictionaries(
        {},
        optional={
            "messages": any_messages,
            **dict.fromkeys(["temperature", "max_tokens", "stop", "n", "stream"], anything),
        },
    )
)
def test_whatever_a_row_holds_is_a_chat_or_an_error_and_never_raises(row):
    chat = parse_chat(row, DEFAULTS)
    if isinstance(chat, RowError):
        assert chat.message
    else:
        assert chat.messages[-1].content.strip()
        assert 1 <= chat.choices <= 128


# parameters alone, as of a model_config


def test_no_options_are_the_defaults():
    assert parse_params({}, DEFAULTS) == DEFAULTS


def test_options_go_before_the_defaults_one_by_one():
    assert parse_params({"max_tokens": 60.0, "stop": ["a"]}, DEFAULTS) == GenerationParams(
        max_tokens=60, temperature=0.5, top_p=0.9, top_k=5, stop=("a",), seed=3
    )


@pytest.mark.parametrize("name", ["max_new_tokens", "n", "stream", "messages", "model", ""])
def test_an_unknown_parameter_is_refused_with_the_known_ones(name):
    with pytest.raises(InvalidParameterError) as error:
        parse_params({"max_tokens": 3, name: 1}, DEFAULTS)
    assert str(error.value) == (
        f"there is no generation parameter {name!r}, but"
        " max_tokens, temperature, top_p, top_k, stop, seed, repetition_penalty, min_tokens,"
        " logit_bias,"
        " choices, choices_by, json_schema, regex, logprobs"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 0), ("max_tokens", None), ("temperature", -1), ("top_p", 2), ("stop", "a")],
)
def test_an_option_out_of_range_is_named(name, value):
    with pytest.raises(InvalidParameterError, match=f"^{name} must be "):
        parse_params({name: value}, DEFAULTS)


# what the engine is asked


PROMPT_IDS = [1010, 5, 1007, 1001]


@pytest.mark.parametrize("choices", [1, 2, 128])
def test_a_greedy_chat_is_asked_once_however_many_answers_it_gets(choices):
    chat = Chat((HI,), GenerationParams(max_tokens=3), choices)
    assert chat.requests(PROMPT_IDS) == [Request(tuple(PROMPT_IDS), chat.params)]


@pytest.mark.parametrize("choices", [1, 3])
def test_a_sampled_chat_is_asked_as_often_as_it_gets_answers(choices):
    chat = Chat((HI,), GenerationParams(temperature=0.5, max_tokens=3, seed=40), choices)
    assert chat.requests(PROMPT_IDS) == [Request(tuple(PROMPT_IDS), chat.params)] * choices
