"""Files: read, written whole or not at all, and told apart by their digests; and the error for what a user can fix."""

import codecs
import hashlib
import io
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


def is_utf16(content: bytes) -> bool:
    """Return whether bytes begin with the byte-order mark of UTF-16."""
    return content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def decoded(content: bytes, n_before: int = 0) -> tuple[str, str]:
    """Return the text of bytes in UTF-8, or UTF-16 with its mark, and what is wrong with it ("" if nothing).

    Args:
        n_before: bytes that stand before these; a byte-order mark is one only at the beginning.
    """
    text = ""
    why = ""
    try:
        if n_before == 0 and is_utf16(content):
            return content.decode("utf-16"), ""
        text = content.decode("utf-8-sig" if n_before == 0 else "utf-8")
    except UnicodeDecodeError as error:
        if error.encoding.startswith("utf-16"):
            return "", "not UTF-16, though its byte-order mark says so. Convert it to UTF-8."
        why = f"not UTF-8 (byte {n_before + error.start:,}). If it is Latin-1, convert it: "
        why += "iconv -f latin1 -t utf-8 OLD > NEW"
    nul = content.find(b"\0")
    if nul >= 0:
        why = f"a NUL byte (byte {n_before + nul:,}): the file is UTF-16, or damaged. "
        why += "Convert it (iconv -f utf-16 -t utf-8) or fetch it again."
    return text, why


def text_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, str, str]]:
    """Yield each line's number, its text with the line end, and what is wrong with it, as `decoded` does.

    Args:
        lines: that end with a newline byte, such as a file open for bytes, or sys.stdin.buffer.
    """
    n_before = 0
    lines = iter(lines)
    for number, raw in enumerate(lines, 1):
        if number == 1 and is_utf16(raw):
            # here a newline byte may be a part of another character
            whole, why = decoded(raw + b"".join(lines))
            if why:
                yield 1, "", why
            for numbered in enumerate(io.StringIO(whole, newline="\n"), 1):
                yield *numbered, ""
            return
        text, why = decoded(raw, n_before)
        yield number, text, why
        n_before += len(raw)


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
