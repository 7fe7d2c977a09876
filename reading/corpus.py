"""Raw text of any size -> a vocabulary, and tokens in a memory-mapped file. Memory does not grow with the text.

The files are cut into shards. Each shard's words are counted, or its tokens written, by one of several processes, and
on one of several hosts if they share a folder. A finished shard is kept, so that a run that is stopped or killed
continues with the next one. The result does not depend on the number of processes or hosts.

A document is a line: it ends with the newline token, as the authors' texts do. The end of a file also ends a line.
"""

import glob
import gzip
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from formats.files import InputError, read_json, replacing, sha256, write_json
from reading.merges import learn_vocabulary
from text_utils import TextEncoder, split_words, word_splitter

SHARD_BYTES = 2**25  # of text; about 12 s of work
BATCH_BYTES = 2**20  # of text in memory at a time, or one line
CACHED_WORDS = 2**18  # different words that a process remembers
N_DIGEST = hashlib.sha256().digest_size  # bytes of the digest at the end of a shard's result


# --- files -> shards -------------------------------------------------------------------------------------------------


def find_files(names: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the files that names of files, folders and globs stand for, in the order of the names, each file once.

    Those of a folder, with its subfolders but without hidden files, and those of a glob are in the order of their
    paths. Raises InputError for a name that stands for nothing, and for a file that cannot be opened.
    """
    files: dict[Path, None] = {}
    for name in map(str, names):
        matches = [Path(name)] if os.path.exists(name) else sorted(map(Path, glob.glob(name, recursive=True)))
        if not matches and glob.escape(name) != name:
            raise InputError(f"{name} matches no file. --corpus names text files, folders or globs.")
        found = [file for path in matches or [Path(name)] for file in (_files_in(path) if path.is_dir() else [path])]
        if not found:
            raise InputError(f"{name} holds no files. --corpus names text files, folders or globs.")
        for path in found:
            try:
                open(path, "rb").close()
            except OSError as error:
                raise _unreadable(path, error) from None
        files |= dict.fromkeys(found)
    return list(files)


def _files_in(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read ({error.strerror}). --corpus names a text file, a folder or a glob.")


class ByteRange(NamedTuple):
    """The lines of a file that begin from byte `start` on and before byte `end`; always all lines of a .gz file."""

    path: Path
    start: int
    end: int


class Shard(NamedTuple):
    """Byte ranges that are read together; small files share one."""

    number: int
    ranges: list[ByteRange]

    @property
    def size(self) -> int:
        return sum(r.end - r.start for r in self.ranges)


def cut(files: Iterable[Path]) -> list[Shard]:
    """Cut files into shards of about SHARD_BYTES; a larger .gz file is a shard."""
    shards: list[Shard] = []
    for path in files:
        size = path.stat().st_size
        step = max(size, 1) if path.suffix == ".gz" else SHARD_BYTES
        for start in range(0, size, step):
            added = ByteRange(path, start, min(start + step, size))
            if not shards or shards[-1].size + added.end - added.start > SHARD_BYTES:
                shards.append(Shard(len(shards), []))
            shards[-1].ranges.append(added)
    return shards


def read_lines(lines_of: ByteRange, progress: Callable[[int], object] = lambda _: None) -> Iterator[list[str]]:
    """Yield the lines of a byte range in lists of about BATCH_BYTES; report how many bytes of the file each list took.

    Raises InputError when the file is not UTF-8 text, or damaged.
    """
    path, start, end = lines_of
    is_compressed = path.suffix == ".gz"
    lines, n_bytes, number_ = [], 0, 0
    try:
        with open(path, "rb") as raw, gzip.open(raw) if is_compressed else nullcontext(raw) as file:
            if start:
                raw.seek(start - 1)
                raw.readline()  # the end of a line that began before
            at, reported = (-math.inf if is_compressed else raw.tell()), start

            def report() -> None:
                nonlocal reported
                now = min(raw.tell(), end)
                progress(now - reported)
                reported = now

            while at < end and (line := file.readline()):
                at += len(line)
                number_ += 1
                n_bytes += len(line)
                lines.append(line.decode("utf-8" if start or number_ > 1 else "utf-8-sig"))
                if n_bytes >= BATCH_BYTES:
                    yield lines
                    report()
                    lines, n_bytes = [], 0
            yield lines
            report()
    except UnicodeDecodeError:
        number_ += _lines_before(path, start)
        raise InputError(f"{path}, line {number_}: not UTF-8. Convert the file: iconv -t utf-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole .gz file ({error}). Compress or fetch it again.") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _lines_before(path: Path, start: int) -> int:
    """Return how many lines begin before a byte of a file."""
    if start == 0:
        return 0
    with open(path, "rb") as file:
        whole = sum(file.read(min(2**20, start - at)).count(b"\n") for at in range(0, start, 2**20))
        file.seek(start - 1)
        return whole + (file.read(1) != b"\n")


# --- the result of a shard -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What is made of each shard, as a file in a folder: its words and how often each occurs, or its tokens.

    The file ends with its digest. Its name tells what it was made from.
    """

    folder: Path
    vocabulary: tuple[Path, Path] | None = None  # to tokenize with; None: count words
    digest: str = ""  # of the vocabulary

    def path(self, shard: Shard) -> Path:
        """Return the file of a shard's result; another one if the text or the vocabulary was changed."""
        text = [(r.path.name, r.start, r.end, (s := r.path.stat()).st_size, s.st_mtime_ns) for r in shard.ranges]
        made_from = hashlib.sha256(json.dumps([text, self.digest]).encode()).hexdigest()[:16]
        return self.folder / f"{shard.number:06d}.{made_from}.{'tokens' if self.vocabulary else 'words'}"

    def is_done(self, shard: Shard) -> bool:
        """Return whether a shard's result is there, and undamaged."""
        try:
            for _ in read_result(self.path(shard)):
                pass
            return True
        except FileNotFoundError:
            return False
        except InputError as error:
            print(f"{error} It is made again.")
            return False

    def __call__(self, shard: Shard, progress: Callable[[int], object]) -> None:
        """Write the result of a shard, whole or not at all."""
        path, digest = self.path(shard), hashlib.sha256()
        batches = (lines for lines_of in shard.ranges for lines in read_lines(lines_of, progress))
        with replacing(path) as file:
            for content in _tokens(batches, self.vocabulary) if self.vocabulary else _words(batches):
                file.write(content)
                digest.update(content)
            file.write(digest.digest())


def _words(batches: Iterable[list[str]]) -> Iterator[bytes]:
    counts, nlp = Counter(), word_splitter()
    for lines in batches:
        for line in lines:
            counts.update(split_words(nlp, line))
        if len(nlp.vocab.strings) > CACHED_WORDS:
            nlp = word_splitter()
    yield json.dumps(counts).encode()


def _tokens(batches: Iterable[list[str]], vocabulary: tuple[Path, Path]) -> Iterator[bytes]:
    encoder = TextEncoder(*vocabulary)
    newline, dtype = encoder.encoder.get("\n</w>", 0), token_type(len(encoder.encoder))
    for lines in batches:
        rows = encoder.encode(lines, verbose=False)
        yield np.array([i for row in rows if row for i in (*row, newline)], dtype).tobytes()
        if len(encoder.cache) > CACHED_WORDS:
            encoder = TextEncoder(*vocabulary)


def read_result(path: Path) -> Iterator[bytes]:
    """Yield the content of a shard's file a chunk at a time. Raises InputError when it differs from its digest."""
    left, digest = path.stat().st_size - N_DIGEST, hashlib.sha256()
    with open(path, "rb") as file:
        while left > 0 and (chunk := file.read(min(left, 2**20))):
            left -= len(chunk)
            digest.update(chunk)
            yield chunk
        if file.read() != digest.digest():
            raise InputError(f"{path} is damaged.")


# --- several processes -----------------------------------------------------------------------------------------------


def n_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_on(work: Work, shards: list[Shard], n_workers: int) -> None:
    """Do the work for each shard, in this process or in several; whatever ends this one ends the others.

    Raises InputError for what is wrong with a shard, and when a process was killed.
    """
    what, n_bytes = "tokenizing" if work.vocabulary else "counting words", sum(shard.size for shard in shards)
    if not shards:
        return
    n_workers = min(n_workers, len(shards))
    with tqdm(desc=what, total=n_bytes, unit="B", unit_scale=True, ncols=100, leave=False) as bar:
        if n_workers < 2:
            for shard in shards:
                work(shard, bar.update)
            return
        with _workers(n_workers) as workers:
            waiting = iter(shards)
            while workers:
                for connection in wait(workers):
                    try:
                        message = connection.recv()
                        if isinstance(message, InputError):
                            raise message
                        if isinstance(message, int):
                            bar.update(message)
                        elif (shard := next(waiting, None)) is not None:
                            connection.send((work, shard))
                        else:
                            workers.pop(connection)
                    except (EOFError, ConnectionError):
                        raise InputError(
                            f"a process of --workers was lost (exit code {workers[connection].wait()}; -9: killed, "
                            "perhaps for lack of memory). Finished shards are kept: run the command again, with fewer "
                            "--workers if memory is short."
                        ) from None


@contextmanager
def _workers(n: int) -> Iterator[dict[Connection, subprocess.Popen]]:
    """Start processes that serve this one: not forks, as it may hold threads, torch and a GPU."""
    workers: dict[Connection, subprocess.Popen] = {}
    try:
        for _ in range(n):
            ours, theirs = Pipe()
            folder, descriptor = str(Path(__file__).resolve().parent.parent), theirs.fileno()
            program = (
                f"import sys; sys.path.insert(0, {folder!r}); from reading import corpus; corpus.serve({descriptor})"
            )
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            workers[ours] = subprocess.Popen(
                [sys.executable, "-P", "-c", program], pass_fds=[descriptor], stdin=subprocess.DEVNULL, env=environment
            )
            theirs.close()
        yield dict(workers)
    finally:
        for connection, process in workers.items():
            process.kill()
            process.wait()
            connection.close()


def serve(descriptor: int) -> None:
    """Do the work for the shards that the parent process sends, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes at once; the parent ends this one
        signal.signal(number, signal.SIG_IGN)
    with Connection(descriptor) as parent, suppress(EOFError, ConnectionError):
        parent.send(None)  # ready
        while True:
            work, shard = parent.recv()
            try:
                work(shard, parent.send)
            except InputError as error:
                parent.send(error)
            else:
                parent.send(None)


# --- a corpus -> tokens ----------------------------------------------------------------------------------------------


def prepare(
    names: Iterable[str | os.PathLike],
    vocabulary: tuple[Path, Path],
    n_merges: int,
    folder: Path,
    n_workers: int = 1,
    part: tuple[int, int] | None = None,
) -> int:
    """Learn a vocabulary where there is none, and write a corpus as `tokens.bin`; return the number of missing shards.

    What exists is used if it was made from this text and vocabulary, and made again if it is damaged.

    Args:
        names: files, folders and globs; see find_files.
        vocabulary: its two files; used if both exist.
        folder: for `tokens.bin` and `tokens.json`; until then for the shards.
        n_workers: processes.
        part: (k, n): make every n-th shard only, from the k-th on; calls for the other parts, in the same folder, make
            the rest, and a call without a part then joins all. Without a vocabulary, the shards are counts of words:
            once none is missing, a second call makes those of tokens.
    """
    files = find_files(names)
    (folder / "shards").mkdir(exist_ok=True)
    if not all(path.exists() for path in vocabulary):
        work = Work(folder / "shards")
        shards, n_missing = _make(work, files, n_workers, part)
        if n_missing:
            return n_missing
        counts = total(work, shards)
        if not any(map(str.strip, counts)):
            raise InputError(
                f"{' and '.join(map(str, names))} holds no words. --corpus names a text file to learn from."
            )
        learn_vocabulary(counts, n_merges, *vocabulary)

    digest, (done, record) = "".join(map(sha256, vocabulary)), (folder / "tokens.bin", folder / "tokens.json")
    if not _is_made(done, record, files, digest):
        work = Work(folder / "shards", vocabulary, digest)
        shards, n_missing = _make(work, files, n_workers, part)
        if n_missing or part:
            return n_missing
        with replacing(done) as file:
            for shard in shards:
                for chunk in read_result(work.path(shard)):
                    file.write(chunk)
        write_json(record, {"corpus": _digest(files), "vocabulary": digest, "sha256": sha256(done)})
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return 0


def total(work: Work, shards: list[Shard]) -> Counter[str]:
    """Return how often each word occurs, by the shards' results."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(json.loads(b"".join(read_result(work.path(shard)))))
    return counts


def _make(work: Work, files: list[Path], n_workers: int, part: tuple[int, int] | None) -> tuple[list[Shard], int]:
    """Do the work for a part of the shards of files; return all shards, and how many have no result yet."""
    shards, (k, n) = cut(files), part or (1, 1)
    work_on(work, [shard for shard in shards[k - 1 :: n] if not work.is_done(shard)], n_workers)
    n_missing = sum(not work.path(shard).exists() for shard in shards)
    if n_missing and not part:
        raise InputError("files of --corpus have changed meanwhile. Run the command again.")
    return shards, n_missing


def _is_made(done: Path, record: Path, files: list[Path], vocabulary: str) -> bool:
    """Return whether `tokens.bin` was made from these files and this vocabulary, and is undamaged."""
    try:
        made = json.loads(record.read_text())
        if made["vocabulary"] != vocabulary or not done.exists() or made["corpus"] != _digest(files):
            return False
        is_whole = made["sha256"] == sha256(done)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not is_whole:
        print(f"{done} is damaged: tokenizing again")
    return is_whole


def _digest(files: list[Path]) -> str:
    """Return the digest of a file, or that of the digests of several."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(sha256, files))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def token_type(n_vocab: int) -> type:
    """Return the integers that `tokens.bin` holds."""
    return np.uint16 if n_vocab <= 2**16 else np.uint32


def open_tokens(folder: Path, n_vocab: int) -> tuple[np.ndarray, str]:
    """Return what `prepare` has written: the ids, memory-mapped, and the digest of the corpus."""
    path, dtype = folder / "tokens.bin", token_type(n_vocab)
    tokens = np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
    return tokens, read_json(folder / "tokens.json")["corpus"]
