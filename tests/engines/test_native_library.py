"""The native engine's library in C, one part of it at a time, against NumPy and plain C."""

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3_batch.engines.native import library
from phi3_batch.engines.native.library import BLOCK_TOKENS, LibraryError, Matrix, Room, Shape, Step

INSTRUCTIONS = library.instruction_sets()


class RandomModel:
    """A model of random weights: in the library's form, and as NumPy computes it."""

    def __init__(self, seed=0, *, bits=4, block=32, zero_points=False, digits=1, **sizes):
        self.rng = np.random.default_rng(seed)
        self.form = {"bits": bits, "block": block, "zero_points": int(zero_points)}
        sizes = {
            "layers": 2, "hidden": 128, "intermediate": 160, "heads": 4, "key_value_heads": 2,
            "head_size": 32, "vocabulary": 301, "half_rotary": 12,
        } | sizes  # fmt: skip
        self.sizes = sizes
        own = sizes["heads"] * sizes["head_size"]
        shared = sizes["key_value_heads"] * sizes["head_size"]
        self.kept, self.weights = [], {}
        window = sizes.pop("window", 0)
        fused = sizes.pop("fused", True)
        qkv = [own + 2 * shared] if fused else [own, shared, shared]
        layers = []
        for number in range(sizes["layers"]):
            made = library.Layer(window=window)
            for name in ("attention_norm", "mlp_norm"):
                setattr(made, name, self.floats((number, name), sizes["hidden"], mean=1.0))
            for part, outputs in enumerate(qkv):
                made.qkv[part] = self.matrix((number, "qkv", part), outputs, sizes["hidden"])
            made.o = self.matrix((number, "o"), sizes["hidden"], own)
            for name in ("gate", "up"):
                setattr(
                    made, name, self.matrix((number, name), sizes["intermediate"], sizes["hidden"])
                )
            made.down = self.matrix((number, "down"), sizes["hidden"], sizes["intermediate"])
            layers.append(made)
        self.layers = (library.Layer * len(layers))(*layers)
        self.positions = 300
        angles = np.arange(self.positions)[:, None] / 50 ** np.linspace(0, 1, sizes["half_rotary"])
        self.tables = [(np.cos(angles * part), np.sin(angles * part)) for part in (1, 0.5)]
        self.shape = Shape(
            **sizes,
            unit=min(block, 32),
            digits=digits,
            epsilon=1e-5,
            attention_scale=sizes["head_size"] ** -0.5,
            layer=self.layers,
            embedding=self.floats("embedding", sizes["vocabulary"], sizes["hidden"]),
            norm=self.floats("norm", sizes["hidden"], mean=1.0),
            lm_head=self.matrix("lm_head", sizes["vocabulary"], sizes["hidden"]),
        )
        self.window, self.fused = window, fused
        for table, (cos, sin) in enumerate(self.tables):
            self.shape.positions[table] = self.positions
            self.shape.cos[table] = self.keep(cos.astype(np.float32))
            self.shape.sin[table] = self.keep(sin.astype(np.float32))

    def keep(self, array):
        self.kept.append(np.ascontiguousarray(array))
        return self.kept[-1].ctypes.data

    def floats(self, name, *shape, mean=0.0):
        array = (mean + self.rng.normal(0, 0.3, shape)).astype(np.float32)
        self.weights[name] = array.astype(np.float64)
        return self.keep(array)

    def matrix(self, name, outputs, inputs):
        bits, block = self.form["bits"], self.form["block"]
        matrix = Matrix(outputs=outputs, inputs=inputs, **self.form)
        blocks = -(-inputs // block)
        numbers = self.rng.integers(0, 2**bits, (outputs, blocks, block), np.uint8)
        scales = self.rng.uniform(0.5, 1.5, (outputs, blocks)).astype(np.float32) / 2**bits
        points = np.full((outputs, blocks), 2 ** (bits - 1), np.uint8)
        if self.form["zero_points"]:
            points = self.rng.integers(0, 2**bits, (outputs, blocks), np.uint8)
        exact = (numbers.astype(np.float64) - points[..., None]) * scales[..., None]
        self.weights[name] = exact.reshape(outputs, -1)[:, :inputs]
        if bits == 4:
            numbers = numbers[..., ::2] | numbers[..., 1::2] << 4
            points = np.pad(points, [(0, 0), (0, blocks % 2)])
            points = points[:, ::2] | points[:, 1::2] << 4
        # where a processor's lines begin, as in a packed model
        room = np.empty(library.packed_size(matrix) + 64, np.uint8)
        packed = room[-room.ctypes.data % 64 :][: library.packed_size(matrix)]
        library.pack(matrix, numbers, scales, points if self.form["zero_points"] else None, packed)
        self.kept.append(room)
        matrix.tiles = packed.ctypes.data
        return matrix

    def load(self, instructions=INSTRUCTIONS[0], threads=2, **room):
        sizes = {"rows": 64, "wanted": 64, "blocks": 40} | room
        return library.Model(self.shape, Room(threads=threads, **sizes), instructions)

    def exact_logits(self, tokens, table=0):
        """In float64, with nothing rounded."""
        sizes, weights = self.sizes, self.weights
        heads, shared, size = sizes["heads"], sizes["key_value_heads"], sizes["head_size"]
        count = len(tokens)
        states = weights["embedding"][list(tokens)]
        places = np.arange(count)
        distance = places[:, None] - places
        seen = (distance >= 0) & (distance < (self.window or count))
        for layer in range(sizes["layers"]):
            parts = [weights[key] for key in weights if key[:2] == (layer, "qkv")]
            read = normalize(states, weights[layer, "attention_norm"]) @ np.concatenate(parts).T
            read = read.reshape(count, heads + 2 * shared, size)
            q, k, v = np.split(read, [heads, heads + shared], axis=1)
            q, k = (rotate(x, *self.tables[table]) for x in (q, k))
            k, v = (np.repeat(x, heads // shared, axis=1) for x in (k, v))
            scores = np.einsum("thd,shd->hts", q, k) * size**-0.5
            scores = np.where(seen, scores, -np.inf)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            attended = np.einsum("hts,shd->thd", scores, v).reshape(count, -1)
            states = states + attended @ weights[layer, "o"].T
            x = normalize(states, weights[layer, "mlp_norm"])
            gate, up = (x @ weights[layer, name].T for name in ("gate", "up"))
            states = states + (gate / (1 + np.exp(-gate)) * up) @ weights[layer, "down"].T
        return normalize(states, weights["norm"]) @ weights["lm_head"].T


def normalize(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def rotate(x, cos, sin):
    half = cos.shape[1]
    a, b = x[..., :half], x[..., half : 2 * half]
    cos, sin = (table[: len(x), None] for table in (cos, sin))
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)


def read(model, tokens, table=0):
    """Logits of each token of a text, by steps of 64 tokens."""
    found = []
    blocks = list(range(-(-len(tokens) // BLOCK_TOKENS)))
    for start in range(0, len(tokens), 64):
        part = [int(token) for token in tokens[start : start + 64]]
        places = list(range(len(part)))
        positions = [start + place for place in places]
        step = Step(part, positions, [0] * len(part), [blocks], [table], places)
        found.append(model.step(step, logits=True).logits)
    return np.concatenate(found)


FORMS = {
    "4 bits": {},
    "zero points": {"zero_points": True},
    "blocks of 16": {"block": 16, "zero_points": True},
    "blocks of 64, the last one not full": {"block": 64},
    "blocks of 256": {"block": 256, "hidden": 512},
    "8 bits": {"bits": 8},
    "8 bits with zero points": {"bits": 8, "block": 16, "zero_points": True},
    "window": {"window": 20},
    "apart": {"fused": False},
    "all values rotated": {"half_rotary": 16},
    "none rotated": {"half_rotary": 0},
    "wide heads": {"head_size": 96, "heads": 3, "key_value_heads": 1},
    "a head of keys for each": {"key_value_heads": 4},
}


@pytest.fixture(scope="module")
def model():
    return RandomModel(zero_points=True, window=45)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("digits", "most"), [(1, 0.1), (2, 0.004)])
def test_logits_are_those_of_exact_arithmetic_but_for_rounding(form, instructions, digits, most):
    model = RandomModel(**FORMS[form], digits=digits)
    tokens = model.rng.integers(0, 301, 60)
    exact = model.exact_logits(tokens)
    error = np.abs(read(model.load(instructions), tokens) - exact).mean() / exact.std()
    assert 0 < error < most


def test_the_second_rotary_embedding_is_another(model):
    tokens = model.rng.integers(0, 301, 60)
    exact = model.exact_logits(tokens, table=1)
    logits = read(model.load(), tokens, table=1)
    assert np.abs(logits - exact).mean() < 0.1 * exact.std()
    assert np.abs(logits - read(model.load(), tokens)).max() > 0.1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
def test_an_embedding_that_is_the_weights_of_lm_head_is_read_from_them(bits, zero_points):
    model = RandomModel(bits=bits, zero_points=zero_points, digits=2)
    model.shape.embedding = None
    model.weights["embedding"] = model.weights["lm_head"]
    tokens = model.rng.integers(0, 301, 60)
    exact = model.exact_logits(tokens)
    assert np.abs(read(model.load(), tokens) - exact).mean() < 0.004 * exact.std()


def test_all_processors_with_fused_products_round_alike(model):
    tokens = model.rng.integers(0, 301, 60)
    found = [read(model.load(instructions), tokens) for instructions in INSTRUCTIONS]
    for logits in found[1:-1]:  # plain C rounds each product
        assert np.array_equal(logits, found[0])


# the same bit by bit


@st.composite
def schedules(draw):
    """Texts with an equal beginning, and steps that read some of each of some of them."""
    beginning = draw(st.integers(0, 70))
    lengths = draw(st.lists(st.integers(1, 100), min_size=1, max_size=5))
    texts = [[*range(beginning), *([100 + place] * length)] for place, length in enumerate(lengths)]
    left, steps = list(map(len, texts)), []
    while any(left):
        room, pieces = 64, {}
        for place in draw(st.permutations([place for place, count in enumerate(left) if count])):
            pieces[place] = min(draw(st.sampled_from([64, 40, 17, 16, 3, 1])), left[place], room)
            left[place] -= pieces[place]
            room -= pieces[place]
        steps.append(pieces)
    return beginning, texts, steps


@pytest.fixture(scope="module")
def models_by_threads(model):
    return {threads: model.load(threads=threads) for threads in (1, 2, 5)}


@given(schedule=schedules(), threads=st.sampled_from([1, 2, 5]), shares=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_texts_logits_are_the_same_in_any_company_and_in_any_parts(
    models_by_threads, schedule, threads, shares
):
    beginning, texts, steps = schedule
    alone = [read(models_by_threads[1], text) for text in texts]
    free: Iterator[int] = iter(range(40))
    per_text = [-(-len(text) // BLOCK_TOKENS) for text in texts]
    tables = [[next(free) for _ in range(count)] for count in per_text]
    read_so_far, found = [0] * len(texts), [[] for _ in texts]
    if shares:  # the first has read it before the others begin
        shared = beginning // BLOCK_TOKENS
        steps = [{0: shared * BLOCK_TOKENS}] * bool(shared) + steps
        for place, table in enumerate(tables[1:], 1):
            table[:shared] = tables[0][:shared]
            read_so_far[place] = shared * BLOCK_TOKENS
    for pieces in steps:
        step = Step([], [], [], [], [], [])
        taken = []
        for place, count in pieces.items():
            start = read_so_far[place]
            end = read_so_far[place] = min(start + count, len(texts[place]))
            step.tokens.extend(texts[place][start:end])
            step.positions.extend(range(start, end))
            step.sequences.extend([len(step.block_tables)] * (end - start))
            step.block_tables.append(tables[place])
            step.tables.append(0)
            taken += [place] * (end - start)
        if not taken:
            continue
        step.wanted.extend(range(len(taken)))
        logits = models_by_threads[threads].step(step, logits=True).logits
        for place, values in zip(taken, logits, strict=True):
            found[place].append(values)
    for text, one, many in zip(texts, alone, found, strict=True):
        assert many or not text
        assert np.array_equal(one[len(one) - len(many) :], many)


# what a step gives


def test_the_likeliest_token_and_its_log_probability_are_those_of_the_logits(model):
    tokens = [int(token) for token in model.rng.integers(0, 301, 50)]
    step = Step(tokens, list(range(50)), [0] * 50, [[3, 1]], [0], [0, 7, 49])
    library_model = model.load()
    results = library_model.step(step, logits=True)
    logits = results.logits.astype(np.float64)
    assert results.best.tolist() == logits.argmax(1).tolist()
    largest = logits.max(1, keepdims=True)
    expected = -np.log(np.exp(logits - largest).sum(1))
    assert results.log_probability == pytest.approx(expected, abs=1e-5)
    greedy = library_model.step(step)
    assert greedy.logits is None
    assert np.array_equal(greedy.log_probability, results.log_probability)


def test_of_equal_logits_the_first_is_the_likeliest():
    model = RandomModel()
    model.kept[-1][:] = 0x88  # lm_head: each weight is in the middle, 0
    model.shape.norm = model.keep(np.zeros(128, np.float32))
    results = model.load().step(Step([5], [0], [0], [[0]], [0], [0]), logits=True)
    assert np.array_equal(results.logits, np.zeros((1, 301)))
    assert results.best.tolist() == [0]


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_makes_every_row_after_it_none_and_no_other(instructions, number):
    model = RandomModel()
    embedding = np.ctypeslib.as_array(
        ctypes.cast(model.shape.embedding, ctypes.POINTER(ctypes.c_float)), (301, 128)
    )
    embedding[9, 77] = number
    step = Step([5, 6, 9, 7], [0, 1, 0, 1], [0, 0, 1, 1], [[0], [1]], [0, 0], [1, 2, 3])
    results = model.load(instructions).step(step)
    assert np.isfinite(results.log_probability).tolist() == [True, False, False]


# what is refused


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": [301]},
        {"tokens": [-1]},
        {"positions": [-1]},
        {"positions": [32]},  # beyond its blocks
        {"positions": [300], "block_tables": [list(range(10))]},
        {"block_tables": [[40]]},
        {"tables": [2]},
        {"wanted": [1]},
        {"wanted": [0] * 65},
        {"tokens": [5] * 65, "positions": [0] * 65, "sequences": [0] * 65},
        {"tokens": [], "positions": [], "sequences": [], "wanted": []},
    ],
)
def test_a_step_that_cannot_be_is_refused_and_the_next_is_not(model, change):
    library_model = model.load()
    sound = {"tokens": [5], "positions": [0], "sequences": [0]}
    sound |= {"block_tables": [[0]], "tables": [0], "wanted": [0]}
    with pytest.raises(LibraryError, match="does not take such a model or step"):
        library_model.step(Step(**sound | change))
    assert np.isfinite(library_model.step(Step(**sound)).log_probability).all()


@pytest.mark.parametrize("blocks", [(-1, 0), (0, -1), (40, 0), (0, 40)])
def test_a_block_that_there_is_not_is_not_copied(model, blocks):
    with pytest.raises(LibraryError, match="does not take such a model or step"):
        model.load().copy_block(*blocks)


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 0},
        {"hidden": 96},  # which its weights have not
        {"head_size": 40},
        {"heads": 3},
        {"half_rotary": 17},
        {"vocabulary": 302},
        {"unit": 64},
        {"digits": 3},
    ],
)
def test_a_model_that_cannot_be_is_refused(sizes):
    model = RandomModel()
    for name, value in sizes.items():
        setattr(model.shape, name, value)
    with pytest.raises(LibraryError, match="does not take such a model"):
        model.load()


@pytest.mark.parametrize("room", [{"threads": 0}, {"rows": 0}, {"wanted": 65}, {"blocks": 0}])
def test_room_that_cannot_be_is_refused(model, room):
    with pytest.raises(LibraryError, match="does not take such a model"):
        model.load(**room)


def test_a_cache_that_the_system_has_no_room_for_is_refused(model):
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (10**13, before[1]))  # as Spark does in its workers
    try:
        with pytest.raises(LibraryError, match="there is not enough memory"):
            model.load(blocks=2**31 - 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_instructions_that_there_are_not_are_refused(model):
    with pytest.raises(LibraryError, match="this processor lacks the instructions"):
        model.load("mmx")


@pytest.mark.parametrize("form", [{"bits": 3}, {"block": 48}, {"inputs": 100}, {"outputs": 0}])
def test_weights_that_cannot_be_packed_have_no_size(form):
    sound = {"outputs": 32, "inputs": 64, "bits": 4, "block": 32, "zero_points": 0}
    assert library.packed_size(Matrix(**sound)) > 0
    assert library.packed_size(Matrix(**sound | form)) == 0


def test_threads_that_are_asked_for_and_let_go_again_leave_nothing(model):
    def threads():
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    for _ in range(20):
        made = model.load(threads=4)
        assert threads() == before + 3
        del made
    assert threads() == before
