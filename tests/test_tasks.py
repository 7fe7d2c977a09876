"""The baselines of a task: what needs no understanding does not solve the demo's tasks."""

from itertools import product

import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from demo import baselines, stories
from formats.examples import Example


def examples(name: str, n_train: int, n_test: int) -> tuple[list[Example], list[Example]]:
    """Return training and test examples of one of the demo's tasks, as its readers give them."""
    splits = stories.make_examples(name, 2, {"train": n_train, "test": n_test})
    found = []
    for rows in splits.values():
        found.append([])
        for _, label, texts in rows:
            texts = [" ".join(text) for text in texts]
            if name == "cloze":
                texts, label = [texts[0], *(texts[1:] if label else texts[:0:-1])], "1" if label else "2"
            found[-1].append(Example(tuple(texts), str(label), ""))
    return found[0], found[1]


@pytest.mark.parametrize("name", stories.MADE_TASKS)
def test_a_simple_rule_is_far_from_solving_a_task(name: str) -> None:
    train, test = examples(name, 816, 816)  # kinds and labels are equally frequent
    assert baselines.majority_accuracy(train, test) == 0.5
    has_choices = name == "cloze"
    rules = baselines.rules(train)
    for rule, features in rules.items():
        accuracy = baselines.rule_accuracy(features, train, test, has_choices)
        assert 0.4 < accuracy < 0.5 + 0.65 / 2, rule  # 65 % of the way to perfect
    assert baselines.rule_accuracy(rules["bag of words"], train, train, has_choices) > 0.55  # it does learn


def word_pairs(columns: list[list[str]]) -> csr_matrix:
    """Return a feature for each pair of a story's and an ending's word."""
    pairs = [product(*map(baselines.words, texts)) for texts in zip(*columns, strict=True)]
    return HashingVectorizer(analyzer=list, norm=None).transform([{f"{a}~{b}" for a, b in pair} for pair in pairs])


@pytest.mark.slow
def test_the_cloze_set_is_not_solved_by_an_ending_alone_nor_by_pairs_of_words() -> None:
    train, test = examples("cloze", 800, 1000)  # the regressions take longer with more examples
    rules = baselines.rules(train)
    for rule, highest in (("last text alone", 0.6), ("length", 0.58), ("word overlap", 0.58)):
        assert 0.42 < baselines.rule_accuracy(rules[rule], train, test, True) < highest, rule
    assert 0.55 < baselines.rule_accuracy(word_pairs, train, test, True) < 0.75


def test_baselines() -> None:
    examples = [Example((f"{word} a", "a"), label, "") for word, label in (("up", "1"), ("down", "2"), ("up", "1"))]
    assert baselines.majority_accuracy(examples, examples) == 2 / 3
    assert baselines.rule_accuracy(baselines.rules(examples)["bag of words"], 10 * examples, examples) == 1
    choices = [Example(("go", "bad", "good" if i else "fine", "bad"), "2", "") for i in range(4)]
    assert baselines.rule_accuracy(baselines.rules(choices)["bag of words"], choices, choices, True) == 1


def test_rules_see_what_they_are_named_after() -> None:
    examples = [Example(("a b", "b c d" if i else "c d e f"), str(i), "") for i in (0, 1) for _ in range(10)]
    rules = baselines.rules(examples)
    assert set(rules) == {"bag of words", "length", "word overlap", "last text alone"}
    assert all(baselines.rule_accuracy(features, examples, examples) == 1 for features in rules.values())
    same = [Example(("a b", "b c" if i else "c b"), str(i), "") for i in (0, 1) for _ in range(10)]
    assert all(baselines.rule_accuracy(features, same, same) == 0.5 for features in baselines.rules(same).values())
    assert set(baselines.rules([Example(("a",), "1", "")])) == {"bag of words", "length"}
