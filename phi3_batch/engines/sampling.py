"""Choosing the next token from the model's logits."""

import math

import numpy as np
from numpy.typing import NDArray

from phi3_batch.generation import GenerationParams

# a weight, of 1 for the likeliest token, that few of a vocabulary have
_FEW = 1e-4


def choose_token(
    logits: NDArray[np.float32], params: GenerationParams, rng: np.random.Generator
) -> tuple[int, float]:
    """Choose a token, greedily or by sampling.

    Temperature, then top_k, then top_p, in the order of the Hugging Face logits processors.

    Args:
        logits: shape ``(vocab_size,)``; minus infinity for what may not be chosen.
        params: temperature, top_k, top_p and logprobs are read.
        rng: drawn from once for each sampled token, never for a greedy one.

    Returns:
        Its id, and with logprobs its log-probability (else 0): of all tokens where it is chosen
        greedily, of those that it was drawn from where it is sampled.

    Raises:
        ValueError: the logits are not numbers, as from a damaged model.
    """
    best = int(logits.argmax())
    if not np.isfinite(logits[best]):
        raise ValueError("the model's logits are not finite numbers")
    if params.greedy:
        return best, float(log_softmax(logits)[best]) if params.logprobs else 0.0

    # a token that is e^40 times less likely than the best is lost in a sum of 64-bit numbers
    likely = np.flatnonzero(logits >= logits[best] - 40.0 * params.temperature)
    weights = np.exp((logits[likely].astype(np.float64) - logits[best]) / params.temperature)
    chosen, probability = _draw(weights, params, rng.random())
    return int(likely[chosen]), math.log(probability) if params.logprobs else 0.0


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities of all tokens; shape ``(vocab_size,)``, as of the logits."""
    below = logits - logits.max()
    # the exponentials in 32 bits, which take a fraction of the time, are exact enough for their sum
    total = math.log(np.exp(below).sum(dtype=np.float64))
    known: NDArray[np.float64] = below.astype(np.float64) - total
    return known


def _draw(
    weights: NDArray[np.float64], params: GenerationParams, uniform: float
) -> tuple[int, float]:
    """The place that a number of [0, 1) falls on, the weights put one after another by size.

    Returns:
        The place, and its share of the weights that are drawn from.
    """
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
            return int(order[place]), float(weights[order[place]] / total)
    return int(order[-1]), float(weights[order[-1]] / total)  # where the sums were rounded
