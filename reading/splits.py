"""A task's files -> train, valid and test as rows, and the summary of them printed before training."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from formats.examples import as_number
from formats.files import InputError
from reading.encoding import Encoded, SplitFiles, describe_unknown, encode_cached
from reading.rows import FORMS, N_CLASSES_OF_SCORE, Layout, Rows, special_tokens
from reading.tasks import Source, Task, hold_out
from text_utils import TextEncoder


@dataclass(frozen=True)
class Limits:
    """How much of a task's files is read, and how much of train is held out where there are no validation files."""

    n_valid: int  # examples held out; at most a tenth of train, unless the task fixes the seed of this split
    seed: int  # of this split, unless the task fixes it
    n_ctx: int  # tokens of the longest row allowed
    max_examples: int | None = None  # of each file, by the seed; None: all


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
    files: tuple[Path, ...] = ()  # that were read

    def n_out(self) -> int:
        """Return the number of outputs of the task head."""
        return N_CLASSES_OF_SCORE if self.task.scores else len(self.task.labels)

    def all(self) -> list[Rows]:
        return [rows for rows in (self.train, self.valid, self.test) if rows is not None]

    def n_ctx(self) -> int:
        """Return the number of tokens of the longest row."""
        return max(int(rows.lengths().max()) for rows in self.all())


def read_splits(task: Task, data_dir: Path, encoder: TextEncoder, limits: Limits) -> Splits:
    """Read and encode the files of a task; data_dir is their folder, or the folder above it.

    Raises InputError: a file is missing or malformed, or an example does not fit into n_ctx.
    """
    folder = task.find(data_dir)
    is_own = task.labels is None and task.scores is None
    train_file = folder / task.train[0].files[0]

    # train comes first: where the task does not fix the labels, they are those of train
    files = SplitFiles(task.train, folder, task.labels, task.strict, limits.max_examples, limits.seed)
    encoded = {"train": encode_cached(files, encoder)}
    task = with_labels(task, encoded["train"], train_file)

    # the others may hold other scores than train, and examples of more choices; classes are checked in make_rows
    for name, sources in (("valid", task.valid), ("test", task.test)):
        if sources:
            encoded[name] = encode_cached(replace(files, sources=sources), encoder)
    notes = list(task.notes)
    if is_own and "test" in encoded:
        encoded["test"], found = without_placeholders(task, folder, encoded["test"])
        notes += found

    # texts to rows, labels to numbers
    rows = {}
    parts = {}
    for name, split in encoded.items():
        rows[name], why = make_rows(task, folder, split, encoder, limits.n_ctx, name == "test")
        parts[name] = split.parts

        # examples that their labels left out count as bad lines; own data, where it happens, have one part
        if why:
            n_good = len(rows[name])
            n_bad = split.n_bad + len(split) - n_good
            parts[name] = (("", n_good),)
            encoded[name] = replace(split, n_bad=n_bad, first_bad=split.first_bad or why)

    # without files for validation, some examples of train are held out
    if "valid" not in rows:
        everything = rows["train"]
        train, valid = held_out(task, everything.labels, limits, train_file)
        rows["valid"] = everything.chosen(valid)
        rows["train"] = everything.chosen(train)
        parts["valid"] = (("", len(valid)),)

    # what the files lack
    for name, split in encoded.items():
        notes += notes_on(getattr(task, name), folder, split, limits.max_examples)
    notes += notes_on_labels(task, rows.get("test"))

    # the files that were read, without the optional ones that are missing
    read = []
    for source in task.sources():
        paths = [folder / name for name in source.files]
        read += [path for path in paths if path.is_file()]
    return Splits(
        task=task,
        train=rows["train"],
        valid=rows["valid"],
        test=rows.get("test"),
        valid_parts=parts["valid"],
        test_parts=parts.get("test", ()),
        notes=tuple(notes),
        files=tuple(read),
    )


def with_labels(task: Task, train: Encoded, path: Path) -> Task:
    """Return a task with its labels, or the range of its scores, taken from train if the task does not fix them."""
    if task.labels or task.scores:
        return task

    # choices are numbered, as many as the longest list of them
    form = FORMS[task.form]
    if form.has_choices:
        n_texts = np.diff(train.example_ends, prepend=0)
        n_choices = int(n_texts.max()) - form.n_texts
        labels = tuple(str(i + 1) for i in range(n_choices))
        shown = tuple(str(i + task.first_choice) for i in range(n_choices))
        return replace(task, labels=labels, shown=shown)

    # of a regression they are scores, and more than two different numbers are scores of similarity
    numbers = {as_number(name) for name in train.names}
    scores = numbers - {None}
    if task.form == "regression" and len(scores) < 2:
        shown = ", ".join(map(reprlib.repr, train.names[:3]))
        raise InputError(f"{path}: its labels ({shown}) are not two numbers or more: there is nothing to learn.")
    if task.form == "regression" or (task.form == "similarity" and len(scores) > 2):
        notes = task.notes
        if task.form == "similarity" and all(score == int(score) for score in scores):
            why = "numbers, so they are scores. If they are classes, write them as words, such as c1"
            notes += (f"{path}: its labels are {len(scores)} different {why}",)
        return replace(task, scores=(min(scores), max(scores)), metrics=("pearson", "spearman"), notes=notes)

    names = class_names(train.names)
    if len(names) < 2:
        raise InputError(
            f"{path}: every label is {reprlib.repr(names[0])}: there is nothing to learn. Give two labels or more."
        )

    # a label that only the first line has may be the name of its column
    notes = task.notes
    has_first_label = train.codes == train.codes[0]
    if len(train) >= 10 and np.count_nonzero(has_first_label) == 1:
        first = reprlib.repr(train.names[0])
        notes += (f"{path}: only the first line has the label {first}: is it a line of names?",)
    return replace(task, labels=tuple(sorted(names)), metrics=("acc", "macro_f1"), notes=notes)


def class_names(names: Sequence[str]) -> list[str]:
    """Return the names of classes; of 1 and 1.0, which are one where all are numbers, the first."""
    numbers = [as_number(name) for name in names]
    if None in numbers:
        return list(names)
    first_of = {}
    for name, number in zip(names, numbers, strict=True):
        first_of.setdefault(number, name)
    return list(first_of.values())


def without_placeholders(task: Task, folder: Path, test: Encoded) -> tuple[Encoded, list[str]]:
    """Return the user's test set, its labels removed if they are no labels (-1 in every line), and notes on them."""
    path = folder / task.test[0].files[0]
    n_unlabelled = np.count_nonzero(test.codes < 0)
    if 0 < n_unlabelled < len(test):
        return test, [f"{path}: {n_unlabelled} of {len(test)} examples have no label: they are predicted, not scored"]

    # a single label stands for an unknown one
    if n_unlabelled or len(test.names) > 1 or FORMS[task.form].has_choices:
        return test, []
    (label,) = test.names

    # if train does not have it; of scores, if it is below the lowest
    if task.scores:
        number = as_number(label)
        is_known = number is not None and number >= task.scores[0]
    else:
        (index,) = class_indices(test.names, task.labels)
        is_known = index < len(task.labels)
    if is_known:
        return test, []
    removed = replace(test, codes=np.full(len(test), -1))
    return removed, [f"{path}: every label is {reprlib.repr(label)}, which is none of train's: taken for no label"]


def make_rows(
    task: Task, folder: Path, encoded: Encoded, encoder: TextEncoder, n_ctx: int, is_test: bool
) -> tuple[Rows, str]:
    """Return a split's rows, and place and reason of the first that its label left out, "" if none.

    Raises InputError for an example whose uncut part does not fit, and for a bad label unless it may be left out.
    """
    # a label must be one of train's, though not in test, or a score
    layout = Layout(task.form, task.cut, encoder.n_vocab, n_ctx)
    labels = label_values(task, encoded)
    rows = Rows(encoded, layout, labels, task.scores)
    why = ""
    is_good = good_labels(task, rows, is_test)
    if not is_good.all():
        first_bad = int(is_good.argmin())
        bad = rows.example(first_bad)
        if task.scores:
            known = "a number, as the others are"
        else:
            shown = ", ".join(task.labels[:10])
            known = f"one of {shown[:100]}"
        why = f"{bad.where}: the label {reprlib.repr(bad.label)} is not {known}. Fix the line or remove it."
        if task.strict or not is_good.any():
            raise InputError(f"{folder}/{why}")
        rows = rows.chosen(np.flatnonzero(is_good))

    # only the context of an example is cut
    lengths = rows.lengths()
    if lengths.max() > n_ctx:
        i = int(lengths.argmax())
        where = rows.example(i).where
        raise InputError(
            f"{folder}/{where}: {lengths[i]} tokens without its context, which is all that may be cut; n_ctx is "
            f"{n_ctx}. Shorten it or raise n_ctx."
        )
    return rows, why


def good_labels(task: Task, rows: Rows, is_test: bool) -> np.ndarray:
    """Return which examples have a label that can be used (N,), or none."""
    if rows.labels is not None and task.scores:
        return np.isfinite(rows.labels)

    # choices are numbers of any size; a class of test that train lacks is kept: it counts as wrong
    if rows.labels is None or rows.has_choices() or is_test:
        return np.ones(len(rows), bool)
    return rows.labels < len(task.labels)


def label_values(task: Task, encoded: Encoded) -> np.ndarray | None:
    """Return the labels of examples as indices into task.labels, or as scores (N,); None if any label is missing.

    A class that train lacks is len(task.labels), which is never predicted; what is no score is NaN.
    """
    if encoded.codes.min() < 0:
        return None

    # scores are numbers
    if task.scores:
        numbers = [as_number(name) for name in encoded.names]
        return np.array(numbers, float)[encoded.codes]

    # choices are numbered from 1, and there may be more of them than in train
    if FORMS[task.form].has_choices:
        values = [int(name) - 1 for name in encoded.names]
        return np.array(values)[encoded.codes]

    values = class_indices(encoded.names, task.labels)
    return np.array(values)[encoded.codes]


def class_indices(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Return the index of each name in labels, len(labels) for another; 1 and 1.0 are one where labels are numbers."""
    numbers = [as_number(label) for label in labels]
    key_of = str if None in numbers else as_number
    known = {key_of(label): i for i, label in enumerate(labels)}
    return [known.get(key_of(name), len(labels)) for name in names]


def held_out(task: Task, labels: np.ndarray, limits: Limits, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of train's examples to train on, and of those held out as valid."""
    # the authors' split of Story Cloze is not by label
    if task.split_seed is not None:
        return hold_out(labels, limits.n_valid, task.split_seed, False, path)

    # of others at most a tenth, the same share of each label
    tenth = max(1, len(labels) // 10)
    n_valid = min(limits.n_valid, tenth)
    return hold_out(labels, n_valid, limits.seed, not task.scores, path)


def notes_on(sources: tuple[Source, ...], folder: Path, split: Encoded, max_examples: int | None) -> list[str]:
    """Return warnings: lines that could not be read, and example counts that differ from the published ones."""
    notes = []
    if split.n_bad:
        notes.append(f"{split.n_bad} lines could not be used; the first: {folder}/{split.first_bad}")

    # a part of each file has no published number
    if max_examples is not None:
        return notes
    published = {source.part: source for source in sources if source.n_examples is not None}
    for part, n in split.parts:
        source = published.get(part)
        if source is not None and n != source.n_examples:
            path = folder / source.files[0]
            notes.append(f"{path}: {n:,} examples, {source.n_examples:,} were published")
    return notes


def notes_on_labels(task: Task, test: Rows | None) -> list[str]:
    """Return a warning if test has classes that train lacks."""
    if test is None or test.labels is None or task.scores or test.has_choices():
        return []
    n = np.count_nonzero(test.labels == len(task.labels))
    if n == 0:
        return []
    return [f"{n:,} test examples have a label that train lacks: each counts as wrong"]


# --- the summary before training -------------------------------------------------------------------------------------


def majority(splits: Splits) -> float:
    """Return the accuracy on valid of always predicting the label that is most frequent there."""
    counts = np.bincount(splits.valid.labels.astype(int))
    return float(counts.max() / len(splits.valid))


def describe(splits: Splits, encoder: TextEncoder) -> list[str]:
    """Return lines on labels, lengths and cut examples, and three examples as the network reads them."""
    lines = [describe_labels(splits)]

    # how long the examples are
    lengths = np.concatenate([rows.lengths(is_cut=False) for rows in splits.all()])
    after_cut = np.concatenate([rows.lengths() for rows in splits.all()])
    n_cut = np.count_nonzero(after_cut < lengths)
    median = int(np.median(lengths))
    lines.append(f"lengths  {median} tokens in the median, {lengths.max()} at most; {n_cut:,} examples are cut")

    # how much of them the vocabulary lacks; train and a held-out valid are of one Encoded, which counts once
    different = {id(rows.encoded): rows.encoded.ids for rows in splits.all()}
    lines += describe_unknown(list(different.values()), encoder)

    # what may be wrong, and what the network sees
    lines += [f"note     {note}" for note in splits.notes]
    lines += describe_repeated(splits)
    for i in range(min(3, len(splits.train))):
        lines += describe_example(splits, i, encoder)
    return lines


def describe_repeated(splits: Splits) -> list[str]:
    """Return a warning for valid and for test if examples of them are in train too."""
    seen = set(splits.train.fingerprints())
    lines = []
    for name, rows in (("valid", splits.valid), ("test", splits.test)):
        if rows is None:
            continue
        n = sum(fingerprint in seen for fingerprint in rows.fingerprints())
        if n > 0:
            lines.append(f"warning  {n:,} of {len(rows):,} {name} examples are in train too: they are no test of it")
    return lines


def describe_labels(splits: Splits) -> str:
    """Return how frequent each label of train is, or the range of the scores."""
    task = splits.task
    labels = splits.train.labels
    if task.scores:
        low, high = task.scores
        return f"scores   {low:g} to {high:g}, mean {labels.mean():.3f}"

    # ten labels at most
    names = task.shown_labels()
    counts = np.bincount(labels, minlength=len(names))
    shown = [f"{name[:40]} {n:,}" for name, n in zip(names, counts, strict=True)]
    if len(shown) > 10:
        shown[10:] = [f"{len(shown) - 10} more"]
    return f"labels   {', '.join(shown)}; always the most frequent: {majority(splits):.2%} of valid"


def describe_example(splits: Splits, i: int, encoder: TextEncoder) -> list[str]:
    """Return the label of an example of train and its rows, the special tokens by their names."""
    task = splits.task
    train = splits.train
    label = train.labels[i]
    shown = f"{label:g}" if task.scores else task.shown_labels()[label]
    lines = [f"example  label {shown}"]

    # its rows, a line each
    special = special_tokens(train.layout.n_vocab)
    names = {
        special.start: " _start_ ",
        special.delimiter: " _delimiter_ ",
        special.classify: " _classify_ ",
    }
    names = encoder.decoder | names
    for k, row in enumerate(train.rows(i)):
        # what the choices have in common is shown once
        if k > 0 and train.has_choices():
            row = row[row.index(special.delimiter) :]
        text = "".join(names[token] for token in row)
        words = text.replace("</w>", " ").split()
        lines.append("         " + " ".join(words))
    return lines
