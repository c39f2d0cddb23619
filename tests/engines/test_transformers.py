import json
import random
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from phi3_batch.engines import this_process, threads
from phi3_batch.engines.torch import engine as module
from phi3_batch.engines.torch.engine import TransformersEngine
from phi3_batch.errors import EngineError, EnvironmentProblemError, InvalidModelError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request, Usage
from phi3_batch.model_files import Checkpoint, Limits
from tests.conftest import TINY_CHECKPOINT

SPAIN = "What is the capital of Spain?"
FRANCE = "What is the capital of France?"
MADRID = "The capital of Spain is Madrid."
PARIS = "The capital of France is Paris."
POISON = 77  # a token that is in no prompt but those that are meant to fail


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Of torch: several wait for each other busily, and take 30 times as long beside others."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(Checkpoint.open(TINY_CHECKPOINT), threads=1)


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded checkpoint that a test may change."""
    return shutil.copytree(TINY_CHECKPOINT, tmp_path / "checkpoint")


@pytest.fixture
def wrap_model(monkeypatch, engine):
    """Puts a function before the model: it gets the runtime's forward, and what it is called with.

    Two wrappings lie one over the other.
    """

    def wrap_model(wrapper):
        forward = engine._model.forward
        monkeypatch.setattr(engine._model, "forward", lambda **inputs: wrapper(forward, **inputs))

    return wrap_model


@pytest.fixture
def steps(wrap_model):
    """The shapes (rows, tokens) of the ids that each step gave the model."""
    shapes = []

    def watch(forward, **inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    wrap_model(watch)
    return shapes


def one(engine, request):
    [completion] = engine.generate([request])
    return completion


def each_alone(engine, requests):
    return [one(engine, request) for request in requests]


def random_requests(lengths, **params):
    """Prompts of ordinary tokens; the model knows no answer, and is sure of no token it gives."""
    rng = random.Random(1)
    ids = [token_id for token_id in range(3, 1000) if token_id != POISON]
    return [
        Request(tuple(rng.choices(ids, k=length)), GenerationParams(**params)) for length in lengths
    ]


def reference_ids(engine, request):
    """What transformers' own loop generates for a request alone."""
    ids = torch.tensor([request.prompt_ids])
    output = engine._model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.params.max_tokens,
        do_sample=False,
    )
    generated = tuple(output[0, ids.shape[1] :].tolist())
    return generated[:-1] if generated[-1] in (1000, 1001, 1007) else generated


def test_an_engine_says_what_it_is(engine):
    assert engine.name == f"transformers {transformers.__version__}"
    assert engine.limits == Limits(context_length=4096, vocab_size=1024)


def test_no_request_gets_no_completion(engine):
    assert engine.generate([]) == []


# the answers that the embedded model knows


def test_every_sample_prompt_gets_the_completion_that_the_onnx_build_gives(
    engine, samples, requests_of_samples, reference
):
    completions = engine.generate(requests_of_samples)
    assert [completion.text for completion in completions] == [sample.answer for sample in samples]
    of_onnx_build = reference.generate(requests_of_samples)
    for completion, of_onnx in zip(completions, of_onnx_build, strict=True):
        assert completion == of_onnx  # token ids, finish_reason and usage too


def test_usage_counts_the_tokens_of_the_tokenizer(engine, samples, requests_of_samples):
    for sample, completion in zip(
        samples[::20], engine.generate(requests_of_samples[::20]), strict=True
    ):
        assert completion.usage == Usage(
            len(engine.tokenizer.encode_prompt(sample.prompt)),
            len(engine.tokenizer.encode_content(sample.answer)),
        )


def test_threads_of_one_process_do_not_mix(engine, requests_of_samples, reference):
    parts = [slice(start, 80, 4) for start in range(4)]
    answers = reference.generate(requests_of_samples[:80])
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda part: engine.generate(requests_of_samples[part]), parts)
        for part, result in zip(parts, results, strict=True):
            assert result == answers[part]


# what is in a batch


def test_a_greedy_row_does_not_depend_on_the_batch(monkeypatch, engine):
    monkeypatch.setattr(engine._rules, "end_token_ids", frozenset())  # nonsense is to go on
    requests = random_requests([*range(20, 52)], max_tokens=32)
    assert engine.generate(requests) == each_alone(engine, requests)


def test_tokens_are_those_of_transformers_own_loop(engine):
    requests = random_requests([1, 2, 30, 31, 90], max_tokens=24)
    ids = [completion.token_ids for completion in engine.generate(requests)]
    assert ids == [reference_ids(engine, request) for request in requests]


def test_rows_of_different_parameters_share_a_batch_without_touching_each_other(engine, ask, steps):
    requests = [
        *(ask(SPAIN, max_tokens=count) for count in range(1, 6)),
        *(ask(SPAIN, temperature=2.0, seed=seed, max_tokens=12) for seed in range(3)),
        *(ask(FRANCE, temperature=1.5, top_p=0.9, top_k=50, seed=3, max_tokens=n) for n in (4, 9)),
        ask("Hello!", temperature=3.0, seed=1, max_tokens=30),
        ask(SPAIN, stop=("Spain",)),
        ask(SPAIN, stop=("capital", "Madrid")),
        ask(FRANCE),
    ]
    completions = engine.generate(requests)
    assert steps[0][0] == len(requests)  # one batch
    assert completions == each_alone(engine, requests)


def test_rows_that_are_done_leave_the_batch(engine, ask, steps):
    requests = [ask(SPAIN, max_tokens=count) for count in (1, 3, 5)]
    engine.generate(requests)
    prompt = len(requests[0].prompt_ids)
    assert steps == [(3, prompt), (2, 1), (2, 1), (1, 1), (1, 1)]


def test_a_row_counts_its_positions_without_its_padding(engine, wrap_model):
    positions = []

    def watch(forward, **inputs):
        positions.append(inputs["position_ids"][:, -1].tolist())
        return forward(**inputs)

    wrap_model(watch)
    engine.generate(random_requests([20, 30], temperature=9.0, max_tokens=3))
    assert positions == [[19, 29], [20, 30], [21, 31]]


def test_of_a_prompt_only_the_last_logits_are_computed(engine, ask, wrap_model):
    shapes = []

    def watch(forward, **inputs):
        output = forward(**inputs)
        shapes.append(tuple(output.logits.shape))
        return output

    wrap_model(watch)
    engine.generate([ask(SPAIN, max_tokens=2)])
    assert shapes == [(1, 1, 1024)] * 2


def test_a_batch_has_no_more_rows_than_it_may(monkeypatch, engine, steps):
    monkeypatch.setattr(engine, "_batch_rows", 4)
    engine.generate(random_requests([20] * 10, max_tokens=1))
    assert steps == [(4, 20), (4, 20), (2, 20)]


def test_rows_of_similar_length_share_a_batch(monkeypatch, engine, steps):
    monkeypatch.setattr(engine, "_batch_rows", 2)
    requests = random_requests([5, 50, 7, 51, 6, 52], max_tokens=1)
    completions = engine.generate(requests)
    assert steps == [(2, 6), (2, 50), (2, 52)]
    assert completions == each_alone(engine, requests)  # in the order of the requests


def test_a_batch_holds_no_more_tokens_than_it_may(monkeypatch, engine, steps):
    monkeypatch.setattr(module, "BATCH_TOKENS", 100)
    engine.generate(random_requests([20] * 5, max_tokens=5))
    assert [shape for shape in steps if shape[1] > 1] == [(4, 20), (1, 20)]


def test_a_row_that_is_more_than_a_batch_may_hold_goes_alone(monkeypatch, engine, steps):
    monkeypatch.setattr(module, "BATCH_TOKENS", 100)
    completions = engine.generate(random_requests([101, 20, 20, 102], max_tokens=1))
    assert steps == [(2, 20), (1, 101), (1, 102)]
    assert [completion.usage.prompt_tokens for completion in completions] == [101, 20, 20, 102]


# parameters


def test_max_tokens_cuts_the_answer_and_says_so(engine, ask):
    whole, cut = engine.generate([ask(SPAIN), ask(SPAIN, max_tokens=4)])
    assert cut.token_ids == whole.token_ids[:4]
    assert cut.finish_reason == "length"
    assert cut.usage == Usage(whole.usage.prompt_tokens, 4)


def test_a_stop_string_cuts_the_answer_before_it(engine, ask):
    completion = one(engine, ask(SPAIN, stop=(" Madrid",)))
    assert completion.text == "The capital of Spain is"
    assert completion.finish_reason == "stop"


def test_seeds_make_texts_and_the_same_seed_the_same_text(engine, ask):
    seeds = [*range(8), 0]
    requests = [ask(SPAIN, temperature=3.0, seed=seed, max_tokens=30) for seed in seeds]
    texts = [completion.text for completion in engine.generate(requests)]
    assert len(set(texts)) == 8
    assert texts[0] == texts[8]


# prompts of any length


@pytest.mark.parametrize("length", [4096, 5000])
def test_requests_no_model_should_see_are_refused_among_good_ones(
    engine, ask, nonsense, steps, length
):
    refused = [Request(()), Request((nonsense(4096) * 2)[:length]), Request((5, 1024))]
    completions = engine.generate([ask(SPAIN), *refused, ask(FRANCE)])
    assert [completion.text for completion in completions] == [MADRID, "", "", "", PARIS]
    assert [completion.error.code for completion in completions[1:4]] == [
        RowErrorCode.EMPTY_PROMPT,
        RowErrorCode.PROMPT_TOO_LONG,
        RowErrorCode.ENGINE_ERROR,
    ]
    assert completions[2].usage == Usage(length, 0)
    assert completions[3].error.message.startswith("a token id is beyond the vocabulary of 1024")
    assert {rows for rows, _ in steps} == {2}


def test_rows_on_both_sides_of_the_sliding_window_share_a_batch(monkeypatch, engine, steps):
    assert engine._model.config.sliding_window == 2047
    monkeypatch.setattr(module, "BATCH_TOKENS", 10**6)
    lengths_and_tokens = {20: 3, 2030: 24, 2046: 8, 2047: 6, 2100: 16}
    requests = [
        random_requests([length], max_tokens=count)[0]
        for length, count in lengths_and_tokens.items()
    ]
    ids = [completion.token_ids for completion in engine.generate(requests)]
    assert steps[0] == (5, 2100)  # one batch
    assert ids == [reference_ids(engine, request) for request in requests]


def test_prompts_that_nearly_fill_the_context_share_a_batch_with_short_ones(
    monkeypatch, engine, ask, nonsense
):
    monkeypatch.setattr(module, "BATCH_TOKENS", 10**6)
    hot = GenerationParams(temperature=50.0, max_tokens=100)
    completions = engine.generate(
        [Request(nonsense(4090), hot), ask(SPAIN), Request(nonsense(4095))]
    )
    assert [completion.error for completion in completions] == [None] * 3
    assert completions[0].finish_reason == "length"
    assert completions[0].usage == Usage(4090, 6)
    assert completions[1].text == MADRID
    assert completions[2].usage == Usage(4095, 1)


def test_max_tokens_may_ask_for_more_than_the_context(engine, ask):
    assert one(engine, ask(SPAIN, max_tokens=10**9)).text == MADRID


# what goes wrong


def test_a_row_on_which_the_runtime_fails_fails_alone(engine, ask, wrap_model):
    def refuse(forward, **inputs):
        if (inputs["input_ids"] == POISON).any():
            raise RuntimeError("torch is out of memory\nand says more on another line")
        return forward(**inputs)

    wrap_model(refuse)
    sampled = ask(SPAIN, temperature=2.0, seed=4, max_tokens=12)
    requests = [ask(SPAIN), Request((5, POISON, 6)), sampled, ask(FRANCE)]
    completions = engine.generate(requests)
    assert [completions[index].text for index in (0, 1, 3)] == [MADRID, "", PARIS]
    assert completions[2] == one(engine, sampled)
    assert completions[1].error.code is RowErrorCode.ENGINE_ERROR
    assert completions[1].error.message == f"{engine.name}: torch is out of memory"
    assert completions[1].finish_reason is None
    assert completions[1].usage == Usage(3, 0)


def test_a_batch_that_is_too_much_for_the_runtime_is_answered_row_by_row(
    engine, ask, steps, wrap_model
):
    def refuse_two_rows(forward, **inputs):
        if len(inputs["input_ids"]) > 1 and inputs["input_ids"].shape[1] == 1:
            raise MemoryError
        return forward(**inputs)

    wrap_model(refuse_two_rows)
    completions = engine.generate([ask(SPAIN), ask(FRANCE), ask(SPAIN, max_tokens=1)])
    assert [completion.text for completion in completions] == [MADRID, PARIS, "The"]


def test_the_memory_of_a_failed_batch_is_free_before_its_rows_are_tried(engine, ask, wrap_model):
    caches, old_still_there = [], []

    def fail_once(forward, **inputs):
        if len(inputs["input_ids"]) > 1:
            caches.append(weakref.ref(inputs["past_key_values"]))
            raise MemoryError
        old_still_there.append(caches[0]() is not None)
        return forward(**inputs)

    wrap_model(fail_once)
    engine.generate([ask(SPAIN, max_tokens=1), ask(FRANCE, max_tokens=1)])
    assert old_still_there == [False, False]


def test_a_row_whose_logits_are_no_numbers_fails_alone(engine, ask, wrap_model):
    def spoil(forward, **inputs):
        output = forward(**inputs)
        output.logits[(inputs["input_ids"] == POISON).any(dim=1)] = float("nan")
        return output

    wrap_model(spoil)
    completions = engine.generate([ask(SPAIN), Request((5, POISON, 6)), ask(FRANCE)])
    assert [completion.text for completion in completions] == [MADRID, "", PARIS]
    assert completions[1].error.code is RowErrorCode.ENGINE_ERROR
    assert completions[1].error.message.endswith("the model's logits are not finite numbers")


def test_an_engine_works_on_after_a_failure(monkeypatch, engine, ask):
    # so that it is torch that fails
    monkeypatch.setattr(engine, "limits", Limits(context_length=4096, vocab_size=10**6))
    error = one(engine, Request((5, 5000))).error
    assert error.message == f"{engine.name}: index out of range in self"
    assert one(engine, ask(SPAIN)).text == MADRID


# loading


def edit_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | changes), encoding="utf-8")


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def load_failure(folder):
    """The one line in which an engine says that it cannot load a checkpoint."""
    with pytest.raises(EngineError) as error:
        TransformersEngine(Checkpoint.open(folder))
    message = str(error.value)
    assert "\n" not in message
    start = f"transformers {transformers.__version__} cannot load {folder}: "
    assert message.startswith(start)
    return message.removeprefix(start)


@pytest.mark.parametrize("size", [4, 1000, 2_000_000])
def test_weights_cut_short_are_one_line_when_they_are_loaded(folder, size):
    weights = folder / "model.safetensors"
    assert weights.stat().st_size > size
    weights.write_bytes(weights.read_bytes()[:size])
    assert "safetensors" in load_failure(folder) or "header" in load_failure(folder)


def test_weights_that_lack_a_tensor_are_not_made_up(folder):
    def remove(weights):
        del weights["lm_head.weight"], weights["model.norm.weight"]

    edit_weights(folder, remove)
    assert load_failure(folder) == "the weights lack lm_head.weight and 1 more"


def test_weights_of_another_shape_are_not_made_up(folder):
    edit_config(folder, intermediate_size=449)
    assert load_failure(folder) != ""


def test_a_checkpoint_in_two_files_is_loaded(folder, ask):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shard_of = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(weights)}
    for shard in ("a.safetensors", "b.safetensors"):
        part = {name: tensor for name, tensor in weights.items() if shard_of[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    index = json.dumps({"metadata": {}, "weight_map": shard_of})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    assert one(TransformersEngine(Checkpoint.open(folder)), ask(SPAIN)).text == MADRID
    (folder / "b.safetensors").unlink()
    with pytest.raises(InvalidModelError, match=r"has no b\.safetensors"):
        Checkpoint.open(folder)


def test_code_that_comes_with_a_checkpoint_is_not_run(folder, ask):
    # as in Microsoft's own checkpoints
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})
    (folder / "modeling_phi3.py").write_text("raise SystemExit", encoding="utf-8")
    assert one(TransformersEngine(Checkpoint.open(folder)), ask(SPAIN)).text == MADRID


def test_a_wrong_number_of_threads_is_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(EngineError, match="OMP_NUM_THREADS must be a positive number, not 'many'"):
        TransformersEngine(Checkpoint.open(TINY_CHECKPOINT))


def test_the_threads_of_the_environment_reach_torch(monkeypatch):
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(threads, "processors", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    TransformersEngine(Checkpoint.open(TINY_CHECKPOINT))
    TransformersEngine(Checkpoint.open(TINY_CHECKPOINT), threads=1)
    assert counts == [3, 1]


def test_loading_is_silent_and_asks_no_one_and_leaves_transformers_as_it_was():
    code = f"""
import socket, sys
def connect(*arguments):
    print("connects", file=sys.stderr)
    raise OSError
socket.socket.connect = connect
from transformers.utils import logging
from phi3_batch.model_files import Checkpoint
from phi3_batch.engines.torch.engine import TransformersEngine
logging.set_verbosity_info()
TransformersEngine(Checkpoint.open({str(TINY_CHECKPOINT)!r}))
print(logging.get_verbosity() == logging.INFO, logging.is_progress_bar_enabled())
"""
    answer = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (answer.stdout, answer.stderr) == ("True True\n", "")


def test_nothing_is_written_when_requests_succeed_or_are_refused(capfd, caplog, engine, ask):
    engine.generate([ask(SPAIN), ask(FRANCE), Request(()), Request((5,) * 5000)])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# the engine of the process


@pytest.fixture
def no_engine_loaded(monkeypatch):
    this_process.reset()


@pytest.mark.usefixtures("no_engine_loaded")
def test_a_checkpoint_is_run_by_transformers():
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    engine = this_process.engine(checkpoint, checkpoint.read_manifest())
    assert isinstance(engine, TransformersEngine)
    assert this_process.engine(checkpoint, checkpoint.read_manifest()) is engine


@pytest.mark.usefixtures("no_engine_loaded")
def test_a_machine_without_torch_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "phi3_batch.engines.torch.engine")
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    with pytest.raises(EnvironmentProblemError) as error:
        this_process.engine(checkpoint, checkpoint.read_manifest())
    message = str(error.value)
    assert "pip install 'phi3-batch[pipeline]'" in message
    assert "\n" not in message


def test_the_weights_go_with_their_engine(ask):
    engine = TransformersEngine(Checkpoint.open(TINY_CHECKPOINT))
    one(engine, ask(SPAIN))
    weights = weakref.ref(engine._model.lm_head.weight)
    del engine
    assert weights() is None  # at once, so that another model finds the memory free
