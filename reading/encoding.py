"""Texts of a data set as token ids in memory-mapped files, made once; memory does not grow with the data."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import text_utils
from formats.examples import Bad, Example, Reader
from formats.files import InputError, sha256
from reading.tasks import Source
from text_utils import TextEncoder


@dataclass(frozen=True)
class Encoded:
    """The texts of a split as token ids, concatenated; in memory, or memory-mapped from files."""

    ids: np.ndarray  # int32
    text_ends: np.ndarray  # (number of texts,), where each text ends in ids
    example_ends: np.ndarray  # (N,), where each example ends in text_ends
    codes: np.ndarray | None = None  # (N,) index into names, -1 without a label
    names: tuple[str, ...] = ()  # labels as in the files, in order of first appearance
    parts: tuple[tuple[str, int], ...] = ()  # name and number of examples of each source
    n_bad: int = 0  # lines that could not be read
    first_bad: str = ""

    def __len__(self) -> int:
        return len(self.example_ends)

    def texts(self, i: int) -> list[list[int]]:
        """Return the token ids of each text of example i."""
        first = int(self.example_ends[i - 1]) if i else 0
        ends = self.text_ends[first : self.example_ends[i]].tolist()
        starts = [int(self.text_ends[first - 1]) if first else 0, *ends[:-1]]
        return [self.ids[start:end].tolist() for start, end in zip(starts, ends, strict=True)]

    def largest_id(self) -> int:
        """Return the largest token id, found once, reading a chunk at a time."""
        return self._largest_id

    @cached_property
    def _largest_id(self) -> int:
        chunks = (self.ids[start : start + 2**22] for start in range(0, len(self.ids), 2**22))
        return max((int(chunk.max()) for chunk in chunks), default=0)

    @classmethod
    def of(cls, examples: Sequence[Sequence[Sequence[int]]]) -> "Encoded":
        """Return an Encoded in memory of these examples, each a sequence of texts, each a sequence of ids."""
        texts = [text for example in examples for text in example]
        ids = np.array([i for text in texts for i in text], np.int32)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(ids, ends, np.cumsum([len(example) for example in examples], dtype=np.int64))


KEPT_CACHES = 8  # the most recently used folders encoded_* of a data folder
ARRAYS = {"ids": np.int32, "text_ends": np.int64, "example_ends": np.int64, "codes": np.int32}
EXAMPLES_PER_STEP = 1000  # encoded at a time


def encode_cached(
    sources: Sequence[Source],
    folder: Path,
    encoder: TextEncoder,
    vocabulary: Sequence[str | os.PathLike],
    labels: Sequence[str] | None = None,
    strict: bool = False,
    max_examples: int | None = None,
) -> Encoded:
    """Return the encoded examples of sources, memory-mapped from `encoded_<digest>/` in their folder.

    The digest covers the sources' files, the vocabulary's two files and the code that reads and tokenizes. Memory does
    not grow with the number of examples. A damaged cache is made again; a read-only folder gets none.

    Args:
        labels: the labels allowed; None: any.
        strict: stop at a line that cannot be read; else count it. A source with labels leaves such a line out; one
            without labels keeps it, with empty texts, as predictions are numbered by line.
        max_examples: read from each source; None: all.

    Raises:
        InputError: a file is missing, or with `strict` a line cannot be read, or there is no example at all.
    """
    sources = present(sources, folder)
    key = [[_describe(source.read), [_digest(folder / name) for name in source.files]] for source in sources]
    code = [sha256(Path(file)) for file in (*vocabulary, text_utils.__file__)]
    key += [code, version("ftfy"), version("spacy"), labels and list(labels), strict, max_examples]
    path = folder / f"encoded_{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    if (found := _read_encoded(path)) is not None:
        return found
    if path.exists():
        print(f"{path} is damaged: encoding again")

    def make(parent: Path | None) -> Encoded:
        with tempfile.TemporaryDirectory(prefix="encoding_", dir=parent, ignore_cleanup_errors=True) as temporary:
            (made := Path(temporary) / "made").mkdir()  # with the usual permissions, unlike the folder around it
            _write_encoded(made, sources, folder, encoder, labels, strict, max_examples)
            found = _read_encoded(made)  # stays readable when its files are renamed or removed
            if parent:
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):  # another process has made it meanwhile
                    os.replace(made, path)
                _remove_old(folder)
            return found

    try:
        return make(folder)
    except OSError:  # the folder is read-only or its disk is full
        pass
    try:
        return make(None)
    except OSError as error:
        raise InputError(f"neither {folder} nor {tempfile.gettempdir()} takes files ({error.strerror}).") from None


def present(sources: Sequence[Source], folder: Path) -> list[Source]:
    """Return sources without the optional ones whose files are missing."""
    return [s for s in sources if not s.optional or all((folder / name).exists() for name in s.files)]


def _describe(read: Reader) -> list:
    """Return the name of a reader, its settings and the digest of its code."""
    function, settings = getattr(read, "func", read), getattr(read, "keywords", {})
    return [function.__qualname__, repr(settings), sha256(Path(function.__code__.co_filename))]


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder."""
    if path.is_dir():
        lines = [f"{sha256(file)} {file.name}" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return sha256(path) if path.exists() else ""  # the reader says what is missing


def _remove_old(folder: Path) -> None:
    with suppress(OSError):
        for old in folder.glob("encoded_*.npz"):  # of an earlier version of this code
            old.unlink()
        for old in sorted(folder.glob("encoded_*"), key=lambda path: path.stat().st_mtime)[:-KEPT_CACHES]:
            shutil.rmtree(old, ignore_errors=True)
        for left in folder.glob("encoding_*"):  # by a process that was killed
            if left.stat().st_mtime < time.time() - 24 * 3600:
                shutil.rmtree(left, ignore_errors=True)


def _read_encoded(path: Path) -> Encoded | None:
    """Return what _write_encoded wrote, or None where it is missing or damaged."""
    try:
        note = json.loads((path / "index.json").read_text())
        expected = note.pop("sha256")
        if _digest_of_index(note) != expected["index"]:
            return None
        arrays = {}
        for name, dtype in ARRAYS.items():
            file = path / f"{name}.bin"
            if sha256(file) != expected[name]:
                return None
            arrays[name] = np.memmap(file, dtype, "r") if file.stat().st_size else np.zeros(0, dtype)
        with suppress(OSError):
            os.utime(path)
        parts = tuple((name, n) for name, n in note["parts"])
        return Encoded(
            **arrays, names=tuple(note["names"]), parts=parts, n_bad=note["n_bad"], first_bad=note["first_bad"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest_of_index(index: dict) -> str:
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()


def _write_encoded(
    path: Path,
    sources: Iterable[Source],
    folder: Path,
    encoder: TextEncoder,
    labels: Sequence[str] | None,
    strict: bool,
    max_examples: int | None,
) -> None:
    """Read and tokenize the examples of sources and write them as arrays into a folder."""
    names, bad, parts = {label: i for i, label in enumerate(labels or ())}, [], []
    text_end = example_end = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(path / f"{name}.bin", "wb")) for name in ARRAYS}
        bar = stack.enter_context(tqdm(desc="tokenizing", unit=" examples", ncols=80, leave=False))
        for source in sources:
            examples = islice(good_examples(source, folder, labels, strict, bad), max_examples)
            n = 0
            while step := list(islice(examples, EXAMPLES_PER_STEP)):
                rows = encoder.encode([text for example in step for text in example.texts], verbose=False)
                text_ends = text_end + np.cumsum([len(row) for row in rows])
                example_ends = example_end + np.cumsum([len(example.texts) for example in step])
                text_end, example_end = int(text_ends[-1]), int(example_ends[-1])
                codes = [-1 if e.label is None else names.setdefault(e.label, len(names)) for e in step]
                ids = [i for row in rows for i in row]
                for name, values in zip(ARRAYS, (ids, text_ends, example_ends, codes), strict=True):
                    files[name].write(np.array(values, ARRAYS[name]).tobytes())
                n += len(step)
                bar.update(len(step))
            if not n:
                raise InputError(f"{folder / source.files[0]} holds no examples. Fetch it again.")
            parts.append((source.part, n))
    digests = {name: sha256(path / f"{name}.bin") for name in ARRAYS}
    index = {"names": list(names), "parts": parts, "n_bad": len(bad), "first_bad": bad[0] if bad else ""}
    (path / "index.json").write_text(json.dumps(index | {"sha256": digests | {"index": _digest_of_index(index)}}))


def good_examples(
    source: Source, folder: Path, labels: Sequence[str] | None, strict: bool, bad: list[str]
) -> Iterator[Example]:
    """Yield the usable examples of a source; add to `bad` what is wrong with each other line.

    With `strict`, raises InputError at the first such line.
    """
    for example in source.read(folder):
        if isinstance(example, Example) and example.label is not None and labels and example.label not in labels:
            known = ", ".join(labels[:10]) + ", ..." * (len(labels) > 10)
            example = Bad(
                example.where, f"the label {example.label!r} is not one of {known}. Fix the line or remove it."
            )
        if isinstance(example, Example):
            yield example
            continue
        if strict:
            raise InputError(f"{example.where}: {example.why}")
        bad.append(f"{example.where}: {example.why}")
        if example.n_texts:
            yield Example(("",) * example.n_texts, None, example.where)
