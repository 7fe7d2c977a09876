"""The 5-gram that pre-training is measured against."""

from collections import Counter

import numpy as np
import pytest

from demo import ngram


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


def test_the_tokens_compared_are_those_that_the_run_predicts_in_its_held_out_sequences():
    tokens = np.array([5, 9, 5, 6, 7, 8, 9, 9, 6, 5, 9], np.uint16)  # newline 9, n_ctx 4: 5 9, 5 6 7 8, 6 5 9
    start, predicted = ngram.held_out_tokens(tokens, {"n_ctx": 4, "n_train": 1, "by_document": True})
    assert start == 2
    assert predicted.astype(int).tolist() == [0, 1, 1, 1, 0, 0, 0, 1, 1]
    for windows in ({"by_document": False}, {}):  # the logs of earlier runs lack it
        start, predicted = ngram.held_out_tokens(tokens, {"n_ctx": 4, "n_train": 1} | windows)
        assert start == 4
        assert predicted.astype(int).tolist() == [0, 1, 1, 1, 0, 0, 0]  # a window, and what is too short for one
