"""Equal beginnings are found, whatever the order of the requests."""

import random

import pytest

from phi3_batch.engines.order import Leader, Queue, by_prefix, common_prefix_length, find_leaders
from phi3_batch.generation import Request


def requests_of(*prompts):
    return [Request(tuple(prompt)) for prompt in prompts]


def order_of(queue):
    """In which order a queue gives its requests, each prompt read at once."""
    order = []
    while queue.peek() is not None:
        order.append(queue.pop())
        queue.release(order[-1])
    return order


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [
        ((), (1,), 0),
        ((1, 2), (1, 2), 2),
        ((1, 2, 3), (1, 2), 2),
        ((1, 2), (1, 3), 1),
        ((1,), (2,), 0),
    ],
)
def test_the_common_prefix_of_two_prompts(left, right, length):
    assert common_prefix_length(left, right) == length


def test_requests_with_equal_beginnings_are_next_to_each_other():
    requests = requests_of((1, 2, 3), (9, 9), (1, 2, 4), (9, 9, 1), (1, 5))
    assert by_prefix(requests) == [0, 2, 4, 1, 3]


def test_prompts_that_share_nothing_have_no_leader():
    assert find_leaders(requests_of((1, 2, 3), (2, 2, 3), (3, 2, 3)), block_tokens=2) == {}


def test_less_than_a_block_is_not_shared():
    assert find_leaders(requests_of((1, 2, 3, 7), (1, 2, 3, 8)), block_tokens=4) == {}


def test_whole_blocks_are_shared():
    requests = requests_of((1, 2, 3, 4, 5, 8), (1, 2, 3, 4, 5, 7))
    assert find_leaders(requests, block_tokens=2) == {0: Leader(1, 4)}


def test_the_last_token_of_a_prompt_is_not_shared():
    assert find_leaders(requests_of((1, 2), (1, 2)), block_tokens=2) == {}
    assert find_leaders(requests_of((1, 2, 3), (1, 2, 3)), block_tokens=2) == {1: Leader(0, 2)}


def test_all_that_share_a_beginning_wait_for_one():
    requests = requests_of(*[(1, 2, 3, 4, last) for last in range(10, 20)])
    assert find_leaders(requests, block_tokens=2) == {i: Leader(0, 4) for i in range(1, 10)}


def test_a_beginning_within_a_beginning_has_a_leader_of_its_own():
    requests = requests_of(
        (1, 1, 5, 5, 5), (1, 1, 5, 5, 6), (1, 1, 6, 6, 5), (1, 1, 6, 6, 6), (1, 1, 7, 7, 7)
    )
    assert find_leaders(requests, block_tokens=2) == {
        1: Leader(0, 4),
        2: Leader(0, 2),
        3: Leader(2, 4),
        4: Leader(0, 2),
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_leader_has_what_its_followers_share_and_nobody_waits_in_a_circle(seed):
    rng = random.Random(seed)
    prompts = [[rng.randint(0, 1) for _ in range(rng.randint(1, 12))] for _ in range(40)]
    requests = requests_of(*prompts)
    leaders = find_leaders(requests, block_tokens=2)
    for index, leader in leaders.items():
        prompt, ahead = requests[index].prompt_ids, requests[leader.index].prompt_ids
        assert leader.shared_tokens > 0
        assert leader.shared_tokens % 2 == 0
        assert leader.shared_tokens < len(prompt)
        assert common_prefix_length(prompt, ahead) >= leader.shared_tokens
    assert sorted(order_of(Queue(requests, [1] * 40, block_tokens=2))) == list(range(40))
    # what can be shared, is: only one of those with the same first block has to read it
    first_blocks = {tuple(prompt[:2]) for prompt in prompts if len(prompt) > 2}
    readers = [i for i, prompt in enumerate(prompts) if len(prompt) > 2 and i not in leaders]
    assert len(readers) <= len(first_blocks)


def test_the_longest_comes_first():
    requests = requests_of((1,), (2,), (3,), (4,))
    assert order_of(Queue(requests, [5, 30, 7, 30], block_tokens=2)) == [1, 3, 2, 0]


def test_one_that_others_wait_for_comes_before_all_of_them():
    requests = requests_of((9, 9, 9), (1, 2, 4), (1, 2, 3), (8,))
    queue = Queue(requests, [50, 60, 5, 40], block_tokens=2)
    assert queue.pop() == 2
    assert [queue.pop(), queue.pop(), queue.peek()] == [0, 3, None]
    queue.release(2)
    assert queue.pop() == 1


def test_without_a_prefix_cache_nobody_waits():
    requests = requests_of((1, 2, 3), (1, 2, 3))
    queue = Queue(requests, [1, 2], block_tokens=None)
    assert [queue.pop(), queue.pop(), queue.peek()] == [1, 0, None]
    assert queue.prefill_tokens(0) == queue.prefill_tokens(1) == 3


def test_what_is_left_to_read_of_a_prompt():
    queue = Queue(requests_of((1, 2, 3, 4, 5), (1, 2, 3, 4, 6, 7)), [1, 1], block_tokens=2)
    assert [queue.prefill_tokens(0), queue.prefill_tokens(1)] == [5, 2]


def test_those_that_share_what_has_been_read_wait_no_longer():
    requests = requests_of((1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (1, 2, 3, 5, 6), (1, 2, 9))
    queue = Queue(requests, [1, 1, 1, 1], block_tokens=2)
    assert [queue.pop(), queue.peek()] == [0, None]
    queue.release(0, prefilled_tokens=1)
    assert queue.peek() is None
    queue.release(0, prefilled_tokens=3)
    assert {queue.pop(), queue.pop()} == {2, 3}
    assert queue.peek() is None
    queue.release(0)
    assert [queue.pop(), queue.peek()] == [1, None]


def test_a_request_is_released_once():
    requests = requests_of((1, 2, 3), (1, 2, 4))
    queue = Queue(requests, [1, 1], block_tokens=2)
    queue.pop()
    queue.release(0)
    queue.release(0)
    assert [queue.pop(), queue.peek()] == [1, None]


def test_no_request_makes_an_empty_queue():
    assert Queue([], [], block_tokens=2).peek() is None
