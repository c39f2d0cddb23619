import json
import subprocess
import sys

import onnxruntime_genai as og
import pytest

from phi3_batch.engines import Limits, ModelFolder
from phi3_batch.engines.onnxruntime_genai import OnnxRuntimeGenAIEngine
from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request, Usage

SPAIN = "What is the capital of Spain?"
FRANCE = "What is the capital of France?"
MADRID = "The capital of Spain is Madrid."
PARIS = "The capital of France is Paris."
BEYOND_THE_VOCABULARY = Request((1010, 5000, 1007, 1001))


def one(engine, request):
    [completion] = engine.generate([request])
    return completion


def test_an_engine_says_which_runtime_it_is(tiny_engine):
    assert tiny_engine.name == f"onnxruntime-genai {og.__version__}"
    assert tiny_engine.limits == Limits(context_length=4096, vocab_size=1024)


def test_no_request_gets_no_completion(fresh_engine):
    assert fresh_engine.generate([]) == []


# parameters


def test_requests_of_different_parameters_share_a_call_without_touching_each_other(
    tiny_engine, tiny_folder, ask
):
    requests = [
        *(ask(SPAIN, max_tokens=count) for count in range(1, 14)),
        *(ask(SPAIN, temperature=2.0, seed=seed, max_tokens=12) for seed in range(6)),
        *(ask(FRANCE, temperature=1.5, top_p=0.9, top_k=50, seed=3, max_tokens=n) for n in (4, 9)),
        ask(SPAIN, stop=("Spain",)),
        ask(SPAIN, stop=("capital", "Madrid")),
        ask(FRANCE),
    ]
    alone = OnnxRuntimeGenAIEngine(tiny_folder, keep_prefix=False)
    assert tiny_engine.generate(requests) == [one(alone, request) for request in requests]


def test_max_tokens_cuts_the_answer_and_says_so(tiny_engine, ask):
    whole = one(tiny_engine, ask(SPAIN))
    cut = one(tiny_engine, ask(SPAIN, max_tokens=4))
    assert cut.token_ids == whole.token_ids[:4]
    assert cut.finish_reason == "length"
    assert cut.usage == Usage(whole.usage.prompt_tokens, 4)


def test_a_stop_string_cuts_the_answer_before_it(tiny_engine, ask):
    completion = one(tiny_engine, ask(SPAIN, stop=(" Madrid",)))
    assert completion.text == "The capital of Spain is"
    assert completion.finish_reason == "stop"


def test_the_same_seed_gives_the_same_text(fresh_engine, tiny_engine, ask):
    request = ask(SPAIN, temperature=3.0, seed=11, max_tokens=30)
    assert one(fresh_engine, request) == one(tiny_engine, request)


def test_different_seeds_give_different_texts(tiny_engine, ask):
    requests = [ask(SPAIN, temperature=3.0, seed=seed, max_tokens=30) for seed in range(8)]
    texts = {completion.text for completion in tiny_engine.generate(requests)}
    assert len(texts) == 8
    assert MADRID not in texts


def test_a_seed_does_not_matter_when_decoding_is_greedy(tiny_engine, ask):
    assert [c.text for c in tiny_engine.generate([ask(SPAIN, seed=1), ask(SPAIN, seed=2)])] == [
        MADRID,
        MADRID,
    ]


def test_top_k_1_is_greedy_at_any_temperature(tiny_engine, ask):
    assert one(tiny_engine, ask(SPAIN, temperature=5.0, top_k=1)).text == MADRID


# prompts of any length


@pytest.mark.parametrize("length", [4096, 4097, 5000])
def test_a_prompt_that_fills_the_context_is_too_long_and_its_neighbours_are_not(
    tiny_engine, ask, nonsense, length
):
    ids = (nonsense(4096) * 2)[:length]
    completions = tiny_engine.generate([ask(SPAIN), Request(ids), ask(FRANCE)])
    assert [completion.text for completion in completions] == [MADRID, "", PARIS]
    assert completions[1].error.code is RowErrorCode.PROMPT_TOO_LONG
    assert completions[1].usage == Usage(length, 0)


def test_a_prompt_one_short_of_the_context_gets_one_token(tiny_engine, nonsense):
    completion = one(tiny_engine, Request(nonsense(4095)))
    assert completion.error is None
    assert completion.usage == Usage(4095, 1)


def test_an_answer_ends_where_the_context_ends(tiny_engine, nonsense):
    prompt = nonsense(4090)
    params = GenerationParams(temperature=50.0, max_tokens=100)
    completion = one(tiny_engine, Request(prompt, params))
    assert completion.finish_reason == "length"
    assert completion.usage == Usage(4090, 6)


@pytest.mark.parametrize("length", [500, 600, 1500, 3000])
def test_a_long_request_between_short_ones_grows_the_cache_and_changes_no_token(
    fresh_engine, tiny_folder, ask, nonsense, length
):
    long = Request(nonsense(length), GenerationParams(max_tokens=40))
    before, grown, after = (
        one(fresh_engine, ask(SPAIN)),
        one(fresh_engine, long),
        one(fresh_engine, ask(FRANCE)),
    )
    assert (before.text, after.text) == (MADRID, PARIS)
    assert grown.error is None
    assert grown == one(OnnxRuntimeGenAIEngine(tiny_folder), long)


def test_a_context_that_is_no_power_of_two_is_used_to_its_end(build, nonsense):
    file = build / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["context_length"] = 700  # the runtime refuses a cache that is longer
    file.write_text(json.dumps(config), encoding="utf-8")
    engine = OnnxRuntimeGenAIEngine(ModelFolder.open(build))
    params = GenerationParams(temperature=50.0, max_tokens=100)
    completion = one(engine, Request(nonsense(695), params))
    assert completion.error is None
    assert completion.usage == Usage(695, 5)


def test_max_tokens_may_ask_for_more_than_the_context(fresh_engine, ask):
    assert one(fresh_engine, ask(SPAIN, max_tokens=10**9)).text == MADRID


@pytest.mark.parametrize("length", [2040, 2100, 3000])
def test_a_build_that_names_a_sliding_window_answers_beyond_it(
    build_with_sliding_window, tiny_engine, nonsense, length
):
    # without cache_slack the runtime fails here: its cache is as long as the window
    folder = ModelFolder.open(build_with_sliding_window)
    assert folder.sliding_window["window_size"] == 2047
    request = Request(nonsense(length), GenerationParams(max_tokens=24))
    completion = one(OnnxRuntimeGenAIEngine(folder), request)
    assert completion.error is None
    assert completion == one(tiny_engine, request)


# the kept prefix


def test_a_shared_system_prompt_is_read_once(prefilled, tiny_folder, nonsense):
    prefix = (1006, *nonsense(300), 1007, 1010)
    suffixes = [(300 + i, 400, 401, 1007, 1001) for i in range(6)]
    params = GenerationParams(max_tokens=1)  # one token: it is chosen, and never given back
    requests = [Request(prefix + suffix, params) for suffix in suffixes]
    OnnxRuntimeGenAIEngine(tiny_folder).generate(requests)
    assert prefilled == [len(prefix) + 5, 5, 5, 5, 5, 5]


def test_without_keeping_the_prefix_every_prompt_is_read_whole(prefilled, tiny_folder, nonsense):
    prefix = nonsense(300)
    requests = [Request((*prefix, 300 + i), GenerationParams(max_tokens=1)) for i in range(3)]
    OnnxRuntimeGenAIEngine(tiny_folder, keep_prefix=False).generate(requests)
    assert prefilled == [301, 301, 301]


def test_requests_that_share_a_prefix_are_put_next_to_each_other(prefilled, tiny_folder, nonsense):
    first, second = (300, *nonsense(100)), (301, *nonsense(100))
    params = GenerationParams(max_tokens=1)
    mixed = [(*first, 500), (*second, 500), (*first, 501), (*second, 501)]
    OnnxRuntimeGenAIEngine(tiny_folder).generate([Request(ids, params) for ids in mixed])
    assert prefilled == [102, 2, 102, 2]


def test_a_prefix_is_kept_from_one_call_to_the_next(prefilled, tiny_folder, nonsense):
    engine = OnnxRuntimeGenAIEngine(tiny_folder)
    for last in (500, 501):
        one(engine, Request((*nonsense(200), last), GenerationParams(max_tokens=1)))
    assert prefilled == [201, 2]


def test_of_a_prompt_equal_to_the_one_before_only_the_last_two_tokens_are_read(
    prefilled, tiny_folder, ask
):
    request = ask(SPAIN)
    completions = OnnxRuntimeGenAIEngine(tiny_folder).generate([request] * 3)
    assert [completion.text for completion in completions] == [MADRID] * 3
    generated = len(completions[0].token_ids)
    assert sum(prefilled) == len(request.prompt_ids) + 2 + 2 + 3 * generated


def test_no_bit_of_a_completion_depends_on_what_the_engine_has_read_before(tiny_folder, ask):
    hot = [ask(SPAIN, temperature=3.0, seed=seed, max_tokens=30) for seed in range(60)]
    short = [Request(ids, hot[0].params) for ids in [(5,), (5,), (5, 6), (5, 6, 7), (5,), (5, 6)]]
    alone = OnnxRuntimeGenAIEngine(tiny_folder, keep_prefix=False)
    engine = OnnxRuntimeGenAIEngine(tiny_folder)
    for _ in range(2):  # the first after nothing, then the same prompt after itself
        assert engine.generate(hot) == alone.generate(hot)
        assert [one(engine, request) for request in short] == alone.generate(short)


def test_a_prompt_that_is_the_beginning_of_the_one_before_gets_its_own_answer(
    prefilled, tiny_folder, ask
):
    engine = OnnxRuntimeGenAIEngine(tiny_folder)
    short = ask(SPAIN)
    long = Request(short.prompt_ids + tuple(engine.tokenizer.encode_content("The capital of")))
    one(engine, long)
    prefilled.clear()
    assert one(engine, short).text == MADRID
    assert prefilled[0] == 2


def test_a_prompt_that_goes_on_after_the_one_before_is_read_from_there(
    prefilled, tiny_folder, nonsense
):
    engine = OnnxRuntimeGenAIEngine(tiny_folder)
    for length in (100, 130):
        one(engine, Request(nonsense(length), GenerationParams(max_tokens=1)))
    assert prefilled == [100, 30]


# what goes wrong


@pytest.fixture
def unguarded_engine(fresh_engine):
    """An engine that lets any token id through, so that it is the runtime that fails on it."""
    fresh_engine.limits = Limits(context_length=4096, vocab_size=10**6)
    return fresh_engine


def test_a_request_on_which_the_runtime_fails_fails_alone(unguarded_engine, ask):
    requests = [ask(SPAIN), BEYOND_THE_VOCABULARY, ask(FRANCE)]
    completions = unguarded_engine.generate(requests)
    assert [completion.text for completion in completions] == [MADRID, "", PARIS]
    error = completions[1].error
    assert error.code is RowErrorCode.ENGINE_ERROR
    assert error.message.startswith(f"{unguarded_engine.name}: ")
    assert "\n" not in error.message
    assert completions[1].finish_reason is None
    assert completions[1].usage == Usage(4, 0)


def test_an_engine_works_on_after_a_failure(unguarded_engine, ask):
    assert one(unguarded_engine, ask(SPAIN)).text == MADRID
    assert one(unguarded_engine, BEYOND_THE_VOCABULARY).error is not None
    assert one(unguarded_engine, ask(SPAIN)).text == MADRID


def test_no_runtime_sees_ids_beyond_the_vocabulary(fresh_engine):
    for ids in ((1, 5, 1024), (1, -1)):
        error = one(fresh_engine, Request(ids)).error
        assert error.code is RowErrorCode.ENGINE_ERROR
        assert error.message.startswith("a token id is beyond the vocabulary of 1024")


def test_nothing_is_kept_of_a_request_that_failed(prefilled, unguarded_engine, ask):
    engine = unguarded_engine
    request = ask(SPAIN, max_tokens=1)
    assert request.prompt_ids[0] == BEYOND_THE_VOCABULARY.prompt_ids[0]
    engine.generate([request])
    engine.generate([BEYOND_THE_VOCABULARY])
    prefilled.clear()
    engine.generate([request])
    assert prefilled == [len(request.prompt_ids)]


def test_logits_that_are_no_numbers_are_an_engine_error(build, ask):
    data = build / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)  # as float32 all NaN
    error = one(OnnxRuntimeGenAIEngine(ModelFolder.open(build)), ask(SPAIN)).error
    assert error.code is RowErrorCode.ENGINE_ERROR
    assert error.message.endswith("the model's logits are not finite numbers")


@pytest.mark.parametrize("size", [1000, 2454271])
def test_weights_cut_short_are_one_line_when_they_are_loaded(build, size):
    data = build / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(EngineError) as error:
        OnnxRuntimeGenAIEngine(ModelFolder.open(build))
    message = str(error.value)
    assert message.startswith(f"onnxruntime-genai {og.__version__} cannot load {build}: ")
    assert "\n" not in message


def test_a_wrong_number_of_threads_is_refused_before_the_model_is_loaded(monkeypatch, tiny_folder):
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(EngineError, match="OMP_NUM_THREADS must be a positive number, not 'many'"):
        OnnxRuntimeGenAIEngine(tiny_folder)


def test_the_threads_of_the_environment_reach_the_runtime(monkeypatch, tiny_folder):
    overlays = []
    load_config = og.Config

    class WatchedConfig(load_config):
        def overlay(self, text):
            overlays.append(text)
            super().overlay(text)

    monkeypatch.setattr(og, "Config", WatchedConfig)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    OnnxRuntimeGenAIEngine(tiny_folder)
    assert overlays == ['{"model": {"decoder": {"session_options": {"intra_op_num_threads": 3}}}}']


def test_the_runtime_sends_no_telemetry():
    code = """
import onnxruntime_genai as og
calls = []
og.disable_telemetry_events = lambda: calls.append("disabled")
import phi3_batch.engines.onnxruntime_genai
print(calls)
"""
    answer = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "['disabled']\n"


def test_nothing_is_written_when_requests_succeed_or_are_refused(capfd, caplog, tiny_engine, ask):
    tiny_engine.generate([ask(SPAIN), Request(()), Request((5,) * 5000)])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
