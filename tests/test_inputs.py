"""Examples -> rows: the paper's four layouts, cuts, batches, and the cache of encoded texts."""

import errno
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import inputs
import train
from datasets import Examples
from inputs import (
    CUTS,
    FORMS,
    KEPT_CACHES,
    Encoded,
    Rows,
    classification_rows,
    cut_halves,
    cut_longest,
    encode_cached,
    entailment_rows,
    multiple_choice_rows,
    similarity_rows,
    special_tokens,
)
from packing import Packing

SPECIAL = special_tokens(100)  # start 100, delimiter 101, classify 102


# --- the four layouts ------------------------------------------------------------------------------------------------


def test_special_tokens_follow_the_vocabulary():
    assert SPECIAL == (100, 101, 102) and inputs.N_SPECIAL == 3
    assert (SPECIAL.start, SPECIAL.delimiter, SPECIAL.classify) == (100, 101, 102)


def test_a_classification_is_one_row():
    assert classification_rows([[5, 6]], SPECIAL) == [[100, 5, 6, 102]]


def test_an_entailment_is_one_row_with_a_delimiter():
    assert entailment_rows([[5, 6], [7]], SPECIAL) == [[100, 5, 6, 101, 7, 102]]


def test_a_similarity_has_both_orders():
    assert similarity_rows([[5, 6], [7]], SPECIAL) == [[100, 5, 6, 101, 7, 102], [100, 7, 101, 5, 6, 102]]


def test_a_multiple_choice_has_a_row_for_each_choice():
    expected = [[100, 5, 6, 101, 7, 102], [100, 5, 6, 101, 8, 9, 102]]
    assert multiple_choice_rows([[5, 6], [7], [8, 9]], SPECIAL) == expected
    assert multiple_choice_rows([[5, 6], [7], [8, 9], []], SPECIAL) == [*expected, [100, 5, 6, 101, 102]]


@pytest.mark.parametrize("form, n_texts", [("classification", 2), ("entailment", 1), ("similarity", 3)])
def test_an_example_with_another_number_of_texts_is_an_error(form, n_texts):
    with pytest.raises(ValueError, match="values to unpack"):
        FORMS[form].rows([[1]] * n_texts, SPECIAL)


DOCSTRING_ROW = re.compile(r"\[[\d ]+\]")


@pytest.mark.parametrize(
    "form, n_texts", [("classification", 1), ("entailment", 2), ("similarity", 2), ("multiple_choice", 3)]
)
def test_the_example_in_each_docstring_is_what_the_function_returns(form, n_texts):
    lists = [[int(i) for i in text[1:-1].split()] for text in DOCSTRING_ROW.findall(FORMS[form].rows.__doc__)]
    texts, rows = lists[:n_texts], lists[n_texts:]
    assert rows and FORMS[form].rows(texts, SPECIAL) == rows


# --- examples too long for the network -------------------------------------------------------------------------------


def test_the_authors_cut_each_text_to_half_of_the_row():
    texts = [list(range(300)), list(range(254)), [1, 2], []]
    assert cut_halves(texts, "multiple_choice", 512) == [list(range(254)), list(range(254)), [1, 2], []]
    assert cut_halves([[1, 2, 3, 4], [5]], "multiple_choice", 10) == [[1, 2, 3], [5]]


@pytest.mark.parametrize(
    "form, texts, n_ctx, expected",
    [
        ("entailment", [[1, 2, 3, 4, 5], [6, 7]], 8, [[1, 2, 3], [6, 7]]),  # the docstring's
        ("similarity", [[1, 2], [3, 4, 5, 6, 7]], 8, [[1, 2], [3, 4, 5]]),
        ("entailment", [[1, 2, 3, 4, 5], [6, 7, 8, 9]], 8, [[1, 2, 3], [6, 7]]),  # both: to half
        ("entailment", [[1, 2, 3], [4, 5]], 8, [[1, 2, 3], [4, 5]]),
        ("entailment", [[], [4, 5, 6, 7, 8, 9]], 8, [[], [4, 5, 6, 7, 8]]),
        ("classification", [[1, 2, 3, 4, 5, 6, 7]], 8, [[1, 2, 3, 4, 5, 6]]),
        ("classification", [[1, 2, 3]], 8, [[1, 2, 3]]),
        ("multiple_choice", [[1, 2, 3, 4, 5], [6], [7, 8]], 8, [[1, 2, 3], [6], [7, 8]]),
        ("multiple_choice", [[1, 2, 3], [6], [7]], 8, [[1, 2, 3], [6], [7]]),
        ("multiple_choice", [[1, 2, 3], [6] * 6, [7]], 8, [[], [6] * 5, [7]]),
    ],
)
def test_the_longest_text_is_cut_at_its_end(form, texts, n_ctx, expected):
    assert [list(text) for text in cut_longest(texts, form, n_ctx)] == expected


def test_every_multiple_choice_is_cut_to_fit():
    rng = random.Random(0)
    for _ in range(300):
        n_ctx = rng.randint(6, 20)
        context, *choices = [[1] * rng.randint(0, 15) for _ in range(4)]
        rows = multiple_choice_rows(cut_longest([context, *choices], "multiple_choice", n_ctx), SPECIAL)
        longest = min(n_ctx, len(context) + max(map(len, choices)) + 3)
        assert max(map(len, rows)) == longest
        if max(map(len, choices)) <= n_ctx - 3:
            assert [row[row.index(101) + 1 : -1] for row in rows] == choices  # only the context was cut


@pytest.mark.parametrize("form, n_texts", [("classification", 1), ("entailment", 2), ("similarity", 2)])
def test_what_was_cut_fits_and_nothing_is_cut_without_need(form, n_texts):
    rng = random.Random(0)
    for _ in range(300):
        n_ctx = rng.randint(6, 20)
        texts = [[1] * rng.randint(0, 15) for _ in range(n_texts)]
        cut = cut_longest(texts, form, n_ctx)
        n_tokens = sum(map(len, cut)) + FORMS[form].n_special
        assert n_tokens == min(n_ctx, sum(map(len, texts)) + FORMS[form].n_special)
        for text, kept in zip(texts, cut, strict=True):
            assert kept == text[: len(kept)]
            assert len(kept) == len(text) or len(kept) >= max(map(len, cut)) - 1  # only the longest loses tokens


# --- batches ---------------------------------------------------------------------------------------------------------


def test_rows_are_laid_out_as_the_authors_do():
    x, m = train.transform_roc([[5, 6, 7, 8]], [[9]], [[10, 11, 12, 13]], n_vocab=100, n_ctx=9, max_len=3)
    assert x[0, :, :, 0].tolist() == [[100, 5, 6, 7, 101, 9, 102, 0, 0], [100, 5, 6, 7, 101, 10, 11, 12, 102]]
    assert (x[..., 1] == np.arange(103, 112)).all()
    assert m[0].tolist() == [[1] * 7 + [0] * 2, [1] * 9]


def test_a_special_id_inside_a_story_is_refused():
    with pytest.raises(ValueError, match="example 1: .* 102"):
        train.transform_roc([[1], [1, 102]], [[2], [2]], [[3], [3]], n_vocab=102, n_ctx=9, max_len=3)
    with pytest.raises(ValueError, match="102 or more"):
        Rows(Encoded.of([([1, 102], [2], [3])]), None, "multiple_choice", "halves", 102, 9)


def test_a_row_longer_than_the_input_is_refused():
    with pytest.raises(ValueError, match="example 1: 7 tokens do not fit n_ctx 6"):
        train.transform_roc([[1], [1, 2, 3]], [[2], [2]], [[3], [3]], n_vocab=100, n_ctx=6, max_len=3)


def test_longest_row_counts_the_longer_ending_and_cuts():
    encoded = Encoded.of([([1] * 10, [2], [3] * 2), ([1], [2] * 4, [3])])
    for max_len, expected in ((254, 10 + 2 + 3), (3, 3 + 3 + 3 - 1)):
        rows = Rows(encoded, None, "multiple_choice", "halves", 100, n_ctx=2 * (max_len + 2))
        assert rows.longest() == expected


def random_texts(rng: random.Random, n: int, n_texts: int, longest: int = 9) -> list[tuple[list[int], ...]]:
    return [
        tuple([rng.randrange(100) for _ in range(rng.randint(0, longest))] for _ in range(n_texts)) for _ in range(n)
    ]


@pytest.mark.parametrize("n_ctx", [10, 12, 64])
def test_transform_roc_and_a_batch_have_the_same_layout(n_ctx):
    texts, y = random_texts(random.Random(0), 20, 3), np.arange(20) % 2
    rows = Rows(Encoded.of(texts), y, "multiple_choice", "halves", 100, n_ctx)
    which = np.array([7, 3, 19, 0])
    x, m, labels = rows.batch(which)
    chosen = [texts[i] for i in which]
    columns = map(list, zip(*chosen, strict=True))
    expected_x, expected_m = train.transform_roc(*columns, 100, x.size(2), n_ctx // 2 - 2)
    assert (x.dtype, m.dtype) == (torch.int64, torch.float32)
    np.testing.assert_array_equal(x, expected_x)
    np.testing.assert_array_equal(m, expected_m)
    assert labels.tolist() == y[which].tolist()
    assert m.any(dim=1).any(dim=0).all()  # padded to the longest row, not beyond
    assert rows.longest() == max(rows.batch(np.array([i]))[0].size(2) for i in range(20)) <= n_ctx


@pytest.mark.parametrize(
    "form, n_texts, n_rows", [("classification", 1, 1), ("entailment", 2, 1), ("similarity", 2, 2)]
)
@pytest.mark.parametrize("cut", CUTS)
def test_every_form_makes_batches(form, n_texts, n_rows, cut):
    texts = random_texts(random.Random(1), 9, n_texts)
    rows = Rows(Encoded.of(texts), None, form, cut, 100, 12)
    x, m, y = rows.batch(np.arange(9))
    assert x.shape[:2] == (9, n_rows) and x.size(2) == rows.longest() <= 12 and y is None
    for i, example in enumerate(texts):
        expected = FORMS[form].rows(CUTS[cut](example, form, 12), SPECIAL)
        assert [x[i, k, : int(m[i, k].sum()), 0].tolist() for k in range(n_rows)] == expected
        assert all(row[-1] == SPECIAL.classify for row in expected)
    assert (x[..., 1] == 103 + torch.arange(x.size(2))).all() and (x[..., 0][m == 0] == 0).all()


def test_a_packed_batch_is_the_packing_of_the_batch():
    rows = Rows(Encoded.of(random_texts(random.Random(2), 9, 3)), np.arange(9), "multiple_choice", "halves", 100, 16)
    which, device = np.array([2, 8]), torch.device("cpu")
    for share_context in (False, True):
        packing, y = rows.packed(which, share_context, device)
        expected = vars(Packing(*rows.batch(which)[:2], share_context))
        assert y.tolist() == [2, 8] and vars(packing).keys() == expected.keys()
        for name, value in vars(packing).items():
            same = torch.equal(value, expected[name]) if isinstance(value, torch.Tensor) else value == expected[name]
            assert same, name


def test_the_first_examples_keep_texts_and_labels():
    texts = random_texts(random.Random(3), 9, 2)
    rows = Rows(Encoded.of(texts), np.arange(9), "entailment", "longest", 100, 16)
    for n in (1, 4, 9, 12):
        first = rows.first(n)
        assert len(first) == min(n, 9) and first.labels.tolist() == list(range(min(n, 9)))
        assert [first.rows(i) for i in range(len(first))] == [rows.rows(i) for i in range(min(n, 9))]


def test_encoded_texts_come_back_as_they_were():
    texts = [([1, 2], [], [3]), ([],), ([4], [5, 6, 7])]
    encoded = Encoded.of(texts)
    assert len(encoded) == 3 and [tuple(encoded.texts(i)) for i in range(3)] == texts
    assert len(Encoded.of([])) == 0


# --- the encoded texts -----------------------------------------------------------------------------------------------


class Letters:
    """An encoder that counts its work; ids are the letters' numbers."""

    n_encoded = 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.n_encoded += len(texts)
        return [[ord(letter) for letter in text] for text in texts]


SPLITS = (
    Examples([("a cat", "sat"), ("", "on")], np.array([0, 1])),
    Examples([("the mats.", text) for text in ["", *["x"] * 899]], np.arange(900)),
)
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
    """Check what encode_cached gives, text by text, and how many texts had to be encoded."""
    encoder = Letters()
    found = encode_cached(splits, encoder, folder, vocabulary)
    assert encoder.n_encoded == n_encoded
    for encoded, split in zip(found, splits, strict=True):
        texts = [encoded.texts(i) for i in range(len(encoded))]
        assert texts == [Letters().encode(example) for example in split.texts]
        assert {type(i) for example in texts for ids in example for i in ids} <= {int}


def test_encoded_texts_are_read_the_second_time(folder, vocabulary):
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    assert_encodes(SPLITS, folder, vocabulary, 0)
    assert (list(folder.iterdir()), path.read_bytes()) == ([path], content)


def test_other_texts_or_another_vocabulary_are_encoded_anew(folder, vocabulary, monkeypatch):
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
    first, rest = SPLITS
    changed = Examples([("a cat", "sat"), (" ", "on")], first.labels)
    reversed_ = Examples([texts[::-1] for texts in first.texts], first.labels)
    for n_files, splits in enumerate(((changed, rest), (reversed_, rest), (first,)), 2):
        assert_encodes(splits, folder, vocabulary, sum(len(texts) for split in splits for texts in split.texts))
        assert len(list(folder.iterdir())) == min(n_files, KEPT_CACHES)
    for n_files, path in enumerate(vocabulary, 5):
        Path(path).write_text("changed")
        assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)
        assert len(list(folder.iterdir())) == min(n_files, KEPT_CACHES)
    monkeypatch.setattr(inputs, "version", lambda library: {"spacy": "1", "ftfy": "99"}[library])
    assert_encodes(SPLITS, folder, vocabulary, N_TEXTS)


class Touch:
    """Pickled, a command to make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def flip(path: Path, after: bytes, offset: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(after) + offset] ^= mask
    path.write_bytes(content)


def pickled(path: Path) -> np.ndarray:
    return np.array([Touch(path.with_name("unpickled"))], object)


def save_array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.arange(9))


N_IDS = sum(len(text) for split in SPLITS for example in split.texts for text in example)
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


def test_splits_of_other_shapes_are_encoded_and_read(folder, vocabulary):
    none = Examples([], np.array([], int))
    uneven = Examples([("one",), ("context", "a", "", "choice")], np.array([0, 2]))
    for splits in ((none, uneven, none), (uneven, SPLITS[0], uneven)):
        n_texts = sum(len(texts) for split in splits for texts in split.texts)
        assert_encodes(splits, folder, vocabulary, n_texts)
        assert_encodes(splits, folder, vocabulary, 0)


def test_only_the_files_last_used_are_kept(folder, vocabulary):
    other = folder / "encoded.npz"  # of another name: not a cache
    other.write_text("mine")
    splits = [(Examples([(str(number),)], np.array([0])),) for number in range(KEPT_CACHES + 2)]

    def encode(number: int) -> Path:
        """Encode, a minute after the one before, and return the file used."""
        assert encode_cached(splits[number], Letters(), folder, vocabulary)[0].texts(0) == [[ord(str(number))]]
        newest = max(folder.glob("encoded_*.npz"), key=lambda path: path.stat().st_mtime_ns)
        for path in folder.glob("encoded_*.npz"):
            os.utime(path, (path.stat().st_atime - 60, path.stat().st_mtime - 60))
        return newest

    files = [encode(number) for number in range(KEPT_CACHES)]
    assert len(set(files)) == KEPT_CACHES == 4 and encode(0) == files[0]  # used again, so that the second is the oldest
    files.append(encode(KEPT_CACHES))
    assert set(folder.glob("encoded_*.npz")) == {files[0], *files[2:]}
    files.append(encode(KEPT_CACHES + 1))
    assert set(folder.glob("encoded_*.npz")) == {files[0], *files[3:]}
    assert other.read_text() == "mine"
