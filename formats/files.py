"""Files: read, written whole or not at all, and told apart by their digests; and the error for what a user can fix."""

import codecs
import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# remedies for what is missing: an official file, and a run
WHERE_TO_GET_IT = "See 'The paper's result' in README.md for where to get it; other data: 'The paper's data sets'."
NAME_A_RUN = "Name the folder of a run, save/<desc>, which train.py writes."


class InputError(Exception):
    """Something the user gave is missing, damaged or contradictory; the message names it and the remedy."""


def reason(error: OSError) -> str:
    """Return in words why the system refused something, such as: No space left on device."""
    return error.strerror or str(error)


# --- reading ---------------------------------------------------------------------------------------------------------


def find(path: str | os.PathLike) -> Path:
    """Return `path` as it is or, if only that exists, the one of that name beside the scripts."""
    path = Path(path)
    # the scripts stand one folder above this file
    beside_scripts = Path(__file__).resolve().parent.parent / path
    # unlike Path.exists, no error for a name that is too long or may not be looked up
    if not os.path.exists(path) and os.path.exists(beside_scripts):
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
    # the text, and the first byte that is not of it
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

    # a NUL byte tells more of what is wrong
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
        # nearly every line: no call that is not needed
        if n_before > 0 and raw.isascii() and b"\0" not in raw:
            yield number, raw.decode("ascii"), ""
            n_before += len(raw)
            continue

        # UTF-16 is read as a whole
        if number == 1 and is_utf16(raw):
            # here a newline byte may be a part of another character
            whole, why = decoded(raw + b"".join(lines))
            if why:
                yield 1, "", why
            for numbered in enumerate(io.StringIO(whole, newline="\n"), 1):
                yield *numbered, ""
            return

        # any other line
        text, why = decoded(raw, n_before)
        yield number, text, why
        n_before += len(raw)


def refuse_special(path: str | os.PathLike) -> None:
    """Raise InputError for a folder, a device or a pipe, which may give no end of bytes or none for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is no ordinary file. Name one; what comes from a pipe, write to a file first.")


def read_json(path: Path, remedy: str = WHERE_TO_GET_IT) -> Any:
    """Parse a JSON file. Raises InputError, which ends with the remedy, when it is missing or damaged."""
    refuse_special(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise InputError(f"{path} cannot be read as JSON ({error}). {remedy}") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal. Raises InputError for a device or a pipe."""
    refuse_special(path)
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
        raise InputError(f"{path} cannot be written to ({reason(error)}). Name another folder.") from None


def refuse_folders(paths: Iterable[Path]) -> None:
    """Raise InputError when a folder stands where a file is to be written."""
    for path in paths:
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder, where a file is to be written. Move it away, or name another place.")


def refuse_inputs(path: Path, inputs: Iterable[str | os.PathLike | int]) -> None:
    """Raise InputError when a file to be written is one of those that are read: paths, or descriptors."""
    if not os.path.isfile(path):
        return
    for given in inputs:
        with suppress(OSError):  # an input that is missing
            if os.path.samestat(os.stat(path), os.stat(given)):
                raise InputError(f"{path} is read, it cannot be written too. Name another file.")


@contextmanager
def placing(path: Path, part: Path) -> Iterator[Path]:
    """Give the name `path` to the file or folder that is written within the `with` as `part`, once it is on disk.

    Of what is not complete nothing stays.
    """
    _remove(part)  # of a process that was killed
    try:
        yield part
        to_disk(part)
        os.replace(part, path)
        _flush(path.parent)
    finally:
        _remove(part)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; once complete and on disk, it replaces `path`.

    A device or a pipe is written into, a link stays and the file that it names is replaced. Raises InputError for a
    folder and, with what was there before intact, when the disk does not take the file.
    """
    refuse_folders([path])
    try:
        # nothing can take the place of a device
        if _is_written_into(path):
            with open(path, "wb") as file:
                yield file
            return

        # of a link, the file that it names
        target = Path(os.path.realpath(path))
        with placing(target, _part_of(target)) as part, open(part, "wb") as file:
            _lock(file.fileno())
            yield file
            _to_disk(file)  # while no other process takes it for one that was left
    except OSError as error:
        raise InputError(f"{path} cannot be written ({reason(error)}). What was there before is intact.") from None


@contextmanager
def replacing_all(paths: Sequence[Path], gone: Iterable[Path] = ()) -> Iterator[list[IO[bytes]]]:
    """Open temporary files for files that belong together; once all are complete and on disk, they replace those.

    The first is removed before any is replaced, and comes last: where it is, the others belong to it, and those that
    are to be gone are.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in paths]
        yield files

        # all are complete before anything changes; leaving the stack replaces them, the last one first
        for file in files:
            _to_disk(file)
        for path in (paths[0], *gone):
            path.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; once complete and on disk, it gets that name.

    Raises InputError when `path` holds anything already or is no folder, and when the disk does not take it.
    """
    # the name is free, or an empty folder
    target = Path(os.path.realpath(path))
    try:
        held = sorted(os.listdir(target))
    except FileNotFoundError:
        held = []
    except OSError as error:
        raise InputError(f"{path} cannot be written to ({reason(error)}). Name another folder.") from None
    if held:
        raise InputError(f"{path} holds {held[0]} already. Name another folder.")

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with placing(target, _part_of(target)) as part:
            part.mkdir()
            yield part
    except OSError as error:
        raise InputError(f"{path} cannot be written ({reason(error)}). Name another folder, or make room.") from None


def _is_written_into(path: Path) -> bool:
    """Return whether a path is a device or a pipe, or names an open file as /dev/stdout does."""
    is_special = path.exists() and not os.path.isfile(path)
    names_open_file = path.is_symlink() and path.absolute().parts[1] in ("dev", "proc")
    return is_special or names_open_file


def _part_of(path: Path) -> Path:
    """Return the temporary name that this process writes a file or a folder under, and remove what dead ones left."""
    # several processes may write the same file, on several hosts too
    ours = f"{path.name}.{platform.node()}."
    with suppress(OSError):  # a folder that may not be listed
        for name in os.listdir(path.parent):
            number = name.removeprefix(ours).removesuffix(".part")
            is_part = name == f"{ours}{number}.part" and number.isdecimal()
            if is_part and not _is_written(path.parent / name, number):
                _remove(path.parent / name)
    return path.with_name(f"{ours}{os.getpid()}.part")


def _is_written(part: Path, number: str) -> bool:
    """Return whether a part may be written still, by the process of that number."""
    # the process is alive
    with suppress(OSError, OverflowError):
        os.kill(int(number), 0)
        return True
    if part.is_dir():
        return False

    # the number may be that of a process in another container, which has a lock on the file
    with suppress(OSError), open(part, "r+b") as file:
        return not _lock(file.fileno())
    return True


def _lock(descriptor: int) -> bool:
    """Lock an open file until it is closed or the process ends, and return whether no other process has it locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # else a file system without locks
    return True


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Make a file and lock it within the `with`: gives whether no other process has. A process that dies frees it."""
    with open(path, "ab") as file:
        yield _lock(file.fileno())


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _to_disk(file: IO[bytes]) -> None:
    """Wait until what was written to a file is on disk."""
    file.flush()
    os.fsync(file.fileno())


def to_disk(path: Path) -> None:
    """Wait until a file, or a folder with the files in it, is on disk."""
    if path.is_dir():
        for file in path.iterdir():
            _flush(file)
    _flush(path)


def _flush(path: Path) -> None:
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
    refuse_special(source)
    content = source.read_bytes()
    with replacing(target) as file:
        file.write(content)


class LogFile:
    """A file of JSON lines: first all settings, then one line per log, which is on disk at once.

    An earlier log stays until the first line is written. Raises InputError when the disk does not take a line.
    """

    def __init__(self, path: str | os.PathLike, **settings):
        self.path = Path(path)
        with replacing(self.path) as self.file:
            self.log(**settings)
        self.file = open(self.path, "ab")

    def log(self, **values) -> None:
        try:
            self.file.write(json.dumps(values).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({reason(error)}). Make room; its lines stay.") from None

    def close(self) -> None:
        with suppress(OSError):  # of a line that could not be written, which log has told
            self.file.close()
