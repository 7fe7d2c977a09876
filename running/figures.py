"""The numbers of a run -> its picture. matplotlib is imported where needed."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opt import SCHEDULES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAX_NAMED = 12  # labels: with more, a confusion matrix has neither names nor numbers


def draw(
    report: dict, settings: dict, logs: "pd.DataFrame", labels: np.ndarray, predictions: np.ndarray, path: Path
) -> None:
    """Draw cost, metric and learning rate over the updates, and how good the predictions of a split are.

    Args:
        report: what results.analyse writes as JSON.
        labels, predictions: of the examples that the split's numbers are of (N,); drawn where they are scores.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    figure.suptitle(headline(report), parse_math=False)
    scores = report["scores"] is not None
    below = ["length", "scatter", "scatter"] if scores else ["length", "confusion", "calibration"]
    panels = figure.subplot_mosaic([["cost", "metric", "rate"], below])
    draw_course(panels, report, settings, logs)
    draw_by_length(panels["length"], report)
    if scores:
        draw_scatter(panels["scatter"], report, labels, predictions)
    else:
        draw_confusion(panels["confusion"], report)
        draw_calibration(panels["calibration"], report)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # labels in scripts that the font lacks are drawn as boxes
        figure.savefig(path, dpi=120)


def headline(report: dict) -> str:
    """Return in words of which split the numbers are, and the metric of all its examples and of each part."""
    found = []
    for part, numbers in report["splits"][report["analysed"]].items():
        metric, of = numbers["metrics"][report["metric"]], "" if part == "all" else f"{part} "
        interval = f"{metric['low']:.2f} to {metric['high']:.2f}"
        found.append(f"{of}{metric['value']:.2f} % (95 % interval {interval}) of {numbers['n']:,} examples")
    every, *parts = found
    return (
        f"{report['desc']}: {report['analysed']} {report['metric_title']} {every}"
        + "\n" * bool(parts)
        + ", ".join(parts)
    )


def draw_course(panels: dict[str, "Axes"], report: dict, settings: dict, logs: "pd.DataFrame") -> None:
    """Draw cost, metric and learning rate over the updates."""
    name, cost, metric, rate = report["metric"], panels["cost"], panels["metric"], panels["rate"]
    titles = ((cost, "cost", "cost (nats)"), (metric, name, f"{report['metric_title']} (%)"))
    for axes, key, label in titles:
        axes.plot(logs["n_updates"], logs[f"tr_{key}"], "o-", label=f"train (its first {settings['n_valid']})")
        axes.plot(logs["n_updates"], logs[f"va_{key}"], "s-", label="valid")
        axes.set(xlabel="update", ylabel=label, xlim=(0, settings["t_total"] * 1.02))
        axes.legend()
    best, shift = report["best_valid"], (-6, -14)
    point = (best["n_updates"], best["value"])
    metric.annotate(f"kept: {best['value']:.2f}", point, shift, textcoords="offset points", ha="right")
    if report["guess"] is not None:
        metric.axhline(report["guess"], color="grey", linestyle=":", linewidth=1)

    schedule = SCHEDULES[settings["lr_schedule"]]
    updates = np.arange(1, settings["t_total"] + 1)
    rates = [settings["lr"] * schedule(t / settings["t_total"], settings["lr_warmup"]) for t in updates]
    rate.plot(updates, rates)
    rate.set(xlabel="update", ylabel="learning rate", xlim=cost.get_xlim())


def draw_by_length(axes: "Axes", report: dict) -> None:
    """Draw accuracy, or the mean error of scores, of groups of texts of like length."""
    key, unit = ("error", "mean |error|") if report["scores"] else ("accuracy", "accuracy (%)")
    groups = report[f"{key}_by_length"]
    middle, low, high = (np.array([group[name] for group in groups]) for name in (key, "low", "high"))
    axes.errorbar(range(len(groups)), middle, [middle - low, high - middle], fmt="o", capsize=4)
    mean = np.average(middle, weights=[group["n"] for group in groups])
    axes.axhline(mean, color="grey", linewidth=1, label="all")
    axes.set_xticks(range(len(groups)), [f"{group['first']}-{group['last']}\nn = {group['n']}" for group in groups])
    axes.set(xlabel=f"words in the {report['length_of']}", ylabel=f"{report['analysed']} {unit}, 95 % interval")
    axes.set_ylim(0, 105 if key == "accuracy" else None)
    axes.legend()


def draw_confusion(axes: "Axes", report: dict) -> None:
    """Draw how often each label is predicted as each other, coloured by the fraction of the true label."""
    counts, names = np.array(report["confusion"]), report["labels"]
    fractions = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="predicted", ylabel="true", title="examples; colour: fraction of the true label")
    if len(names) > MAX_NAMED:
        return
    short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
    turned = 30 * (max(map(len, short)) > 3 and len(names) > 3)
    axes.set_xticks(range(len(names)), short, rotation=turned, parse_math=False)  # a label may hold dollar signs
    axes.set_yticks(range(len(names)), short, parse_math=False)
    for (i, j), count in np.ndenumerate(counts):
        axes.text(j, i, f"{count:,}", ha="center", va="center", color="white" if fractions[i, j] > 0.6 else "black")


def draw_calibration(axes: "Axes", report: dict) -> None:
    """Draw the reliability curve: accuracy against confidence, and how many examples have which confidence."""
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="confidence (%)", ylabel=f"{report['analysed']} accuracy (%)", xlim=(0, 102), ylim=(0, 105))
    curve = report["calibration"]
    if curve is None:
        axes.set_title("no probabilities: run again with --submit")
        return
    n = np.array([line["n"] for line in curve])
    left, width = [line["low"] for line in curve], [line["high"] - line["low"] for line in curve]
    axes.bar(left, 100 * n / n.sum(), width, align="edge", color="lightgrey", label="examples (% of all)")
    points = [[line[name] for line in curve] for name in ("confidence", "accuracy")]
    axes.plot(*points, "o-", label="accuracy")
    error = report["splits"][report["analysed"]]["all"]["calibration_error"]
    axes.set_title(f"expected calibration error {error:.2f} %")
    axes.legend(loc="upper left")


def draw_scatter(axes: "Axes", report: dict, labels: np.ndarray, predictions: np.ndarray) -> None:
    """Draw predicted against true scores."""
    size = 12 if len(labels) <= 2000 else 2
    axes.plot(report["scores"], report["scores"], color="grey", linestyle=":", linewidth=1)
    axes.scatter(labels, predictions, s=size, alpha=0.4, linewidths=0)
    axes.set(xlabel="true score", ylabel=f"predicted score, {report['analysed']}")


def draw_perplexity(desc: str, logs: "pd.DataFrame", path: Path) -> None:
    """Draw the perplexities that pretrain.py has logged."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(logs["n_updates"], logs["tr_ppl"], label="train, with dropout, since the last log")
    axes.plot(logs["n_updates"], logs["va_ppl"], label=f"held out: {logs['va_ppl'].iloc[-1]:.3f} at the end")
    axes.set(xlabel="update", ylabel="perplexity per token", yscale="log", title=desc)
    axes.legend()
    figure.savefig(path, dpi=120)
