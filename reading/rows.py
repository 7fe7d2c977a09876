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


def classification_head(n_out: int) -> tuple[str, int]:
    return "classification", n_out


def similarity_head(n_out: int) -> tuple[str, int]:
    return "similarity", n_out


def choice_head(n_out: int) -> str:
    return "multiple_choice"  # whose single output scores any number of choices


FORMS = {
    "classification": Form(classification_rows, 1, 2, classification_head),
    "regression": Form(classification_rows, 1, 2, classification_head),
    "entailment": Form(entailment_rows, 2, 3, classification_head),
    "similarity": Form(similarity_rows, 2, 3, similarity_head),
    "multiple_choice": Form(multiple_choice_rows, 1, 3, choice_head, has_choices=True),
    "reading": Form(reading_rows, 2, 3, choice_head, has_choices=True),
}


# --- examples too long for the network -------------------------------------------------------------------------------


def cut_halves(lengths: Sequence[int], form: str, n_ctx: int) -> list[int]:
    """Return how many tokens are kept of each text of an example: at most n_ctx // 2 - 2 (TF:377).

    Two such texts and three special tokens fit into n_ctx.
    """
    return [min(n, n_ctx // 2 - 2) for n in lengths]


def cut_longest(lengths: Sequence[int], form: str, n_ctx: int) -> list[int]:
    """Return how many tokens are kept of each text of an example, so that its rows fit into n_ctx tokens.

    The longest text is cut at its end; with choices only the context is. With n_ctx 8, of which 3 are special tokens,
    two texts of 5 and 2 tokens are cut to 3 and 2. If both are longer than half of the room left by the special tokens,
    both are cut to half of it.
    """
    room = n_ctx - FORMS[form].n_special
    first, *others = lengths

    # with choices: the context gets the room that the question and the longest choice leave
    if FORMS[form].has_choices:
        n_questions = FORMS[form].n_texts - 1
        room -= sum(others[:n_questions])
        room -= max(others[n_questions:])
        return [min(first, max(0, room)), *others]

    # one text gets all of the room
    if not others:
        return [min(first, room)]

    # of two, the second gets what the first leaves, and half of the room at least
    (second,) = others
    room_of_second = max(room // 2, room - first)
    n_second = min(second, room_of_second)
    n_first = min(first, room - n_second)
    return [n_first, n_second]


CUTS = {"halves": cut_halves, "longest": cut_longest}


# --- batches of rows -------------------------------------------------------------------------------------------------


def with_positions(ids: np.ndarray, first_position: int) -> np.ndarray:
    """Return ids (..., T) with position ids, which count up from first_position: (..., T, 2)."""
    positions = np.arange(first_position, first_position + ids.shape[-1])
    positions = np.broadcast_to(positions, ids.shape)
    return np.stack([ids.astype(np.int64), positions], -1)


def pad_rows(examples: Sequence[list[list[int]]], n_vocab: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as x (B, K, n_tokens, 2), token and position ids, and m (B, K, n_tokens), 1 on real tokens.

    Padding is id 0, on the right. Position ids follow those of the special tokens. Every example has K rows.

    Raises ValueError for a row longer than n_tokens.
    """
    # all is padding at first
    shape = (len(examples), len(examples[0]), n_tokens)
    ids = np.zeros(shape, dtype=np.int64)
    m = np.zeros(shape, dtype=np.float32)
    for i, rows in enumerate(examples):
        for k, row in enumerate(rows):
            if len(row) > n_tokens:
                raise ValueError(f"example {i}: {len(row)} tokens do not fit n_ctx {n_tokens}: cut it or raise n_ctx")
            ids[i, k, : len(row)] = row
            m[i, k, : len(row)] = 1
    return with_positions(ids, n_vocab + N_SPECIAL), m


def transform_roc(
    stories: list[list[int]],
    first: list[list[int]],
    second: list[list[int]],
    n_vocab: int | None = None,
    n_ctx: int | None = None,
    max_len: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of Story Cloze examples as the authors' function does: x (N, 2, n_ctx, 2) and m (N, 2, n_ctx).

    A row is `start story delimiter ending classify`, padded on the right with id 0. With n_vocab 100 and max_len 3 the
    story [5, 6, 7, 8] and its ending [9] become 100 5 6 7 101 9 102 0 0 ...; position ids count up from 103.

    Args:
        stories, first, second: token ids below n_vocab; each text is cut to max_len.

    Raises TypeError where a size is missing, which the port takes from its train.py's names (FIDELITY 166).
    """
    if n_vocab is None or n_ctx is None or max_len is None:
        raise TypeError(
            "transform_roc needs n_vocab, n_ctx and max_len as arguments, as it sees no names of its caller's: "
            "transform_roc(X1, X2, X3, n_vocab, n_ctx, max_len)"
        )
    special = special_tokens(n_vocab)
    examples = []
    for i, texts in enumerate(zip(stories, first, second, strict=True)):
        for text in texts:
            if max(text, default=0) >= n_vocab:
                raise ValueError(f"example {i}: a token id of {n_vocab} or more is a special token, which ends a row")
        cut = [text[:max_len] for text in texts]
        examples.append(multiple_choice_rows(cut, special))
    return pad_rows(examples, n_vocab, n_ctx)


N_CLASSES_OF_SCORE = 6  # as the authors' utils.py:25-36


def soft_labels(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return scores as weights of six classes (B, 6): with the range 0 to 5, 3.6 is 0.4 of class 3 and 0.6 of 4."""
    # where each score lies among the classes, and the class below it; the highest score lies above the last but one
    fraction = np.clip((scores - low) / (high - low), 0, 1)
    at = fraction * (N_CLASSES_OF_SCORE - 1)
    below = np.floor(at).astype(int)
    below = np.minimum(below, N_CLASSES_OF_SCORE - 2)

    # the nearer of the two classes around it weighs more
    examples = np.arange(len(scores))
    weights = np.zeros((len(scores), N_CLASSES_OF_SCORE), np.float32)
    weights[examples, below] = 1 - (at - below)
    weights[examples, below + 1] = at - below
    return weights


# --- a corpus for pre-training ---------------------------------------------------------------------------------------


class Sequences:
    """The tokens of a corpus cut for pre-training: into windows of n_ctx tokens, or by document.

    A document ends with the newline token; one of more than n_ctx tokens is cut into sequences of at most n_ctx. Those
    of a single token are left out: they predict nothing. With n_ctx 4 and newline 9, the tokens 5 6 9 1 2 3 4 5 9 9 are
    the windows [5 6 9 1], [2 3 4 5], and by document [5 6 9], [1 2 3 4], [5 9].

    Args:
        tokens: (N,) ids, memory-mapped or not.
        newline: id of the newline token, to cut by document; None: windows.

    Attributes:
        starts, lengths: of each sequence in tokens.
    """

    def __init__(self, tokens: np.ndarray, n_ctx: int, newline: int | None = None):
        self.tokens = tokens
        if newline is None:
            # windows, all of one length; what is left at the end is no whole one
            n_windows = len(tokens) // n_ctx
            self.starts = np.arange(n_windows) * n_ctx
            self.lengths = np.broadcast_to(n_ctx, n_windows)
        else:
            ends = document_ends(tokens, newline)
            starts, lengths = cut_documents(ends, n_ctx)
            predicts = lengths > 1
            self.starts = starts[predicts]
            self.lengths = lengths[predicts]

    def __len__(self) -> int:
        return len(self.starts)

    def packed(self, which: np.ndarray, first_position: int) -> Packing:
        """Return some sequences as the model's input; each begins at the first position."""
        starts = self.starts[which]
        lengths = self.lengths[which]

        # of different lengths: each is an example of one row
        if lengths.min() < lengths.max():
            examples = []
            for start, end in zip(starts, starts + lengths, strict=True):
                row = self.tokens[start:end].tolist()
                examples.append([row])
            return Packing.of_rows(examples, first_position)

        # of one length: they are the rows of a matrix
        places = starts[:, None] + np.arange(lengths[0])  # (B, T)
        x = with_positions(self.tokens[places], first_position)
        return Packing.full(torch.from_numpy(x))


SEARCHED = 2**24  # tokens at a time, so that memory does not grow with the corpus


def document_ends(tokens: np.ndarray, newline: int) -> np.ndarray:
    """Return where each document ends, after its newline token; what follows the last one is left out."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(tokens), SEARCHED):
        is_newline = tokens[start : start + SEARCHED] == newline
        found.append(start + np.flatnonzero(is_newline))
    return np.concatenate(found) + 1


def cut_documents(ends: np.ndarray, n_ctx: int) -> tuple[np.ndarray, np.ndarray]:
    """Return start and length of the sequences of at most n_ctx tokens that documents are cut into."""
    # where the first sequence of every document starts, then the second of those that have one, and so on
    start = np.concatenate([[0], ends])[:-1]
    end = ends
    starts = []
    while len(start) > 0:
        starts.append(start)
        start = start + n_ctx
        goes_on = start < end
        start = start[goes_on]
        end = end[goes_on]
    starts = np.concatenate([np.empty(0, np.int64), *starts])
    starts = np.sort(starts)

    # each ends where the next begins
    return starts, np.diff(starts, append=ends[-1:])


# --- the examples of a task ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How the examples of a task become rows."""

    form: str  # a key of FORMS
    cut: str  # a key of CUTS
    n_vocab: int  # tokens; the ids of the special tokens follow
    n_ctx: int  # tokens of the longest row allowed

    def length(self, n_tokens: Sequence[int], is_cut: bool = True) -> int:
        """Return the number of tokens of the longest row of an example, given those of each of its texts."""
        if is_cut:
            n_tokens = CUTS[self.cut](n_tokens, self.form, self.n_ctx)

        # every row holds the first texts, and one of the choices if there are any
        form = FORMS[self.form]
        common = sum(n_tokens[: form.n_texts])
        longest_choice = max(n_tokens[form.n_texts :], default=0)
        return common + longest_choice + form.n_special

    def cut_texts(self, texts: Sequence[Ids]) -> list[Ids]:
        """Return the token ids of an example's texts, cut so that its rows fit."""
        lengths = [len(text) for text in texts]
        kept = CUTS[self.cut](lengths, self.form, self.n_ctx)
        return [text[:n] for text, n in zip(texts, kept, strict=True)]

    def rows(self, texts: Sequence[Ids]) -> list[list[int]]:
        """Return the rows of an example, given the token ids of its texts."""
        return FORMS[self.form].rows(self.cut_texts(texts), special_tokens(self.n_vocab))


class Rows:
    """Examples of a split as the model's input, laid out batch by batch.

    Args:
        encoded: texts of the examples, all ids below n_vocab.
        layout: how they become rows.
        labels: (N,) index of the right label or choice; scores if `scores` gives their range; None: unknown.
        scores: lowest and highest score; None: labels are classes or choices.
        which: (N,) indices into encoded; None: all examples.
    """

    def __init__(
        self,
        encoded: Encoded,
        layout: Layout,
        labels: np.ndarray | None = None,
        scores: tuple[float, float] | None = None,
        which: np.ndarray | None = None,
    ):
        self.encoded = encoded
        self.layout = layout
        self.labels = labels
        self.scores = scores
        self.which = np.arange(len(encoded)) if which is None else which
        self.known_lengths: dict[bool, np.ndarray] = {}  # what `lengths` has found

    def __len__(self) -> int:
        return len(self.which)

    def first(self, n: int) -> "Rows":
        """Return the first n examples, or all there are."""
        return self.chosen(np.arange(min(n, len(self))))

    def chosen(self, which: np.ndarray) -> "Rows":
        """Return some of the examples, by their indices."""
        labels = None if self.labels is None else self.labels[which]
        return Rows(self.encoded, self.layout, labels, self.scores, self.which[which])

    def example(self, i: int) -> Example:
        """Return the texts and the label of example i, and where it stands in its file."""
        return self.encoded.example(int(self.which[i]))

    def rows(self, i: int) -> list[list[int]]:
        """Return the K rows of example i."""
        return self.layout.rows(self.encoded.texts(int(self.which[i])))

    def lengths(self, is_cut: bool = True) -> np.ndarray:
        """Return the number of tokens of each example's longest row (N,), after (or before) it is cut."""
        if is_cut not in self.known_lengths:
            # tokens of each text, and where the texts of each example stand; in lists, which are faster item by item
            n_tokens = np.diff(self.encoded.text_ends, prepend=0).tolist()
            ends = self.encoded.example_ends.tolist()
            starts = [0, *ends[:-1]]
            found = []
            for i in self.which.tolist():
                of_texts = n_tokens[starts[i] : ends[i]]
                found.append(self.layout.length(of_texts, is_cut))
            self.known_lengths[is_cut] = np.array(found, dtype=int)
        return self.known_lengths[is_cut]

    def fingerprints(self) -> list[int]:
        """Return a number for each example that is that of other examples only if they hold the same texts."""
        # where the tokens of each example end, and whether one of them is unknown
        encoded = self.encoded
        ids = np.asarray(encoded.ids)
        ends = encoded.text_ends[encoded.example_ends - 1]
        unknown = np.searchsorted(np.flatnonzero(ids == 0), ends)
        has_unknown = np.diff(unknown, prepend=0) > 0

        # unknown tokens do not tell which texts they stand for
        found = []
        ends = [0, *ends.tolist()]
        text_ends = [0, *encoded.example_ends.tolist()]
        n_ids = np.diff(encoded.text_ends, prepend=0)
        for i in self.which.tolist():
            if has_unknown[i]:
                texts = encoded.example(i).texts
                key = tuple(" ".join(text.lower().split()) for text in texts)
            else:
                tokens = ids[ends[i] : ends[i + 1]].tobytes()
                lengths = n_ids[text_ends[i] : text_ends[i + 1]].tobytes()
                key = tokens, lengths
            found.append(hash(key))
        return found

    def has_choices(self) -> bool:
        """Return whether the rows of an example are choices, one of which is right."""
        return FORMS[self.layout.form].has_choices

    def n_rows(self) -> np.ndarray:
        """Return the number of rows of each example (N,)."""
        if not self.has_choices():
            return np.full(len(self), len(self.rows(0)))
        n_texts = np.diff(self.encoded.example_ends, prepend=0)[self.which]
        return n_texts - FORMS[self.layout.form].n_texts

    def n_choices(self) -> int:
        """Return the largest number of choices of an example."""
        return int(self.n_rows().max(initial=0))

    def targets(self, which: np.ndarray) -> Tensor:
        """Return the labels of some examples as loss.task_losses takes them: (B,), or for scores (B, 6)."""
        labels = self.labels[which]
        if self.scores is not None:
            labels = soft_labels(labels, *self.scores)
        return torch.from_numpy(labels)

    def packed(self, which: np.ndarray, share_context: bool = False) -> Packing:
        """Return the rows of some examples as the model's input."""
        examples = [self.rows(int(i)) for i in which]
        return Packing.of_rows(examples, self.layout.n_vocab + N_SPECIAL, share_context)
