"""The paper's heuristics (section 5): answers of a language model that was not fine-tuned on the task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from formats.files import InputError
from formats.folders import open_folder
from reading.rows import FORMS, Ids, Rows
from reading.splits import Limits, Splits, read_splits
from reading.tasks import Task, find_task
from running.inference import progress_bar
from running.metrics import METRICS
from running.processes import Ranks
from running.settings import HEURISTICS, dataset_names
from scoring import next_tokens, pack
from text_utils import TextEncoder

# --- scores of continuations -----------------------------------------------------------------------------------------

Choice = tuple[Ids, list[Ids]]  # a context, and what may follow it


def continuation_scores(
    model: nn.Module, examples: Sequence[Choice], n_entries: int, mean: bool = True
) -> list[np.ndarray]:
    """Return for each example the log-probability of each continuation, given the context: mean, or sum, of its tokens.

    All examples are computed at once. A context that does not fit loses its beginning, the same for all continuations.
    Without a context the first token is not scored; a continuation without a scored token has -infinity.

    Args:
        n_entries: as of scoring.next_tokens.
    """
    # cut what does not fit
    n_ctx = model.transformer.n_ctx
    fitting = []
    for context, continuations in examples:
        continuations = [ids[: n_ctx - 1] for ids in continuations]
        room = n_ctx - max(map(len, continuations))
        first = max(0, len(context) - room)
        fitting.append((context[first:], continuations))

    # a row for each continuation
    rows = []
    for context, continuations in fitting:
        rows.append([[*context, *ids] or [0] for ids in continuations])  # a row has a token
    packing = pack(model.transformer, rows, share_context=True)
    logs = next_tokens(model.transformer, packing, n_entries).log_probabilities
    logs = logs.double().cpu().numpy()  # (R, T-1)

    # the sum or mean over the tokens of each continuation that another token precedes
    ends = np.cumsum([len(of_example) for of_example in rows])
    of_examples = np.split(logs, ends[:-1])
    found = []
    for (context, continuations), of_example in zip(fitting, of_examples, strict=True):
        first = max(1, len(context))
        scores = []
        for ids, of_row in zip(continuations, of_example, strict=True):
            end = len(context) + len(ids)
            if end <= first:
                scores.append(-math.inf)
                continue
            scored = of_row[first - 1 : end - 1]  # of_row[0] is of the second token
            scores.append(scored.mean() if mean else scored.sum())
        found.append(np.array(scores))
    return found


# --- the heuristics --------------------------------------------------------------------------------------------------

N_BATCH = 16  # examples computed at a time


def check_heuristic(heuristic: str, task: Task) -> None:
    """Raise InputError for a task that a heuristic does not fit."""
    n_labels = len(task.labels or ())
    if heuristic == "choice":
        needs = "a multiple choice"
        fits = FORMS[task.form].has_choices
    else:
        needs = "a classification with two labels"
        fits = task.form == "classification" and n_labels == 2
    if not fits:
        raise InputError(f"{heuristic} takes {needs}; {task.title} is {task.form} with {n_labels} labels.")


# pairs of labels whose meaning is known: the bad one (negative, not acceptable) first
KNOWN_LABELS = (("0", "1"), ("negative", "positive"), ("neg", "pos"), ("bad", "good"), ("unacceptable", "acceptable"))


def good_label(heuristic: str, task: Task, names: tuple[str, str] | None) -> int:
    """Return which of a task's two labels, 0 or 1, is the good one.

    Args:
        names: the bad one and the good one; None: as the labels themselves say.

    Raises InputError where they do not say it.
    """
    labels = [label.lower() for label in task.labels]
    pairs = KNOWN_LABELS
    if names is not None:
        pairs = [[name.strip().lower() for name in names]]
    for pair in pairs:
        if sorted(pair) == sorted(labels):
            return labels.index(pair[1])
    shown = ",".join(task.labels)
    raise InputError(f"{heuristic}: which label is the bad one, and which the good one? Give --label_names {shown}")


def heuristic_scores(model: nn.Module, encoder: TextEncoder, rows: Rows, heuristic: str) -> list[np.ndarray]:
    """Return for each example the scores of what may follow.

    choice: the mean log-probability of each choice, given context and question; sentiment: the log-probabilities of
    "negative" and "positive", with "very" appended to the text; acceptability: the mean log-probability of the tokens
    of the text but its first.
    """
    # what stands in every example
    if heuristic == "sentiment":
        very, *sentiments = _encode_words(encoder, ["very", "negative", "positive"])
    n_texts = FORMS[rows.layout.form].n_texts  # before the choices

    # some examples at a time
    scores = []
    with progress_bar(len(rows), "zero-shot", "examples", Ranks()) as bar:
        for start in range(0, len(rows), N_BATCH):
            batch = []
            for i in rows.which[start : start + N_BATCH]:
                texts = rows.encoded.texts(int(i))  # token ids, uncut
                if heuristic == "choice":
                    context = sum(texts[:n_texts], [])
                    continuations = texts[n_texts:]
                elif heuristic == "sentiment":
                    context = [*texts[0], *very]
                    continuations = sentiments
                else:
                    context = texts[0][:1]
                    continuations = [texts[0][1:]]
                batch.append((context, continuations))
            scores += continuation_scores(model, batch, encoder.n_vocab, mean=heuristic != "sentiment")
            bar.update(len(batch))
    return scores


def _encode_words(encoder: TextEncoder, words: list[str]) -> list[list[int]]:
    """Return the token ids of the words of the sentiment heuristic. Raises InputError where letters are unknown."""
    found = encoder.encode(words, verbose=False)
    for ids, word in zip(found, words, strict=True):
        known = "".join(encoder.decoder[i] for i in ids)
        if known != word + "</w>":
            raise InputError(f"the vocabulary lacks letters of {word!r}, which the sentiment heuristic needs.")
    return found


def fit_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold above which a score means label 1, of the largest Matthews correlation with labels 0, 1."""
    order = np.argsort(scores)
    values = scores[order]
    n = len(values)

    # with the threshold before value i: how many are above it, and how many of these have label 1
    above = np.arange(n, 0, -1)
    right = labels[order][::-1].cumsum()[::-1]

    # the correlation, but for a factor that is the same for all
    covariance = right * n - above * labels.sum()
    variance = above * (n - above)
    correlation = covariance / np.sqrt(np.maximum(variance, 1))
    is_step = np.append(True, values[1:] > values[:-1])  # equal scores are on one side
    best = int(np.where(is_step, correlation, -math.inf).argmax())

    # between the two scores around the best place
    if best == 0:
        return -math.inf
    return float(values[best - 1 : best + 1].mean())


def zero_shot(
    model: nn.Module,
    encoder: TextEncoder,
    splits: Splits,
    heuristic: str,
    label_names: tuple[str, str] | None = None,
) -> dict[str, tuple[int, dict[str, float]]]:
    """Return number of examples and metrics (%) of each split that has labels, without fine-tuning.

    Args:
        model: with a `transformer`: from open_model, open_run or LMModel.
        heuristic: one of HEURISTICS. choice: the largest mean log-probability; sentiment: "very" positive or negative;
            acceptability: above a threshold fitted on train.
        label_names: of sentiment and acceptability, the bad label and the good one; None: those of KNOWN_LABELS.

    Raises InputError for a task that the heuristic does not fit, and for labels whose meaning is not known.
    """
    # which of the two labels a high score means
    check_heuristic(heuristic, splits.task)
    good = 1
    if heuristic != "choice":
        good = good_label(heuristic, splits.task, label_names)

    # train comes first: the threshold is fitted there
    found = {}
    for name in ("train", "valid", "test"):
        rows = getattr(splits, name)
        if rows is None or rows.labels is None:
            continue

        # the answers
        scores = heuristic_scores(model, encoder, rows, heuristic)
        if heuristic == "acceptability":
            scores = np.concatenate(scores)
            if name == "train":
                threshold = fit_threshold(scores, (rows.labels == good).astype(int))
            predictions = (scores > threshold).astype(int)
        else:
            predictions = np.array([of_example.argmax() for of_example in scores])
        if good == 0:
            predictions = 1 - predictions

        # how good they are
        metrics = {}
        for metric in splits.task.metrics:
            metrics[metric] = METRICS[metric].of(rows.labels, predictions) * 100
        found[name] = (len(rows), metrics)
    return found


# --- files of a data set ---------------------------------------------------------------------------------------------


def zero_shot_on(
    model: nn.Module,
    encoder: TextEncoder,
    heuristic: str,
    task: Task,
    folder: Path,
    n_valid: int = 374,
    seed: int = 42,
    label_names: tuple[str, str] | None = None,
) -> list[str]:
    """Return in words what zero_shot finds on the files of a task, in a folder; a line for each split.

    Args:
        n_valid, seed: as of read_splits.
        label_names: as of zero_shot.
    """
    splits = read_splits(task, folder, encoder, Limits(n_valid, seed, model.transformer.n_ctx))
    found = zero_shot(model, encoder, splits, heuristic, label_names)
    lines = []
    for name, (n_examples, metrics) in found.items():
        figures = [f"{METRICS[metric].title} {value:.2f} %" for metric, value in metrics.items()]
        heading = f"{task.title}, {name}, {n_examples:,} examples, zero-shot {heuristic}"
        lines.append(f"{heading}: {', '.join(figures)}")
    return lines


# --- to follow a model while it is trained ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A heuristic on some validation examples of a data set."""

    name: str  # of its figure in the log
    heuristic: str
    splits: Splits  # those that are to be answered

    def measure(self, model: nn.Module, encoder: TextEncoder) -> float:
        """Return the first metric of the task (%)."""
        _, metrics = zero_shot(model, encoder, self.splits, self.heuristic)["valid"]
        return metrics[self.splits.task.metrics[0]]


def parse_probes(text: str | None) -> list[tuple[str, str, Path]]:
    """Return heuristic, data set and folder of each probe in `choice:rocstories:DIR,sentiment:sst2:DIR`.

    Raises ValueError for a text of another form, and for the same heuristic and data set twice.
    """
    if not text:
        return []
    probes = []
    for probe in text.split(","):
        # three parts, the first two of them known names
        parts = probe.split(":", 2)
        is_whole = len(parts) == 3 and all(parts)
        if not is_whole or parts[0] not in HEURISTICS or parts[1] not in dataset_names():
            raise ValueError(
                f"--probe {probe!r} is not HEURISTIC:DATASET:FOLDER, such as choice:rocstories:demo/data; "
                f"heuristics: {', '.join(HEURISTICS)}"
            )

        # none of it twice
        heuristic, dataset, folder = parts
        if (heuristic, dataset) in [known[:2] for known in probes]:
            raise ValueError(f"two probes are {heuristic}:{dataset}: their figures would have the same name")
        probes.append((heuristic, dataset, open_folder(folder)))
    return probes


def read_probes(text: str | None, encoder: TextEncoder, n_ctx: int, n_examples: int) -> list[Probe]:
    """Return the probes that parse_probes finds in a text, each with its first n_examples of train and of valid.

    Own data has the form that the heuristic takes. Raises InputError for files that are missing or do not fit.
    """
    probes = []
    for heuristic, dataset, folder in parse_probes(text):
        form = None
        if dataset == "own":
            form = "multiple_choice" if heuristic == "choice" else "classification"
        task = find_task(dataset, folder, form)

        # ten times as many are read: a tenth of own data becomes valid
        limits = Limits(n_valid=n_examples, seed=42, n_ctx=n_ctx, max_examples=10 * n_examples)
        splits = read_splits(task, folder, encoder, limits)
        check_heuristic(heuristic, splits.task)
        if heuristic != "choice":
            good_label(heuristic, splits.task, None)

        # only what the probe answers is kept
        train = splits.train.first(n_examples) if heuristic == "acceptability" else None  # for its threshold
        valid = splits.valid.first(n_examples)
        splits = replace(splits, train=train, valid=valid, test=None)
        probes.append(Probe(f"{heuristic}_{dataset}", heuristic, splits))
    return probes
