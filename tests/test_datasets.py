"""Files -> examples: the columns, the authors' split, and what CSV allows."""

import csv
import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import datasets
from datasets import ROCSTORIES_TEST, ROCSTORIES_VALID, encode_cached, read_cloze
from utils import InputError, encode_dataset

AUTHORS_SEED = 3535999445


def write(path: Path, rows: list[list], newline: str = "\n") -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator=newline).writerows([["id, quoted", *"1234", "first", "second", "right"], *rows])
    path.write_bytes(text.getvalue().encode())
    return path


def row(i: int) -> list:
    return [f"id{i}", *(f"{i} {word}." for word in ("one", "two", "three", "four", "five", "six")), i % 3 % 2 + 1]


def numbers(columns: datasets.Columns) -> list[int]:
    """Give the rows that columns made of `row` hold, after a look at whether each still has its own endings."""
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
    train, valid, test = map(numbers, datasets.rocstories(tmp_path))
    assert (len(train), len(valid), test) == (1497, 374, list(range(1871)))
    assert [train, valid] == train_test_split(list(range(1871)), test_size=374, random_state=AUTHORS_SEED)
    order = np.random.RandomState(AUTHORS_SEED).permutation(1871).tolist()  # what that comes to, whatever the version
    assert (valid, train) == (order[:374], order[374:])


@pytest.mark.parametrize("n_valid", [1, 10, 29])
def test_n_valid_rows_are_kept_for_validation(data_dir, n_valid):
    write(data_dir / ROCSTORIES_VALID, [row(i) for i in range(30)])
    train, valid, _ = datasets.rocstories(data_dir, n_valid)
    assert (len(train[0]), len(valid[0])) == (30 - n_valid, n_valid)
    assert sorted(numbers(train) + numbers(valid)) == list(range(30))


@pytest.mark.parametrize("n_valid", [30, 31])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(data_dir, n_valid):
    write(data_dir / ROCSTORIES_VALID, [row(i) for i in range(30)])
    with pytest.raises(InputError, match=f"--n_valid {n_valid} of its 30 rows .* Lower"):
        datasets.rocstories(data_dir, n_valid)


def test_the_real_rows(real_data_dir):
    train, valid, test = datasets.rocstories(real_data_dir)
    n_rows = sum(1 for _ in open_rows(real_data_dir / ROCSTORIES_VALID))
    assert [len(split[0]) for split in (train, valid, test)] == [n_rows - 374, 374, len(test[3])]
    if n_rows == 1400:  # the rows at hand in this project
        assert (len(train[0]), len(valid[0]), len(test[0])) == (1026, 374, 471)
    known = {tuple(r) for name in (ROCSTORIES_VALID, ROCSTORIES_TEST) for r in open_rows(real_data_dir / name)}
    for columns in (train, valid, test):
        assert all((*rest, str(label + 1)) in known for *rest, label in zip(*columns, strict=True))
        assert 0.4 < columns[3].mean() < 0.6


def open_rows(path: Path):
    """Give the rows of a real file, read another way: story, two endings, right one."""
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


@pytest.mark.parametrize(
    "bad, message",
    [
        (b"id,a,b,c,d,e,f,3\n", r"'3', not 1 or 2"),
        (b"id,a,b,c,d,e,f,\n", r"'', not 1 or 2"),
        (b"id,a,b,c,d,e,1\n", r"7 columns, not 8"),
        (b"id,a,b,c,d,e,f,g,1\n", r"9 columns, not 8"),
        (b'id,"a" b,c,d,e,f,g,1\n', r"not CSV"),
        (b"id,caf\xe9,b,c,d,e,f,1\n", r"not UTF-8 .*iconv"),
    ],
    ids=["label", "no label", "few columns", "many columns", "quotes", "Latin-1"],
)
def test_an_error_names_the_line_after_newlines_inside_quotes(tmp_path, bad, message):
    path = write(tmp_path / "c.csv", [QUOTED])  # lines 2 to 5
    path.write_bytes(path.read_bytes() + b"\n" + bad + b"id,a,b,c,d,e,f,1\n")  # line 6 is blank
    with pytest.raises(InputError, match=rf"c\.csv, line 7: .*{message}"):
        read_cloze(path)


def test_a_quote_that_never_closes_is_an_error(tmp_path):
    path = write(tmp_path / "c.csv", [row(0)])
    path.write_bytes(path.read_bytes() + b'id,"a,b,c,d,e,f,1\nid,a,b,c,d,e,f,1\n')
    with pytest.raises(InputError, match=r"c\.csv, line \d+: not CSV"):
        read_cloze(path)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "c.csv").mkdir()
    with pytest.raises(InputError, match=r"c\.csv cannot be read"):
        read_cloze(tmp_path / "c.csv")


# --- the encoded texts -----------------------------------------------------------------------------------------------


class Letters:
    """An encoder that counts its work; ids are the letters' numbers."""

    n_encoded = 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.n_encoded += len(texts)
        return [[ord(letter) for letter in text] for text in texts]


SPLITS = ((["a cat", ""], ["sat", "on"], np.array([0, 1])), (["the mats."] * 900, ["", *["x"] * 899], np.arange(900)))
N_TEXTS = 1804


@pytest.fixture
def vocabulary(tmp_path) -> tuple[str, str]:
    paths = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    for path in paths:
        path.write_text(path.name)
    return tuple(map(str, paths))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def assert_encodes(splits: tuple, folder: Path, vocabulary: tuple[str, str], n_encoded: int) -> None:
    """Check what encode_cached gives against encode_dataset, and how many texts had to be encoded."""
    encoder = Letters()
    found = encode_cached(splits, encoder, folder, vocabulary)
    assert encoder.n_encoded == n_encoded
    for columns, expected in zip(found, encode_dataset(*splits, encoder=Letters()), strict=True):
        assert columns[:2] == expected[:2]
        assert {type(i) for column in columns[:2] for ids in column for i in ids} == {int}
        assert columns[2] is expected[2]


def test_encoded_texts_are_read_the_second_time(folder, vocabulary):
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    assert_encodes(SPLITS, folder, vocabulary, 0)
    assert (list(folder.iterdir()), path.read_bytes()) == ([path], content)


def test_other_texts_or_another_vocabulary_are_encoded_anew(folder, vocabulary, monkeypatch):
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
    (a, b, y), rest = SPLITS
    for n_files, splits in enumerate((((["a cat", " "], b, y), rest), ((b, a, y), rest), ((a, b, y),)), 2):
        n_encoded = sum(len(column) for split in splits for column in split[:2])
        assert_encodes(splits, folder, vocabulary, n_encoded)
        assert len(list(folder.iterdir())) == n_files
    for n_files, path in enumerate(vocabulary, 5):
        Path(path).write_text("changed")
        assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
        assert len(list(folder.iterdir())) == n_files
    monkeypatch.setattr(datasets, "version", lambda library: {"spacy": "1", "ftfy": "99"}[library])
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)


class Touch:
    """Pickled, a command to make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def flip(path: Path, place: bytes, offset: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(place) + offset] ^= mask
    path.write_bytes(content)


def pickled(path: Path) -> np.ndarray:
    return np.array([Touch(path.with_name("unpickled"))], object)


def save_array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.arange(9))


N_IDS = sum(len(text) for columns in SPLITS for column in columns[:2] for text in column)
DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit of an id": lambda path: flip(path, b"\n" + np.int32(ord("a")).tobytes(), 1, 2),
    "a bit of a length": lambda path: flip(path, b"\n" + np.int64(len("a cat")).tobytes(), 1, 1),
    "1009 of 9009 ids": lambda path: flip(path, b"(%d,)" % N_IDS, 1, 8),
    "1004 of 1804 lengths": lambda path: flip(path, b"(%d,)" % N_TEXTS, 2, 8),
    "pickled ids": lambda path: np.savez(path, ids=pickled(path), lengths=np.ones(N_TEXTS, int)),
    "pickled lengths": lambda path: np.savez(path, ids=np.zeros(9, int), lengths=pickled(path)),
    "a pickle": lambda path: pickled(path).dump(path),
    "an array of its own": save_array,
    "other arrays": lambda path: np.savez(path, ids=np.arange(9)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_encoded_texts_is_made_anew_and_executes_nothing(folder, vocabulary, damage):
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    damage(path)
    assert path.read_bytes() != content
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
    assert (list(folder.iterdir()), path.read_bytes()) == ([path], content)
    assert_encodes(SPLITS, folder, vocabulary, 0)


def full(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("obstacle", ["no folder", "a full disk", "a read-only folder"])
def test_texts_are_encoded_where_nothing_can_be_written(folder, vocabulary, monkeypatch, obstacle):
    if obstacle == "no folder":
        folder.rmdir()
    elif obstacle == "a full disk":
        monkeypatch.setattr(os, "fsync", full)
    else:
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("root writes everywhere")
    for _ in range(2):
        assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
        assert list(folder.parent.glob("data/*")) == []
