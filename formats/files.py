"""Files: read, written whole or not at all, and told apart by their digests; and the error for what a user can fix."""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


class InputError(Exception):
    """Something the user gave is missing, damaged or contradictory; the message names it and the remedy."""


# --- files -----------------------------------------------------------------------------------------------------------


def find(path: str | os.PathLike) -> Path:
    """Return `path` as it is or, if only that exists, the one of that name beside the scripts."""
    beside_scripts = Path(__file__).resolve().parent.parent / path
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
    """Open a temporary file beside `path` for writing; once complete and on disk, it replaces `path`.

    Raises InputError, with what was there before intact, when the disk does not take it.
    """
    # several processes may write the same file, on several hosts too
    beside = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.part")
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


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with replacing(target) as file:
        file.write(source.read_bytes())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return name -> SHA-256 of files, several at a time."""
    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))


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
