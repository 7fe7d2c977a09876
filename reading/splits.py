"""A task's files -> train, valid and test as rows, and the summary of them printed before training."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from formats.examples import Example, as_number
from formats.files import InputError
from reading.encoding import Encoded, encode_cached, good_examples, present
from reading.rows import FORMS, N_CLASSES_OF_SCORE, Rows
from reading.tasks import Source, Task, hold_out
from text_utils import TextEncoder


@dataclass(frozen=True)
class Splits:
    """The examples of a task."""

    task: Task  # with its labels, or the range of its scores, known
    train: Rows
    valid: Rows
    test: Rows | None
    valid_parts: tuple[tuple[str, int], ...] = ()  # name and number of examples of each part of valid
    test_parts: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()  # warnings about the files

    def n_out(self) -> int:
        """Return the number of outputs of the task head."""
        return N_CLASSES_OF_SCORE if self.task.scores else len(self.task.labels)

    def all(self) -> list[Rows]:
        return [rows for rows in (self.train, self.valid, self.test) if rows is not None]

    def n_ctx(self) -> int:
        """Return the number of tokens of the longest row."""
        return max(int(rows.lengths().max()) for rows in self.all())


def read_splits(
    task: Task,
    data_dir: Path,
    encoder: TextEncoder,
    vocabulary: tuple[str, str],
    *,
    n_valid: int,
    seed: int,
    n_ctx: int,
    max_examples: int | None = None,
) -> Splits:
    """Read and encode the files of a task.

    Args:
        data_dir: folder of the files, or the folder above it.
        vocabulary: paths of the encoder's two files.
        n_valid: examples held out of train if the task has no validation files. If the task does not fix the seed of
            this split, at most a tenth of train is held out, stratified by label.
        seed: of this split, if the task does not fix one.
        n_ctx: tokens of the longest row allowed.
        max_examples: read from each file; None: all.

    Raises:
        InputError: a file is missing or malformed, or an example does not fit into n_ctx.
    """
    folder = task.find(data_dir)
    task = task.in_layout_of(folder)
    n_vocab = len(encoder.encoder)

    def encode(sources: Sequence[Source], labels: Sequence[str] | None) -> Encoded:
        return encode_cached(sources, folder, encoder, vocabulary, labels, task.strict, max_examples)

    # the labels are those of train, if the task does not fix them
    train = encode(task.train, task.labels)
    task = with_labels(task, train, folder / task.train[0].files[0])
    known = None if task.scores or FORMS[task.form].has_choices else task.labels
    valid = encode(task.valid, known) if task.valid else None
    test = encode(task.test, known) if task.test else None

    def rows(encoded: Encoded, sources: Sequence[Source], which: np.ndarray | None = None) -> Rows:
        labels = values_of_labels(task, encoded, folder / sources[0].files[0])
        labels = labels if which is None or labels is None else labels[which]
        made = Rows(encoded, labels, task.form, task.cut, n_vocab, n_ctx, task.scores, which)
        if (lengths := made.lengths()).max() > n_ctx:
            i = int(lengths.argmax())
            raise InputError(
                f"{folder / sources[0].files[0]}: example {i + 1} takes {lengths[i]} tokens without its context, which "
                f"is all that may be cut; n_ctx is {n_ctx}. Shorten it or raise --n_ctx."
            )
        return made

    if valid is None:
        labels = values_of_labels(task, train, folder / task.train[0].files[0])
        split = held_out(task, labels, n_valid, seed, folder / task.train[0].files[0])
        train_rows, valid_rows = (rows(train, task.train, part) for part in split)
        valid_parts = (("", len(valid_rows)),)
    else:
        train_rows, valid_rows, valid_parts = rows(train, task.train), rows(valid, task.valid), valid.parts
    return Splits(
        task,
        train_rows,
        valid_rows,
        test and rows(test, task.test),
        valid_parts,
        test.parts if test else (),
        tuple(notes(task, folder, (train, valid, test), max_examples)),
    )


def held_out(task: Task, labels: np.ndarray, n_valid: int, seed: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of train's examples to train on, and of those held out as valid."""
    if task.split_seed is not None:
        return hold_out(labels, n_valid, task.split_seed, False, path)
    return hold_out(labels, min(n_valid, max(1, len(labels) // 10)), seed, not task.scores, path)


def with_labels(task: Task, train: Encoded, path: Path) -> Task:
    """Return a task with its labels, or the range of its scores, taken from train if the task does not fix them."""
    if task.labels or task.scores:
        return task
    if FORMS[task.form].has_choices:
        n_choices = int(np.diff(train.example_ends, prepend=0).max()) - FORMS[task.form].n_texts
        return replace(task, labels=tuple(str(i + 1) for i in range(n_choices)))
    numbers = [as_number(name) for name in train.names]
    if task.form == "similarity" and None not in numbers and len(set(numbers)) > 2:
        return replace(task, scores=(min(numbers), max(numbers)), metrics=("pearson", "spearman"))
    if len(train.names) < 2:
        raise InputError(
            f"{path}: every label is {train.names[0]!r}: there is nothing to learn. Give two labels or more."
        )
    return replace(task, labels=tuple(sorted(train.names)))


def values_of_labels(task: Task, encoded: Encoded, path: Path) -> np.ndarray | None:
    """Return the labels of examples as indices into task.labels, or as scores (N,); None if any label is missing."""
    if len(encoded) == 0 or encoded.codes.min() < 0:
        return None
    if task.scores:
        values = np.array([np.nan if (v := as_number(name)) is None else v for name in encoded.names], np.float64)
        if np.isnan(values).any():
            wrong = encoded.names[int(np.isnan(values).argmax())]
            raise InputError(f"{path}: the label {wrong!r} is not a number, as the others are. Fix the line.")
    elif FORMS[task.form].has_choices:
        values = np.array([int(name) - 1 for name in encoded.names])  # there may be more choices than in training
    else:
        values = np.array([task.labels.index(name) if name in task.labels else -1 for name in encoded.names])
    return values[encoded.codes]


def notes(task: Task, folder: Path, encoded: tuple[Encoded | None, ...], max_examples: int | None) -> list[str]:
    """Return warnings: lines that could not be read, and example counts that differ from the published ones."""
    found = []
    for sources, split in zip((task.train, task.valid, task.test), encoded, strict=True):
        if split is None:
            continue
        if split.n_bad:
            found.append(f"{split.n_bad} lines could not be used; the first: {split.first_bad}")
        read = dict(split.parts)
        for source in sources:
            n = read.get(source.part)
            if max_examples is None and None not in (n, source.n_examples) and n != source.n_examples:
                found.append(f"{folder / source.files[0]}: {n:,} examples, {source.n_examples:,} were published")
    return found


# --- the same examples as texts, for the analysis ---------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """The examples of a split as in its files, in the order of the rows and of the predictions."""

    examples: list[Example]
    labels: np.ndarray | None  # (N,) as in Rows; None: unknown
    parts: tuple[tuple[str, int], ...]  # name and number of examples of each part


def read_texts(
    task: Task, data_dir: Path, *, n_valid: int, seed: int, max_examples: int | None
) -> tuple[Task, Texts, Texts | None]:
    """Return the task with its labels, and the texts of the valid and test that read_splits returns."""
    folder = task.find(data_dir)
    task, train = task.in_layout_of(folder), None
    train_file = folder / task.train[0].files[0]

    def read(sources: Sequence[Source], which: Container[int] | None = None) -> tuple[Encoded, dict[int, Example]]:
        labels = None if task.scores or FORMS[task.form].has_choices else task.labels
        return read_unencoded(sources, folder, labels, task.strict, max_examples, which)

    def whole(sources: Sequence[Source]) -> Texts:
        found, examples = read(sources)
        labels = values_of_labels(task, found, folder / sources[0].files[0])
        return Texts(list(examples.values()), labels, found.parts)

    if not task.valid or not (task.labels or task.scores):
        train, _ = read(task.train, ())
        task = with_labels(task, train, train_file)
    if task.valid:
        valid = whole(task.valid)
    else:
        labels = values_of_labels(task, train, train_file)
        _, which = held_out(task, labels, n_valid, seed, train_file)
        _, examples = read(task.train, set(which.tolist()))
        valid = Texts([examples[i] for i in which.tolist()], labels[which], (("", len(which)),))
    return task, valid, whole(task.test) if task.test else None


def read_unencoded(
    sources: Sequence[Source],
    folder: Path,
    labels: Sequence[str] | None,
    strict: bool,
    max_examples: int | None,
    which: Container[int] | None = None,
) -> tuple[Encoded, dict[int, Example]]:
    """Return what encode_cached does, without token ids, and the examples by index: those in `which`; None: all."""
    names: dict[str, int] = {label: i for i, label in enumerate(labels or ())}
    kept, codes, n_texts, parts = {}, [], [], []
    for source in present(sources, folder):
        first = len(codes)
        for example in islice(good_examples(source, folder, labels, strict, []), max_examples):
            if which is None or len(codes) in which:
                kept[len(codes)] = example
            codes.append(-1 if example.label is None else names.setdefault(example.label, len(names)))
            n_texts.append(len(example.texts))
        if len(codes) == first:
            raise InputError(f"{folder / source.files[0]} holds no examples. Fetch it again.")
        parts.append((source.part, len(codes) - first))
    no_ids = np.zeros(0, np.int32)
    return Encoded(no_ids, no_ids, np.cumsum(n_texts), np.array(codes), tuple(names), tuple(parts)), kept


# --- the summary before training -------------------------------------------------------------------------------------


def majority(splits: Splits) -> float:
    """Return the accuracy on valid of always predicting the label that is most frequent there."""
    return float(np.bincount(splits.valid.labels.astype(int)).max() / len(splits.valid))


def describe(splits: Splits, encoder: TextEncoder) -> list[str]:
    """Return lines on labels, lengths and cut examples, and three examples as the network reads them."""
    task, train = splits.task, splits.train
    if task.scores:
        lines = [f"scores   {task.scores[0]:g} to {task.scores[1]:g}, mean {train.labels.mean():.3f}"]
    else:
        counts = np.bincount(train.labels, minlength=len(task.labels))
        shown = [f"{label} {n:,}" for label, n in zip(task.labels, counts, strict=True)][:10]
        more = f", {len(counts) - 10} more" * (len(counts) > 10)
        lines = [f"labels   {', '.join(shown)}{more}; always the most frequent: {majority(splits):.2%} of valid"]
    lengths = np.concatenate([rows.lengths(cut=False) for rows in splits.all()])
    n_cut = sum(int((rows.lengths(cut=False) > rows.lengths()).sum()) for rows in splits.all())
    lines.append(
        f"lengths  {int(np.median(lengths))} tokens in the median, {lengths.max()} at most; {n_cut:,} examples are cut"
    )
    lines += [f"note     {note}" for note in splits.notes]
    names = {train.n_vocab + i: f" {name} " for i, name in enumerate(("_start_", "_delimiter_", "_classify_"))}
    for i in range(min(3, len(train))):
        label = f"{train.labels[i]:g}" if task.scores else task.labels[train.labels[i]]
        lines.append(f"example  label {label}")
        for row in train.rows(i):
            text = "".join(names.get(token) or encoder.decoder[token].replace("</w>", " ") for token in row)
            lines.append("         " + " ".join(text.split()))
    return lines
