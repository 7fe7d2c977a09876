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
Texts = tuple[list[str], list[str], list[str]]  # the same without labels


def rocstories(data_dir: str | os.PathLike, n_valid: int = 374) -> tuple[Columns, Columns, Texts]:
    """Return the train, valid and test columns of the Story Cloze Test, Spring 2016, for use in a notebook.

    Train and valid are (stories, first endings, second endings, labels), the authors' split of the published valid
    file; test is the same without labels (datasets.py:30-38). A story is its four sentences joined with a space, a
    label 0 or 1.

    Raises:
        InputError: a file is missing, unreadable or malformed, or holds too few examples for n_valid.
    """
    folder = TASKS["rocstories"].find(Path(data_dir))
    *columns, labels = read_cloze(folder / ROCSTORIES_VALID)
    train, valid = hold_out(labels, n_valid, SPLIT_SEED, False, folder / ROCSTORIES_VALID)
    *test, _ = read_cloze(folder / ROCSTORIES_TEST)
    return _chosen(columns, labels, train), _chosen(columns, labels, valid), tuple(test)


def _chosen(columns: list[list[str]], labels: np.ndarray, which: np.ndarray) -> Columns:
    return *([column[i] for i in which] for column in columns), labels[which]


def read_cloze(path: Path) -> Columns:
    """Read one file of the Story Cloze Test as columns. Raises InputError that names file, line and remedy."""
    examples = []
    for example in cloze(path.parent, path.name):
        if isinstance(example, Bad):
            raise InputError(f"{example.where}: {example.why}")
        examples.append(example)
    if not examples:
        raise InputError(f"{path} holds no examples. Fetch it again.")
    columns = zip(*(example.texts for example in examples), strict=True)
    labels = np.array([int(example.label) - 1 for example in examples])
    return *(list(column) for column in columns), labels
