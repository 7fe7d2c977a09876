"""The numbers of a run -> its picture. pandas and matplotlib are imported where needed."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from formats.files import replacing
from opt import SCHEDULES
from running.record import RunRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMED = 12  # labels: with more, a confusion matrix has neither names nor numbers


def draw(
    report: dict,
    record: RunRecord,
    logs: "pd.DataFrame",
    examples: "pd.DataFrame",
    path: Path,
) -> None:
    """Draw cost, metric and learning rate over the updates, and how good the predictions of a split are.

    Args:
        report: what analysis.analyse writes as JSON.
        record, logs: of the run's log.
        examples: of the split analysed: y and found, drawn where they are scores.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    figure.suptitle(headline(report), parse_math=False)

    # above: the course of training; below: the predictions
    above = ["cost", "metric", "rate"]
    if report["scores"]:
        panels = figure.subplot_mosaic([above, ["length", "scatter", "scatter"]])
        draw_scatter(panels["scatter"], report, examples)
    else:
        panels = figure.subplot_mosaic([above, ["length", "confusion", "calibration"]])
        draw_confusion(panels["confusion"], report)
        draw_calibration(panels["calibration"], report)
    draw_costs(panels["cost"], record, logs)
    draw_metric(panels["metric"], report, record, logs)
    draw_learning_rate(panels["rate"], record)
    draw_by_length(panels["length"], report)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # labels in scripts that the font lacks are drawn as boxes
        save(figure, path)


def headline(report: dict) -> str:
    """Return in words of which split the numbers are, and the metric of all its examples and of each part."""
    found = []
    split = report["splits"][report["analysed"]]
    for part, numbers in split.items():
        metric = numbers["metrics"][report["metric"]]
        interval = f"95 % interval {metric['low']:.2f} to {metric['high']:.2f}"
        words = f"{metric['value']:.2f} % ({interval}) of {numbers['n']:,} examples"
        if part != "all":
            words = f"{part} {words}"
        found.append(words)

    # all examples in the first line, the parts below
    title = f"{report['desc']}: {report['analysed']} {report['metric_title']} {found[0]}"
    if len(found) > 1:
        title += "\n" + ", ".join(found[1:])
    return title


# --- the course of training ------------------------------------------------------------------------------------------


def draw_costs(axes: "Axes", record: RunRecord, logs: "pd.DataFrame") -> None:
    """Draw the training cost of every update, and the task's cost on train and valid at each log."""
    # each line of the log holds the costs since the one before
    costs = np.concatenate(logs["costs"].tolist())
    last = logs["n_updates"].iloc[-1]
    updates = np.arange(last - len(costs), last) + 1
    label = "each update"
    if record.lm_coef > 0:
        label += f": task + {record.lm_coef:g} x language model"
    axes.plot(updates, costs, color="lightsteelblue", linewidth=0.8, label=label)

    # the task's alone, without dropout
    draw_evaluations(axes, "cost", record, logs)
    axes.set(ylabel="cost (nats)")


def draw_metric(axes: "Axes", report: dict, record: RunRecord, logs: "pd.DataFrame") -> None:
    """Draw the main metric on train and valid at each log, and the accuracy of guesses."""
    if report["guess"] is not None:
        axes.axhline(report["guess"], color="grey", linestyle=":", linewidth=1, label="guessing")
    draw_evaluations(axes, report["metric"], record, logs)
    axes.set(ylabel=f"{report['metric_title']} (%)")

    # the parameters kept are those that were best on valid
    best = report["best_valid"]
    point = (best["n_updates"], best["value"])
    axes.annotate(f"kept: {best['value']:.2f}", point, (-6, -14), textcoords="offset points", ha="right")


def draw_evaluations(axes: "Axes", name: str, record: RunRecord, logs: "pd.DataFrame") -> None:
    """Draw a figure of the log on train and valid over the updates."""
    updates = logs["n_updates"]
    on_train = logs[f"tr_{name}"]
    on_valid = logs[f"va_{name}"]
    axes.plot(updates, on_train, "o-", label=f"train, its first {record.n_valid}")
    axes.plot(updates, on_valid, "s-", label="valid")
    axes.set(xlabel="update", xlim=(0, record.t_total * 1.02))
    axes.legend()


def draw_learning_rate(axes: "Axes", record: RunRecord) -> None:
    """Draw the learning rate over the updates."""
    t_total = record.t_total
    schedule = SCHEDULES[record.lr_schedule]
    updates = np.arange(1, t_total + 1)
    # as in opt.py, from the share of the updates
    rates = [record.lr * schedule(t / t_total, record.lr_warmup) for t in updates]
    axes.plot(updates, rates)
    axes.set(xlabel="update", ylabel="learning rate", xlim=(0, t_total * 1.02))


# --- the predictions -------------------------------------------------------------------------------------------------


def draw_by_length(axes: "Axes", report: dict) -> None:
    """Draw accuracy, or the mean error of scores, of groups of texts of like length."""
    import pandas as pd

    # accuracy or error of each group
    if report["scores"]:
        groups = pd.DataFrame(report["error_by_length"])
        middle = groups["error"]
        unit = "mean |error|"
    else:
        groups = pd.DataFrame(report["accuracy_by_length"])
        middle = groups["accuracy"]
        unit = "accuracy (%)"

    # a point with its interval for each group, a line for all
    below = middle - groups["low"]
    above = groups["high"] - middle
    axes.errorbar(groups.index, middle, [below, above], fmt="o", capsize=4)
    mean = np.average(middle, weights=groups["n"])
    axes.axhline(mean, color="grey", linewidth=1, label="all")

    # lengths and numbers of examples
    ticks = []
    for group in groups.itertuples():
        words = f"{group.first}" if group.first == group.last else f"{group.first}-{group.last}"
        ticks.append(f"{words}\nn = {group.n}")
    axes.set_xticks(groups.index, ticks)
    axes.set(xlabel="words in the text", ylabel=f"{report['analysed']} {unit}, 95 % interval")
    axes.set_ylim(0, None if report["scores"] else 105)
    axes.legend()


def draw_confusion(axes: "Axes", report: dict) -> None:
    """Draw how often each label is predicted as each other, coloured by the fraction of the true label."""
    # each line shows where the examples of a label go; one without examples is white
    counts = np.array(report["confusion"])
    n_true = counts.sum(1, keepdims=True)
    fractions = counts / np.maximum(1, n_true)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="predicted", ylabel="true", title="examples; colour: fraction of the true label")

    # names and numbers, where there is room for them; a label may hold dollar signs
    names = []
    for name in report["labels"]:
        names.append(name if len(name) <= 16 else name[:15] + "…")
    if len(names) > MAX_NAMED:
        return
    places = range(len(names))
    longest = max(len(name) for name in names)
    rotation = 30 if len(names) > 3 and longest > 3 else 0
    axes.set_xticks(places, names, rotation=rotation, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)

    # readable on dark and light
    for (i, j), count in np.ndenumerate(counts):
        color = "white" if fractions[i, j] > 0.6 else "black"
        axes.text(j, i, f"{count:,}", ha="center", va="center", color=color)


def draw_calibration(axes: "Axes", report: dict) -> None:
    """Draw the reliability curve: accuracy against confidence, and how many examples have which confidence."""
    import pandas as pd

    # how many examples
    bins = pd.DataFrame(report["calibration"])
    width = bins["high"] - bins["low"]
    percent = 100 * bins["n"] / bins["n"].sum()
    axes.bar(bins["low"], percent, width, align="edge", color="lightgrey", label="examples (% of all)")

    # how many of them are right; on the dotted line, as many as the confidence says
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":", linewidth=1)
    axes.plot(bins["confidence"], bins["accuracy"], "o-", label="accuracy")

    error = report["splits"][report["analysed"]]["all"]["calibration_error"]
    axes.set_title(f"expected calibration error {error:.2f} %")
    axes.set(xlabel="confidence (%)", ylabel=f"{report['analysed']} accuracy (%)", xlim=(0, 102), ylim=(0, 105))
    axes.legend(loc="upper left")


def draw_scatter(axes: "Axes", report: dict, examples: "pd.DataFrame") -> None:
    """Draw predicted against true scores."""
    # on the dotted line a prediction is right
    ends = report["scores"]
    axes.plot(ends, ends, color="grey", linestyle=":", linewidth=1)

    # many points are small ones
    size = 12 if len(examples) <= 2000 else 2
    axes.scatter(examples["y"], examples["found"], s=size, alpha=0.4, linewidths=0)
    axes.set(xlabel="true score", ylabel=f"predicted score, {report['analysed']}")


# --- pre-training ----------------------------------------------------------------------------------------------------


def draw_perplexity(desc: str, logs: list[dict], path: Path) -> None:
    """Draw the perplexities that pretrain.py has logged, a line of the log each."""
    import pandas as pd
    from matplotlib.figure import Figure

    logs = pd.DataFrame(logs)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(logs["n_updates"], logs["tr_ppl"], label="train, with dropout, since the last log")
    axes.plot(logs["n_updates"], logs["va_ppl"], label=f"held out: {logs['va_ppl'].iloc[-1]:.3f} at the end")
    axes.set(xlabel="update", ylabel="perplexity per token", yscale="log", title=desc)
    axes.legend()
    save(figure, path)


# --- writing ---------------------------------------------------------------------------------------------------------


def save(figure: "Figure", path: Path) -> None:
    """Write a picture, whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
