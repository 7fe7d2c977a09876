"""Raw text of any size -> a vocabulary, and tokens in a memory-mapped file. Memory does not grow with the text.

    files -> shards -> words -> vocabulary -> tokens

The files are cut into shards. The words of each shard are counted, or its tokens written, by one of several processes.
What a shard gives is a file of its own, whole or not there, so that a run that is stopped or killed goes on with the
next shard. The result does not depend on the number of processes.

A document is a line: it ends with the newline token, as the authors' texts do. The end of a file also ends a line. In
JSON lines a document is the text in one field of an object, its newlines read as spaces.
"""

import gzip
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from formats.files import (
    InputError,
    copy_file,
    is_utf16,
    read_json,
    replacing,
    sha256,
    text_sha256,
    write_json,
)
from reading.files import find_files, unreadable
from reading.merges import learn_vocabulary
from reading.workers import in_processes
from text_utils import TextEncoder, split_words

SHARD_BYTES = 2**25  # of text; about 12 s of work
BATCH_CHARACTERS = 2**20  # that are tokenized at a time, or one line

Vocabulary = tuple[Path, Path]  # its two files


# --- files -> shards -------------------------------------------------------------------------------------------------


class ByteRange(NamedTuple):
    """The lines of a file that begin from byte `start` on and before byte `end`; always all lines of a gzip file."""

    path: Path
    start: int
    end: int
    field: str | None = None  # of JSON lines, which holds the text; None: the lines are text


class Shard(NamedTuple):
    """Byte ranges that are read together; small files share one."""

    number: int
    ranges: list[ByteRange]

    def n_bytes(self) -> int:
        return sum(of_file.end - of_file.start for of_file in self.ranges)


def is_gzip(path: Path) -> bool:
    """Return whether a file is compressed, by its name or by its first bytes."""
    with open(path, "rb") as file:
        return path.suffix == ".gz" or file.read(2) == b"\x1f\x8b"


def cut(files: Iterable[Path], field: str | None = None) -> list[Shard]:
    """Cut files into shards of about SHARD_BYTES; a larger gzip file is a shard."""
    shards: list[Shard] = []
    for path in files:
        # a gzip file is read from its beginning only
        size = path.stat().st_size
        step = max(size, 1) if is_gzip(path) else SHARD_BYTES

        # a range goes into the last shard while there is room in it
        for start in range(0, size, step):
            end = min(start + step, size)
            if not shards or shards[-1].n_bytes() + end - start > SHARD_BYTES:
                shards.append(Shard(len(shards), []))
            shards[-1].ranges.append(ByteRange(path, start, end, field))
    return shards


def document_lines(lines_of: ByteRange) -> Iterator[str]:
    """Yield the documents of a byte range. Raises InputError when the file is not UTF-8 text, or damaged."""
    path, start, end, field = lines_of
    codec = "utf-8-sig" if start == 0 else "utf-8"  # only the first line of a file may hold a byte order mark
    n_lines = 0
    try:
        is_compressed = is_gzip(path)
        open_file = gzip.open if is_compressed else open
        with open_file(path, "rb") as file:
            # a line that began before the range is not of it
            if start > 0:
                file.seek(start - 1)
                file.readline()
            while is_compressed or file.tell() < end:
                line = file.readline()
                if not line:
                    break
                n_lines += 1
                if is_utf16(line):
                    raise ValueError("UTF-16. Convert the file: iconv -f utf-16 -t utf-8")
                is_first = start == 0 and n_lines == 1
                yield document_of(line.decode(codec), field, is_first)
                codec = "utf-8"
    except ValueError as error:
        why = "not UTF-8. Convert the file: iconv -t utf-8" if isinstance(error, UnicodeDecodeError) else error
        number = _lines_before(path, start) + n_lines
        raise InputError(f"{path}, line {number}: {why}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole .gz file ({error}). Compress or fetch it again.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def document_of(line: str, field: str | None, is_first: bool) -> str:
    """Return the text of a line, or of a field of the object in it. Raises ValueError where there is none."""
    if "\0" in line:
        raise ValueError("a NUL byte, which no text in UTF-8 holds. Leave the file out, or convert it.")

    # a text, if it does not look like JSON
    begin = line.strip()
    if field is None or not begin:
        if is_first and (begin in ("[", "{") or begin.startswith(('{"', "[{", '["'))):
            raise ValueError("JSON, which is no text. --field NAME reads that field of the object in each line.")
        return line

    # an object
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        raise ValueError(f"no JSON object with a text in the field {field!r}. Fix the line, or change --field.")
    return " ".join(value[field].split("\n")) + "\n"


def _lines_before(path: Path, start: int) -> int:
    """Return how many lines begin before a byte of a file."""
    n_lines = 0
    with open(path, "rb") as file:
        while file.tell() < start:
            file.readline()
            n_lines += 1
    return n_lines


# --- shards -> words, shards -> tokens -------------------------------------------------------------------------------


def make_parts(shards: list[Shard], folder: Path, vocabulary: Vocabulary | None, n_workers: int) -> list[Path]:
    """Return a file for each shard, in order: its tokens or, without a vocabulary, a JSON object of counts of words.

    Those that the folder has are kept. Raises InputError for what is wrong with the text, or if it changes meanwhile.
    """
    # which are missing
    paths = _part_paths(shards, folder, vocabulary)
    missing = []
    for shard, path in zip(shards, paths, strict=True):
        if not path.exists():
            missing.append((shard, path))
    n_bytes = sum(shard.n_bytes() for shard, _ in missing)

    # each is made by one process
    task = "tokenizing" if vocabulary else "counting words"
    write = partial(write_part, vocabulary=vocabulary)
    with tqdm(desc=task, total=n_bytes, unit="B", unit_scale=True, ncols=100, leave=False) as bar:
        for (shard, _), _ in in_processes(write, missing, min(n_workers, len(missing))):
            bar.update(shard.n_bytes())

    if paths != _part_paths(shards, folder, vocabulary):
        raise InputError("files of --corpus have changed meanwhile. Run the command again.")
    return paths


def _part_paths(shards: list[Shard], folder: Path, vocabulary: Vocabulary | None) -> list[Path]:
    """Return the file of each shard's part. Its name tells what it was made from: it changes when that does."""
    kind = "tokens" if vocabulary else "words"
    digests = [sha256(path) for path in vocabulary or ()]
    paths = []
    for number, ranges in shards:
        # a digest of which bytes of which files, and when these were changed
        texts = []
        for path, start, end, field in ranges:
            state = path.stat()
            texts.append((path.name, start, end, field, state.st_size, state.st_mtime_ns))
        made_from = text_sha256(json.dumps([texts, digests]))
        paths.append(folder / f"{number:06d}.{made_from[:16]}.{kind}")
    return paths


def write_part(part: tuple[Shard, Path], vocabulary: Vocabulary | None) -> None:
    """Write a shard's counts of words or, with a vocabulary, its tokens to a file, whole or not at all."""
    shard, path = part
    lines = chain.from_iterable(map(document_lines, shard.ranges))
    with replacing(path) as file:
        if vocabulary is None:
            file.write(json.dumps(count_words(lines)).encode())
        else:
            for tokens in tokenized(lines, vocabulary):
                file.write(tokens.tobytes())


def count_words(lines: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(split_words(line))
    return counts


def tokenized(lines: Iterable[str], vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    """Yield the tokens of some lines at a time; each line that has any ends with the newline token."""
    encoder = TextEncoder(*vocabulary)
    newline = encoder.encoder.get("\n</w>", 0)  # 0: the unknown token
    dtype = token_type(encoder.n_vocab)
    for batch in _in_batches(lines):
        tokens: list[int] = []
        for line in encoder.encode(batch, verbose=False):
            if line:
                tokens += line
                tokens.append(newline)
        yield np.array(tokens, dtype)


def _in_batches(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield lines in lists of about BATCH_CHARACTERS."""
    batch = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch = []
            size = 0
    yield batch


# --- a corpus -> tokens ----------------------------------------------------------------------------------------------


def prepare(
    names: Iterable[str | os.PathLike],
    vocabulary: Vocabulary,
    n_merges: int,
    folder: Path,
    n_workers: int = 1,
    field: str | None = None,
) -> None:
    """Learn a vocabulary where there is none, and write a corpus as `tokens.bin` into a folder.

    What exists is used if it was made from this text and vocabulary, and made again if it is damaged.

    Args:
        names: files, folders and globs; see find_files.
        vocabulary: used if both files exist.
        folder: for `tokens.bin` and `tokens.json`; until then for the parts, in `shards/`.
        n_workers: processes.
        field: of the objects in JSON lines, which holds the text; None: the lines are text.

    Raises:
        InputError: for what is wrong with the text, and when a process was killed.
    """
    # files -> shards
    names = list(names)
    files = find_files(names)
    shards = cut(files, field)
    parts_folder = folder / "shards"
    parts_folder.mkdir(exist_ok=True)

    # words -> vocabulary
    learnt = (parts_folder / "vocabulary.json", parts_folder / "merges.bpe")
    if not all(path.exists() for path in vocabulary):
        check_none_of_another(vocabulary, learnt)
        counts: Counter[str] = Counter()
        for part in make_parts(shards, parts_folder, None, n_workers):
            counts.update(json.loads(part.read_bytes()))
        if not any(word.strip() for word in counts):
            corpus = " and ".join(map(str, names))
            raise InputError(f"{corpus} holds no words. --corpus names a text file to learn from.")

        # learnt beside the parts, so that a run that is stopped between the two files can tell whose the first is
        learn_vocabulary(counts, n_merges, *learnt)
        check_none_of_another(vocabulary, learnt)
        for source, target in zip(learnt, vocabulary, strict=True):
            copy_file(source, target)

    # vocabulary -> tokens
    made_from = {"corpus": _corpus_sha256(files), "vocabulary": "".join(map(sha256, vocabulary))}
    if field is not None:
        made_from["field"] = field
    if not _is_made(folder, made_from):
        tokens = folder / "tokens.bin"
        parts = make_parts(shards, parts_folder, vocabulary, n_workers)
        with replacing(tokens) as file:
            for part in parts:
                with open(part, "rb") as content:
                    shutil.copyfileobj(content, file)
        write_json(folder / "tokens.json", made_from | {"sha256": sha256(tokens)})

    # all is done: the parts are not needed
    shutil.rmtree(parts_folder, ignore_errors=True)


def check_none_of_another(vocabulary: Vocabulary, learnt: Vocabulary) -> None:
    """Raise InputError when one of the two files of a vocabulary is there, unless it was learnt from this corpus."""
    for path, copied_from in zip(vocabulary, learnt, strict=True):
        is_copy = path.exists() and copied_from.exists() and sha256(path) == sha256(copied_from)
        if path.exists() and not is_copy:
            names = " or ".join(file.name for file in vocabulary)
            raise InputError(
                f"{path} is there without the other file of its vocabulary, {names}. Add that one or move this away."
            )


def _corpus_sha256(files: list[Path]) -> str:
    """Return the digest of a file, or that of the digests of several."""
    digests = [sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else text_sha256("".join(digests))


def _is_made(folder: Path, made_from: dict[str, str]) -> bool:
    """Return whether `tokens.bin` was made from this corpus and vocabulary, and is undamaged."""
    # the record fits what is asked for
    tokens = folder / "tokens.bin"
    try:
        record = json.loads((folder / "tokens.json").read_text())
    except (OSError, ValueError):
        return False
    if not tokens.exists() or not isinstance(record, dict):
        return False
    if not made_from.items() <= record.items():
        return False

    # and the tokens fit the record
    is_whole = record.get("sha256") == sha256(tokens)
    if not is_whole:
        print(f"{tokens} is damaged: tokenizing again")
    return is_whole


def token_type(n_vocab: int) -> type:
    """Return the integers that `tokens.bin` holds."""
    return np.uint16 if n_vocab <= 2**16 else np.uint32


def open_tokens(folder: Path, n_vocab: int) -> tuple[np.ndarray, str]:
    """Return what `prepare` has written: the ids, memory-mapped, and the digest of the corpus."""
    path = folder / "tokens.bin"
    dtype = token_type(n_vocab)
    if path.stat().st_size > 0:
        tokens = np.memmap(path, dtype, "r")
    else:
        tokens = np.empty(0, dtype)  # nothing cannot be mapped
    record = read_json(folder / "tokens.json")
    return tokens, record["corpus"]
