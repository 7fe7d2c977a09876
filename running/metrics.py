"""Labels and predictions -> metrics with intervals, calibration, accuracy by length.

M is the number of distinct pairs of label and prediction, R the number of resamples. scipy and pandas are imported
where needed.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loss import METRICS

if TYPE_CHECKING:
    import pandas as pd

N_RESAMPLES = 1000
N_BINS = 10  # bins of confidence, equally wide

# --- metrics and their intervals -------------------------------------------------------------------------------------


def intervals(metrics: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, dict[str, float]]:
    """Return value, low and high (%) of each metric, a key of METRICS: its 95 % bootstrap interval, by percentiles.

    A resample is described by how often it holds each distinct pair of label and prediction. These counts are
    multinomial and sampled as such, so that the cost depends on the number of distinct pairs, not of examples.
    """
    pairs, counts = np.unique(np.stack([labels, predictions], 1), axis=0, return_counts=True)
    rng, found = np.random.default_rng(0), {metric: [] for metric in metrics}
    per_step = max(1, 2**21 // len(pairs))  # resamples at a time, to bound the memory
    for start in range(0, N_RESAMPLES, per_step):
        n_resamples = min(per_step, N_RESAMPLES - start)
        resampled = rng.multinomial(len(labels), counts / len(labels), n_resamples)  # (R, M)
        for metric in metrics:
            found[metric].append(ON_COUNTS[metric](*pairs.T, resampled))
    report = {}
    for metric, values in found.items():
        low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
        value = METRICS[metric].of(labels, predictions)
        report[metric] = {"value": 100 * value, "low": 100 * float(low), "high": 100 * float(high)}
    return report


def accuracy_on_counts(y: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return counts @ (y == z) / counts.sum(1)


def f1_on_counts(y: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _ratio(2 * counts @ ((y == 1) & (z == 1)), counts @ (y == 1) + counts @ (z == 1))


def matthews_on_counts(y: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    classes = np.unique([y, z])
    n_true, n_predicted = (counts @ (values[:, None] == classes) for values in (y, z))  # (R, number of classes)
    n = counts.sum(1).astype(float)
    covariance = n * (counts @ (y == z)) - (n_true * n_predicted).sum(1)
    return _ratio(covariance, np.sqrt((n**2 - (n_true**2).sum(1)) * (n**2 - (n_predicted**2).sum(1))))


def pearson_on_counts(y: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    n = counts.sum(1, keepdims=True)
    dy, dz = (v - (counts * v).sum(1, keepdims=True) / n for v in (y, z))  # (R, M)
    deviations = [np.sqrt((counts * d**2).sum(1) / n[:, 0]) for d in (dy, dz)]
    # numbers that differ only by rounding count as constant, as in loss.py
    vary = [deviation > 1e-9 * np.abs(v).max() for deviation, v in zip(deviations, (y, z), strict=True)]
    return _ratio((counts * dy * dz).sum(1) / n[:, 0], deviations[0] * deviations[1] * (vary[0] & vary[1]))


def spearman_on_counts(y: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return pearson_on_counts(*(_ranks(v, counts) for v in (y, z)), counts)


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rank of each value in each resample (R, M); equal values share the mean of their ranks."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    per_value = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = np.cumsum(per_value, 1) - (per_value - 1) / 2
    return ranks[:, inverse[np.argsort(order)]]


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


# the metrics of METRICS, for many resamples at once: (labels (M,), predictions (M,), counts (R, M)) -> (R,)
ON_COUNTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "acc": accuracy_on_counts,
    "f1": f1_on_counts,
    "mcc": matthews_on_counts,
    "pearson": pearson_on_counts,
    "spearman": spearman_on_counts,
}

# --- classes ---------------------------------------------------------------------------------------------------------


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_labels: int) -> np.ndarray:
    """Return how many examples of each label (first axis) are predicted as each label (second axis)."""
    return np.bincount(labels * n_labels + predictions, minlength=n_labels**2).reshape(n_labels, n_labels)


def calibration(confidence: np.ndarray, is_right: np.ndarray) -> tuple[float, list[dict]]:
    """Return the expected calibration error (%) and the reliability curve: a record for each bin that has examples.

    The error is the mean over examples of |accuracy - mean confidence| in the example's bin. For two examples, one
    right with confidence 0.75 and one wrong with 0.95: (|1 - 0.75| + |0 - 0.95|) / 2 = 60 %.

    Args:
        confidence: probability of the predicted label (N,).
    """
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    curve = []
    for i in np.unique(bins):
        inside = bins == i
        accuracy, mean = 100 * is_right[inside].mean(), 100 * confidence[inside].mean()
        low, high = 100 * i / N_BINS, 100 * (i + 1) / N_BINS
        curve.append(dict(low=low, high=high, n=int(inside.sum()), confidence=float(mean), accuracy=float(accuracy)))
    error = sum(line["n"] * abs(line["accuracy"] - line["confidence"]) for line in curve) / len(confidence)
    return error, curve


# --- by length -------------------------------------------------------------------------------------------------------


def accuracy_by_length(texts: list[str], is_right: np.ndarray, n_bins: int = 5) -> "pd.DataFrame":
    """Return accuracy and its 95 % Wilson interval (%) in n_bins groups of texts by length, of about equal size."""
    from scipy.stats import binomtest

    def summary(right: np.ndarray) -> tuple[float, float, float]:
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        return 100 * right.mean(), 100 * interval.low, 100 * interval.high

    return _by_length(texts, is_right, n_bins, "accuracy", summary)


def error_by_length(texts: list[str], errors: np.ndarray, n_bins: int = 5) -> "pd.DataFrame":
    """Return the mean error of scores and its 95 % interval (normal approximation), grouped in the same way."""

    def summary(errors: np.ndarray) -> tuple[float, float, float]:
        mean, half = errors.mean(), 1.96 * errors.std() / np.sqrt(len(errors))
        return mean, mean - half, mean + half

    return _by_length(texts, errors, n_bins, "error", summary)


def _by_length(texts: list[str], values: np.ndarray, n_bins: int, name: str, summary: Callable) -> "pd.DataFrame":
    import pandas as pd

    words = np.array([len(text.split()) for text in texts])
    edges = np.unique(np.quantile(words, np.arange(1, n_bins) / n_bins))  # each in the group below it
    groups = pd.DataFrame({"words": words, "value": values}).groupby(np.searchsorted(edges, words))
    lines = []
    for _, group in groups:
        first, last = group["words"].min(), group["words"].max()
        lines.append((first, last, len(group), *summary(group["value"].to_numpy())))
    return pd.DataFrame(lines, columns=["first", "last", "n", name, "low", "high"])
