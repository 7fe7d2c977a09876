"""Labels and predictions -> metrics with intervals, calibration, and how good predictions are by length.

scipy is imported where needed: it is slow to import, and predicting does without.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# --- metrics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """How good predictions are: of(labels (N,), predictions (N,)) is at most 1, the larger the better.

    It is a number for any predictions; where a formula divides 0 by 0, as for a constant prediction, it is 0.
    """

    title: str  # as printed
    of: Callable[[np.ndarray, np.ndarray], float]


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean(labels == predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return F1 of class 1."""
    is_true = labels == 1
    is_predicted = predictions == 1
    n_both = np.sum(is_true & is_predicted)
    n = np.sum(is_true) + np.sum(is_predicted)
    return float(2 * n_both / max(1, n))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the mean of the classes' F1: each weighs the same, however rare; those that neither has are left out."""
    # how often each class is both, true, and predicted
    n_labels = 1 + max(labels.max(), predictions.max())
    right = labels[labels == predictions]
    n_both = np.bincount(right, minlength=n_labels)
    n_true = np.bincount(labels, minlength=n_labels)
    n_predicted = np.bincount(predictions, minlength=n_labels)

    # F1 of the classes that occur
    n = n_true + n_predicted
    occurs = n > 0
    return float(np.mean(2 * n_both[occurs] / n[occurs]))


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return Matthews' correlation of any number of classes (Gorodkin 2004, R_K)."""
    # how often each class is true, predicted, and both
    n_labels = 1 + max(labels.max(), predictions.max())
    counts = confusion_matrix(labels, predictions, n_labels)
    n = len(labels)
    n_true = counts.sum(1)
    n_predicted = counts.sum(0)

    # the correlation is covariance over standard deviations, all times n squared
    covariance = float(n * counts.trace() - n_true @ n_predicted)
    variance_true = float(n * n - n_true @ n_true)
    variance_predicted = float(n * n - n_predicted @ n_predicted)
    if variance_true * variance_predicted == 0:
        return 0.0
    return covariance / math.sqrt(variance_true * variance_predicted)


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if not vary(labels) or not vary(predictions):
        return 0.0
    return float(pearsonr(labels, predictions).statistic)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if not vary(labels) or not vary(predictions):
        return 0.0
    return float(spearmanr(labels, predictions).statistic)


def vary(values: np.ndarray) -> bool:
    """Return whether numbers differ by more than rounding: the correlation of constants would be noise."""
    return np.ptp(values) > 1e-9 * np.abs(values).max()


METRICS = {
    "acc": Metric("Accuracy", accuracy),
    "f1": Metric("F1", f1),
    "macro_f1": Metric("macro-F1", macro_f1),
    "mcc": Metric("Matthews", matthews),
    "pearson": Metric("Pearson", pearson),
    "spearman": Metric("Spearman", spearman),
}


def intervals(metrics: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, dict[str, float]]:
    """Return value, low and high (%) of each metric, a key of METRICS: its 95 % bootstrap interval, by percentiles.

    1000 resamples of the examples; of more than 20,000 examples, 200.
    """
    n = len(labels)
    n_resamples = 1000 if n <= 20_000 else 200

    # each metric of each resample
    rng = np.random.default_rng(0)
    values = np.empty((n_resamples, len(metrics)))
    for i in range(n_resamples):
        which = rng.integers(n, size=n)
        values[i] = [METRICS[metric].of(labels[which], predictions[which]) for metric in metrics]

    # the middle 95 % of them
    found = {}
    for i, metric in enumerate(metrics):
        low, high = np.quantile(values[:, i], [0.025, 0.975]).tolist()
        value = METRICS[metric].of(labels, predictions)
        found[metric] = {"value": 100 * value, "low": 100 * low, "high": 100 * high}
    return found


# --- classes ---------------------------------------------------------------------------------------------------------


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_labels: int) -> np.ndarray:
    """Return how many examples of each label (first axis) are predicted as each label (second axis)."""
    cells = labels * n_labels + predictions
    counts = np.bincount(cells, minlength=n_labels**2)
    return counts.reshape(n_labels, n_labels)


N_BINS = 10  # of confidence, equally wide


def calibration(confidence: np.ndarray, is_right: np.ndarray) -> tuple[float, list[dict]]:
    """Return the expected calibration error (%) and the reliability curve: a record for each bin that has examples.

    The error is the mean over examples of |accuracy - mean confidence| in the example's bin. For two examples, one
    right with confidence 0.75 and one wrong with 0.95: (|1 - 0.75| + |0 - 0.95|) / 2 = 60 %.

    Args:
        confidence: probability of the predicted label (N,).
    """
    # the bin of each example; a confidence of 1 belongs to the last one
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)

    # each bin that has examples
    error = 0.0
    curve = []
    for i in np.unique(bins).tolist():
        inside = bins == i
        line = {
            "low": 100 * i / N_BINS,
            "high": 100 * (i + 1) / N_BINS,
            "n": int(inside.sum()),
            "confidence": 100 * float(confidence[inside].mean()),
            "accuracy": 100 * float(is_right[inside].mean()),
        }
        share = line["n"] / len(bins)
        error += share * abs(line["accuracy"] - line["confidence"])
        curve.append(line)
    return error, curve


# --- by length -------------------------------------------------------------------------------------------------------


def accuracy_by_length(n_words: np.ndarray, is_right: np.ndarray) -> list[dict]:
    """Return a record for each group of like length: its accuracy and the 95 % Wilson interval (%).

    Args:
        n_words: of each example's text (N,).
        is_right: whether each example is predicted right (N,).
    """
    from scipy.stats import binomtest

    found = []
    for group in groups_by_length(n_words):
        # Wilson's interval stays between 0 and 100 %
        n_right = int(is_right[group].sum())
        test = binomtest(n_right, len(group))
        interval = test.proportion_ci(method="wilson")
        line = describe_group(n_words[group])
        line["accuracy"] = 100 * n_right / len(group)
        line["low"] = 100 * interval.low
        line["high"] = 100 * interval.high
        found.append(line)
    return found


def error_by_length(n_words: np.ndarray, errors: np.ndarray) -> list[dict]:
    """Return a record for each group of like length: its mean error and 95 % interval, by normal approximation."""
    found = []
    for group in groups_by_length(n_words):
        mean = float(errors[group].mean())
        half = 1.96 * float(errors[group].std()) / math.sqrt(len(group))
        line = describe_group(n_words[group])
        line["error"] = mean
        line["low"] = mean - half
        line["high"] = mean + half
        found.append(line)
    return found


def describe_group(n_words: np.ndarray) -> dict[str, float]:
    """Return the shortest and the longest length in a group, and how many examples it has."""
    return {
        "first": int(n_words.min()),
        "last": int(n_words.max()),
        "n": len(n_words),
    }


def groups_by_length(n_words: np.ndarray) -> list[np.ndarray]:
    """Return the indices of the examples in each of up to five groups of about equal size, the shortest first."""
    # each edge belongs to the group below it
    edges = np.unique(np.quantile(n_words, [0.2, 0.4, 0.6, 0.8]))
    numbers = np.searchsorted(edges, n_words)
    return [np.flatnonzero(numbers == i) for i in np.unique(numbers)]
