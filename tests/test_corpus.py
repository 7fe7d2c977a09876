"""Raw text: the merges learned from it, and its tokens, by any number of processes, stops and kills."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from launch import ROOT, TIMEOUT
from test_pretrain import write_corpus
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import text_utils
from formats.files import InputError, sha256
from reading import corpus
from reading.corpus import ByteRange, cut, document_lines, find_files, open_tokens, prepare
from reading.merges import learn_merges
from text_utils import TextEncoder, split_words

VOCABULARY = Path("encoder_bpe_40000.json"), Path("vocab_40000.bpe")
TOKENS = Path("tokens.bin"), Path("tokens.json")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("corpus.txt"))


def made(*names: str, **settings) -> list[int]:
    """Return the tokens of a corpus; a vocabulary that is missing is learned from it."""
    prepare(names or ["corpus.txt"], VOCABULARY, settings.pop("n_merges", 10), Path("."), **settings)
    assert not Path("shards").exists()
    return open_tokens(Path("."), len(TextEncoder(*VOCABULARY).encoder))[0].tolist()


def learn(n_merges: int) -> TextEncoder:
    """Return the encoder of a vocabulary learned from corpus.txt alone."""
    for path in VOCABULARY:
        path.unlink(missing_ok=True)
    made(n_merges=n_merges)
    return TextEncoder(*VOCABULARY)


def remove(*paths: str | Path) -> list[bytes]:
    """Remove files and return what they held."""
    held = [Path(path).read_bytes() for path in paths]
    for path in paths:
        Path(path).unlink()
    return held


@pytest.fixture
def small_shards(monkeypatch) -> int:
    """Cut corpora into shards of 500 bytes; the number of those of corpus.txt."""
    monkeypatch.setattr(corpus, "SHARD_BYTES", 500)
    return -(-Path("corpus.txt").stat().st_size // 500)


# --- merges and tokens -----------------------------------------------------------------------------------------------


def test_our_encoder_gives_the_ids_of_the_library_that_learnt_the_merges():
    encoder = learn(20)
    merges = [tuple(line.split()) for line in Path("vocab_40000.bpe").read_text().split("\n")[1:-1]]
    library = Tokenizer(models.BPE(encoder.encoder, merges, end_of_word_suffix="</w>", unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert len(merges) == 20
    for line in Path("corpus.txt").read_text().splitlines():
        words = split_words(line)
        (ids,) = encoder.encode([line], verbose=False)
        assert ids == library.encode(" ".join(words)).ids
        assert "".join(encoder.decoder[i] for i in ids).replace("</w>", " ").split() == words
        assert encoder.encode([encoder.decode(ids)], verbose=False) == [ids]


def test_the_vocabulary_is_laid_out_as_the_authors_and_learnt_alike_each_time():
    encoder = learn(20)
    first = [path.read_bytes() for path in VOCABULARY]
    assert encoder.decoder[0] == "<unk>" and encoder.decoder[len(encoder.decoder) - 1] == "\n</w>"
    learn(20)
    assert first == [path.read_bytes() for path in VOCABULARY]


@pytest.mark.parametrize("seed", range(20))
def test_merges_are_those_of_the_library(seed):
    rng = random.Random(seed)
    letters = "abcdefgh<>/w"[: rng.randint(1, 12)]
    words = [
        "".join(rng.choices(letters, k=rng.randint(1, rng.choice([3, 6, 30])))) for _ in range(rng.choice([5, 99]))
    ]
    text = rng.choices(words, [1 / (i + 1) for i in range(len(words))], k=rng.choice([9, 500]))
    characters = sorted(set("".join(text)))
    alphabet = ["<unk>", *characters, *(c + "</w>" for c in characters)]
    n_merges = rng.choice([1, 20, 1000])
    library = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + n_merges,
        special_tokens=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    library.train_from_iterator([" ".join(text)], trainer)
    learned = json.loads(library.to_str())["model"]
    tokens, merges = learn_merges(Counter(text), alphabet, n_merges)
    assert merges == [tuple(merge) for merge in learned["merges"]]
    assert {token: i for i, token in enumerate(tokens)} == learned["vocab"]


def test_pairs_that_occur_more_often_than_32_bits_can_count_are_merged_first():
    letters = ["<unk>", *"abcd", *(c + "</w>" for c in "abcd")]
    assert learn_merges({"abd": 2**40, "cd": 2**40 + 1}, letters, 2)[1] == [("c", "d</w>"), ("a", "b")]


def test_a_newline_within_a_line_is_no_character_of_the_vocabulary():
    Path("corpus.txt").write_bytes("the cat\u2028the mat\rthe end\n".encode())
    encoder = learn(5)
    assert len(encoder.encoder) == 1 + 2 * len(set("thecatmatend")) + 5 + 1
    assert made().count(encoder.encoder["\n</w>"]) == 3


@pytest.mark.parametrize("name", ["encoder_bpe_40000.json", "vocab_40000.bpe"])
def test_a_change_of_either_file_of_the_vocabulary_makes_other_tokens(name):
    learn(10)
    before = json.loads(Path("tokens.json").read_text())
    Path(name).write_bytes(Path(name).read_bytes() + b"\n")
    made()
    assert json.loads(Path("tokens.json").read_text())["vocabulary"] != before["vocabulary"]


def test_tokens_run_on_across_lines_each_ended_by_the_newline():
    encoder = learn(10)
    Path("corpus.txt").write_text("the cat\n\n  \na mat")
    cat, mat = encoder.encode(["the cat", "a mat"], verbose=False)
    newline = encoder.encoder["\n</w>"]
    assert made() == [*cat, newline, *mat, newline]
    assert made("corpus.txt", "corpus.txt") == [*cat, newline, *mat, newline]
    Path("other.txt").write_text("a mat")
    assert made("corpus.txt", "other.txt") == [*cat, newline, *mat, newline, *mat, newline]  # a file's end ends a line


def test_the_files_of_one_text_are_what_they_were_before_there_were_shards():
    learn(10)
    vocabulary = "".join(map(sha256, VOCABULARY))
    record = {"corpus": sha256(Path("corpus.txt")), "vocabulary": vocabulary, "sha256": sha256(Path("tokens.bin"))}
    assert json.loads(Path("tokens.json").read_text()) == record
    written = Path("tokens.bin").stat().st_mtime_ns
    made()
    assert Path("tokens.bin").stat().st_mtime_ns == written  # used, not made again


def test_a_damaged_token_file_is_named_and_made_again(capsys):
    learn(10)
    whole = made()
    content = bytearray(Path("tokens.bin").read_bytes())
    content[5] ^= 1
    Path("tokens.bin").write_bytes(content)
    assert made() == whole
    assert "tokens.bin is damaged" in capsys.readouterr().out


def test_memory_is_bounded_where_words_never_end(monkeypatch):
    learn(10)
    whole = made()
    before = [path.read_bytes() for path in VOCABULARY]
    remove(*TOKENS)
    monkeypatch.setattr(text_utils, "CACHED_WORDS", 100)
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 200)
    english = text_utils._english()
    load = Mock(return_value=english)  # not from the disk again
    monkeypatch.setattr(text_utils, "_english", load)
    assert made() == whole and load.cache_clear.called
    learn(10)
    assert before == [path.read_bytes() for path in VOCABULARY]


# --- shards and processes --------------------------------------------------------------------------------------------


def test_each_line_is_read_once_however_files_are_cut(monkeypatch):
    rng = random.Random(0)
    for n in range(60):
        monkeypatch.setattr(corpus, "SHARD_BYTES", rng.randint(1, 40))
        expected = []
        for i in range(3):
            lines = ["".join(rng.choices("ab é", k=rng.choice([0, 1, 5, 50]))) + "\n" for _ in range(rng.randint(0, 9))]
            content = "".join(lines)[: rng.choice([-1, None])].encode()
            Path(f"{i}.txt").write_bytes(b"\xef\xbb\xbf" * (n % 2) + content)
            expected += content.decode().splitlines(keepends=True)
        shards = cut(find_files(["0.txt", "1.txt", "2.txt"]))
        lines = [line for shard in shards for lines_of in shard.ranges for line in document_lines(lines_of)]
        assert expected == [line for line in lines if line]  # a byte order mark alone is an empty one
        assert [shard.number for shard in shards] == list(range(len(shards)))
        assert sum(shard.n_bytes() for shard in shards) == sum(Path(f"{i}.txt").stat().st_size for i in range(3))


def test_small_files_share_a_shard_and_a_gz_file_is_not_cut(monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_BYTES", 100)
    for name, size in (("a", 30), ("b", 60), ("c", 250), ("d", 0), ("e.gz", 300), ("f", 10)):
        Path(name).write_bytes(b"x" * size)
    shards = cut(map(Path, ["a", "b", "c", "d", "e.gz", "f"]))
    assert [[(str(path), start, end) for path, start, end, _ in shard.ranges] for shard in shards] == [
        [("a", 0, 30), ("b", 0, 60)],
        [("c", 0, 100)],
        [("c", 100, 200)],
        [("c", 200, 250)],
        [("e.gz", 0, 300)],
        [("f", 0, 10)],
    ]


def test_any_number_of_processes_makes_the_same_files(small_shards):
    learn(10)
    one = remove(*VOCABULARY, *TOKENS)
    made(n_workers=2)
    assert small_shards > 4 and one == remove(*VOCABULARY, *TOKENS)


def stop_after(n_lines: int, monkeypatch) -> None:
    """Tokenize a corpus, and stop when so many lines are done."""
    encode, lines_seen = TextEncoder.encode, []

    def encode_some(encoder, lines, verbose):
        if len(lines_seen) > n_lines:
            raise KeyboardInterrupt
        lines_seen.extend(lines)
        return encode(encoder, lines, verbose)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode", encode_some)
        with pytest.raises(KeyboardInterrupt):
            made()


def test_only_the_shards_that_are_missing_are_made(small_shards, monkeypatch):
    learn(10)
    (whole, _) = remove(*TOKENS)
    stop_after(15, monkeypatch)
    done = sorted(Path("shards").glob("*.tokens"))
    assert 2 <= len(done) < small_shards
    left = [line for shard in cut([Path("corpus.txt")])[len(done) :] for line in document_lines(shard.ranges[0])]
    encode, lines_seen = TextEncoder.encode, []
    calls = lambda encoder, lines, verbose: lines_seen.extend(lines) or encode(encoder, lines, verbose)  # noqa: E731
    monkeypatch.setattr(TextEncoder, "encode", calls)
    made()
    assert Path("tokens.bin").read_bytes() == whole and lines_seen == left


def test_a_changed_text_is_tokenized_again(small_shards, monkeypatch):
    learn(10)
    remove(*TOKENS)
    stop_after(15, monkeypatch)
    with open("corpus.txt", "a") as file:
        file.write("the cat\n")
    cat = TextEncoder(*VOCABULARY).encode(["the cat"], verbose=False)[0]
    assert made()[-1 - len(cat) : -1] == cat


def test_a_text_that_changes_while_it_is_read_is_named(monkeypatch):
    learn(10)
    encode = TextEncoder.encode

    def change(encoder, lines, verbose):
        os.utime("corpus.txt", ns=(1, 1))
        return encode(encoder, lines, verbose)

    remove(*TOKENS)
    monkeypatch.setattr(TextEncoder, "encode", change)
    with pytest.raises(InputError, match="^files of --corpus have changed meanwhile. Run the command again"):
        made()


PREPARE = """
import sys
from pathlib import Path
from reading import corpus
from running.command import exit_code
corpus.SHARD_BYTES, corpus.BATCH_CHARACTERS, n_workers = 1500, 200, int(sys.argv[1])
vocabulary = Path("encoder_bpe_40000.json"), Path("vocab_40000.bpe")
sys.exit(exit_code("it", lambda: corpus.prepare(["corpus.txt"], vocabulary, 10, Path("."), n_workers), "go on"))
"""


def start(n_workers: int) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PREPARE, str(n_workers)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers_of(process: subprocess.Popen) -> list[int]:
    """Return the ids of a process's workers; multiprocessing has a child of its own, too."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_until(condition, process: subprocess.Popen | None = None) -> bool:
    """Wait for a condition; return False when the process ended before."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        if process and process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def unbroken() -> list[bytes]:
    """Return what an unbroken run writes, and remove it."""
    write_corpus(Path("corpus.txt"), n_lines=300)
    learn(10)
    return remove(*VOCABULARY, *TOKENS)


def assert_same_in_the_end(whole: list[bytes]) -> None:
    process = start(2)
    assert process.communicate()[1] is not None and process.returncode == 0
    assert whole == [path.read_bytes() for path in (*VOCABULARY, *TOKENS)]
    assert not Path("shards").exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("n_kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_the_same_files(n_kills):
    whole, rng, n_killed = unbroken(), random.Random(n_kills), 0
    while n_killed < n_kills:
        process = start(rng.choice([1, 2]))
        before = len(list(Path("shards").glob("*"))) if Path("shards").exists() else 0
        # until it works, then for a random time
        working = wait_until(lambda before=before: len(list(Path("shards").glob("*"))) > before, process)
        time.sleep(0.1 * rng.random())
        workers = workers_of(process) if working and process.poll() is None else []
        process.kill()
        process.communicate()
        n_killed += process.returncode == -signal.SIGKILL
        assert wait_until(lambda workers=workers: all(map(has_ended, workers)))
        if process.returncode == 0:  # it had ended: begin again
            remove(*VOCABULARY, *TOKENS)
    assert_same_in_the_end(whole)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_a_worker_that_is_killed_is_one_message():
    write_corpus(Path("corpus.txt"), n_lines=300)
    process = start(2)
    assert wait_until(lambda: list(Path("shards").glob("*.words")), process)
    workers = workers_of(process)
    os.kill(workers[0], signal.SIGKILL)
    (message,) = [line for line in process.communicate()[1].replace("\r", "\n").split("\n") if "error" in line]
    assert process.returncode == 2
    assert "a worker process was killed, perhaps for lack of memory" in message and "with fewer workers" in message
    assert len(workers) == 2 and wait_until(lambda: all(map(has_ended, workers)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_ctrl_c_ends_all_workers():
    whole = unbroken()
    process = start(2)
    assert wait_until(lambda: list(Path("shards").glob("*.words")), process)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    err = process.communicate()[1]
    assert process.returncode == 130 and "it: stopped; go on" in err and "Traceback" not in err
    assert wait_until(lambda: all(map(has_ended, workers)))
    assert_same_in_the_end(whole)


def test_what_is_wrong_with_a_text_is_told_by_any_number_of_processes(small_shards):
    lines = Path("corpus.txt").read_bytes().split(b"\n")
    lines[40] = b"caf\xe9"
    Path("corpus.txt").write_bytes(b"\n".join(lines))
    for n_workers in (1, 2):
        with pytest.raises(InputError, match="^corpus.txt, line 41: not UTF-8. Convert the file: iconv -t utf-8$"):
            made(n_workers=n_workers)


# --- text files ------------------------------------------------------------------------------------------------------


def test_files_are_in_the_order_of_names_then_of_paths():
    for name in (
        "books/b.txt",
        "books/a/z.txt",
        "books/c.txt.gz",
        "books/.hidden",
        "books/.git/x",
        "one.txt",
        "two.txt",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    books = ["books/a/z.txt", "books/b.txt", "books/c.txt.gz"]
    assert list(map(str, find_files(["two.txt", "books", "one.txt"]))) == ["two.txt", *books, "one.txt"]
    assert list(map(str, find_files(["*.txt", "two.txt"]))) == ["corpus.txt", "one.txt", "two.txt"]
    assert list(map(str, find_files(["books/**/*.txt"]))) == books[:2]
    assert list(map(str, find_files(["b*"]))) == books
    Path("odd[1].txt").touch()
    assert find_files(["odd[1].txt"]) == [Path("odd[1].txt")]  # a file of that name goes before a glob


def test_compressed_files_give_the_same_tokens():
    learn(10)
    whole = made()
    Path("corpus.txt.gz").write_bytes(gzip.compress(Path("corpus.txt").read_bytes()))
    assert made("corpus.txt.gz") == whole
    assert made("corpus.txt*") == 2 * whole
    Path("corpus.txt.gz").rename("corpus.gz.txt")  # a name that does not say so
    assert made("corpus.gz.txt") == whole


def test_of_json_lines_one_field_is_read(small_shards):
    learn(10)
    whole = made()
    lines = Path("corpus.txt").read_text().splitlines()
    Path("corpus.jsonl").write_text("\n\n".join(json.dumps({"text": line, "id": "the"}) for line in lines))
    assert made("corpus.jsonl", field="text") == whole
    assert json.loads(Path("tokens.json").read_text())["field"] == "text"
    assert made("corpus.jsonl", field="id") != whole  # not those of the other field
    Path("one.jsonl").write_text(json.dumps({"text": "the cat\nthe mat"}))
    Path("one.txt").write_text("the cat the mat")
    assert made("one.jsonl", field="text") == made("one.txt")  # one document


def test_lines_are_read_without_a_byte_order_mark():
    Path("corpus.txt").write_bytes("\ufeffthe cat\r\na \ufeffmat".encode())
    assert list(document_lines(ByteRange(Path("corpus.txt"), 0, 100))) == ["the cat\r\n", "a \ufeffmat"]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "corpus.txt cannot be read .No such file or directory.. --corpus names a text file, a folder or a glob"),
        (b"the cat\ncaf\xe9\n", "corpus.txt, line 2: not UTF-8. Convert the file"),
        (b" \n\n", "corpus.txt holds no words. --corpus names a text file to learn from"),
    ],
    ids=["missing", "Latin-1", "no words"],
)
def test_a_text_to_learn_from_that_is_bad_is_named_and_no_vocabulary_is_written(content, message):
    Path("corpus.txt").unlink()
    if content is not None:
        Path("corpus.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"^{message}"):
        learn(10)
    assert not list(Path(".").glob("*bpe*"))


@pytest.mark.parametrize("line", ["the cat", '"the"', '{"title": "x"}', '{"text": null}', '[{"text": "x"}]'])
def test_a_line_without_the_field_is_named(line):
    Path("corpus.jsonl").write_text('{"text": "the cat"}\n' + line)
    with pytest.raises(InputError, match="corpus.jsonl, line 2: no JSON object with a text in the field 'text'"):
        made("corpus.jsonl", field="text")


@pytest.mark.parametrize(
    "names, message",
    [
        (["corpus.txt", "*.text"], "[*].text matches no file. --corpus names text files, folders or globs"),
        (["empty"], "empty holds no files. --corpus names text files, folders or globs"),
        (["cut.gz"], "cut.gz is not a whole .gz file .Compressed file ended.* Compress or fetch it again"),
        (["text.gz"], "text.gz is not a whole .gz file .Not a gzipped file.* Compress or fetch it again"),
        (["flipped.gz"], "flipped.gz is not a whole .gz file .* Compress or fetch it again"),
        (["corpus.txt", "latin.gz"], "latin.gz, line 3: not UTF-8"),
        (["utf16"], "utf16, line 1: UTF-16. Convert the file: iconv -f utf-16"),
        (["nul"], "nul, line 1: a NUL byte"),
        (["lines"], "lines, line 1: JSON, which is no text. --field NAME reads that field"),
        (["list"], "list, line 1: JSON, which is no text"),
    ],
)
def test_a_bad_file_among_others_is_named(names, message):
    whole = bytearray(gzip.compress(np.random.default_rng(0).bytes(9999).hex().encode()))
    Path("empty/.git").mkdir(parents=True)
    Path("cut.gz").write_bytes(whole[:-20])
    Path("text.gz").write_bytes(b"the cat\n")
    whole[len(whole) // 2] ^= 255
    Path("flipped.gz").write_bytes(whole)
    Path("utf16").write_bytes("the cat".encode("utf-16"))
    Path("nul").write_bytes("the cat".encode("utf-16-le"))
    Path("lines").write_text('{"text": "the cat"}\n')
    Path("list").write_text('[\n{"text": "the cat"}]\n')
    Path("latin.gz").write_bytes(gzip.compress(b"a\nb\ncaf\xe9\n"))
    with pytest.raises(InputError, match=f"^{message}"):
        made(*names)
    assert not list(Path(".").glob("*bpe*"))
