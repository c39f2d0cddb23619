import numpy as np
import pytest
from agreement import difference


def test_equal_logits_do_not_differ():
    logits = np.random.default_rng(0).normal(size=(5, 16))

    found = difference(logits, logits)

    assert (found.largest, found.mean, found.top_1, found.divergence) == (0.0, 0.0, 1.0, 0.0)


def test_logits_moved_together_are_the_same_distribution():
    logits = np.random.default_rng(0).normal(size=(5, 16))

    found = difference(logits, logits + 3.0)

    assert found.largest == pytest.approx(3.0)
    assert found.top_1 == 1.0
    assert found.divergence == pytest.approx(0.0, abs=1e-12)


def test_divergence_of_two_coins():
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])

    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)

    assert difference(fair, biased).divergence == pytest.approx(expected)


def test_top_1_is_a_share_of_places():
    first = np.array([[1.0, 0.0], [1.0, 0.0]])
    second = np.array([[1.0, 0.0], [0.0, 1.0]])

    assert difference(first, second).top_1 == 0.5
