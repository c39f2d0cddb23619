"""What both engines for ONNX builds do alike, each on its own runtime."""

import json
from collections import Counter

import pytest

from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request, Usage
from phi3_batch.model_files import ModelFolder
from tests.engines.conftest import FRANCE, MADRID, PARIS, SPAIN, one


def test_no_request_gets_no_completion(engine):
    assert engine.generate([]) == []


def test_requests_of_different_parameters_share_a_call_without_touching_each_other(
    engine, new_engine, ask
):
    requests = [
        *(ask(SPAIN, max_tokens=count) for count in range(1, 14)),
        *(ask(SPAIN, temperature=2.0, seed=seed, max_tokens=12) for seed in range(6)),
        *(ask(FRANCE, temperature=1.5, top_p=0.9, top_k=50, seed=3, max_tokens=n) for n in (4, 9)),
        ask(SPAIN, stop=("Spain",)),
        ask(SPAIN, stop=("capital", "Madrid")),
        ask(FRANCE),
    ]
    alone = new_engine(shares_prefixes=False)
    assert engine.generate(requests) == [one(alone, request) for request in requests]


def test_max_tokens_cuts_the_answer_and_says_so(engine, ask):
    whole = one(engine, ask(SPAIN))
    cut = one(engine, ask(SPAIN, max_tokens=4))
    assert cut.token_ids == whole.token_ids[:4]
    assert cut.finish_reason == "length"
    assert cut.usage == Usage(whole.usage.prompt_tokens, 4)


def test_a_stop_string_cuts_the_answer_before_it(engine, ask):
    completion = one(engine, ask(SPAIN, stop=(" Madrid",)))
    assert completion.text == "The capital of Spain is"
    assert completion.finish_reason == "stop"


def test_the_same_seed_gives_the_same_text(new_engine, engine, ask):
    request = ask(SPAIN, temperature=3.0, seed=11, max_tokens=30)
    assert one(new_engine(), request) == one(engine, request)


def test_different_seeds_give_different_texts(engine, ask):
    requests = [ask(SPAIN, temperature=3.0, seed=seed, max_tokens=30) for seed in range(8)]
    texts = {completion.text for completion in engine.generate(requests)}
    assert len(texts) == 8
    assert MADRID not in texts


def test_a_seed_does_not_matter_when_decoding_is_greedy(engine, ask):
    assert [c.text for c in engine.generate([ask(SPAIN, seed=1), ask(SPAIN, seed=2)])] == [
        MADRID,
        MADRID,
    ]


def test_top_k_1_is_greedy_at_any_temperature(engine, ask):
    assert one(engine, ask(SPAIN, temperature=5.0, top_k=1)).text == MADRID


@pytest.mark.parametrize("length", [4096, 4097, 5000])
def test_a_prompt_that_fills_the_context_is_too_long_and_its_neighbours_are_not(
    engine, ask, nonsense, length
):
    ids = (nonsense(4096) * 2)[:length]
    completions = engine.generate([ask(SPAIN), Request(ids), ask(FRANCE)])
    assert [completion.text for completion in completions] == [MADRID, "", PARIS]
    assert completions[1].error.code is RowErrorCode.PROMPT_TOO_LONG
    assert completions[1].usage == Usage(length, 0)


def test_a_prompt_one_short_of_the_context_gets_one_token(engine, nonsense):
    completion = one(engine, Request(nonsense(4095)))
    assert completion.error is None
    assert completion.usage == Usage(4095, 1)


def test_an_answer_ends_where_the_context_ends(engine, nonsense):
    prompt = nonsense(4090)
    params = GenerationParams(temperature=50.0, max_tokens=100)
    completion = one(engine, Request(prompt, params))
    assert completion.finish_reason == "length"
    assert completion.usage == Usage(4090, 6)


@pytest.mark.parametrize("length", [500, 600, 1500, 3000])
def test_a_long_request_between_short_ones_grows_the_cache_and_changes_no_token(
    new_engine, ask, nonsense, length
):
    engine = new_engine()
    long = Request(nonsense(length), GenerationParams(max_tokens=40))
    before, grown, after = (
        one(engine, ask(SPAIN)),
        one(engine, long),
        one(engine, ask(FRANCE)),
    )
    assert (before.text, after.text) == (MADRID, PARIS)
    assert grown.error is None
    assert grown == one(new_engine(), long)


def test_a_context_that_is_no_power_of_two_is_used_to_its_end(new_engine, build, nonsense):
    file = build / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["context_length"] = 700  # the runtime refuses a cache that is longer
    file.write_text(json.dumps(config), encoding="utf-8")
    engine = new_engine(ModelFolder.open(build))
    params = GenerationParams(temperature=50.0, max_tokens=100)
    completion = one(engine, Request(nonsense(695), params))
    assert completion.error is None
    assert completion.usage == Usage(695, 5)


def test_max_tokens_may_ask_for_more_than_the_context(engine, ask):
    assert one(engine, ask(SPAIN, max_tokens=10**9)).text == MADRID


def test_no_bit_of_a_completion_depends_on_what_the_engine_has_read_before(new_engine, ask):
    hot = [ask(SPAIN, temperature=3.0, seed=seed, max_tokens=30) for seed in range(60)]
    short = [Request(ids, hot[0].params) for ids in [(5,), (5,), (5, 6), (5, 6, 7), (5,), (5, 6)]]
    alone = new_engine(shares_prefixes=False)
    engine = new_engine()
    for _ in range(2):  # the first after nothing, then the same prompt after itself
        assert engine.generate(hot) == alone.generate(hot)
        assert [one(engine, request) for request in short] == alone.generate(short)


def test_no_runtime_sees_ids_beyond_the_vocabulary(engine):
    for ids in ((1, 5, 1024), (1, -1)):
        error = one(engine, Request(ids)).error
        assert error.code is RowErrorCode.ENGINE_ERROR
        assert error.message.startswith("a token id is beyond the vocabulary of 1024")


def test_a_wrong_number_of_threads_is_refused_before_the_model_is_loaded(monkeypatch, new_engine):
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(EngineError, match="OMP_NUM_THREADS must be a positive number, not 'many'"):
        new_engine()


def test_nothing_is_written_when_requests_succeed_or_are_refused(capfd, caplog, engine, ask):
    engine.generate([ask(SPAIN), Request(()), Request((5,) * 5000)])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# stop strings


@pytest.mark.parametrize(
    "stop",
    [
        (" Madrid",),
        ("pital of Sp",),
        ("Spain", "capital"),
        ("T",),
        ("Madrid.",),
        ("never",),
        ("e", "h", "a"),
        ("is M", "s Ma"),
    ],
)
@pytest.mark.parametrize("max_tokens", [3, 6, 100])
def test_stop_strings_end_a_completion_as_they_do_in_the_reference(
    engine, reference, ask, stop, max_tokens
):
    requests = [ask(text, stop=stop, max_tokens=max_tokens) for text in (SPAIN, FRANCE)]
    assert engine.generate(requests) == reference.generate(requests)


def test_characters_of_several_tokens_are_found_and_cut_as_in_the_reference(
    engine, reference, samples, requests_of_samples
):
    requests = []
    for sample, request in zip(samples, requests_of_samples, strict=True):
        if any(ord(character) > 0x2FFF for character in sample.answer):
            character = next(c for c in sample.answer if ord(c) > 0x2FFF)
            params = [GenerationParams(max_tokens=count) for count in range(1, 12)]
            params.append(GenerationParams(stop=(character,)))
            requests += [Request(request.prompt_ids, p) for p in params]
    assert len(requests) > 50
    completions = engine.generate(requests)
    assert completions == reference.generate(requests)
    assert not any("\N{REPLACEMENT CHARACTER}" in c.text for c in completions)


# sampling


def test_hardly_any_temperature_is_greedy(engine, ask):
    for temperature in (1e-300, 1e-30, 1e-6, 1e-3):
        assert one(engine, ask(SPAIN, temperature=temperature, seed=5)).text == MADRID


def test_hardly_any_probability_is_greedy(engine, ask):
    assert one(engine, ask(SPAIN, temperature=3.0, top_p=1e-30, seed=5)).text == MADRID


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1e308},
        {"temperature": 1.0, "top_k": 2**31 - 1},
        {"temperature": 1.0, "top_p": 0.9999999999},
        {"temperature": 1.0, "seed": 2**63 - 1},
    ],
)
def test_parameters_beyond_what_a_runtime_counts_with_are_taken(engine, ask, params):
    completion = one(engine, ask(SPAIN, max_tokens=5, **params))
    assert completion.error is None
    assert completion.usage.completion_tokens <= 5


def test_tokens_are_drawn_as_often_as_they_are_likely(engine, reference, ask):
    """Both engines draw from the same distribution, each with random numbers of its own."""
    # the first token of an answer, at a temperature that makes it a matter of chance
    requests = [ask(SPAIN, temperature=4.0, top_k=8, max_tokens=1, seed=n) for n in range(600)]
    counts = [
        Counter(completion.token_ids for completion in which.generate(requests))
        for which in (engine, reference)
    ]
    assert set(counts[0]) <= set(counts[1]) | {()}
    for token in counts[1]:
        # five standard deviations of the difference of two draws
        assert abs(counts[0][token] - counts[1][token]) < 5 * (2 * counts[1][token]) ** 0.5 + 5
