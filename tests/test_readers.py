"""Readers: tables with and without quoting, JSON lines, folders of JSON, pairs of ids, unreadable lines."""

import json
import os
import re
from pathlib import Path

import pandas as pd
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
from formats.own import OwnData, own_examples, parse_columns


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
        (
            5,
            "d\0\n",
            "a NUL byte (byte 22): the file is UTF-16, or damaged. "
            "Convert it (iconv -f utf-16 -t utf-8) or fetch it again.",
        ),
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
    with pytest.raises(InputError, match="t.tsv is missing. See 'The paper's result'"):
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
        (b'{"a": 5, "c": ["1", "2"]}', "a field that should be a text is a number, a list or nothing."),
        (b'{"a": "x", "c": ["1", null]}', "a field that should be a text is a number, a list or nothing."),
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


# --- the user's own data ---------------------------------------------------------------------------------------------


def own(tmp_path: Path, name: str, content: bytes | str, form: str = "classification", labelled=True, **how):
    """Return what is found in a file of the user's."""
    write(tmp_path / name, content)
    columns = parse_columns(how.pop("columns", None))
    return found(own_examples(tmp_path, name, OwnData(form, columns, **how), labelled))


@pytest.mark.parametrize(
    "name, content, line",
    [
        ("t.csv", "text,label\nI liked it, really,positive\n", "2"),
        ("t.csv", "label,text\npositive,I liked it, but the end was bad\n", "2"),
        ("t.tsv", "text\tlabel\nx\tyes\nI liked\tit\tno\n", "3"),
        ("t.csv", "text;label\nI liked it; really;positive\n", "2"),
    ],
)
def test_a_line_of_more_fields_than_names_is_no_example(tmp_path, name, content, line):
    *_, (number, why, _) = own(tmp_path, name, content)
    assert number == line and why.startswith("3 columns, 2 in the first line.")


def test_a_line_of_more_fields_is_no_example_of_an_official_table_either(tmp_path):
    write(tmp_path / "t.tsv", "text\tlabel\na\tb\t1\nc\t0\t\nd\n")
    more, good, fewer = table(tmp_path, "t.tsv", (0,), 1)
    assert more.why.startswith("3 columns, 2 are known.") and good.texts == ("c",) and isinstance(fewer, Bad)


def test_empty_columns_that_a_spreadsheet_adds_are_none(tmp_path):
    assert own(tmp_path, "t.csv", "label,text,,\nyes,a,,\nno,b\n") == [("a", "yes"), ("b", "no")]
    *_, (_, why, _) = own(tmp_path, "t.csv", "label,text,,\nyes,a,more,\n")
    assert "4 columns, 2 in the first line" in why


@pytest.mark.parametrize(
    "label, right",
    [("3", "3"), ("1", "1"), (3, "3"), ("2.0", "2"), ("A", "1"), ("d", "4"), ("none", "4")],
)
def test_the_number_of_a_choice_wins_over_its_text(tmp_path, label, right):
    record = {"context": "1 + 1 =", "choices": ["4", 3, "2", "none"], "label": label}
    assert own(tmp_path, "t.jsonl", json.dumps(record), "multiple_choice") == [
        ("1 + 1 =", "4", "3", "2", "none", right)
    ]


@pytest.mark.parametrize(
    "choices, label, first, why",
    [
        (["3", "5", "6", "8"], "8", 1, "the label '8' is neither a number from 1 to 4"),
        (["x", "y"], "0", 1, "If choices are counted from 0: --first_choice 0"),
        (["x", "y"], "2", 0, "the label '2' is neither a number from 0 to 1"),
        (["B", "A"], "A", 1, "may be the letter of a choice or the text of another"),
        (["x", "y"], "C", 1, "neither a number"),
        (["x", "y"], "AB", 1, "neither a number"),
        (["x", "y"], "-1", 1, "neither a number"),
        ({"a": "x"}, "1", 1, "is not a list of two or more texts"),
    ],
)
def test_a_label_that_names_no_choice_is_refused(tmp_path, choices, label, first, why):
    record = {"context": "c", "choices": choices, "label": label}
    ((_, said, _),) = own(tmp_path, "t.jsonl", json.dumps(record), "multiple_choice", first_choice=first)
    assert why in said


def test_choices_are_counted_from_0_or_1_and_may_stand_in_fields_of_fields(tmp_path):
    table_of_two = "c,ending0,ending1,label\nx,p,q,0\ny,p,q,1\n"
    columns = "context=c,choice_1=ending0,choice_2=ending1"
    expected = [("x", "p", "q", "1"), ("y", "p", "q", "2")]
    assert own(tmp_path, "t.csv", table_of_two, "multiple_choice", columns=columns, first_choice=0) == expected
    question = {"stem": "x", "choices": [{"label": "A", "text": "p"}, {"label": "B", "text": "q"}]}
    columns = "context=question.stem,choices=question.choices.text,label=answerKey"
    lines = (
        json.dumps({"question": question, "answerKey": "A"})
        + "\n"
        + json.dumps({"question": question | {"stem": "y"}, "answerKey": "B"})
    )
    assert own(tmp_path, "t.jsonl", lines, "multiple_choice", columns=columns) == expected


@pytest.mark.parametrize(
    "name, content, columns, why",
    [
        ("t.csv", "text,text,label\na,b,1\n", None, "line 1: two columns 'text'. Rename one"),
        ("t.csv", "text,label,label\na,0,1\n", None, "two columns 'label'"),
        (
            "t.csv",
            "text,label\na,1\n",
            "txt=review",
            "--columns: 'txt' is no field of classification, which has text, label",
        ),
        ("t.jsonl", '{"text": "a", "label": 1}', "txt=review", "'txt' is no field"),
        (
            "t.csv",
            "text,label\na,1\n",
            "text=review",
            "no column 'review' among text, label. Rename it, or use --columns",
        ),
        ("t.csv", "a,1\nb,0\n", "text=0", "no column 'label' among 0, 1"),
        ("t.csv", "text,label\na,1\n", "label=stars", "no column 'stars'"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(tmp_path, name, content, columns, why):
    with pytest.raises(InputError, match=re.escape(why)):
        own(tmp_path, name, content, columns=columns)


@pytest.mark.parametrize(
    "form, remedy",
    [
        ("classification", "text=0,label=1"),
        ("entailment", "premise=0,hypothesis=1,label=2"),
        ("multiple_choice", "context=0,choice_1=1,choice_2=2,label=3"),
    ],
)
def test_a_table_without_names_is_told_the_columns_of_its_form(tmp_path, form, remedy):
    content = "a cat,a hat,a rat,1\n" * 2
    with pytest.raises(InputError, match=f"without a line of names: --columns {remedy}$"):
        own(tmp_path, "t.csv", content, form=form)
    assert len(own(tmp_path, "t.csv", content, form=form, columns=remedy)) == 2


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(InputError, match="t.csv is no ordinary file"):
        list(own_examples(tmp_path, "t.csv", OwnData("classification"), True))


def test_a_quote_that_is_not_closed_is_named_with_its_line(tmp_path):
    with pytest.raises(InputError, match="t.csv, line 3: not CSV .* Is a quote not closed"):
        own(tmp_path, "t.csv", 'text,label\na,yes\n"b" c,no\n')


def test_a_gap_in_the_choices_is_named(tmp_path):
    content = "context,choice_1,choice_2,choice_4,label\nx,p,q,r,1\n"
    ((_, why, _),) = own(tmp_path, "t.csv", content, "multiple_choice")
    assert why.startswith("'choice_4' cannot be read")
    ((_, why, _),) = own(tmp_path, "t.jsonl", '{"text": "a", "text": "b", "label": 1}')
    assert "a field is there twice" in why


ROWS = [['say "hi"', "yes"], ["two\nlines", "no"], ["a\ttab; and, | @", "yes"], ["x" * 200_000, "no"], ["plain", "no"]]


@pytest.mark.parametrize(
    "separator, name", [(",", "t.csv"), ("\t", "t.tsv"), ("\t", "t.csv"), (";", "t.csv"), ("|", "t.txt")]
)
@pytest.mark.parametrize("header", [True, False])
def test_what_pandas_writes_is_read(tmp_path, separator, name, header):
    content = pd.DataFrame(ROWS, columns=["text", "label"]).to_csv(sep=separator, index=False, header=header)
    columns = None if header else "text=0,label=1"
    assert own(tmp_path, name, content, columns=columns) == [tuple(row) for row in ROWS]


@pytest.mark.parametrize("start", ["", "sep=,\n"])
def test_numbers_may_be_names(tmp_path, start):
    content = pd.DataFrame([["a cat", "yes"]]).to_csv(index=False)
    assert content.startswith("0,1\n")
    assert own(tmp_path, "t.csv", start + content, columns="text=0,label=1") == [("a cat", "yes")]


def test_quotes_that_are_part_of_texts_are_kept(tmp_path):
    lines = [('"So he said', "1"), ('"Yes" and "no', "0"), ("it's 'fine'", "1")]
    raw = "".join(f"{text}\t{label}\n" for text, label in lines)
    assert own(tmp_path, "t.txt", raw, columns="text=0,label=1") == lines
    assert own(tmp_path, "t.tsv", "text\tlabel\n" + raw) == lines
    german = "label;text\nWeb;'Er sagte; \"ja\" und ''nein'''\nSport;\"Ja\", sagte er\n"
    assert own(tmp_path, "t.csv", german) == [("Er sagte; \"ja\" und 'nein'", "Web"), ('"Ja", sagte er', "Sport")]
    with pytest.raises(InputError, match="may be part of the texts, or hold texts of several lines"):
        own(tmp_path, "t.tsv", 'text\tlabel\n"a\tb\nc"\td\n')


def test_excels_first_line_names_the_separator(tmp_path):
    lines = "".join(f"a, {i}@yes\n" for i in range(3))
    with pytest.raises(InputError, match="may be separated by a comma or an @. Put a line such as sep=, first."):
        own(tmp_path, "t.txt", lines, columns="text=0,label=1")
    assert own(tmp_path, "t.txt", "sep=@\n" + lines, columns="text=0,label=1")[0] == ("a, 0", "yes")
    assert own(tmp_path, "t.csv", "sep=;\r\ntext;label\r\na, b;yes\r\n") == [("a, b", "yes")]


@pytest.mark.parametrize(
    "encoding, given", [("utf-16", None), ("latin-1", "latin-1"), ("utf-8-sig", None), ("utf-16-le", "utf-16-le")]
)
def test_quotes_are_found_in_tables_without_commas(tmp_path, encoding, given):
    rows = [["plain", "no"]] * 9 + [["a\ttab", "yes"]]
    for n in (0, 2**20 - 18 * 4, 2**20 - 18 * 4 - 1):  # also where a quote begins a block of those that are searched
        content = pd.DataFrame([["x" * n, "no"], *rows], columns=["text", "label"]).to_csv(sep="\t", index=False)
        assert own(tmp_path, "t.tsv", content.encode(encoding), encoding=given)[-1] == ("a\ttab", "yes")
        rows = rows[-1:]


@pytest.mark.parametrize(
    "encoding, given", [("utf-16", None), ("latin-1", "latin-1"), ("utf-8-sig", None), ("utf-16-le", "utf-16-le")]
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_encodings_are_read(tmp_path, encoding, given, name):
    content = "text,label\ncafé,oui\n" if name == "t.csv" else '{"text": "café", "label": "oui"}\n'
    assert own(tmp_path, name, content.encode(encoding), encoding=given) == [("café", "oui")]
    if encoding == "latin-1":
        with pytest.raises(InputError, match=r"line \d: not utf-16"):
            own(tmp_path, name, content.encode(encoding), encoding="utf-16")


def test_lists_of_json_and_lines_of_fasttext_are_read(tmp_path):
    records = [{"text": 5, "label": True, "more": None}, {"text": "b", "label": 0}]
    assert own(tmp_path, "t.json", json.dumps(records, indent=1)) == [("5", "True"), ("b", "0")]
    for indent, between in ((None, "\n"), (None, ""), (2, "\n"), (2, ",\n"), (2, "\r\n\r\n")):
        text = between.join(json.dumps(record, indent=indent) for record in records)
        assert own(tmp_path, "t.json", text + "\n") == [("5", "True"), ("b", "0")], (indent, between)
    with pytest.raises(InputError, match=r"t.json, item 2: not JSON \(.*: line 5 column 12 .*\)\. Fix it"):
        own(tmp_path, "t.json", '{\n"text": "a",\n"label": 1\n}\n{"text": "b\n"}')
    assert own(tmp_path, "t.txt", "__label__1 not, good\n__label__2 fine\n") == [("not, good", "1"), ("fine", "2")]
    assert "not one __label__" in own(tmp_path, "t.txt", "__label__1 __label__2 fine\n")[0][1]


@pytest.mark.parametrize("label", ["NaN", "null", '""'])
def test_what_is_no_label_is_none(tmp_path, label):
    ((_, why, _),) = own(tmp_path, "t.jsonl", f'{{"text": "a", "label": {label}}}')
    assert why.startswith("no label")
    assert own(tmp_path, "t.jsonl", f'{{"text": "a", "label": {label}}}', labelled=False) == [("a", None)]


def test_a_compressed_file_is_called_so(tmp_path):
    with pytest.raises(InputError, match="is compressed. Unpack it"):
        own(tmp_path, "t.csv", b"\x1f\x8b\x08")
