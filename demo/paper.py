"""The paper in miniature: its Table 5 and the two panels of its figure 2, with small networks and generated text.

    python -m demo.paper

makes the data, pre-trains the transformer and an LSTM of as many parameters, fine-tunes both on every task over seeds,
and writes all results to one JSON file. From that file it draws --figure and fills the tables in README.md and
BENCHMARKS.md; with --report it does only this. It may be stopped at any time: the same command goes on, and repeats no
finished run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import finetuning
import pretrain
from demo import lstm
from demo.baselines import majority, rule_accuracy, rules
from demo.workers import ROOT, Job, run_jobs
from formats.authors import BPE_FILE, ENCODER_FILE, is_model, weight_files
from formats.files import InputError, copy_file, digests, find, make_output_folder, read_json, replacing, write_json
from reading.corpus import n_cores
from reading.rows import FORMS
from reading.splits import read_texts, read_unencoded
from reading.tasks import Task, find_task
from running.command import exit_code
from running.processes import Stop, join_ranks
from running.settings import COUNT, parse
from zero_shot import parse_probes

# --- the experiments; in flags {work} is the work folder -------------------------------------------------------------

# what the work folder must hold -> arguments of stories.py that make it, where {out} is the path to write
DATA = {
    "tasks": ["tasks", "--out", "{out}"],
    "corpus.txt": ["corpus", "--exclude", "{work}/tasks", "--out", "{out}"],
}
CORPUS = "{work}/corpus.txt"
PRE_TRAINING = (
    "--by_document --n_layer=4 --n_embd=96 --n_head=3 --n_ctx=96 --n_merges=700 --n_batch=28 --n_iter=1 --lr=1.2e-3 "
    "--b2=0.98 --init_std=0.1 --lr_warmup=200 --embd_pdrop=0 --attn_pdrop=0 --resid_pdrop=0"
).split()
PROBES = {  # zero-shot figures over pre-training: as in pretrain.py --probe -> name in the figure, % right by chance
    "choice:rocstories:{work}/tasks/cloze": ("Story Cloze, likelier ending", 50.0),
    "sentiment:own:{work}/tasks/classification": ("classification, very positive or negative", 50.0),
}
FINE_TUNING = (
    "--n_batch=2 --n_iter=3 --lr_warmup=0.1 --embd_pdrop=0 --attn_pdrop=0 --resid_pdrop=0 --clf_pdrop=0".split()
)
TASKS = {  # name -> flags of train.py; the rates were chosen by trials (demo/TRIALS.md)
    "Story Cloze": [
        "--dataset=rocstories",
        "--data_dir={work}/tasks/cloze",
        "--share_context",
        "--lr=3e-4",
    ],
    "classification": ["--dataset=own", "--task=classification", "--data_dir={work}/tasks/classification", "--lr=1e-4"],
    "entailment": ["--dataset=own", "--task=entailment", "--data_dir={work}/tasks/entailment", "--lr=2e-4"],
    "similarity": ["--dataset=own", "--task=similarity", "--data_dir={work}/tasks/similarity", "--lr=2e-4"],
}
TABLE = {  # the rows of Table 5 -> flags of train.py
    "transformer with auxiliary LM": [],
    "without auxiliary LM": ["--lm_coef=0"],
    "without pre-training": ["--n_transfer=-1"],
    "LSTM with auxiliary LM": ["--n_transfer=0"],  # of the transformer it takes the sizes and the vocabulary only
}
FULL, _, NOT_PRE_TRAINED, LSTM = TABLE
NETWORKS = {"transformer": "-", "LSTM": "--"}  # -> line in the figure

FIGURE = ROOT / "demo/figure2.png"
README, BENCHMARKS = ROOT / "README.md", ROOT / "BENCHMARKS.md"


def n_layer() -> int:
    """Return the number of blocks of the transformer."""
    return int(next(flag for flag in PRE_TRAINING if flag.startswith("--n_layer=")).split("=")[1])


def variants() -> dict[str, list[str]]:
    """Return the ways to fine-tune, with their flags: the rows of the table, then fewer blocks transferred."""
    return TABLE | {blocks(n): [f"--n_transfer={n}"] for n in range(n_layer())}


def blocks(n: int) -> str:
    return "1 block" if n == 1 else f"{n} blocks"


def filled(flags: list[str], work: Path) -> list[str]:
    """Return flags with the work folder put in; folders beside the scripts are found from any current folder."""
    return [flag.replace("{work}", str(work)) for flag in flags]


# --- jobs, which run in processes of their own -----------------------------------------------------------------------


def tokenize(flags: list[str]) -> None:
    """Learn the vocabulary that both networks share, and tokenize the corpus."""
    pretrain.run(parse(pretrain.Settings, "", [*flags, "--tokenize_only"]))


def pre_train(network: str, flags: list[str], weights: Path) -> None:
    """Pre-train a network, from its newest checkpoint on; `weights`: file of the LSTM's."""
    settings = parse(pretrain.Settings, "", [*flags, "--resume"])
    if network == "LSTM":
        lstm.pre_train(settings, weights)
    else:
        pretrain.run(settings)


def fine_tune(flags: list[str], lstm_weights: Path | None, folder: Path) -> dict[str, float]:
    """Fine-tune once and return valid and test accuracy (%) and the seconds; the files of the run are removed."""
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    folders = [f"--{name}_dir={folder / name}" for name in ("log", "save", "submission")]
    settings = parse(finetuning.Settings, "", ["--desc=run", "--submit", *folders, *flags])
    with join_ranks() as ranks:
        run = (
            finetuning.Run(settings, ranks)
            if lstm_weights is None
            else lstm.FineTuningRun(settings, ranks, lstm_weights)
        )
        with closing(run), Stop(ranks) as stop:
            run.train(stop)
            run.predict(stop)
    answers = np.load(folder / "log/run.test.npy").argmax(1)
    accuracies = {
        "test": float(np.mean(answers == run.splits.test.labels) * 100),
        "valid": max(line["va_acc"] for line in run.training.logs),
    }
    shutil.rmtree(folder)
    return accuracies | {"seconds": time.monotonic() - started}


# --- the results -----------------------------------------------------------------------------------------------------


def read_results(path: Path) -> dict[str, Any]:
    """Return the results in a file, empty ones if there is none. Raises InputError for another file."""
    if not path.exists():
        return {"made_with": {}, "pre_training": {}, "baselines": {}, "runs": []}
    results = read_json(path)
    if not isinstance(results, dict) or not {"made_with", "pre_training", "baselines", "runs"} <= results.keys():
        raise InputError(f"{path} does not hold results of paper.py. Name another --results or remove it.")
    return results


def claim(results: dict[str, Any], path: Path, **made_with: Any) -> None:
    """Note what the results are made with. Raises InputError if those in the file were made with something else."""
    for name, value in json.loads(json.dumps(made_with)).items():
        if results["made_with"].setdefault(name, value) != value:
            raise InputError(
                f"{path} was made with another {name.replace('_', ' ')}: name another --results or remove it."
            )


def task_of(flags: list[str]) -> tuple[Task, Path, finetuning.Settings]:
    """Return a task's record, its folder and the settings of its flags."""
    settings = parse(finetuning.Settings, "", flags)
    data_dir = find(settings.data_dir)
    task = find_task(settings.dataset, data_dir, settings.task)
    return task, task.find(data_dir), settings


def task_digests(work: Path) -> dict[str, dict[str, str]]:
    """Return the digests of the files of each task."""
    found = {}
    for name, flags in TASKS.items():
        task, folder, _ = task_of(filled(flags, work))
        files = [folder / file for source in task.sources() for file in source.files]
        found[name] = digests(path for path in files if path.exists())
    return found


def missing_runs(results: dict[str, Any], n_seeds: int) -> list[tuple[str, str, int]]:
    """Return task, variant and seed of the runs that are not done; those of the table first, then seed by seed."""
    done = {(run["task"], run["variant"], run["seed"]) for run in results["runs"]}
    runs = [(task, name, seed) for seed in range(1, n_seeds + 1) for name in variants() for task in TASKS]
    return sorted((run for run in runs if run not in done), key=lambda run: run[1] not in TABLE)


# --- the steps -------------------------------------------------------------------------------------------------------


def make_data(work: Path) -> None:
    """Make the data that the work folder lacks."""
    for name, arguments in DATA.items():
        if (work / name).exists():
            continue
        print(f"{name} is made with stories.py", flush=True)
        part = work / f"{name}.part"
        command = [arg.replace("{out}", str(part.resolve())) for arg in filled(arguments, work.resolve())]
        made = subprocess.run(
            [sys.executable, "-m", "demo.stories", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        if made.returncode:
            last = (made.stderr.splitlines() or [f"exit code {made.returncode}"])[-1]
            raise InputError(f"stories.py {' '.join(command)} failed: {last}")
        os.replace(part, work / name)


def weights_of(network: str, work: Path) -> list[Path]:
    """Return the files of a pre-trained network's weights; empty if they are not there."""
    if network == "LSTM":
        return [path] if (path := work / "LSTM.safetensors").exists() else []
    return weight_files(work / network) if is_model(work / network) else []


def pre_train_missing(results: dict[str, Any], save: Callable[[], None], args: argparse.Namespace) -> None:
    """Pre-train the networks whose log or weights are missing, and put their logs into the results."""
    work = args.work
    missing = [n for n in NETWORKS if n not in results["pre_training"] or not weights_of(n, work)]
    probe = ",".join(filled(list(PROBES), work))
    flags = {
        name: [
            *filled([f"--corpus={CORPUS}"], work),
            f"--model_dir={work / name}",
            f"--desc={name}",
            f"--log_dir={work / 'log'}",
            f"--save_dir={work / 'save'}",
            *PRE_TRAINING,
            *([f"--probe={probe}"] if probe else []),
        ]
        for name in NETWORKS
    }
    if missing and not (work / "transformer" / ENCODER_FILE).exists():
        print("the vocabulary is learned", flush=True)
        list(run_jobs([Job("tokenizing", tokenize, (flags["transformer"],), work / "tokenize.txt")], 1))
    if "LSTM" in missing:
        make_output_folder(work / "LSTM")
        for name in (ENCODER_FILE, BPE_FILE):
            copy_file(work / "transformer" / name, work / "LSTM" / name)
    jobs = [
        Job(name, pre_train, (name, flags[name], work / "LSTM.safetensors"), work / f"{name}.txt") for name in missing
    ]
    shown = dict.fromkeys(missing, 0)

    def show_logs() -> None:
        for name in missing:
            settings, lines = read_log(work / f"log/{name}.jsonl")
            for line in lines[shown[name] :]:
                done = f"update {line['n_updates']:,} of {settings['t_total']:,}"
                print(f"pre-training, {name}: {done}, held-out perplexity {line['va_ppl']:.3f}", flush=True)
            shown[name] = len(lines)

    for job, _ in run_jobs(jobs, args.workers, show_logs):
        settings, lines = read_log(work / f"log/{job.name}.jsonl")
        claim(results, args.results, **{f"weights of the {job.name}": digests(weights_of(job.name, work))})
        results["pre_training"][job.name] = {"t_total": settings["t_total"], "commit": settings["commit"], "log": lines}
        save()
    for name in NETWORKS:
        claim(results, args.results, **{f"weights of the {name}": digests(weights_of(name, work))})


def read_log(path: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the settings and the whole lines of a log that is being written; empty if there is none yet."""
    if not path.exists():
        return {}, []
    head, *lines = [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] or [{}]
    return head, lines


def measure_baselines(work: Path) -> dict[str, dict[str, float]]:
    """Return the test accuracy (%) of the most frequent label and of simple rules, for each task."""
    found = {}
    for name, flags in TASKS.items():
        task, folder, settings = task_of(filled(flags, work))
        task, _, test = read_texts(task, folder, n_valid=settings.n_valid, seed=settings.seed, max_examples=None)
        labels = None if FORMS[task.form].has_choices else task.labels
        _, train = read_unencoded(task.train, folder, labels, task.strict, None)
        train, n_choices = list(train.values()), len(task.labels) if FORMS[task.form].has_choices else 0
        found[name] = {"always the most frequent label": 100 * majority(train, test.examples)}
        for rule, features in rules(train).items():
            accuracy = rule_accuracy(features, train, test.examples, n_choices)
            found[name][f"{rule}, logistic regression"] = 100 * accuracy
    return found


def fine_tune_missing(results: dict[str, Any], save: Callable[[], None], args: argparse.Namespace) -> None:
    """Make the fine-tuning runs that are missing, and put their accuracies into the results."""
    todo, work, all_variants = missing_runs(results, args.seeds), args.work, variants()
    n_all = len(TASKS) * len(all_variants) * args.seeds
    names, jobs = {}, []
    for task, variant, seed in todo:
        flags = [f"--model_dir={work / 'transformer'}", f"--seed={seed}", *FINE_TUNING, *all_variants[variant]]
        weights = work / "LSTM.safetensors" if variant == LSTM else None
        name = f"{task}, {variant}, seed {seed}"
        folder = work / "runs" / name.replace(",", "").replace(" ", "_")
        arguments = ([*filled(TASKS[task], work), *flags], weights, folder)
        jobs.append(Job(name, fine_tune, arguments, work / "logs" / f"{folder.name}.txt"))
        names[name] = task, variant, seed
    for n_left, (job, figures) in zip(range(len(jobs) - 1, -1, -1), run_jobs(jobs, args.workers), strict=False):
        task, variant, seed = names.pop(job.name)
        results["runs"].append({"task": task, "variant": variant, "seed": seed, **figures})
        save()
        job.log.unlink(missing_ok=True)
        left = minutes_left(results["runs"], [task for task, *_ in names.values()]) / args.workers
        print(
            f"run {n_all - n_left} of {n_all}, {left:.0f} minutes left: {job.name}: {figures['test']:.1f} %", flush=True
        )


def minutes_left(runs: list[dict[str, Any]], tasks: list[str]) -> float:
    """Return how long one worker needs for a run of each of these tasks, from the runs that are done."""
    seconds = pd.DataFrame(runs).groupby("task")["seconds"].mean()
    return sum(seconds.get(task, seconds.mean()) for task in tasks) / 60


# --- the report ------------------------------------------------------------------------------------------------------


def cell(values: pd.Series) -> str:
    """Return mean and standard deviation (%), as far as there are values for them."""
    if values.empty:
        return "-"
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def table(results: dict[str, Any], names: list[str], head: str, n_baselines: int | None) -> str:
    """Return test accuracies in Markdown: lines of variants, then of the first n_baselines (None: of all)."""
    runs = pd.DataFrame(results["runs"], columns=["task", "variant", "seed", "test"])
    seeds = runs.groupby(["task", "variant"])["seed"].count()
    n_seeds = " to ".join(str(n) for n in dict.fromkeys([seeds.min(), seeds.max()])) if len(seeds) else "no"
    spread = ", mean ± s.d." if len(seeds) and seeds.max() > 1 else ""
    head = f"{head}: test accuracy in %{spread} of {n_seeds} seed{'s' * (n_seeds != '1')}"
    lines = [f"| {head} | {' | '.join(TASKS)} | average |", "|---" * (len(TASKS) + 2) + "|"]
    for name in names:
        by_task = (
            runs[runs["variant"] == name].pivot(index="seed", columns="task", values="test").reindex(columns=TASKS)
        )
        cells = [cell(by_task[task].dropna()) for task in TASKS] + [cell(by_task.dropna().mean(axis=1))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if results["baselines"]:
        simple = pd.DataFrame(results["baselines"]).reindex(columns=TASKS)
        for name, values in simple[:n_baselines].iterrows():
            cells = [cell(pd.Series([value]).dropna()) for value in (*values, values.mean(skipna=False))]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def transfer_names() -> dict[str, str]:
    """Return what panel 1 shows from left to right -> its variant."""
    partial = {str(n): blocks(n) for n in range(n_layer())}
    return {"none": NOT_PRE_TRAINED} | partial | {str(n_layer()): FULL}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw both panels of the paper's figure 2."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    runs = pd.DataFrame(results["runs"], columns=["task", "variant", "seed", "test"])
    figures = runs.groupby(["task", "variant"])["test"].agg(["mean", "std"]).fillna({"std": 0.0})
    names = transfer_names()
    for i, task in enumerate(TASKS):
        points = figures.reindex([(task, variant) for variant in names.values()])
        style = {"color": f"C{i}", "capsize": 3}
        left.errorbar(range(1, len(names)), points["mean"][1:], points["std"][1:], fmt="o-", label=task, **style)
        left.errorbar([0], points["mean"][:1], points["std"][:1], fmt="s", **style)
    left.set_xticks(range(len(names)), names)
    left.set(
        xlabel="blocks transferred (none: not pre-trained; 0: embeddings)", ylabel="test accuracy (%), mean and s.d."
    )
    left.legend()

    for network, line in NETWORKS.items():
        log = pd.DataFrame(results["pre_training"].get(network, {}).get("log", []))
        for i, (probe, (title, chance)) in enumerate(PROBES.items()):
            ((heuristic, dataset, _),) = parse_probes(probe)
            if (name := f"{heuristic}_{dataset}") in log:
                relative = (log[name] - chance) / (100 - chance)
                right.plot(log["n_updates"], relative, line, color=f"C{i}", label=f"{title}, {network}")
    right.axhline(0, color="grey", linestyle=":", linewidth=1)
    right.set(xlabel="update of pre-training", ylabel="zero-shot accuracy (0: chance, 1: all right)")
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, dpi=120)


def fill_in(path: Path, text: str) -> None:
    """Put a text between the two lines of a document that mark where it belongs. Raises InputError without them."""
    begin, end = "<!-- paper:begin -->\n", "<!-- paper:end -->"
    document = path.read_text(encoding="utf-8")
    head, found, rest = document.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found and found_end):
        raise InputError(f"{path} has no lines {begin.strip()} and {end}, in this order, to fill in the table between.")
    with replacing(path) as file:
        file.write(f"{head}{begin}{text}\n{end}{tail}".encode())


def report(results: dict[str, Any], figure: Path) -> None:
    """Draw the figure, print the tables and put them into the documents."""
    short = table(results, list(TABLE), "fine-tuning", 2)  # the README has room for two baselines
    by_blocks = table(results, list(transfer_names().values()), "transferred", None)
    perplexities = [
        f"{name} {found['log'][-1]['va_ppl']:.3f}" for name, found in results["pre_training"].items() if found["log"]
    ]
    more = f"\n\nHeld-out perplexity per token after pre-training: {', '.join(perplexities)}." if perplexities else ""
    print(f"\n{short}\n\n{by_blocks}{more}")
    draw(results, figure)
    fill_in(README, short)
    fill_in(BENCHMARKS, by_blocks + more)
    print(f"\nsee {figure}, {README} and {BENCHMARKS}")


# --- the command -----------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    """Do what is missing, then report. Raises InputError for what the user can fix."""
    results = read_results(args.results)
    if args.report:
        if not results["runs"]:
            raise InputError(f"{args.results} holds no results. Leave out --report to make them.")
        return report(results, args.figure)
    claim(
        results,
        args.results,
        tasks=TASKS,
        fine_tuning=FINE_TUNING,
        pre_training=PRE_TRAINING,
        probes=list(PROBES),
    )
    for folder in (args.work, args.results.parent):
        make_output_folder(folder)
    make_data(args.work)
    corpus = Path(CORPUS.replace("{work}", str(args.work)))
    claim(results, args.results, corpus=digests([corpus]), task_files=task_digests(args.work))

    def save() -> None:
        write_json(args.results, results, indent=1)

    if missing_runs(results, args.seeds) or set(results["pre_training"]) != set(NETWORKS):
        pre_train_missing(results, save, args)
    if not results["baselines"]:
        results["baselines"] = measure_baselines(args.work)
        save()
    fine_tune_missing(results, save, args)
    report(results, args.figure)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("paper"), help="folder for data, models and logs: %(default)s"
    )
    parser.add_argument("--results", type=Path, help="file of all results; default: results.json in --work")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="picture to draw: %(default)s")
    parser.add_argument("--seeds", type=COUNT, default=5, help="runs of each kind, with seeds 1, 2, ...: %(default)s")
    parser.add_argument("--workers", type=COUNT, default=n_cores(), help="processes; default: one a core")
    parser.add_argument("--report", action="store_true", help="only draw the figure and fill in the tables")
    args = parser.parse_args(argv)
    args.results = args.results or args.work / "results.json"
    return exit_code("paper.py", lambda: run(args), "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
