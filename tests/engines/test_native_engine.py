"""What is the native engine's alone: many requests at a time, blocks that they share, and texts
that are the same bit by bit whatever else is answered."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3_batch.engines import kv_budget
from phi3_batch.engines.kv_budget import BLOCK_TOKENS
from phi3_batch.engines.native import batch as native_batch
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.engines.native.kv_blocks import KVBlocks
from phi3_batch.engines.native.library import LibraryError, Model, instruction_sets
from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import Limits, ModelFolder
from tests.engines.conftest import FRANCE, MADRID, PARIS, SPAIN, one, pack


@pytest.fixture
def new_native(tiny_folder, packed_model):
    """Makes engines that have answered nothing yet."""
    return lambda **options: NativeEngine(tiny_folder, packed_model, **options)


@pytest.fixture(scope="session")
def native_engine(tiny_folder, packed_model):
    return NativeEngine(tiny_folder, packed_model)


@pytest.fixture(scope="session")
def hot_completions(tiny_folder, packed_model, hot):
    """Each of them alone, all else as far from the others as it gets."""
    alone = NativeEngine(tiny_folder, packed_model, threads=1, prefix_caching=False)
    return [one(alone, request) for request in hot]


def test_an_engine_says_what_it_is_and_takes(new_native):
    for instructions in instruction_sets():
        engine = new_native(instructions=instructions)
        assert engine.name == f"native {instructions}"
        assert engine.limits == Limits(context_length=4096, vocab_size=1024)


# the same bit by bit


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_no_text_depends_on_what_else_is_answered(
    tiny_folder, packed_model, hot, hot_completions, data
):
    """In calls of any size and order, over a prefix cache in any state, with any threads."""
    chosen = data.draw(st.lists(st.integers(0, len(hot) - 1), min_size=1, max_size=60))
    call = data.draw(st.integers(1, 60))
    engine = NativeEngine(
        tiny_folder,
        packed_model,
        threads=data.draw(st.sampled_from([1, 2, 3])),
        memory_bytes=data.draw(st.sampled_from([0, 10**8])),
        prefix_caching=data.draw(st.booleans()),
    )
    for start in range(0, len(chosen), call):
        places = chosen[start : start + call]
        completions = engine.generate([hot[place] for place in places])
        assert completions == [hot_completions[place] for place in places]


def test_sampled_texts_are_of_many_kinds(hot, hot_completions):
    assert len({completion.text for completion in hot_completions}) > len(hot) // 2


@pytest.mark.parametrize("instructions", instruction_sets())
def test_all_at_once_is_as_one_by_one_by_each_instruction_set(
    new_native, hot, hot_completions, instructions
):
    engine = new_native(instructions=instructions)
    together = engine.generate(hot[::5])
    if instructions != "portable":  # which rounds each product
        assert together == hot_completions[::5]
    assert [one(engine, request) for request in hot[::35]] == together[::7]


@pytest.mark.parametrize("step_tokens", [1, 7, 64])
def test_prompts_read_in_parts_give_the_same_texts(
    monkeypatch, new_native, hot, hot_completions, step_tokens
):
    monkeypatch.setattr(native_batch, "STEP_TOKENS", step_tokens)
    assert new_native().generate(hot[::7]) == hot_completions[::7]


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 34, 63, 64, 65, 97, 128, 129])
def test_a_text_is_the_same_whether_its_prompt_is_in_the_cache(new_native, nonsense, length):
    prompt = nonsense(length)
    requests = [Request(prompt, GenerationParams(30, 2.0, 0.9, seed=seed)) for seed in range(6)]
    longer = [Request((*prompt, 55, 66, 77), GenerationParams(3))]
    engine = new_native()
    completions = engine.generate(requests)
    assert len({completion.token_ids for completion in completions}) > 1
    assert engine.generate(requests) == completions
    assert new_native().generate(longer + requests[::-1])[1:] == completions[::-1]


def test_callers_on_threads_of_their_own_get_their_own_texts(native_engine, hot, hot_completions):
    parts = [slice(start, None, 6) for start in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda part: native_engine.generate(hot[part]), parts)
        for part, result in zip(parts, results, strict=True):
            assert result == hot_completions[part]


def test_three_hundred_phrasings_that_the_model_never_saw_get_the_tokens_of_the_reference(
    native_engine, reference, check_phrasings
):
    check_phrasings(native_engine, reference)


# what is read, and how often


@pytest.fixture
def tokens_read(monkeypatch):
    """How many tokens each step reads."""
    counts = []
    step = Model.step

    def counting(self, given, **options):
        counts.append(len(given.tokens))
        return step(self, given, **options)

    monkeypatch.setattr(Model, "step", counting)
    return counts


def test_an_equal_beginning_is_read_once_within_a_call_and_in_the_next(
    new_native, nonsense, tokens_read
):
    engine = new_native()
    requests = [Request((*nonsense(320), place, 5), GenerationParams(1)) for place in range(40)]
    tokens_read.clear()
    engine.generate(requests)
    assert sum(tokens_read) == 320 + 40 * 2
    engine.generate(requests)
    assert sum(tokens_read) == 320 + 2 * 40 * 2


def test_equal_requests_that_come_together_read_their_last_block_each(
    new_native, nonsense, tokens_read
):
    engine = new_native()
    tokens_read.clear()
    engine.generate([Request(nonsense(100), GenerationParams(1))] * 5)
    assert sum(tokens_read) == 100 + 4 * (100 - 96)


def test_when_one_ends_the_next_begins(monkeypatch, new_native, nonsense, tokens_read):
    monkeypatch.setattr(native_batch, "SEQUENCES", 4)
    engine = new_native()
    tokens_read.clear()
    lengths = [3, 40, 5, 7, 2, 30, 4]
    requests = [
        Request((place, *nonsense(5)), GenerationParams(length, temperature=50.0))
        for place, length in enumerate(lengths)
    ]
    completions = engine.generate(requests)
    assert [len(completion.token_ids) for completion in completions] == lengths
    assert len(tokens_read) <= 50  # by fours that wait for their longest it would be more


# the cache


def test_more_requests_than_the_cache_holds_are_all_answered(
    new_native, requests_of_samples, reference, nonsense
):
    engine = new_native(memory_bytes=0)
    long = [Request(nonsense(length), GenerationParams(max_tokens=9)) for length in (3000, 4095)]
    completions = engine.generate([long[0], *requests_of_samples[:60], long[1]])
    assert completions[1:-1] == reference.generate(requests_of_samples[:60])
    assert [completion.usage.prompt_tokens for completion in completions[::61]] == [3000, 4095]
    assert all(completion.error is None for completion in completions)


@pytest.fixture
def small_cache(monkeypatch):
    """What a model with a long context has where there is little memory: less than a context."""
    monkeypatch.setattr(kv_budget, "FEWEST_CACHE_TOKENS", 256)


@pytest.mark.usefixtures("small_cache")
def test_what_the_cache_cannot_hold_fails_alone(new_native, ask, nonsense):
    engine = new_native(memory_bytes=0)
    endless = GenerationParams(max_tokens=10**6, temperature=50.0)
    requests = [
        ask(SPAIN),
        Request(nonsense(1000), GenerationParams(2)),
        Request(nonsense(250), endless),
        ask(FRANCE, max_tokens=10**6),
    ]
    completions = engine.generate(requests)
    assert [completion.text for completion in completions] == [MADRID, "", "", PARIS]
    assert [completion.error.message for completion in completions[1:3]] == [
        f"{engine.name}: there is no memory for the keys and values of {tokens} tokens"
        for tokens in (1000, 289)
    ]
    assert {completion.error.code for completion in completions[1:3]} == {RowErrorCode.ENGINE_ERROR}
    assert one(engine, ask(SPAIN)).text == MADRID


@pytest.mark.usefixtures("small_cache")
def test_a_small_cache_changes_no_text(new_native, hot, hot_completions):
    assert new_native(memory_bytes=0).generate(hot[::3]) == hot_completions[::3]


def test_the_cache_has_half_of_what_the_weights_leave(monkeypatch, new_native, tiny_folder):
    block_bytes = BLOCK_TOKENS * 2 * 4 * 6 * 32 * 2
    weights = sum((tiny_folder.path / name).stat().st_size for name in tiny_folder.files)
    available = weights + kv_budget._WORK_BYTES + 2 * 1000 * block_bytes
    monkeypatch.setattr(kv_budget, "claim_memory", lambda decide: decide(available))
    assert new_native()._loaded.blocks.count == 1000


# what goes wrong


def test_tokens_that_cannot_be_decoded_cost_their_row_alone(new_native, monkeypatch, ask):
    engine = new_native()
    decode = type(engine.tokenizer).decode

    def forgetful(self, ids):
        text = decode(self, ids)
        if "Paris" in text:
            raise ValueError(f"{len(ids)} tokens cannot be decoded")
        return text

    monkeypatch.setattr(type(engine.tokenizer), "decode", forgetful)
    completions = engine.generate([ask(FRANCE), ask(SPAIN)])
    assert [completion.text for completion in completions] == ["", MADRID]
    assert completions[0].error.message == f"{engine.name}: 7 tokens cannot be decoded"
    monkeypatch.undo()
    assert one(engine, ask(FRANCE)).text == PARIS


@pytest.mark.parametrize("error", [KeyboardInterrupt, LibraryError(-1)])
def test_a_call_that_is_cut_short_leaves_nothing_behind(new_native, monkeypatch, nonsense, error):
    engine = new_native()
    request = Request(nonsense(200), GenerationParams(20))
    with monkeypatch.context() as patch:

        def fail(*_, **__):
            raise error

        patch.setattr(Model, "step", fail)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            engine.generate([request] * 3)
    # what the step did not read is in no cache, and the blocks are free
    assert one(engine, request) == one(new_native(), request)
    assert len(engine._loaded.blocks._free) == engine._loaded.blocks.count


@pytest.mark.parametrize("instructions", instruction_sets())
def test_logits_that_are_no_numbers_are_an_error_when_the_model_is_loaded(build, instructions):
    data = build / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)  # as float32 all NaN
    folder = ModelFolder.open(build)
    with pytest.raises(EngineError, match=r"^native .* cannot load .*: the model's logits are not"):
        NativeEngine(folder, pack(folder), instructions=instructions)


def test_a_model_for_which_there_is_no_memory_is_one_line(new_native, monkeypatch):
    def fail(*_):
        raise LibraryError(-1)

    monkeypatch.setattr("phi3_batch.engines.native.engine.Model", fail)
    with pytest.raises(EngineError, match=r"^native .* cannot load .*: there is not enough memory"):
        new_native()


# blocks


class TestKVBlocks:
    def test_blocks_are_found_by_all_tokens_up_to_them(self):
        blocks = KVBlocks(10)
        text = list(range(3 * BLOCK_TOKENS))
        mine = blocks.take([], 3)
        for place in range(3):
            blocks.fill(mine, text, place, kind=0)
        assert blocks.find([*text, 1], kind=0) == mine
        assert blocks.find(text, kind=0) == mine[:2]  # its last token has to be read
        assert blocks.find([*text[: 2 * BLOCK_TOKENS], 7], kind=0) == mine[:2]
        assert blocks.find([7, *text], kind=0) == []
        assert blocks.find([*text, 1], kind=1) == []

    def test_what_was_unused_for_longest_goes_first_and_ends_go_before_beginnings(self):
        blocks = KVBlocks(4)
        text, other = list(range(2 * BLOCK_TOKENS)), list(range(500, 500 + 2 * BLOCK_TOKENS))
        for tokens in (text, other):
            taken = blocks.take([], 2)
            for place in range(2):
                blocks.fill(taken, tokens, place, kind=0)
            blocks.give_back(taken)
        blocks.give_back(blocks.take([], 1))
        assert len(blocks.find([*text, 1], kind=0)) == 1
        assert len(blocks.find([*other, 1], kind=0)) == 2

    def test_none_are_taken_where_there_are_not_enough(self):
        blocks = KVBlocks(3)
        mine = blocks.take([], 2)
        assert blocks.take([], 2) is None
        blocks.give_back(mine)
        assert sorted(blocks.take([], 3)) == [0, 1, 2]

    def test_a_known_block_that_nobody_has_does_not_count_as_free_for_who_takes_it(self):
        blocks = KVBlocks(2)
        text = list(range(BLOCK_TOKENS))
        mine = blocks.take([], 1)
        blocks.fill(mine, text, 0, kind=0)
        blocks.give_back(mine)
        known = blocks.find([*text, 1], kind=0)
        assert blocks.take(known, 3) is None
        assert blocks.take(known, 2)[0] == known[0]
