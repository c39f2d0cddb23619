"""Models whose rotary embedding changes where a text becomes longer than so many tokens.

The right tokens are those of a runtime that reads prompt and answer so far anew at each step: then
all keys are rotated by the same factors, those that hold for the text's length.
"""

import random
import shutil
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest

from phi3_batch.engines import Engine
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.engines.sampling import choose_token
from phi3_batch.errors import EngineError
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import ModelFolder
from phi3_batch.model_files.longrope import find_switch
from tests.conftest import REPOSITORY
from tests.engines.conftest import one, pack

SWITCH = 256  # the longest text with short factors


@pytest.fixture(scope="session")
def folder(builds) -> ModelFolder:
    return ModelFolder.open(builds / "LongRoPE")


@pytest.fixture(params=["native", "onnxruntime-genai"])
def engine(request, folder) -> Engine:
    """One that has answered nothing yet."""
    if request.param == "native":
        return NativeEngine(folder, pack(folder), memory_bytes=10**8)
    return OnnxRuntimeGenAIEngine(folder)


@pytest.fixture
def read_anew(request, folder) -> Callable[[Request], tuple[int, ...]]:
    """The right tokens of an answer: for each of them prompt and answer so far are read anew."""
    if "native" in request.node.name:
        engine = NativeEngine(folder, pack(folder), memory_bytes=10**8, prefix_caching=False)
        next_logits = lambda ids: engine.read_logits(ids)[-1]  # noqa: E731
    else:
        model = og.Model(str(folder.path))
        search = og.GeneratorParams(model)
        search.set_search_options(max_length=folder.context_length)
        new_generator = og.Generator  # not one that counts for a test

        def next_logits(ids):
            generator = new_generator(model, search)
            generator.append_tokens(np.array(ids, dtype=np.int32))
            return generator.get_logits()[0, -1]

    def read_anew(request: Request) -> tuple[int, ...]:
        rng = np.random.default_rng(request.params.seed)
        ids = list(request.prompt_ids)
        for _ in range(request.params.max_tokens):
            token_id, _ = choose_token(next_logits(ids), request.params, rng)
            if token_id in folder.end_token_ids:
                break
            ids.append(token_id)
        return tuple(ids[len(request.prompt_ids) :])

    return read_anew


def random_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 990, length).tolist())


def asked(prompt_ids: tuple[int, ...], max_tokens: int, **params: float) -> Request:
    return Request(prompt_ids, GenerationParams(max_tokens=max_tokens, **params))


@pytest.mark.parametrize(
    ("length", "max_tokens"),
    [
        (250, 6),  # one token short of the switch
        (250, 7),  # the last token is chosen by a text as long as the switch
        (250, 8),  # by one a token longer
        (250, 20),
        (256, 4),
        (257, 4),  # long from its first token
    ],
)
def test_an_answer_passes_the_switch_as_if_it_were_read_anew(engine, read_anew, length, max_tokens):
    request = asked(random_prompt(length), max_tokens)
    completion = one(engine, request)
    assert completion.token_ids == read_anew(request)
    assert len(completion.token_ids) == max_tokens


def test_a_sampled_answer_passes_the_switch_as_if_it_were_read_anew(engine, read_anew):
    requests = [asked(random_prompt(252, i), 8, temperature=0.9, seed=i) for i in range(3)]
    answers = [completion.token_ids for completion in engine.generate(requests)]
    assert answers == [read_anew(request) for request in requests]


def test_a_kept_prefix_serves_texts_on_its_side_of_the_switch_alone(read_anew, prefilled, folder):
    engine = OnnxRuntimeGenAIEngine(folder)
    text = random_prompt(320)
    for length in (200, 220, 300, 320, 240):
        request = asked(text[:length], 1)
        assert one(engine, request).token_ids == read_anew(request), length
    assert prefilled == [200, 20, 300, 20, 240]


def test_what_an_answer_has_left_behind_serves_long_texts_and_no_short_ones(
    read_anew, prefilled, folder
):
    engine = OnnxRuntimeGenAIEngine(folder)
    text = random_prompt(300)
    over_it = asked(text[:250], 10)
    for following, unread in ((asked(text[:200], 1), 200), (asked(text, 1), 50)):
        assert one(engine, over_it).token_ids == read_anew(over_it)
        prefilled.clear()
        assert one(engine, following).token_ids == read_anew(following)
        assert prefilled == [unread]


def test_rows_around_the_switch_get_their_own_answers_in_any_order(engine, read_anew):
    beginning = random_prompt(230)
    requests = [
        asked((*beginning, *random_prompt(length - 230, length)), 8, temperature=heat, seed=length)
        for length in (240, 251, 256, 257)
        for heat in (0.0, 0.9)
    ]
    expected = {request: read_anew(request) for request in requests}
    order = random.Random(0)
    for rows_at_a_time in (1, 3, len(requests)):
        order.shuffle(requests)
        for start in range(0, len(requests), rows_at_a_time):
            rows = requests[start : start + rows_at_a_time]
            for request, completion in zip(rows, engine.generate(rows), strict=True):
                assert completion.token_ids == expected[request]


def test_the_native_engine_shares_the_beginnings_of_texts_on_one_side_of_the_switch(folder):
    engine = NativeEngine(folder, pack(folder), memory_bytes=10**8)
    text = random_prompt(320)
    # short to its end, short at first, long: each twice
    requests = [asked(text[:n], m, temperature=0.9) for n, m in ((200, 9), (240, 30), (300, 9))]
    alone = [one(NativeEngine(folder, pack(folder), memory_bytes=10**8), r) for r in requests]
    assert engine.generate(requests * 2) == alone * 2
    assert engine.generate(requests[::-1]) == alone[::-1]


def test_rows_on_one_side_of_the_switch_come_together(prefilled, folder):
    text = random_prompt(300)
    # in the order of their prompts, those beyond the switch are between the others
    lengths = (200, 262, 201, 263, 202)
    requests = [asked((*text[:190], 300 + i, *text[: n - 191]), 1) for i, n in enumerate(lengths)]
    OnnxRuntimeGenAIEngine(folder).generate(requests)
    assert prefilled == [200, 11, 12, 262, 73]


# --- where the switch is -------------------------------------------------------------------------


def test_the_switch_is_read_from_the_graph(folder, tiny_folder):
    assert find_switch(folder.graph) == SWITCH
    assert find_switch(tiny_folder.graph) is None
    old = REPOSITORY / "tests" / "data" / "phi3-tiny-int4-0.3.0" / "model.onnx"
    assert find_switch(old) is None


def test_a_switch_among_the_initializers_is_read_too(folder, tmp_path):
    graph = onnx.load(folder.graph, load_external_data=False)
    [constant] = [node for node in graph.graph.node if node.output[0].endswith("INT64/256")]
    number = onnx.numpy_helper.from_array(np.array(300), constant.output[0])
    number.int64_data.append(int.from_bytes(number.raw_data, "little"))
    number.ClearField("raw_data")
    graph.graph.initializer.append(number)
    graph.graph.node.remove(constant)
    onnx.save(graph, tmp_path / "model.onnx")
    assert find_switch(tmp_path / "model.onnx") == 300


def test_a_switch_of_another_kind_is_one_line_when_the_model_is_loaded(folder, tmp_path):
    copy = shutil.copytree(folder.path, tmp_path / "copy")
    graph = onnx.load(copy / "model.onnx", load_external_data=False)
    [greater] = [node for node in graph.graph.node if node.op_type == "Greater"]
    greater.op_type = "GreaterOrEqual"
    onnx.save(graph, copy / "model.onnx")
    with pytest.raises(EngineError) as error:
        OnnxRuntimeGenAIEngine(ModelFolder.open(copy))
    assert str(error.value) == (
        f"{copy / 'model.onnx'} branches by something else than how long a text is:"
        " it is no build of onnxruntime-genai's model builder for CPUs"
    )
