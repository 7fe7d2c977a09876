"""Encoded texts: as they were, from a cache that is made once, checked when read, and made again when damaged."""

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import Touch, contents

from formats.examples import Bad, Example
from formats.files import InputError
from reading import encoding
from reading.encoding import FILES, KEPT_CACHES, Encoded, SplitFiles, encode_cached
from reading.tasks import Source


def test_encoded_texts_come_back_as_they_were():
    texts = [([1, 2], [], [3]), ([],), ([4], [5, 6, 7])]
    encoded = Encoded.of(texts)
    assert len(encoded) == 3 and [tuple(encoded.texts(i)) for i in range(3)] == texts
    assert len(Encoded.of([])) == 0


# --- data whose reading and encoding can be followed -----------------------------------------------------------------


class Letters:
    """An encoder that counts its work; ids are the letters' numbers."""

    def __init__(self, *files: str):
        self.files = files
        self.n_encoded = 0

    def encode(self, texts: list[str], verbose: bool = True) -> list[list[int]]:
        self.n_encoded += len(texts)
        return [[ord(letter) for letter in text] for text in texts]


def read(folder: Path, file: str, separator: str = "|") -> Iterator[Example | Bad]:
    """Read lines of texts and, last, a label, which may be empty; "?" is a line that cannot be read."""
    path = folder / file
    if not path.exists():
        raise InputError(f"{path} is missing")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        *texts, label = line.split(separator)
        where = f"{path}, line {number}"
        yield Example(tuple(texts), label or None, where) if texts else Bad(where, "it asks", 2 * (label == "??"))


def source(file: str, part: str = "", optional: bool = False, **settings) -> Source:
    return Source((file,), partial(read, file=file, **settings), None, part, optional)


LINES = {
    "a.txt": ["a cat|sat|0", "|on a|1"],
    "b.txt": [f"the mats.|{text}|x{i % 2}" for i, text in enumerate([""] + 99 * ["x"])],
}
SOURCES = (source("a.txt", part="first"), source("b.txt", part="second"))
N_TEXTS = 204
N_IDS = 1011


@pytest.fixture
def vocabulary(tmp_path) -> tuple[str, str]:
    paths = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    for path in paths:
        path.write_text(path.name)
    return tuple(map(str, paths))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    for name, lines in LINES.items():
        (tmp_path / "data" / name).write_text("\n".join(lines))
    return tmp_path / "data"


def caches(folder: Path) -> list[Path]:
    return sorted(folder.glob("encod*"))


def assert_encodes(folder: Path, vocabulary: tuple[str, str], n_encoded: int, sources=SOURCES, **settings) -> Encoded:
    """Check what encode_cached gives, example by example, and whether its texts, n_encoded or 0, had to be encoded."""
    encoder = Letters(*vocabulary)
    found = encode_cached(SplitFiles(sources, folder, **settings), encoder)
    assert (encoder.n_encoded > 0) == (n_encoded > 0) and encoder.n_encoded <= n_encoded  # the same text but once
    chosen = [list(SplitFiles(sources, folder, **settings).chosen(source, [])) for source in sources]
    examples = [example for of_source in chosen for example in of_source]
    assert [found.texts(i) for i in range(len(found))] == [Letters().encode(example.texts) for example in examples]
    assert {type(i) for i in range(len(found)) for ids in found.texts(i) for i in ids} <= {int}
    for i, example in enumerate(examples):
        assert found.example(i) == example
    assert [found.names[code] if code >= 0 else None for code in found.codes] == [e.label for e in examples]
    assert found.parts == tuple((s.part, len(of_source)) for s, of_source in zip(sources, chosen, strict=True))
    return found


# --- made once -------------------------------------------------------------------------------------------------------


def test_encoded_texts_are_read_the_second_time(folder, vocabulary):
    first = assert_encodes(folder, vocabulary, N_TEXTS)
    (path,) = caches(folder)
    content = contents(path)
    assert len(first.ids) == N_IDS and first.names == ("0", "1", "x0", "x1")
    again = assert_encodes(folder, vocabulary, 0)
    assert isinstance(again.ids, np.memmap) and (again.n_bad, again.first_bad) == (0, "")
    assert caches(folder) == [path] and contents(path) == content


def test_a_folder_that_moves_keeps_its_cache_and_places_are_relative_to_it(folder, vocabulary):
    assert_encodes(folder, vocabulary, N_TEXTS)
    moved = folder.rename(folder.with_name("moved"))
    assert assert_encodes(moved, vocabulary, 0).example(1) == Example(("", "on a"), "1", "a.txt, line 2")


def test_labels_are_numbered_as_given_or_as_they_appear(folder, vocabulary):
    assert assert_encodes(folder, vocabulary, N_TEXTS).codes[:4].tolist() == [0, 1, 2, 3]
    known = ("x1", "1", "x0", "0")
    for n_encoded in (N_TEXTS, 0):
        found = assert_encodes(folder, vocabulary, n_encoded, labels=known)
        assert found.names == known and found.codes[:4].tolist() == [3, 1, 2, 0]


def change_a_text(path: Path) -> None:
    path.write_text(path.read_text().replace("a cat", "a rat"))


CHANGES = {  # what is changed, and the settings for the second time
    "a text": lambda folder, _: change_a_text(folder / "a.txt") or {},
    "a label": lambda folder, _: (folder / "a.txt").write_text("a cat|sat|1\n|on a|1") and {},
    "other order of the files": lambda *_: {"sources": SOURCES[::-1]},
    "one file": lambda *_: {"sources": SOURCES[:1]},
    "another setting of the reader": lambda *_: {"sources": (source("a.txt", separator="a"), SOURCES[1])},
    "known labels": lambda *_: {"labels": ("0", "1", "x0", "x1")},
    "fewer examples": lambda *_: {"max_examples": 5},
    "strict": lambda *_: {"strict": True},
    "the vocabulary": lambda _, vocabulary: Path(vocabulary[0]).write_text("changed") and {},
    "the merges": lambda _, vocabulary: Path(vocabulary[1]).write_text("changed") and {},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_texts_or_another_vocabulary_are_encoded_anew(folder, vocabulary, change):
    assert_encodes(folder, vocabulary, N_TEXTS)
    settings = change(folder, vocabulary)
    files = SplitFiles(**{"sources": SOURCES, "folder": folder} | settings)
    n_texts = sum(len(example.texts) for source in files.sources for example in files.chosen(source, []))
    assert_encodes(folder, vocabulary, n_texts, **settings)
    assert_encodes(folder, vocabulary, 0, **settings)
    assert len(caches(folder)) == 2


@pytest.mark.parametrize("what", ["ftfy", "spacy", "tokenizer", "readers"])
def test_another_version_of_what_encodes_encodes_anew(folder, vocabulary, monkeypatch, what):
    assert_encodes(folder, vocabulary, N_TEXTS)
    if what == "tokenizer":
        monkeypatch.setattr(encoding.text_utils, "VERSION", 99)
    elif what == "readers":
        monkeypatch.setattr(encoding, "READERS_VERSION", 99)
    else:
        version = encoding.version
        monkeypatch.setattr(encoding, "version", lambda library: "99" if library == what else version(library))
    assert_encodes(folder, vocabulary, N_TEXTS)


def test_a_folder_of_files_is_encoded_anew_when_one_changes(folder, vocabulary):
    (folder / "parts").mkdir()
    shutil.move(folder / "a.txt", folder / "parts")
    sources = (Source(("parts",), partial(read, file="parts/a.txt")),)
    for n_encoded in (4, 0):
        assert_encodes(folder, vocabulary, n_encoded, sources)
    change_a_text(folder / "parts/a.txt")
    assert_encodes(folder, vocabulary, 4, sources)
    (folder / "parts/b.txt").write_text("more")
    assert_encodes(folder, vocabulary, 4, sources)


def test_examples_are_encoded_some_at_a_time(folder, vocabulary, monkeypatch):
    monkeypatch.setattr(encoding, "EXAMPLES_PER_STEP", 7)
    steps, encode = [], Letters.encode
    monkeypatch.setattr(Letters, "encode", lambda self, texts, verbose=True: steps.append(texts) or encode(self, texts))
    encode_cached(SplitFiles(SOURCES, folder), Letters(*vocabulary))
    assert max(map(len, steps)) == 4 and len(steps) > 10  # different texts of 7 examples
    monkeypatch.undo()
    assert_encodes(folder, vocabulary, 0)


# --- lines that cannot be used ---------------------------------------------------------------------------------------


def test_a_line_that_cannot_be_used_is_counted_or_ends_it(folder, vocabulary):
    (folder / "a.txt").write_text("a|0\n?\nb|7\nc|1")
    files = SplitFiles(SOURCES[:1], folder, labels=("0", "1"))
    strict = replace(files, strict=True)
    for _ in range(2):  # read from the cache, too
        found = encode_cached(files, Letters(*vocabulary))
        assert [found.texts(i) for i in range(len(found))] == [[[ord("a")]], [[ord("c")]]]
        assert found.n_bad == 2 and found.first_bad == "a.txt, line 2: it asks"
    with pytest.raises(InputError, match=r"a\.txt, line 2: it asks"):
        encode_cached(strict, Letters(*vocabulary))
    (folder / "a.txt").write_text("a|0\nb|7")
    with pytest.raises(InputError, match=r"a\.txt, line 2: the label '7' is not one of 0, 1\. Fix the line"):
        encode_cached(strict, Letters(*vocabulary))
    assert len(caches(folder)) == 1  # nothing is left of what failed


def test_a_line_of_unlabelled_examples_keeps_its_number(folder, vocabulary):
    (folder / "a.txt").write_text("a|b|\n??\nc|d|")
    found = encode_cached(SplitFiles(SOURCES[:1], folder), Letters(*vocabulary))
    assert [found.texts(i) for i in range(3)] == [[[97], [98]], [[], []], [[99], [100]]]
    assert found.codes.tolist() == [-1, -1, -1] and found.n_bad == 1
    assert found.example(1) == Example(("", ""), None, "a.txt, line 2")


def test_a_file_without_examples_or_a_missing_one_is_named(folder, vocabulary):
    (folder / "a.txt").write_text("?")
    with pytest.raises(InputError, match=r"a\.txt holds no examples"):
        encode_cached(SplitFiles(SOURCES, folder), Letters(*vocabulary))
    (folder / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a\.txt is missing"):
        encode_cached(SplitFiles(SOURCES, folder), Letters(*vocabulary))
    assert caches(folder) == []
    optional = SplitFiles((source("a.txt", part="first", optional=True), SOURCES[1]), folder)
    assert encode_cached(optional, Letters(*vocabulary)).parts == (("second", 100),)


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def write_pickle(path: Path) -> None:
    np.array([Touch(path.parent.parent / "unpickled")], object).dump(path)


def flip_a_letter(path: Path, word: bytes) -> None:
    index = path / "index.json"
    flip(index, index.read_bytes().index(word) + 1)


DAMAGES = {
    f"{how}: {name}": partial(lambda damage, name, path: damage(path / name), damage, name)
    for name in (*FILES, "digests.json")
    for how, damage in {
        "missing": Path.unlink,
        "empty": lambda file: file.write_bytes(b""),
        "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "without its end": lambda file: file.write_bytes(file.read_bytes()[:-1]),
        "longer": lambda file: file.write_bytes(file.read_bytes() + bytes(4)),
        "a bit": lambda file: flip(file, file.stat().st_size // 2),
        "a pickle": write_pickle,
        "a folder": lambda file: (file.unlink(), file.mkdir()),
    }.items()
}
DAMAGES |= {
    "a letter of a label": lambda path: flip_a_letter(path, b"x1"),
    "a letter of a part": lambda path: flip_a_letter(path, b"second"),
    "digests that are a list": lambda path: (path / "digests.json").write_text("[]"),
    "no digests": lambda path: (path / "digests.json").write_text("{}"),
    "no files": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_encoded_texts_is_made_anew_and_executes_nothing(folder, vocabulary, capsys, damage):
    assert_encodes(folder, vocabulary, N_TEXTS)
    (path,) = caches(folder)
    content, files = contents(path), sorted(folder.iterdir())
    damage(path)
    assert_encodes(folder, vocabulary, N_TEXTS)
    assert f"{path} is damaged: encoding again" in capsys.readouterr().out
    assert sorted(folder.iterdir()) == files and contents(path) == content
    assert_encodes(folder, vocabulary, 0)


# --- where nothing can be written ------------------------------------------------------------------------------------


def raising(error: int, applies: Callable[..., bool], function: Callable) -> Callable:
    """Return a function that raises an OSError where its arguments are such, else does as the other."""

    def raise_or_do(*arguments, **keywords):
        if applies(*arguments, **keywords):
            raise OSError(error, os.strerror(error))
        return function(*arguments, **keywords)

    return raise_or_do


def forbid(monkeypatch, folder: Path, is_full: bool) -> None:
    """Let no file be written below a folder: as if it were read-only, or its disk full."""
    below = str(folder) + os.sep
    if is_full:
        opened = open

        def writes(path, mode="r", *_, **__) -> bool:
            return "w" in mode and str(path).startswith(below)

        monkeypatch.setattr("builtins.open", raising(errno.ENOSPC, writes, opened))
    else:

        def is_below(path, *_, **__) -> bool:
            return str(path).startswith(below)

        monkeypatch.setattr(Path, "mkdir", raising(errno.EACCES, is_below, Path.mkdir))


@pytest.mark.parametrize("obstacle", ["a full disk", "a read-only folder", "really a read-only folder"])
def test_texts_are_encoded_where_nothing_can_be_written(folder, vocabulary, tmp_path, monkeypatch, capsys, obstacle):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    if obstacle.startswith("really"):
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("root writes everywhere")
    else:
        forbid(monkeypatch, folder, obstacle == "a full disk")
    for _ in range(2):
        found = assert_encodes(folder, vocabulary, N_TEXTS)
        assert caches(folder) == list(elsewhere.iterdir()) == []
    monkeypatch.undo()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line]  # said once
    why = "No space left on device" if obstacle == "a full disk" else "Permission denied"
    assert line == f"{folder} takes no cache of encoded texts ({why}): each run encodes them again"
    assert len(found.ids) == N_IDS and found.ids[:5].tolist() == [ord(letter) for letter in "a cat"]


def test_no_room_anywhere_is_named(folder, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "data"))
    forbid(monkeypatch, folder, is_full=True)
    with pytest.raises(InputError, match="neither .*data nor .*data takes files .No space left on device"):
        encode_cached(SplitFiles(SOURCES, folder), Letters(*vocabulary))
    assert caches(folder) == []


def test_others_may_read_the_cache(folder, vocabulary):
    earlier = os.umask(0o022)
    try:
        assert_encodes(folder, vocabulary, N_TEXTS)
    finally:
        os.umask(earlier)
    (path,) = caches(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o644}


def test_two_processes_may_make_the_same_cache_at_once(folder, vocabulary, monkeypatch):
    write = encoding._write

    def write_while_another_does(path: Path, *arguments) -> None:
        monkeypatch.setattr(encoding, "_write", write)
        assert_encodes(folder, vocabulary, N_TEXTS)
        write(path, *arguments)

    monkeypatch.setattr(encoding, "_write", write_while_another_does)
    assert_encodes(folder, vocabulary, N_TEXTS)
    assert len(caches(folder)) == 1
    assert_encodes(folder, vocabulary, 0)


# --- other shapes, and what is left over -----------------------------------------------------------------------------


def test_splits_of_other_shapes_are_encoded_and_read(folder, vocabulary):
    (folder / "a.txt").write_text("one|\ncontext|a||choice|2\n|")
    for n_encoded in (6, 0):
        assert_encodes(folder, vocabulary, n_encoded, SOURCES[:1])
    (folder / "a.txt").write_text("|0\n|1")  # no ids at all
    for n_encoded in (2, 0):
        assert len(assert_encodes(folder, vocabulary, n_encoded, SOURCES[:1]).ids) == 0


def test_only_the_files_last_used_are_kept(folder, vocabulary):
    other = folder / "encoded.npz"  # of another name: not a cache
    other.write_text("mine")
    left, new = (folder / f"encoded_{16 * c}.0.part" for c in "ab")  # by killed processes, or being made
    left.mkdir()
    new.mkdir()
    os.utime(left, (0, time.time() - 25 * 3600))

    def made() -> set[Path]:
        return set(folder.glob("encoded_*")) - {left, new}

    def encode(number: int) -> Path:
        """Encode, a minute after the one before, and return the folder used."""
        (folder / "a.txt").write_text(f"{number}|0")
        found = encode_cached(SplitFiles(SOURCES[:1], folder), Letters(*vocabulary))
        assert found.texts(0) == [[ord(str(number))]]
        newest = max(made(), key=lambda path: path.stat().st_mtime_ns)
        for path in made():
            os.utime(path, (path.stat().st_atime - 60, path.stat().st_mtime - 60))
        return newest

    files = [encode(number) for number in range(KEPT_CACHES)]
    assert len(set(files)) == KEPT_CACHES == 8 and encode(0) == files[0]  # used again: the second is the oldest
    files.append(encode(KEPT_CACHES))
    assert made() == {files[0], *files[2:]}
    files.append(encode(KEPT_CACHES + 1))
    assert made() == {files[0], *files[3:]}
    assert other.read_text() == "mine" and new.exists() and not left.exists()
