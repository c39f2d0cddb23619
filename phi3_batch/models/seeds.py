"""Seeds of sampled requests: each its own, and the same each time."""

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from phi3_batch.generation import Request


def with_own_seeds(rows: Iterable[tuple[Hashable, Sequence[Request]]]) -> list[Request]:
    """Requests of one call, the sampled ones with seeds that derive from what was sent.

    Equal rows get different texts, in the order of the call: the second copy of a prompt has
    the same text whenever the call is made again, and whatever other prompts are in it. Greedy
    requests stay as they are.

    Rows are told apart by what was sent, not by tokens: the tokenizer drops some white space, and
    a job, which knows nothing of tokens, counts prompts that differ in it as two.

    Args:
        rows: for each what was sent, a prompt or messages, in what JSON can write; and its
            requests, one for each choice.
    """
    seen = Counter[Hashable]()
    seeded = []
    for sent, requests in rows:
        for request in requests:
            if request.params.greedy:
                seeded.append(request)
                continue
            row = (sent, request.params, len(requests))
            seed = _derive(request.params.seed, sent, seen[row])
            seen[row] += 1
            seeded.append(replace(request, params=replace(request.params, seed=seed)))
    return seeded


def _derive(seed: int, sent: Hashable, copy: int) -> int:
    # no hash() of Python's: it may differ from one process to the next
    parts = json.dumps([seed, sent, copy])
    digest = hashlib.blake2b(parts.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits, which a signed 64-bit integer holds
