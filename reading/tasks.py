"""TASKS: one record per data set, all that the rest of the code knows about it.

To add a data set, put a record into TASKS, and a reader into readers.py if none there reads its files. Layouts,
counts and metrics are those of the official files (FIDELITY, "Data sets").
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from formats.examples import SUFFIXES, Column, Reader, cloze, json_lines, own_examples, race, table
from formats.files import InputError


@dataclass(frozen=True)
class Source:
    """Files of a data set, and how they are read."""

    files: tuple[str, ...]  # below the folder of the data set
    read: Reader
    n_examples: int | None = None  # in the official files; another number gives a warning
    part: str = ""  # name of these examples, where a split consists of several parts
    optional: bool = False  # leave the part out if its files are missing


@dataclass(frozen=True)
class Task:
    """All that the rest of the code knows about a data set."""

    title: str  # as printed
    form: str  # a key of inputs.FORMS: how an example becomes rows of the model's input
    labels: (
        tuple[str, ...] | None
    )  # as in the files, in the order of the network's outputs; None: from the training set
    metrics: tuple[str, ...]  # keys of loss.METRICS; the parameters kept are the best by the first one, on valid
    train: tuple[Source, ...]
    valid: tuple[Source, ...] = ()  # empty: n_valid examples of train are held out
    test: tuple[Source, ...] = ()
    folder: str = ""  # that holds the files, if --data_dir is the folder above it
    submission: dict[str, str] = field(default_factory=dict)  # part of test -> file name of its predictions
    written: tuple[str, ...] | None = None  # labels as predictions are written; None: as in the files
    scores: tuple[float, float] | None = None  # lowest and highest, if labels are numbers
    cut: str = "longest"  # a key of inputs.CUTS: what is shortened in examples too long for the network
    split_seed: int | None = None  # of the split of train into train and valid; None: --seed, stratified by label
    strict: bool = False  # stop at a line that cannot be read, rather than skip and count it
    layouts: tuple["Task", ...] = ()  # records for the same data set in other files

    def sources(self) -> tuple[Source, ...]:
        return self.train + self.valid + self.test

    def find(self, data_dir: Path) -> Path:
        """Return the folder of the files. Raises InputError when there is none."""
        if not data_dir.is_dir():
            raise InputError(
                f"{data_dir}: no such folder. --data_dir names the one that holds '{self.train[0].files[0]}'."
            )
        below = data_dir / self.folder
        return below if self.folder and below.is_dir() else data_dir

    def in_layout_of(self, folder: Path) -> "Task":
        """Return the record for the files that a folder holds: this one, or the first of `layouts` that fits."""

        def fits(task: Task) -> bool:
            return all((folder / name).exists() for source in task.train + task.valid for name in source.files)

        return next((task for task in (self, *self.layouts) if fits(task)), self)


# --- Story Cloze Test ------------------------------------------------------------------------------------------------

ROCSTORIES_VALID = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
ROCSTORIES_TEST = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
SPLIT_SEED = 3535999445  # TF's datasets.py:10


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
    if stratified:
        counts = np.unique(labels, return_counts=True)[1]
        stratified = counts.min() > 1 and len(counts) <= min(n_valid, len(labels) - n_valid)
    numbers = np.arange(len(labels))
    return train_test_split(numbers, test_size=n_valid, random_state=seed, stratify=labels if stratified else None)


# --- the user's own data ---------------------------------------------------------------------------------------------


def own_task(data_dir: Path, form: str, columns: dict[str, str]) -> Task:
    """Return the record of the user's own data: files train, valid and test in a folder. Raises InputError."""

    def source(name: str, labelled: bool) -> tuple[Source, ...]:
        found = [name + suffix for suffix in SUFFIXES if (data_dir / (name + suffix)).exists()]
        if len(found) > 1:
            raise InputError(f"{data_dir} holds {' and '.join(found)}. Keep one of them.")
        read = {"form": form, "columns": columns, "labelled": labelled}
        return tuple(Source((file,), partial(own_examples, file=file, **read)) for file in found)

    train = source("train", True)
    if not train:
        raise InputError(f"{data_dir} holds none of train.csv, train.tsv and train.jsonl. --data_dir names its folder.")
    return Task(
        title="Own data",
        form=form,
        labels=None,
        metrics=("acc",),
        train=train,
        valid=source("valid", True),
        test=source("test", False),
        submission={"": "own.tsv"},
        strict=True,
    )


# --- the records -----------------------------------------------------------------------------------------------------


def _table(
    file: str, texts: tuple[Column, ...], label: Column | None = None, n: int | None = None, part: str = "", **more
) -> Source:
    optional = more.pop("optional", False)
    return Source((file,), partial(table, file=file, texts=texts, label=label, **more), n, part, optional)


def _pairs(
    n: tuple[int, int, int], texts: tuple[Column, ...], label: Column, scores: bool = False
) -> dict[str, tuple[Source]]:
    """Return train, dev and test of a GLUE set of text pairs with the same columns in all three."""
    return {
        "train": (_table("train.tsv", texts, label, n[0], scores=scores),),
        "valid": (_table("dev.tsv", texts, label, n[1], scores=scores),),
        "test": (_table("test.tsv", texts, None, n[2]),),
    }


def _mrpc_of_microsoft(with_ids: bool) -> Task:
    """Return the record of MRPC as Microsoft published it; with_ids: dev is the pairs on GLUE's list, else held out."""
    file, ids = "msr_paraphrase_train.txt", "mrpc_dev_ids.tsv"

    def of_train(n: int, keep: bool | None = None) -> Source:
        pairs = None if keep is None else ((1, 2), ids, keep)
        files = (file,) if keep is None else (file, ids)
        return Source(files, partial(table, file=file, texts=(3, 4), label=0, pairs=pairs), n)

    return Task(
        title="MRPC",
        form="similarity",
        labels=("0", "1"),
        metrics=("f1", "acc"),
        train=(of_train(3668, keep=False) if with_ids else of_train(4076),),
        valid=(of_train(408, keep=True),) if with_ids else (),
        test=(_table("msr_paraphrase_test.txt", (3, 4), 0, 1725),),
        folder="MRPC",
        submission={"": "MRPC.tsv"},
    )


def _snli(name: str, n: int) -> Source:
    file = f"snli_1.0_{name}.jsonl"
    read = partial(json_lines, file=file, texts=("sentence1", "sentence2"), label="gold_label")
    return Source((file,), read, n)


def _race(split: str, counts: dict[str, int]) -> tuple[Source, ...]:
    return tuple(
        Source((f"{split}/{level}",), partial(race, level=f"{split}/{level}"), n, level) for level, n in counts.items()
    )


def _cloze(file: str, labelled: bool = True, n: int | None = None) -> tuple[Source]:
    return (Source((file,), partial(cloze, file=file, labelled=labelled), n),)


MNLI = ("entailment", "neutral", "contradiction")
TASKS: dict[str, Task] = {
    "rocstories": Task(
        title="ROCStories",
        form="multiple_choice",
        labels=("1", "2"),
        written=("0", "1"),
        metrics=("acc",),
        train=_cloze(ROCSTORIES_VALID),
        test=_cloze(ROCSTORIES_TEST),
        submission={"": "ROCStories.tsv"},
        cut="halves",
        split_seed=SPLIT_SEED,
        strict=True,
    ),
    "rocstories_2018": Task(
        title="ROCStories 2018",
        form="multiple_choice",
        labels=("1", "2"),
        written=("0", "1"),
        metrics=("acc",),
        train=_cloze("cloze_test_val__winter2018-cloze_test_ALL_val - 1 - 1.csv", n=1571),
        test=_cloze("cloze_test_test__winter2018-cloze_test_ALL_test - 1.csv", labelled=False),
        submission={"": "ROCStories-2018.tsv"},
        cut="halves",
        split_seed=SPLIT_SEED,
        strict=True,
    ),
    "cola": Task(
        title="CoLA",
        form="classification",
        labels=("0", "1"),
        metrics=("mcc",),
        train=(_table("train.tsv", (3,), 1, 8551, header=False),),
        valid=(_table("dev.tsv", (3,), 1, 1043, header=False),),
        test=(_table("test.tsv", (1,), None, 1063),),
        folder="CoLA",
        submission={"": "CoLA.tsv"},
    ),
    "sst2": Task(
        title="SST-2",
        form="classification",
        labels=("0", "1"),
        metrics=("acc",),
        train=(_table("train.tsv", (0,), 1, 67349),),
        valid=(_table("dev.tsv", (0,), 1, 872),),
        test=(_table("test.tsv", (1,), None, 1821),),
        folder="SST-2",
        submission={"": "SST-2.tsv"},
    ),
    "mrpc": Task(
        title="MRPC",
        form="similarity",
        labels=("0", "1"),
        metrics=("f1", "acc"),
        **_pairs((3668, 408, 1725), (3, 4), 0),
        folder="MRPC",
        submission={"": "MRPC.tsv"},
        layouts=(_mrpc_of_microsoft(with_ids=True), _mrpc_of_microsoft(with_ids=False)),
    ),
    "stsb": Task(
        title="STS-B",
        form="similarity",
        labels=None,
        metrics=("pearson", "spearman"),
        **_pairs((5749, 1500, 1379), (7, 8), 9, scores=True),
        folder="STS-B",
        submission={"": "STS-B.tsv"},
        scores=(0.0, 5.0),
    ),
    "qqp": Task(
        title="QQP",
        form="similarity",
        labels=("0", "1"),
        metrics=("f1", "acc"),
        train=(_table("train.tsv", (3, 4), 5, 363846),),
        valid=(_table("dev.tsv", (3, 4), 5, 40430),),
        test=(_table("test.tsv", (1, 2), None, 390965),),
        folder="QQP",
        submission={"": "QQP.tsv"},
    ),
    "mnli": Task(
        title="MNLI",
        form="entailment",
        labels=MNLI,
        metrics=("acc",),
        train=(_table("train.tsv", (8, 9), "gold_label", 392702),),
        valid=(
            _table("dev_matched.tsv", (8, 9), "gold_label", 9815, "matched"),
            _table("dev_mismatched.tsv", (8, 9), "gold_label", 9832, "mismatched"),
        ),
        test=(
            _table("test_matched.tsv", (8, 9), None, 9796, "matched"),
            _table("test_mismatched.tsv", (8, 9), None, 9847, "mismatched"),
            _table("../diagnostic/diagnostic.tsv", (1, 2), None, 1104, "ax", optional=True),
        ),
        folder="MNLI",
        submission={"matched": "MNLI-m.tsv", "mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"},
    ),
    "qnli": Task(
        title="QNLI",
        form="entailment",
        labels=("entailment", "not_entailment"),
        metrics=("acc",),
        **_pairs((104743, 5463, 5463), (1, 2), 3),
        folder="QNLI",
        submission={"": "QNLI.tsv"},
    ),
    "rte": Task(
        title="RTE",
        form="entailment",
        labels=("entailment", "not_entailment"),
        metrics=("acc",),
        **_pairs((2490, 277, 3000), (1, 2), 3),
        folder="RTE",
        submission={"": "RTE.tsv"},
    ),
    "wnli": Task(
        title="WNLI",
        form="entailment",
        labels=("0", "1"),
        metrics=("acc",),
        **_pairs((635, 71, 146), (1, 2), 3),
        folder="WNLI",
        submission={"": "WNLI.tsv"},
    ),
    "snli": Task(
        title="SNLI",
        form="entailment",
        labels=MNLI,
        metrics=("acc",),
        train=(_snli("train", 549367),),
        valid=(_snli("dev", 9842),),
        test=(_snli("test", 9824),),
        folder="snli_1.0",
        submission={"": "SNLI.tsv"},
    ),
    "scitail": Task(
        title="SciTail",
        form="entailment",
        labels=("entails", "neutral"),
        metrics=("acc",),
        train=(_table("scitail_1.0_train.tsv", (0, 1), 2, 23596, header=False),),
        valid=(_table("scitail_1.0_dev.tsv", (0, 1), 2, 1304, header=False),),
        test=(_table("scitail_1.0_test.tsv", (0, 1), 2, 2126, header=False),),
        folder="tsv_format",
        submission={"": "SciTail.tsv"},
    ),
    "race": Task(
        title="RACE",
        form="reading",
        labels=("1", "2", "3", "4"),
        written=("A", "B", "C", "D"),
        metrics=("acc",),
        train=_race("train", {"middle": 25421, "high": 62445}),
        valid=_race("dev", {"middle": 1436, "high": 3451}),
        test=_race("test", {"middle": 1436, "high": 3498}),
        folder="RACE",
        submission={"middle": "RACE-middle.tsv", "high": "RACE-high.tsv"},
    ),
}


def find_task(
    dataset: str, data_dir: Path, form: str | None = None, columns: dict[str, str] | None = None, race: str = "all"
) -> Task:
    """Return the record of a data set: a key of TASKS, or own with its form and columns; race: which part of RACE.

    Raises InputError for own data without files.
    """
    if dataset == "own":
        return own_task(data_dir, form, columns or {})
    task = TASKS[dataset]
    if dataset == "race" and race != "all":
        parts = {name: getattr(task, name) for name in ("train", "valid", "test")}
        task = replace(task, **{name: tuple(s for s in sources if s.part == race) for name, sources in parts.items()})
    return task
