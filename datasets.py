"""The Story Cloze Test as columns for a notebook; the records of all data sets, which stand in reading/tasks.py."""

import os
from pathlib import Path

import numpy as np

from reading.tasks import (  # noqa: F401  public names of this file
    ROCSTORIES_TEST,
    ROCSTORIES_VALID,
    SPLIT_SEED,
    TASKS,
    Source,
    Task,
    find_task,
    hold_out,
    read_cloze,
)

seed = SPLIT_SEED  # the authors' name
Columns = tuple[list[str], list[str], list[str], np.ndarray]  # stories, first endings, second endings, labels
Texts = tuple[list[str], list[str], list[str]]  # the same without labels


def rocstories(
    data_dir: str | os.PathLike, n_valid: int = 374, *, n_train: int = 1497
) -> tuple[Columns, Columns, Texts]:
    """Return the train, valid and test columns of the Story Cloze Test, Spring 2016, for use in a notebook.

    Train and valid are (stories, first endings, second endings, labels), the authors' split of the published valid
    file; test is the same without labels (datasets.py:30-38). A story is its four sentences joined with a space, a
    label 0 or 1.

    Args:
        data_dir: folder of the two official files.
        n_valid: examples of valid.
        n_train: taken and not used, as by the authors: train is what valid leaves.

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


def _rocstories(path: str | os.PathLike) -> tuple[list[str], list[str], list[str], list[int]]:
    """Read one file of the Story Cloze Test as four lists. Raises InputError that names file, line and remedy."""
    *columns, labels = read_cloze(Path(path))
    return *columns, labels.tolist()
