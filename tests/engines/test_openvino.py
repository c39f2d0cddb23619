"""What is OpenVINO's alone: many requests at a time, and a cache that they share."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version

import pytest

from phi3_batch.engines import kv_budget
from phi3_batch.engines.kv_budget import BLOCK_TOKENS, blocks_for, cache_blocks
from phi3_batch.engines.ov import engine as openvino
from phi3_batch.engines.ov.engine import MODEL_BIN, MODEL_XML, OpenVINOEngine, write_model
from phi3_batch.engines.ov.graph import convert
from phi3_batch.engines.ov.int4 import instructions_for
from phi3_batch.engines.ov.int4_kernel import AVX2
from phi3_batch.engines.ov.runtime import ContinuousBatchingPipeline
from phi3_batch.engines.ov.sequence import CACHE_TOO_SMALL, FillerRequests, generation_config
from phi3_batch.engines.threads import thread_count
from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request, Usage
from phi3_batch.model_files import Limits
from tests.engines.conftest import FRANCE, MADRID, PARIS, SPAIN, one

NAME = f"openvino-genai {version('openvino-genai')}"


@pytest.fixture
def new_openvino(tiny_folder, converted_model):
    """Makes engines that have answered nothing yet."""
    return lambda **options: OpenVINOEngine(tiny_folder, converted_model, **options)


@pytest.fixture(scope="session")
def openvino_engine(tiny_folder, converted_model):
    return OpenVINOEngine(tiny_folder, converted_model)


@pytest.fixture(scope="session")
def hot_completions(tiny_folder, converted_model, hot):
    return OpenVINOEngine(tiny_folder, converted_model).generate(hot)


@pytest.mark.parametrize(("by_our_kernel", "name"), [(AVX2, f"{NAME} + int4 kernel"), (None, NAME)])
def test_an_engine_says_which_runtime_it_is(monkeypatch, new_openvino, by_our_kernel, name):
    monkeypatch.setattr(openvino, "instructions_for", lambda folder: by_our_kernel)
    assert new_openvino().name == name


def test_an_engine_says_what_it_takes(openvino_engine):
    assert openvino_engine.limits == Limits(context_length=4096, vocab_size=1024)


# whole completions, field by field


def test_greedy_completions_are_those_of_the_reference(
    openvino_engine, reference, requests_of_samples
):
    rng = random.Random(0)
    stops = [(), (), (" is",), ("a", "."), ("capital of",), ("\n",)]
    requests = [
        Request(
            request.prompt_ids,
            GenerationParams(max_tokens=rng.randint(1, 40), stop=rng.choice(stops), seed=index),
        )
        for index, request in enumerate(requests_of_samples)
    ]
    assert openvino_engine.generate(requests) == reference.generate(requests)


def test_three_hundred_phrasings_that_the_model_never_saw_get_the_tokens_of_the_reference(
    openvino_engine, reference, check_phrasings
):
    check_phrasings(openvino_engine, reference)


# company changes nothing


def test_sampled_texts_are_of_many_kinds(hot, hot_completions):
    assert len({completion.text for completion in hot_completions}) > len(hot) // 2


def test_a_sampled_text_is_the_same_in_any_order_with_a_prefix_cache_cold_and_warm(
    new_openvino, hot, hot_completions
):
    engine = new_openvino()
    assert engine.generate(hot) == hot_completions
    assert engine.generate(hot) == hot_completions
    order = random.Random(1).sample(range(len(hot)), len(hot))
    shuffled = engine.generate([hot[index] for index in order])
    assert shuffled == [hot_completions[index] for index in order]


def test_a_sampled_text_is_the_same_alone(openvino_engine, hot, hot_completions):
    for request, completion in list(zip(hot, hot_completions, strict=True))[::5]:
        assert one(openvino_engine, request) == completion


def test_a_sampled_text_is_the_same_after_answers_of_one_token(new_openvino, hot, hot_completions):
    engine = new_openvino()
    engine.generate([Request(r.prompt_ids, GenerationParams(max_tokens=1)) for r in hot[::4]])
    engine.generate([Request(r.prompt_ids, GenerationParams(stop=("T", "t"))) for r in hot[::4]])
    assert engine.generate(hot) == hot_completions


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 34, 63, 64, 65, 97, 128, 129])
def test_a_sampled_text_is_the_same_whether_its_prompt_is_in_the_cache(
    new_openvino, nonsense, length
):
    prompt = nonsense(length)
    requests = [Request(prompt, GenerationParams(30, 2.0, 0.9, seed=seed)) for seed in range(6)]
    longer = [Request((*prompt, 55, 66, 77), GenerationParams(3))]
    engine = new_openvino()
    completions = engine.generate(requests)
    assert len({completion.token_ids for completion in completions}) > 1
    assert engine.generate(requests) == completions
    assert new_openvino().generate(longer + requests[::-1])[1:] == completions[::-1]


def test_sampled_texts_are_the_same_beside_greedy_ones_whose_prompts_are_parted(
    new_openvino, nonsense
):
    sampled = [
        Request((number, *nonsense(10 + 2 * number)), GenerationParams(30, 2.0, 0.9, seed=number))
        for number in range(58)
    ]
    greedy = [Request((number, *nonsense(400)), GenerationParams(number)) for number in range(1, 9)]
    completions = new_openvino().generate(sampled)
    assert new_openvino().generate([*greedy, *sampled[::-1]])[8:] == completions[::-1]
    assert new_openvino().generate(sampled[7:20]) == completions[7:20]


def test_prompts_parted_where_steps_are_full_give_the_same_greedy_texts(
    new_openvino, nonsense, reference, tiny_folder
):
    # the parts of each depend on how many of those before it still generate
    requests = [
        Request((number, *nonsense(100 + 17 * number)), GenerationParams(5 + number % 30))
        for number in range(40)
    ]
    completions = new_openvino().generate(requests)
    engine = new_openvino()
    alone = [one(engine, request) for request in requests]
    # of nonsense, two tokens may be as good as equally likely: with our kernel one of them is
    assert completions == (alone if instructions_for(tiny_folder) else reference.generate(requests))
    assert new_openvino().generate(requests[::-2]) == completions[::-2]


def test_prompts_as_long_as_a_step_do_not_wait_for_each_others_ends(
    new_openvino, nonsense, monkeypatch
):
    steps = []
    step = ContinuousBatchingPipeline.step
    monkeypatch.setattr(
        ContinuousBatchingPipeline, "step", lambda self: (steps.append(1), step(self))
    )
    requests = [
        Request((number, *nonsense(255)), GenerationParams(30, temperature, seed=1))
        for number, temperature in enumerate((0.0, 1.0) * 4)
    ]
    completions = new_openvino().generate(requests)
    assert all(completion.error is None for completion in completions)
    assert len(steps) < 2 * 30 + 8


def test_those_that_share_a_beginning_start_before_the_rest_of_it_is_read(
    new_openvino, reference, nonsense
):
    # the first of each group is read in parts, and its beginnings are in the cache by then
    beginning = nonsense(500)
    requests = [
        Request((number, *beginning[:length], number, *nonsense(40)), GenerationParams(20))
        for number in (3, 4)
        for length in (30, 31, 62, 63, 100, 255, 256, 300, 480, 500)
    ]
    completions = new_openvino().generate(requests)
    assert completions == reference.generate(requests)
    assert new_openvino().generate(requests[::-1]) == completions[::-1]


def test_a_prompt_that_waits_for_no_other_does_not_find_what_is_half_computed(
    new_openvino, nonsense
):
    # the runtime enters all blocks of a prompt before it has read the prompt
    first = nonsense(20)
    # few tokens: of nonsense, later ones may be near ties, where the processor rounds to bfloat16
    filling = [Request((7, *nonsense(50 + number)), GenerationParams(5)) for number in range(30)]
    requests = [
        *filling,
        *[Request(first[:length], GenerationParams(5)) for length in range(3, 20)],
        *filling,
    ]
    whole = new_openvino(prefix_caching=False)
    assert new_openvino().generate(requests) == whole.generate(requests)


def test_a_sampled_text_is_the_same_on_one_thread(new_openvino, hot, hot_completions):
    assert new_openvino(threads=1).generate(hot[::3]) == hot_completions[::3]


def test_a_sampled_text_is_the_same_beside_greedy_ones_that_end_sooner(
    openvino_engine, hot, hot_completions, ask
):
    short = [ask(SPAIN, max_tokens=n) for n in (1, 2, 5)]
    assert openvino_engine.generate([*short, hot[9]])[-1] == hot_completions[9]


def test_callers_on_threads_of_their_own_get_their_own_texts(openvino_engine, hot, hot_completions):
    parts = [slice(start, None, 6) for start in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda part: openvino_engine.generate(hot[part]), parts)
        for part, result in zip(parts, results, strict=True):
            assert result == hot_completions[part]


# the cache


def test_more_requests_than_the_cache_holds_are_all_answered(
    new_openvino, requests_of_samples, completions_of_samples, nonsense
):
    engine = new_openvino(memory_bytes=0)
    long = [Request(nonsense(length), GenerationParams(max_tokens=9)) for length in (3000, 4095)]
    requests = [long[0], *requests_of_samples, long[1]]
    completions = engine.generate(requests)
    assert completions[1:-1] == completions_of_samples
    assert [completion.usage.prompt_tokens for completion in completions[:: len(requests) - 1]] == [
        3000,
        4095,
    ]
    assert all(completion.error is None for completion in completions)


def test_a_small_cache_changes_no_text(new_openvino, hot, hot_completions):
    engine = new_openvino(memory_bytes=0)
    assert engine.generate(hot[::-1]) == hot_completions[::-1]


def test_the_cache_holds_a_context_of_4096_whatever_memory_there_is(tiny_folder):
    assert cache_blocks(tiny_folder, 2, memory_bytes=0) == blocks_for(4096)
    assert cache_blocks(tiny_folder, 2, memory_bytes=-(10**9)) == blocks_for(4096)
    longer = replace(tiny_folder, context_length=131072)
    assert cache_blocks(longer, 2, memory_bytes=0) == blocks_for(4096)


def test_the_cache_is_as_large_as_the_memory_and_no_larger_than_is_of_use(tiny_folder):
    # keys and values of 4 layers, 6 heads and 32 values of 2 bytes
    block_bytes = BLOCK_TOKENS * 2 * 4 * 6 * 32 * 2
    assert cache_blocks(tiny_folder, 2, memory_bytes=1000 * block_bytes) == 1000
    assert cache_blocks(tiny_folder, 2, memory_bytes=10**13) == blocks_for(65536)
    longer = replace(tiny_folder, context_length=131072)
    assert cache_blocks(longer, 2, memory_bytes=10**13) == blocks_for(131072)


@pytest.mark.parametrize(("by_our_kernel", "copies"), [(AVX2, 1), (None, 2)])
def test_the_cache_has_half_of_what_the_weights_leave(
    monkeypatch, new_openvino, tiny_folder, by_our_kernel, copies
):
    block_bytes = BLOCK_TOKENS * 2 * 4 * 6 * 32 * 2
    weights = sum((tiny_folder.path / name).stat().st_size for name in tiny_folder.files)
    available = copies * weights + kv_budget._WORK_BYTES + 2 * 1000 * block_bytes
    monkeypatch.setattr(kv_budget, "claim_memory", lambda decide: decide(available))
    monkeypatch.setattr(openvino, "instructions_for", lambda folder: by_our_kernel)
    assert new_openvino()._blocks == 1000


def test_a_key_and_a_value_take_two_bytes_each_whatever_the_processor(new_openvino, tiny_folder):
    engine = new_openvino(memory_bytes=0)
    blocks = engine._blocks + 2 * FillerRequests.SEQUENCES * blocks_for(FillerRequests.TOKENS)
    values = BLOCK_TOKENS * tiny_folder.dimensions.cache_values_per_token
    assert engine._pipeline.get_metrics().kv_cache_size_in_bytes == blocks * values * 2


def test_a_prompt_that_the_cache_cannot_hold_fails_alone(
    tiny_folder, converted_model, ask, nonsense
):
    # where a context of 4096 fits and no more; that the model has no positions beyond it is not
    # what the answers here are asked for
    folder = replace(tiny_folder, context_length=6000)
    engine = OpenVINOEngine(folder, converted_model, memory_bytes=0)
    long = Request((nonsense(3000) * 2)[:5500], GenerationParams(max_tokens=2))
    completions = engine.generate([ask(SPAIN), long, ask(FRANCE, max_tokens=10**6)])
    assert [completion.text for completion in completions] == [MADRID, "", PARIS]
    assert completions[1].error.code is RowErrorCode.ENGINE_ERROR
    assert completions[1].error.message == f"{NAME}: {CACHE_TOO_SMALL}"
    assert one(engine, ask(SPAIN)).text == MADRID


@pytest.mark.parametrize("temperature", [1e-3, 50.0])
def test_an_answer_that_outgrows_the_cache_fails_alone(
    tiny_folder, converted_model, ask, nonsense, temperature
):
    folder = replace(tiny_folder, context_length=6000, end_token_ids=(1023,))
    engine = OpenVINOEngine(folder, converted_model, memory_bytes=0)
    endless = GenerationParams(max_tokens=10**6, temperature=temperature, seed=3)
    completion = one(engine, Request(nonsense(4600), endless))
    assert completion.error is None or completion.error.message == f"{NAME}: {CACHE_TOO_SMALL}"
    assert one(engine, ask(SPAIN, stop=("Madrid",))).text == "The capital of Spain is "


# parameters


def test_nothing_of_the_defaults_of_a_model_or_the_runtime_is_in_a_configuration():
    greedy = generation_config(GenerationParams(top_k=7, top_p=0.5, seed=3), 9)
    assert not greedy.do_sample
    assert (greedy.max_new_tokens, greedy.min_new_tokens, greedy.ignore_eos) == (9, 0, True)
    penalties = greedy.repetition_penalty, greedy.presence_penalty, greedy.frequency_penalty
    assert penalties == (1, 0, 0)
    assert (greedy.num_beams, greedy.stop_strings) == (1, set())
    sampled = generation_config(GenerationParams(temperature=0.5), 9)
    assert sampled.do_sample
    assert (sampled.temperature, sampled.top_p, sampled.min_p) == (0.5, 1.0, 0.0)
    assert sampled.top_k > 10**9
    narrow = generation_config(GenerationParams(temperature=0.5, top_k=3, top_p=0.25), 9)
    assert (narrow.top_k, narrow.top_p) == (3, 0.25)


def test_seeds_that_are_alike_are_not_alike_to_the_runtime():
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**63 - 2, 2**63 - 1]
    configs = [generation_config(GenerationParams(temperature=1.0, seed=seed), 1) for seed in seeds]
    assert len({config.rng_seed for config in configs}) == len(seeds)


# what goes wrong


@pytest.fixture
def fragile(monkeypatch):
    """A list of prompts on which a step of the runtime fails, and how often it has."""

    class Fragile:
        prompts: tuple = ()
        failures = 0

    class FragilePipeline:
        def __init__(self, *arguments):
            self._pipeline = ContinuousBatchingPipeline(*arguments)
            self._here = []

        def add_request(self, number, ids, config):
            handle = self._pipeline.add_request(number, ids, config)
            self._here.append(tuple(ids.data[0]))
            return handle

        def step(self):
            if any(prompt in Fragile.prompts for prompt in self._here):
                Fragile.failures += 1
                raise RuntimeError("Check 'memory' failed at src/graph.cpp:17:\nno more memory\n")
            self._pipeline.step()

        def __getattr__(self, name):
            return getattr(self._pipeline, name)

    monkeypatch.setattr(openvino, "ContinuousBatchingPipeline", FragilePipeline)
    return Fragile


def test_a_request_on_which_a_step_fails_fails_alone(fragile, new_openvino, ask):
    engine = new_openvino()
    bad = ask("What is the capital of Chile?")
    fragile.prompts = (bad.prompt_ids,)
    completions = engine.generate([ask(SPAIN), bad, ask(FRANCE), *[ask(SPAIN)] * 5])
    assert [c.text for c in completions] == [MADRID, "", PARIS, *[MADRID] * 5]
    error = completions[1].error
    assert error.code is RowErrorCode.ENGINE_ERROR
    assert error.message == f"{NAME}: no more memory"
    assert completions[1].usage == Usage(len(bad.prompt_ids), 0)
    assert 1 < fragile.failures < 8
    assert one(engine, ask(FRANCE)).text == PARIS


def test_what_was_answered_before_a_step_failed_is_kept(fragile, new_openvino, ask, monkeypatch):
    engine = new_openvino()
    monkeypatch.setattr("phi3_batch.engines.ov.batch.SEQUENCES", 1)
    bad = ask("What is the capital of Chile?", max_tokens=1)
    fragile.prompts = (bad.prompt_ids,)
    completions = engine.generate([bad, ask(SPAIN)])  # the one that may take longer comes first
    assert [completion.text for completion in completions] == ["", MADRID]
    assert fragile.failures == 1


def test_a_request_that_the_runtime_refuses_fails_alone(openvino_engine, monkeypatch, ask):
    def refuse(params, *arguments):
        config = generation_config(params, *arguments)
        if params.seed == 13:
            config.max_new_tokens = 0
        return config

    monkeypatch.setattr("phi3_batch.engines.ov.sequence.generation_config", refuse)
    completions = openvino_engine.generate([ask(SPAIN), ask(SPAIN, seed=13), ask(FRANCE)])
    assert [completion.text for completion in completions] == [MADRID, "", PARIS]
    assert completions[1].error.code is RowErrorCode.ENGINE_ERROR
    assert completions[1].error.message.startswith(f"{NAME}: ")
    assert one(openvino_engine, ask(SPAIN, seed=13)).error is not None
    assert one(openvino_engine, ask(SPAIN)).text == MADRID


def test_tokens_that_cannot_be_decoded_cost_their_row_alone(openvino_engine, monkeypatch, ask):
    class Forgetful:
        def __init__(self, tokenizer):
            self._tokenizer = tokenizer

        def decode(self, ids):
            text = self._tokenizer.decode(ids)
            if "Paris" in text:
                raise ValueError(f"{len(ids)} tokens cannot be decoded")
            return text

        def stream(self):
            return self._tokenizer.stream()

    monkeypatch.setattr(openvino_engine, "tokenizer", Forgetful(openvino_engine.tokenizer))
    completions = openvino_engine.generate([ask(FRANCE), ask(SPAIN)])
    assert [completion.text for completion in completions] == ["", MADRID]
    assert completions[0].error.message.endswith("tokens cannot be decoded")


def test_an_interrupted_call_leaves_nothing_behind(fragile, new_openvino, monkeypatch, ask):
    engine = new_openvino()

    def interrupt(batch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("phi3_batch.engines.ov.batch.Batch._collect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([ask(FRANCE)])
    assert one(engine, ask(SPAIN)).text == MADRID


def test_logits_that_are_no_numbers_are_an_error_when_the_model_is_loaded(
    tiny_folder, tmp_path, build
):
    data = build / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)  # as float32 all NaN
    folder = type(tiny_folder).open(build)
    write_model(convert(folder), folder, tmp_path)
    with pytest.raises(EngineError, match=r"^openvino-genai .* cannot load .*") as error:
        OpenVINOEngine(folder, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_converted_model_cut_short_is_one_line(tiny_folder, converted_model, tmp_path, size):
    (tmp_path / MODEL_XML).write_bytes((converted_model / MODEL_XML).read_bytes())
    (tmp_path / MODEL_BIN).write_bytes((converted_model / MODEL_BIN).read_bytes()[:size])
    with pytest.raises(EngineError) as error:
        OpenVINOEngine(tiny_folder, tmp_path)
    assert str(error.value).startswith(f"{NAME} cannot load {tmp_path}: ")
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_to_is_an_os_error(tiny_folder):
    with pytest.raises(OSError, match="cannot be written to /proc/nowhere"):
        write_model(convert(tiny_folder), tiny_folder, type(tiny_folder.path)("/proc/nowhere"))


def test_the_threads_of_the_environment_reach_the_runtime(monkeypatch, new_openvino):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thread_count() == 1
    assert new_openvino()._properties["INFERENCE_NUM_THREADS"] == 1


def test_the_import_tells_nobody():
    code = """
import sys
import phi3_batch.engines.ov.engine
print([name for name in sys.modules if "telemetry" in name and name.startswith("openvino_")])
print(sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "[]\nopenvino.tools.ovc.telemetry_stub\n"
