"""Small shared helpers: errors a user can act on, files, batches, logs."""

import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# git blob ids of the authors' published files (openai/finetune-transformer-lm, commit a69b5c4, folder model/)
AUTHORS_BLOB_IDS = {
    "params_0.npy": "84d83ac1f1cc878f56f33b167482c184491875d2",
    "params_1.npy": "0f19f4d4cda3d8f908e3faffd2cb2a8b9a4039da",
    "params_2.npy": "25bc19c72fdff69505a828ec6d73b32063532148",
    "params_3.npy": "5b2e6958d42a930966c9d602a012eb846ca67c83",
    "params_4.npy": "87ad158987e307e6aa64952610f466d750b73bc7",
    "params_5.npy": "74f3853316bba327229605dbedfe921996f11448",
    "params_6.npy": "5ef44e40bc076d0c9686d1273d54cbc16c3f0980",
    "params_7.npy": "d8d5c8d3bee9b20a677605ac1fe6c7af4df57c94",
    "params_8.npy": "f980f4b393716f396ae5ae6401708dcf4f270dc9",
    "params_9.npy": "d389eb2074dd74754444b8062aba78b49f6a9053",
    "encoder_bpe_40000.json": "9dc3f0af5a80956e57dc8d9401e16dfadcade7c2",
    "vocab_40000.bpe": "0023a687b3d4d0b795a5e97cc914bdabb5a253df",
    "params_shapes.json": "29fac299ae848d7e447be84a33345edcf1b5353c",
}


class InputError(Exception):
    """Something the user gave is missing, damaged or contradictory; the message names it and the remedy."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def exit_code(program: str, action: Callable[[], None], when_stopped: str) -> int:
    """Run a command's action and return 0; 2 after one line on what the user can mend; 128 + n after signal n."""

    def terminate(number: int, _frame) -> None:
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice
        raise Interrupted(number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGTERM, terminate) if in_main_thread else None
    try:
        action()
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped; {when_stopped}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, earlier)
    return 0


# --- files -----------------------------------------------------------------------------------------------------------


def find(path: str | os.PathLike) -> Path:
    """Return `path` as it is or, if only that exists, the one of that name beside the scripts."""
    beside_scripts = Path(__file__).resolve().parent / path
    return beside_scripts if not Path(path).exists() and beside_scripts.exists() else Path(path)


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises InputError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing. See 'Weights and data' in README.md for where to get it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). Fetch it again.") from None


def make_output_folder(path: Path) -> None:
    """Create a folder and prove that a file can be written there. Raises InputError when it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{path} cannot be written to ({error.strerror}). Name another folder.") from None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` for writing; it takes the place of `path` once complete and on disk.

    Raises InputError, with what was there before intact, when the disk does not take it.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may write the same file
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        flush(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}). What was there before is intact.") from None
    finally:
        with suppress(OSError):
            beside.unlink()


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=indent).encode())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return name -> SHA-256 of files, several at a time."""
    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))


def git_blob_id(path: Path) -> str:
    """Return the id git gives a file's content: sha1 of `blob <size>`, a zero byte and the bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_authors_files(folder: Path) -> None:
    """Print for each file of the authors' model folder whether it is theirs. Raises InputError if any is not."""
    bad = []
    for name, blob_id in AUTHORS_BLOB_IDS.items():
        path = folder / name
        verdict = "missing" if not path.exists() else "ok" if git_blob_id(path) == blob_id else "differs"
        print(f"{verdict:8} {path}")
        if verdict != "ok":
            bad.append(f"{name} ({verdict})")
    if bad:
        raise InputError(f"{folder}: not the authors' files: {', '.join(bad)}. Fetch them again.")


# --- data ------------------------------------------------------------------------------------------------------------


def is_text(column) -> bool:
    """Return whether a column of examples holds texts, and not labels."""
    return len(column) > 0 and isinstance(column[0], str)


def encode_dataset(*splits: tuple, encoder) -> list[tuple]:
    """Replace each column of texts in each split by its token ids; other columns (labels) stay as they are."""
    return [tuple(encoder.encode(column) if is_text(column) else column for column in split) for split in splits]


def iter_data(*arrays, n_batch: int = 128, truncate: bool = False, verbose: bool = False) -> Iterator:
    """Yield consecutive batches of arrays of one length: a tuple, or the bare batch of a single array.

    `truncate` drops the last partial batch; `verbose` shows a progress bar.
    """
    n = len(arrays[0]) // n_batch * n_batch if truncate else len(arrays[0])
    starts = range(0, n, n_batch)
    if verbose:
        from tqdm import tqdm  # here, so that importing the model needs torch and numpy alone

        starts = tqdm(starts, ncols=80, leave=False)
    for start in starts:
        batch = tuple(array[start : min(start + n_batch, n)] for array in arrays)
        yield batch if len(batch) > 1 else batch[0]


# --- logs ------------------------------------------------------------------------------------------------------------


class ResultLogger:
    """A JSON-lines file: first all settings, then one line per log."""

    def __init__(self, path: str | os.PathLike, **settings):
        self.file = open(path, "w", encoding="utf-8")
        self.log(**settings)

    def log(self, **values) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
