"""Files: read, written whole or not at all, and told apart by their digests; and the error for what a user can fix."""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

WHERE_TO_GET_IT = "See 'Weights and data' in README.md for where to get it."


class InputError(Exception):
    """Something the user gave is missing, damaged or contradictory; the message names it and the remedy."""


# --- reading ---------------------------------------------------------------------------------------------------------


def find(path: str | os.PathLike) -> Path:
    """Return `path` as it is or, if only that exists, the one of that name beside the scripts."""
    path = Path(path)
    # the scripts stand one folder above this file
    beside_scripts = Path(__file__).resolve().parent.parent / path
    if not path.exists() and beside_scripts.exists():
        return beside_scripts
    return path


def read_json(path: Path, remedy: str = WHERE_TO_GET_IT) -> Any:
    """Parse a JSON file. Raises InputError, which ends with the remedy, when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {remedy}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). {remedy}") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files by their names."""
    return {path.name: sha256(path) for path in paths}


# --- writing ---------------------------------------------------------------------------------------------------------


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
    part = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        # the bytes are on disk before the name points to them, and the name before we go on
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        flush(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}). What was there before is intact.") from None
    finally:
        with suppress(OSError):
            part.unlink()


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


class LogFile:
    """A file of JSON lines: first all settings, then one line per log, which is on disk at once."""

    def __init__(self, path: str | os.PathLike, **settings):
        self.file = open(path, "w", encoding="utf-8")
        self.log(**settings)

    def log(self, **values) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
