"""In which order an engine takes requests, so that an equal beginning is computed once.

The keys and values of a prompt's beginning serve the next prompt that has it, if they are there
by then. For an engine that takes one request after another it is enough that equal beginnings are
next to each other. One that takes many at a time has to let one of them go ahead.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from phi3_batch.generation import Request


def by_prefix(requests: Sequence[Request]) -> list[int]:
    """Indexes of the requests, those with the longest equal beginnings next to each other."""
    return sorted(range(len(requests)), key=lambda index: requests[index].prompt_ids)


@dataclass(frozen=True, slots=True)
class Leader:
    """The request that another waits for.

    Attributes:
        index: of the request that goes ahead.
        shared_tokens: of the prompts' equal beginning that need no second reading.
    """

    index: int
    shared_tokens: int


def find_leaders(requests: Sequence[Request], block_tokens: int) -> dict[int, Leader]:
    """Whom each request should wait for, because it reads the beginning that they share.

    Args:
        requests: in any order.
        block_tokens: a beginning is kept in blocks of so many tokens, and shared in whole ones.

    Returns:
        By the index of each request that has to wait, the one that it waits for, which may wait
        for another that shares less. Of those that share equally much, one leads all others.
    """
    leaders: dict[int, Leader] = {}
    # Requests in the order of their prompts are a walk through the tree of their beginnings. On
    # the way from its root to the current one: who leads at each of its branches.
    path: list[Leader] = []
    previous = -1
    previous_ids: tuple[int, ...] = ()
    for index in by_prefix(requests):
        prompt_ids = requests[index].prompt_ids
        # a prompt's last token is always read: its logits are where the answer begins
        shared = common_prefix_length(previous_ids, prompt_ids[:-1])
        shared -= shared % block_tokens
        ahead = previous
        while path and path[-1].shared_tokens > shared:
            ahead = path.pop().index
        if shared:
            if not path or path[-1].shared_tokens < shared:
                path.append(Leader(ahead, shared))
            leaders[index] = path[-1]
        previous, previous_ids = index, prompt_ids
    return leaders


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences share from the beginning."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)


class Queue:
    """The requests that wait for an engine which takes many at a time.

    Those that others wait for come first, then those that may take longest: what is short fills
    the gaps at the end.

    Args:
        requests: what is to be answered.
        max_new_tokens: of each of them: all that is known of how long it takes.
        block_tokens: of a block of the prefix cache; None without one, then nobody has to wait.
    """

    def __init__(
        self, requests: Sequence[Request], max_new_tokens: Sequence[int], block_tokens: int | None
    ) -> None:
        self._requests = requests
        self._max_new_tokens = max_new_tokens
        self._leaders = find_leaders(requests, block_tokens) if block_tokens else {}
        self._followers: defaultdict[int, list[int]] = defaultdict(list)
        for index, leader in self._leaders.items():
            self._followers[leader.index].append(index)
        self._ready: list[tuple[bool, int, int]] = []
        for index in range(len(requests)):
            if index not in self._leaders:
                self._push(index)

    def peek(self) -> int | None:
        """The index of the next request; None while all that are left wait for another."""
        return self._ready[0][-1] if self._ready else None

    def pop(self) -> int:
        """Take the next request."""
        return heapq.heappop(self._ready)[-1]

    def release(self, index: int, prefilled_tokens: int | None = None) -> None:
        """Let those go on that wait for a request, or for so many tokens of its prompt.

        Args:
            index: of the request.
            prefilled_tokens: of its prompt; None when all have been read, or never will be.
        """
        for follower in self._followers.pop(index, ()):
            if (
                prefilled_tokens is None
                or self._leaders[follower].shared_tokens <= prefilled_tokens
            ):
                self._push(follower)
            else:
                self._followers[index].append(follower)

    def prefill_tokens(self, index: int) -> int:
        """How many tokens of a prompt are left to read, when the one it waits for has been."""
        leader = self._leaders.get(index)
        return len(self._requests[index].prompt_ids) - (leader.shared_tokens if leader else 0)

    def _push(self, index: int) -> None:
        alone = index not in self._followers
        heapq.heappush(self._ready, (alone, -self._max_new_tokens[index], index))
