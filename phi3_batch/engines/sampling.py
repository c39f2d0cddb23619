"""Choosing the next token from the model's logits."""

import numpy as np
from numpy.typing import NDArray

from phi3_batch.generation import GenerationParams


def choose_token(
    logits: NDArray[np.float32], params: GenerationParams, rng: np.random.Generator
) -> int:
    """Choose a token id, greedily or by sampling.

    Temperature, then top_k, then top_p, in the order of the Hugging Face logits processors.

    Args:
        logits: shape ``(vocab_size,)``.
        params: temperature, top_k and top_p are read.
        rng: drawn from once for each sampled token, never for a greedy one.

    Raises:
        ValueError: the logits are not numbers, as from a damaged model.
    """
    best = int(logits.argmax())
    if not np.isfinite(logits[best]):
        raise ValueError("the model's logits are not finite numbers")
    if params.greedy:
        return best

    # a token that is e^40 times less likely than the best is lost in a sum of 64-bit numbers
    likely = np.flatnonzero(logits >= logits[best] - 40.0 * params.temperature)
    order = likely[np.argsort(-logits[likely], kind="stable")]
    if params.top_k:
        order = order[: params.top_k]
    scaled = (logits[order].astype(np.float64) - logits[best]) / params.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    cumulative = probabilities.cumsum()
    # the smallest set that holds top_p: every token before which less than top_p is held
    kept = int(np.count_nonzero(cumulative - probabilities < params.top_p))
    draw = rng.random() * cumulative[kept - 1]
    return int(order[np.searchsorted(cumulative[:kept], draw, side="right").clip(max=kept - 1)])
