"""The paper's heuristics (section 5): answers of a language model that was not fine-tuned on the task."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from formats.examples import parse_columns
from formats.files import InputError, find
from model_pytorch import TransformerModel
from reading.rows import FORMS, Ids, Rows
from reading.splits import Limits, Splits, read_splits
from reading.tasks import Task, find_task
from running.inference import progress_bar
from running.metrics import METRICS
from running.processes import Ranks
from running.settings import DATASETS
from scoring import next_log_probabilities, pack
from text_utils import TextEncoder

Choice = tuple[Ids, list[Ids]]  # a context, and what may follow it


def continuation_scores(
    model: nn.Module, examples: Iterable[Choice], n_words: int, mean: bool = True, n_batch: int = 16
) -> Iterator[np.ndarray]:
    """Yield for each example the log-probability of each continuation, given the context: mean, or sum, of its tokens.

    A context that does not fit loses its beginning, the same for all continuations. Without a context the first token
    is not scored; a continuation without a scored token has -infinity.
    """
    transformer, batch = model.transformer, []
    for example in examples:
        batch.append(_fitting(*example, transformer.n_ctx))
        if len(batch) == n_batch:
            yield from _scores(transformer, batch, n_words, mean)
            batch = []
    if batch:
        yield from _scores(transformer, batch, n_words, mean)


def _fitting(context: Ids, continuations: list[Ids], n_ctx: int) -> Choice:
    continuations = [ids[: n_ctx - 1] for ids in continuations]
    room = n_ctx - max(map(len, continuations))
    return context[max(0, len(context) - room) :], continuations


def _scores(transformer: TransformerModel, batch: list[Choice], n_words: int, mean: bool) -> Iterator[np.ndarray]:
    examples = [[[*context, *ids] or [0] for ids in continuations] for context, continuations in batch]
    packing = pack(transformer, examples, share_context=True)
    values = next_log_probabilities(transformer, packing, n_words).double().cpu().numpy()
    values = values.reshape(len(batch), max(map(len, examples)), -1)  # (B, K, T-1)
    for (context, continuations), rows in zip(batch, values, strict=True):
        # of tokens that another one precedes
        first, combine = max(1, len(context)), np.mean if mean else np.sum
        parts = [
            row[first - 1 : max(first, len(context) + len(ids)) - 1]
            for row, ids in zip(rows, continuations, strict=False)
        ]
        yield np.array([combine(part) if len(part) else -math.inf for part in parts])


def answer_choices(model: nn.Module, encoder: TextEncoder, rows: Rows, n_batch: int = 16) -> np.ndarray:
    """Return for each example the choice of the highest mean log-probability, given the context and question (N,)."""
    n_texts = FORMS[rows.form].n_texts
    examples = (([i for text in t[:n_texts] for i in text], t[n_texts:]) for t in _texts(rows))
    found = continuation_scores(model, examples, encoder.n_vocab, n_batch=n_batch)
    return np.array([scores.argmax() for scores in found])


def answer_sentiment(model: nn.Module, encoder: TextEncoder, rows: Rows, n_batch: int = 16) -> np.ndarray:
    """Return for each text whether, with "very" appended, "positive" is likelier to follow than "negative" (N,)."""
    very, *words = encoder.encode(["very", "negative", "positive"], verbose=False)
    for ids, text in zip((very, *words), ("very", "negative", "positive"), strict=True):
        if text.replace(" ", "") != "".join(encoder.decoder[i] for i in ids).removesuffix("</w>"):
            raise InputError(f"the vocabulary lacks letters of {text!r}, which the sentiment heuristic needs.")
    examples = (([*text, *very], words) for (text,) in _texts(rows))
    found = continuation_scores(model, examples, encoder.n_vocab, mean=False, n_batch=n_batch)
    return np.array([scores.argmax() for scores in found])


def mean_log_probabilities(model: nn.Module, encoder: TextEncoder, rows: Rows, n_batch: int = 16) -> np.ndarray:
    """Return the mean log-probability of the tokens of each text but its first (N,)."""
    examples = ((text[:1], [text[1:]]) for (text,) in _texts(rows))
    found = continuation_scores(model, examples, encoder.n_vocab, n_batch=n_batch)
    return np.array([scores[0] for scores in found])


def fit_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold above which a score means label 1, of the largest Matthews correlation with labels 0, 1."""
    order = np.argsort(scores)
    values, labels = scores[order], labels[order]
    # with the threshold before value i: how many of label 1 and of label 0 are above it
    true_1 = labels[::-1].cumsum()[::-1].astype(float)
    false_1 = (1 - labels)[::-1].cumsum()[::-1].astype(float)
    n_1, n_0 = true_1[0], false_1[0]
    above = true_1 + false_1
    variance = n_1 * n_0 * above * (len(labels) - above)
    correlation = (true_1 * (n_0 - false_1) - false_1 * (n_1 - true_1)) / np.sqrt(np.maximum(variance, 1))
    is_step = np.append(True, values[1:] > values[:-1])  # equal scores are on one side
    best = int(np.where(is_step, correlation, -math.inf).argmax())
    return float(np.mean(values[best - 1 : best + 1])) if best else -math.inf


def _texts(rows: Rows) -> Iterator[list[list[int]]]:
    """Yield the token ids of the texts of each example, uncut."""
    with progress_bar(len(rows), "zero-shot", "examples", Ranks()) as bar:
        for i in rows.which:
            yield rows.encoded.texts(int(i))
            bar.update()


HEURISTICS = ("choice", "sentiment", "acceptability")


def check_heuristic(heuristic: str, task: Task) -> None:
    """Raise InputError for a task that a heuristic does not fit."""
    n_labels = len(task.labels or ())
    is_choice = heuristic == "choice"
    fits = FORMS[task.form].has_choices if is_choice else task.form == "classification" and n_labels == 2
    if not fits:
        needs = "a multiple choice" if is_choice else "a classification with two labels"
        raise InputError(f"{heuristic} takes {needs}; {task.title} is {task.form} with {n_labels} labels.")


def zero_shot(
    model: nn.Module,
    encoder: TextEncoder,
    splits: Splits,
    heuristic: str,
    n_batch: int = 16,
    names: Sequence[str] = ("train", "valid", "test"),
) -> dict[str, tuple[int, dict[str, float]]]:
    """Return number of examples and metrics (%) of each split that has labels, without fine-tuning.

    Args:
        model: with a `transformer`: from open_model, open_run or LMModel.
        heuristic: one of HEURISTICS. choice: the largest mean log-probability; sentiment: "very" positive or negative,
            for labels in the order negative, positive; acceptability: above a threshold fitted on train.
        names: of the splits to answer; acceptability needs train.

    Raises InputError for a task that the heuristic does not fit.
    """
    check_heuristic(heuristic, splits.task)
    labelled = {name: getattr(splits, name) for name in names}
    labelled = {name: rows for name, rows in labelled.items() if rows is not None and rows.labels is not None}
    if heuristic == "acceptability":
        scores = {name: mean_log_probabilities(model, encoder, rows, n_batch) for name, rows in labelled.items()}
        threshold = fit_threshold(scores["train"], splits.train.labels)
        answers = {name: (values > threshold).astype(int) for name, values in scores.items()}
    else:
        answer = answer_choices if heuristic == "choice" else answer_sentiment
        answers = {name: answer(model, encoder, rows, n_batch) for name, rows in labelled.items()}
    return {
        name: (len(rows), {key: METRICS[key].of(rows.labels, answers[name]) * 100 for key in splits.task.metrics})
        for name, rows in labelled.items()
    }


def zero_shot_on(
    model: nn.Module,
    encoder: TextEncoder,
    heuristic: str,
    dataset: str,
    data_dir: str | os.PathLike,
    form: str | None = None,
    columns: str | None = None,
    *,
    n_valid: int = 374,
    seed: int = 42,
    n_batch: int = 16,
) -> list[str]:
    """Return in words what zero_shot finds on the files of a data set; a line for each split.

    Args:
        dataset, data_dir, form, columns, n_valid, seed: --dataset, --data_dir, --task, ... of train.py.
    """
    folder = Path(data_dir)
    task = find_task(dataset, folder, form, parse_columns(columns))
    splits = read_splits(task, folder, encoder, Limits(n_valid, seed, model.transformer.n_ctx))
    lines = []
    for name, (n, metrics) in zero_shot(model, encoder, splits, heuristic, n_batch).items():
        figures = ", ".join(f"{METRICS[key].title} {value:.2f} %" for key, value in metrics.items())
        lines.append(f"{task.title}, {name}, {n:,} examples, zero-shot {heuristic}: {figures}")
    return lines


# --- to follow a model while it is trained ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A heuristic on some validation examples of a data set."""

    name: str  # of its figure in the log
    heuristic: str
    splits: Splits

    def measure(self, model: nn.Module, encoder: TextEncoder, n_batch: int = 16) -> float:
        """Return the first metric of the task (%)."""
        names = ("train", "valid") if self.heuristic == "acceptability" else ("valid",)
        _, figures = zero_shot(model, encoder, self.splits, self.heuristic, n_batch, names)["valid"]
        return figures[self.splits.task.metrics[0]]


def parse_probes(text: str | None) -> list[tuple[str, str, str]]:
    """Return heuristic, data set and folder of each probe in `choice:rocstories:DIR,sentiment:sst2:DIR`.

    Raises ValueError for a text of another form, and for the same heuristic and data set twice.
    """
    probes = [tuple(probe.split(":", 2)) for probe in text.split(",")] if text else []
    for probe in probes:
        if len(probe) != 3 or probe[0] not in HEURISTICS or probe[1] not in DATASETS or not probe[2]:
            raise ValueError(
                f"--probe {':'.join(probe)!r} is not HEURISTIC:DATASET:FOLDER, such as choice:rocstories:demo/data; "
                f"heuristics: {', '.join(HEURISTICS)}"
            )
    if len({probe[:2] for probe in probes}) < len(probes):
        raise ValueError("--probe names a heuristic and a data set twice: their figures would have the same name")
    return probes


def read_probes(text: str | None, encoder: TextEncoder, n_ctx: int, n_examples: int) -> list[Probe]:
    """Return the probes that parse_probes finds in a text, each with its first n_examples of train and of valid.

    Own data has the form that the heuristic takes. Raises InputError for files that are missing or do not fit.
    """
    probes = []
    for heuristic, dataset, folder in parse_probes(text):
        form = ("multiple_choice" if heuristic == "choice" else "classification") if dataset == "own" else None
        folder = find(folder)
        task = find_task(dataset, folder, form, {})
        # a tenth of own data becomes valid
        limits = Limits(n_valid=n_examples, seed=42, n_ctx=n_ctx, max_examples=10 * n_examples)
        splits = read_splits(task, folder, encoder, limits)
        check_heuristic(heuristic, splits.task)
        splits = replace(splits, train=splits.train.first(n_examples), valid=splits.valid.first(n_examples))
        if splits.train.labels is None or splits.valid.labels is None:
            raise InputError(f"{folder}: an example has no label, which a probe needs. Fix the line or remove it.")
        probes.append(Probe(f"{heuristic}_{dataset}", heuristic, splits))
    return probes
