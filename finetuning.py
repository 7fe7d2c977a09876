"""Fine-tune in Python: `run = fit(texts, labels, model_dir="demo/model")`, `run.predict(texts)`."""

import dataclasses
import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from formats.files import InputError, write_json
from formats.own import OWN_FIELDS
from running.processes import join_ranks
from running.settings import FineTuningFlags
from train import fine_tune
from weights import SavedRun, open_run


def fit(
    examples: Sequence[str | Sequence[str]], labels: Sequence[str | float], task: str = "classification", **settings
) -> SavedRun:
    """Fine-tune on lists and return the run, with its methods `predict` and `save`.

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
    # the examples as the user's own data in a temporary folder
    folder = Path(tempfile.mkdtemp(prefix="fit_"))
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for example, label in zip(examples, labels, strict=True):
            record = example_record(example, label, task)
            file.write(json.dumps(record, default=lambda value: value.item()) + "\n")  # NumPy's numbers

    # train as train.py does
    if "model_dir" in settings:
        settings["model_dir"] = str(getattr(settings["model_dir"], "folder", settings["model_dir"]))
    folders = {name: str(folder / name) for name in ("log_dir", "save_dir", "submission_dir")}
    try:
        flags = FineTuningFlags(**{"dataset": "own", "task": task, "data_dir": str(folder)} | folders | settings)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    with join_ranks() as ranks:
        fine_tune(flags, ranks)
    run_folder = Path(flags.save_dir) / flags.desc
    saved = open_run(run_folder)

    # labels come back as they were given
    if saved.record.scores is None and all(isinstance(i, Integral) and not isinstance(i, bool) for i in labels):
        record = dataclasses.replace(saved.record, integer_labels=True)
        write_json(run_folder / "settings.json", record.to_json(), indent=2)
        saved = dataclasses.replace(saved, record=record)
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
