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
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from baselines import words
from runs import ROOT, best_accuracy, fine_tune, run_missing
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
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


# --- baselines -------------------------------------------------------------------------------------------------------


def majority(train: list[Example], test: list[Example]) -> float:
    """Return the test accuracy of the label that is most frequent in training."""
    label = Counter(example.label for example in train).most_common(1)[0][0]
    return float(np.mean([example.label == label for example in test]))


class Bag:
    """Counts of the words of each of an example's texts, and of those that two texts share."""

    def __init__(self, texts: list[str]):
        self.counter = CountVectorizer(tokenizer=words, token_pattern=None).fit(texts)

    def __call__(self, columns: list[list[str]]) -> csr_matrix:
        """Return the features (N, F) of N examples from their texts, one column or two."""
        counts = [self.counter.transform(column) for column in columns]
        return hstack(counts + ([counts[0].minimum(counts[1])] if len(counts) == 2 else []), format="csr")


def bag_of_words(train: list[Example], test: list[Example], n_choices: int = 0) -> float:
    """Return the test accuracy of a logistic regression on a bag of words; of n_choices the one with the best score."""
    bag = Bag([text for example in train for text in example.texts])
    if not n_choices:
        features = [bag(list(zip(*(e.texts for e in part), strict=True))) for part in (train, test)]
        model = LogisticRegression(max_iter=2000).fit(features[0], [e.label for e in train])
        return float(model.score(features[1], [e.label for e in test]))

    def pairs(examples: list[Example]) -> csr_matrix:  # (N * n_choices, F)
        return bag([[e.texts[0] for e in examples for _ in e.texts[1:]], [t for e in examples for t in e.texts[1:]]])

    def is_right(examples: list[Example]) -> np.ndarray:  # (N, n_choices)
        return np.array([int(e.label) - 1 for e in examples])[:, None] == np.arange(n_choices)

    model = LogisticRegression(max_iter=2000, class_weight="balanced").fit(pairs(train), is_right(train).ravel())
    scores = model.decision_function(pairs(test)).reshape(-1, n_choices)
    return float(np.mean(is_right(test)[np.arange(len(test)), scores.argmax(1)]))


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
