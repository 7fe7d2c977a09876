"""Repeat the paper's ablations at the demo's scale: a table and a picture of test accuracies over seeds.

    python demo/ablations.py --seeds 5 -- --lr 2e-4 --n_batch 2 --n_iter 3

Flags after `--` are passed to train.py in every run. Each result is a line of --results; runs that are already in it
are not repeated.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from runs import ROOT, best_accuracy, fine_tune, run_missing

from datasets import ROCSTORIES_TEST, TASKS, read_cloze
from results import read_predictions
from shards import read_sizes


def variants(n_layer: int) -> dict[str, list[str]]:
    """Return the flags of each ablation: the paper's two, and each number of blocks transferred."""
    partial = {f"{n} of {n_layer} blocks transferred": ["--n_transfer", str(n)] for n in range(n_layer)}
    return {"full": [], "no pre-training": ["--n_transfer", "-1"], "no auxiliary LM": ["--lm_coef", "0"]} | partial


def run(flags: list[str], data_dir: str, work_dir: Path) -> dict[str, float]:
    """Fine-tune once and return the valid and test accuracy (%)."""
    log = fine_tune([f"--data_dir={data_dir}", *flags], work_dir)
    *_, labels = read_cloze(Path(data_dir) / ROCSTORIES_TEST)
    right = read_predictions(log.with_suffix(".tsv"), TASKS["rocstories"].written) == labels
    return {"valid": best_accuracy(log), "test": right.mean() * 100}


def report(results: pd.DataFrame, names: list[str], n_layer: int, picture: Path) -> None:
    """Print the table in Markdown and draw the test accuracy against the blocks transferred."""
    table = results.groupby("name")["test"].agg(["mean", "std", "count"]).loc[names]
    print("\n| fine-tuning | test accuracy, mean ± standard deviation | seeds |\n|---|---|---|")
    for row in table.itertuples():
        print(f"| {row.Index} | {row.mean:.1f} ± {row.std:.1f} % | {row.count} |")
    by_blocks = table.loc[[f"{n} of {n_layer} blocks transferred" for n in range(n_layer)] + ["full"]]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        range(n_layer + 1), by_blocks["mean"], by_blocks["std"], fmt="o-", capsize=4, label="blocks transferred"
    )
    axes.axhline(table.loc["no pre-training", "mean"], color="grey", linestyle=":", label="no pre-training")
    axes.set(
        xlabel="blocks transferred (0: embeddings alone)", ylabel="test accuracy (%), mean and s.d.", ylim=(40, 102)
    )
    axes.set_xticks(np.arange(n_layer + 1))
    axes.legend()
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Make the runs that are missing from --results, then report."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model_dir", default=str(ROOT / "demo/model"), help="pre-trained model")
    parser.add_argument("--data_dir", default=str(ROOT / "demo/data"), help="cloze set")
    parser.add_argument("--results", default="ablations.jsonl", help="file of results, one line per run")
    parser.add_argument("--picture", default="ablations.png", help="file of the picture")
    parser.add_argument("--work_dir", default="ablations/", help="folder for the files of the run in progress")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each ablation, with seeds 1, 2, ...")
    parser.add_argument("flags", nargs="*", help="flags for train.py, after --")
    args = parser.parse_args()
    n_layer = read_sizes(args.model_dir).n_layer
    names = variants(n_layer)

    def run_one(name: str, seed: int) -> dict[str, float]:
        flags = [f"--model_dir={args.model_dir}", f"--seed={seed}", *args.flags, *names[name]]
        return run(flags, args.data_dir, Path(args.work_dir))

    results = run_missing(Path(args.results), list(names), args.seeds, run_one)
    report(results, list(names), n_layer, Path(args.picture))


if __name__ == "__main__":
    main()
