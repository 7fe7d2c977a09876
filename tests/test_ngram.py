"""The 5-gram that pre-training is measured against."""

from collections import Counter

import ngram
import numpy as np
import pytest


def probability(train: list[int], history: list[int], token: int, order: int, n_vocab: int) -> float:
    """Return Witten and Bell's interpolated probability, written as the recursion that defines it."""
    lower = 1 / n_vocab if order == 1 else probability(train, history[1:], token, order - 1, n_vocab)
    n = len(history)
    followers = Counter(train[i + n] for i in range(len(train) - n) if train[i : i + n] == history)
    total, kinds = sum(followers.values()), len(followers)
    return lower if total == 0 else (followers[token] + kinds * lower) / (total + kinds)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_recursion(order):
    tokens = np.random.default_rng(0).integers(0, 4, 120).astype(np.uint16)
    p = ngram.ngram_probabilities(tokens, 100, 4, order)
    stream = tokens.tolist()
    expected = [probability(stream[:100], stream[i - order + 1 : i], stream[i], order, 4) for i in range(100, 120)]
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    total = sum(probability(stream[:100], stream[90 : 90 + order - 1], token, order, 4) for token in range(4))
    assert total == pytest.approx(1)
