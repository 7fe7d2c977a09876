"""Examples -> rows of the model's input: the paper's layouts (section 3.3), cuts of long texts, batches.

A row is what the network reads as one sequence. Every row ends with the classify token, which the task head reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from formats.examples import Example
from reading.encoding import Encoded
from speed.packing import Packing

Ids = Sequence[int]  # token ids of a text


class Special(NamedTuple):
    """Ids of the three special tokens, which follow the vocabulary in this order (TF:368-371)."""

    start: int
    delimiter: int
    classify: int


N_SPECIAL = len(Special._fields)


def special_tokens(n_vocab: int) -> Special:
    return Special(*range(n_vocab, n_vocab + N_SPECIAL))


# --- the forms: the texts of an example -> its rows ------------------------------------------------------------------


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


def reading_rows(texts: Sequence[Ids], special: Special) -> list[list[int]]:
    """Return `start article question delimiter choice classify` for each choice.

    With n_vocab 100, [5 6], [3], [7], [8 9] -> [100 5 6 3 101 7 102], [100 5 6 3 101 8 9 102].
    """
    article, question, *choices = texts
    return multiple_choice_rows(([*article, *question], *choices), special)


@dataclass(frozen=True)
class Form:
    """How examples of one kind of task become rows, and which head reads them."""

    rows: Callable[[Sequence[Ids], Special], list[list[int]]]
    n_texts: int  # per example, choices not counted
    n_special: int  # special tokens in a row
    head: Callable[[int], str | tuple]  # number of outputs -> task_head_type of DoubleHeadModel
    has_choices: bool = False


FORMS = {
    "classification": Form(classification_rows, 1, 2, lambda n_out: ("classification", n_out)),
    "entailment": Form(entailment_rows, 2, 3, lambda n_out: ("classification", n_out)),
    "similarity": Form(similarity_rows, 2, 3, lambda n_out: ("similarity", n_out)),
    "multiple_choice": Form(multiple_choice_rows, 1, 3, lambda n_out: "multiple_choice", has_choices=True),
    "reading": Form(reading_rows, 2, 3, lambda n_out: "multiple_choice", has_choices=True),
}


# --- examples too long for the network -------------------------------------------------------------------------------


def cut_halves(texts: Sequence[Ids], form: str, n_ctx: int) -> list[Ids]:
    """Return each text cut to n_ctx // 2 - 2 tokens, as the authors do (TF:377)."""
    return [text[: n_ctx // 2 - 2] for text in texts]


def cut_longest(texts: Sequence[Ids], form: str, n_ctx: int) -> list[Ids]:
    """Return texts that fit into n_ctx tokens: the longest is cut at its end; with choices only the context is cut.

    With n_ctx 8, of which 3 are special tokens, the pair [1 2 3 4 5], [6 7] becomes [1 2 3], [6 7]. If both are
    longer than half of the room left by the special tokens, both are cut to half of it.
    """
    room = n_ctx - FORMS[form].n_special
    first, *others = texts
    if FORMS[form].has_choices:
        questions, choices = others[: FORMS[form].n_texts - 1], others[FORMS[form].n_texts - 1 :]
        room -= sum(map(len, questions)) + max(map(len, choices))
        return [first[: max(0, room)], *others]
    if not others:
        return [first[:room]]
    (second,) = others
    n_second = min(len(second), max(room // 2, room - len(first)))
    return [first[: room - n_second], second[:n_second]]


CUTS = {"halves": cut_halves, "longest": cut_longest}


# --- batches of rows -------------------------------------------------------------------------------------------------


def position_rows(ids: np.ndarray, first_position: int) -> np.ndarray:
    """Return ids (..., T) with position ids, which count up from first_position: (..., T, 2)."""
    positions = np.broadcast_to(np.arange(first_position, first_position + ids.shape[-1]), ids.shape)
    return np.stack([ids.astype(np.int64), positions], -1)


def pad_rows(examples: Sequence[list[list[int]]], n_vocab: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as x (B, K, n_tokens, 2), token and position ids, and m (B, K, n_tokens), 1 on real tokens.

    Padding is id 0, on the right. Position ids follow those of the special tokens. An example with fewer than K
    choices repeats its first row.

    Raises ValueError for a row longer than n_tokens.
    """
    ids = np.zeros((len(examples), max(map(len, examples)), n_tokens), dtype=np.int64)
    m = np.zeros(ids.shape, dtype=np.float32)
    for i, rows in enumerate(examples):
        for k in range(ids.shape[1]):
            row = rows[k] if k < len(rows) else rows[0]
            if len(row) > n_tokens:
                raise ValueError(f"example {i}: {len(row)} tokens do not fit n_ctx {n_tokens}: cut it or raise n_ctx")
            ids[i, k, : len(row)] = row
            m[i, k, : len(row)] = 1
    return position_rows(ids, n_vocab + N_SPECIAL), m


def transform_roc(
    stories: list[list[int]], first: list[list[int]], second: list[list[int]], n_vocab: int, n_ctx: int, max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of Story Cloze examples as the authors' function does: x (N, 2, n_ctx, 2) and m (N, 2, n_ctx).

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


N_CLASSES_OF_SCORE = 6  # as the authors' utils.py:25-36


def soft_labels(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return scores as weights of six classes (B, 6): with the range 0 to 5, 3.6 is 0.4 of class 3 and 0.6 of 4."""
    at = np.clip((scores - low) / (high - low), 0, 1) * (N_CLASSES_OF_SCORE - 1)
    below = np.minimum(np.floor(at).astype(int), N_CLASSES_OF_SCORE - 2)
    weights = np.zeros((len(scores), N_CLASSES_OF_SCORE), np.float32)
    weights[np.arange(len(scores)), below] = 1 - (at - below)
    weights[np.arange(len(scores)), below + 1] = at - below
    return weights


class Sequences:
    """The tokens of a corpus cut for pre-training: into windows of n_ctx tokens, or by document.

    A document ends with the newline token; one of more than n_ctx tokens is cut into sequences of at most n_ctx. Those
    of a single token are left out: they predict nothing. With n_ctx 4 and newline 9, the tokens 5 6 9 1 2 3 4 5 9 9 are
    the windows [5 6 9 1], [2 3 4 5], and by document [5 6 9], [1 2 3 4], [5 9].

    Args:
        tokens: (N,) ids, memory-mapped or not.
        newline: id of the newline token, to cut by document; None: windows.
    """

    CHUNK = 2**24  # tokens searched at a time

    def __init__(self, tokens: np.ndarray, n_ctx: int, newline: int | None = None):
        self.tokens = tokens
        if newline is None:
            self.starts = np.arange(len(tokens) // n_ctx) * n_ctx
            self.lengths = np.broadcast_to(n_ctx, len(self.starts))
            return
        chunks = range(0, len(tokens), self.CHUNK)
        found = [start + np.flatnonzero(tokens[start : start + self.CHUNK] == newline) for start in chunks]
        ends = np.concatenate([np.empty(0, np.int64), *found]) + 1  # of the documents
        starts = np.concatenate([[0], ends])[:-1]
        n_cuts = -((starts - ends) // n_ctx)  # sequences of each document, rounded up
        ends, nth = np.repeat(ends, n_cuts), np.arange(n_cuts.sum()) - np.repeat(n_cuts.cumsum() - n_cuts, n_cuts)
        starts = np.repeat(starts, n_cuts) + nth * n_ctx
        lengths = np.minimum(ends - starts, n_ctx)
        self.starts, self.lengths = starts[lengths > 1], lengths[lengths > 1]

    def __len__(self) -> int:
        return len(self.starts)

    def packed(self, which: np.ndarray, first_position: int, device: torch.device) -> Packing:
        """Return some sequences as the model's input on a device; each begins at the first position."""
        lengths = self.lengths[which][:, None]
        slot = np.arange(lengths.max())
        m = slot < lengths  # (B, T)
        ids = np.where(m, self.tokens[self.starts[which][:, None] + slot * m], 0)
        mask = None if m.all() else torch.from_numpy(m)
        return Packing(torch.from_numpy(position_rows(ids, first_position)), mask).to(device)


class Rows:
    """Examples of a split as the model's input, laid out batch by batch.

    Args:
        encoded: texts of the examples, all ids below n_vocab.
        labels: (N,) index of the right label or choice; scores if `scores` gives their range; None: unknown.
        form, cut: keys of FORMS and CUTS.
        n_vocab: size of the vocabulary.
        n_ctx: tokens of the longest row allowed.
        which: (N,) indices into encoded; None: all examples.
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: np.ndarray | None,
        form: str,
        cut: str,
        n_vocab: int,
        n_ctx: int,
        scores: tuple[float, float] | None = None,
        which: np.ndarray | None = None,
    ):
        if encoded.largest_id >= n_vocab:
            raise ValueError(f"a token id of {n_vocab} or more is not in the vocabulary, and would end a row early")
        self.encoded, self.labels, self.form, self.cut = encoded, labels, form, cut
        self.n_vocab, self.n_ctx, self.scores = n_vocab, n_ctx, scores
        self.which = np.arange(len(encoded)) if which is None else which

    def __len__(self) -> int:
        return len(self.which)

    def chosen(self, which: np.ndarray) -> "Rows":
        """Return some of the examples, by their indices."""
        labels = None if self.labels is None else self.labels[which]
        which = self.which[which]
        return Rows(self.encoded, labels, self.form, self.cut, self.n_vocab, self.n_ctx, self.scores, which)

    def first(self, n: int) -> "Rows":
        """Return the first n examples, or all there are."""
        return self.chosen(np.arange(min(n, len(self))))

    def example(self, i: int) -> Example:
        """Return example i as it was read."""
        return self.encoded.example(int(self.which[i]))

    def rows(self, i: int) -> list[list[int]]:
        """Return the K rows of example i."""
        texts = CUTS[self.cut](self.encoded.texts(int(self.which[i])), self.form, self.n_ctx)
        return FORMS[self.form].rows(texts, special_tokens(self.n_vocab))

    def lengths(self, cut: bool = True) -> np.ndarray:
        """Return the number of tokens of each example's longest row (N,), after (or before) it is cut."""
        form, lengths = FORMS[self.form], np.diff(self.encoded.text_ends, prepend=0)
        if cut and self.cut == "halves":
            lengths = np.minimum(lengths, self.n_ctx // 2 - 2)
        starts = self.encoded.example_ends - np.diff(self.encoded.example_ends, prepend=0)
        if form.has_choices:  # the texts before the choices, and the longest choice
            first, choices = sum(lengths[starts + i] for i in range(form.n_texts)), lengths.copy()
            for i in range(form.n_texts):
                choices[starts + i] = 0
            total = first + np.maximum.reduceat(choices, starts)
            kept = total - lengths[starts]  # only the context is ever cut
        else:
            total, kept = np.add.reduceat(lengths, starts), 0
        if cut and self.cut == "longest":
            total = np.maximum(np.minimum(total, self.n_ctx - form.n_special), kept)
        return total[self.which] + form.n_special

    def has_choices(self) -> bool:
        """Return whether the rows of an example are choices, one of which is right."""
        return FORMS[self.form].has_choices

    def n_choices(self) -> int:
        """Return the largest number of choices of an example."""
        counts = np.diff(self.encoded.example_ends, prepend=0)[self.which]
        return int(counts.max(initial=0)) - FORMS[self.form].n_texts

    def targets(self, which: np.ndarray) -> Tensor:
        """Return the labels of some examples as loss.task_losses takes them: (B,), or for scores (B, 6)."""
        labels = self.labels[which]
        return torch.from_numpy(soft_labels(labels, *self.scores) if self.scores else labels)

    def batch(self, which: np.ndarray, n_tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x (B, K, T, 2), m (B, K, T) and labels of some examples, padded to n_tokens or their longest row.

        Labels are (B,), or for scores weights of classes (B, 6).
        """
        x, m, y, _ = self._batch(which, n_tokens)
        return x, m, y

    def packed(self, which: np.ndarray, share_context: bool, device: torch.device) -> tuple[Packing, Tensor | None]:
        """Return the packed rows and the labels of some examples, on a device."""
        x, m, y, n_choices = self._batch(which)
        packing = Packing(x, m, share_context, n_choices).to(device)
        return packing, None if y is None else y.to(device, non_blocking=True)

    def _batch(self, which: np.ndarray, n_tokens: int | None = None) -> tuple:
        examples = [self.rows(int(i)) for i in which]
        x, m = pad_rows(examples, self.n_vocab, n_tokens or max(len(row) for rows in examples for row in rows))
        y = None if self.labels is None else self.targets(which)
        return torch.from_numpy(x), torch.from_numpy(m), y, torch.tensor([len(rows) for rows in examples])
