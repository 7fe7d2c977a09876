"""The baselines of a task: what needs no understanding does not solve the demo's tasks."""

import pytest

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
    assert baselines.majority(train, test) == 0.5
    n_choices = 2 if name == "cloze" else 0
    rules = baselines.rules(train)
    for rule, features in rules.items():
        accuracy = baselines.rule_accuracy(features, train, test, n_choices)
        assert 0.4 < accuracy < 0.5 + 0.65 / 2, rule  # 65 % of the way to perfect
    assert baselines.rule_accuracy(rules["bag of words"], train, train, n_choices) > 0.55  # it does learn


def test_shallow_baselines_fail_on_the_cloze_set() -> None:
    train, test = (
        [(*e.texts, int(e.label) - 1) for e in part] for part in examples("cloze", 800, 1000)
    )  # the regressions take longer with more examples
    accuracy = baselines.baselines(train, test)
    assert accuracy["always the first"] == 0.5
    assert 0.42 < accuracy["ending alone, bag of 1-2 grams"] < 0.60
    assert 0.42 < accuracy["longer ending"] < 0.58
    assert 0.42 < accuracy["higher word overlap with the story"] < 0.58
    assert accuracy["pairs of a story's and an ending's word"] < 0.75


def test_baselines() -> None:
    examples = [Example((f"{word} a", "a"), label, "") for word, label in (("up", "1"), ("down", "2"), ("up", "1"))]
    assert baselines.majority(examples, examples) == 2 / 3
    assert baselines.rule_accuracy(baselines.rules(examples)["bag of words"], 10 * examples, examples) == 1
    choices = [Example(("go", "bad", "good" if i else "fine", "bad"), "2", "") for i in range(4)]
    assert baselines.rule_accuracy(baselines.rules(choices)["bag of words"], choices, choices, 3) == 1


def test_rules_see_what_they_are_named_after() -> None:
    examples = [Example(("a b", "b c d" if i else "c d e f"), str(i), "") for i in (0, 1) for _ in range(10)]
    rules = baselines.rules(examples)
    assert set(rules) == {"bag of words", "length", "word overlap", "last text alone"}
    assert all(baselines.rule_accuracy(features, examples, examples) == 1 for features in rules.values())
    same = [Example(("a b", "b c" if i else "c b"), str(i), "") for i in (0, 1) for _ in range(10)]
    assert all(baselines.rule_accuracy(features, same, same) == 0.5 for features in baselines.rules(same).values())
    assert set(baselines.rules([Example(("a",), "1", "")])) == {"bag of words", "length"}
