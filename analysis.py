"""Analyse a finished run: `python analysis.py --desc DESC --log_dir DIR`.

Reads the log and the predictions that `train.py --submit` has written, nothing else. Prints the metrics with 95 %
intervals, and writes all numbers, a picture and a table of errors beside the log. pandas is imported where needed.
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("analysis.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("AnalysisFlags")  # before torch is loaded, which takes seconds

import csv
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from formats.files import InputError, refuse_special, replacing, write_json
from port import rocstories  # noqa: F401  a public name of this file
from reading.rows import FORMS
from running import figures
from running.command import exit_code
from running.inference import written_answers
from running.metrics import METRICS, accuracy_by_length, calibration, confusion_matrix, error_by_length, intervals
from running.predictions import PredictedExample, read_predictions
from running.record import RunRecord
from running.settings import NO_LOG, AnalysisFlags, parse

if TYPE_CHECKING:
    import pandas as pd

N_ERRORS = 20  # listed in the table of errors


def analyse(log_dir: Path, desc: str) -> None:
    """Print a run's metrics on valid and, if it has labels, on test; write the numbers and draw the curves.

    Reads `<desc>.jsonl` and `<desc>.predictions.jsonl` in log_dir. Writes `<desc>.json`, `<desc>.png` and
    `<desc>.errors.tsv`, the most confident errors. The first valid metric printed is the best in the log; all others
    are computed from the predictions.

    Raises InputError when a file is missing or damaged.
    """
    # the run's files
    record, logs = read_run_log(log_dir / f"{desc}.jsonl")
    path = log_dir / f"{desc}.predictions.jsonl"
    examples = read_predictions(path)
    names = label_names(record, examples)
    try:
        splits = labelled_splits(record, names, examples)
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path} does not belong to the log beside it ({error}). Run again with --submit.") from None

    # the numbers
    report = make_report(record, names, logs, splits)
    print_report(report)

    # the files of results, and where they are
    numbers = log_dir / f"{desc}.json"
    write_json(numbers, report, indent=1)
    errors = log_dir / f"{desc}.errors.tsv"
    write_errors(report["errors"], errors)
    picture = log_dir / f"{desc}.png"
    analysed = report["analysed"]
    figures.draw(report, record, logs, splits[analysed], picture)
    worst = "largest" if record.scores else "most confident"
    files = f"picture {picture}, numbers {numbers}, {worst} errors {errors}"
    print(f"{record.title} {analysed.title()}: {files}")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_run_log(path: Path) -> tuple[RunRecord, "pd.DataFrame"]:
    """Return a run's record and its logs, a line each. Raises InputError when they are missing or damaged."""
    import pandas as pd

    try:
        refuse_special(path)
        settings, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {NO_LOG}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not the log of a run ({error}). Run again.") from None

    # of its figures only those that are shown
    record = RunRecord.of_json(settings, path)
    metric = record.metrics[0]
    columns = ["n_updates", "costs", "tr_cost", "va_cost", f"tr_{metric}", f"va_{metric}"]
    try:
        logs = pd.DataFrame(lines)[columns]
        numbers = logs.drop(columns="costs").astype(float)
        needed = numbers[["n_updates", f"va_{metric}"]].to_numpy()
        if not np.isfinite(needed).all():
            raise ValueError("a figure is no finite number")
        for costs in logs["costs"]:
            np.array(costs, float)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} holds lines that are not of a run's log ({error}). Run again.") from None
    return record, logs


def label_names(record: RunRecord, examples: list[PredictedExample]) -> list[str] | None:
    """Return the labels as shown, then those of test or the numbers of choices that training lacks; None: scores."""
    if record.scores:
        return None
    n_choices = max(len(example.probabilities) for example in examples)
    n_names = max(n_choices, len(record.labels))
    names = written_answers(np.arange(n_names), record.labels, None)
    if FORMS[record.form].has_choices:
        return names
    others = {example.label for example in examples if example.split == "test"} - {None, *names}
    return names + sorted(others)


def labelled_splits(
    record: RunRecord, names: list[str] | None, examples: list[PredictedExample]
) -> dict[str, "pd.DataFrame"]:
    """Return the examples of valid and, where its labels are known, of test, with numbers as further columns.

    These are y and found: label and prediction, as indices of names or as scores; confidence: the probability of the
    prediction, unless it is a score; n_words: of the texts, choices left out.

    Raises ValueError or IndexError for a label that is not among the names or the example's choices.
    """
    import pandas as pd

    def number(label: str | float) -> int | float:
        return float(label) if names is None else names.index(label)

    n_texts = FORMS[record.form].n_texts
    splits = {}
    for split in ("valid", "test"):
        chosen = [example for example in examples if example.split == split]
        if not chosen or any(example.label is None for example in chosen):
            continue

        # a line per example, with numbers as metrics take them
        table = pd.DataFrame(chosen)
        table["y"] = [number(example.label) for example in chosen]
        table["found"] = [number(example.prediction) for example in chosen]

        # the probability of what is predicted
        if names is not None:
            found = table["found"]
            table["confidence"] = [example.probabilities[i] for example, i in zip(chosen, found, strict=True)]

        # the choices are what an example is about, not its length
        table["n_words"] = [len(" ".join(example.texts[:n_texts]).split()) for example in chosen]
        splits[split] = table
    if "valid" not in splits:
        raise ValueError("valid has no labels")
    return splits


# --- the numbers -----------------------------------------------------------------------------------------------------


def make_report(
    record: RunRecord, names: list[str] | None, logs: "pd.DataFrame", splits: dict[str, "pd.DataFrame"]
) -> dict:
    """Return all numbers of a run, as written to <desc>.json.

    Metrics are given for each split and each of its parts; the rest for one split, `analysed`: test if it has labels,
    else valid. Metrics, calibration errors and confidences are in %.
    """
    # the log says when the run was best, test is analysed in detail where it can be
    metric = record.metrics[0]
    best = logs.loc[logs[f"va_{metric}"].idxmax()]
    analysed = "test" if "test" in splits else "valid"
    report = {
        "desc": record.desc,
        "title": record.title,
        "form": record.form,
        "labels": names,
        "scores": record.scores,
        "metric": metric,
        "metric_title": METRICS[metric].title,
        "best_valid": {"n_updates": int(best["n_updates"]), "value": float(best[f"va_{metric}"])},
        "splits": {},
        "analysed": analysed,
        "guess": None,
    }

    # each split, and each part of one that has parts
    for split, table in splits.items():
        report["splits"][split] = {part: measure(record, rows) for part, rows in parts_of(table).items()}

    # the accuracy of random guesses on valid
    if metric == "acc":
        chances = [1 / len(probabilities) for probabilities in splits["valid"]["probabilities"]]
        report["guess"] = 100 * float(np.mean(chances))

    # one split in detail
    table = splits[analysed]
    y = table["y"].to_numpy()
    found = table["found"].to_numpy()
    n_words = table["n_words"].to_numpy()
    if record.scores:
        report["error_by_length"] = error_by_length(n_words, np.abs(found - y))
    else:
        report["accuracy_by_length"] = accuracy_by_length(n_words, found == y)
        report["confusion"] = confusion_matrix(y, found, len(names)).tolist()
        report["calibration"] = calibration(table["confidence"].to_numpy(), found == y)[1]
    report["errors"] = worst_errors(record, table)
    return report


def parts_of(table: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """Return the examples of a split, as `all`, and of each of its parts, if it has parts."""
    parts = {"all": table}
    for part in table["part"].unique():
        if part:
            parts[part] = table[table["part"] == part]
    return parts


def measure(record: RunRecord, table: "pd.DataFrame") -> dict:
    """Return count, metrics and calibration error of some examples."""
    y = table["y"].to_numpy()
    found = table["found"].to_numpy()
    measured = {"n": len(table), "metrics": intervals(record.metrics, y, found)}
    if not record.scores:
        measured["calibration_error"], _ = calibration(table["confidence"].to_numpy(), found == y)
    return measured


def worst_errors(record: RunRecord, table: "pd.DataFrame") -> list[dict]:
    """Return the wrong predictions of highest probability, or the scores that are farthest off, the worst first."""
    # what is wrong, and how much so
    columns = ["where", "label", "prediction"]
    if record.scores:
        wrong = table.assign(error=(table["found"] - table["y"]).abs())
        worst_by = "error"
        columns += ["error", "texts"]
    else:
        wrong = table[table["found"] != table["y"]]
        of_label = []
        for probabilities, y in zip(wrong["probabilities"], wrong["y"], strict=True):
            of_label.append(probabilities[y] if y < len(probabilities) else 0.0)  # a label that train lacks
        wrong = wrong.assign(confidence=100 * wrong["confidence"], probability_of_label=100 * np.array(of_label))
        worst_by = "confidence"
        columns += ["confidence", "probability_of_label", "texts"]

    # of equals the first
    worst = wrong.sort_values(worst_by, ascending=False, kind="stable")[:N_ERRORS]
    return worst[columns].rename_axis("number").reset_index().to_dict("records")


# --- writing ---------------------------------------------------------------------------------------------------------


def print_report(report: dict) -> None:
    """Print the main metric of valid and test, then each metric of each split and part with its interval."""
    # the two lines of the authors' analysis.py
    title = report["title"]
    main = report["metric_title"]
    print(f"{title} Valid {main}: {report['best_valid']['value']:.2f}")
    if "test" in report["splits"]:
        metrics = report["splits"]["test"]["all"]["metrics"]
        value = metrics[report["metric"]]["value"]
        print(f"{title} Test {main}:  {value:.2f}")

    # all metrics, a line for each split and part
    for split, parts in report["splits"].items():
        for part, measured in parts.items():
            which = split.title()
            if len(parts) > 1:
                which += f" {part}"

            found = []
            for name, values in measured["metrics"].items():
                interval = f"95 % interval {values['low']:.2f} to {values['high']:.2f}"
                found.append(f"{METRICS[name].title} {values['value']:.2f} ({interval})")
            if "calibration_error" in measured:
                error = measured["calibration_error"]
                found.append(f"expected calibration error {error:.2f}")
            print(f"{title} {which}: {', '.join(found)}; {measured['n']:,} examples")


def write_errors(errors: list[dict], path: Path) -> None:
    """Write errors as a table, one example per line, its texts separated by bars; with no errors, an empty file."""
    import pandas as pd

    lines = pd.DataFrame(errors)
    # a text may hold line ends and tabs
    if errors:
        lines["texts"] = [" ".join(" | ".join(texts).split()) for texts in lines["texts"]]

    # nothing is quoted
    table = lines.to_csv(sep="\t", index=False, float_format="%.3f", quoting=csv.QUOTE_NONE, lineterminator="\n")
    with replacing(path) as file:
        file.write(table.encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(AnalysisFlags, argv)
    return exit_code("analysis.py", partial(analyse, Path(settings.log_dir), settings.desc), "nothing is drawn")


if __name__ == "__main__":
    sys.exit(main())
