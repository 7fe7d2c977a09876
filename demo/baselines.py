"""Baselines that need no understanding: on the demo's tasks they are far from solving any."""

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.linear_model import LogisticRegression

from formats.examples import Example

Columns = list[list[str]]  # the first text of N examples, their second text, ...
Features = Callable[[Columns], csr_matrix]  # -> (N, F)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def majority_accuracy(train: list[Example], test: list[Example]) -> float:
    """Return the test accuracy of the label that is most frequent in training."""
    counts = Counter(example.label for example in train)
    ((most_frequent, _),) = counts.most_common(1)
    are_right = [example.label == most_frequent for example in test]
    return float(np.mean(are_right))


# --- what a rule looks at --------------------------------------------------------------------------------------------


def rules(train: list[Example]) -> dict[str, Features]:
    """Return what a simple rule may look at in a task; an ending or hypothesis is the last text."""
    bag = bag_of_words(train)

    def last_alone(columns: Columns) -> csr_matrix:
        return bag(columns[-1:])

    found: dict[str, Features] = {"bag of words": bag, "length": lengths}
    # of two texts, how alike they are, and whether the second tells the answer alone
    if len(train[0].texts) > 1:
        found["word overlap"] = overlaps
        found["last text alone"] = last_alone
    return found


def bag_of_words(train: list[Example]) -> Features:
    """Return a function that counts the words of each text and, of two texts, those that they share."""
    # the words that training has
    counter = CountVectorizer(tokenizer=words, token_pattern=None)
    counter.fit([text for example in train for text in example.texts])

    def bag(columns: Columns) -> csr_matrix:
        counts = [counter.transform(column) for column in columns]
        if len(counts) == 2:
            counts.append(counts[0].minimum(counts[1]))
        return hstack(counts, format="csr")

    return bag


def indicators(values: list[list[str]]) -> csr_matrix:
    """Return a feature for each different value of some examples (N, F)."""
    hashing = HashingVectorizer(analyzer=list, n_features=2**12, norm=None, alternate_sign=False)
    return hashing.transform(values)


def lengths(columns: Columns) -> csr_matrix:
    """Return the number of words of each text, a feature for each number."""
    # such as "0: 12" for a first text of 12 words
    values = []
    for texts in zip(*columns, strict=True):
        values.append([f"{i}: {len(words(text))}" for i, text in enumerate(texts)])
    return indicators(values)


def overlaps(columns: Columns) -> csr_matrix:
    """Return the number of words that two texts share, a feature for each number."""
    values = []
    for first, second in zip(*columns, strict=True):
        shared = set(words(first)) & set(words(second))
        values.append([f"{len(shared)}"])
    return indicators(values)


# --- how well it does ------------------------------------------------------------------------------------------------


def rule_accuracy(features: Features, train: list[Example], test: list[Example], has_choices: bool = False) -> float:
    """Return the test accuracy of a logistic regression; among choices it takes the one with the best score."""
    # each choice with its context is right or wrong
    if has_choices:
        model = LogisticRegression(max_iter=2000, class_weight="balanced")
        model.fit(features(with_each_choice(train)), is_right(train).ravel())

        # the best one of each example
        right = is_right(test)
        scores = model.decision_function(features(with_each_choice(test)))
        best = scores.reshape(right.shape).argmax(1)
        is_best_right = right[np.arange(len(test)), best]
        return float(np.mean(is_best_right))

    # the labels are classes
    model = LogisticRegression(max_iter=2000)
    model.fit(features(columns_of(train)), [example.label for example in train])
    labels = [example.label for example in test]
    return float(model.score(features(columns_of(test)), labels))


def columns_of(examples: list[Example]) -> Columns:
    """Return the texts of N examples, all first ones, all second ones, ..."""
    return list(zip(*(example.texts for example in examples), strict=True))


def with_each_choice(examples: list[Example]) -> Columns:
    """Return pairs of texts: the context of each example with each of its choices."""
    contexts = []
    choices = []
    for example in examples:
        for choice in example.texts[1:]:
            contexts.append(example.texts[0])
            choices.append(choice)
    return [contexts, choices]


def is_right(examples: list[Example]) -> np.ndarray:
    """Return which choice of each example is right (N, n_choices)."""
    answers = np.array([int(example.label) for example in examples])
    n_choices = len(examples[0].texts) - 1
    numbers = np.arange(1, n_choices + 1)
    return answers[:, None] == numbers
