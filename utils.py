"""Small helpers for notebooks, and the files and errors of the library under the names they have had here."""

from collections.abc import Iterator

from formats.files import (  # noqa: F401  public names of this file
    InputError,
    ResultLogger,
    find,
    sha256,
)

# --- for notebooks written for the early PyTorch port; our own runs use reading/rows.py ------------------------------


def encode_dataset(*splits: tuple, encoder) -> list[tuple]:
    """Replace each column of texts in each split by its token ids; other columns (labels) stay as they are."""
    is_text = [[len(column) > 0 and isinstance(column[0], str) for column in split] for split in splits]
    return [
        tuple(encoder.encode(column) if text else column for column, text in zip(split, texts, strict=True))
        for split, texts in zip(splits, is_text, strict=True)
    ]


def iter_data(*arrays, n_batch: int = 128, truncate: bool = False, verbose: bool = False) -> Iterator:
    """Yield consecutive batches of arrays of one length: a tuple, or the bare batch of a single array.

    `truncate` drops the last partial batch; `verbose` shows a progress bar.
    """
    n = len(arrays[0]) // n_batch * n_batch if truncate else len(arrays[0])
    starts = range(0, n, n_batch)
    if verbose:
        from tqdm import tqdm  # here, so that importing the model needs torch and numpy only

        starts = tqdm(starts, ncols=80, leave=False)
    for start in starts:
        batch = tuple(array[start : min(start + n_batch, n)] for array in arrays)
        yield batch if len(batch) > 1 else batch[0]
