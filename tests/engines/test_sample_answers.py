"""The embedded model knows 335 answers: a wrong token is a failure."""

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest

from phi3_batch.generation import Completion, Usage


def token_ids(completions):
    return [completion.token_ids for completion in completions]


def test_every_sample_prompt_gets_its_answer(samples, engine, completions_of_samples):
    assert len(samples) == 335
    encode_prompt = engine.tokenizer.encode_prompt
    encode_content = engine.tokenizer.encode_content
    for sample, completion in zip(samples, completions_of_samples, strict=True):
        ids = tuple(encode_content(sample.answer))
        assert completion == Completion(
            text=sample.answer,
            token_ids=ids,
            finish_reason="stop",
            usage=Usage(len(encode_prompt(sample.prompt)), len(ids)),
        )


def test_the_order_of_a_batch_changes_no_token(
    new_engine, requests_of_samples, completions_of_samples
):
    engine = new_engine()
    order = random.Random(1).sample(range(335), 335)
    shuffled = engine.generate([requests_of_samples[index] for index in order])
    assert shuffled == [completions_of_samples[index] for index in order]


def test_a_request_alone_gets_the_tokens_it_gets_in_a_batch(
    new_engine, requests_of_samples, completions_of_samples
):
    engine = new_engine()
    alone = [engine.generate([request])[0] for request in requests_of_samples[::-1]]
    assert token_ids(alone) == token_ids(completions_of_samples[::-1])


def test_a_kept_prefix_changes_no_token(new_engine, requests_of_samples, completions_of_samples):
    engine = new_engine(shares_prefixes=False)
    assert token_ids(engine.generate(requests_of_samples)) == token_ids(completions_of_samples)


def test_system_prompts_that_take_turns_do_not_mix(new_engine, samples, requests_of_samples):
    engine = new_engine()
    by_system_prompt = defaultdict(list)
    for sample, request in zip(samples, requests_of_samples, strict=True):
        if sample.prompt.startswith("<|system|>"):
            by_system_prompt[sample.prompt.partition("<|end|>")[0]].append((sample, request))
    assert len(by_system_prompt) > 2
    turns = [turn for turn in chain(*zip_longest(*by_system_prompt.values())) if turn]
    for sample, request in turns:  # one call each: the engine cannot sort them
        assert engine.generate([request])[0].text == sample.answer


def test_threads_of_one_process_do_not_mix(new_engine, requests_of_samples, completions_of_samples):
    engine = new_engine()
    parts = [slice(start, None, 8) for start in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda part: engine.generate(requests_of_samples[part]), parts)
        for part, result in zip(parts, results, strict=True):
            assert result == completions_of_samples[part]


def test_the_number_of_threads_changes_no_answer(
    new_engine, requests_of_samples, completions_of_samples
):
    engine = new_engine(threads=1)
    completions = engine.generate(requests_of_samples[::4])
    assert token_ids(completions) == token_ids(completions_of_samples[::4])
