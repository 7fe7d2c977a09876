"""TASKS: one record per data set, all that the rest of the code knows about it.

To add a data set, put a record into TASKS, and a reader into formats/examples.py if none there reads its files.
Layouts, counts and metrics are those of the official files (FIDELITY, "Data sets").
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from formats.examples import (
    Bad,
    Example,
    cloze,
    json_lines,
    paraphrases,
    race,
    scored_table,
    table,
)
from formats.files import InputError
from formats.own import SUFFIXES, OwnData, own_examples


@dataclass(frozen=True)
class Source:
    """Files of a data set, and how they are read."""

    files: tuple[str, ...]  # below the folder of the data set
    read: "partial[Iterator[Example | Bad]]"  # a reader of formats/examples.py with its settings; it takes the folder
    n_examples: int | None = None  # in the official files; another number gives a warning
    part: str = ""  # name of these examples, where a split consists of several parts
    optional: bool = False  # leave the part out if its files are missing

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder holds the files."""
        return all((folder / name).exists() for name in self.files)


@dataclass(frozen=True)
class Task:
    """All that the rest of the code knows about a data set."""

    title: str  # as printed
    form: str  # a key of reading.rows.FORMS: how an example becomes rows of the model's input
    labels: tuple[str, ...] | None  # as the readers give them, in the order of the outputs; None: from train
    train: tuple[Source, ...]
    valid: tuple[Source, ...] = ()  # empty: n_valid examples of train are held out
    test: tuple[Source, ...] = ()
    folder: str = ""  # that holds the files, if the one named is the folder above it
    submission: dict[str, str] = field(default_factory=dict)  # part of test -> file name of its predictions
    metrics: tuple[str, ...] = ("acc",)  # keys of METRICS; the parameters kept are the best by the first, on valid
    shown: tuple[str, ...] | None = None  # labels as the official files have them; None: `labels`
    written: tuple[str, ...] | None = None  # labels as they are handed in; None: as shown
    scores: tuple[float, float] | None = None  # lowest and highest, if labels are numbers
    cut: str = "longest"  # a key of reading.rows.CUTS: what is shortened in examples too long for the network
    split_seed: int | None = None  # of the split of train into train and valid; None: the run's, stratified by label
    strict: bool = False  # stop at a line that cannot be read, rather than skip and count it
    notes: tuple[str, ...] = ()  # warnings about its folder
    first_choice: int = 1  # number of the first choice in own data's labels

    def sources(self) -> tuple[Source, ...]:
        return self.train + self.valid + self.test

    def shown_labels(self) -> tuple[str, ...] | None:
        """Return the labels for predictions and pictures; None for scores."""
        return self.shown or self.labels

    def written_labels(self) -> tuple[str, ...] | None:
        """Return the labels for the files that are handed in; None for scores."""
        return self.written or self.shown_labels()

    def find(self, data_dir: Path) -> Path:
        """Return the folder of the files. Raises InputError when there is none."""
        if not data_dir.is_dir():
            raise InputError(f"{data_dir}: no such folder. The data folder is the one with '{self.train[0].files[0]}'.")
        below = data_dir / self.folder
        return below if below.is_dir() else data_dir

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder holds the files of train and valid."""
        return all(source.is_in(folder) for source in self.train + self.valid)


def _source(
    read: Callable, file: str, n_examples: int | None = None, part: str = "", optional: bool = False, **settings
) -> tuple[Source]:
    """Return the one file of a split, or of a part of it, with the settings of its reader."""
    return (Source((file,), partial(read, file=file, **settings), n_examples, part, optional),)


# --- Story Cloze Test ------------------------------------------------------------------------------------------------

ROCSTORIES_VALID = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
ROCSTORIES_TEST = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
SPLIT_SEED = 3535999445  # TF's datasets.py:10


def read_cloze(path: Path) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """Read one file of the Story Cloze Test as columns: stories, first and second endings, labels 0 or 1.

    Raises InputError that names file, line and remedy.
    """
    examples = []
    for example in cloze(path.parent, path.name):
        if isinstance(example, Bad):
            raise InputError(f"{example.where}: {example.why}")
        examples.append(example)
    if not examples:
        raise InputError(f"{path} holds no examples. Fetch it again.")
    columns = zip(*(example.texts for example in examples), strict=True)
    labels = np.array([int(example.label) - 1 for example in examples])
    return *(list(column) for column in columns), labels


def hold_out(
    labels: np.ndarray, n_valid: int, seed: int, stratified: bool, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the examples to train on and of those held out, in random order.

    `stratified` holds out the same fraction of each label, if there are enough examples of each.

    Raises InputError, which names path, when n_valid leaves none to train on.
    """
    from sklearn.model_selection import train_test_split  # here: it imports scipy

    if not 1 <= n_valid < len(labels):
        raise InputError(
            f"{path}: holding out {n_valid} of its {len(labels)} examples leaves none to train on. Hold out fewer."
        )

    # by label only if each has an example for either side
    _, counts = np.unique(labels, return_counts=True)
    n_smaller = min(n_valid, len(labels) - n_valid)
    is_enough = counts.min() > 1 and len(counts) <= n_smaller
    by_label = labels if stratified and is_enough else None
    return train_test_split(np.arange(len(labels)), test_size=n_valid, random_state=seed, stratify=by_label)


# --- the user's own data ---------------------------------------------------------------------------------------------


SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def own_task(data_dir: Path, own: OwnData) -> Task:
    """Return the record of the user's own data: files train, valid and test in a folder. Raises InputError."""
    # the tables in the folder, whatever the case of their names
    files = []
    if data_dir.is_dir():
        for path in sorted(data_dir.iterdir()):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                files.append(path)

    # which of them are used
    sources = {}
    for split, names in SPLIT_NAMES.items():
        found = [path.name for path in files if path.stem.lower() in names]
        if len(found) > 1:
            raise InputError(f"{data_dir} holds {' and '.join(found)}. Keep one of them.")
        sources[split] = ()
        for file in found:
            sources[split] = _source(own_examples, file, own=own, labelled=split != "test")
    if not sources["train"]:
        names = ", ".join("train" + suffix for suffix in SUFFIXES)
        raise InputError(f"{data_dir} holds none of {names}. Name the folder that does.")

    # the others are named, but for texts such as a readme
    used = [source.files[0] for split in sources.values() for source in split]
    unused = [path.name for path in files if path.name not in used and path.suffix.lower() != ".txt"]
    notes = (f"{data_dir}: not used: {', '.join(unused)[:150]}",) if unused else ()
    submission = {"": "own.tsv"}
    more = {"notes": notes, "first_choice": own.first_choice}
    return Task("Own data", own.form, labels=None, submission=submission, strict=True, **more, **sources)


# --- the records -----------------------------------------------------------------------------------------------------


def _named(name: str) -> dict:
    """Return the fields of a data set whose folder and one file of predictions have its name."""
    return {"title": name, "folder": name, "submission": {"": f"{name}.tsv"}}


def _glue_pairs(n_examples: tuple[int, int, int], **columns) -> dict[str, tuple[Source]]:
    """Return train, dev and test of a GLUE set whose texts are in the same columns in all three."""
    n_train, n_valid, n_test = n_examples
    return {
        "train": _source(table, "train.tsv", n_train, **columns),
        "valid": _source(table, "dev.tsv", n_valid, **columns),
        "test": _source(table, "test.tsv", n_test, texts=columns["texts"]),
    }


BINARY = ("0", "1")
MNLI = ("entailment", "neutral", "contradiction")
SNLI_FIELDS = {"texts": ("sentence1", "sentence2"), "label": "gold_label"}
SCITAIL_COLUMNS = {"texts": (0, 1), "label": 2, "header": False}
ROCSTORIES = Task(
    title="ROCStories",
    form="multiple_choice",
    labels=("1", "2"),
    written=BINARY,
    train=_source(cloze, ROCSTORIES_VALID),
    test=_source(cloze, ROCSTORIES_TEST),
    submission={"": "ROCStories.tsv"},
    cut="halves",
    split_seed=SPLIT_SEED,
    strict=True,
)
TASKS: dict[str, Task] = {
    "rocstories": ROCSTORIES,
    "rocstories_2018": replace(
        ROCSTORIES,
        title="ROCStories 2018",
        train=_source(cloze, "cloze_test_val__winter2018-cloze_test_ALL_val - 1 - 1.csv", 1571),
        test=_source(cloze, "cloze_test_test__winter2018-cloze_test_ALL_test - 1.csv", labelled=False),
        submission={"": "ROCStories-2018.tsv"},
    ),
    "cola": Task(
        **_named("CoLA"),
        form="classification",
        labels=BINARY,
        metrics=("mcc",),
        train=_source(table, "train.tsv", 8551, texts=(3,), label=1, header=False),
        valid=_source(table, "dev.tsv", 1043, texts=(3,), label=1, header=False),
        test=_source(table, "test.tsv", 1063, texts=(1,)),
    ),
    "sst2": Task(
        **_named("SST-2"),
        form="classification",
        labels=BINARY,
        train=_source(table, "train.tsv", 67349, texts=(0,), label=1),
        valid=_source(table, "dev.tsv", 872, texts=(0,), label=1),
        test=_source(table, "test.tsv", 1821, texts=(1,)),
    ),
    "mrpc": Task(
        **_named("MRPC"),
        form="similarity",
        labels=BINARY,
        metrics=("f1", "acc"),
        **_glue_pairs((3668, 408, 1725), texts=(3, 4), label=0),
    ),
    "stsb": Task(
        **_named("STS-B"),
        form="similarity",
        labels=None,
        scores=(0.0, 5.0),
        metrics=("pearson", "spearman"),
        train=_source(scored_table, "train.tsv", 5749, texts=(7, 8), label=9),
        valid=_source(scored_table, "dev.tsv", 1500, texts=(7, 8), label=9),
        test=_source(table, "test.tsv", 1379, texts=(7, 8)),
    ),
    "qqp": Task(
        **_named("QQP"),
        form="similarity",
        labels=BINARY,
        metrics=("f1", "acc"),
        train=_source(table, "train.tsv", 363846, texts=(3, 4), label=5),
        valid=_source(table, "dev.tsv", 40430, texts=(3, 4), label=5),
        test=_source(table, "test.tsv", 390965, texts=(1, 2)),
    ),
    "mnli": Task(
        title="MNLI",
        form="entailment",
        labels=MNLI,
        # the label is in another column of train than of dev
        train=_source(table, "train.tsv", 392702, texts=(8, 9), label="gold_label"),
        valid=_source(table, "dev_matched.tsv", 9815, "matched", texts=(8, 9), label="gold_label")
        + _source(table, "dev_mismatched.tsv", 9832, "mismatched", texts=(8, 9), label="gold_label"),
        test=_source(table, "test_matched.tsv", 9796, "matched", texts=(8, 9))
        + _source(table, "test_mismatched.tsv", 9847, "mismatched", texts=(8, 9))
        + _source(table, "../diagnostic/diagnostic.tsv", 1104, "ax", optional=True, texts=(1, 2)),
        folder="MNLI",
        submission={"matched": "MNLI-m.tsv", "mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"},
    ),
    "qnli": Task(
        **_named("QNLI"),
        form="entailment",
        labels=("entailment", "not_entailment"),
        **_glue_pairs((104743, 5463, 5463), texts=(1, 2), label=3),
    ),
    "rte": Task(
        **_named("RTE"),
        form="entailment",
        labels=("entailment", "not_entailment"),
        **_glue_pairs((2490, 277, 3000), texts=(1, 2), label=3),
    ),
    "wnli": Task(
        **_named("WNLI"),
        form="entailment",
        labels=BINARY,
        **_glue_pairs((635, 71, 146), texts=(1, 2), label=3),
    ),
    "snli": Task(
        title="SNLI",
        form="entailment",
        labels=MNLI,
        train=_source(json_lines, "snli_1.0_train.jsonl", 549367, **SNLI_FIELDS),
        valid=_source(json_lines, "snli_1.0_dev.jsonl", 9842, **SNLI_FIELDS),
        test=_source(json_lines, "snli_1.0_test.jsonl", 9824, **SNLI_FIELDS),
        folder="snli_1.0",
        submission={"": "SNLI.tsv"},
    ),
    "scitail": Task(
        title="SciTail",
        form="entailment",
        labels=("entails", "neutral"),
        train=_source(table, "scitail_1.0_train.tsv", 23596, **SCITAIL_COLUMNS),
        valid=_source(table, "scitail_1.0_dev.tsv", 1304, **SCITAIL_COLUMNS),
        test=_source(table, "scitail_1.0_test.tsv", 2126, **SCITAIL_COLUMNS),
        folder="tsv_format",
        submission={"": "SciTail.tsv"},
    ),
    "race": Task(
        title="RACE",
        form="reading",
        labels=("1", "2", "3", "4"),
        shown=("A", "B", "C", "D"),
        train=_source(race, "train/middle", 25421, "middle") + _source(race, "train/high", 62445, "high"),
        valid=_source(race, "dev/middle", 1436, "middle") + _source(race, "dev/high", 3451, "high"),
        test=_source(race, "test/middle", 1436, "middle") + _source(race, "test/high", 3498, "high"),
        folder="RACE",
        submission={"middle": "RACE-middle.tsv", "high": "RACE-high.tsv"},
    ),
}

# MRPC as Microsoft published it: dev is what is on GLUE's list of pairs; without the list, examples are held out
_TRAIN = "msr_paraphrase_train.txt"
_LISTS = ("mrpc_dev_ids.tsv", "dev_ids.tsv")  # GLUE's script and GLUE's server name it so
_WITHOUT_LIST = replace(
    TASKS["mrpc"],
    train=_source(table, _TRAIN, 4076, texts=(3, 4), label=0),
    valid=(),
    test=_source(table, "msr_paraphrase_test.txt", 1725, texts=(3, 4), label=0),
)


def _with_list(ids_file: str) -> Task:
    """Return MRPC's record for a list of pairs of this name."""
    files = (_TRAIN, ids_file)
    read = partial(paraphrases, file=_TRAIN, ids_file=ids_file)
    return replace(
        _WITHOUT_LIST,
        train=(Source(files, partial(read, listed=False), 3668),),
        valid=(Source(files, partial(read, listed=True), 408),),
    )


# the same data in other files, tried in this order where those of TASKS are missing
LAYOUTS = {"mrpc": (*map(_with_list, _LISTS), _WITHOUT_LIST)}


def find_task(
    dataset: str,
    data_dir: Path,
    form: str | None = None,
    columns: dict[str, str] | None = None,
    race: str = "all",
    **more,
) -> Task:
    """Return the record of a data set, for the files that its folder holds.

    Args:
        dataset: a key of TASKS, or own.
        data_dir: folder of the files, or the folder above it.
        form, columns: of own data.
        race: which part of RACE.
        more: further fields of OwnData.

    Raises InputError for a missing folder, and for own data without files.
    """
    # own data: what its folder holds
    if dataset == "own":
        return own_task(data_dir, OwnData(form, columns or {}, **more))

    # the files as in TASKS, or those of another layout where these are complete
    task = TASKS[dataset]
    folder = task.find(data_dir)
    if not task.is_in(folder):
        for other in LAYOUTS.get(dataset, ()):
            if other.is_in(folder):
                return other

    # one level of RACE
    if dataset == "race" and race != "all":
        for split in ("train", "valid", "test"):
            of_level = tuple(source for source in getattr(task, split) if source.part == race)
            task = replace(task, **{split: of_level})
    return task
