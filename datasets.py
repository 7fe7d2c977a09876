"""Files -> examples: a reader for each data set, and TASKS, the one record that tells the rest of the code about it.

To add a data set, write a reader that returns three `Examples` and put a `Task` into TASKS.
"""

import csv
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import InputError

ROCSTORIES_VALID = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
ROCSTORIES_TEST = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
SPLIT_SEED = 3535999445  # TF's datasets.py:10


@dataclass(frozen=True)
class Examples:
    """One split of a data set."""

    texts: list[tuple[str, ...]]  # of each example: its texts, in the order that the task's form takes them
    labels: np.ndarray  # (N,): index into Task.labels, or for multiple choice of the right choice


@dataclass(frozen=True)
class Task:
    """All that the rest of the code knows about a data set."""

    title: str  # as printed
    form: str  # multiple_choice, classification, entailment or similarity: a key of inputs.FORMS
    read: Callable[[Path, int], tuple[Examples, Examples, Examples]]  # folder, n_valid -> train, valid, test
    files: tuple[str, ...]  # that `read` reads; their digests are logged
    labels: tuple[str, ...]  # in the order of the network's outputs; predictions are written in these words
    metric: str  # a key of loss.METRICS; the parameters kept are the best by it on valid
    submission: str  # name of the file of predictions
    cut: str = "longest"  # a key of inputs.CUTS: what is shortened in examples too long for the network


# --- Story Cloze Test ------------------------------------------------------------------------------------------------

Columns = tuple[list[str], list[str], list[str], np.ndarray]  # stories, first endings, second endings, right ones


def rocstories(data_dir: str | os.PathLike, n_valid: int = 374) -> tuple[Columns, Columns, Columns]:
    """Return the train, valid and test columns of the Story Cloze Test.

    Each is (stories, first endings, second endings, labels); a story is its four sentences joined with a space, a label
    0 or 1. Train and valid are the authors' split of the published valid file (datasets.py:30-33).

    Raises:
        InputError: a file is missing, unreadable or malformed, or holds too few examples for n_valid.
    """
    from sklearn.model_selection import train_test_split  # here: it imports scipy

    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder. --data_dir names the one that holds '{ROCSTORIES_VALID}'.")
    *columns, labels = read_cloze(data_dir / ROCSTORIES_VALID)
    if not 1 <= n_valid < len(labels):
        raise InputError(
            f"{data_dir / ROCSTORIES_VALID}: --n_valid {n_valid} of its {len(labels)} examples leaves none to train "
            "on. Lower --n_valid."
        )
    parts = train_test_split(*columns, labels, test_size=n_valid, random_state=SPLIT_SEED)
    return tuple(parts[0::2]), tuple(parts[1::2]), read_cloze(data_dir / ROCSTORIES_TEST)


def read_cloze(path: Path) -> Columns:
    """Read one file of the Story Cloze Test: id, four sentences, two endings, the right one (1 or 2).

    Raises InputError that names the file, the line and the remedy.
    """
    stories, first, second, labels = [], [], [], []
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    start = 1  # line where the example begins that is being read; it may hold newlines inside quotes
    try:
        for fields in reader:
            where, start = f"{path}, line {reader.line_num}", reader.line_num + 1
            if not fields:
                continue
            if reader.line_num == 1:
                if fields[-1].strip().isdigit():
                    raise InputError(f"{where}: a story where the line of column names should be. Put one before it.")
                continue
            if len(fields) != 8:
                raise InputError(
                    f"{where}: {len(fields)} columns, not 8: id, 4 sentences, 2 endings, right one. Fix the line."
                )
            if fields[-1].strip() not in ("1", "2"):
                raise InputError(f"{where}: the right ending is {fields[-1]!r}, not 1 or 2. Fix the line.")
            story, *endings = " ".join(fields[1:5]), fields[5], fields[6]
            if not story.strip():
                raise InputError(f"{where}: the story is empty. Fix the line or remove it.")
            if not any(map(str.strip, endings)):
                raise InputError(f"{where}: both endings are empty. Fix the line or remove it.")
            stories.append(story)
            first.append(endings[0])
            second.append(endings[1])
            labels.append(int(fields[-1]) - 1)
    except csv.Error as error:
        if "field limit" in str(error):
            raise InputError(
                f"{path}, line {start}: a field of more than {csv.field_size_limit():,} characters. Is a quote not "
                "closed there?"
            ) from None
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}). Fetch it again.") from None
    if not stories:
        raise InputError(f"{path} holds no examples. Fetch it again.")
    return stories, first, second, np.array(labels)


def _rocstories_examples(data_dir: Path, n_valid: int) -> tuple[Examples, Examples, Examples]:
    splits = rocstories(data_dir, n_valid)
    return tuple(Examples(list(zip(*texts, strict=True)), labels) for *texts, labels in splits)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Return a text file's content, in UTF-8 with or without a byte-order mark.

    Raises InputError when it is missing, not UTF-8, or holds NUL bytes, with the line.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing. See 'Weights and data' in README.md for where to get it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    if (nul := raw.find(b"\0")) >= 0:
        line = raw.count(b"\n", 0, nul) + 1
        raise InputError(f"{path}, line {line}: a NUL byte (byte {nul:,}): the file is damaged. Fetch it again.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 (byte {error.start:,}). If it is Latin-1, convert it: "
            "iconv -f latin1 -t utf-8 OLD > NEW"
        ) from None


# --- the records -----------------------------------------------------------------------------------------------------

TASKS: dict[str, Task] = {
    "rocstories": Task(
        title="ROCStories",
        form="multiple_choice",
        read=_rocstories_examples,
        files=(ROCSTORIES_VALID, ROCSTORIES_TEST),
        labels=("0", "1"),
        metric="acc",
        submission="ROCStories.tsv",
        cut="halves",
    ),
}
