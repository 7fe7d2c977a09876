"""Readers: tables, JSON lines, folders of JSON -> an Example per line, or a Bad that says what is wrong with it."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from formats.files import WHERE_TO_GET_IT, InputError, reason, text_lines

READERS_VERSION = 3  # raise it when a reader finds other examples in the same file: cached ones are then read anew


class Example(NamedTuple):
    """What a reader yields for a line that it could read."""

    texts: tuple[str, ...]  # in the order that the task's form takes them
    label: str | None  # as in the file; for multiple choice the number of the right choice, from 1
    where: str  # file and line
    id: str | None = None  # the user's own name of it; None: it has none


class Bad(NamedTuple):
    """What a reader yields for a line that it could not read."""

    where: str  # file and line
    why: str  # and the remedy
    n_texts: int = 0  # if not 0, keep the line as that many empty texts: predictions are numbered by line


# --- lines of a file -------------------------------------------------------------------------------------------------


def numbered_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield each line's number, its text with the line end, and what is wrong with it ("" if nothing).

    Raises InputError when the file is missing or unreadable.
    """
    try:
        with open(path, "rb") as file:
            yield from text_lines(file)
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {WHERE_TO_GET_IT}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).") from None


def read_csv(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield the number of the last line and the fields of each record of a comma-separated, quoted file, and "".

    Raises InputError, with the line, when the file is not text or not CSV: the rest cannot be parsed reliably then.
    """
    reader = csv.reader(_csv_lines(path), strict=True)
    first = 1  # line where a record begins; it may hold newlines
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields, ""
            first = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            limit = f"a field of more than {csv.field_size_limit():,} characters. Is a quote not closed there?"
            raise InputError(f"{path}, line {first}: {limit}") from None
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}). Fetch it again.") from None


def _csv_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file; raise InputError at the first that is not text."""
    for number, line, why in numbered_lines(path):
        if why:
            raise InputError(f"{path}, line {number}: {why}")
        if "\r" in line.rstrip("\r\n"):
            yield from io.StringIO(line, newline="")  # splits also at "\r", the line end of old Macs
        else:
            yield line


def read_tsv(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield each line's number, its fields and what is wrong with it, of a tab-separated file without quoting."""
    for number, line, why in numbered_lines(path):
        line = line.rstrip("\r\n")  # only the line end: an empty last field is a field too
        if line or why:
            yield number, line.split("\t"), why


# --- tables ----------------------------------------------------------------------------------------------------------

Column = int | str  # number from 0, or name in the header


def column_index(column: Column, names: list[str] | None, path: Path) -> int:
    """Return the index of a column. Raises InputError if the header does not name it."""
    if isinstance(column, int):
        return column
    if names is None or column not in names:
        known = ", ".join(names or [])
        raise InputError(f"{path}, line 1: no column {column!r} among {known}. Rename it, or use --columns.")
    return names.index(column)


def table(
    folder: Path,
    file: str,
    texts: tuple[Column, ...],
    label: Column | None = None,
    header: bool = True,
    quoted: bool = False,
) -> Iterator[Example | Bad]:
    """Read a table with one example per line.

    Args:
        texts, label: columns.
        header: whether the first line names the columns.
        quoted: True: comma-separated and quoted; False: tab-separated and not quoted, like GLUE's files.
    """
    path = folder / file

    # a line is kept, with empty texts, where predictions are numbered by line: in a test set without labels
    columns = texts
    n_kept = len(texts)
    if label is not None:
        columns = (*texts, label)
        n_kept = 0
    lines = read_csv(path) if quoted else read_tsv(path)
    separator = "comma" if quoted else "tab"
    for i, (number, fields, why) in enumerate(lines):
        # the first line tells where the columns stand
        if i == 0:
            names = [name.strip() for name in fields] if header else None
            indices = [column_index(column, names, path) for column in columns]
            text_indices = indices[: len(texts)]
            n_needed = max(indices) + 1
            n_columns = len(fields) if header else n_needed  # without names, the last one read is the last
            if header:
                continue

        # the others are examples, or bad
        where = f"{path}, line {number}"
        if why:
            yield Bad(where, why, n_kept)
        elif len(fields) < n_needed:
            yield Bad(where, f"{len(fields)} columns, {n_needed} are needed. Fix the line or remove it.", n_kept)
        elif len(fields) > n_columns and any(fields[n_columns:]):
            why = f"{len(fields)} columns, {n_columns} are known. Is there a {separator} in a text?"
            yield Bad(where, why, n_kept)
        else:
            chosen = tuple([fields[i] for i in text_indices])
            answer = None if label is None else fields[indices[-1]]
            yield Example(chosen, answer, where)


def scored_table(folder: Path, file: str, texts: tuple[Column, ...], label: Column) -> Iterator[Example | Bad]:
    """Read a table whose labels must be numbers."""
    for example in table(folder, file, texts, label):
        if isinstance(example, Example) and as_number(example.label) is None:
            why = f"the score {example.label!r} is not a number. Fix the line or remove it."
            yield Bad(example.where, why)
        else:
            yield example


def as_number(text: str) -> float | None:
    """Return the finite number that a text spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- JSON lines ------------------------------------------------------------------------------------------------------


def json_lines(
    folder: Path, file: str, texts: tuple[str, ...], label: str | None = None, choices: str | None = None
) -> Iterator[Example | Bad]:
    """Read a file with one JSON object per line; `choices` names a field that holds a list of texts."""
    path = folder / file
    for number, line, why in numbered_lines(path):
        where = f"{path}, line {number}"
        if why:
            yield Bad(where, why)
        elif line.strip():
            yield json_example(line.rstrip("\r\n"), where, texts, label, choices)


def json_object(line: str, where: str, parse: Callable[[str], Any] = json.loads) -> dict | Bad:
    """Return the object in a line."""
    try:
        value = parse(line)
    except (ValueError, RecursionError) as error:
        return Bad(where, f"not JSON ({error}). Fix the line or remove it.")
    if not isinstance(value, dict):
        return Bad(where, "not a JSON object. Fix the line or remove it.")
    return value


def json_example(
    line: str, where: str, texts: tuple[str, ...], label: str | None, choices: str | None
) -> Example | Bad:
    """Return the example in a line that is a JSON object."""
    value = json_object(line, where)
    if isinstance(value, Bad):
        return value

    # it has every field
    fields = texts if choices is None else (*texts, choices)
    for name in fields:
        if name not in value:
            known = ", ".join(value)
            return Bad(where, f"no field {name!r} among {known}. Fix the line, or use --columns.")

    # and texts in them
    found = [value[name] for name in texts]
    if choices is not None:
        if not isinstance(value[choices], list) or len(value[choices]) < 2:
            return Bad(where, f"{choices!r} is not a list of two or more texts. Fix the line.")
        found += value[choices]
    if not all(isinstance(text, str) for text in found):
        return Bad(where, "a field that should be a text is a number, a list or nothing. Fix the line.")

    # the label may be missing, or a number
    answer = None if label is None else value.get(label)
    if isinstance(answer, dict | list):
        return Bad(where, f"{label!r} is neither a text nor a number. Fix the line.")
    if answer is not None:
        answer = str(answer)
    return Example(tuple(found), answer, where)


# --- readers of one data set -----------------------------------------------------------------------------------------


def cloze(folder: Path, file: str, labelled: bool = True) -> Iterator[Example | Bad]:
    """Read one file of the Story Cloze Test: id, four sentences, two endings, the right one (1 or 2)."""
    path = folder / file
    for number, fields, _ in read_csv(path):
        where = f"{path}, line {number}"
        last = fields[-1].strip()

        # the names of the columns
        if number == 1:
            if labelled and last.isdigit():
                yield Bad(where, "a story where the line of column names should be. Put one before it.")
            continue

        # a story
        why = _wrong_with_story(fields, labelled)
        if why:
            yield Bad(where, why)
        else:
            texts = (" ".join(fields[1:5]), fields[5], fields[6])
            yield Example(texts, last if labelled else None, where)


def _wrong_with_story(fields: list[str], labelled: bool) -> str:
    """Return what is wrong with a line of the Story Cloze Test, "" if nothing."""
    if labelled and len(fields) != 8:
        return f"{len(fields)} columns, not 8: id, 4 sentences, 2 endings, right one. Fix the line."
    if not labelled and len(fields) != 7:
        return f"{len(fields)} columns, not 7: id, 4 sentences, 2 endings. Fix the line."
    if labelled and fields[7].strip() not in ("1", "2"):
        return f"the right ending is {fields[7]!r}, not 1 or 2. Fix the line."
    if not "".join(fields[1:5]).strip():
        return "the story is empty. Fix the line or remove it."
    if not "".join(fields[5:7]).strip():
        return "both endings are empty. Fix the line or remove it."
    return ""


def paraphrases(folder: Path, file: str, ids_file: str, listed: bool) -> Iterator[Example | Bad]:
    """Read Microsoft's training file of MRPC: label, two ids, two texts.

    Args:
        ids_file: pairs of ids, a line each.
        listed: True: the pairs on that list; False: all others.
    """
    ids = set()
    for _, fields, _ in read_tsv(folder / ids_file):
        ids.add(tuple(fields[:2]))
    for example in table(folder, file, (1, 2, 3, 4), 0):
        if isinstance(example, Bad):
            yield example
        elif (example.texts[:2] in ids) == listed:
            yield Example(example.texts[2:], example.label, example.where)


def race(folder: Path, file: str) -> Iterator[Example | Bad]:
    """Read a folder of RACE, in the order of names: each file in it one JSON object, each question one example."""
    paths = sorted((folder / file).glob("*.txt"), key=lambda path: path.name)
    if not paths:
        raise InputError(f"{folder / file} holds no .txt files. The data folder is the one with train, dev and test.")
    for path in paths:
        try:
            value = json.loads(path.read_text(encoding="utf-8-sig"))
            yield from _questions(value, path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            yield Bad(str(path), f"not an article with questions, options and answers ({error!r}). Fetch it again.")


def _questions(value: dict[str, Any], path: Path) -> Iterator[Example | Bad]:
    """Yield an example for each question about an article."""
    columns = zip(value["questions"], value["options"], value["answers"], strict=True)
    for i, (question, options, answer) in enumerate(columns, 1):
        where = f"{path}, question {i}"
        texts = (value["article"], question, *options)
        is_whole = len(texts) == 6 and all(isinstance(text, str) for text in texts)
        # a text in the place of a list would be four letters
        if not is_whole or isinstance(options, str):
            yield Bad(where, "not an article, a question and four options. Fetch it again.")
        elif answer not in ("A", "B", "C", "D"):
            yield Bad(where, f"the answer {answer!r} is none of A, B, C, D. Fetch it again.")
        else:
            yield Example(texts, str(1 + "ABCD".index(answer)), where)
