"""Every number of the paper that whoever has weights and data can make again, from one command.

    python reproduce.py --data_dir DIR

fine-tunes on each data set that --what asks for and DIR holds, and writes ours beside the published numbers to
tables.md, figure2.png and GLUE.zip in --out. It may be stopped at any time: the same command goes on, repeats no
finished run, and takes a run that was stopped from its checkpoint on.
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("reproduce.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("ReproduceFlags")  # before torch is loaded, which takes seconds

import shutil
import sys
import time
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

import running.figures
import train
from analysis import label_names, labelled_splits, parts_of, read_run_log
from formats.files import InputError, digests, make_output_folder, read_json, replacing, write_json
from formats.folders import LSTM_FILE, weight_files
from loss import PackedLosses
from opt import OpenAIAdam
from reading.tasks import TASKS, find_task
from reading.workers import in_processes, n_cores
from running.command import exit_code
from running.metrics import METRICS
from running.predictions import read_predictions
from running.processes import Ranks, autocast, pick_precision
from running.settings import WHAT, FineTuningFlags, ReproduceFlags, parse
from running.training import Plan
from text_utils import TextEncoder

# --- what the paper says ---------------------------------------------------------------------------------------------


class Number(NamedTuple):
    """A number of the paper's tables 2 to 4, of the test set."""

    title: str  # as in the paper
    dataset: str  # of train.py
    part: str  # of the split; all: the whole
    metric: str  # a key of METRICS
    published: float  # in %


# those of more than one table
COLA = Number("CoLA", "cola", "all", "mcc", 45.4)
SST2 = Number("SST-2", "sst2", "all", "acc", 91.3)
MNLI = [
    Number("MNLI matched", "mnli", "matched", "acc", 82.1),
    Number("MNLI mismatched", "mnli", "mismatched", "acc", 81.4),
]
RTE = Number("RTE", "rte", "all", "acc", 56.0)

TABLES = {
    "table2": [
        *MNLI,
        Number("SNLI", "snli", "all", "acc", 89.9),
        Number("SciTail", "scitail", "all", "acc", 88.3),
        Number("QNLI", "qnli", "all", "acc", 88.1),
        RTE,
    ],
    "table3": [
        Number("Story Cloze", "rocstories", "all", "acc", 86.5),
        Number("RACE middle", "race", "middle", "acc", 62.9),
        Number("RACE high", "race", "high", "acc", 57.4),
        Number("RACE", "race", "all", "acc", 59.0),
    ],
    "table4": [
        COLA,
        SST2,
        Number("MRPC", "mrpc", "all", "f1", 82.3),
        Number("STS-B", "stsb", "all", "pearson", 82.0),
        Number("QQP", "qqp", "all", "f1", 70.3),
    ],
    # ten seeds of the authors' code, their median (README of their repository)
    "stories": [Number("Story Cloze, median", "rocstories", "all", "acc", 85.8)],
    # the server's; its score is the mean over the sets of the mean over each set's metrics
    "glue": [
        COLA,
        SST2,
        Number("MRPC, F1", "mrpc", "all", "f1", 82.3),
        Number("MRPC, accuracy", "mrpc", "all", "acc", 75.7),
        Number("STS-B, Pearson", "stsb", "all", "pearson", 82.0),
        Number("STS-B, Spearman", "stsb", "all", "spearman", 80.0),
        Number("QQP, F1", "qqp", "all", "f1", 70.3),
        Number("QQP, accuracy", "qqp", "all", "acc", 88.5),
        *MNLI,
        Number("QNLI (87.4 on version 2)", "qnli", "all", "acc", 88.1),
        RTE,
        Number("WNLI", "wnli", "all", "acc", 53.4),
    ],
}
HEADS = {
    "table2": "Table 2, natural language inference",
    "table3": "Table 3, question answering and Story Cloze",
    "table4": "Table 4, classification and similarity",
    "stories": "Story Cloze, the authors' protocol",
    "glue": "GLUE",
}
GLUE_SCORE = 72.8
STORY_SEEDS = 10  # of the authors' protocol

# the variants that are compared -> flags of train.py
FULL = "transformer with auxiliary LM"
NO_AUXILIARY = "without auxiliary LM"
NOT_PRE_TRAINED = "without pre-training"
LSTM = "LSTM with auxiliary LM"  # its flag names its folder
N_LAYER = 12
PARTIAL = {n: f"{n} blocks transferred" for n in range(N_LAYER)}
VARIANTS = {FULL: [], NO_AUXILIARY: ["--lm_coef=0"], NOT_PRE_TRAINED: ["--n_transfer=-1"]}
VARIANTS |= {name: [f"--n_transfer={n}"] for n, name in PARTIAL.items()}

# Table 5: a column a set (title, data set, part, metric); a row a variant, with the average in front
TABLE5 = [
    ("CoLA", "cola", "all", "mcc"),
    ("SST2", "sst2", "all", "acc"),
    ("MRPC", "mrpc", "all", "f1"),
    ("STSB", "stsb", "all", "pearson"),
    ("QQP", "qqp", "all", "f1"),
    ("MNLI", "mnli", "all", "acc"),
    ("QNLI", "qnli", "all", "acc"),
    ("RTE", "rte", "all", "acc"),
]
PUBLISHED5 = {
    FULL: [74.7, 45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0],
    NOT_PRE_TRAINED: [59.9, 18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8],
    NO_AUXILIARY: [75.0, 47.9, 92.0, 84.9, 83.2, 69.8, 81.1, 86.9, 54.4],
    LSTM: [69.1, 30.3, 90.5, 83.2, 71.8, 68.1, 73.7, 81.1, 54.6],
}

# figure 2, left: the lines (title -> data set, part, metric), and their points from left to right
FIGURE2 = {"MNLI": ("mnli", "matched", "acc"), "RACE": ("race", "all", "acc")}
FIGURE2_VARIANTS = [NOT_PRE_TRAINED, *PARTIAL.values(), FULL]

# how to get a data set; {folder}: that of --data_dir
GLUE_PAGE = "https://gluebenchmark.com/tasks has its archive; unpack it into {folder}/"
GET = {
    "rocstories": "ask at https://cs.rochester.edu/nlp/rocstories/ and put the two CSV files of 2016 into {folder}/",
    "snli": "https://nlp.stanford.edu/projects/snli/snli_1.0.zip, unpacked into {folder}/",
    "scitail": "SciTailV1.1.zip of https://allenai.org/data/scitail; put its tsv_format/ into {folder}/",
    "race": "ask at https://www.cs.cmu.edu/~glai1/data/race/ and unpack RACE.tar.gz into {folder}/",
}

# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run of train.py."""

    out: Path  # folder of all results
    task: str  # a data set, in a table's words
    variant: str
    seed: int
    flags: list[str]  # of train.py, its output folders apart

    def name(self) -> str:
        return f"{self.task}, {self.variant}, seed {self.seed}"

    def folder(self) -> Path:
        """Return the folder of the run's log, predictions and, until it is finished, checkpoints."""
        return self.out / "runs" / self.name().replace(",", "").replace(" ", "_")

    def all_flags(self) -> list[str]:
        """Return the flags of train.py."""
        folder = self.folder()
        folders = [f"--{name}_dir={folder / name}" for name in ("log", "save", "submission")]
        return ["--desc=run", "--submit", "--resume", *folders, f"--seed={self.seed}", *self.flags]


def fine_tune(job: Job) -> dict[str, Any]:
    """Fine-tune and return all metrics and the seconds; the parameters are removed."""
    started = time.monotonic()
    folder = job.folder()
    with printing_to(folder / "printed.txt", job.name()):
        train.run(parse(FineTuningFlags, job.all_flags()))
    figures = read_figures(folder / "log")
    shutil.rmtree(folder / "save")
    return {"figures": figures, "seconds": time.monotonic() - started}


def read_figures(log_dir: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return split -> part -> metric -> value (%) of a finished run; the part `all` is the whole split."""
    # the predictions with their labels, as the analysis has them
    record, _ = read_run_log(log_dir / "run.jsonl")
    examples = read_predictions(log_dir / "run.predictions.jsonl")
    names = label_names(record, examples)
    splits = labelled_splits(record, names, examples)

    # the metrics of each split, and of each of its parts
    figures = {}
    for split, table in splits.items():
        figures[split] = {}
        for part, rows in parts_of(table).items():
            y = rows["y"].to_numpy()
            found = rows["found"].to_numpy()
            figures[split][part] = {metric: 100 * METRICS[metric].of(y, found) for metric in record.metrics}
    return figures


@contextmanager
def printing_to(path: Path, name: str) -> Iterator[None]:
    """Let all that is printed go to a file.

    Raises InputError for what the user can fix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "w") as log, redirect_stdout(log), redirect_stderr(log):
            yield
    except InputError as error:
        raise InputError(f"{name} failed: {error}") from None
    except SystemExit:
        # that of a wrong flag, which the file's last line names
        *_, last = path.read_text(errors="replace").splitlines() or [""]
        raise InputError(f"{name} failed: {last}") from None


def attempt(job: Job, function) -> dict[str, Any] | InputError:
    """Return what a run reached, or why it failed: the others go on."""
    try:
        return function(job)
    except InputError as error:
        return error


def fine_tune_missing(results: "Results", jobs: list[Job], n_workers: int, function=fine_tune) -> list[InputError]:
    """Make the runs that are missing, put what they reached into the results, and print a line for each.

    Returns why runs failed, for what the user can fix.

    Args:
        function: what makes a run, with fine_tune's result.
    """
    missing = results.missing(jobs)
    n_done = len(jobs) - len(missing)
    failures = []
    started = time.monotonic()
    attempts = in_processes(partial(attempt, function=function), missing, n_workers)
    for n_new, (job, found) in enumerate(attempts, start=1):
        number = f"run {n_done + n_new} of {len(jobs)}"
        if isinstance(found, InputError):
            failures.append(found)
            print(f"{number}: {found}", flush=True)
            continue

        # each run is kept as soon as it is done
        results.runs.append({"task": job.task, "variant": job.variant, "seed": job.seed, **found})
        results.save()

        # the last split is test where its labels are known, the first metric the main one
        split, parts = list(found["figures"].items())[-1]
        metric, value = list(parts["all"].items())[0]
        shown = f"{METRICS[metric].title} on {split} {value:.1f} %"

        # the runs that are left take as long as those before
        hours_each = (time.monotonic() - started) / n_new / 3600
        hours = hours_each * (len(missing) - n_new)
        print(f"{number}: {job.name()}: {shown}; about {hours:.1f} h left", flush=True)
    return failures


def tell_failures(failures: list[InputError]) -> None:
    """Raise InputError if runs failed."""
    if failures:
        raise InputError(
            f"{len(failures)} runs failed, the others are kept. Mend the cause and run the command again: it makes "
            f"those only. The first: {failures[0]}"
        )


# --- the results -----------------------------------------------------------------------------------------------------


class Results:
    """All results, and what they were made with, in one JSON file. Raises InputError for another file."""

    def __init__(self, path: Path):
        # nothing yet, or what the file holds
        self.path = path
        self.content: dict[str, Any] = {"made_with": {}, "pre_training": {}, "baselines": {}, "runs": []}
        if path.exists():
            found = read_json(path)
            if not isinstance(found, dict) or not self.content.keys() <= found.keys():
                raise InputError(f"{path} does not hold results of this command. Name another file or remove it.")
            self.content = found

        # its parts; what is put into them is in the content too
        self.made_with: dict[str, Any] = self.content["made_with"]
        self.pre_training: dict[str, dict[str, Any]] = self.content["pre_training"]
        self.baselines: dict[str, dict[str, float]] = self.content["baselines"]
        self.runs: list[dict[str, Any]] = self.content["runs"]

    def save(self) -> None:
        write_json(self.path, self.content, indent=1)

    def claim(self, **made_with: Any) -> None:
        """Note what the results are made with. Raises InputError if those in the file had something else."""
        for name, value in made_with.items():
            if self.made_with.setdefault(name, value) != value:
                words = name.replace("_", " ")
                raise InputError(f"{self.path} was made with another {words}: name another file or remove it.")

    def missing(self, jobs: list[Job]) -> list[Job]:
        """Return the runs that are not done."""
        done = [(run["task"], run["variant"], run["seed"]) for run in self.runs]
        return [job for job in jobs if (job.task, job.variant, job.seed) not in done]

    def by_seed(self, task: str, variant: str, part: str, metric: str, split: str = "test") -> pd.Series:
        """Return seed -> value (%) of a metric, for the seeds that have it."""
        values = {}
        for run in self.runs:
            if (run["task"], run["variant"]) == (task, variant):
                # a test set without labels has no figures
                figures = run["figures"].get(split, {}).get(part, {})
                value = figures.get(metric)
                if value is not None:
                    values[run["seed"]] = value
        return pd.Series(values, dtype=float)

    def best_split(self, task: str, variant: str, part: str, metric: str) -> tuple[str, pd.Series]:
        """Return the values of test, where its labels are known, or else of the validation set; and which it is."""
        for split, name in (("test", "test"), ("valid", "dev")):
            values = self.by_seed(task, variant, part, metric, split)
            if not values.empty:
                return name, values
        return "-", values


def mean_and_spread(values: pd.Series) -> str:
    """Return mean and standard deviation (%), as far as there are values for them."""
    if values.empty:
        return "-"
    mean = f"{values.mean():.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {values.std():.1f}"


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_transfer(axes, points: dict[str, list[pd.Series]], names: list[str]) -> None:
    """Draw accuracy by blocks transferred, a line a task; the first point, without pre-training, stands alone.

    Args:
        points: task -> the values of the seeds at each name; empty ones are left out.
        names: as written below the axis.
    """
    for i, (task, series) in enumerate(points.items()):
        # the mean of each point, with an error bar where there are several seeds
        means = [values.mean() for values in series]
        spreads = [values.std() if len(values) > 1 else 0.0 for values in series]
        style = {"color": f"C{i}", "capsize": 3}
        axes.errorbar(range(1, len(names)), means[1:], spreads[1:], fmt="o-", label=task, **style)
        axes.errorbar([0], means[:1], spreads[:1], fmt="s", **style)

    # what stands below the points
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("blocks transferred (none: not pre-trained; 0: embeddings)")
    axes.legend()


# --- the report ------------------------------------------------------------------------------------------------------


def report(results: Results, out: Path) -> None:
    """Print the tables of the results there are; write them, the figure and GLUE's hand-in to a folder."""
    # a rehearsal says so
    texts = []
    given = []
    for name, value in results.made_with.items():
        if not name.startswith("weights") and value:
            given.append(f"{name} {value}")
    if given:
        texts.append(f"Not the paper's settings: {', '.join(given)}.")

    # the tables of which there is something
    done = {run["task"] for run in results.runs}
    for key, numbers in TABLES.items():
        if not done & {number.dataset for number in numbers}:
            continue
        rows = [row_of(results, number) for number in numbers]
        if key == "glue":
            values = glue_score(results)
            rows.append(["score", f"{GLUE_SCORE}", mean_and_spread(values), median(values), "dev", f"{len(values)}"])
        head = [HEADS[key], "published, test", "ours: mean ± s.d.", "median", "split", "seeds"]
        texts.append(markdown(head, rows))
    if any(dataset in done for _, dataset, *_ in TABLE5):
        texts.append(ablations(results))

    # printed, and kept
    text = "\n\n".join(texts)
    print(f"\n{text}\n")
    with replacing(out / "tables.md") as file:
        file.write(f"{text}\n".encode())

    # the picture, and what GLUE's server takes
    files = ["tables.md"]
    if any(dataset in done for dataset, *_ in FIGURE2.values()):
        draw_figure2(results, out / "figure2.png")
        files.append("figure2.png")
    if pack_hand_in(results, out):
        files.append("GLUE.zip")
    print(f"see {out}/: {', '.join(files)}")


def draw_figure2(results: Results, path: Path) -> None:
    """Draw the left panel of figure 2: accuracy by blocks transferred."""
    # a line a data set; its points from left to right
    points = {}
    for title, (dataset, part, metric) in FIGURE2.items():
        points[title] = []
        for variant in FIGURE2_VARIANTS:
            _, values = results.best_split(dataset, variant, part, metric)
            points[title].append(values)

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    draw_transfer(axes, points, ["none", *map(str, PARTIAL), str(N_LAYER)])
    axes.set_ylabel("accuracy (%): MNLI on dev, RACE on test")
    running.figures.save(figure, path)


def row_of(results: Results, number: Number) -> list[str]:
    """Return a row of tables 2 to 4: the published number, then ours."""
    split, values = results.best_split(number.dataset, FULL, number.part, number.metric)
    return [number.title, f"{number.published}", mean_and_spread(values), median(values), split, f"{len(values)}"]


def median(values: pd.Series) -> str:
    return "-" if values.empty else f"{values.median():.1f}"


def glue_score(results: Results) -> pd.Series:
    """Return seed -> GLUE's score on the dev sets, for the seeds that have all of them."""
    # the metrics of each set
    by_set = {}
    for number in TABLES["glue"]:
        values = results.by_seed(number.dataset, FULL, number.part, number.metric, "valid")
        by_set.setdefault(number.dataset, []).append(values)

    # the mean of each set's, then of the sets; a seed that lacks one has none
    means = []
    for metrics in by_set.values():
        means.append(pd.concat(metrics, axis=1).mean(axis=1, skipna=False))
    scores = pd.concat(means, axis=1).mean(axis=1, skipna=False)
    return scores.dropna()


def ablations(results: Results) -> str:
    """Return Table 5: for each variant the published numbers, then ours on the dev sets; the LSTM if it was run."""
    done = {run["variant"] for run in results.runs}
    rows = []
    for variant, published in PUBLISHED5.items():
        if variant == LSTM and LSTM not in done:
            continue
        rows.append([f"{variant}, published", *map(str, published)])

        # ours; the average is over the seeds that all sets have
        columns = {}
        for title, dataset, part, metric in TABLE5:
            columns[title] = results.by_seed(dataset, variant, part, metric, "valid")
        averages = pd.DataFrame(columns).dropna().mean(axis=1)
        cells = [mean_and_spread(values) for values in (averages, *columns.values())]
        rows.append([f"{variant}, ours on dev", *cells])
    titles = [title for title, *_ in TABLE5]
    return markdown(["Table 5", "average", *titles], rows)


def pack_hand_in(results: Results, out: Path) -> bool:
    """Zip GLUE's eleven files of the first seed that has them all; return whether there is one."""
    seeds = {run["seed"] for run in results.runs}
    sets = dict.fromkeys(number.dataset for number in TABLES["glue"])
    for seed in sorted(seeds):
        # the files of its runs
        files = []
        for dataset in sets:
            folder = Job(out, dataset, FULL, seed, []).folder() / "submission"
            files += [folder / name for name in TASKS[dataset].submission.values()]

        # only of a seed that has all of them
        if all(path.exists() for path in files):
            with replacing(out / "GLUE.zip") as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
                for path in files:
                    packed.write(path, path.name)
            return True
    return False


# --- what to run -----------------------------------------------------------------------------------------------------


def wanted(what: list[str], n_seeds: int | None, variants: Collection[str] = VARIANTS) -> list[tuple[str, str, int]]:
    """Return data set, variant and seed of each run that tables and figure need, each once.

    Args:
        n_seeds: None: 1, and as many as the authors had for the table `stories`.
        variants: those that can be run.
    """
    asked = WHAT[:-1] if "all" in what else what
    found = []
    for key in asked:
        # data sets and variants
        if key == "table5":
            rows = [variant for variant in PUBLISHED5 if variant in variants]
            pairs = [(dataset, variant) for variant in rows for _, dataset, *_ in TABLE5]
        elif key == "figure2":
            pairs = [(dataset, variant) for dataset, *_ in FIGURE2.values() for variant in FIGURE2_VARIANTS]
        else:
            pairs = [(number.dataset, FULL) for number in TABLES[key]]

        # seed by seed, so that one of each is done first
        last = n_seeds
        if last is None:
            last = STORY_SEEDS if key == "stories" else 1
        for seed in range(1, last + 1):
            found += [(dataset, variant, seed) for dataset, variant in pairs]
    return list(dict.fromkeys(found))


def jobs_of(settings: ReproduceFlags) -> list[Job]:
    """Return the runs that are asked for; data sets that are missing are named and left out."""
    # a batch of 32, of which 8 are computed at a time: the paper's
    common = ["--n_batch=8", "--accumulate=4", f"--model_dir={settings.model_dir}", f"--data_dir={settings.data_dir}"]
    if settings.max_examples is not None:
        # of a set without validation file, a fifth is held out
        n_valid = max(1, settings.max_examples // 5)
        common += [f"--max_examples={settings.max_examples}", f"--n_valid={n_valid}"]

    # the LSTM, where its weights are given
    what = settings.what or ["all"]
    variants = dict(VARIANTS)
    if settings.lstm is not None:
        variants[LSTM] = [f"--lstm={settings.lstm}"]
    elif {"table5", "all"} & set(what):
        print("left out Table 5's LSTM: it needs --lstm DIR. To make one: pretrain.py --lstm_units 2048")

    # the runs of the data sets that are there
    data_dir = Path(settings.data_dir)
    jobs = []
    absent = []
    for dataset, variant, seed in wanted(what, settings.seeds, variants):
        task = find_task(dataset, data_dir)
        if task.is_in(task.find(data_dir)):
            flags = [f"--dataset={dataset}", *common, *variants[variant], *settings.flags.split()]
            jobs.append(Job(Path(settings.out), dataset, variant, seed, flags))
        elif dataset not in absent:
            absent.append(dataset)

    # how to get the others
    for dataset in absent:
        how = GET.get(dataset, GLUE_PAGE).format(folder=settings.data_dir)
        print(f"left out {TASKS[dataset].title}: its files are not in {settings.data_dir}. To get them: {how}")
    if not jobs:
        raise InputError(f"{settings.data_dir} holds none of the data sets asked for. Name the folder that does.")
    return jobs


def print_plan(jobs: list[Job]) -> None:
    """Print each command, its updates, and the hours they take at the speed of one update that is measured here."""
    total = 0.0
    for job in jobs:
        flags = job.all_flags()
        n_updates, seconds = measure_update(parse(FineTuningFlags, flags))
        hours = n_updates * seconds / 3600
        total += hours
        print(f"python train.py {' '.join(flags)}")
        print(f"    {n_updates:,} updates of {seconds:.2f} s: {hours:.2f} h, without evaluation", flush=True)
    print(f"{len(jobs)} runs, {total:.1f} h one after the other on this machine")


def measure_update(settings: FineTuningFlags) -> tuple[int, float]:
    """Return the number of updates of a run, and the seconds that one takes."""
    # the run, as train.py makes it
    encoder = TextEncoder(settings.encoder_path, settings.bpe_path)
    splits = train.read_task(settings, encoder)
    plan = Plan(len(splits.train), settings.n_batch, settings.accumulate, 1, settings.n_iter)
    device = Ranks().device
    model, _ = train.build_network(settings, splits, encoder.n_vocab)
    model.to(device)
    losses = PackedLosses(model, settings.lm_coef)
    optimizer = OpenAIAdam(model.parameters(), **settings.adam(), schedule="warmup_linear", warmup=0.1, t_total=10)
    optimizer.preallocate()

    precision = autocast(pick_precision(settings.precision, device), device)

    def compute(part: range) -> Tensor:
        # forward and backward, as in train.py
        packing = splits.train.packed(part, settings.share_context).to(device)
        y = splits.train.targets(part).to(device)
        with precision:
            task_losses, lm_losses = losses(packing, y)
            loss = task_losses.mean()
            if lm_losses is not None:
                loss = loss + settings.lm_coef * lm_losses.mean()
        loss.backward()
        return loss

    # a batch makes the device ready; then an update, with its time
    n_batch = settings.n_batch
    compute(range(n_batch)).item()
    started = time.monotonic()
    for first in range(0, plan.update_size, n_batch):
        compute(range(first, first + n_batch))
    optimizer.step()
    next(model.parameters()).sum().item()  # waits for the device
    return plan.t_total, time.monotonic() - started


# --- the command -----------------------------------------------------------------------------------------------------


def reproduce(settings: ReproduceFlags) -> None:
    """Do what is missing, then report. Raises InputError for what the user can fix."""
    out = Path(settings.out)
    results = Results(out / "results.json")

    # --report: of what was done before
    if settings.report:
        if not results.runs:
            raise InputError(f"{results.path} holds no results. Leave out --report to make them.")
        report(results, out)
        return

    # what is to be done; a wrong flag of --flags ends the command before anything is made
    jobs = jobs_of(settings)
    for job in jobs:
        parse(FineTuningFlags, job.all_flags())

    # with --dry_run it is only shown
    if settings.dry_run:
        print_plan(results.missing(jobs))
        return
    make_output_folder(out)

    # results of other weights or settings are not mixed with these
    weights = list(digests(weight_files(Path(settings.model_dir))).values())
    results.claim(weights=weights, max_examples=settings.max_examples, flags=settings.flags)
    if settings.lstm is not None:
        results.claim(weights_of_the_LSTM=list(digests([Path(settings.lstm) / LSTM_FILE]).values()))

    # one run at a time keeps a GPU busy
    n_workers = settings.workers
    if n_workers is None:
        n_workers = n_cores() if Ranks().device.type == "cpu" else 1
    failures = fine_tune_missing(results, jobs, n_workers)
    if results.runs:
        report(results, out)
    tell_failures(failures)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(ReproduceFlags, argv)
    return exit_code("reproduce.py", partial(reproduce, settings), "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
