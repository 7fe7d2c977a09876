"""Examples -> rows of the model's input: the paper's four layouts (section 3.3), special tokens, cached token ids.

A row is what the network reads as one sequence. Every row ends with the classify token, which the task head reads.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import text_utils
from datasets import Examples
from packing import Packing
from text_utils import TextEncoder
from utils import InputError, replacing, sha256

Ids = Sequence[int]  # token ids of a text


class Special(NamedTuple):
    """Ids of the three special tokens, which follow the vocabulary in this order (TF:368-371)."""

    start: int
    delimiter: int
    classify: int


N_SPECIAL = len(Special._fields)


def special_tokens(n_vocab: int) -> Special:
    return Special(*range(n_vocab, n_vocab + N_SPECIAL))


# --- the four forms: the texts of an example -> its rows -------------------------------------------------------------


def classification_rows(texts: Sequence[Ids], special: Special) -> list[list[int]]:
    """Return `start text classify`: with n_vocab 100, [5 6] -> [100 5 6 102]."""
    (text,) = texts
    return [[special.start, *text, special.classify]]


def entailment_rows(texts: Sequence[Ids], special: Special) -> list[list[int]]:
    """Return `start premise delimiter hypothesis classify`: with n_vocab 100, [5 6], [7] -> [100 5 6 101 7 102]."""
    premise, hypothesis = texts
    return [[special.start, *premise, special.delimiter, *hypothesis, special.classify]]


def similarity_rows(texts: Sequence[Ids], special: Special) -> list[list[int]]:
    """Return the pair in both orders: with n_vocab 100, [5 6], [7] -> [100 5 6 101 7 102], [100 7 101 5 6 102]."""
    a, b = texts
    return entailment_rows((a, b), special) + entailment_rows((b, a), special)


def multiple_choice_rows(texts: Sequence[Ids], special: Special) -> list[list[int]]:
    """Return `start context delimiter choice classify` for each choice.

    With n_vocab 100, [5 6], [7], [8 9] -> [100 5 6 101 7 102], [100 5 6 101 8 9 102].
    """
    context, *choices = texts
    return [row for choice in choices for row in entailment_rows((context, choice), special)]


@dataclass(frozen=True)
class Form:
    """How examples of one kind of task become rows, and which head reads them."""

    rows: Callable[[Sequence[Ids], Special], list[list[int]]]
    n_special: int  # special tokens in a row
    head: Callable[[int], str | tuple]  # number of labels -> task_head_type of DoubleHeadModel


FORMS = {
    "classification": Form(classification_rows, 2, lambda n_labels: ("classification", n_labels)),
    "entailment": Form(entailment_rows, 3, lambda n_labels: ("classification", n_labels)),
    "similarity": Form(similarity_rows, 3, lambda n_labels: ("similarity", n_labels)),
    "multiple_choice": Form(multiple_choice_rows, 3, lambda n_labels: "multiple_choice"),
}


# --- examples too long for the network -------------------------------------------------------------------------------


def cut_halves(texts: Sequence[Ids], form: str, n_ctx: int) -> list[Ids]:
    """Return each text cut to n_ctx // 2 - 2 tokens, as the authors do (TF:377)."""
    return [text[: n_ctx // 2 - 2] for text in texts]


def cut_longest(texts: Sequence[Ids], form: str, n_ctx: int) -> list[Ids]:
    """Return texts that fit into n_ctx tokens, the longest cut at its end.

    Of a multiple choice the context is cut; choices only where they would not fit even without it.
    With n_ctx 8, of which 3 are special tokens, the pair [1 2 3 4 5], [6 7] becomes [1 2 3], [6 7].
    """
    room = n_ctx - FORMS[form].n_special
    first, *others = texts
    if form == "multiple_choice":
        return [first[: max(0, room - max(map(len, others)))], *(choice[:room] for choice in others)]
    if not others:
        return [first[:room]]
    (second,) = others
    # where both are longer than half of the room, both are cut to half
    n_second = min(len(second), max(room // 2, room - len(first)))
    return [first[: room - n_second], second[:n_second]]


CUTS = {"halves": cut_halves, "longest": cut_longest}


# --- batches of rows -------------------------------------------------------------------------------------------------


def position_rows(ids: np.ndarray, first_position: int) -> np.ndarray:
    """Return ids (..., T) with the ids of their position rows, which count up from first_position: (..., T, 2)."""
    positions = np.broadcast_to(np.arange(first_position, first_position + ids.shape[-1]), ids.shape)
    return np.stack([ids.astype(np.int64), positions], -1)


def pad_rows(examples: Sequence[list[list[int]]], n_vocab: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as x (B, K, n_tokens, 2), token and position-row ids, and m (B, K, n_tokens), 1 on real tokens.

    Padding is id 0, on the right. Position-row ids follow the special tokens.

    Raises ValueError for a row longer than n_tokens.
    """
    ids = np.zeros((len(examples), len(examples[0]), n_tokens), dtype=np.int64)
    m = np.zeros(ids.shape, dtype=np.float32)
    for i, rows in enumerate(examples):
        for k, row in enumerate(rows):
            if len(row) > n_tokens:
                raise ValueError(f"example {i}: {len(row)} tokens do not fit n_ctx {n_tokens}: cut it or raise n_ctx")
            ids[i, k, : len(row)] = row
            m[i, k, : len(row)] = 1
    return position_rows(ids, n_vocab + N_SPECIAL), m


def transform_roc(
    stories: list[list[int]], first: list[list[int]], second: list[list[int]], n_vocab: int, n_ctx: int, max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return Story Cloze examples as the authors' function of this name does: x (N, 2, n_ctx, 2), m (N, 2, n_ctx).

    A row is `start story delimiter ending classify`, padded on the right with id 0. With n_vocab 100 and max_len 3 the
    story [5, 6, 7, 8] and its ending [9] become 100 5 6 7 101 9 102 0 0 ...; position ids count up from 103.

    Args:
        stories, first, second: token ids below n_vocab; each text is cut to max_len.
    """
    examples = []
    for i, texts in enumerate(zip(stories, first, second, strict=True)):
        if max(map(max, filter(None, texts)), default=0) >= n_vocab:
            raise ValueError(
                f"example {i}: a token id of {n_vocab} or more is not in the vocabulary, and would end the row early"
            )
        examples.append(multiple_choice_rows([text[:max_len] for text in texts], special_tokens(n_vocab)))
    return pad_rows(examples, n_vocab, n_ctx)


@dataclass(frozen=True)
class Encoded:
    """The texts of a split as token ids, all concatenated."""

    ids: np.ndarray  # int32
    text_ends: np.ndarray  # (number of texts,), index into ids
    example_ends: np.ndarray  # (N,), index into text_ends

    def __len__(self) -> int:
        return len(self.example_ends)

    def texts(self, i: int) -> list[list[int]]:
        """Return the token ids of each text of example i."""
        first = self.example_ends[i - 1] if i else 0
        ends = self.text_ends[first : self.example_ends[i]]
        starts = [self.text_ends[first - 1] if first else 0, *ends[:-1]]
        return [self.ids[start:end].tolist() for start, end in zip(starts, ends, strict=True)]

    @classmethod
    def of(cls, examples: Sequence[Sequence[Ids]]) -> "Encoded":
        """Return examples, each a sequence of texts, each a sequence of ids."""
        texts = [text for example in examples for text in example]
        ids = np.array([i for text in texts for i in text], np.int32)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(ids, ends, np.cumsum([len(example) for example in examples], dtype=np.int64))


class Rows:
    """The examples of a split as the model's input, laid out batch by batch.

    Args:
        encoded: texts of the examples, all ids below n_vocab.
        labels: (N,) index of the right label or choice, or None.
        form, cut: keys of FORMS and CUTS.
        n_vocab: size of the vocabulary.
        n_ctx: tokens of the longest row allowed.
    """

    def __init__(self, encoded: Encoded, labels: np.ndarray | None, form: str, cut: str, n_vocab: int, n_ctx: int):
        if len(encoded.ids) and encoded.ids.max() >= n_vocab:
            raise ValueError(f"a token id of {n_vocab} or more is not in the vocabulary, and would end a row early")
        self.encoded, self.labels, self.form, self.cut = encoded, labels, form, cut
        self.n_vocab, self.n_ctx = n_vocab, n_ctx

    def __len__(self) -> int:
        return len(self.encoded)

    def first(self, n: int) -> "Rows":
        """Return the first n examples."""
        kept = dataclasses.replace(self.encoded, example_ends=self.encoded.example_ends[:n])
        return Rows(kept, self.labels[:n], self.form, self.cut, self.n_vocab, self.n_ctx)

    def rows(self, i: int) -> list[list[int]]:
        """Return the K rows of example i."""
        texts = CUTS[self.cut](self.encoded.texts(i), self.form, self.n_ctx)
        return FORMS[self.form].rows(texts, special_tokens(self.n_vocab))

    def longest(self) -> int:
        """Return the number of tokens of the longest row."""
        return max(len(row) for i in range(len(self)) for row in self.rows(i))

    def batch(self, which: np.ndarray, n_tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x (B, K, T, 2), m (B, K, T) and labels (B,) of some examples, padded to n_tokens or their longest."""
        examples = [self.rows(int(i)) for i in which]
        x, m = pad_rows(examples, self.n_vocab, n_tokens or max(len(row) for rows in examples for row in rows))
        y = None if self.labels is None else torch.from_numpy(self.labels[which])
        return torch.from_numpy(x), torch.from_numpy(m), y

    def packed(self, which: np.ndarray, share_context: bool, device: torch.device) -> tuple[Packing, Tensor | None]:
        """Return the packed rows and the labels (B,) of some examples, on a device."""
        x, m, y = self.batch(which)
        packing = Packing(x, m, share_context).to(device)
        return packing, None if y is None else y.to(device, non_blocking=True)


# --- the cache of encoded texts --------------------------------------------------------------------------------------

KEPT_CACHES = 4  # files encoded_*.npz in a folder, the ones last used


def encode_cached(
    splits: Sequence[Examples], encoder: TextEncoder, folder: Path, vocabulary: tuple[str | os.PathLike, ...]
) -> list[Encoded]:
    """Return the splits' texts as token ids, from a file in a folder where the same texts were encoded before.

    The file's name is a digest of the texts, of the vocabulary's two files and of what tokenizes. A damaged file is
    made again. There is no cache if the folder is read-only. Old files are removed.
    """
    texts = [text for split in splits for example in split.texts for text in example]
    sources = [sha256(Path(source)) for source in (*vocabulary, text_utils.__file__)]
    key = hashlib.sha256(json.dumps([sources, version("ftfy"), version("spacy"), texts]).encode()).hexdigest()
    path = folder / f"encoded_{key[:16]}.npz"
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            ids, lengths = file["ids"], file["lengths"]
        if (len(lengths), len(ids)) != (len(texts), lengths.sum()):  # a zip's checksum covers only what is read
            raise ValueError(path)
        with suppress(OSError):
            os.utime(path)
    except Exception:  # missing, or whatever damage does to a zip file
        if path.exists():
            print(f"{path} is damaged: encoding again")
        rows = encoder.encode(texts)
        ids = np.array([i for row in rows for i in row], np.int32)
        lengths = np.array([len(row) for row in rows])
        with suppress(InputError), replacing(path) as file:
            np.savez(file, ids=ids, lengths=lengths)
        with suppress(OSError):
            for old in sorted(folder.glob("encoded_*.npz"), key=lambda path: path.stat().st_mtime)[:-KEPT_CACHES]:
                old.unlink()

    encoded, first = [], 0
    ends = lengths.cumsum()
    for split in splits:
        example_ends = np.cumsum([len(example) for example in split.texts], dtype=np.int64)
        last = first + (int(example_ends[-1]) if len(example_ends) else 0)
        start, end = (int(ends[i - 1]) if i else 0 for i in (first, last))
        encoded.append(Encoded(ids[start:end], ends[first:last] - start, example_ends))
        first = last
    return encoded
