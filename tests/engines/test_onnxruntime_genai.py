import subprocess
import sys

import onnxruntime_genai as og
import pytest

from phi3_batch.engines import threads
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request, Usage
from phi3_batch.model_files import Limits, ModelFolder
from tests.engines.conftest import FRANCE, MADRID, PARIS, SPAIN, one

BEYOND_THE_VOCABULARY = Request((1010, 5000, 1007, 1001))


def test_an_engine_says_which_runtime_it_is(reference):
    assert reference.name == f"onnxruntime-genai {og.__version__}"
    assert reference.limits == Limits(context_length=4096, vocab_size=1024)


# prompts of any length


@pytest.mark.parametrize("length", [2040, 2100, 3000])
def test_a_build_that_names_a_sliding_window_answers_beyond_it(
    build_with_sliding_window, reference, nonsense, length
):
    # without cache_slack the runtime fails here: its cache is as long as the window
    folder = ModelFolder.open(build_with_sliding_window)
    assert folder.sliding_window["window_size"] == 2047
    request = Request(nonsense(length), GenerationParams(max_tokens=24))
    completion = one(OnnxRuntimeGenAIEngine(folder), request)
    assert completion.error is None
    assert completion == one(reference, request)


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


def test_a_prompt_that_is_the_beginning_of_the_one_before_reads_two_tokens(
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


def test_the_threads_of_the_environment_reach_the_runtime(monkeypatch, tiny_folder):
    overlays = []
    load_config = og.Config

    class WatchedConfig(load_config):
        def overlay(self, text):
            overlays.append(text)
            super().overlay(text)

    monkeypatch.setattr(og, "Config", WatchedConfig)
    monkeypatch.setattr(threads, "processors", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    OnnxRuntimeGenAIEngine(tiny_folder)
    assert overlays == ['{"model": {"decoder": {"session_options": {"intra_op_num_threads": 3}}}}']


def test_the_runtime_sends_no_telemetry():
    code = """
import onnxruntime_genai as og
calls = []
og.disable_telemetry_events = lambda: calls.append("disabled")
import phi3_batch.engines.onnxruntime.engine
print(calls)
"""
    answer = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "['disabled']\n"
