"""Fine-tune in Python: `run = fit(texts, labels, model_dir="demo/model")`, `run.predict(texts)`."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from formats.examples import OWN_FIELDS
from formats.files import InputError
from running.checkpoint import only_writer
from running.processes import join_ranks
from running.settings import FineTuningFlags
from train import fine_tune
from weights import SavedRun, open_run


def fit(
    examples: Sequence[str | Sequence[str]], labels: Sequence[str | float], task: str = "classification", **settings
) -> SavedRun:
    """Fine-tune on lists and return the run, with its methods `predict` and `save`.

    Args:
        examples: each one text (classification), two texts (entailment, similarity), or a context and its choices
            (multiple_choice).
        labels: one per example; for multiple_choice the number of the right choice, from 1, or its text. In a
            similarity task, numbers with more than two distinct values are scores.
        task: the form, one of these four.
        settings: flags of train.py: model_dir="demo/model", n_iter=3, lr=6.25e-5, ...

    Raises:
        InputError: as train.py does, for what the user can fix; "example" counts from 1.
    """
    # the examples as the user's own data in a temporary folder
    folder = Path(tempfile.mkdtemp(prefix="fit_"))
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for example, label in zip(examples, labels, strict=True):
            record = example_record(example, label, task)
            file.write(json.dumps(record, default=lambda value: value.item()) + "\n")  # NumPy's numbers

    # train as train.py does
    folders = {name: str(folder / name) for name in ("log_dir", "save_dir", "submission_dir")}
    try:
        flags = FineTuningFlags(**{"dataset": "own", "task": task, "data_dir": str(folder)} | folders | settings)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    run_folder = Path(flags.save_dir) / flags.desc
    with join_ranks() as ranks, only_writer(run_folder, ranks):
        fine_tune(flags, ranks)
    saved = open_run(run_folder)
    weakref.finalize(saved, shutil.rmtree, folder, ignore_errors=True)  # the temporary files are removed with the run
    return saved


def example_record(example: str | Sequence[str], label: str | float, task: str) -> dict:
    """Return an example as a line of the user's own data. Raises InputError for the wrong number of texts."""
    if task not in OWN_FIELDS:
        raise InputError(f"task {task!r} is not one of {', '.join(OWN_FIELDS)}")
    names = OWN_FIELDS[task]
    texts = (example,) if isinstance(example, str) else tuple(example)
    record = {"label": label}
    if task == "multiple_choice":
        record["choices"] = texts[1:]
    elif len(texts) != len(names):
        raise InputError(f"{texts!r} is {len(texts)} texts; a {task} example has {len(names)}.")
    return record | dict(zip(names, texts, strict=False))
