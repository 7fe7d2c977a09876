"""The Story Cloze Test as columns for a notebook; the records of all data sets, which stand in reading/tasks.py."""

import os
from pathlib import Path

import numpy as np

from formats.examples import Bad, cloze
from formats.files import InputError
from reading.tasks import (  # noqa: F401  public names of this file
    ROCSTORIES_TEST,
    ROCSTORIES_VALID,
    SPLIT_SEED,
    TASKS,
    Source,
    Task,
    find_task,
    hold_out,
)

Columns = tuple[list[str], list[str], list[str], np.ndarray]  # stories, first endings, second endings, labels


def rocstories(data_dir: str | os.PathLike, n_valid: int = 374) -> tuple[Columns, Columns, Columns]:
    """Return the train, valid and test columns of the Story Cloze Test, Spring 2016, for use in a notebook.

    Each is (stories, first endings, second endings, labels); a story is its four sentences joined with a space, a label
    0 or 1. Train and valid are the authors' split of the published valid file (datasets.py:30-33).

    Raises:
        InputError: a file is missing, unreadable or malformed, or holds too few examples for n_valid.
    """
    folder = TASKS["rocstories"].find(Path(data_dir))
    *columns, labels = read_cloze(folder / ROCSTORIES_VALID)
    train, valid = hold_out(labels, n_valid, SPLIT_SEED, False, folder / ROCSTORIES_VALID)
    parts = [(*([column[i] for i in part] for column in columns), labels[part]) for part in (train, valid)]
    return *parts, read_cloze(folder / ROCSTORIES_TEST)


def read_cloze(path: Path) -> Columns:
    """Read one file of the Story Cloze Test as columns. Raises InputError that names file, line and remedy."""
    examples = []
    for example in cloze(path.parent, path.name):
        if isinstance(example, Bad):
            raise InputError(f"{example.where}: {example.why}")
        examples.append(example)
    if not examples:
        raise InputError(f"{path} holds no examples. Fetch it again.")
    texts, labels, _ = zip(*examples, strict=True)
    return *map(list, zip(*texts, strict=True)), np.array([int(label) - 1 for label in labels])
