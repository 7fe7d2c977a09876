"""Files -> examples: the columns, the authors' split, and what CSV allows."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import datasets
from datasets import read_cloze
from formats.files import InputError
from formats.folders import BPE_FILE, ENCODER_FILE
from reading import tasks
from reading.rows import CUTS, FORMS
from reading.splits import Limits, read_splits
from reading.tasks import LAYOUTS, ROCSTORIES_TEST, ROCSTORIES_VALID, TASKS
from running.metrics import METRICS
from text_utils import TextEncoder

AUTHORS_SEED = 3535999445


def write(path: Path, rows: list[list], newline: str = "\n") -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator=newline).writerows([["id, quoted", *"1234", "first", "second", "right"], *rows])
    path.write_bytes(text.getvalue().encode())
    return path


def row(i: int) -> list:
    return [f"id{i}", *(f"{i} {word}." for word in ("one", "two", "three", "four", "five", "six")), i % 3 % 2 + 1]


def numbers(columns: datasets.Columns) -> list[int]:
    """Return the numbers of examples made by `row`, after a check that each still has its own endings."""
    stories, first, second, labels = columns
    found = [int(story.split()[0]) for story in stories]
    assert stories == [f"{i} one. {i} two. {i} three. {i} four." for i in found]
    assert (first, second) == ([f"{i} five." for i in found], [f"{i} six." for i in found])
    assert labels.tolist() == [i % 3 % 2 for i in found]
    return found


# --- the split -------------------------------------------------------------------------------------------------------


def test_the_split_is_the_authors(tmp_path):
    write(tmp_path / ROCSTORIES_VALID, [row(i) for i in range(1871)])
    write(tmp_path / ROCSTORIES_TEST, [row(i) for i in range(1871)])
    *labelled, test = datasets.rocstories(tmp_path)
    train, valid = map(numbers, labelled)
    assert (len(train), len(valid)) == (1497, 374)
    assert numbers((*test, read_cloze(tmp_path / ROCSTORIES_TEST)[3])) == list(range(1871))  # three columns, in order
    assert [train, valid] == train_test_split(list(range(1871)), test_size=374, random_state=AUTHORS_SEED)
    order = np.random.RandomState(AUTHORS_SEED).permutation(1871).tolist()  # what that comes to, whatever the version
    assert (valid, train) == (order[:374], order[374:])


def test_n_valid_examples_are_kept_for_validation_and_some_to_train_on(data_dir):
    write(data_dir / ROCSTORIES_VALID, [row(i) for i in range(30)])
    for n_valid in (1, 10, 29):
        train, valid, _ = datasets.rocstories(data_dir, n_valid)
        assert (len(train[0]), len(valid[0])) == (30 - n_valid, n_valid)
        assert sorted(numbers(train) + numbers(valid)) == list(range(30))
    for n_valid in (0, 30, 31):
        with pytest.raises(InputError, match=f"holding out {n_valid} of its 30 examples .* Hold out fewer"):
            datasets.rocstories(data_dir, n_valid)


def test_the_real_rows(real_data_dir):
    train, valid, test = datasets.rocstories(real_data_dir)
    n_rows = sum(1 for _ in open_rows(real_data_dir / ROCSTORIES_VALID))
    assert [len(train[0]), len(valid[0]), len(test)] == [n_rows - 374, 374, 3]
    if n_rows == 1400:  # the examples at hand in this project
        assert (len(train[0]), len(valid[0]), len(test[0])) == (1026, 374, 471)
    known = {tuple(r) for name in (ROCSTORIES_VALID, ROCSTORIES_TEST) for r in open_rows(real_data_dir / name)}
    for columns in (train, valid, read_cloze(real_data_dir / ROCSTORIES_TEST)):
        assert all((*rest, str(label + 1)) in known for *rest, label in zip(*columns, strict=True))
        assert 0.4 < columns[3].mean() < 0.6


def open_rows(path: Path):
    """Yield the examples of a real file, read another way: story, two endings, right one."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        for r in csv.DictReader(file):
            _, *sentences, first, second, right = r.values()
            yield " ".join(sentences), first, second, right


# --- one file --------------------------------------------------------------------------------------------------------


def test_a_story_is_four_sentences_and_a_label_counts_from_0(tmp_path):
    path = write(tmp_path / "c.csv", [["id", "A.", " B. ", "C.", "D.", "E.", "F.", 1], ["id", *"abcdef", " 2 "]])
    stories, first, second, labels = read_cloze(path)
    assert stories == ["A.  B.  C. D.", "a b c d"]  # as they stand: standardising makes single spaces
    assert (first, second, labels.tolist()) == (["E.", "e"], ["F.", "f"], [0, 1])
    assert labels.dtype.kind == "i"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("before, after", [(b"", b""), (b"\xef\xbb\xbf", b""), (b"", b"\n\r\n\n")], ids=repr)
def test_byte_order_mark_line_ends_and_trailing_blank_lines(tmp_path, newline, before, after):
    path = write(tmp_path / "c.csv", [row(i) for i in range(5)], newline)
    path.write_bytes(before + path.read_bytes() + after)
    assert numbers(read_cloze(path)) == [0, 1, 2, 3, 4]


QUOTED = ["id", 'He said, "no".', "Two\nlines,", "three\r\n\n", "Zoë—ok", "first, ending", 'second "ending"', 2]


def test_quoted_commas_quotes_and_newlines_stay_in_their_column(tmp_path):
    stories, first, second, labels = read_cloze(write(tmp_path / "c.csv", [QUOTED, row(0)]))
    assert stories[0] == 'He said, "no". Two\nlines, three\r\n\n Zoë—ok'
    assert (first[0], second[0], labels.tolist()) == ("first, ending", 'second "ending"', [1, 0])


ERRORS = {
    "label": (b"id,a,b,c,d,e,f,3\n", r"'3', not 1 or 2"),
    "no label": (b"id,a,b,c,d,e,f,\n", r"'', not 1 or 2"),
    "few columns": (b"id,a,b,c,d,e,1\n", r"7 columns, not 8"),
    "many columns": (b"id,a,b,c,d,e,f,g,1\n", r"9 columns, not 8"),
    "quotes": (b'id,"a" b,c,d,e,f,g,1\n', r"not CSV"),
    "Latin-1": (b"id,caf\xe9,b,c,d,e,f,1\n", r"not UTF-8 .*iconv"),
}
EMPTY = {
    "no story": (b"id,,,,,e,f,1\n", "the story is empty. Fix the line or remove it"),
    "a story of white space": (b'id," ","\t",," ",e,f,1\n', "the story is empty. Fix the line or remove it"),
    "no endings": (b"id,a,b,c,d,,,1\n", "both endings are empty. Fix the line or remove it"),
    "endings of white space": (b"id,a,b,c,d, ,\t,2\n", "both endings are empty. Fix the line or remove it"),
    "NUL": (b"id,a,b\0,c,d,e,f,2\n", r"a NUL byte \(byte [\d,]+\): the file is UTF-16, or damaged"),
}


def assert_refused(tmp_path: Path, bad: bytes, message: str) -> None:
    """Check what is said of a line after one with newlines inside quotes."""
    path = write(tmp_path / "c.csv", [QUOTED])  # lines 2 to 5
    path.write_bytes(path.read_bytes() + b"\n" + bad + b"id,a,b,c,d,e,f,1\n")  # line 6 is blank
    with pytest.raises(InputError, match=rf"c\.csv, line 7: .*{message}"):
        read_cloze(path)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_names_the_line_after_newlines_inside_quotes(tmp_path, name):
    assert_refused(tmp_path, *ERRORS[name])


@pytest.mark.parametrize("name", EMPTY)
def test_empty_texts_and_nul_bytes_are_named_with_their_line(tmp_path, name):
    assert_refused(tmp_path, *EMPTY[name])


def test_a_quote_that_never_closes_and_a_folder_are_errors(tmp_path):
    path = write(tmp_path / "c.csv", [row(0)])
    path.write_bytes(path.read_bytes() + b'id,"a,b,c,d,e,f,1\nid,a,b,c,d,e,f,1\n')
    with pytest.raises(InputError, match=r"c\.csv, line \d+: not CSV"):
        read_cloze(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"c\.csv cannot be read"):
        read_cloze(path)


def test_one_empty_ending_or_sentence_is_no_error(tmp_path):
    path = write(tmp_path / "c.csv", [["id", "A.", "", "", "", "", "F.", 2], ["id", *"abcde", "", 1]])
    stories, first, second, labels = read_cloze(path)
    assert (stories, first, second) == (["A.   ", "a b c d"], ["", "e"], ["F.", ""])


def test_a_field_longer_than_csv_allows_is_named_with_the_line_where_it_begins(tmp_path):
    path = write(tmp_path / "c.csv", [row(0), QUOTED])  # lines 2 to 6
    limit = csv.field_size_limit()
    path.write_bytes(path.read_bytes() + b'id,"a,b,c,d,e,f,1\n' + b"id,a,b,c,d,e,f,1\n" * limit)
    with pytest.raises(
        InputError, match=rf"c\.csv, line 7: a field of more than {limit:,} char.* Is a quote not closed"
    ):
        read_cloze(path)
    write(path, [row(0), ["id", "a", "b", "c", "d" * (limit + 1), "e", "f", 1]])
    with pytest.raises(InputError, match=rf"c\.csv, line 3: a field of more than {limit:,} characters"):
        read_cloze(path)


# --- the records -----------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(model_dir) -> TextEncoder:
    return TextEncoder(model_dir / ENCODER_FILE, model_dir / BPE_FILE)


def test_the_record_gives_the_examples_of_the_reader(data_dir, encoder, model_dir):
    task = TASKS["rocstories"]
    assert (task.form, task.cut, task.labels, task.written) == ("multiple_choice", "halves", ("1", "2"), ("0", "1"))
    assert {file for source in task.sources() for file in source.files} == {
        path.name for path in data_dir.glob("*.csv")
    }
    splits = read_splits(task, data_dir, encoder, Limits(n_valid=10, seed=42, n_ctx=64))
    train, valid, test = datasets.rocstories(data_dir, 10)
    test = (*test, read_cloze(data_dir / ROCSTORIES_TEST)[3])
    for rows, columns in zip(splits.all(), (train, valid, test), strict=True):
        texts = list(zip(*columns[:3], strict=True))
        assert [rows.encoded.texts(i) for i in rows.which] == [encoder.encode(list(t), verbose=False) for t in texts]
        np.testing.assert_array_equal(rows.labels, columns[3])
        examples = [rows.example(i) for i in range(len(rows))]
        assert [example.texts for example in examples] == texts
        assert [int(example.label) - 1 for example in examples] == columns[3].tolist()
    assert [splits.test.example(i).where for i in (0, 11)] == [f"{ROCSTORIES_TEST}, line {line}" for line in (2, 13)]


@pytest.mark.parametrize(
    "name, shown, written",
    [("rocstories", ("1", "2"), ("0", "1")), ("race", tuple("ABCD"), tuple("ABCD")), ("cola", *2 * [("0", "1")])]
    + [("stsb", None, None)],
)
def test_labels_are_shown_as_in_the_files_and_written_as_they_are_handed_in(name, shown, written):
    assert (TASKS[name].shown_labels(), TASKS[name].written_labels()) == (shown, written)


@pytest.mark.parametrize("name", TASKS)
def test_a_record_names_what_exists(name):
    for task in (TASKS[name], *LAYOUTS.get(name, ())):
        assert task.form in FORMS and task.cut in CUTS and task.title == TASKS[name].title
        assert task.metrics and set(task.metrics) <= METRICS.keys()
        if task.scores:
            assert task.labels is None and task.scores[0] < task.scores[1] and task.form == "similarity"
        else:
            assert len(set(task.labels)) == len(task.labels) > 1
            for labels in (task.labels, task.shown_labels(), task.written_labels()):
                assert len(set(labels)) == len(labels) == len(task.labels)
        assert {source.part for source in task.test} == task.submission.keys()  # each part has its file
        files = list(task.submission.values())
        assert len(set(files)) == len(files) and all(file == Path(file).name for file in files)
        for sources in (task.train, task.valid, task.test):
            assert all(source.files and (source.n_examples or 1) > 0 for source in sources)
            assert len({source.part for source in sources}) == len(sources)
        assert task.train


def test_no_two_records_hand_in_files_of_one_name():
    files = [file for task in TASKS.values() for file in task.submission.values()]
    assert len(set(files)) == len(files)


def test_a_missing_folder_is_named_with_a_file_that_it_should_hold(tmp_path):
    for task in TASKS.values():
        with pytest.raises(InputError, match="nowhere: no such folder. The data folder is the one with '") as error:
            task.find(tmp_path / "nowhere")
        assert task.train[0].files[0] in str(error.value)


# --- what is held out ------------------------------------------------------------------------------------------------


def test_the_same_fraction_of_each_label_is_held_out(tmp_path):
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    for seed in range(5):
        train, valid = tasks.hold_out(labels, 20, seed, True, tmp_path)
        assert np.bincount(labels[valid]).tolist() == [12, 6, 2]
        assert sorted([*train, *valid]) == list(range(100))
    assert set(tasks.hold_out(labels, 20, 0, True, tmp_path)[1]) != set(valid)  # seed decides
    single = np.array([0] * 9 + [1])  # a label that cannot be in both
    assert len(tasks.hold_out(single, 3, 0, True, tmp_path)[1]) == 3
