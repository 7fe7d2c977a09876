"""A finished run's log, predictions and data -> the numbers printed, one JSON of all of them, and a picture."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from formats.files import InputError, digests, replacing, write_json
from loss import METRICS
from reading.rows import FORMS
from reading.splits import Texts, read_texts
from reading.tasks import Task
from running import figures
from running.metrics import accuracy_by_length, calibration, confusion_matrix, error_by_length, intervals

if TYPE_CHECKING:
    import pandas as pd

SETTINGS_READ = {"desc", "n_valid", "t_total", "lr", "lr_schedule", "lr_warmup"}
N_ERRORS = 20  # listed in the table of the most confident errors


@dataclass(frozen=True)
class Predicted:
    """The examples of a split with the run's predictions."""

    texts: Texts
    predictions: np.ndarray  # (N,) indices of labels or choices, or scores
    probabilities: np.ndarray | None  # (N, n_out); None: an older version of train.py, which did not save them


def analyse(task: Task, data_dir: str | os.PathLike, log_dir: str | os.PathLike, desc: str) -> None:
    """Print a run's metrics on valid and, if it has labels, on test; write the numbers and draw the curves.

    Writes beside the log: `<desc>.json`, `<desc>.png` and `<desc>.errors.tsv`, the most confident errors. The first
    valid metric printed is the best in the log; all others are computed from the predictions.

    Raises InputError when a file is missing or does not belong to the run.
    """
    paths = {suffix: Path(log_dir) / f"{desc}.{suffix}" for suffix in ("jsonl", "tsv", "json", "png", "errors.tsv")}
    settings, _ = read_log(paths["jsonl"], SETTINGS_READ, [])
    check_files(task, Path(data_dir), settings)
    task, valid, test = read_texts(
        task,
        Path(data_dir),
        n_valid=settings["n_valid"],
        seed=settings.get("seed", 42),
        max_examples=settings.get("max_examples"),
    )
    name = task.metrics[0]
    columns = ["n_updates", "tr_cost", "va_cost", f"tr_{name}", f"va_{name}"]
    _, logs = read_log(paths["jsonl"], SETTINGS_READ, columns)

    names = label_names(task, (valid, test))
    splits = {"valid": read_predicted(task, valid, None, paths["tsv"], "valid", data_dir)}
    if test is not None and test.labels is not None:
        predictions = read_predictions(paths["tsv"], names, task.scores)
        splits["test"] = read_predicted(task, test, predictions, paths["tsv"], "test", data_dir)
    splits = {split: predicted for split, predicted in splits.items() if predicted is not None}
    if not splits:
        raise InputError(f"{paths['tsv'].with_suffix('.valid.npy')} is missing: run train.py with --submit first.")

    report = make_report(task, settings, logs, names, splits) | {"guess": accuracy_of_guesses(task, valid)}
    print_report(task, report, paths)
    write_json(paths["json"], report, indent=1)
    if report["errors"] is not None:
        write_errors(report["errors"], paths["errors.tsv"])
    predicted = splits[report["analysed"]]
    figures.draw(report, settings, logs, predicted.texts.labels, predicted.predictions, paths["png"])


# --- reading ---------------------------------------------------------------------------------------------------------


def read_log(path: Path, settings_read: set[str], columns: list[str]) -> tuple[dict, "pd.DataFrame"]:
    """Return a run's settings and some columns of its logs. Raises InputError when they are missing or damaged."""
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


def check_files(task: Task, data_dir: Path, settings: dict) -> None:
    """Raise InputError for a file of the data set that is not the one that the run read."""
    folder, read = task.find(data_dir), settings.get("digests", {})
    files = {folder / name for source in task.in_layout_of(folder).sources() for name in source.files}
    for name, digest in digests(path for path in sorted(files) if path.is_file()).items():
        if read.get(name, digest) != digest:
            raise InputError(
                f"{folder / name} is not the file that the run of --desc {settings['desc']} has read. "
                "Name the --data_dir that the run had."
            )


def label_names(task: Task, splits: Sequence[Texts | None]) -> list[str] | None:
    """Return the labels as written in predictions; choices beyond them are named by number, from 1."""
    if task.scores:
        return None
    names = list(task.written or task.labels)
    if FORMS[task.form].has_choices:
        n_texts = max(len(example.texts) for split in splits if split for example in split.examples)
        names += [str(i + 1) for i in range(len(names), n_texts - FORMS[task.form].n_texts)]
    return names


def read_predictions(path: Path, labels: Sequence[str] | None, scores: tuple[float, float] | None = None) -> np.ndarray:
    """Return the predictions in a file, as indices into labels or as scores (N,).

    Raises InputError when the file is missing or malformed.
    """
    try:
        head, *lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        table = [line.split("\t", 1) for line in lines]
        if head.split("\t") != ["index", "prediction"] or any(len(fields) != 2 for fields in table):
            raise ValueError("the first line or the number of columns is another")
        indices, texts = [int(i) for i, _ in table], [text for _, text in table]
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run train.py with --submit first, under that --desc.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a table of index and prediction ({error}). Run again with --submit.") from None
    try:
        numbers = {label: i for i, label in enumerate(labels or ())}
        found = [float(text) if scores else numbers[text] for text in texts]
    except (KeyError, ValueError):
        found = None
    if found is None or indices != list(range(len(indices))):
        allowed = f"numbers from {scores[0]:g} to {scores[1]:g}" if scores else " or ".join(labels[:20])
        raise InputError(f"{path}: not the indices 0, 1, ... with predictions {allowed}. Run again with --submit.")
    return np.array(found, float if scores else int)


def read_predicted(
    task: Task, texts: Texts, predictions: np.ndarray | None, path: Path, split: str, data_dir: str | os.PathLike
) -> Predicted | None:
    """Return the examples of a split with `predictions`, or if None with the answers of highest saved probability.

    Returns None without either. Raises InputError when there are not as many predictions as examples.
    """
    n, stem = len(texts.examples), path.name.removesuffix(".tsv")
    source = path.with_name(f"{stem}.{split}.npy")
    try:
        probabilities = np.load(source).astype(float) if source.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{source} holds no probabilities ({error}). Run again with --submit.") from None
    if predictions is None and probabilities is not None:
        predictions = answers(task, probabilities)
    elif predictions is not None:
        source = path
    if predictions is None:
        return None
    for file, values in ((source, predictions), (path.with_name(f"{stem}.{split}.npy"), probabilities)):
        if values is not None and len(values) != n:
            raise InputError(
                f"{file} holds {len(values)} predictions, the {split} set in {data_dir} {n} examples. "
                "Name the --data_dir that the run had, or run again with --submit."
            )
    return Predicted(texts, predictions, probabilities)


def answers(task: Task, probabilities: np.ndarray) -> np.ndarray:
    """Return the label or choice of the highest probability, or the expected score (N,)."""
    if task.scores:
        return probabilities @ np.linspace(*task.scores, probabilities.shape[1])
    return probabilities.argmax(1)


# --- the numbers -----------------------------------------------------------------------------------------------------


def make_report(
    task: Task, settings: dict, logs: "pd.DataFrame", names: list[str] | None, splits: dict[str, Predicted]
) -> dict:
    """Return all numbers of a run, as written to <desc>.json.

    Metrics are given for each split and each of its parts; the rest for one split, `analysed`: test if it has labels,
    else valid. Metrics, calibration errors and confidences are in %.
    """
    name = task.metrics[0]
    best = logs.loc[logs[f"va_{name}"].idxmax()]
    analysed = "test" if "test" in splits else "valid"
    predicted = splits[analysed]
    texts, predictions, probabilities = predicted.texts, predicted.predictions, predicted.probabilities
    n_texts = FORMS[task.form].n_texts
    words = [" ".join(example.texts[:n_texts]) for example in texts.examples]
    report = {
        "desc": settings["desc"],
        "title": task.title,
        "form": task.form,
        "labels": names,
        "scores": task.scores and list(task.scores),
        "metric": name,
        "metric_title": METRICS[name].title,
        "best_valid": {"n_updates": int(best["n_updates"]), "value": float(best[f"va_{name}"])},
        "splits": {split: measure(task, predicted) for split, predicted in splits.items()},
        "analysed": analysed,
        "length_of": "text" if n_texts == 1 else "texts",
    }
    if task.scores:
        groups = error_by_length(words, np.abs(predictions - texts.labels))
        report["error_by_length"] = json.loads(groups.to_json(orient="records", double_precision=15))
    else:
        is_right = predictions == texts.labels
        groups = accuracy_by_length(words, is_right)
        report["accuracy_by_length"] = json.loads(groups.to_json(orient="records", double_precision=15))
        report["confusion"] = confusion_matrix(texts.labels, predictions, len(names)).tolist()
        report["calibration"] = None
        if probabilities is not None:
            report["calibration"] = calibration(confidence(predicted), is_right)[1]
    report["errors"] = worst_errors(task, predicted, names)
    return report


def measure(task: Task, predicted: Predicted) -> dict[str, dict]:
    """Return count, metrics and calibration error of all examples of a split, and of each of its parts."""
    labels, predictions = predicted.texts.labels, predicted.predictions
    found, first = {}, 0
    parts = [("all", len(labels)), *((part, n) for part, n in predicted.texts.parts if part)]
    for part, n in parts:
        which = slice(first, first + n)
        found[part] = {"n": n, "metrics": intervals(task.metrics, labels[which], predictions[which])}
        if not task.scores and predicted.probabilities is not None:
            is_right = predictions[which] == labels[which]
            found[part]["calibration_error"] = calibration(confidence(predicted)[which], is_right)[0]
        first = 0 if part == "all" else first + n
    return found


def accuracy_of_guesses(task: Task, texts: Texts) -> float | None:
    """Return the accuracy (%) expected of random guesses; None if accuracy is not the main metric."""
    if task.metrics[0] != "acc":
        return None
    form = FORMS[task.form]
    n_labels = [len(e.texts) - form.n_texts if form.has_choices else len(task.labels) for e in texts.examples]
    return 100 * float(np.mean(1 / np.array(n_labels)))


def confidence(predicted: Predicted) -> np.ndarray:
    """Return the probability of each prediction (N,)."""
    return np.take_along_axis(predicted.probabilities, predicted.predictions[:, None], 1)[:, 0]


def worst_errors(task: Task, predicted: Predicted, names: list[str] | None) -> list[dict] | None:
    """Return the most confident wrong predictions, or the scores with the largest errors, the worst first."""
    texts, found, labels = predicted.texts.examples, predicted.predictions, predicted.texts.labels
    if task.scores:
        off = np.abs(found - labels)
        worst = np.argsort(-off, kind="stable")[:N_ERRORS]
        lines = [dict(label=float(labels[i]), prediction=float(found[i]), error=float(off[i])) for i in worst]
    elif predicted.probabilities is None:
        return None
    else:
        confidences, wrong = confidence(predicted), np.flatnonzero(found != labels)
        worst = wrong[np.argsort(-confidences[wrong], kind="stable")[:N_ERRORS]]
        lines = []
        for i in worst:
            line = dict(label=names[labels[i]], prediction=names[found[i]], confidence=100 * float(confidences[i]))
            lines.append(line | {"probability_of_label": 100 * float(predicted.probabilities[i, labels[i]])})
    return [
        {"number": int(i), "where": texts[i].where} | line | {"texts": list(texts[i].texts)}
        for i, line in zip(worst, lines, strict=True)
    ]


# --- writing ---------------------------------------------------------------------------------------------------------


def print_report(task: Task, report: dict, paths: dict[str, Path]) -> None:
    """Print the main metric of valid and test, then each metric of each split and part with its interval."""
    splits, title = report["splits"], report["metric_title"]
    print(f"{task.title} Valid {title}: {report['best_valid']['value']:.2f}")
    if "test" in splits:
        print(f"{task.title} Test {title}:  {splits['test']['all']['metrics'][report['metric']]['value']:.2f}")
    if report["errors"] is None:
        return  # a run without saved probabilities: only the two lines that older versions printed
    for split, parts in splits.items():
        for part, numbers in parts.items():
            found = [
                f"{METRICS[name].title} {m['value']:.2f} (95 % interval {m['low']:.2f} to {m['high']:.2f})"
                for name, m in numbers["metrics"].items()
            ]
            if "calibration_error" in numbers:
                found.append(f"expected calibration error {numbers['calibration_error']:.2f}")
            where = f"{split.title()}{' ' + part if len(parts) > 1 else ''}"
            print(f"{task.title} {where}: {', '.join(found)}; {numbers['n']:,} examples")
    errors = f"{'largest' if task.scores else 'most confident'} errors {paths['errors.tsv']}"
    files = f"picture {paths['png']}, numbers {paths['json']}, {errors}"
    print(f"{task.title} {report['analysed'].title()}: {files}")


def write_errors(errors: list[dict], path: Path) -> None:
    """Write errors as a table, one example per line, its texts separated by bars; with no errors, an empty file."""
    lines = [list(errors[0])] if errors else []
    for error in errors:
        *values, texts = error.values()
        cells = [f"{value:.3f}" if isinstance(value, float) else " ".join(str(value).split()) for value in values]
        lines.append([*cells, " | ".join(" ".join(text.split()) for text in texts)])
    with replacing(path) as file:
        file.write("".join("\t".join(cells) + "\n" for cells in lines).encode())


def draw_perplexity(log_path: str | os.PathLike) -> None:
    """Draw the perplexities that pretrain.py has logged, beside the log."""
    settings, logs = read_log(Path(log_path), {"desc"}, ["n_updates", "tr_ppl", "va_ppl"])
    figures.draw_perplexity(settings["desc"], logs, Path(log_path).with_suffix(".png"))
