"""Choosing the next token from the model's logits."""

import numpy as np
from numpy.typing import NDArray

from phi3_batch.generation import GenerationParams

# a weight, of 1 for the likeliest token, that few of a vocabulary have
_FEW = 1e-4


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
    weights = np.exp((logits[likely].astype(np.float64) - logits[best]) / params.temperature)
    chosen = _draw(weights, params, rng.random())
    return int(likely[chosen])


def _draw(weights: NDArray[np.float64], params: GenerationParams, uniform: float) -> int:
    """The place that a number of [0, 1) falls on, the weights put one after another by size."""
    total = weights.sum()
    # Of a vocabulary a few hundred tokens hold nearly all: most draws need no others in order.
    for least in (_FEW, 0.0):
        order = np.flatnonzero(weights >= least)
        order = order[np.argsort(-weights[order], kind="stable")]
        held = weights[order].cumsum()
        is_whole = len(order) == len(weights)
        if params.top_k:
            is_whole |= len(order) >= params.top_k
            order, held = order[: params.top_k], held[: params.top_k]
            if not is_whole:
                continue
            total = held[-1]
        if params.top_p < 1:
            # the smallest set that holds top_p: every token before which less than top_p is held
            kept = int(np.count_nonzero(held - weights[order] < params.top_p * total))
            if kept == len(order) and not is_whole:
                continue
            order, held = order[:kept], held[:kept]
            total = held[-1]
        place = int(np.searchsorted(held, uniform * total, side="right"))
        if place < len(order):
            return int(order[place])
    return int(order[-1])  # where the sums were rounded
