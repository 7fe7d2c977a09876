"""Fine-tune in Python: `run = fit(texts, labels, model_dir="demo/model")`, `run.predict(texts)`."""

import dataclasses
import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np

from formats.files import InputError, write_json
from formats.own import OWN_FIELDS
from running.processes import random_numbers_kept
from running.settings import FineTuningFlags
from running.training import run_processes
from train import fine_tune
from weights import SavedRun, open_run

# The order of examples comes from NumPy's global generator, as the authors' does: two threads take turns.
ONE_AT_A_TIME = threading.Lock()


def fit(
    examples: Sequence[str | Sequence[str]], labels: Sequence[str | float], task: str = "classification", **settings
) -> SavedRun:
    """Fine-tune on lists and return the run, with its methods `predict` and `save`.

    The generators of random, NumPy and torch are left as they were. Of two calls in two threads, the second waits.

    Args:
        examples: each one text (classification, regression), two texts (entailment, similarity), or a context and
            its choices (multiple_choice).
        labels: one per example; for multiple_choice the number of the right choice, from 1, its letter or its
            text. In a regression they are scores, and in a similarity task numbers with more than two distinct values.
        task: the form, one of these five.
        settings: flags of train.py: model_dir="demo/model", n_iter=3, lr=6.25e-5, ... The model_dir may be a run, or
            its folder.

    Labels that are integers, of classes or choices, are predicted as integers.

    Raises:
        InputError: as train.py does, for what the user can fix; "example" counts from 1.
    """
    # the examples as the lines of the user's own data
    examples = items(examples, "examples")
    labels = items(labels, "labels")
    if len(examples) != len(labels):
        raise InputError(f"examples are {len(examples)}, labels {len(labels)}: give one label an example")
    lines = []
    for number, (example, label) in enumerate(zip(examples, labels, strict=True), 1):
        record = example_record(example, label, task, f"example {number}")
        lines.append(json.dumps(record) + "\n")

    # a run to go on from is given by its folder
    if "model_dir" in settings:
        given = settings["model_dir"]
        settings["model_dir"] = str(getattr(given, "folder", given))

    # train as train.py does, in a temporary folder, which is removed with the run
    folder = Path(tempfile.mkdtemp(prefix="fit_"))
    try:
        with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
            file.writelines(lines)
        with ONE_AT_A_TIME, random_numbers_kept():
            saved = train_in(folder, task, settings)
        if saved.record.scores is None and all(map(is_integer, labels)):
            saved = with_integer_labels(saved)  # labels come back as they were given
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(saved, shutil.rmtree, folder, ignore_errors=True)
    return saved


def train_in(folder: Path, task: str, settings: dict) -> SavedRun:
    """Train as train.py does on the user's own data in a folder, which takes the run's files too."""
    # the user's settings come last, where they win
    flags = {"dataset": "own", "task": task, "data_dir": str(folder)}
    for name in ("log_dir", "save_dir", "submission_dir"):
        flags[name] = str(folder / name)
    try:
        checked = FineTuningFlags(**flags | settings)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    if checked.lstm is not None:
        raise InputError("an LSTM is for train.py: fit returns runs of the transformer only. Leave out lstm.")

    # as its command does
    with run_processes(checked) as ranks:
        fine_tune(checked, ranks)
    return open_run(checked.run_folder())


def with_integer_labels(saved: SavedRun) -> SavedRun:
    """Return the run, on disk too, as one whose labels are predicted as integers."""
    record = dataclasses.replace(saved.record, integer_labels=True)
    write_json(saved.folder / "settings.json", record.to_json(), indent=2)
    return dataclasses.replace(saved, record=record)


def is_integer(label: object) -> bool:
    """Whether a label is an integer of Python or NumPy, True and False excepted."""
    return isinstance(label, Integral) and not isinstance(label, bool)


def items(values: Iterable, name: str) -> list:
    """Return the items of an argument as a list. Raises InputError for one text, a table, or what has no items."""
    if hasattr(values, "columns"):
        raise InputError(f"{name} are a table: give a column of it as a list, such as table['text'].tolist()")
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} are {type(values).__name__}, not a list")
    return list(values)


def example_record(example: str | Sequence[str], label: str | float, task: str, where: str) -> dict:
    """Return an example as a line of the user's own data. Raises InputError for texts or a label of another kind."""
    if task not in OWN_FIELDS:
        raise InputError(f"task {task!r} is not one of {', '.join(OWN_FIELDS)}")

    # the texts
    names = OWN_FIELDS[task]
    texts = [example] if isinstance(example, str) else items(example, f"the texts of {where}")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{where}: {text!r} is no text")

    # the label; JSON knows no numbers of NumPy
    if isinstance(label, np.generic):
        label = label.item()
    if not isinstance(label, (str, int, float)):
        raise InputError(f"labels: that of {where} is {label!r}, neither a text nor a number")

    # the fields of the form; choices may be any number
    record = {"label": label}
    if task == "multiple_choice":
        record["choices"] = texts[1:]
    elif len(texts) != len(names):
        raise InputError(f"{where} is {len(texts)} texts; a {task} example has {len(names)}.")
    return record | dict(zip(names, texts, strict=False))
