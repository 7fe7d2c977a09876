"""Small helpers for notebooks and projects that import them from here. No file of ours does."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from formats.files import InputError, LogFile, find, sha256  # noqa: F401  public names of this file

# --- data: columns of texts, batches ---------------------------------------------------------------------------------


def encode_dataset(*splits: tuple, encoder) -> list[tuple]:
    """Replace each column of texts in each split by its token ids; other columns (labels) stay as they are."""
    encoded = []
    for split in splits:
        columns = []
        for column in split:
            is_text = len(column) > 0 and isinstance(column[0], str)
            columns.append(encoder.encode(column) if is_text else column)
        encoded.append(tuple(columns))
    return encoded


def iter_data(
    *arrays, n_batch: int = 128, truncate: bool = False, verbose: bool = False, max_batches: float = math.inf
) -> Iterator:
    """Yield consecutive batches of arrays of one length: a tuple, or the bare batch of a single array.

    `truncate` drops the last partial batch; `verbose` shows a progress bar; at most `max_batches` are given.
    """
    n = len(arrays[0])
    if truncate:
        n -= n % n_batch
    n = min(n, max_batches * n_batch)
    starts = range(0, n, n_batch)
    if verbose:
        from tqdm import tqdm  # here, so that importing the model needs torch and numpy only

        starts = tqdm(starts, ncols=80, leave=False)
    for start in starts:
        batch = tuple(array[start : min(start + n_batch, n)] for array in arrays)
        yield batch if len(batch) > 1 else batch[0]


# --- further names of the early PyTorch port -------------------------------------------------------------------------


class ResultLogger(LogFile):
    """A log whose every line, the first included, has its `time` in seconds since 1970 unless one is given."""

    def __init__(self, path: str, *args, **kwargs):
        super().__init__(make_path(path), **kwargs)

    def log(self, **kwargs) -> None:
        super().log(**{"time": time.time()} | kwargs)


def make_path(f: str) -> str:
    """Make the folder that a file name stands in, if it is missing, and return the name."""
    Path(f).parent.mkdir(parents=True, exist_ok=True)
    return f


def flatten(outer: Iterable[Iterable]) -> list:
    """Return the items of lists as one list: [[1, 2], [3]] -> [1, 2, 3]."""
    return [item for inner in outer for item in inner]


def remove_none(l: Iterable) -> list:  # noqa: E741  the port's name
    """Return the items that are not None."""
    return [item for item in l if item is not None]


def np_softmax(x: np.ndarray, t: float = 1) -> np.ndarray:
    """Return the softmax of x / t over the last axis."""
    x = np.asarray(x) / t
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def stsb_label_encoding(labels: Sequence[float], nclass: int = 6) -> np.ndarray:
    """Return scores as soft labels (n, nclass), float32: 3.6 is 0.4 of class 3 and 0.6 of class 4."""
    classes = np.arange(nclass)
    distances = np.abs(np.asarray(labels)[:, None] - classes)
    # a class one away or farther has nothing of the score
    return np.maximum(0, 1 - distances).astype(np.float32)
