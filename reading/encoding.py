"""Examples of a data set as token ids in memory-mapped files, made once; memory does not grow with the data.

A cache is a folder `encoded_<key>` beside the data. It holds the ids, and each example as it was read, as JSON.
"""

import hashlib
import json
import os
import reprlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import text_utils
from formats.examples import READERS_VERSION, Bad, Example
from formats.files import InputError, digests, placing, reason, sha256
from reading.tasks import Source, hold_out
from text_utils import TextEncoder


@dataclass(frozen=True)
class Encoded:
    """The examples of a split, their texts as token ids; in memory, or memory-mapped from files.

    All ids stand one after another: the examples ([5, 6], [7]) and ([8, 9, 9],) have the ids 5 6 7 8 9 9, the
    text_ends 2 3 6 and the example_ends 2 3.
    """

    ids: np.ndarray  # int32, of all texts
    text_ends: np.ndarray  # (number of texts,), where each text ends in ids
    example_ends: np.ndarray  # (N,), where each example ends in text_ends
    codes: np.ndarray | None = None  # (N,) index into names, -1 without a label
    names: tuple[str, ...] = ()  # labels as in the files, in order of first appearance
    records: np.ndarray | None = None  # bytes: each example as JSON; None: not read from a file
    record_ends: np.ndarray | None = None  # (N,), where each example ends in records
    parts: tuple[tuple[str, int], ...] = ()  # name and number of examples of each source
    n_bad: int = 0  # lines that could not be read
    first_bad: str = ""

    def __len__(self) -> int:
        return len(self.example_ends)

    def texts(self, i: int) -> list[list[int]]:
        """Return the token ids of each text of example i."""
        first, last = _bounds(self.example_ends, i)
        found = []
        for k in range(first, last):
            start, end = _bounds(self.text_ends, k)
            found.append(self.ids[start:end].tolist())
        return found

    def example(self, i: int) -> Example:
        """Return example i as it was read; its place is relative to the data folder, which may have moved."""
        start, end = _bounds(self.record_ends, i)
        texts, *others = json.loads(self.records[start:end].tobytes())
        return Example(tuple(texts), *others)

    @classmethod
    def of(cls, examples: Sequence[Sequence[Sequence[int]]]) -> "Encoded":
        """Return an Encoded in memory of these examples, each a sequence of texts, each a sequence of ids."""
        texts = list(chain.from_iterable(examples))
        all_ids = list(chain.from_iterable(texts))
        return cls(np.array(all_ids, np.int32), _ends(texts), _ends(examples))


def _ends(items: Sequence) -> np.ndarray:
    """Return where items end that stand in a row."""
    return np.cumsum([len(item) for item in items], dtype=np.int64)


def _bounds(ends: np.ndarray, i: int) -> tuple[int, int]:
    """Return where item i starts and ends."""
    start = int(ends[i - 1]) if i > 0 else 0
    return start, int(ends[i])


# --- unknown tokens --------------------------------------------------------------------------------------------------

MANY_UNKNOWN = 0.1  # fraction of the tokens
READ_AS_ONE = "the network reads all unknown tokens as one. Is the text in the vocabulary's language?"


def describe_unknown(ids: Sequence[np.ndarray], encoder: TextEncoder) -> list[str]:
    """Return in words how many of some token ids are that of the unknown token; above a tenth with a warning."""
    if not has_unknown(encoder):
        return []
    n_tokens = sum(map(len, ids))
    n_known = sum(map(np.count_nonzero, ids))
    share = 1 - n_known / max(1, n_tokens)
    lines = [f"unknown  {share:.2%} of the tokens are not in the vocabulary"]
    if share > MANY_UNKNOWN:
        lines.append(f"warning  {READ_AS_ONE}")
    return lines


def has_unknown(encoder: TextEncoder) -> bool:
    """Return whether token 0 stands for what is not in the vocabulary."""
    return encoder.decoder[0] == "<unk>"


# --- what is encoded -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split, and which of their examples are used."""

    sources: Sequence[Source]
    folder: Path  # of the data set
    labels: Sequence[str] | None = None  # those allowed; None: any
    strict: bool = False  # stop at a line that cannot be read; else count it
    max_examples: int | None = None  # of each source; None: all
    seed: int = 0  # that decides which of them

    def present(self) -> list[Source]:
        """Return the sources without the optional ones whose files are missing."""
        return [source for source in self.sources if not source.optional or source.is_in(self.folder)]

    def chosen(self, source: Source, bad: list[str]) -> Iterator[Example]:
        """Yield max_examples of the usable examples of a source, in its order; the same share of each label."""
        if self.max_examples is None:
            yield from self.examples(source, bad)
            return

        # the source is read twice: to choose by the labels, and to yield what was chosen
        labels = np.array([str(example.label) for example in self.examples(source, [])])
        chosen = set(range(len(labels)))
        if len(labels) > self.max_examples:
            path = self.folder / source.files[0]
            _, drawn = hold_out(labels, self.max_examples, self.seed, True, path)
            chosen = set(drawn.tolist())
        for i, example in enumerate(self.examples(source, bad)):
            if i in chosen:
                yield example

    def examples(self, source: Source, bad: list[str]) -> Iterator[Example]:
        """Yield the usable examples of a source; add to `bad` what is wrong with each other line.

        A source with labels leaves such a line out; one without labels keeps it, with empty texts, as predictions are
        numbered by line. With `strict`, raises InputError at the first such line.
        """
        for found in source.read(self.folder):
            where = found.where.removeprefix(f"{self.folder}{os.sep}")

            # an example whose label is allowed, or unknown
            if isinstance(found, Example):
                if not self.labels or found.label is None or found.label in self.labels:
                    yield found._replace(where=where)
                    continue
                if found.label == "-" and not self.strict:  # SNLI's and MNLI's word for it
                    bad.append(f"{where}: its annotators agreed on no label: left out, as the authors do.")
                    continue
                known = ", ".join(self.labels[:10])[:100]
                if len(self.labels) > 10:
                    known += ", ..."
                why = f"the label {reprlib.repr(found.label)} is not one of {known}. Fix the line or remove it."
                found = Bad(found.where, why)

            # a line that cannot be used
            if self.strict:
                raise InputError(f"{found.where}: {found.why}")
            bad.append(f"{where}: {found.why}")
            if found.n_texts:
                yield Example(("",) * found.n_texts, None, where)

    def key(self, encoder: TextEncoder) -> str:
        """Return the digest of all that decides what is encoded, and how."""
        # the files, and how they are read
        sources = []
        for source in self.present():
            files = {name: _digests(self.folder / name) for name in source.files}
            reader = source.read  # a partial: a function and its settings
            sources.append([reader.func.__qualname__, repr(reader.keywords), files])

        # the tokenizer, and what chooses examples
        vocabulary = [sha256(Path(file)) for file in encoder.files]
        versions = [text_utils.VERSION, READERS_VERSION, version("ftfy"), version("spacy")]
        labels = list(self.labels) if self.labels else None
        key = json.dumps([sources, vocabulary, versions, labels, self.strict, self.max_examples])
        if self.max_examples is not None:
            key += str(self.seed)
        return hashlib.sha256(key.encode()).hexdigest()[:16]


def _digests(path: Path) -> dict[str, str]:
    """Return name -> SHA-256 of a file, or of all files of a folder; none if it is missing, which the reader says."""
    if path.is_dir():
        return digests(sorted(file for file in path.iterdir() if file.is_file()))
    return digests([path]) if path.exists() else {}


# --- the cache -------------------------------------------------------------------------------------------------------

KEPT_CACHES = 8  # of a data folder: those used last
EXAMPLES_PER_STEP = 1000  # encoded at a time
ARRAYS = ("ids", "n_ids", "n_texts", "n_bytes", "codes")  # int32: all ids; ids of a text; the others of an example
FILES = [*ARRAYS, "records.jsonl", "index.json"]


def encode_cached(split: SplitFiles, encoder: TextEncoder) -> Encoded:
    """Return the encoded examples of a split, from the cache in its folder if there is one that fits.

    A damaged cache is made again; a folder that takes no files gets none.

    Raises InputError: a file is missing, or with `strict` a line cannot be read, or a source has no example at all.
    """
    # one that was made before
    path = split.folder / f"encoded_{split.key(encoder)}"
    found = _read(path)
    if found is not None:
        return found
    if path.exists():
        print(f"{path} is damaged: encoding again")
        shutil.rmtree(path, ignore_errors=True)

    # a new one; it stays readable when its files are renamed or removed: they are memory-mapped
    try:
        found = _make_cache(path, split, encoder)
        _remove_old(split.folder)
        return found
    except OSError as error:
        _say_no_cache(split.folder, reason(error))

    # none where the data is, but one that is gone with this process
    try:
        with tempfile.TemporaryDirectory() as temporary:
            _write(Path(temporary), split, encoder)
            return _read(Path(temporary))
    except OSError as error:
        places = f"{split.folder} nor {tempfile.gettempdir()}"
        raise InputError(f"neither {places} takes files ({reason(error)}).") from None


def _make_cache(path: Path, split: SplitFiles, encoder: TextEncoder) -> Encoded:
    """Encode into a folder beside `path`, which gets that name when it is complete."""
    found = None
    try:
        with placing(path, path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")) as beside:
            beside.mkdir()
            _write(beside, split, encoder)
            found = _read(beside)
    except OSError:
        # where it is complete, another process may have made one meanwhile
        if found is None or not path.exists():
            raise
    return found


@cache
def _say_no_cache(folder: Path, why: str) -> None:
    """Print a line, once for a folder: several splits are encoded from it."""
    print(f"{folder} takes no cache of encoded texts ({why}): each run encodes them again")


def _remove_old(folder: Path) -> None:
    """Remove the caches that were used longest ago, and what killed processes have left behind."""
    with suppress(FileNotFoundError):  # another process may do the same
        caches = list(folder.glob("encoded_" + 16 * "?"))
        caches.sort(key=lambda path: path.stat().st_mtime)
        for path in caches[:-KEPT_CACHES]:
            shutil.rmtree(path, ignore_errors=True)

        # those that no process can be at work on still
        for path in folder.glob("encoded_*.part"):
            if path.stat().st_mtime < time.time() - 24 * 3600:
                shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> Encoded | None:
    """Return what _write wrote, or None where it is missing or damaged."""
    try:
        known = json.loads((path / "digests.json").read_text())
        if known != digests(path / name for name in FILES):
            return None
        index = json.loads((path / "index.json").read_text())
        n_ids, n_texts, n_bytes, codes = (np.fromfile(path / name, np.int32) for name in ARRAYS[1:])
        ids = np.zeros(0, np.int32)
        if n_ids.any():  # else nothing, which cannot be mapped
            ids = np.memmap(path / "ids", np.int32, "r")
        records = np.memmap(path / "records.jsonl", np.uint8, "r")
    except (OSError, ValueError, InputError):
        return None
    with suppress(OSError):  # in a folder that takes no files
        os.utime(path)  # the time of its last use
    return Encoded(
        ids,
        text_ends=np.cumsum(n_ids, dtype=np.int64),
        example_ends=np.cumsum(n_texts, dtype=np.int64),
        codes=codes,
        records=records,
        record_ends=np.cumsum(n_bytes, dtype=np.int64),
        names=tuple(index["names"]),
        parts=tuple((part, n) for part, n in index["parts"]),
        n_bad=index["n_bad"],
        first_bad=index["first_bad"],
    )


def _write(path: Path, split: SplitFiles, encoder: TextEncoder) -> None:
    """Read and tokenize the examples of a split, and write the files of a cache into a folder."""
    # the numbers of the labels; those that the split does not fix are in the order of their first appearance
    codes = {label: i for i, label in enumerate(split.labels or ())}
    parts = []
    bad = []
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(path / name, "wb")) for name in FILES}
        bar = stack.enter_context(tqdm(desc="tokenizing", unit=" examples", ncols=80, leave=False))
        for source in split.present():
            n = 0
            examples = split.chosen(source, bad)
            while step := list(islice(examples, EXAMPLES_PER_STEP)):
                for name, content in _contents(step, encoder, codes).items():
                    files[name].write(content)
                n += len(step)
                bar.update(len(step))
            if n == 0:
                path_read = split.folder / source.files[0]
                raise InputError(f"{path_read} holds no examples. Is it another file that is meant?")
            parts.append((source.part, n))

        # what is known at the end
        index = {"names": list(codes), "parts": parts}
        index |= {"n_bad": len(bad), "first_bad": bad[0] if bad else ""}
        files["index.json"].write(json.dumps(index).encode())
    of_files = digests(path / name for name in FILES)
    (path / "digests.json").write_text(json.dumps(of_files))


def _contents(examples: Sequence[Example], encoder: TextEncoder, codes: dict[str, int]) -> dict[str, bytes]:
    """Return what some examples add to each file of a cache but the index; `codes` gets a number for a new label."""
    for example in examples:
        if example.label is not None:
            codes.setdefault(example.label, len(codes))

    # a text that several examples share, such as an article with its questions, is tokenized once
    texts = list(chain.from_iterable(example.texts for example in examples))
    different = list(dict.fromkeys(texts))
    known = dict(zip(different, encoder.encode(different, verbose=False), strict=True))
    ids = [known[text] for text in texts]

    # a line for each example
    records = [json.dumps(example).encode() + b"\n" for example in examples]
    arrays = {
        "ids": list(chain.from_iterable(ids)),
        "n_ids": [len(text) for text in ids],
        "n_texts": [len(example.texts) for example in examples],
        "n_bytes": [len(record) for record in records],
        "codes": [codes.get(example.label, -1) for example in examples],
    }
    contents = {name: np.array(values, np.int32).tobytes() for name, values in arrays.items()}
    return contents | {"records.jsonl": b"".join(records)}
