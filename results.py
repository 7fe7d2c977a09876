"""Logs and predictions of runs -> numbers and pictures. matplotlib, pandas and scipy are imported where needed."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets import Task
from loss import METRICS
from opt import SCHEDULES
from utils import InputError

if TYPE_CHECKING:
    import pandas as pd


def analyse(task: Task, data_dir: str | os.PathLike, log_dir: str | os.PathLike, desc: str) -> None:
    """Print the metric of a run on valid and test and draw its curves beside its log, as `<desc>.png`.

    The valid figure is the best that the log holds, the test figure that of the predictions.

    Raises InputError when a file is missing or does not belong to the data.
    """
    pred_path, log_path = (Path(log_dir) / f"{desc}.{suffix}" for suffix in ("tsv", "jsonl"))
    name, metric = task.metric, METRICS[task.metric]
    settings_read = {"desc", "n_valid", "t_total", "lr", "lr_schedule", "lr_warmup"}
    settings, logs = read_log(log_path, settings_read, ["n_updates", "tr_cost", "va_cost", f"tr_{name}", f"va_{name}"])
    predictions = read_predictions(pred_path, task.labels)
    _, _, test = task.read(Path(data_dir), settings["n_valid"])
    if len(predictions) != len(test.labels):
        raise InputError(
            f"{pred_path} holds {len(predictions)} predictions, the test set in {data_dir} {len(test.labels)} "
            "examples. Name the --data_dir that the run had, or run again with --submit."
        )
    print(f"{task.title} Valid {metric.title}: {logs[f'va_{name}'].max():.2f}")
    print(f"{task.title} Test {metric.title}:  {metric.of(test.labels, predictions) * 100:.2f}")
    draw(
        task,
        settings,
        logs,
        [texts[0] for texts in test.texts],
        predictions == test.labels,
        log_path.with_suffix(".png"),
    )


def read_log(path: Path, settings_read: set[str], columns: list[str]) -> tuple[dict, "pd.DataFrame"]:
    """Return the settings and some columns of the logs of a run. Raises InputError when they are not there."""
    import pandas as pd

    try:
        settings, *logs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        logs = pd.DataFrame(logs)[columns]
        whole = settings_read <= settings.keys() and len(logs) > 0
    except FileNotFoundError:
        raise InputError(f"{path} is missing: has the run of that --desc ended, and in that --log_dir?") from None
    except (OSError, ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is not the log of a run: settings, then a line per log. Run again.")
    return settings, logs


def read_predictions(path: Path, labels: tuple[str, ...]) -> np.ndarray:
    """Return the predictions of a file as indices into labels (N,). Raises InputError when they are not there."""
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t", dtype={"prediction": str}, keep_default_na=False)
        predictions = table.set_index("index").sort_index()["prediction"]
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run train.py with --submit first, under that --desc.") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a table of index and prediction ({error}). Run again with --submit.") from None
    if not predictions.isin(labels).all() or list(predictions.index) != list(range(len(predictions))):
        raise InputError(
            f"{path}: not the indices 0, 1, ... with predictions {' or '.join(labels)}. Run again with --submit."
        )
    return predictions.map(labels.index).to_numpy(int)


def draw(task: Task, settings: dict, logs: "pd.DataFrame", texts: list[str], is_right: np.ndarray, path: Path) -> None:
    """Draw cost, metric and learning rate over the updates, and the test accuracy by the length of the first text."""
    from matplotlib.figure import Figure

    name, title = task.metric, METRICS[task.metric].title.lower()
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(f"{settings['desc']}: test accuracy {is_right.mean():.2%} of {len(is_right)} examples")
    (cost, metric), (rate, length) = figure.subplots(2, 2)

    for axes, key, label in ((cost, "cost", "cost (nats)"), (metric, name, f"{title} (%)")):
        axes.plot(logs["n_updates"], logs[f"tr_{key}"], "o-", label=f"train (its first {settings['n_valid']})")
        axes.plot(logs["n_updates"], logs[f"va_{key}"], "s-", label="valid")
        axes.set(xlabel="update", ylabel=label, xlim=(0, settings["t_total"] * 1.02))
        axes.legend()
    best = logs.loc[logs[f"va_{name}"].idxmax()]
    point, shift = (best["n_updates"], best[f"va_{name}"]), (-6, -14)
    metric.annotate(f"kept: {best[f'va_{name}']:.2f}", point, shift, textcoords="offset points", ha="right")
    metric.axhline(100 / len(task.labels), color="grey", linestyle=":", linewidth=1)

    schedule = SCHEDULES[settings["lr_schedule"]]
    updates = np.arange(1, settings["t_total"] + 1)
    rates = [settings["lr"] * schedule(t / settings["t_total"], settings["lr_warmup"]) for t in updates]
    rate.plot(updates, rates)
    rate.set(xlabel="update", ylabel="learning rate", xlim=cost.get_xlim())

    table = accuracy_by_length(texts, is_right)
    middle = table["accuracy"]
    length.errorbar(range(len(table)), middle, [middle - table["low"], table["high"] - middle], fmt="o", capsize=4)
    length.axhline(is_right.mean() * 100, color="grey", linewidth=1, label="all")
    length.set_xticks(range(len(table)), [f"{row.first}-{row.last}\nn = {row.n}" for row in table.itertuples()])
    length.set(xlabel="words in the text", ylabel="test accuracy (%), 95 % interval", ylim=(0, 105))
    length.legend()
    figure.savefig(path, dpi=120)


def accuracy_by_length(texts: list[str], is_right: np.ndarray, n_bins: int = 5) -> "pd.DataFrame":
    """Return accuracy and its 95 % Wilson interval (%) of texts in n_bins groups by length, of about equal size."""
    import pandas as pd
    from scipy.stats import binomtest

    words = np.array([len(text.split()) for text in texts])
    edges = np.unique(np.quantile(words, np.arange(1, n_bins) / n_bins))  # each belongs to the group below it
    groups = pd.DataFrame({"words": words, "right": is_right}).groupby(np.searchsorted(edges, words))
    lines = []
    for _, group in groups:
        right, n = int(group["right"].sum()), len(group)
        interval = binomtest(right, n).proportion_ci(method="wilson")
        first, last = group["words"].min(), group["words"].max()
        lines.append((first, last, n, 100 * right / n, 100 * interval.low, 100 * interval.high))
    return pd.DataFrame(lines, columns=["first", "last", "n", "accuracy", "low", "high"])


def draw_perplexity(log_path: str | os.PathLike) -> None:
    """Draw the perplexities that pretrain.py has logged, beside the log."""
    from matplotlib.figure import Figure

    settings, logs = read_log(Path(log_path), {"desc"}, ["n_updates", "tr_ppl", "va_ppl"])
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(logs["n_updates"], logs["tr_ppl"], label="train, with dropout, since the last log")
    axes.plot(logs["n_updates"], logs["va_ppl"], label=f"held out: {logs['va_ppl'].iloc[-1]:.3f} at the end")
    axes.set(xlabel="update", ylabel="perplexity per token", yscale="log", title=settings["desc"])
    axes.legend()
    figure.savefig(Path(log_path).with_suffix(".png"), dpi=120)
