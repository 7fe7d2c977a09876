"""Four tasks of one's own data: the demo's model fine-tuned on each over seeds, beside a bag of words.

    python demo/tasks.py --seeds 5

makes the data of `stories.py tasks` in --data_dir where it is missing, fine-tunes through `train.py --dataset own` and
prints a table in Markdown. Flags after `--` are passed to train.py in every run. Each result is a line of --results;
runs that are already in it are not repeated.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from baselines import bag_of_words, majority
from runs import ROOT, best_accuracy, fine_tune, run_missing
from stories import OWN_TASKS

from readers import Example, own_examples
from results import read_predictions

FLAGS = ["--lr=2e-4", "--n_batch=2", "--n_iter=3"]  # as in `make demo`


def read(data_dir: Path, name: str, split: str) -> list[Example]:
    """Return the examples of a split. Raises ValueError for a line that is none."""
    examples = list(own_examples(data_dir / name, split + OWN_TASKS[name][2], name, {}, True))
    if bad := [example for example in examples if not isinstance(example, Example)]:
        raise ValueError(f"{bad[0].where}: {bad[0].why}")
    return examples


# --- runs ------------------------------------------------------------------------------------------------------------


def run(name: str, seed: int, flags: list[str], data_dir: Path, work_dir: Path) -> dict[str, float]:
    """Fine-tune once and return the valid and test accuracy (%) and the seconds it took."""
    folders = [f"--data_dir={data_dir / name}", f"--seed={seed}"]
    wall, cpu = time.monotonic(), time.process_time()
    log = fine_tune(["--dataset=own", f"--task={name}", *folders, "--analysis", *flags], work_dir)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    answers = [example.label for example in read(data_dir, name, "test")]
    labels = tuple(sorted(OWN_TASKS[name][1]))
    right = read_predictions(log.with_suffix(".tsv"), labels) == [labels.index(answer) for answer in answers]
    return {"valid": best_accuracy(log), "test": right.mean() * 100, "seconds": wall, "cpu_seconds": cpu}


def report(results: pd.DataFrame, data_dir: Path) -> None:
    """Print the table in Markdown, baselines included."""
    print("\n| task | always one label | bag of words | fine-tuned, mean ± s.d. | worst | runs | seconds a run | CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for name in OWN_TASKS:
        train, test = read(data_dir, name, "train"), read(data_dir, name, "test")
        n_choices = len(test[0].texts) - 1 if name == "multiple_choice" else 0
        simple = f"{100 * majority(train, test):.1f} | {100 * bag_of_words(train, test, n_choices):.1f}"
        rows = results[results["name"] == name]
        ours = f"{rows['test'].mean():.1f} ± {rows['test'].std():.1f} | {rows['test'].min():.1f} | {len(rows)}"
        seconds = " | ".join(f"{rows[key].min():.0f} to {rows[key].max():.0f}" for key in ("seconds", "cpu_seconds"))
        print(f"| {name} | {simple} | {ours} | {seconds} |")


def main() -> None:
    """Make the runs that are missing from --results, then report."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model_dir", default=str(ROOT / "demo/model"), help="pre-trained model")
    parser.add_argument("--data_dir", type=Path, default=Path("tasks/data"), help="folder of the four tasks")
    parser.add_argument("--results", type=Path, default=Path("tasks.jsonl"), help="file of results, one line per run")
    parser.add_argument("--work_dir", type=Path, default=Path("tasks/run"), help="folder for the run in progress")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each task, with seeds 1, 2, ...")
    parser.add_argument("flags", nargs="*", help="flags for train.py, after --")
    args = parser.parse_args()
    if not args.data_dir.exists():
        subprocess.run(
            [
                sys.executable,
                ROOT / "demo/stories.py",
                "tasks",
                "--exclude",
                ROOT / "demo/data",
                "--out",
                args.data_dir,
            ],
            check=True,
        )
    flags = [f"--model_dir={args.model_dir}", *FLAGS, *args.flags]
    results = run_missing(
        args.results,
        list(OWN_TASKS),
        args.seeds,
        lambda name, seed: run(name, seed, flags, args.data_dir, args.work_dir),
    )
    report(results, args.data_dir)


if __name__ == "__main__":
    main()
