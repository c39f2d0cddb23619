from collections import Counter

import numpy as np
import pytest

from phi3_batch.engines.sampling import choose_token
from phi3_batch.generation import GenerationParams

# token 2 is the likeliest, then 0, 3, 1
PROBABILITIES = np.array([0.3, 0.05, 0.5, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def draw(params, count=10_000, logits=LOGITS, seed=7):
    rng = np.random.default_rng(seed)
    return Counter(choose_token(logits, params, rng)[0] for _ in range(count))


def chi_square(counts, probabilities):
    expected = probabilities * counts.total()
    observed = np.array([counts[token] for token in range(len(probabilities))])
    return float(((observed - expected) ** 2 / expected).sum())


# 16.3 is passed by one sample in a thousand (3 degrees of freedom), and the seed is fixed
CHI_SQUARE_LIMIT = 16.3


def test_temperature_0_takes_the_likeliest_token():
    assert draw(GenerationParams(), count=50) == {2: 50}


def test_the_first_of_equally_likely_tokens_is_the_greedy_one():
    rng = np.random.default_rng(0)
    assert choose_token(np.array([0, 5, 5, 1], np.float32), GenerationParams(), rng)[0] == 1


def test_greedy_decoding_ignores_the_sampling_parameters():
    assert draw(GenerationParams(top_k=3, top_p=0.9, seed=5), count=50) == {2: 50}


def test_greedy_decoding_draws_no_random_number():
    rng = np.random.default_rng(3)
    choose_token(LOGITS, GenerationParams(), rng)
    assert rng.random() == np.random.default_rng(3).random()


def test_a_sampled_token_draws_one_random_number():
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    choose_token(LOGITS, GenerationParams(temperature=1.0, top_p=0.9), rng)
    other.random()
    assert rng.random() == other.random()


def test_temperature_1_draws_from_the_softmax():
    counts = draw(GenerationParams(temperature=1.0))
    assert chi_square(counts, PROBABILITIES) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    powered = PROBABILITIES ** (1 / temperature)
    counts = draw(GenerationParams(temperature=temperature))
    assert chi_square(counts, powered / powered.sum()) < CHI_SQUARE_LIMIT
    assert chi_square(counts, PROBABILITIES) > 10 * CHI_SQUARE_LIMIT


def test_a_temperature_near_zero_is_nearly_greedy():
    assert draw(GenerationParams(temperature=1e-6), count=1000) == {2: 1000}


@pytest.mark.parametrize("temperature", [0.1, 1.0, 50.0])
def test_top_k_1_is_greedy_at_any_temperature(temperature):
    assert draw(GenerationParams(temperature=temperature, top_k=1), count=1000) == {2: 1000}


def test_top_k_keeps_the_likeliest_and_renormalises_them():
    counts = draw(GenerationParams(temperature=1.0, top_k=2))
    assert set(counts) == {2, 0}
    kept = np.array([0.375, 0, 0.625, 0]) + 1e-12
    assert chi_square(counts, kept) < CHI_SQUARE_LIMIT


def test_top_k_beyond_the_vocabulary_keeps_every_token():
    every_token = GenerationParams(temperature=1.0, top_k=99)
    assert draw(every_token) == draw(GenerationParams(temperature=1.0))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-6, {2}),
        (0.45, {2}),
        (0.55, {2, 0}),
        (0.75, {2, 0}),
        (0.85, {2, 0, 3}),
        (0.97, {2, 0, 3, 1}),
        (1.0, {2, 0, 3, 1}),
    ],
)
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p, kept):
    assert set(draw(GenerationParams(temperature=1.0, top_p=top_p))) == kept


def test_top_p_renormalises_what_it_keeps():
    counts = draw(GenerationParams(temperature=1.0, top_p=0.85))
    kept = np.array([0.3, 0, 0.5, 0.15]) / 0.95 + 1e-12
    assert chi_square(counts, kept) < CHI_SQUARE_LIMIT


def test_top_p_holds_of_what_top_k_left():
    # of the two kept by top_k the likeliest holds 0.625, so 0.6 is reached without the other
    assert set(draw(GenerationParams(temperature=1.0, top_k=2, top_p=0.6))) == {2}
    assert set(draw(GenerationParams(temperature=1.0, top_p=0.6))) == {2, 0}


def test_top_p_holds_of_what_temperature_made():
    # at temperature 0.5 the probabilities are 0.685, 0.247, 0.062, 0.007
    assert set(draw(GenerationParams(temperature=0.5, top_p=0.65))) == {2}


def test_the_same_seed_draws_the_same_tokens():
    params = GenerationParams(temperature=1.0)

    def tokens(seed):
        rng = np.random.default_rng(seed)
        return [choose_token(LOGITS, params, rng)[0] for _ in range(20)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_a_token_with_no_chance_is_never_drawn():
    logits = np.array([1.0, -np.inf, 1.0], np.float32)
    assert set(draw(GenerationParams(temperature=100.0), logits=logits)) == {0, 2}


@pytest.mark.parametrize("spread", [0.5, 3.0, 30.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (50, 1.0), (900, 0.9), (0, 0.3), (0, 0.999)]
)
def test_tokens_of_a_large_vocabulary_are_those_of_a_sorted_one(spread, top_k, top_p):
    logits = np.random.default_rng(1).normal(0, spread, 5000).astype(np.float32)
    params = GenerationParams(temperature=0.8, top_k=top_k, top_p=top_p)
    rng, other = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(500):
        order = np.argsort(-logits, kind="stable")[: top_k or None]
        weights = np.exp((logits[order].astype(np.float64) - logits.max()) / 0.8)
        weights /= weights.sum()
        held = weights.cumsum()
        kept = np.count_nonzero(held - weights < top_p)
        place = np.searchsorted(held[:kept], other.random() * held[kept - 1], side="right")
        assert choose_token(logits, params, rng)[0] == order[place]


def test_large_logits_do_not_overflow():
    logits = np.array([3e38, 3e38, -3e38], np.float32)
    assert set(draw(GenerationParams(temperature=1.0), logits=logits)) == {0, 1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "logits",
    [[1.0, np.nan, 2.0], [np.nan] * 3, [0.0, np.inf, 1.0], [-np.inf] * 3],
    ids=["one nan", "all nan", "infinite", "none possible"],
)
def test_logits_that_are_no_numbers_are_an_error(logits, temperature):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="not finite"):
        choose_token(np.array(logits, np.float32), GenerationParams(temperature=temperature), rng)
