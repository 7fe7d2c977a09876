"""Readers: tables with and without quoting, JSON lines, folders of JSON, pairs of ids, unreadable lines."""

import json
from pathlib import Path

import pytest

from formats.examples import (
    Bad,
    Example,
    as_number,
    json_lines,
    numbered_lines,
    paraphrases,
    race,
    read_csv,
    read_tsv,
    scored_table,
    table,
)
from formats.files import InputError


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(examples) -> list[tuple[str, ...]]:
    """Return of each example its texts and label, and of each line that cannot be read its number and what is wrong."""
    return [
        (*e.texts, e.label) if isinstance(e, Example) else (e.where.rsplit(" ", 1)[1], e.why, e.n_texts)
        for e in examples
    ]


# --- lines -----------------------------------------------------------------------------------------------------------


def test_lines_keep_their_ends_and_say_what_is_wrong_with_them(tmp_path):
    path = write(tmp_path / "t", "\ufeffa\r\nb\u2028\x0b\r c\n\n".encode() + b"caf\xe9\nd\0\ne")
    assert list(numbered_lines(path)) == [
        (1, "a\r\n", ""),
        (2, "b\u2028\x0b\r c\n", ""),  # none of these three ends a line
        (3, "\n", ""),
        (4, "", "not UTF-8 (byte 19). If it is Latin-1, convert it: iconv -f latin1 -t utf-8 OLD > NEW"),
        (5, "d\0\n", "a NUL byte (byte 22): the file is damaged. Fetch it again."),
        (6, "e", ""),
    ]
    assert path.read_bytes()[19] == 0xE9 and path.read_bytes()[22] == 0


def test_a_byte_order_mark_is_one_only_at_the_beginning(tmp_path):
    path = write(tmp_path / "t", "\ufeff\ufeffa\n\ufeffb\n")
    assert [line for _, line, _ in numbered_lines(path)] == ["\ufeffa\n", "\ufeffb\n"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_byte_order_mark_of_utf16_is_one(tmp_path, encoding):
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path = write(tmp_path / "t", mark + "a\u010ab\r\n\nc".encode(encoding))  # the bytes of \u010a hold a newline's
    assert list(numbered_lines(path)) == [(1, "a\u010ab\r\n", ""), (2, "\n", ""), (3, "c", "")]
    assert list(read_csv(path)) == [(1, ["a\u010ab"], ""), (3, ["c"], "")]


@pytest.mark.parametrize("read", [numbered_lines, read_csv, read_tsv])
def test_a_file_that_is_not_there_or_is_none_is_named(tmp_path, read):
    with pytest.raises(InputError, match="t.tsv is missing. See 'Weights and data'"):
        list(read(tmp_path / "t.tsv"))
    with pytest.raises(InputError, match="cannot be read"):
        list(read(tmp_path))


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_tsv_file_has_no_quoting(tmp_path):
    path = write(tmp_path / "t.tsv", '\ufeff"a\tb"\tc ""\r\n"\n\t\n\n  d \t\r\n')
    assert list(read_tsv(path)) == [
        (1, ['"a', 'b"', 'c ""'], ""),
        (2, ['"'], ""),
        (3, ["", ""], ""),
        (5, ["  d ", ""], ""),  # line 4 is blank
    ]


def test_a_csv_file_has_quoting_with_newlines_in_fields(tmp_path):
    path = write(tmp_path / "t.csv", '\ufeffa,"b, ""c"""\r\n\n"d\r\n\n",e\n" f ",\n')
    assert list(read_csv(path)) == [
        (1, ["a", 'b, "c"'], ""),
        (5, ["d\r\n\n", "e"], ""),  # the last of its three lines
        (6, [" f ", ""], ""),
    ]


def test_line_ends_of_old_macs_are_read(tmp_path):
    assert list(read_csv(write(tmp_path / "t.csv", "a,b\rc,d\r"))) == [(1, ["a", "b"], ""), (2, ["c", "d"], "")]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'a,b\n"c" d,e\n', "line 2: not CSV"),
        (b'a,b\n"c,d\ne,f\n', r"line \d: not CSV"),
        (b"a,b\nc,\xe9\n", r"line 2: not UTF-8 \(byte 6\)"),
    ],
)
def test_a_csv_file_ends_with_an_error_at_the_first_line_that_is_none(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        list(read_csv(write(tmp_path / "t.csv", content)))


def test_columns_are_found_by_number_or_name(tmp_path):
    write(tmp_path / "t.tsv", " id\tgold\ttext \n1\tyes\tthe cat\n2\tno\tNA\n")
    expected = [("the cat", "yes"), ("NA", "no")]
    assert found(table(tmp_path, "t.tsv", (2,), 1)) == found(table(tmp_path, "t.tsv", ("text",), "gold")) == expected
    assert found(table(tmp_path, "t.tsv", ("text", 0))) == [("the cat", "1", None), ("NA", "2", None)]
    with pytest.raises(InputError, match="t.tsv, line 1: no column 'label' among id, gold, text. Rename it"):
        list(table(tmp_path, "t.tsv", ("text",), "label"))


def test_without_a_header_the_first_line_is_an_example(tmp_path):
    write(tmp_path / "t.tsv", "\ufeffthe cat\tyes\nNone\tno")
    assert found(table(tmp_path, "t.tsv", (0,), 1, header=False)) == [("the cat", "yes"), ("None", "no")]
    with pytest.raises(InputError, match="no column 'text'"):
        list(table(tmp_path, "t.tsv", ("text",), header=False))


def test_a_quoted_table_is_comma_separated(tmp_path):
    write(tmp_path / "t.csv", 'text,label\n"a, ""b""\nc\td",yes\n')
    assert found(table(tmp_path, "t.csv", ("text",), "label", quoted=True)) == [('a, "b"\nc\td', "yes")]


BAD = b"id\tlabel\ttext\n1\tyes\n2\tno\tthe cat\n3\tno\tcaf\xe9\n4\tyes\t\n"


def test_short_and_damaged_lines_are_named_and_an_empty_field_is_a_field(tmp_path):
    write(tmp_path / "t.tsv", BAD)
    short, damaged = "2 columns, 3 are needed. Fix the line or remove it.", "not UTF-8 (byte 41). If it is Latin-1, "
    lines = found(table(tmp_path, "t.tsv", (2,), 1))
    assert lines[0] == ("2", short, 0) and lines[2][1].startswith(damaged)
    assert [lines[1], lines[3]] == [("the cat", "no"), ("", "yes")]
    first = next(table(tmp_path, "t.tsv", (2,), 1))
    assert first == Bad(f"{tmp_path / 't.tsv'}, line 2", short)


def test_lines_without_labels_keep_their_number_even_when_they_cannot_be_read(tmp_path):
    write(tmp_path / "t.tsv", BAD)
    lines = [e.n_texts if isinstance(e, Bad) else e.texts for e in table(tmp_path, "t.tsv", (2, 0))]
    assert lines == [2, ("the cat", "2"), 2, ("", "4")]


@pytest.mark.parametrize("text, is_score", [("3.6", True), ("-1", True), ("", False), ("n/a", False), ("nan", False)])
def test_scores_are_numbers(tmp_path, text, is_score):
    write(tmp_path / "t.tsv", f"text\tscore\nthe cat\t{text}\n")
    (example,) = scored_table(tmp_path, "t.tsv", (0,), 1)
    assert isinstance(example, Example) == is_score == (as_number(text) is not None)
    if not is_score:
        assert example.why == f"the score {text!r} is not a number. Fix the line or remove it."


PAIRED = "label\tid1\tid2\ta\tb\n1\t7\t8\ta\tx\n0\t8\t7\tb\tx\n1\t7\t9\tc\tx\n0\t78\t\td\tx\n1\t7\n"


@pytest.mark.parametrize(
    "ids, listed, expected",
    [
        ("\ufeff7\t8\r\n\r\n7\t9\tmore\r\n", True, ["a", "c"]),
        ("\ufeff7\t8\r\n\r\n7\t9\tmore\r\n", False, ["b", "d"]),
        ("", True, []),
        ("", False, ["a", "b", "c", "d"]),
    ],
)
def test_pairs_of_ids_choose_lines_or_all_the_others(tmp_path, ids, listed, expected):
    write(tmp_path / "t.tsv", PAIRED)
    write(tmp_path / "ids.tsv", ids)
    *lines, last = paraphrases(tmp_path, "t.tsv", "ids.tsv", listed)
    assert [line.texts for line in lines] == [(text, "x") for text in expected]
    assert isinstance(last, Bad)  # which of the two it belongs to is not known


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_lines_hold_texts_labels_and_lists_of_choices(tmp_path):
    objects = [
        {"a": "x\ny\u2028", "b": "", "label": "yes", "c": ["1", "2"]},
        {"b": "NA", "a": " y", "c": ["p", "q", "r"]},
    ]
    objects += [{"a": "z", "b": "w", "c": ["", "s"], "label": label} for label in (3, 0.5, None)]
    lines = [json.dumps(value, ensure_ascii=False) for value in objects]
    write(tmp_path / "t.jsonl", "\ufeff" + "\r\n".join(lines[:2]) + "\n \n" + "\n".join(lines[2:]))
    assert found(json_lines(tmp_path, "t.jsonl", ("a", "b"), "label")) == [
        ("x\ny\u2028", "", "yes"),
        (" y", "NA", None),
        *[("z", "w", label) for label in ("3", "0.5", None)],
    ]
    assert found(json_lines(tmp_path, "t.jsonl", ("a",), choices="c"))[:2] == [
        ("x\ny\u2028", "1", "2", None),
        (" y", "p", "q", "r", None),
    ]


@pytest.mark.parametrize(
    "line, why",
    [
        (b'{"a": "x", "c": ["1",', r"not JSON (Expecting value: line 1 column 22 (char 21))."),
        (b"[" * 100_000, "not JSON (maximum recursion depth exceeded"),
        (b'["x"]', "not a JSON object."),
        (b'{"c": ["1", "2"]}', "no field 'a' among c."),
        (b'{"a": "x"}', "no field 'c' among a."),
        (b'{"a": "x", "c": ["1"]}', "'c' is not a list of two or more texts."),
        (b'{"a": "x", "c": "12"}', "'c' is not a list of two or more texts."),
        (b'{"a": 5, "c": ["1", "2"]}', "a field that should be a text is none."),
        (b'{"a": "x", "c": ["1", null]}', "a field that should be a text is none."),
        (b'{"a": "x", "c": ["1", "2"], "label": ["1"]}', "'label' is neither a text nor a number."),
        (b'{"a": "x", "c": ["1", "2"], "label": {}}', "'label' is neither a text nor a number."),
        (b'{"a": "caf\xe9", "c": ["1", "2"]}', "not UTF-8"),
    ],
    ids=str,
)
def test_json_lines_that_are_none_are_named_and_the_next_is_read(tmp_path, line, why):
    write(tmp_path / "t.jsonl", line + b'\n{"a": "y", "c": ["3", "4"], "label": 2}\n')
    bad, good = json_lines(tmp_path, "t.jsonl", ("a",), "label", "c")
    assert isinstance(bad, Bad) and bad.where.endswith("t.jsonl, line 1") and bad.why.startswith(why)
    assert (good.texts, good.label) == (("y", "3", "4"), "2")


ARTICLE = {"article": "x", "questions": ["_ q", "r"], "options": [list("abcd"), list("efgh")], "answers": ["A", "D"]}


def test_a_folder_of_articles_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("2.txt", "10.txt", "1.txt"):
        write(tmp_path / "dev" / name, "\ufeff" + json.dumps(ARTICLE | {"article": name}))
    write(tmp_path / "dev/1.json", "none")
    examples = list(race(tmp_path, "dev"))
    assert [e.texts[0] for e in examples] == ["1.txt"] * 2 + ["10.txt"] * 2 + ["2.txt"] * 2
    assert examples[2] == Example(("10.txt", "_ q", *"abcd"), "1", f"{tmp_path}/dev/10.txt, question 1")
    assert examples[3] == Example(("10.txt", "r", *"efgh"), "4", f"{tmp_path}/dev/10.txt, question 2")


@pytest.mark.parametrize(
    "change, n_good",
    [
        ({"answers": ["A", "E"]}, 1),
        ({"answers": ["AB", "A"]}, 1),
        ({"options": [list("abc"), list("efgh")]}, 1),
        ({"options": ["abcd", list("efgh")]}, 1),
        ({"options": [[1, 2, 3, 4], list("efgh")]}, 1),
        ({"questions": [None, "r"]}, 1),
        ({"article": None}, 0),
        ({"answers": [["A"], "A"]}, 1),
        ({"options": 5}, 0),
        ({"answers": ["A"]}, 1),
        ({"questions": None}, 0),
    ],
    ids=str,
)
def test_articles_that_are_none_are_named(tmp_path, change, n_good):
    write(tmp_path / "1.txt", json.dumps(ARTICLE | change))
    write(tmp_path / "2.txt", '["x"]')
    write(tmp_path / "3.txt", b"\xe9")
    write(tmp_path / "4.txt", json.dumps(ARTICLE))
    examples = list(race(tmp_path, "."))
    assert sum(isinstance(e, Example) for e in examples) == n_good + 2
    bad = [e for e in examples if isinstance(e, Bad)]
    assert bad[0].where.startswith(f"{tmp_path}/1.txt") and "Fetch it again." in bad[0].why
    assert [e.where for e in bad[-2:]] == [f"{tmp_path}/2.txt", f"{tmp_path}/3.txt"]


def test_a_folder_without_articles_is_named(tmp_path):
    with pytest.raises(InputError, match="dev/high holds no .txt files. The data folder is the one"):
        list(race(tmp_path, "dev/high"))
