"""Answers of a shape, on every engine that chooses tokens by all of their logits."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from phi3_batch.engines import registry
from phi3_batch.engines.base import Question
from phi3_batch.engines.choices import answer
from phi3_batch.engines.native.continuations import Scoring
from phi3_batch.engines.native.kv_blocks import KVBlocks
from phi3_batch.engines.process import Process
from phi3_batch.engines.sampling import log_softmax
from phi3_batch.engines.torch.engine import TransformersEngine
from phi3_batch.errors import EngineError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import Checkpoint
from tests.conftest import TINY_CHECKPOINT
from tests.engines.conftest import FRANCE, MADRID, PARIS, SPAIN, one

CITIES = ("Paris", "The capital of Spain is Madrid.", "The capital", 'London\n"x" \\ /größe 東京')
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "city": {"enum": ["Madrid", "Paris", 'a "b" \\ ü']},
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
            "size": {"type": "integer", "minimum": 0, "maximum": 99},
            "large": {"type": "boolean"},
        },
        "required": ["city", "tags", "size", "large"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module", params=["native", "onnxruntime-genai", "transformers"])
def choosing(request, new_engine_of):
    return new_engine_of(request.param)


@pytest.fixture(scope="module")
def new_engine_of(tiny_folder, packed_model):
    from phi3_batch.engines.native.engine import NativeEngine
    from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine

    def new(name, **options):
        if name == "native":
            return NativeEngine(tiny_folder, packed_model, **options)
        if name == "transformers":
            return TransformersEngine(Checkpoint.open(TINY_CHECKPOINT))
        return OnnxRuntimeGenAIEngine(tiny_folder)

    return new


def test_an_answer_is_one_of_the_choices_to_the_letter(choosing, ask):
    requests = [
        ask(question, choices=CITIES, choices_by="generate", temperature=heat, seed=seed)
        for question in (SPAIN, FRANCE)
        for heat, seed in [(0.0, 0), *((9.0, seed) for seed in range(20))]
    ]
    answers = answer(choosing, requests)
    assert {completion.error for completion in answers} == {None}
    assert {completion.text for completion in answers} == set(CITIES)
    assert {completion.finish_reason for completion in answers} == {"stop"}
    assert answers[0].text == MADRID


def test_json_follows_the_schema_and_is_written_as_python_writes_it(choosing, ask):
    requests = [ask(SPAIN, json_schema=SCHEMA, temperature=5.0, seed=seed) for seed in range(30)]
    texts = [completion.text for completion in choosing.generate(requests)]
    assert len(set(texts)) > 5
    for text in texts:
        found = json.loads(text)
        assert list(found) == ["city", "tags", "size", "large"]
        assert found["city"] in ("Madrid", "Paris", 'a "b" \\ ü')
        assert set(found["tags"]) <= {"x", "y"}
        assert len(found["tags"]) <= 2
        assert 0 <= found["size"] <= 99
        assert isinstance(found["large"], bool)
        assert json.dumps(found, ensure_ascii=False) == text


def test_a_whole_answer_matches_the_regular_expression(choosing, ask):
    pattern = r"[A-Z]{2}-\d{3}/(ü|東)"
    requests = [ask(SPAIN, regex=pattern, temperature=3.0, seed=seed) for seed in range(20)]
    texts = [completion.text for completion in choosing.generate(requests)]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(set(texts)) > 5


def test_what_a_model_says_by_itself_is_not_changed_by_a_constraint_that_allows_it(choosing, ask):
    for question, expected in ((SPAIN, MADRID), (FRANCE, PARIS)):
        free = one(choosing, ask(question))
        bound = one(choosing, ask(question, regex=r"The capital of [A-Z][a-z]+ is [A-Z][a-z]+\."))
        assert bound.text == free.text == expected


def test_an_answer_that_is_cut_is_an_error(choosing, ask):
    cut = one(choosing, ask(SPAIN, json_schema=SCHEMA, max_tokens=6))
    assert (cut.error.code, cut.text) == (RowErrorCode.ANSWER_CUT, "")
    assert cut.error.message == "the answer is not whole after 6 tokens: give more max_tokens"
    assert one(choosing, ask(SPAIN, regex="[a-z ]+", max_tokens=6)).finish_reason == "length"


def test_tokens_that_have_to_come_are_certain(choosing, ask):
    only = one(choosing, ask(SPAIN, choices=("Paris",), choices_by="generate", logprobs=True))
    assert (only.text, only.finish_reason) == ("Paris", "stop")
    assert len(only.log_probabilities) == len(only.token_ids) > 1
    assert set(only.log_probabilities[1:]) == {0.0}


def test_a_call_may_have_no_row_that_the_model_reads(choosing, ask):
    requests = [ask(SPAIN, regex="("), ask(FRANCE, json_schema="[]")]
    assert [completion.error is None for completion in choosing.generate(requests)] == [False] * 2


def test_no_control_token_is_let_through(choosing, ask, tiny_folder):
    control = {token.id for token in tiny_folder.tokenizer.control_tokens.values()}
    requests = [
        ask(SPAIN, regex=".{0,40}", temperature=50.0, seed=seed, max_tokens=60)
        for seed in range(40)
    ]
    for completion in choosing.generate(requests):
        assert not control & set(completion.token_ids)


def test_rows_with_and_without_constraints_share_a_call(choosing, ask):
    requests = [
        ask(SPAIN),
        ask(SPAIN, json_schema=SCHEMA),
        ask(FRANCE, regex="[a-c]{3}"),
        ask(FRANCE, temperature=2.0, seed=1, max_tokens=9),
        ask(FRANCE, repetition_penalty=2.0, max_tokens=9),
        ask(SPAIN, choices=CITIES),
        ask(FRANCE, choices=CITIES, choices_by="generate"),
    ]
    assert answer(choosing, requests) == [answer(choosing, [each])[0] for each in requests]


def test_a_constraint_that_cannot_be_followed_costs_its_row_alone(choosing, ask):
    bad, good = choosing.generate([ask(SPAIN, json_schema='{"not": {}}'), ask(FRANCE)])
    assert bad.error.code is RowErrorCode.ENGINE_ERROR
    assert 'json_schema cannot be followed: Unimplemented keys: ["not"]' in bad.error.message
    assert good.text == PARIS


# choices that are compared


def test_the_likeliest_choice_is_the_answer(choosing, ask):
    requests = [
        # the fourth begins as the answers do, and does not end there
        ask(question, choices=(MADRID, "Paris", PARIS, "The capital", "a"), max_tokens=1)
        for question in (SPAIN, FRANCE)
    ]
    spain, france = answer(choosing, requests)
    assert (spain.text, france.text) == (MADRID, PARIS)
    assert spain.finish_reason == "stop"
    assert spain.usage.completion_tokens == len(spain.token_ids) > 1
    for completion in (spain, france):
        assert sum(completion.probabilities) == pytest.approx(1)
        assert max(completion.probabilities) > 0.9


def test_likelihoods_are_those_of_the_logits(choosing, ask, tiny_folder):
    prompt_ids = ask(SPAIN).prompt_ids
    encode = tiny_folder.tokenizer.encode_content
    continuations = tuple(tuple(encode(text)) for text in CITIES)
    [scores] = choosing.score([Question(prompt_ids, continuations)])
    ends = sorted(tiny_folder.end_token_ids)
    for tokens, score in zip(continuations, scores, strict=True):
        logits = choosing.read_logits((*prompt_ids, *tokens))[len(prompt_ids) - 1 :]
        known = [log_softmax(each) for each in logits]
        expected = [each[token] for each, token in zip(known, tokens, strict=False)]
        expected.append(np.logaddexp.reduce(known[-1][ends]))
        assert score == pytest.approx(expected, abs=0.02)


def test_likelihoods_are_about_those_of_the_reference(choosing, reference, ask, tiny_folder):
    encode = tiny_folder.tokenizer.encode_content
    questions = [
        Question(ask(question).prompt_ids, tuple(tuple(encode(text)) for text in (MADRID, PARIS)))
        for question in (SPAIN, FRANCE)
    ]
    for mine, theirs in zip(choosing.score(questions), reference.score(questions), strict=True):
        for score, expected in zip(mine, theirs, strict=True):
            # of tokens that the model thinks possible: the others are of no account
            likely = [place for place, each in enumerate(expected) if each > -3]
            assert len(likely) > 4
            assert [score[n] for n in likely] == pytest.approx(
                [expected[n] for n in likely], abs=0.1
            )


@pytest.mark.parametrize("length", [31, 32, 33, 64, 700])
def test_a_score_is_the_same_bit_by_bit_alone_and_in_company(new_engine_of, nonsense, length):
    engine = new_engine_of("native", threads=2)
    prompt = nonsense(length)
    questions = [
        Question(prompt[:-cut] or prompt, tuple((*prompt[:n], 300 + n) for n in counts))
        for cut, counts in [
            (1, (1,)),
            (2, (3, 70, 1)),
            (5, (130, 2)),
            (1, (1, 2, 3, 4, 5)),
            (9, (40,)),
        ]
    ]
    together = engine.score(questions)
    for threads in (1, 2):
        alone = new_engine_of("native", threads=threads, prefix_caching=False)
        assert together == [alone.score([question])[0] for question in questions]
    assert engine.score(questions[::-1]) == together[::-1]


@pytest.fixture
def score_with(new_engine_of):
    """Scores with a KV cache of so many blocks."""
    loaded = new_engine_of("native")._loaded

    def score_with(blocks, questions):
        scoring = Scoring(replace(loaded, blocks=KVBlocks(blocks)), questions)
        scoring.run()
        return scoring.scores

    return score_with


def test_choices_that_do_not_fit_into_the_cache_at_once_are_read_in_turn(score_with, nonsense):
    text = nonsense(900)
    # three blocks each, of which no two are alike, and one for a continuation
    questions = [
        Question(text[70 * n : 70 * n + 70], tuple((*text[:20], i) for i in range(9)))
        for n in range(9)
    ]
    expected = score_with(500, questions)
    for blocks in (4, 5, 6, 7, 9, 12):
        assert score_with(blocks, questions) == expected


def test_a_question_that_no_cache_holds_costs_no_other(score_with, nonsense):
    short, long = (Question(nonsense(count), ((5,), (6,))) for count in (40, 400))
    [expected] = score_with(500, [short])
    assert score_with(4, [long, short, long]) == [None, expected, None]
    assert score_with(4, [short, long, short]) == [expected, None, expected]


def test_a_prompt_that_leaves_no_room_for_a_choice_is_too_long(choosing, ask, nonsense):
    long = Request(nonsense(4090), GenerationParams(choices=("a", "a b c d e f g h i j k l m")))
    refused, sound = answer(choosing, [long, ask(SPAIN, choices=(MADRID, "a"))])
    assert refused.error.code is RowErrorCode.PROMPT_TOO_LONG
    assert sound.text == MADRID


def test_a_question_at_which_a_runtime_fails_costs_no_other(new_engine_of, ask, monkeypatch):
    for name in ("onnxruntime-genai", "transformers"):
        engine = new_engine_of(name)
        score, bad = engine._score, ask(FRANCE).prompt_ids

        def fail(asked, *rest, score=score, bad=bad):
            if bad in (asked, getattr(asked, "prompt_ids", None)):
                raise RuntimeError("out of luck")
            return score(asked, *rest)

        monkeypatch.setattr(engine, "_score", fail)
        requests = [ask(question, choices=(MADRID, PARIS)) for question in (SPAIN, FRANCE, SPAIN)]
        first, failed, last = answer(engine, requests)
        assert (first.text, last.text) == (MADRID, MADRID)
        assert failed.error.code is RowErrorCode.ENGINE_ERROR
        assert failed.error.message.endswith("the choices behind 10 tokens could not be read")


# log-probabilities


def test_log_probabilities_are_those_of_the_tokens(choosing, ask):
    completion = one(choosing, ask(SPAIN, logprobs=True))
    assert completion.text == MADRID
    assert len(completion.log_probabilities) == len(completion.token_ids) + 1  # of the end
    prompt_ids = ask(SPAIN).prompt_ids
    logits = choosing.read_logits((*prompt_ids, *completion.token_ids))[len(prompt_ids) - 1 :]
    expected = [max(log_softmax(each)) for each in logits]
    assert completion.log_probabilities == pytest.approx(expected, abs=0.02)
    assert one(choosing, ask(SPAIN)).log_probabilities == ()


def test_a_sampled_token_has_the_log_probability_of_what_it_was_drawn_from(choosing, ask):
    requests = [
        ask(SPAIN, temperature=4.0, top_k=2, seed=seed, logprobs=True, max_tokens=1)
        for seed in range(60)
    ]
    found = {c.token_ids: c.log_probabilities[0] for c in choosing.generate(requests)}
    assert len(found) == 2
    assert sum(map(math.exp, found.values())) == pytest.approx(1)


# penalties


def test_a_penalty_on_repetition_is_that_of_transformers(choosing, ask):
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    request = ask(SPAIN, repetition_penalty=20.0, max_tokens=12)
    completion = one(choosing, request)
    processor = RepetitionPenaltyLogitsProcessor(20.0)
    ids = list(request.prompt_ids)
    for token in completion.token_ids:
        logits = torch.tensor(choosing.read_logits(ids)[-1:])
        assert int(processor(torch.tensor([ids]), logits).argmax()) == token
        ids.append(token)
    assert completion.text != one(choosing, ask(SPAIN, max_tokens=12)).text


def test_a_bias_is_added_to_the_tokens_of_its_text(choosing, ask):
    requests = [
        ask(SPAIN, logit_bias=(("Madrid", -100.0),), max_tokens=12),
        ask(SPAIN, logit_bias=(("of several words", 1.0),)),
        ask(SPAIN, logit_bias=(("Paris", 0.5),)),
    ]
    banned, refused, same = choosing.generate(requests)
    assert "Madrid" not in banned.text
    assert refused.error.message.endswith("text 1 of logit_bias is no token of the model")
    assert same.text == MADRID


def test_an_answer_does_not_end_before_min_tokens(choosing, ask):
    free = one(choosing, ask(SPAIN))
    longer = one(choosing, ask(SPAIN, min_tokens=20, max_tokens=25))
    assert longer.token_ids[: len(free.token_ids)] == free.token_ids
    assert len(longer.token_ids) >= 20


# an engine that chooses its tokens itself


def test_openvino_is_left_for_an_engine_that_gives_its_logits(tiny_folder, monkeypatch):
    monkeypatch.setattr(registry, "processor_flags", lambda: {"avx512_vnni", "amx_tile"})
    process, manifest = Process(), tiny_folder.read_manifest()
    free = process.engine(tiny_folder, manifest)
    assert free.name.startswith("openvino")
    chosen = process.engine(tiny_folder, manifest, chooses_tokens=True)
    assert chosen.name.startswith("native")
    assert process.engine(tiny_folder, manifest) is chosen  # which can do both
    with pytest.raises(EngineError, match=r"^openvino chooses tokens by itself, so choices, json"):
        process.engine(tiny_folder, manifest, "openvino", chooses_tokens=True)


@pytest.mark.parametrize("spec", registry.ONNX_ENGINES, ids=lambda spec: spec.name)
def test_what_is_said_of_an_engine_is_so(tiny_folder, spec):
    engine = spec.create(tiny_folder, tiny_folder.read_manifest())
    assert engine.chooses_tokens == spec.chooses_tokens
    if not engine.chooses_tokens:
        with pytest.raises(EngineError, match="cannot compare choices: use another engine"):
            engine.score([Question((5,), ((6,),))])
