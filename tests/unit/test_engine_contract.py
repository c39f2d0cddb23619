"""What every engine owes its callers, seen through the one that has no model."""

import pytest

from phi3_batch.engines.scripted import ScriptedEngine
from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import Completion, GenerationParams, Request, RowError, Usage

END = 1007
ANSWER = "The capital of Spain is Madrid."


@pytest.fixture
def answer(tokenizer):
    """Answers one request with a text, as a model would that generates its tokens."""

    def answer(text, prompt_ids=(5, 6, 7), *, end=True, context_length=4096, **params):
        ids = [*tokenizer.encode_content(text), *([END] if end else [])]
        engine = ScriptedEngine(
            tokenizer,
            lambda request: ids,
            end_token_ids=frozenset({END, 1000}),
            context_length=context_length,
        )
        request = Request(tuple(prompt_ids), GenerationParams(**params))
        [completion] = engine.generate([request])
        return completion

    return answer


def tokens_until(tokenizer, text, found):
    """How many tokens of a text it takes to hold what is to be found."""
    ids = tokenizer.encode_content(text)
    return next(n for n in range(1, len(ids) + 1) if found in tokenizer.decode(ids[:n]))


def test_the_end_token_stops_and_is_no_part_of_the_completion(tokenizer, answer):
    ids = tuple(tokenizer.encode_content(ANSWER))
    assert answer(ANSWER) == Completion(ANSWER, ids, "stop", Usage(3, len(ids)))


def test_an_answer_may_be_empty(answer):
    assert answer("") == Completion("", (), "stop", Usage(3, 0))


def test_nothing_after_the_end_token_is_taken(tokenizer):
    ids = tokenizer.encode_content("Hi")
    engine = ScriptedEngine(tokenizer, lambda _: [*ids, END, *ids], end_token_ids=frozenset({END}))
    assert engine.generate([Request((5,))])[0].token_ids == tuple(ids)


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_max_tokens_ends_with_length(tokenizer, answer, max_tokens):
    ids = tuple(tokenizer.encode_content(ANSWER))[:max_tokens]
    expected = Completion(tokenizer.decode(ids), ids, "length", Usage(3, max_tokens))
    assert answer(ANSWER, max_tokens=max_tokens) == expected


def test_an_end_token_beyond_max_tokens_is_not_seen(tokenizer, answer):
    count = len(tokenizer.encode_content(ANSWER))
    assert answer(ANSWER, max_tokens=count).finish_reason == "length"
    assert answer(ANSWER, max_tokens=count + 1).finish_reason == "stop"


def test_the_text_is_cut_before_a_stop_string(tokenizer, answer):
    completion = answer(ANSWER, stop=("Spain",))
    assert completion.text == "The capital of "
    assert completion.finish_reason == "stop"
    assert completion.usage == Usage(3, tokens_until(tokenizer, ANSWER, "Spain"))


def test_a_stop_string_may_span_tokens(tokenizer, answer):
    stop = "pital of Spa"
    assert len(tokenizer.encode_content(stop)) > 3
    completion = answer(ANSWER, stop=(stop,))
    assert completion.text == "The ca"
    assert completion.usage.completion_tokens == tokens_until(tokenizer, ANSWER, stop)


def test_a_stop_string_at_the_very_beginning_leaves_nothing(answer):
    completion = answer(ANSWER, stop=("T",))
    assert completion.text == ""
    assert completion.finish_reason == "stop"


def test_the_stop_string_reached_first_wins(answer):
    assert answer(ANSWER, stop=("Madrid", "Spain", "capital")).text == "The "


@pytest.mark.parametrize("stop", [("e", "h"), ("h", "e")])
def test_of_two_stop_strings_in_one_token_the_earlier_wins(tokenizer, answer, stop):
    assert len(tokenizer.encode_content("the")) == 1
    assert answer("the", stop=stop).text == "t"


def test_a_stop_string_may_stand_inside_a_token(tokenizer, answer):
    assert len(tokenizer.encode_content("the")) == 1
    completion = answer("the", stop=("h",))
    assert completion.text == "t"
    assert completion.usage.completion_tokens == 1


def test_a_stop_string_may_be_a_character_of_several_tokens(tokenizer, answer):
    completion = answer("日本語 😀", stop=("本",))
    assert completion.text == "日"
    # the word mark that opens every text, and three bytes for each of the two characters
    assert completion.usage.completion_tokens == 7


def test_text_of_several_bytes_around_a_stop_string_stays_whole(answer):
    assert answer("日本 → 😀 fin", stop=(" 😀",)).text == "日本 →"


def test_a_stop_string_that_never_comes_changes_nothing(answer):
    assert answer(ANSWER, stop=("Lisbon",)) == answer(ANSWER)


def test_a_beginning_of_a_stop_string_is_text(answer):
    assert answer(ANSWER, stop=("Madrid!",)).text == ANSWER


def test_a_stop_string_counts_before_max_tokens(tokenizer, answer):
    count = tokens_until(tokenizer, ANSWER, "Spain")
    assert answer(ANSWER, stop=("Spain",), max_tokens=count).finish_reason == "stop"


def test_an_answer_cut_by_max_tokens_ends_with_length_though_stop_strings_are_given(answer):
    completion = answer(ANSWER, stop=("Madrid",), max_tokens=2)
    assert completion.finish_reason == "length"
    assert completion.usage.completion_tokens == 2


def test_the_context_ends_a_completion_that_max_tokens_would_let_go_on(answer):
    completion = answer(ANSWER, prompt_ids=range(3, 10), context_length=10, max_tokens=100)
    assert completion.finish_reason == "length"
    assert completion.usage == Usage(7, 3)


def test_a_prompt_one_short_of_the_context_gets_one_token(answer):
    completion = answer(ANSWER, prompt_ids=range(3, 12), context_length=10)
    assert completion.error is None
    assert completion.usage == Usage(9, 1)


@pytest.mark.parametrize("length", [10, 11, 5000])
def test_a_prompt_that_fills_the_context_is_too_long(answer, length):
    assert answer(ANSWER, prompt_ids=[5] * length, context_length=10) == Completion(
        usage=Usage(length, 0),
        error=RowError(
            RowErrorCode.PROMPT_TOO_LONG, f"{length} tokens leave no room in a context of 10"
        ),
    )


def test_a_prompt_without_tokens_is_empty(answer):
    assert answer(ANSWER, prompt_ids=()) == Completion(
        error=RowError(RowErrorCode.EMPTY_PROMPT, "the prompt has no tokens")
    )


def test_no_request_gets_no_completion(tokenizer):
    assert ScriptedEngine(tokenizer, lambda _: [END]).generate([]) == []


def test_a_request_that_fails_fails_alone_and_in_its_place(tokenizer):
    def script(request):
        if request.prompt_ids == (13,):
            raise RuntimeError("out of luck")
        return [*tokenizer.encode_content(str(request.prompt_ids[0])), END]

    engine = ScriptedEngine(tokenizer, script, end_token_ids=frozenset({END}), context_length=100)
    prompts = [(30,), (13,), (), (20,), (5,) * 100, (10,)]
    completions = engine.generate([Request(prompt) for prompt in prompts])
    assert [completion.text for completion in completions] == ["30", "", "", "20", "", "10"]
    assert [completion.error and completion.error.code for completion in completions] == [
        None,
        RowErrorCode.ENGINE_ERROR,
        RowErrorCode.EMPTY_PROMPT,
        None,
        RowErrorCode.PROMPT_TOO_LONG,
        None,
    ]
    assert completions[1].error.message == "out of luck"
    assert completions[1].usage == Usage(1, 0)


def test_a_character_that_max_tokens_cuts_in_half_is_left_out(tokenizer, answer):
    ids = tokenizer.encode_content("日本")
    for taken in range(1, len(ids)):
        assert answer("日本", max_tokens=taken).text in ("", "日")
    assert answer("日本", max_tokens=len(ids)).text == "日本"
