import subprocess
import sys
from dataclasses import replace

from phi3_batch.generation import GenerationParams, Request
from phi3_batch.models.seeds import with_own_seeds

WARM = GenerationParams(temperature=0.7, seed=40)
PINNED = [2689780388435967415, 945000450585688167]  # of two copies of SPAIN
SPAIN, FRANCE = Request((5, 6, 7), WARM), Request((5, 6, 8), WARM)
SENT = {SPAIN.prompt_ids: "Spain?", FRANCE.prompt_ids: "France?"}


def as_rows(requests):
    """Each a row of its own, in which was sent what stands for its tokens."""
    return [(SENT.get(request.prompt_ids, request.prompt_ids), [request]) for request in requests]


def seeds(*requests):
    return [request.params.seed for request in with_own_seeds(as_rows(requests))]


def with_params(request, **params):
    return replace(request, params=replace(request.params, **params))


def test_nothing_but_the_seed_changes_and_the_order_stays():
    given = [SPAIN, FRANCE, SPAIN]
    result = with_own_seeds(as_rows(given))
    assert [with_params(request, seed=40) for request in result] == given


def test_greedy_requests_are_left_alone():
    greedy = [Request((5, 6), GenerationParams(seed=9)), Request((5, 6), GenerationParams(seed=9))]
    assert with_own_seeds(as_rows(greedy)) == greedy


def test_copies_of_a_request_have_seeds_of_their_own():
    assert len(set(seeds(*[SPAIN] * 500))) == 500


def test_different_prompts_have_different_seeds():
    prompts = [Request(ids, WARM) for ids in [(5,), (6,), (5, 6), (56,), (6, 5), (5, 6, 1), ()]]
    assert len(set(seeds(*prompts))) == len(prompts)


def test_the_seed_that_was_given_decides():
    assert seeds(SPAIN) != seeds(with_params(SPAIN, seed=41))
    # of a second copy and another seed too: nothing is added up
    assert len({*seeds(SPAIN, SPAIN, SPAIN), *seeds(*[with_params(SPAIN, seed=41)] * 3)}) == 6


def test_a_call_that_is_made_again_has_the_same_seeds():
    assert seeds(SPAIN, FRANCE, SPAIN) == seeds(SPAIN, FRANCE, SPAIN)


def test_other_prompts_in_the_call_change_nothing():
    first, second = seeds(SPAIN, SPAIN)
    assert seeds(FRANCE, SPAIN, FRANCE, FRANCE, SPAIN)[1::3] == [first, second]


def test_requests_with_other_parameters_are_no_copies():
    longer = with_params(SPAIN, max_tokens=9)
    first, second = seeds(SPAIN, SPAIN)
    assert seeds(longer, SPAIN, longer, SPAIN) == [first, first, second, second]


def test_equal_tokens_of_other_texts_are_no_copies():
    first, second = seeds(SPAIN, SPAIN)
    rows = [("Spain?", [SPAIN]), (" Spain?", [SPAIN]), ("Spain?", [SPAIN])]
    found = [request.params.seed for request in with_own_seeds(rows)]
    assert found[::2] == [first, second]
    assert found[1] not in (first, second)


def test_choices_count_as_copies_and_rows_with_another_number_of_them_do_not():
    first, second, third, fourth = seeds(*[SPAIN] * 4)
    rows = [("Spain?", [SPAIN] * 2), ("Spain?", [SPAIN]), ("Spain?", [SPAIN] * 2)]
    found = [request.params.seed for request in with_own_seeds(rows)]
    assert found == [first, second, first, third, fourth]


def test_seeds_fit_in_63_bits_and_are_spread_over_them():
    found = seeds(*[SPAIN] * 1000)
    assert all(0 <= seed < 2**63 for seed in found)
    assert max(found).bit_length() == 63
    assert {seed % 2 for seed in found} == {0, 1}


def test_the_largest_seed_is_one_like_others():
    assert len(set(seeds(*[with_params(SPAIN, seed=2**63 - 1)] * 3))) == 3


def test_seeds_are_the_same_on_every_machine_and_in_every_version():
    # a text that was sampled once must come again: these are never to change
    assert seeds(SPAIN, SPAIN) == PINNED


def test_seeds_do_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "from phi3_batch.generation import GenerationParams, Request\n"
        "from phi3_batch.models.seeds import with_own_seeds\n"
        "request = Request((5, 6, 7), GenerationParams(temperature=0.7, seed=40))\n"
        "rows = [('Spain?', [request])] * 2\n"
        "print([request.params.seed for request in with_own_seeds(rows)])\n"
    )
    for hash_seed in ("0", "1"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert answer.stdout == f"{PINNED}\n"
