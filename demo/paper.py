"""The paper in miniature: its Table 5 and the two panels of its figure 2, with small networks and generated text.

    python -m demo.paper

makes the data, pre-trains the transformer and an LSTM of as many parameters, fine-tunes both on every task over seeds,
and writes all results to one JSON file. From that file it draws --figure and fills the tables in demo/README.md; with
--report it does only this. It may be stopped at any time: the same command goes on, and repeats no finished run.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

import pretrain
import running.figures
from demo import stories
from demo.baselines import majority_accuracy, rule_accuracy, rules
from formats.examples import Example
from formats.files import InputError, copy_file, digests, make_output_folder, placing, replacing
from formats.folders import BPE_FILE, ENCODER_FILE, LSTM_FILE, is_model, weight_files
from reading.rows import FORMS
from reading.tasks import Source, Task, find_task
from reading.workers import in_processes, n_cores
from reproduce import (
    FULL,
    LSTM,
    NO_AUXILIARY,
    NOT_PRE_TRAINED,
    VARIANTS,
    Job,
    Results,
    draw_transfer,
    fine_tune,
    fine_tune_missing,
    markdown,
    mean_and_spread,
    printing_to,
    tell_failures,
)
from running.command import exit_code
from running.processes import keep_freed_memory
from running.settings import COUNT, FineTuningFlags, PreTrainingFlags, parse
from zero_shot import parse_probes

# --- the experiments; in flags {work} is the work folder -------------------------------------------------------------

N_LAYER = 4
PRE_TRAINING = (
    f"--by_document --n_layer={N_LAYER} --n_embd=96 --n_head=3 --n_ctx=96 --n_merges=700 --n_batch=28 --n_iter=1 "
    "--lr=1.2e-3 --b2=0.98 --init_std=0.1 --lr_warmup=200 --embd_pdrop=0 --attn_pdrop=0 --resid_pdrop=0"
).split()
# zero-shot figures over pre-training: as in pretrain.py --probe -> name in the figure, % right by chance
PROBES = {
    "choice:rocstories:{work}/tasks/cloze": ("Story Cloze, likelier ending", 50.0),
    "sentiment:own:{work}/tasks/classification": ("classification, very positive or negative", 50.0),
}
FINE_TUNING = (
    "--n_batch=2 --n_iter=3 --lr_warmup=0.1 --embd_pdrop=0 --attn_pdrop=0 --resid_pdrop=0 --clf_pdrop=0".split()
)
# name -> flags of train.py; the rates were chosen by trials (demo/README.md)
TASKS = {
    "Story Cloze": ["--dataset=rocstories", "--data_dir={work}/tasks/cloze", "--share_context", "--lr=3e-4"],
    "classification": ["--dataset=own", "--task=classification", "--data_dir={work}/tasks/classification", "--lr=1e-4"],
    "entailment": ["--dataset=own", "--task=entailment", "--data_dir={work}/tasks/entailment", "--lr=2e-4"],
    "similarity": ["--dataset=own", "--task=similarity", "--data_dir={work}/tasks/similarity", "--lr=2e-4"],
}
# the rows of Table 5 -> flags of train.py
TABLE = {name: VARIANTS[name] for name in (FULL, NO_AUXILIARY, NOT_PRE_TRAINED)}
TABLE[LSTM] = ["--lstm={work}/LSTM"]
NETWORKS = {"transformer": "-", "LSTM": "--"}  # -> line in the figure

FOLDER = Path(__file__).resolve().parent
FIGURE = FOLDER / "figure2.png"
README = FOLDER / "README.md"


def variants() -> dict[str, list[str]]:
    """Return the ways to fine-tune, with their flags: the rows of the table, then fewer blocks transferred."""
    return TABLE | {blocks(n): [f"--n_transfer={n}"] for n in range(N_LAYER)}


def blocks(n: int) -> str:
    return "1 block" if n == 1 else f"{n} blocks"


def filled(flags: list[str], work: Path) -> list[str]:
    """Return flags with the work folder put in."""
    return [flag.replace("{work}", str(work)) for flag in flags]


# --- jobs, which run in processes of their own -----------------------------------------------------------------------


@dataclass(frozen=True)
class PreTrainingJob:
    """A network to pre-train."""

    work: Path
    network: str
    flags: list[str]  # of pretrain.py

    def weights(self) -> list[Path]:
        """Return the files of the weights; empty if they are not there."""
        # one file, or those of a model folder
        folder = self.work / self.network
        if self.network == "LSTM":
            path = folder / LSTM_FILE
            return [path] if path.exists() else []
        return weight_files(folder) if is_model(folder) else []


def pre_training_jobs(work: Path) -> list[PreTrainingJob]:
    """Return a job for each network."""
    probes = ",".join(filled(list(PROBES), work))
    jobs = []
    for network in NETWORKS:
        flags = [
            f"--corpus={work / 'corpus.txt'}",
            f"--model_dir={work / network}",
            f"--desc={network}",
            f"--log_dir={work / 'log'}",
            f"--save_dir={work / 'save'}",
            f"--probe={probes}",
            *PRE_TRAINING,
        ]
        if network == "LSTM":
            flags.append("--lstm_units=0")  # as many parameters as the transformer
        jobs.append(PreTrainingJob(work, network, flags))
    return jobs


def fine_tuning_jobs(work: Path, n_seeds: int) -> list[Job]:
    """Return a job for each run; those of the table first, then seed by seed."""
    jobs = []
    for seed in range(1, n_seeds + 1):
        for variant, flags_of_variant in variants().items():
            for task, flags_of_task in TASKS.items():
                # the variant's flags come last, where they win
                flags = [f"--model_dir={work / 'transformer'}"]
                flags += filled(flags_of_task, work)
                flags += FINE_TUNING
                flags += filled(flags_of_variant, work)
                jobs.append(Job(work, task, variant, seed, flags))

    # the sort keeps the order of equals
    return sorted(jobs, key=lambda job: job.variant not in TABLE)


def learn_vocabulary_of(job: PreTrainingJob) -> None:
    """Learn the vocabulary that both networks share, and tokenize the corpus."""
    use_one_thread()
    with printing_to(job.work / "tokenize.txt", "tokenizing"):
        pretrain.run(parse(PreTrainingFlags, [*job.flags, "--tokenize_only"]))


def pre_train_network(job: PreTrainingJob) -> None:
    """Pre-train a network, from its newest checkpoint on."""
    use_one_thread()
    with printing_to(job.work / f"{job.network}.txt", job.network):
        pretrain.run(parse(PreTrainingFlags, [*job.flags, "--resume"]))


def fine_tune_network(job: Job) -> dict[str, Any]:
    """Fine-tune once and return what it reached; the files of the run are removed."""
    use_one_thread()
    found = fine_tune(job)
    shutil.rmtree(job.folder())
    return found


def use_one_thread() -> None:
    """Compute with one thread on the CPU: the same results everywhere; the networks are small."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    keep_freed_memory()


def read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the settings and the figures of each line of a run's log; costs of single updates are left out."""
    settings, *lines = map(json.loads, path.read_text().splitlines())
    for line in lines:
        line.pop("costs", None)
        line.pop("time", None)
    return settings, lines


# --- the steps -------------------------------------------------------------------------------------------------------


def make_data(work: Path) -> None:
    """Make the tasks and the corpus that the work folder lacks."""
    # each under another name first, so that what has its name is whole
    tasks = work / "tasks"
    if not tasks.exists():
        print("the tasks are made", flush=True)
        with placing(tasks, work / "tasks.part") as part:
            stories.write_tasks(part)

    # without the examples of the tasks
    corpus = work / "corpus.txt"
    if not corpus.exists():
        print("the corpus is made", flush=True)
        with placing(corpus, work / "corpus.txt.part") as part:
            stories.write_corpus(part, exclude=tasks)


def task_of(flags: list[str], work: Path) -> tuple[Task, Path]:
    """Return the record of a task that train.py's flags name, and the folder of its files."""
    settings = parse(FineTuningFlags, filled(flags, work))
    data_dir = Path(settings.data_dir)
    task = find_task(settings.dataset, data_dir, settings.task)
    return task, task.find(data_dir)


def task_digests(work: Path) -> dict[str, dict[str, str]]:
    """Return the digests of the files of each task."""
    found = {}
    for name, flags in TASKS.items():
        task, folder = task_of(flags, work)
        # those of a task that it can do without may be missing
        files = [folder / file for source in task.sources() for file in source.files]
        found[name] = digests(path for path in files if path.exists())
    return found


def pre_train_missing(results: Results, work: Path, n_workers: int) -> None:
    """Pre-train the networks whose log or weights are missing, and put their logs into the results."""
    jobs = pre_training_jobs(work)
    missing = [job for job in jobs if job.network not in results.pre_training or not job.weights()]

    # one vocabulary for both
    model_dir = work / "transformer"
    if missing and not (model_dir / ENCODER_FILE).exists():
        print("the vocabulary is learned", flush=True)
        learn_vocabulary_of(jobs[0])
    if any(job.network == "LSTM" for job in missing):
        make_output_folder(work / "LSTM")
        for name in (ENCODER_FILE, BPE_FILE):
            copy_file(model_dir / name, work / "LSTM" / name)

    # side by side, as far as there are workers
    for job in missing:
        print(f"pre-training, {job.network}: its progress is in {work / job.network}.txt", flush=True)

    # each network's log is kept as soon as it is there
    for job, _ in in_processes(pre_train_network, missing, n_workers):
        settings, lines = read_lines(work / f"log/{job.network}.jsonl")
        results.claim(**{f"weights of the {job.network}": digests(job.weights())})
        of_run = {name: settings[name] for name in ("t_total", "commit")}
        results.pre_training[job.network] = of_run | {"log": lines}
        results.save()
        reached = f"{lines[-1]['n_updates']:,} updates, held-out perplexity {lines[-1]['va_ppl']:.3f}"
        print(f"pre-training, {job.network}: {reached}", flush=True)

    # results of other weights are not mixed with these
    for job in jobs:
        results.claim(**{f"weights of the {job.network}": digests(job.weights())})


def measure_baselines(work: Path) -> dict[str, dict[str, float]]:
    """Return the test accuracy (%) of the most frequent label and of simple rules, for each task."""
    found = {}
    for name, flags in TASKS.items():
        # the examples
        task, folder = task_of(flags, work)
        train_set = read_sources(task.train, folder)
        test_set = read_sources(task.test, folder)
        has_choices = FORMS[task.form].has_choices

        # what a label alone reaches, and what rules do
        found[name] = {"always the most frequent label": 100 * majority_accuracy(train_set, test_set)}
        for rule, features in rules(train_set).items():
            accuracy = rule_accuracy(features, train_set, test_set, has_choices)
            found[name][f"{rule}, logistic regression"] = 100 * accuracy
    return found


def read_sources(sources: tuple[Source, ...], folder: Path) -> list[Example]:
    """Return the examples of some files."""
    return [example for source in sources for example in source.read(folder)]


# --- the report ------------------------------------------------------------------------------------------------------


def accuracy_table(results: Results, names: list[str], head: str, n_baselines: int | None = None) -> str:
    """Return test accuracies in Markdown: lines of variants, then of the first n_baselines (None: of all)."""
    # a variant a line; the average is over the seeds that all tasks have
    rows = []
    counts = []
    for name in names:
        columns = accuracies_of(results, name)
        counts += [len(values) for values in columns.values() if len(values) > 0]
        averages = pd.DataFrame(columns).dropna().mean(axis=1)
        cells = [mean_and_spread(values) for values in (*columns.values(), averages)]
        rows.append([name, *cells])

    # a baseline a line
    if results.baselines:
        baselines = pd.DataFrame(results.baselines).reindex(columns=TASKS)
        baselines["average"] = baselines.mean(axis=1, skipna=False)
        for name, values in baselines[:n_baselines].iterrows():
            cells = ["-" if pd.isna(value) else f"{value:.1f}" for value in values]
            rows.append([name, *cells])
    return markdown([f"{head}: {seeds_in_words(counts)}", *TASKS, "average"], rows)


def accuracies_of(results: Results, variant: str) -> dict[str, pd.Series]:
    """Return task -> the test accuracies of a variant by seed."""
    return {task: results.by_seed(task, variant, "all", "acc") for task in TASKS}


def seeds_in_words(counts: list[int]) -> str:
    """Return what the figures of a table are, and of how many seeds."""
    if not counts:
        return "test accuracy in % of no seeds"
    fewest = min(counts)
    most = max(counts)
    if most == 1:
        return "test accuracy in % of 1 seed"
    n_seeds = most if fewest == most else f"{fewest} to {most}"
    return f"test accuracy in %, mean ± s.d. of {n_seeds} seeds"


def transfer_names() -> dict[str, str]:
    """Return what panel 1 shows from left to right -> its variant."""
    partial = {str(n): blocks(n) for n in range(N_LAYER)}
    return {"none": NOT_PRE_TRAINED} | partial | {str(N_LAYER): FULL}


def draw_panels(results: Results, path: Path) -> None:
    """Draw both panels of the paper's figure 2."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)

    # accuracy by blocks transferred, a line a task
    names = transfer_names()
    points = {task: [] for task in TASKS}
    for variant in names.values():
        for task, values in accuracies_of(results, variant).items():
            points[task].append(values)
    draw_transfer(left, points, list(names))
    left.set_ylabel("test accuracy (%), mean and s.d.")

    # zero-shot accuracy over pre-training, a line a probe and network
    for network, line in NETWORKS.items():
        log = pd.DataFrame(results.pre_training.get(network, {}).get("log", []))
        for i, (probe, (title, chance)) in enumerate(PROBES.items()):
            ((heuristic, dataset, _),) = parse_probes(probe)
            name = f"{heuristic}_{dataset}"
            if name in log:
                relative = (log[name] - chance) / (100 - chance)
                right.plot(log["n_updates"], relative, line, color=f"C{i}", label=f"{title}, {network}")

    # axes and legend; without lines there is nothing to explain
    right.axhline(0, color="grey", linestyle=":", linewidth=1)
    right.set_xlabel("update of pre-training")
    right.set_ylabel("zero-shot accuracy (0: chance, 1: all right)")
    if len(right.lines) > 1:
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small")

    path.parent.mkdir(parents=True, exist_ok=True)
    running.figures.save(figure, path)


def fill_in(path: Path, text: str) -> None:
    """Put a text between the two lines of a document that mark where it belongs. Raises InputError without them."""
    # as plain text: what stands around it stays as it is
    begin, end = "<!-- paper:begin -->\n", "<!-- paper:end -->"
    head, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found and found_end):
        raise InputError(f"{path} has no lines {begin.strip()} and {end}, in this order, to fill in the table between.")
    with replacing(path) as file:
        file.write(f"{head}{begin}{text}\n{end}{tail}".encode())


def report(results: Results, figure: Path) -> None:
    """Draw the figure, print the tables and put them into demo/README.md."""
    # the rows of Table 5, fewer blocks transferred, and perplexities
    table5 = accuracy_table(results, list(TABLE), "fine-tuning", 2)
    by_blocks = accuracy_table(results, list(transfer_names().values()), "transferred")
    text = f"{table5}\n\n{by_blocks}"
    perplexities = []
    for name, found in results.pre_training.items():
        last = found["log"][-1]
        perplexities.append(f"{name} {last['va_ppl']:.3f}")
    if perplexities:
        text += f"\n\nHeld-out perplexity per token after pre-training: {', '.join(perplexities)}."

    # printed, drawn, and put into the page
    print(f"\n{text}")
    draw_panels(results, figure)
    fill_in(README, text)
    print(f"\nsee {figure} and {README}")


# --- the command -----------------------------------------------------------------------------------------------------


def make_paper(args: argparse.Namespace) -> None:
    """Do what is missing, then report. Raises InputError for what the user can fix."""
    work = args.work
    results = Results(args.results or work / "results.json")

    # --report: of what was done before
    if args.report:
        if not results.runs:
            raise InputError(f"{results.path} holds no results. Leave out --report to make them.")
        report(results, args.figure)
        return

    # results of other settings are not mixed with these
    results.claim(tasks=TASKS, fine_tuning=FINE_TUNING, pre_training=PRE_TRAINING, probes=list(PROBES))

    # the data
    for folder in (work, results.path.parent):
        make_output_folder(folder)
    make_data(work)
    results.claim(corpus=digests([work / "corpus.txt"]), task_files=task_digests(work))

    # the networks, the baselines, the runs
    jobs = fine_tuning_jobs(work, args.seeds)
    if results.missing(jobs) or results.pre_training.keys() != NETWORKS.keys():
        pre_train_missing(results, work, args.workers)
    if not results.baselines:
        results.baselines.update(measure_baselines(work))
        results.save()
    failures = fine_tune_missing(results, jobs, args.workers, fine_tune_network)
    if results.runs:
        report(results, args.figure)
    tell_failures(failures)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--work", type=Path, default=Path("paper/miniature"), help="folder for data, models, logs: %(default)s"
    )
    parser.add_argument("--results", type=Path, help="file of all results; default: results.json in --work")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="picture to draw: %(default)s")
    parser.add_argument("--seeds", type=COUNT, default=5, help="runs of each kind, with seeds 1, 2, ...: %(default)s")
    parser.add_argument("--workers", type=COUNT, default=n_cores(), help="processes; default: one a core")
    parser.add_argument("--report", action="store_true", help="only draw the figure and fill in the tables")
    args = parser.parse_args(argv)
    return exit_code("paper.py", lambda: make_paper(args), "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
