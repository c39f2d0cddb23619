"""What is done to logits before a token is chosen, against transformers' own processors."""

import numpy as np
import pytest
import torch
import transformers

from phi3_batch.engines.chooser import TokenRules
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import Limits
from phi3_batch.text import Tokenizer
from tests.conftest import TINY_MODEL

PROMPT = (5, 300, 301, 5, 999)
LIMITS = Limits(context_length=64, vocab_size=1024)
END = 1007


@pytest.fixture(scope="module")
def rules():
    return TokenRules(Tokenizer(TINY_MODEL / "tokenizer.json"), LIMITS, frozenset({END}))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
@pytest.mark.parametrize("shift", [-10.0, 0.0, 10.0])
def test_a_penalty_on_repetition_is_that_of_transformers(rules, penalty, shift):
    chooser = rules.chooser(
        Request(PROMPT, GenerationParams(max_tokens=30, repetition_penalty=penalty))
    )
    assert chooser.begin() == []
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    rng, ids = np.random.default_rng(3), list(PROMPT)
    for _ in range(25):
        logits = rng.normal(shift, 3, 1024).astype(np.float32)
        logits[ids[-1]] = logits.max() + 0.5  # what was said last is the likeliest
        logits[END] = -100
        kept = logits.copy()
        expected = int(processor(torch.tensor([ids]), torch.tensor(logits)[None]).argmax())
        assert chooser.take(logits) == [expected]
        assert (logits == kept).all()  # an engine's array is not changed
        ids.append(expected)


def test_no_end_is_taken_before_min_tokens(rules):
    params = GenerationParams(max_tokens=30, min_tokens=4)
    chooser = rules.chooser(Request(PROMPT, params))
    logits = np.zeros(1024, np.float32)
    logits[END], logits[300] = 5, 4
    assert chooser.begin() == []
    assert [chooser.take(logits) for _ in range(5)] == [[300]] * 4 + [None]
    assert chooser.completion().finish_reason == "stop"


def test_logits_that_are_no_numbers_are_an_error(rules):
    chooser = rules.chooser(Request(PROMPT, GenerationParams(min_tokens=1)))
    chooser.begin()
    with pytest.raises(ValueError, match="not finite numbers"):
        chooser.take(np.full(1024, np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite numbers"):
        chooser.take_best(5, float("nan"))
