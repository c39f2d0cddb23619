"""Seeds of sampled requests: each its own, and the same each time."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from phi3_batch.generation import Request


def with_own_seeds(requests: Iterable[Request]) -> list[Request]:
    """Requests of one call, the sampled ones with seeds that derive from what they are.

    Equal requests get different texts, in the order of the call: the second copy of a prompt has
    the same text whenever the call is made again, and whatever other prompts are in it. Greedy
    requests stay as they are.
    """
    seen = Counter[Request]()
    seeded = []
    for request in requests:
        if request.params.greedy:
            seeded.append(request)
            continue
        seed = _derive(request, seen[request])
        seen[request] += 1
        seeded.append(replace(request, params=replace(request.params, seed=seed)))
    return seeded


def _derive(request: Request, copy: int) -> int:
    # no hash() of Python's: it may differ from one process to the next
    parts = json.dumps([request.params.seed, request.prompt_ids, copy])
    digest = hashlib.blake2b(parts.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits, which a signed 64-bit integer holds
