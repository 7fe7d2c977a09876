"""Raw text -> a vocabulary, and tokens in a memory-mapped file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from text_utils import TextEncoder, split_words, word_splitter
from utils import InputError, replacing, sha256, write_json

LINES_PER_STEP = 2000  # lines tokenized between two records of progress


# --- text -> merges --------------------------------------------------------------------------------------------------


def read_lines(corpus: Path) -> Iterator[str]:
    """Yield the lines of a text file and show the progress. Raises InputError when it is not UTF-8 text."""
    try:
        size = corpus.stat().st_size
        with open(corpus, "rb") as file, tqdm(total=size, unit="B", unit_scale=True, ncols=100, leave=False) as bar:
            for number_, line in enumerate(file, 1):
                bar.update(len(line))
                try:
                    yield line.decode("utf-8-sig" if number_ == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise InputError(f"{corpus}, line {number_}: not UTF-8. Convert the file: iconv -t utf-8") from None
    except OSError as error:
        raise InputError(f"{corpus} cannot be read ({error.strerror}). --corpus names a text file.") from None


def learn_vocabulary(corpus: Path, n_merges: int, encoder_path: Path, bpe_path: Path) -> None:
    """Learn byte-pair merges inside the words of a text and write them as the authors' two files.

    Ids are in their order: the unknown token, characters, characters that end a word, merges, the newline.
    Raises InputError when the text holds no words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    nlp = word_splitter()
    lines = [" ".join(split_words(nlp, line)) for line in read_lines(corpus)]
    characters = sorted(set("".join(lines)) - {" "})
    if not characters:
        raise InputError(f"{corpus} holds no words. --corpus names a text file to learn from.")
    # the alphabet is given: else ids, and with them ties between merges, would depend on the order of a hash table
    alphabet = ["<unk>", *characters, *(c + "</w>" for c in characters)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + n_merges,
        special_tokens=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    encoder = dict(sorted(learned["vocab"].items(), key=lambda item: item[1]))
    encoder["\n</w>"] = len(encoder)
    write_json(encoder_path, encoder)
    with replacing(bpe_path) as file:
        file.write("\n".join(["#version: 0.2", *(" ".join(merge) for merge in learned["merges"]), ""]).encode())


# --- text -> tokens --------------------------------------------------------------------------------------------------


def tokenize(corpus: Path, encoder: TextEncoder, vocabulary: str, folder: Path) -> np.ndarray:
    """Return the ids of a text, each line ended by the newline token, memory-mapped from `tokens.bin` in a folder.

    The file is made once for a corpus and a vocabulary (its digest). A build that was interrupted continues where it
    was, and a damaged file is made again.
    """
    dtype = np.uint16 if len(encoder.encoder) <= 2**16 else np.uint32
    done, part, done_record, part_record = (
        folder / name for name in ("tokens.bin", "tokens.bin.part", "tokens.json", "tokens.part.json")
    )
    key = {"corpus": sha256(corpus), "vocabulary": vocabulary}
    record = _read_record(done_record, key)
    if record and done.exists() and sha256(done) == record["sha256"]:
        return np.memmap(done, dtype, "r")
    if record:
        print(f"{done} is damaged: tokenizing again")

    record = _read_record(part_record, key)
    if not record or not part.exists() or part.stat().st_size < record["bytes"]:
        record = {"lines": 0, "bytes": 0}
    with open(part, "r+b" if record["lines"] else "w+b") as file:
        file.truncate(record["bytes"])
        file.seek(record["bytes"])
        newline, lines = encoder.encoder.get("\n</w>", 0), []

        def write() -> None:
            rows = encoder.encode(lines, verbose=False)
            file.write(np.array([i for row in rows if row for i in (*row, newline)], dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
            write_json(part_record, key | {"lines": number_, "bytes": file.tell()})
            lines.clear()

        number_ = 0
        for number_, line in enumerate(read_lines(corpus), 1):
            if number_ > record["lines"]:
                lines.append(line)
            if len(lines) == LINES_PER_STEP:
                write()
        write()
    write_json(done_record, key | {"sha256": sha256(part)})
    os.replace(part, done)
    part_record.unlink()
    return np.memmap(done, dtype, "r") if done.stat().st_size else np.empty(0, dtype)


def _read_record(path: Path, key: dict) -> dict | None:
    try:
        record = json.loads(path.read_text())
        return record if key.items() <= record.items() else None
    except (OSError, ValueError):
        return None
