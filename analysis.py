"""Predictions and logs -> numbers and pictures."""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score

from datasets import ROCSTORIES_TEST, read_cloze
from opt import SCHEDULES
from utils import InputError, exit_code, find


def rocstories(data_dir: str | os.PathLike, pred_path: str | os.PathLike, log_path: str | os.PathLike) -> None:
    """Print the accuracies of a run and draw its curves beside its log, as `<desc>.png`.

    The valid accuracy is the best that the log holds, the test accuracy that of the predictions.

    Raises InputError when a file is missing or does not belong to the data.
    """
    pred_path, log_path = Path(pred_path), Path(log_path)
    settings_read = {"desc", "n_valid", "t_total", "lr", "lr_schedule", "lr_warmup"}
    settings, logs = read_log(log_path, settings_read, ["n_updates", "tr_cost", "va_cost", "tr_acc", "va_acc"])
    predictions = read_predictions(pred_path)
    stories, _, _, labels = read_cloze(find(data_dir) / ROCSTORIES_TEST)
    if len(predictions) != len(labels):
        raise InputError(
            f"{pred_path} holds {len(predictions)} predictions, the test set in {data_dir} {len(labels)} rows. "
            "Name the --data_dir that the run had, or run again with --submit."
        )
    print(f"ROCStories Valid Accuracy: {logs['va_acc'].max():.2f}")
    print(f"ROCStories Test Accuracy:  {accuracy_score(labels, predictions) * 100:.2f}")
    draw(settings, logs, stories, predictions == labels, log_path.with_suffix(".png"))


def read_log(path: Path, settings_read: set[str], columns: list[str]) -> tuple[dict, pd.DataFrame]:
    """Return the settings and some columns of the logs of a run. Raises InputError when they are not there."""
    try:
        settings, *logs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        logs = pd.DataFrame(logs)[columns]
        whole = settings_read <= settings.keys() and len(logs) > 0
    except FileNotFoundError:
        raise InputError(f"{path} is missing: has the run of that --desc ended, and in that --log_dir?") from None
    except (OSError, ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is no log of a run: settings, then a line per log. Run again.")
    return settings, logs


def read_predictions(path: Path) -> np.ndarray:
    """Return the column `prediction` of a submission (N,), 0 or 1. Raises InputError when it is not there."""
    try:
        table = pd.read_csv(path, sep="\t")
        predictions = table.set_index("index").sort_index()["prediction"]
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run train.py with --submit first, under that --desc.") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no table of index and prediction ({error}). Run again with --submit.") from None
    if not predictions.isin([0, 1]).all() or list(predictions.index) != list(range(len(predictions))):
        raise InputError(f"{path}: not the indices 0, 1, ... with predictions 0 or 1. Run again with --submit.")
    return predictions.to_numpy(int)


def draw(settings: dict, logs: pd.DataFrame, stories: list[str], is_right: np.ndarray, path: Path) -> None:
    """Draw cost, accuracy and learning rate over the updates, and the test accuracy by story length."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(f"{settings['desc']}: test accuracy {is_right.mean():.2%} of {len(is_right)} stories")
    (cost, accuracy), (rate, length) = figure.subplots(2, 2)

    for axes, key, label in ((cost, "cost", "cost (nats)"), (accuracy, "acc", "accuracy (%)")):
        axes.plot(logs["n_updates"], logs[f"tr_{key}"], "o-", label=f"train (its first {settings['n_valid']} rows)")
        axes.plot(logs["n_updates"], logs[f"va_{key}"], "s-", label="valid")
        axes.set(xlabel="update", ylabel=label, xlim=(0, settings["t_total"] * 1.02))
        axes.legend()
    best = logs.loc[logs["va_acc"].idxmax()]
    place, shift = (best["n_updates"], best["va_acc"]), (-6, -14)
    accuracy.annotate(f"kept: {best['va_acc']:.2f}", place, shift, textcoords="offset points", ha="right")
    accuracy.axhline(50, color="grey", linestyle=":", linewidth=1)

    schedule = SCHEDULES[settings["lr_schedule"]]
    updates = np.arange(1, settings["t_total"] + 1)
    rates = [settings["lr"] * schedule(t / settings["t_total"], settings["lr_warmup"]) for t in updates]
    rate.plot(updates, rates)
    rate.set(xlabel="update", ylabel="learning rate", xlim=cost.get_xlim())

    table = accuracy_by_length(stories, is_right)
    middle = table["accuracy"]
    length.errorbar(range(len(table)), middle, [middle - table["low"], table["high"] - middle], fmt="o", capsize=4)
    length.axhline(is_right.mean() * 100, color="grey", linewidth=1, label="all")
    length.set_xticks(range(len(table)), [f"{row.first}-{row.last}\nn = {row.n}" for row in table.itertuples()])
    length.set(xlabel="words in the story", ylabel="test accuracy (%), 95 % interval", ylim=(0, 105))
    length.legend()
    figure.savefig(path, dpi=120)


def accuracy_by_length(stories: list[str], is_right: np.ndarray, n_bins: int = 5) -> pd.DataFrame:
    """Return accuracy and its 95 % Wilson interval (%) of stories grouped by length, in n_bins groups of like size."""
    words = np.array([len(story.split()) for story in stories])
    edges = np.unique(np.quantile(words, np.arange(1, n_bins) / n_bins))  # a group ends with its edge
    groups = pd.DataFrame({"words": words, "right": is_right}).groupby(np.searchsorted(edges, words))
    rows = []
    for _, group in groups:
        right, n = int(group["right"].sum()), len(group)
        interval = binomtest(right, n).proportion_ci(method="wilson")
        first, last = group["words"].min(), group["words"].max()
        rows.append((first, last, n, 100 * right / n, 100 * interval.low, 100 * interval.high))
    return pd.DataFrame(rows, columns=["first", "last", "n", "accuracy", "low", "high"])


def draw_perplexity(log_path: str | os.PathLike) -> None:
    """Draw the perplexities that pretrain.py has logged, beside the log."""
    settings, logs = read_log(Path(log_path), {"desc"}, ["n_updates", "tr_ppl", "va_ppl"])
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(logs["n_updates"], logs["tr_ppl"], label="train, drop-out on, since the last log")
    axes.plot(logs["n_updates"], logs["va_ppl"], label=f"held out: {logs['va_ppl'].iloc[-1]:.3f} at the end")
    axes.set(xlabel="update", ylabel="perplexity per token", yscale="log", title=settings["desc"])
    axes.legend()
    figure.savefig(Path(log_path).with_suffix(".png"), dpi=120)


ANALYSES = {"rocstories": rocstories}


def main(argv: list[str] | None = None) -> int:
    """Analyse a finished run: `python analysis.py --desc DESC --data_dir DIR`."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", choices=ANALYSES, default="rocstories", help="the task of the run")
    parser.add_argument("--desc", default="rocstories", help="name of the run, as given to train.py")
    parser.add_argument("--data_dir", default="data/", help="folder of the task's files")
    parser.add_argument(
        "--log_dir", default="log/", help="folder of <desc>.jsonl, <desc>.tsv and, to be written, <desc>.png"
    )
    args = parser.parse_args(argv)
    predictions, log = (Path(args.log_dir) / f"{args.desc}.{suffix}" for suffix in ("tsv", "jsonl"))
    analyse = ANALYSES[args.dataset]
    return exit_code("analysis.py", lambda: analyse(args.data_dir, predictions, log), "nothing is drawn")


if __name__ == "__main__":
    sys.exit(main())
