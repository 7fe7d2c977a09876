"""Repeat the paper's ablations at the demo's scale: a table and a picture of test accuracies over seeds.

    python demo/ablations.py --seeds 5 -- --lr 2e-4 --n_batch 2 --n_iter 3

Flags after `--` are passed to train.py in every run. Each result is a line of --results; runs that are already in it
are not repeated.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the scripts in the folder above

import train  # noqa: E402
from datasets import ROCSTORIES_TEST, TASKS, read_cloze  # noqa: E402
from results import read_predictions  # noqa: E402
from shards import read_sizes  # noqa: E402


def variants(n_layer: int) -> dict[str, list[str]]:
    """Return the flags of each ablation: the paper's two, and each number of blocks transferred."""
    partial = {f"{n} of {n_layer} blocks transferred": ["--n_transfer", str(n)] for n in range(n_layer)}
    return {"full": [], "no pre-training": ["--n_transfer", "-1"], "no auxiliary LM": ["--lm_coef", "0"]} | partial


def run(flags: list[str], model_dir: str, data_dir: str, work_dir: Path, seed: int) -> dict[str, float]:
    """Fine-tune once and return the valid and test accuracy (%)."""
    shutil.rmtree(work_dir, ignore_errors=True)  # an interrupted run starts again
    folders = [f"--{kind}_dir={work_dir / kind}" for kind in ("log", "save", "submission")]
    common = ["--desc=ablation", f"--model_dir={model_dir}", f"--data_dir={data_dir}", f"--seed={seed}", "--submit"]
    with contextlib.redirect_stdout(io.StringIO()):
        if train.main([*common, *folders, *flags]):
            raise SystemExit(2)
    logs = [json.loads(line) for line in (work_dir / "log/ablation.jsonl").read_text().splitlines()[1:]]
    *_, labels = read_cloze(Path(data_dir) / ROCSTORIES_TEST)
    right = read_predictions(work_dir / "log/ablation.tsv", TASKS["rocstories"].labels) == labels
    return {"valid": max(line["va_acc"] for line in logs), "test": right.mean() * 100}


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
    results = Path(args.results)
    results.touch()
    done = {(row["name"], row["seed"]) for row in map(json.loads, results.read_text().splitlines())}
    names = variants(n_layer)
    for seed in range(1, args.seeds + 1):
        for name, flags in names.items():
            if (name, seed) not in done:
                accuracies = run([*args.flags, *flags], args.model_dir, args.data_dir, Path(args.work_dir), seed)
                with open(results, "a") as file:
                    file.write(json.dumps({"name": name, "seed": seed, **accuracies}) + "\n")
                print(f"seed {seed}, {name}: test {accuracies['test']:.2f}", flush=True)
    rows = pd.DataFrame(map(json.loads, results.read_text().splitlines()))
    report(rows, list(names), n_layer, Path(args.picture))


if __name__ == "__main__":
    main()
