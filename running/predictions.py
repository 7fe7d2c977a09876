"""A run's predictions: a file of all of them beside its log, for the analysis, and the tables to hand in."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from formats.files import InputError, refuse_special, replacing
from reading.rows import FORMS, Rows
from reading.tasks import Task
from running.inference import answers, written_answers

Parts = Sequence[tuple[str, int]]  # name and number of examples of each part of a split


class PredictedExample(NamedTuple):
    """A line of the file: an example, and what the run says about it."""

    split: str  # valid or test
    part: str  # of the split, such as matched in MNLI; "" where there is only one
    where: str  # file and line of the example
    label: str | float | None  # as the official files have it; a score; None: unknown
    prediction: str | float  # in the same words
    probabilities: list[float]  # of the labels or the example's choices, in their order; for scores, of six classes
    texts: list[str]  # in the order of the task's form


def write_predictions(
    path: Path,
    task: Task,
    splits: dict[str, tuple[Rows, Tensor]],
    parts: dict[str, Parts],
) -> None:
    """Write a JSON object per example of each split, whole or not at all.

    Args:
        splits: name -> the examples and their task logits (N, n_out).
        parts: name of a split -> its parts.
    """
    with replacing(path) as file:
        for split, (rows, logits) in splits.items():
            for example in predicted_examples(split, task, rows, logits, parts[split]):
                file.write(json.dumps(example._asdict()).encode() + b"\n")


def predicted_examples(
    split: str,
    task: Task,
    rows: Rows,
    logits: Tensor,
    parts: Parts,
) -> Iterator[PredictedExample]:
    """Yield the examples of a split with their predictions."""
    # labels and predictions in the words of the official files
    predictions = as_shown(answers(logits, task.scores), task)
    labels = [None] * len(rows)
    if rows.labels is not None:
        labels = as_shown(rows.labels, task)

    # in float32 two probabilities could round to a tie
    probabilities = logits.double().softmax(1).tolist()

    # part by part, in their order
    form = FORMS[task.form]
    part_names = np.repeat([name for name, _ in parts], [n for _, n in parts]).tolist()
    for i, part in enumerate(part_names):
        example = rows.example(i)
        # a label that train lacks has the number after the last one
        are_classes = rows.labels is not None and not task.scores and not form.has_choices
        if are_classes and rows.labels[i] == len(task.labels):
            labels[i] = example.label
        # an example may have fewer choices than others
        n_out = len(probabilities[i])
        if form.has_choices:
            n_out = len(example.texts) - form.n_texts
        yield PredictedExample(
            split=split,
            part=part,
            where=example.where,
            label=labels[i],
            prediction=predictions[i],
            probabilities=probabilities[i][:n_out],
            texts=list(example.texts),
        )


def as_shown(values: np.ndarray, task: Task) -> list[str] | list[float]:
    """Return labels or answers (N,) in the words of the official files; scores stay numbers."""
    if task.scores:
        return values.tolist()
    return written_answers(values, task.shown_labels(), None)


def read_predictions(path: Path) -> list[PredictedExample]:
    """Return the examples in the file. Raises InputError when it is missing, damaged or empty."""
    found = []
    refuse_special(path)
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                found.append(parse_predicted(line))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run train.py with --submit first, under that --desc.") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}, line {len(found) + 1}: not an example with its prediction ({error}). Run again with --submit."
        ) from None
    if not found:
        raise InputError(f"{path} holds no predictions. Run again with --submit.")
    return found


def parse_predicted(line: str) -> PredictedExample:
    """Return the example in a line of the file. Raises ValueError or TypeError for anything else."""
    # texts
    example = PredictedExample(**json.loads(line))
    texts = [example.split, example.part, example.where, *example.texts]
    if not isinstance(example.texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is none")

    # probabilities, one at least
    values = example.probabilities
    if not isinstance(values, list) or not values:
        raise TypeError("a probability is none")
    for value in values:
        if not isinstance(value, float) or not 0 <= value <= 1:
            raise TypeError("a probability is none")

    # scores
    for answer in (example.label, example.prediction):
        if isinstance(answer, float) and not math.isfinite(answer):
            raise TypeError("a score is no finite number")
    return example


# --- to hand in ------------------------------------------------------------------------------------------------------


def write_submission(folder: Path, task: Task, parts: Parts, found: np.ndarray, ids: Sequence[str | None] = ()) -> None:
    """Write a table `index<TAB>prediction` for each part of test, each whole or not at all.

    Args:
        found: labels, choices or scores of all parts (N,), as from running.inference.answers.
        ids: the user's own names of the examples; if each has one, they stand in the place of the index.
    """
    texts = written_answers(found, task.written_labels(), task.scores)
    has_ids = len(ids) > 0 and None not in ids
    first = 0
    for part, n in parts:
        names = ids[first : first + n] if has_ids else range(n)
        lines = ["id\tprediction\n" if has_ids else "index\tprediction\n"]
        for name, text in zip(names, texts[first : first + n], strict=True):
            lines.append(f"{name}\t{text}\n")
        with replacing(folder / task.submission[part]) as file:
            file.write("".join(lines).encode())
        first += n
