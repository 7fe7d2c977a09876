"""Log and predictions of a run -> the numbers printed and the picture drawn; from files made by hand, of every form."""

import dataclasses
import json
import re
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from helpers import refused

import analysis
from formats.examples import Example
from model_pytorch import DEFAULT_CONFIG
from reading.tasks import TASKS, Task
from running import figures
from running.figures import draw_perplexity
from running.metrics import METRICS, accuracy_by_length, calibration, confusion_matrix, error_by_length, intervals
from running.predictions import PredictedExample, read_predictions, write_predictions, write_submission

SETTINGS = {"desc": "a run", "title": "ROCStories", "form": "multiple_choice", "cut": "halves", "labels": ["1", "2"]}
SETTINGS |= {"scores": None, "metrics": ["acc"], "columns": None, "n_out": 2, "n_vocab": 100}
SETTINGS |= {"vocabulary": ["0", "1"], "n_ctx": 64, "n_ctx_allowed": 64, "n_valid": 7, "t_total": 20, "lm_coef": 0.5}
SETTINGS |= {"lr": 1e-3, "lr_schedule": "warmup_linear", "lr_warmup": 0.1} | dataclasses.asdict(DEFAULT_CONFIG)
VALUES = {"acc": (61.239, 58.0), "pearson": (20.0, 10.0), "spearman": (20.0, 10.0), "mcc": (20.0, 10.0)}
LABELS = ["2", "1", "1", "2", "2", "1", "2"]
PREDICTIONS = ["2", "1", "2", "2", "1", "1", "2"]  # five of seven


def some_logs(metrics=("acc",), n: int = 2) -> list[dict]:
    """Return the lines of a log of 10 updates each, of which the first is the best."""
    logs = []
    for i in range(n):
        line = {"n_updates": 10 * (i + 1), "costs": [0.9 - 0.2 * i] * 10, "tr_cost": 0.6, "va_cost": 0.7}
        logs.append(line | {f"{key}_{metric}": VALUES[metric][i] for metric in metrics for key in ("tr", "va")})
    return logs


def predicted(split: str, label, prediction, probabilities, texts, where: str = "data.csv, line 2", part="") -> dict:
    values = (split, part, where, label, prediction, list(probabilities), list(texts))
    return PredictedExample(*values)._asdict()


def story(split: str, label: str, prediction: str, n_words: int = 5) -> dict:
    """Return an example of Story Cloze, predicted with a confidence of 0.8."""
    probabilities = [0.8, 0.2] if prediction == "1" else [0.2, 0.8]
    return predicted(split, label, prediction, probabilities, ["w " * n_words, "first", "second"])


def lines_of(values: list[dict]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


class Run:
    """The files of a finished run, in a folder."""

    def __init__(self, folder: Path, desc: str = "a run") -> None:
        self.folder = folder
        self.path = folder / f"{desc}.predictions.jsonl"
        self.log_path = folder / f"{desc}.jsonl"

    def write_log(self, logs: list[dict] | None = None, **settings) -> None:
        logs = logs or some_logs(settings.get("metrics", ["acc"]))
        self.log_path.write_text(lines_of([SETTINGS | settings, *logs]))

    def write_examples(self, examples: list[dict]) -> None:
        self.path.write_text(lines_of(examples))

    def write_stories(self, predictions: list[str], lengths=range(4, 11)) -> None:
        test = [story("test", *values) for values in zip(LABELS, predictions, lengths, strict=True)]
        self.write_examples([story("valid", "1", "1"), *test])

    def analyse(self) -> int:
        return analysis.main(["--desc", self.log_path.stem, "--log_dir", str(self.folder)])

    def results(self, capsys) -> tuple[list[str], dict]:
        """Return the lines printed and the numbers written."""
        assert self.analyse() == 0
        return capsys.readouterr().out.splitlines(), json.loads(self.log_path.with_suffix(".json").read_text())

    def picture(self) -> np.ndarray:
        return matplotlib.image.imread(self.log_path.with_suffix(".png"))[..., :3]

    def errors(self) -> list[list[str]]:
        return [line.split("\t") for line in self.log_path.with_suffix(".errors.tsv").read_text().splitlines()]


def ink(picture: np.ndarray) -> float:
    return (picture < 0.9).any(-1).mean()


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path)
    run.write_log()
    run.write_stories(PREDICTIONS)
    return run


# --- numbers ---------------------------------------------------------------------------------------------------------


FLIPPED = [{"1": "2", "2": "1"}[label] for label in LABELS]


@pytest.mark.parametrize(
    "predictions, accuracy",
    [(PREDICTIONS, "71.43"), (LABELS, "100.00"), (FLIPPED, "0.00")],
    ids=["some", "all", "none"],
)
def test_best_valid_and_test_accuracy_are_printed(run, capsys, predictions, accuracy):
    run.write_stories(predictions)
    assert run.analyse() == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"ROCStories Valid Accuracy: 61.24\nROCStories Test Accuracy:  {accuracy}\n") and not err


def test_every_run_is_analysed_from_its_own_files(run, capsys):
    other = Run(run.folder, "v1.5")
    other.write_log(some_logs()[1:])
    other.write_stories(["2"] * 7)
    assert other.analyse() == 0
    assert capsys.readouterr().out.startswith("ROCStories Valid Accuracy: 58.00\nROCStories Test Accuracy:  57.14\n")
    assert (run.folder / "v1.5.png").exists() and not (run.folder / "a run.png").exists()


# Wilson's interval by hand, z = 1.959964: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
# For 7 of 10: z^2 / 2n = 0.192073, the root is sqrt(0.021 + 0.009604) = 0.174939, the divisor 1.384146.
@pytest.mark.parametrize(
    "right, n, low, high",
    [(7, 10, 39.678, 89.221), (0, 5, 0, 43.449), (5, 5, 56.551, 100), (50, 100, 40.383, 59.617)],
)
def test_intervals_are_wilsons(right, n, low, high):
    n_words = np.repeat(range(3, 8), n)  # five groups of one length each; the first is looked at
    first, *_ = accuracy_by_length(n_words, np.arange(5 * n) < right)
    expected = {"first": 3, "last": 3, "n": n, "accuracy": 100 * right / n, "low": low, "high": high}
    assert first == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "n_words, expected",
    [
        (np.repeat(np.arange(20, 45), 4), [(20, 24, 20), (25, 29, 20), (30, 34, 20), (35, 39, 20), (40, 44, 20)]),
        (np.array([9, 9, 9, 9, 30]), [(9, 9, 4), (30, 30, 1)]),
        (np.array([3]), [(3, 3, 1)]),
        (np.array([3] * 6), [(3, 3, 6)]),
    ],
)
def test_groups_of_length_are_of_like_size_and_hold_every_story(n_words, expected):
    n_words = np.random.default_rng(0).permutation(n_words)
    groups = accuracy_by_length(n_words, n_words < 25)
    assert [(group["first"], group["last"], group["n"]) for group in groups] == expected
    assert [group["accuracy"] for group in groups] == [100 * (group["last"] < 25) for group in groups]


def test_errors_of_scores_by_length():
    n_words, errors = np.repeat(range(1, 6), 4), np.array([0.5] * 16 + [1, 1, 3, 3])
    groups = error_by_length(n_words, errors)
    assert groups[0] == {"first": 1, "last": 1, "n": 4, "error": 0.5, "low": 0.5, "high": 0.5}
    assert groups[-1] == {"first": 5, "last": 5, "n": 4, "error": 2, "low": 2 - 0.98, "high": 2 + 0.98}  # 1.96 / 2


# --- metrics and their intervals -------------------------------------------------------------------------------------


def some_predictions(metric: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if metric in ("pearson", "spearman"):
        labels = rng.integers(0, 11, n) / 2  # with ties
        return labels, labels + rng.normal(0, 2, n).round(1)
    n_labels = 2 if metric == "f1" else 3
    labels = rng.integers(0, n_labels, n)
    return labels, np.where(rng.random(n) < 0.7, labels, rng.integers(0, n_labels, n))


def test_matthews_correlation_of_three_classes_is_scikit_learns():
    for seed in range(20):
        labels, predictions = some_predictions("mcc", 50, seed)
        assert METRICS["mcc"].of(labels, predictions) == sklearn.metrics.matthews_corrcoef(labels, predictions)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_are_those_of_scipys_bootstrap(metric):
    labels, predictions = some_predictions(metric, 60, 2)
    found = intervals([metric], labels, predictions)[metric]
    assert found == intervals([metric], labels, predictions)[metric]  # seeded
    assert found["value"] == 100 * METRICS[metric].of(labels, predictions)
    scipys = scipy.stats.bootstrap(
        (labels, predictions),
        METRICS[metric].of,
        n_resamples=1000,
        paired=True,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    np.testing.assert_allclose([found["low"], found["high"]], [100 * scipys.low, 100 * scipys.high], atol=4)


def test_intervals_of_many_examples_take_little_time():
    labels, predictions = some_predictions("mcc", 100_000, 0)
    began = time.process_time()
    found = intervals(["acc", "mcc"], labels, predictions)
    assert time.process_time() - began < 10
    assert 79.5 < found["acc"]["low"] < found["acc"]["value"] < found["acc"]["high"] < 80.5


# --- confusion and calibration ---------------------------------------------------------------------------------------


def test_the_confusion_matrix_by_hand():
    found = confusion_matrix(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 2, 1, 0, 2, 2]), 3)
    assert found.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 2]]


def test_calibration_by_hand():
    # bins 50 to 60 %: accuracy 1/2, confidence 0.55; 90 to 100 %: accuracy 2/3, confidence 0.95 (1 belongs to it)
    confidence, is_right = np.array([0.52, 0.58, 0.9, 0.95, 1.0]), np.array([True, False, True, True, False])
    error, curve = calibration(confidence, is_right)
    assert error == pytest.approx(100 * (2 * 0.05 + 3 * (0.95 - 2 / 3)) / 5)
    assert [(line["low"], line["high"], line["n"]) for line in curve] == [(50, 60, 2), (90, 100, 3)]
    assert [line["confidence"] for line in curve] == pytest.approx([55, 95])
    assert [line["accuracy"] for line in curve] == pytest.approx([50, 200 / 3])
    assert calibration(np.array([0.75, 0.95]), np.array([True, False]))[0] == pytest.approx(60)


# --- runs of every form ----------------------------------------------------------------------------------------------


def numbers(lines: list[str]) -> list[float]:
    return [float(number) for line in lines for number in re.findall(r"-?\d+\.\d\d\b", line)]


@pytest.mark.pictures
def test_classes_have_confusion_calibration_and_errors_and_the_json_holds_what_is_printed(run, capsys):
    labels = ["$a$ b", "ja", "no"]  # dollar signs are no mathematics
    run.write_log(title="Own data", form="classification", labels=labels)
    valid = [predicted("valid", label, label, np.eye(3)[i] * 0.7 + 0.1, ["x y"]) for i, label in enumerate(labels)]
    # always the second label, the more confident the longer the text
    confidence = 0.4 + np.arange(30) / 60
    test = []
    for i, p in enumerate(confidence.tolist()):
        probabilities = [(1 - p) / 4, p, 3 * (1 - p) / 4]
        texts = ["word " * (i + 1) + "\tend"]
        test.append(predicted("test", labels[(i + 1) % 3], "ja", probabilities, texts, f"test.jsonl, line {i + 1}"))
    run.write_examples(valid + test)
    lines, report = run.results(capsys)
    assert ink(run.picture()) > 0.01

    assert lines[:2] == ["Own data Valid Accuracy: 61.24", "Own data Test Accuracy:  33.33"]
    assert lines[2] == (
        "Own data Valid: Accuracy 100.00 (95 % interval 100.00 to 100.00), expected calibration error 20.00; 3 examples"
    )
    assert lines[3].startswith("Own data Test: Accuracy 33.33 (95 % interval ") and "; 30 examples" in lines[3]
    assert lines[4].startswith("Own data Test: picture ") and len(lines) == 5
    assert all(str(run.folder / f"a run.{suffix}") in lines[4] for suffix in ("png", "json", "errors.tsv"))
    held = [report["best_valid"]["value"], report["splits"]["test"]["all"]["metrics"]["acc"]["value"]]
    for split in ("valid", "test"):
        found = report["splits"][split]["all"]
        held += [*found["metrics"]["acc"].values(), found["calibration_error"]]
    assert numbers(lines) == [pytest.approx(value, abs=0.005001) for value in held]

    assert report["analysed"] == "test" and report["labels"] == labels and report["guess"] == pytest.approx(100 / 3)
    assert report["confusion"] == [[0, 10, 0], [0, 10, 0], [0, 10, 0]]
    error, curve = calibration(confidence, np.arange(1, 31) % 3 == 1)
    assert report["calibration"] == curve and report["splits"]["test"]["all"]["calibration_error"] == error
    assert sum(group["n"] for group in report["accuracy_by_length"]) == 30

    wrong = [i for i in reversed(range(30)) if (i + 1) % 3 != 1]
    assert [line["number"] for line in report["errors"]] == wrong  # 20, the most confident first
    head, first, *_ = run.errors()
    assert head == ["number", "where", "label", "prediction", "confidence", "probability_of_label", "texts"]
    text = " ".join(["word"] * 30 + ["end"])
    assert first == ["29", "test.jsonl, line 30", "$a$ b", "ja", "88.333", "2.917", text] and len(run.errors()) == 21


def test_a_test_set_without_labels_leaves_valid_to_be_analysed(run, capsys):
    run.write_log(title="Own data", form="entailment", labels=["no", "yes"], lm_coef=0)
    valid = []
    for label, p in (("yes", 0.6), ("no", 0.1), ("yes", 0.2), ("yes", 0.7)):
        valid.append(predicted("valid", label, "yes" if p > 0.5 else "no", [1 - p, p], ["a b", "c"]))
    run.write_examples([*valid, *[predicted("test", None, "no", [1.0, 0.0], ["a", "b"])] * 2])
    lines, report = run.results(capsys)
    assert lines[0] == "Own data Valid Accuracy: 61.24" and lines[1].startswith("Own data Valid: Accuracy 75.00 (95 %")
    assert not any(" Test" in line for line in lines)
    assert report["analysed"] == "valid" and list(report["splits"]) == ["valid"]
    assert report["confusion"] == [[1, 0], [1, 2]] and report["accuracy_by_length"][0]["first"] == 3
    assert [(line["number"], line["texts"]) for line in report["errors"]] == [(2, ["a b", "c"])]


@pytest.mark.pictures
def test_scores_have_correlations_a_scatter_and_the_largest_errors(run, capsys):
    metrics = ["pearson", "spearman"]
    run.write_log(title="Own data", form="similarity", labels=[], scores=[0, 4], metrics=metrics)
    scores = np.array([0, 4, *range(5), *range(5)] * 3, float)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(6), len(scores))
    expected = probabilities @ np.linspace(0, 4, 6)
    examples = []
    for i, score in enumerate(scores.tolist()):
        texts = ["a " * (i % 7 + 1), "b"]
        examples.append(predicted("test", score, float(expected[i]), probabilities[i], texts))
    run.write_examples([example | {"split": "valid"} for example in examples[:3]] + examples)
    lines, report = run.results(capsys)
    assert ink(run.picture()) > 0.01

    pearson = scipy.stats.pearsonr(scores, expected).statistic * 100
    spearman = scipy.stats.spearmanr(scores, expected).statistic * 100
    assert lines[:2] == ["Own data Valid Pearson: 20.00", f"Own data Test Pearson:  {pearson:.2f}"]
    assert f"Test: Pearson {pearson:.2f} (95 % interval " in lines[3] and f"Spearman {spearman:.2f} (" in lines[3]
    assert report["scores"] == [0, 4] and report["guess"] is report["labels"] is None
    assert not report.keys() & {"confusion", "calibration", "accuracy_by_length"}
    assert report["splits"]["test"]["all"].keys() == {"n", "metrics"}
    errors = [line["error"] for line in report["errors"]]
    assert errors == sorted(np.abs(expected - scores), reverse=True)[:20]
    assert run.errors()[0] == ["number", "where", "label", "prediction", "error", "texts"]
    assert sum(group["n"] for group in report["error_by_length"]) == len(scores)


def test_similarity_with_classes_and_another_main_metric(run, capsys):
    run.write_log(title="MRPC", form="similarity", labels=["0", "1"], metrics=["mcc", "acc"])
    pairs = [("0", "0"), ("0", "1"), ("1", "1"), ("1", "1")]
    run.write_examples([predicted("valid", y, z, [0.5, 0.5], ["a", "b"]) for y, z in pairs])
    lines, report = run.results(capsys)
    assert lines[0] == "MRPC Valid Matthews: 20.00" and "Valid: Matthews 57.74 (" in lines[1]
    assert ", Accuracy 75.00 (95 % interval " in lines[1] and report["guess"] is None


@pytest.mark.pictures
def test_choices_of_different_numbers_even_of_more_than_in_training(run, capsys):
    run.write_log(title="Own data", labels=["1", "2", "3"])

    def chosen(split: str, label: str, probabilities: list[float]) -> dict:
        choices = ["c" * (i + 1) for i in range(len(probabilities))]
        prediction = str(1 + int(np.argmax(probabilities)))
        return predicted(split, label, prediction, probabilities, ["a b c", *choices])

    valid = [chosen("valid", "3", [0.2, 0.2, 0.6]), chosen("valid", "2", [0.1, 0.9])]
    test = [("2", [0.7, 0.3]), ("4", [0.1, 0.2, 0.1, 0.6]), ("3", [0.0, 0.9, 0.1]), ("4", [0.1, 0.1, 0.1, 0.7])]
    run.write_examples(valid + [chosen("test", *values) for values in test])
    lines, report = run.results(capsys)
    assert ink(run.picture()) > 0.01
    assert lines[1] == "Own data Test Accuracy:  50.00"
    assert report["labels"] == ["1", "2", "3", "4"] and report["guess"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    assert report["confusion"] == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2]]
    found = [(line["number"], line["label"], line["prediction"]) for line in report["errors"]]
    assert found == [(2, "3", "2"), (0, "2", "1")] and report["accuracy_by_length"][0]["last"] == 3
    assert run.errors()[1][-1] == "a b c | c | cc | ccc"


def test_parts_are_reported_each_and_together(run, capsys):
    run.write_log(title="RACE", form="reading", labels=["A", "B", "C", "D"])
    # right are 1 of 2 of middle and 2 of 3 of high
    examples = []
    for part, right in (("middle", True), ("middle", False), ("high", True), ("high", True), ("high", False)):
        probabilities = [0.1, 0.1, 0.7, 0.1] if right else [0.1, 0.1, 0.2, 0.6]
        texts = ["an article", "a question", *"wxyz"]
        where = f"dev/{part}/{len(examples)}.txt, question 1"
        examples.append(predicted("valid", "C", "C" if right else "D", probabilities, texts, where, part))
    run.write_examples(examples)
    lines, report = run.results(capsys)
    assert lines[0] == "RACE Valid Accuracy: 61.24"
    assert [line.split(" (")[0] for line in lines[1:4]] == [
        "RACE Valid all: Accuracy 60.00", "RACE Valid middle: Accuracy 50.00", "RACE Valid high: Accuracy 66.67"
    ]  # fmt: skip
    assert [line.split("; ")[1] for line in lines[1:4]] == ["5 examples", "2 examples", "3 examples"]
    parts = report["splits"]["valid"]
    assert [measured["metrics"]["acc"]["value"] for measured in parts.values()] == pytest.approx([60, 50, 200 / 3])
    assert parts["middle"]["calibration_error"] == pytest.approx((30 + 60) / 2)
    assert [line["where"][:8] for line in report["errors"]] == ["dev/midd", "dev/high"]
    assert report["accuracy_by_length"][0]["first"] == 4  # of article and question


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths, n_logs",
    [
        (range(4, 11), 2),
        pytest.param([5] * 7, 2, marks=pytest.mark.slow),
        ([4, 4, 4, 4, 4, 4, 90], 1),
    ],
    ids=["some lengths", "one length", "two lengths and one log"],
)
@pytest.mark.pictures
def test_a_picture_is_drawn_with_six_panels(run, lengths, n_logs):
    run.write_stories(PREDICTIONS, lengths)
    run.write_log(some_logs(n=n_logs))
    assert run.analyse() == 0
    for rows in np.array_split(run.picture(), 2):
        for panel in np.array_split(rows, 3, axis=1):
            assert ink(panel) > 0.01


def test_the_picture_shows_the_files(run, monkeypatch):
    def save_small(figure, path):
        figure.set_layout_engine("none")
        figure.savefig(path, dpi=30)

    monkeypatch.setattr(figures, "save", save_small)
    other_costs = some_logs()
    other_costs[1]["costs"][5] = 3.0
    pictures = []
    for logs, predictions in (
        (some_logs(), PREDICTIONS),
        (some_logs(n=1), PREDICTIONS),
        (other_costs, PREDICTIONS),
        (some_logs(), LABELS),
    ):
        run.write_log(logs)
        run.write_stories(predictions)
        assert run.analyse() == 0
        pictures.append(run.picture())
    assert not any(np.array_equal(pictures[0], other) for other in pictures[1:])


@pytest.mark.pictures
def test_perplexities_of_pre_training_are_drawn(tmp_path):
    logs = [{"n_updates": n, "tr_ppl": 9.0 / n, "va_ppl": 10.0 / n} for n in (1, 2)]
    draw_perplexity("text", logs, tmp_path / "text.png")
    assert ink(matplotlib.image.imread(tmp_path / "text.png")[..., :3]) > 0.01


# --- bad files -------------------------------------------------------------------------------------------------------


GOOD = story("valid", "1", "1")
BAD_FILES = {
    "no log": ("jsonl", None, ["a run.jsonl is missing", "--log_dir"]),
    "empty log": ("jsonl", "", ["a run.jsonl", "not the log"]),
    "settings alone": ("jsonl", json.dumps(SETTINGS), ["a run.jsonl", "not of a run's log"]),
    "log of other things": ("jsonl", lines_of([SETTINGS, {"loss": 1}]), ["a run.jsonl", "not of a run's log"]),
    "log of a list": ("jsonl", "[]\n", ["a run.jsonl is not the settings"]),
    "log that is no JSON": ("jsonl", "{", ["a run.jsonl", "not the log"]),
    "log that is no text": ("jsonl", b"\x00\xff\xfe\x80", ["a run.jsonl", "not the log"]),
    "log without settings": ("jsonl", lines_of(some_logs()), ["a run.jsonl is not the settings", "is missing"]),
    "no predictions": ("predictions.jsonl", None, ["a run.predictions.jsonl is missing", "--submit"]),
    "empty predictions": ("predictions.jsonl", "", ["a run.predictions.jsonl holds no predictions", "--submit"]),
    "a cut line": ("predictions.jsonl", json.dumps(GOOD) + '\n{"split": "tes', ["predictions.jsonl, line 2: not"]),
    "predictions that are no text": ("predictions.jsonl", b"\x00\xff\xfe\x80", ["predictions.jsonl, line 1: not"]),
    "a line of other things": ("predictions.jsonl", lines_of([GOOD, {"loss": 1}]), ["predictions.jsonl, line 2: not"]),
    "a list": ("predictions.jsonl", "[]\n", ["predictions.jsonl, line 1: not"]),
    "texts that are none": ("predictions.jsonl", lines_of([GOOD | {"texts": [1]}]), ["line 1: not", "a text"]),
    "no probabilities": ("predictions.jsonl", lines_of([GOOD | {"probabilities": []}]), ["line 1: not", "probability"]),
    "another label": ("predictions.jsonl", lines_of([GOOD | {"label": "7"}]), ["does not belong to the log", "'7'"]),
    "another prediction": ("predictions.jsonl", lines_of([GOOD | {"prediction": "x"}]), ["does not belong", "'x'"]),
    "no labels": ("predictions.jsonl", lines_of([GOOD | {"label": None}]), ["valid has no labels"]),
}


@pytest.mark.parametrize("suffix, content, named", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_and_nothing_is_drawn(run, capsys, suffix, content, named):
    path = run.folder / f"a run.{suffix}"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(lambda _: run.analyse(), [], capsys)
    assert message.startswith("analysis.py: error: ")
    assert all(part in message for part in named), message
    assert not (run.folder / "a run.png").exists()


# --- what a run writes -----------------------------------------------------------------------------------------------


class SomeRows:
    """Examples with labels as numbers, as Rows has them."""

    def __init__(self, texts: list[tuple[str, ...]], labels: list | None) -> None:
        self.examples = [Example(of_one, None, f"data.csv, line {i + 2}") for i, of_one in enumerate(texts)]
        self.labels = None if labels is None else np.array(labels)

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, i: int) -> Example:
        return self.examples[i]


def some_task(form: str, labels, shown=None, written=None, scores=None, submission=None) -> Task:
    changed = {"form": form, "labels": labels, "shown": shown, "written": written, "scores": scores}
    return dataclasses.replace(TASKS["rocstories"], submission=submission, **changed)


TEXTS = {"classification": 1, "entailment": 2, "similarity": 2, "multiple_choice": 1, "reading": 2}
LOGITS = [[0.1, 2.0, -1.0, 0.3], [1.0, 0.5, 0.25, 4.0], [9.0, 3.0, 8.0, 7.0]]


@pytest.mark.parametrize("form", TEXTS)
def test_what_is_written_is_read_again_in_the_words_of_the_official_files(tmp_path, form):
    task = some_task(form, ("1", "2", "3", "4"), ("A", "B", "C", "D"), ("0", "1", "2", "3"))
    texts = [("a",) * TEXTS[form]] * 3
    if form in ("multiple_choice", "reading"):
        texts = [of_one + tuple("wxyz") for of_one in texts]
    logits = torch.tensor(LOGITS)
    valid, test = SomeRows(texts, [1, 0, 0]), SomeRows(texts[:2], None)
    path = tmp_path / "run.predictions.jsonl"
    splits = {"valid": (valid, logits), "test": (test, logits[:2])}
    parts = {"valid": (("middle", 1), ("high", 2)), "test": (("", 2),)}
    write_predictions(path, task, splits, parts)

    found = read_predictions(path)
    assert [example.split for example in found] == ["valid"] * 3 + ["test"] * 2
    assert [example.part for example in found] == ["middle", "high", "high", "", ""]
    assert [example.label for example in found] == ["B", "A", "A", None, None]
    assert [example.prediction for example in found] == ["B", "D", "A", "B", "D"]
    assert [example.where for example in found][:4:3] == ["data.csv, line 2"] * 2
    assert found[0].texts == list(texts[0])
    exact = logits.double().softmax(1).tolist()  # every digit
    assert [example.probabilities for example in found] == exact + exact[:2]


def test_examples_with_fewer_and_with_more_choices_than_training_had(tmp_path):
    task = some_task("multiple_choice", ("1", "2"), ("A", "B"))
    rows = SomeRows([("a", "w", "x"), ("a", "w", "x", "y")], [0, 2])
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 0.0, 2.0]])
    write_predictions(tmp_path / "run", task, {"valid": (rows, logits)}, {"valid": (("", 2),)})
    first, second = read_predictions(tmp_path / "run")
    assert (first.label, first.prediction, len(first.probabilities)) == ("A", "B", 2)
    assert (second.label, second.prediction, len(second.probabilities)) == ("3", "3", 3)
    assert sum(first.probabilities) == pytest.approx(1)


def test_scores_are_written_as_numbers(tmp_path):
    task = some_task("similarity", None, scores=(0.0, 5.0))
    logits = torch.tensor([[0.0, 0, 0, 0, 0, 20.0], [1.0, 2, 3, 3, 2, 1]])
    rows = SomeRows([("a", "b")] * 2, [4.75, 0.0])
    write_predictions(tmp_path / "run", task, {"valid": (rows, logits)}, {"valid": (("", 2),)})
    first, second = read_predictions(tmp_path / "run")
    assert (first.label, second.label) == (4.75, 0.0)
    assert first.prediction == pytest.approx(5, abs=1e-6) and second.prediction == pytest.approx(2.5)
    assert len(first.probabilities) == 6


def test_a_file_of_predictions_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "run").write_text("precious")
    rows = SomeRows([("a",)], [0])
    rows.example = lambda i: 1 // 0
    with pytest.raises(ZeroDivisionError):
        task = some_task("classification", ("no", "yes"))
        write_predictions(tmp_path / "run", task, {"valid": (rows, torch.zeros(1, 2))}, {"valid": (("", 1),)})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "task, found, written",
    [
        (some_task("multiple_choice", ("1", "2"), written=("0", "1")), [1, 0, 2], ["1", "0", "2"]),
        (some_task("reading", ("1", "2", "3", "4"), ("A", "B", "C", "D")), [3, 0, 1], ["D", "A", "B"]),
        (some_task("entailment", ("no", "yes")), [1, 1, 0], ["yes", "yes", "no"]),
        (some_task("similarity", None, scores=(0, 5)), [0.12345, 5.0, 2.0], ["0.123", "5.000", "2.000"]),
    ],
)
def test_each_part_of_test_is_handed_in_as_a_table(tmp_path, task, found, written):
    task = dataclasses.replace(task, submission={"a": "A.tsv", "b": "B.tsv"})
    write_submission(tmp_path, task, (("a", 2), ("b", 1)), np.array(found))
    first, second, third = written
    assert (tmp_path / "A.tsv").read_bytes() == f"index\tprediction\n0\t{first}\n1\t{second}\n".encode()
    assert (tmp_path / "B.tsv").read_bytes() == f"index\tprediction\n0\t{third}\n".encode()


def test_a_flag_is_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        analysis.main(["--des", "x"])
    assert "unrecognized arguments: --des" in capsys.readouterr().err
