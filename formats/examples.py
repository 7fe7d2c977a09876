"""Readers: tables, JSON lines, folders of JSON -> an Example per line, or a Bad that says what is wrong with it."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from formats.files import InputError


class Example(NamedTuple):
    """What a reader yields for a line that it could read."""

    texts: tuple[str, ...]  # in the order that the task's form takes them
    label: str | None  # as in the file; for multiple choice the number of the right choice, from 1
    where: str  # file and line


class Bad(NamedTuple):
    """What a reader yields for a line that it could not read."""

    where: str  # file and line
    why: str  # and the remedy
    n_texts: int = 0  # if not 0, keep the line as that many empty texts: predictions are numbered by line


Reader = Callable[[Path], Iterator[Example | Bad]]  # folder of the data set -> its examples


# --- reading files ---------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield each line's number, its text with the line end, and what is wrong with it ("" if nothing).

    Raises InputError when the file is missing or unreadable.
    """
    n_before = 0  # bytes of the lines before this one
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                text, why = "", ""
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    why = f"not UTF-8 (byte {n_before + error.start:,}). If it is Latin-1, convert it: "
                    why += "iconv -f latin1 -t utf-8 OLD > NEW"
                if (nul := raw.find(b"\0")) >= 0:
                    why = f"a NUL byte (byte {n_before + nul:,}): the file is damaged. Fetch it again."
                yield number, text, why
                n_before += len(raw)
    except FileNotFoundError:
        raise InputError(f"{path} is missing. See 'Weights and data' in README.md for where to get it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None


def read_csv(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield the number of the last line and the fields of each record of a comma-separated, quoted file.

    Raises InputError, with the line, when the file is not text or not CSV: the rest cannot be parsed reliably then.
    """

    def lines() -> Iterator[str]:
        for number, line, why in read_lines(path):
            if why:
                raise InputError(f"{path}, line {number}: {why}")
            yield from io.StringIO(line, newline="")  # splits also at "\r", the line end of old Macs

    reader, start = csv.reader(lines(), strict=True), 1
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields, ""
            start = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):  # name the line where the record begins, which may hold newlines
            limit = f"a field of more than {csv.field_size_limit():,} characters. Is a quote not closed there?"
            raise InputError(f"{path}, line {start}: {limit}") from None
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}). Fetch it again.") from None


def read_tsv(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield each line's number, its fields and what is wrong with it, of a tab-separated file without quoting."""
    for number, line, why in read_lines(path):
        line = line.rstrip("\r\n")  # only the line end: an empty last field is a field too
        if line or why:
            yield number, line.split("\t"), why


Column = int | str


def column_index(column: Column, names: list[str] | None, path: Path) -> int:
    """Return the index of a column. Raises InputError if the header does not name it."""
    if isinstance(column, int):
        return column
    if names is None or column not in names:
        raise InputError(
            f"{path}, line 1: no column {column!r} among {', '.join(names or [])}. Rename it, or use --columns."
        )
    return names.index(column)


def table(
    folder: Path,
    file: str,
    texts: tuple[Column, ...],
    label: Column | None = None,
    header: bool = True,
    quoted: bool = False,
    pairs: tuple[tuple[Column, Column], str, bool] | None = None,
    scores: bool = False,
) -> Iterator[Example | Bad]:
    """Read a table with one example per line.

    Args:
        texts, label: columns, by number from 0 or by the name in the header.
        header: whether the first line names the columns.
        quoted: True: comma-separated and quoted; False: tab-separated and not quoted, like GLUE's files.
        pairs: two columns of ids, a file of pairs of ids, and whether to keep these pairs (True) or all others.
        scores: whether labels must be numbers.
    """
    path, columns, ids, wanted = folder / file, None, [], None
    for number, fields, why in (read_csv if quoted else read_tsv)(path):
        where = f"{path}, line {number}"
        if columns is None:
            names = [name.strip() for name in fields] if header else None
            columns = [column_index(column, names, path) for column in texts]
            i_label = None if label is None else column_index(label, names, path)
            if pairs:
                ids, wanted = [column_index(column, names, path) for column in pairs[0]], read_pairs(folder / pairs[1])
            needed = max([*columns, i_label or 0, *ids]) + 1
            if header:
                continue
        n_kept = len(texts) if label is None else 0
        if why:
            yield Bad(where, why, n_kept)
        elif len(fields) < needed:
            yield Bad(where, f"{len(fields)} columns, {needed} are needed. Fix the line or remove it.", n_kept)
        elif scores and as_number(fields[i_label]) is None:
            yield Bad(where, f"the score {fields[i_label]!r} is not a number. Fix the line or remove it.", n_kept)
        elif wanted is None or (tuple(fields[i] for i in ids) in wanted) == pairs[2]:
            yield Example(tuple(fields[i] for i in columns), None if i_label is None else fields[i_label], where)


def as_number(text: str) -> float | None:
    """Return the finite number that a text spells, or None."""
    try:
        return value if math.isfinite(value := float(text)) else None
    except ValueError:
        return None


def read_pairs(path: Path) -> set[tuple[str, str]]:
    """Return the pairs of ids in a file of two columns."""
    return {tuple(fields[:2]) for _, fields, _ in read_tsv(path)}


def json_lines(
    folder: Path, file: str, texts: tuple[str, ...], label: str | None = None, choices: str | None = None
) -> Iterator[Example | Bad]:
    """Read a file with one JSON object per line; `choices` names a field that holds a list of texts."""
    path = folder / file
    for number, line, why in read_lines(path):
        where = f"{path}, line {number}"
        if why:
            yield Bad(where, why)
        elif line.strip():
            yield json_example(line.rstrip("\r\n"), where, texts, label, choices)


def json_example(
    line: str, where: str, texts: tuple[str, ...], label: str | None, choices: str | None
) -> Example | Bad:
    """Return the example in a line that is a JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Bad(where, f"not JSON ({error}). Fix the line or remove it.")
    if not isinstance(value, dict):
        return Bad(where, "not a JSON object. Fix the line or remove it.")
    if missing := [name for name in (*texts, *([choices] if choices else [])) if name not in value]:
        return Bad(where, f"no field {missing[0]!r} among {', '.join(value)}. Fix the line, or use --columns.")
    found = [value[name] for name in texts]
    if choices:
        if not isinstance(value[choices], list) or len(value[choices]) < 2:
            return Bad(where, f"{choices!r} is not a list of two or more texts. Fix the line.")
        found += value[choices]
    if any(not isinstance(text, str) for text in found):
        return Bad(where, "a field that should be a text is none. Fix the line.")
    answer = None if label is None else value.get(label)
    if isinstance(answer, dict | list):
        return Bad(where, f"{label!r} is neither a text nor a number. Fix the line.")
    return Example(tuple(found), None if answer is None else str(answer), where)


# --- readers of one data set -----------------------------------------------------------------------------------------


def cloze(folder: Path, file: str, labelled: bool = True) -> Iterator[Example | Bad]:
    """Read one file of the Story Cloze Test: id, four sentences, two endings, the right one (1 or 2)."""
    path, n_columns = folder / file, 8 if labelled else 7
    for number, fields, _ in read_csv(path):
        where = f"{path}, line {number}"
        if number == 1:
            if labelled and fields[-1].strip().isdigit():
                yield Bad(where, "a story where the line of column names should be. Put one before it.")
        elif len(fields) != n_columns:
            parts = "id, 4 sentences, 2 endings" + ", right one" * labelled
            yield Bad(where, f"{len(fields)} columns, not {n_columns}: {parts}. Fix the line.")
        elif labelled and fields[-1].strip() not in ("1", "2"):
            yield Bad(where, f"the right ending is {fields[-1]!r}, not 1 or 2. Fix the line.")
        elif not (story := " ".join(fields[1:5])).strip():
            yield Bad(where, "the story is empty. Fix the line or remove it.")
        elif not any(map(str.strip, fields[5:7])):
            yield Bad(where, "both endings are empty. Fix the line or remove it.")
        else:
            yield Example((story, fields[5], fields[6]), fields[-1].strip() if labelled else None, where)


def race(folder: Path, level: str) -> Iterator[Example | Bad]:
    """Read a folder of RACE, in the order of file names: each file one JSON object, each question one example."""
    paths = sorted((folder / level).glob("*.txt"), key=lambda path: path.name)
    if not paths:
        raise InputError(f"{folder / level} holds no .txt files. --data_dir names the folder with train, dev and test.")
    for path in paths:
        try:
            value = json.loads(path.read_text(encoding="utf-8-sig"))
            columns = [value[name] for name in ("questions", "options", "answers")]
            for i, (question, options, answer) in enumerate(zip(*columns, strict=True), 1):
                where, texts = f"{path}, question {i}", (value["article"], question, *options)
                if len(texts) != 6 or isinstance(options, str) or not all(isinstance(text, str) for text in texts):
                    yield Bad(where, "not an article, a question and four options. Fetch it again.")
                elif answer not in tuple("ABCD"):
                    yield Bad(where, f"the answer {answer!r} is none of A, B, C, D. Fetch it again.")
                else:
                    yield Example(texts, str(1 + "ABCD".index(answer)), where)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            yield Bad(str(path), f"not an article with questions, options and answers ({error!r}). Fetch it again.")


# --- the user's own data ---------------------------------------------------------------------------------------------

OWN_FIELDS = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("text_a", "text_b"),
    "multiple_choice": ("context",),
}
FIELDS = OWN_FIELDS | {"reading": ("context", "question")}
SUFFIXES = (".csv", ".tsv", ".jsonl")


def parse_columns(text: str | None) -> dict[str, str]:
    """Return field -> column of `text=review,label=stars`. Raises ValueError for anything else."""
    pairs = [pair.split("=") for pair in (text or "").split(",") if pair]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"--columns {text!r} is not like text=review,label=stars")
    return {field.strip(): column.strip() for field, column in pairs}


def own_examples(
    folder: Path, file: str, form: str, columns: dict[str, str], labelled: bool
) -> Iterator[Example | Bad]:
    """Read a file of the user's: .csv (quoted), .tsv (not quoted) or .jsonl, its columns named as in OWN_FIELDS.

    Args:
        columns: field -> its column, for columns with other names.
        labelled: True: each example must have a label; False: it may have one.
    """
    path, fields = folder / file, FIELDS[form]
    texts, label = tuple(columns.get(name, name) for name in fields), columns.get("label", "label")
    if path.suffix == ".jsonl":
        choices = columns.get("choices", "choices") if form in ("multiple_choice", "reading") else None
        examples = json_lines(folder, file, texts, label, choices)
    else:
        names = header_of(path)
        if form in ("multiple_choice", "reading"):
            texts += tuple(choice_columns(columns, names))
            if len(texts) < len(fields) + 2:
                raise InputError(f"{path}, line 1: no columns choice_1, choice_2, ... Name them so, or use --columns.")
        has_label = labelled or label in names
        examples = table(folder, file, texts, label if has_label else None, quoted=path.suffix == ".csv")
    for example in examples:
        yield check_own(example, form, labelled)


def header_of(path: Path) -> list[str]:
    """Return the names of the columns of a table."""
    _, names, _ = next((read_csv if path.suffix == ".csv" else read_tsv)(path), (1, [], ""))
    return [name.strip() for name in names]


def choice_columns(columns: dict[str, str], names: list[str]) -> list[str]:
    """Return the names of the columns choice_1, choice_2, ... up to the first missing one."""
    found = []
    while (name := columns.get(key := f"choice_{len(found) + 1}", key)) in names:
        found.append(name)
    return found


def check_own(example: Example | Bad, form: str, labelled: bool) -> Example | Bad:
    """Return the example, a multiple-choice label as a number from 1, or a Bad that says what is wrong with it."""
    if isinstance(example, Bad):
        return example
    texts, label, where = example
    if any(not text.strip() for text in texts):
        return Bad(where, "an empty text. Fix the line or remove it.")
    if label is None or not label.strip():
        return Bad(where, "no label. Fix the line or remove it.") if labelled else Example(texts, None, where)
    label = label.strip()
    if not label.isprintable():
        return Bad(where, f"the label {label!r} holds a tab, a newline or the like. Fix the line.")
    if form in ("multiple_choice", "reading"):
        choices = texts[len(FIELDS[form]) :]
        if label in choices:
            label = str(1 + choices.index(label))
        elif not re.fullmatch("[1-9][0-9]*", label) or int(label) > len(choices):
            return Bad(
                where, f"the label {label!r} is neither a number from 1 to {len(choices)} nor one of the choices."
            )
    return Example(texts, label, where)
