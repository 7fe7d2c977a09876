"""Score methods that need no understanding on a cloze set: on a fair set all but the last score about 50 %.

python -m demo.baselines --data_dir demo/data
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, hstack, spmatrix
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.linear_model import LogisticRegression

from datasets import read_cloze
from formats.examples import Example
from reading.tasks import ROCSTORIES_TEST, ROCSTORIES_VALID

Row = tuple[str, str, str, int]  # an example: story of four sentences, two endings, index of the right one


def read_rows(path: Path) -> list[Row]:
    return list(zip(*read_cloze(path), strict=True))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def overlap(story: str, ending: str) -> float:
    """Return the fraction of an ending's words that occur in the story."""
    known = set(words(story))
    return float(np.mean([word in known for word in words(ending)]))


def word_pairs(story: str, ending: str) -> list[str]:
    return [f"{a}~{b}" for a in sorted(set(words(story))) for b in sorted(set(words(ending)))]


def choice_accuracy(rows: list[Row], score: Callable[[str, str], float]) -> float:
    """Return the accuracy of choosing the ending with the higher score; a tie counts as half right."""
    hits = 0.0
    for story, first, second, answer in rows:
        difference = score(story, second) - score(story, first)
        hits += 0.5 if difference == 0 else float((difference > 0) == (answer == 1))
    return hits / len(rows)


def regression_accuracy(
    train: list[Row], test: list[Row], features: Callable[[list[tuple[str, str]]], spmatrix], strength: float
) -> float:
    """Return the test accuracy of a logistic regression on the difference of the two endings' features."""

    def differences(rows: list[Row]) -> spmatrix:
        return features([(story, second) for story, _, second, _ in rows]) - features(
            [(story, first) for story, first, _, _ in rows]
        )

    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    model.fit(differences(train), [row[3] for row in train])
    return float(model.score(differences(test), [row[3] for row in test]))


def baselines(train: list[Row], test: list[Row]) -> dict[str, float]:
    """Return the test accuracy of every baseline."""
    ending_words = CountVectorizer(ngram_range=(1, 2), tokenizer=words, token_pattern=None)
    ending_words.fit([ending for row in train for ending in row[1:3]])
    pairs = HashingVectorizer(analyzer=lambda pair: word_pairs(*pair), n_features=2**18, norm=None)
    return {
        "ending alone, bag of 1-2 grams": regression_accuracy(
            train, test, lambda texts: ending_words.transform([ending for _, ending in texts]), 1.0
        ),
        "longer ending": choice_accuracy(test, lambda _, ending: len(ending)),
        "higher word overlap with the story": choice_accuracy(test, overlap),
        "always the first": float(np.mean([answer == 0 for *_, answer in test])),
        "pairs of a story's and an ending's word": regression_accuracy(train, test, pairs.transform, 0.01),
    }


# --- of any task -----------------------------------------------------------------------------------------------------


def majority(train: list[Example], test: list[Example]) -> float:
    """Return the test accuracy of the label that is most frequent in training."""
    label = Counter(example.label for example in train).most_common(1)[0][0]
    return float(np.mean([example.label == label for example in test]))


class Bag:
    """Counts of the words of each of an example's texts, and of those that two texts share."""

    def __init__(self, texts: list[str]):
        self.counter = CountVectorizer(tokenizer=words, token_pattern=None).fit(texts)

    def __call__(self, columns: list[list[str]]) -> csr_matrix:
        """Return the features (N, F) of N examples from their texts, one column or two."""
        counts = [self.counter.transform(column) for column in columns]
        return hstack(counts + ([counts[0].minimum(counts[1])] if len(counts) == 2 else []), format="csr")


def indicators(values: list[list[str]]) -> csr_matrix:
    """Return a feature for each different value of some examples (N, F)."""
    return HashingVectorizer(analyzer=list, n_features=2**12, norm=None, alternate_sign=False).transform(values)


def lengths(columns: list[list[str]]) -> csr_matrix:
    """Return the number of words of each text, a feature for each number."""
    counts = [[f"{i}: {len(words(text))}" for text in column] for i, column in enumerate(columns)]
    return indicators(list(zip(*counts, strict=True)))


def overlaps(columns: list[list[str]]) -> csr_matrix:
    """Return the number of words that two texts share, a feature for each number."""
    return indicators([[str(len(set(words(a)) & set(words(b))))] for a, b in zip(*columns, strict=True)])


Features = Callable[[list[list[str]]], csr_matrix]  # N examples' texts, one column or two -> (N, F)


def rules(train: list[Example]) -> dict[str, Features]:
    """Return what a simple rule may look at in a task; an ending or hypothesis is the last text."""
    bag = Bag([text for example in train for text in example.texts])
    found: dict[str, Features] = {"bag of words": bag, "length": lengths}
    if len(train[0].texts) > 1:
        found |= {"word overlap": overlaps, "last text alone": lambda columns: bag(columns[-1:])}
    return found


def rule_accuracy(features: Features, train: list[Example], test: list[Example], n_choices: int = 0) -> float:
    """Return the test accuracy of a logistic regression; of n_choices it takes the one with the best score."""
    if not n_choices:
        found = [features(list(zip(*(e.texts for e in part), strict=True))) for part in (train, test)]
        model = LogisticRegression(max_iter=2000).fit(found[0], [e.label for e in train])
        return float(model.score(found[1], [e.label for e in test]))

    def pairs(examples: list[Example]) -> csr_matrix:  # (N * n_choices, F)
        return features(
            [[e.texts[0] for e in examples for _ in e.texts[1:]], [t for e in examples for t in e.texts[1:]]]
        )

    def is_right(examples: list[Example]) -> np.ndarray:  # (N, n_choices)
        return np.array([int(e.label) - 1 for e in examples])[:, None] == np.arange(n_choices)

    model = LogisticRegression(max_iter=2000, class_weight="balanced").fit(pairs(train), is_right(train).ravel())
    scores = model.decision_function(pairs(test)).reshape(-1, n_choices)
    return float(np.mean(is_right(test)[np.arange(len(test)), scores.argmax(1)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path("demo/data"),
        help="folder of the two cloze files: trains on val, scores test (default: %(default)s)",
    )
    args = parser.parse_args()

    train, test = (read_rows(args.data_dir / name) for name in (ROCSTORIES_VALID, ROCSTORIES_TEST))
    print(f"{len(train)} rows to train on, {len(test)} to test on")
    for name, accuracy in baselines(train, test).items():
        print(f"{name:<42}{100 * accuracy:6.1f} %")


if __name__ == "__main__":
    main()
