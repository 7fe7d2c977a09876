"""Which files the names of a corpus stand for."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from formats.files import InputError, reason, refuse_special


def find_files(names: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the files that names of files, folders and globs stand for, in the order of the names, each file once.

    Those of a folder, with its subfolders but without hidden files, and those of a glob are in the order of their
    paths. Raises InputError for a name that stands for nothing, and for a file that cannot be opened.
    """
    found: list[Path] = []
    for name in map(str, names):
        files = []
        for path in _paths_of(name):
            files += _files_of(path)
        if not files:
            raise InputError(f"{name} holds no files. --corpus names text files, folders or globs.")
        found += files

    # each can be opened: better known now than after hours
    for path in found:
        refuse_special(path)
        try:
            open(path, "rb").close()
        except OSError as error:
            raise unreadable(path, error) from None
    return list(dict.fromkeys(found))


def _paths_of(name: str) -> list[Path]:
    """Return the path of that name or, where there is none, those that it matches as a glob."""
    is_glob = glob.escape(name) != name
    if os.path.exists(name) or not is_glob:
        return [Path(name)]
    matches = sorted(map(Path, glob.glob(name, recursive=True)))
    if not matches:
        raise InputError(f"{name} matches no file. --corpus names text files, folders or globs.")
    return matches


def _files_of(path: Path) -> list[Path]:
    """Return the files of a folder that are not hidden, or the file itself."""
    if not path.is_dir():
        return [path]
    found = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        is_hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not is_hidden:
            found.append(file)
    return found


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error that says why a file of a corpus cannot be read."""
    return InputError(f"{path} cannot be read ({reason(error)}). --corpus names a text file, a folder or a glob.")
