"""The user's own files, as pandas and spreadsheets write them and as hubs hand them out -> an Example per record.

A table (.csv, .tsv, .txt) is separated by what its line of names shows, and its texts may be quoted. Where --columns
gives numbers it has no line of names. A .txt may be fastText's. .jsonl holds an object a line, .json also a list.
"""

import csv
import json
import re
import reprlib
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from formats.examples import Bad, Example, as_number, json_object, numbered_lines
from formats.files import InputError, is_utf16, reason, refuse_special

OWN_FIELDS = {
    "classification": ("text",),
    "regression": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("text_a", "text_b"),
    "multiple_choice": ("context",),
}
FIELDS = OWN_FIELDS | {"reading": ("context", "question")}
CHOICE_FORMS = ("multiple_choice", "reading")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt")


def parse_columns(text: str | None) -> dict[str, str]:
    """Return field -> column of `text=review,label=stars`. Raises ValueError for anything else."""
    pairs = [pair.split("=", 1) for pair in (text or "").split(",") if pair]
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"--columns {text!r} is not like text=review,label=stars")
    columns = {name.strip(): column.strip() for name, column in pairs}
    if len(columns) < len(pairs):
        raise ValueError(f"--columns {text!r} names a field twice")
    return columns


@dataclass(frozen=True)
class OwnData:
    """How the user's own files are read."""

    form: str  # a key of FIELDS
    columns: dict[str, str] = field(default_factory=dict)  # field -> its column, for columns with other names
    encoding: str | None = None  # None: UTF-8, or UTF-16 where the file begins with its mark
    first_choice: int = 1  # number of the first choice in labels

    def __post_init__(self):
        """Raise InputError for a column of a field that the form does not have: nothing would be read from it."""
        known = [*FIELDS[self.form], "label", "id"]
        if self.has_choices:
            known += ["choices", "choice_1"]
        for name in self.columns:
            is_choice = self.has_choices and re.fullmatch(r"choice_[1-9]\d*", name)
            if name not in known and not is_choice:
                raise InputError(f"--columns: {name!r} is no field of {self.form}, which has {', '.join(known)}.")

    @cached_property
    def has_choices(self) -> bool:
        return self.form in CHOICE_FORMS

    @cached_property
    def text_columns(self) -> list[str]:
        return [self.column(name) for name in FIELDS[self.form]]

    def column(self, name: str) -> str:
        """Return the column of a field."""
        return self.columns.get(name, name)

    def needed(self, labelled: bool) -> list[str]:
        """Return the columns that a table must have."""
        names = list(FIELDS[self.form])
        if self.has_choices and "choices" not in self.columns:
            names += ["choice_1", "choice_2"]
        names += [name for name in self.columns if name not in names and name != "label"]
        if labelled:
            names.append("label")
        return [self.column(name) for name in names]


def own_examples(folder: Path, file: str, own: OwnData, labelled: bool | None) -> Iterator[Example | Bad]:
    """Read a file of the user's.

    Args:
        labelled: True: each example must have a label; False: it may have one; None: labels are not read.
    """
    path = folder / file

    # its kind: by its name, and fastText's by how it begins
    if path.suffix.lower() in (".json", ".jsonl"):
        found = json_records(path, own.encoding)
    elif is_fasttext(path, own.encoding):
        found = fasttext_records(path, own.encoding)
    else:
        found = table_records(path, own, bool(labelled))

    # its records as examples
    for where, record in found:
        yield own_example(record, where, own, labelled)


# --- one example -----------------------------------------------------------------------------------------------------


def own_example(record: dict[str, Any] | Bad, where: str, own: OwnData, labelled: bool | None) -> Example | Bad:
    """Return the example in a record, a multiple-choice label as a number from 1, or a Bad that says what is wrong."""
    if isinstance(record, Bad):
        return record

    # its texts
    found = []
    for column in own.text_columns:
        value = record[column] if column in record else value_at(record, column)
        if value is None and column not in record:
            return Bad(where, f"no field {column!r} among {', '.join(record)[:150]}. Fix the line, or use --columns.")
        found.append(value)

    # its choices
    if own.has_choices:
        choices = choices_of(record, own)
        if isinstance(choices, str):
            return Bad(where, choices)
        found += choices

    # all of them are texts that hold something
    texts = tuple([value if isinstance(value, str) else as_text(value) for value in found])
    if None in texts:
        return Bad(where, "a field that should be a text is a list or an object. Fix the line, or use --columns.")
    if not all(map(str.strip, texts)):
        return Bad(where, "an empty text. Fix the line or remove it.")

    # its name, which is one line; a column that happens to be called id may hold something else
    name = None
    column = own.column("id")
    if column in record or "id" in own.columns:
        name = as_text(value_at(record, column))
        if not name or not name.isprintable():
            if "id" in own.columns:
                return Bad(where, f"no text of one line in {column!r}. Fix the line, or use --columns.")
            name = None

    # its label
    label = None
    if labelled is not None:
        label = label_of(record, texts, where, own, labelled)
        if isinstance(label, Bad):
            return label
    return Example(texts, label, where, name)


def label_of(
    record: dict[str, Any], texts: tuple[str, ...], where: str, own: OwnData, labelled: bool
) -> str | None | Bad:
    """Return the label of a record, None for none, or a Bad that says what is wrong with it."""
    # it is one line
    column = own.column("label")
    label = as_text(value_at(record, column))
    if label is None:
        return Bad(where, f"{column!r} is neither a text nor a number. Fix the line.")
    label = label.strip()
    if not label and labelled:
        return Bad(where, "no label. Fix the line or remove it.")
    if not label:
        return None
    if not label.isprintable():
        return Bad(where, f"the label {reprlib.repr(label)} holds a tab, a newline or the like. Fix the line.")
    if not own.has_choices:
        return label

    # of choices it is a number
    if label == "-1" and not labelled:  # what hubs write for an unknown one
        return None
    choices = texts[len(FIELDS[own.form]) :]
    right = right_choice(label, choices, own.first_choice)
    return Bad(where, right) if isinstance(right, str) else str(right)


def value_at(value: Any, column: str) -> Any:
    """Return what stands in a column: a field, or `question.stem` of a field in a field; in lists, of each item."""
    if isinstance(value, list):
        return [value_at(item, column) for item in value]
    if not isinstance(value, dict):
        return None
    if column in value:
        return value[column]
    first, dot, rest = column.partition(".")
    if dot and first in value:
        return value_at(value[first], rest)
    return None


def as_text(value: Any) -> str | None:
    """Return a text or a number as a text, an empty one for nothing; None for a list or an object."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return None
    return "" if value is None else str(value)


def choices_of(record: dict[str, Any], own: OwnData) -> list | str:
    """Return the choices of a record, from a list or from columns choice_1, choice_2, ..., or what is wrong."""
    # a list, or an object that names each
    column = own.column("choices")
    found = value_at(record, column)
    if isinstance(found, dict):
        found = list(found.values())

    # without one: columns, numbered without a gap
    if found is None and "choices" not in own.columns:
        taken = []
        for i in range(len(record)):
            name = own.column(f"choice_{i + 1}")
            if name not in record:
                break
            taken.append(name)
        for name in record.keys() | own.columns.keys():
            if re.fullmatch(r"choice_\d+", name) and own.column(name) not in taken:
                return f"{own.column(name)!r} cannot be read: choices are numbered 1, 2, 3, ... without a gap."
        found = [record[name] for name in taken]
        column = "choice_1, choice_2, ..."
    if not isinstance(found, list) or len(found) < 2:
        return f"{column!r} is not a list of two or more texts. Fix the line, or use --columns."
    return found


def right_choice(label: str, choices: tuple[str, ...], first_choice: int) -> int | str:
    """Return the number of the right choice, from 1, or what is wrong with its label.

    A number is the number of a choice, also where a choice is that number. Else it is a letter or a choice's text.
    """
    # which choices it may mean
    value = as_number(label)
    found = set()
    if value is not None:
        found.add(value - first_choice + 1)
    else:
        if label in choices:
            found.add(1 + choices.index(label))
        if len(label) == 1 and label in string.ascii_letters:
            found.add(1 + string.ascii_uppercase.find(label.upper()))
    found = [int(number) for number in found if number in range(1, len(choices) + 1)]
    if len(found) == 1:
        return found[0]

    # two, or none
    shown = reprlib.repr(label)
    if found:
        return f"the label {shown} may be the letter of a choice or the text of another. Give its number."
    last = first_choice + len(choices) - 1
    why = f"the label {shown} is neither a number from {first_choice} to {last} nor one of the choices."
    if value == 0:
        why += " If choices are counted from 0: --first_choice 0"
    return why


# --- lines, JSON, fastText -------------------------------------------------------------------------------------------


def encoding_of(path: Path, encoding: str | None) -> str:
    """Return the encoding of a file: the one given, or UTF-16 by its mark, or UTF-8. Raises InputError."""
    refuse_special(path)
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except FileNotFoundError:
        raise InputError(f"{path} is missing. Is its name right?") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).") from None
    if start == b"\x1f\x8b":
        raise InputError(f"{path} is compressed. Unpack it: gunzip")
    if encoding is None:
        encoding = "utf-16" if is_utf16(start) else "utf-8"
    return "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding


def own_lines(path: Path, encoding: str | None) -> Iterator[tuple[int, str, str]]:
    """Yield what numbered_lines does, of a file in any encoding: the one given, or UTF-16 by its mark, or UTF-8."""
    # UTF-8 has its own reader; what it advises is put in terms of --encoding
    encoding = encoding_of(path, encoding)
    if encoding == "utf-8-sig":
        for number, line, why in numbered_lines(path):
            if why:
                why = why.replace("convert it: iconv -f latin1 -t utf-8 OLD > NEW", "use --encoding latin-1")
                if why.startswith("a NUL byte"):
                    why = "a NUL byte. If it is UTF-16 without its mark, use --encoding utf-16-le"
            yield number, line, why
        return

    # in another, what cannot be decoded ends the file
    number = 0
    try:
        with open(path, encoding=encoding, newline="\n") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix("\ufeff")
                why = "a NUL character. Is it another encoding? Use --encoding." if "\0" in line else ""
                yield number, line, why
    except UnicodeError as error:
        raise InputError(f"{path}, line {number + 1}: not {encoding} ({error}). Name another --encoding.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).") from None


def json_records(path: Path, encoding: str | None) -> Iterator[tuple[str, dict | Bad]]:
    """Yield place and object of each line that holds one; .json may also hold a list, or objects over several lines."""
    # where the first line holds no object, they do not stand on lines
    if path.suffix.lower() == ".json":
        first = ""
        for _, first, _ in own_lines(path, encoding):
            if first.strip():
                break
        if isinstance(json_record(first, ""), Bad):
            yield from json_items(path, encoding)
            return

    # an object a line
    for number, line, why in own_lines(path, encoding):
        where = f"{path}, line {number}"
        if why:
            yield where, Bad(where, why)
        elif line.strip():
            yield where, json_record(line, where)


def json_items(path: Path, encoding: str | None) -> Iterator[tuple[str, dict | Bad]]:
    """Yield place and object of each item of a list, or of objects that follow each other."""
    # all values of the file, lists of them opened
    text = "".join(_text_lines(path, encoding)).strip()
    items = []
    end = 0
    try:
        while end < len(text):
            value, end = DECODER.raw_decode(text, end)
            items += value if isinstance(value, list) else [value]
            end = SPACE.match(text, end).end()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, item {len(items) + 1}: not JSON ({error}). Fix it or remove it.") from None

    # those that are objects
    for i, item in enumerate(items, 1):
        where = f"{path}, item {i}"
        if isinstance(item, dict):
            yield where, item
        else:
            yield where, Bad(where, "not a JSON object. Fix it or remove it.")


def json_record(line: str, where: str) -> dict | Bad:
    """Return the object in a line."""
    return json_object(line, where, DECODER.decode)


def _nothing(name: str) -> None:
    """Return what a number that is none (NaN) is taken for."""
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


DECODER = json.JSONDecoder(parse_constant=_nothing, object_pairs_hook=_object)
SPACE = re.compile(r"[\s,]*")  # between objects


FASTTEXT = "__label__"


def is_fasttext(path: Path, encoding: str | None) -> bool:
    """Return whether a file begins with a label of fastText's."""
    for _, line, _ in own_lines(path, encoding):
        return line.startswith(FASTTEXT)
    return False


def fasttext_records(path: Path, encoding: str | None) -> Iterator[tuple[str, dict | Bad]]:
    """Yield place, text and label of each line `__label__LABEL TEXT`."""
    for number, line, why in own_lines(path, encoding):
        where = f"{path}, line {number}"
        label, _, text = line.strip().partition(" ")
        if why:
            yield where, Bad(where, why)
        elif not label.startswith(FASTTEXT) or text.startswith(FASTTEXT):
            yield where, Bad(where, f"not one {FASTTEXT}, and then a text. Fix the line or remove it.")
        else:
            yield where, {"text": text, "label": label.removeprefix(FASTTEXT)}


# --- tables ----------------------------------------------------------------------------------------------------------

SEPARATORS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar", "@": "an @"}
csv.field_size_limit(2**24)  # characters; the default is 131,072


class Dialect(NamedTuple):
    """How the fields of a table are told apart."""

    separator: str
    quote: str | None  # around texts that hold a separator, a newline or a quote (doubled); None: nothing is quoted
    has_names: bool  # in its first line
    n_before: int = 0  # lines before that: Excel's `sep=;`


def read_table(path: Path, encoding: str | None, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the fields of each record. Raises csv.Error, and InputError for no text."""
    quoting = {"quoting": csv.QUOTE_NONE}
    if dialect.quote is not None:
        quoting = {"quotechar": dialect.quote}
    reader = csv.reader(_text_lines(path, encoding), delimiter=dialect.separator, strict=True, **quoting)
    for fields in reader:
        if fields and reader.line_num > dialect.n_before:
            yield reader.line_num, fields


def _text_lines(path: Path, encoding: str | None) -> Iterator[str]:
    """Yield the lines of a file, also those that end as on old Macs; raise InputError for one that is no text."""
    try:
        with open(path, encoding=encoding_of(path, encoding), newline="") as file:
            for number, line in enumerate(file):
                if "\0" in line:
                    break
                yield line if number > 0 else line.removeprefix("\ufeff")
            else:
                return
    except UnicodeError:
        pass

    # which line it is, and why
    for number, _, why in own_lines(path, encoding):
        if why:
            raise InputError(f"{path}, line {number}: {why}")


def table_records(path: Path, own: OwnData, labelled: bool) -> Iterator[tuple[str, dict | Bad]]:
    """Yield place and fields, by their columns, of each line of a table. Raises InputError where it is none."""
    needed = own.needed(labelled)
    dialect = find_dialect(path, own.encoding, needed)
    if dialect is None:  # nothing in it
        return
    separator = SEPARATORS.get(dialect.separator, repr(dialect.separator))
    place = f"{path}, line "
    names = None
    first = 1  # line where a record begins; it may hold newlines
    try:
        for number, fields in read_table(path, own.encoding, dialect):
            first = number + 1

            # the line of names; a spreadsheet ends it with columns that have none
            if names is None:
                names = [name.strip() for name in fields]
                if not dialect.has_names:
                    names = [str(i) for i in range(len(fields))]
                while names and not names[-1]:
                    names.pop()
                n_needed = check_names(path, names, needed, dialect, own)
                if dialect.has_names:
                    continue

            # an example
            where = place + str(number)
            if len(fields) > len(names) and any(fields[len(names) :]):
                why = f"{len(fields)} columns, {len(names)} in the first line. Quote a text that holds {separator}."
                yield where, Bad(where, why)
            elif len(fields) < n_needed:
                why = f"{len(fields)} columns, {n_needed} are needed. Fix the line or remove it."
                yield where, Bad(where, why)
            else:
                yield where, dict(zip(names, fields, strict=False))
    except csv.Error as error:
        why = f"not CSV ({error}). Is a quote not closed, or a text that holds quotes not quoted?"
        if "field limit" in str(error):
            why = f"a field of more than {csv.field_size_limit():,} characters. Is a quote not closed there?"
        raise InputError(f"{path}, line {first}: {why}") from None


def check_names(path: Path, names: list[str], needed: list[str], dialect: Dialect, own: OwnData) -> int:
    """Return how many fields a line needs. Raises InputError for a column that is missing, or there twice."""
    start = f"{path}, line {1 + dialect.n_before}"

    # none is missing
    for name in needed:
        if name not in names:
            shown = ", ".join(names)[:100]
            remedy = "Rename it, or use --columns"
            if not own.columns:
                numbered = ",".join(f"{column}={i}" for i, column in enumerate(needed))
                remedy += f"; without a line of names: --columns {numbered}"
            if not dialect.has_names:
                remedy = "Without a line of names --columns gives every field a number, from 0."
            raise InputError(f"{start}: no column {name!r} among {shown}. {remedy}")

    # none that is read is there twice
    read = [*needed, own.column("label"), own.column("id")]
    for name in names:
        is_read = name in read or name.startswith("choice_")
        if is_read and names.count(name) > 1:
            raise InputError(f"{start}: two columns {name!r}. Rename one of them.")
    return 1 + max(names.index(name) for name in needed)


def find_dialect(path: Path, encoding: str | None, needed: list[str]) -> Dialect | None:
    """Return how a table's fields are told apart; None if it has no line.

    The separator is the one of the file's kind if the first line then has the columns needed, or another one. A comma
    is quoted as in CSV; with another separator, texts are quoted if the whole file can be read so. Raises InputError
    where it can be read in two ways.
    """
    # Excel's first line names the separator
    lines = _text_lines(path, encoding)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return None
    numbers = {name for name in needed if name.isdigit()}
    if re.fullmatch(r"sep=.\s*", first):
        separator = first[4]
        names = split_line(next(lines, ""), separator)
        return find_quote(path, encoding, Dialect(separator, '"', numbers <= set(names), 1))

    # which separators show the columns
    of_suffix = "," if path.suffix.lower() == ".csv" else "\t"
    separators = [of_suffix, *(separator for separator in SEPARATORS if separator != of_suffix)]
    fields = {separator: split_line(first, separator) for separator in separators}
    if any(numbers <= set(names) for names in fields.values()):  # numbers may be names: pandas writes 0,1
        fitting = [separator for separator in separators if set(needed) <= set(fields[separator])]
        if fitting:
            return find_quote(path, encoding, Dialect(fitting[0], '"', True))
        # none does: the one that shows most columns is meant
        counts = [len(fields[separator]) for separator in separators]
        most = separators[counts.index(max(counts))]
        return Dialect(most, '"', True)

    # by numbers: the one with which all lines have the same number of fields
    n_needed = 1 + max(map(int, numbers))
    fitting = []
    for separator in separators:
        # a quoted field may go on in the next line
        if len(fields[separator]) < n_needed and '"' not in first:
            continue
        dialect = find_quote(path, encoding, Dialect(separator, '"', False))
        if scan(path, encoding, dialect).n_fields >= n_needed:
            fitting.append(dialect)
            if separator == of_suffix:
                break
    if len(fitting) > 1:
        shown = " or ".join(SEPARATORS[dialect.separator] for dialect in fitting)
        raise InputError(f"{path} may be separated by {shown}. Put a line such as sep={fitting[0].separator} first.")
    return fitting[0] if fitting else Dialect(of_suffix, '"', False)


def split_line(line: str, separator: str) -> list[str]:
    """Return the fields of the first line."""
    for fields in csv.reader([line], delimiter=separator):
        return [name.strip() for name in fields]
    return []


class Scan(NamedTuple):
    """What reading a whole file in one way has found."""

    n_fields: int  # of every line; 0: they differ; -1: it cannot be read so
    has_newlines: bool  # within fields


def scan(path: Path, encoding: str | None, dialect: Dialect) -> Scan:
    """Read a whole table in one way."""
    counts = set()
    has_newlines = False
    try:
        for _, fields in read_table(path, encoding, dialect):
            counts.add(len(fields))
            has_newlines = has_newlines or any("\n" in text for text in fields)
    except csv.Error:
        return Scan(-1, has_newlines)
    n_fields = counts.pop() if len(counts) == 1 else 0
    return Scan(n_fields, has_newlines)


def quotes_at_starts(path: Path, separator: str) -> list[str]:
    """Return which quotes some field begins with; without one, all ways to read the file are one."""
    # in bytes, as that is fast; UTF-16 and UTF-32 may have NUL bytes before a character
    starts = []
    for end in ("\n", "\r", separator):
        starts += [(end + n * "\0").encode() for n in (0, 1, 3)]
    found = set()
    last = b""
    with open(path, "rb") as file:
        while block := file.read(2**20):
            # what stands before a quote at the start of a block is in the block before
            for quote in (b'"', b"'"):
                is_first = not last and quote in block[:8]  # a byte-order mark may stand before it
                if is_first or (quote in block and any(start + quote in last + block for start in starts)):
                    found.add(quote.decode())
            last = block[-8:]
    return sorted(found)


def find_quote(path: Path, encoding: str | None, dialect: Dialect) -> Dialect:
    """Return a dialect with the quotes that a file has. Raises InputError where it can be read in two ways."""
    if dialect.separator == ",":
        return dialect
    quotes = quotes_at_starts(path, dialect.separator)
    if not quotes:
        return dialect._replace(quote=None)

    # what each way of reading the file finds
    found = {}
    for quote in (*quotes, None):
        found[quote] = scan(path, encoding, dialect._replace(quote=quote))

    # all lines have the same number of fields: the fewest, as a quote that is not seen as one does not hold a separator
    fitting = [quote for quote in found if found[quote].n_fields > 0]
    if fitting:
        best = min(fitting, key=lambda quote: found[quote].n_fields)
        if found[best].has_newlines and found[None].n_fields > 0:
            why = "its quotes may be part of the texts, or hold texts of several lines"
            raise InputError(f"{path}: {why}. Write it as .csv.")
        return dialect._replace(quote=best)

    # lines of different lengths: those that are wrong are named when they are read
    is_quoted = '"' in found and found['"'].n_fields == 0 and found[None].n_fields <= 0
    return dialect._replace(quote='"' if is_quoted else None)
