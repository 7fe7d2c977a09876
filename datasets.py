"""Files -> examples, one reader per task."""

import csv
import hashlib
import io
import json
import os
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

import text_utils
from text_utils import TextEncoder
from utils import InputError, is_text, replacing, sha256

ROCSTORIES_VALID = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
ROCSTORIES_TEST = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
DATA_FILES = {"rocstories": (ROCSTORIES_VALID, ROCSTORIES_TEST)}
SPLIT_SEED = 3535999445  # TF's datasets.py:10

Columns = tuple[list[str], list[str], list[str], np.ndarray]  # stories, first endings, second endings, right ones


def rocstories(data_dir: str | os.PathLike, n_valid: int = 374) -> tuple[Columns, Columns, Columns]:
    """Return the train, valid and test columns of the Story Cloze Test.

    Each is (stories, first endings, second endings, labels); a story is its four sentences joined with a space, a label
    0 or 1. Train and valid are the authors' split of the published valid file (datasets.py:30-33).

    Raises:
        InputError: a file is missing, unreadable or malformed, or holds too few rows for n_valid.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder. --data_dir names the one that holds '{ROCSTORIES_VALID}'.")
    *columns, labels = read_cloze(data_dir / ROCSTORIES_VALID)
    if not 1 <= n_valid < len(labels):
        raise InputError(
            f"{data_dir / ROCSTORIES_VALID}: --n_valid {n_valid} of its {len(labels)} rows leaves none to train on. "
            "Lower --n_valid."
        )
    parts = train_test_split(*columns, labels, test_size=n_valid, random_state=SPLIT_SEED)
    return tuple(parts[0::2]), tuple(parts[1::2]), read_cloze(data_dir / ROCSTORIES_TEST)


def read_cloze(path: Path) -> Columns:
    """Read one file of the Story Cloze Test: id, four sentences, two endings, the right one (1 or 2).

    Raises InputError that names the file, the line and the remedy.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing. See 'Weights and data' in README.md for where to get it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    try:
        text = raw.decode("utf-8-sig")  # with or without a byte-order mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 (byte {error.start:,}). If it is Latin-1, convert it: "
            "iconv -f latin1 -t utf-8 OLD > NEW"
        ) from None

    stories, first, second, labels = [], [], [], []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not row:
                continue
            if reader.line_num == 1:
                if row[-1].strip().isdigit():
                    raise InputError(f"{where}: a story where the line of column names should be. Put one before it.")
                continue
            if len(row) != 8:
                raise InputError(
                    f"{where}: {len(row)} columns, not 8: id, 4 sentences, 2 endings, right one. Mend the row."
                )
            if row[-1].strip() not in ("1", "2"):
                raise InputError(f"{where}: the right ending is {row[-1]!r}, not 1 or 2. Mend the row.")
            stories.append(" ".join(row[1:5]))
            first.append(row[5])
            second.append(row[6])
            labels.append(int(row[-1]) - 1)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}). Fetch it again.") from None
    if not stories:
        raise InputError(f"{path} holds no rows. Fetch it again.")
    return stories, first, second, np.array(labels)


def encode_cached(
    splits: tuple[tuple, ...], encoder: TextEncoder, folder: Path, vocabulary: tuple[str, str]
) -> list[tuple]:
    """Return what encode_dataset does, from a file in a folder where the same texts were encoded before.

    The file's name is a digest of the texts, of the vocabulary's two files and of what tokenizes. A damaged file is
    made anew; where none can be written, none is.
    """
    texts = [text for split in splits for column in split if is_text(column) for text in column]
    sources = [sha256(Path(source)) for source in (*vocabulary, text_utils.__file__)]
    key = hashlib.sha256(json.dumps([sources, version("ftfy"), version("spacy"), texts]).encode()).hexdigest()
    path = folder / f"encoded_{key[:16]}.npz"
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            ids, lengths = file["ids"].tolist(), file["lengths"]
        rows = [ids[start:end] for start, end in pairwise([0, *lengths.cumsum()])]
        if (len(rows), len(ids)) != (len(texts), lengths.sum()):  # a zip's checksum covers only what is read
            raise ValueError(path)
    except Exception:  # missing, or whatever damage does to a zip file
        if path.exists():
            print(f"{path} is damaged: encoding again")
        rows = encoder.encode(texts)
        ids = np.array([i for row in rows for i in row], np.int32)
        with suppress(InputError), replacing(path) as file:
            np.savez(file, ids=ids, lengths=np.array([len(row) for row in rows]))
    left = iter(rows)
    return [tuple([next(left) for _ in column] if is_text(column) else column for column in split) for split in splits]
