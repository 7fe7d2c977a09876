"""Logs and predictions -> the numbers printed and the picture drawn, from files made by hand."""

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import scipy.stats

import analysis
from formats.files import InputError, sha256
from loss import METRICS
from reading.splits import read_splits, read_texts
from reading.tasks import ROCSTORIES_TEST, ROCSTORIES_VALID, find_task
from running.inference import written_answers
from running.metrics import ON_COUNTS, calibration, confusion_matrix, error_by_length, intervals
from running.results import accuracy_by_length, draw_perplexity
from text_utils import TextEncoder

SETTINGS = dict(desc="a run", t_total=20, n_valid=7, lr_schedule="warmup_linear", lr=1e-3, lr_warmup=0.1)
LOGS = [
    dict(n_epochs=1, n_updates=10, tr_cost=0.6, va_cost=0.7, tr_acc=70.0, va_acc=61.239),
    dict(n_epochs=2, n_updates=20, tr_cost=0.4, va_cost=0.8, tr_acc=90.0, va_acc=58.0),
]
LABELS = [1, 0, 0, 1, 1, 0, 1]
PREDICTIONS = [1, 0, 1, 1, 0, 0, 1]  # five of seven


class Run:
    """A finished run and its data set in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write_stories(ROCSTORIES_VALID, [5] * 9, [0] * 9)  # of which n_valid are held out
        self.write_test(range(4, 4 + len(LABELS)))
        self.write_log("a run", [SETTINGS, *LOGS])
        self.write_predictions("a run", PREDICTIONS)

    def write_test(self, lengths) -> None:
        """Write stories of these numbers of words."""
        self.write_stories(ROCSTORIES_TEST, lengths, LABELS)

    def write_stories(self, name: str, lengths, labels) -> None:
        lines = [
            f"id,{'w ' * (n - 3)},x,y,z,first,second,{label + 1}" for n, label in zip(lengths, labels, strict=True)
        ]
        (self.folder / name).write_text("\n".join(["header", *lines]))

    def write_log(self, desc: str, lines: list) -> None:
        (self.folder / f"{desc}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write_predictions(self, desc: str, predictions: list) -> None:
        lines = [f"{i}\t{prediction}\n" for i, prediction in enumerate(predictions)]
        (self.folder / f"{desc}.tsv").write_text("index\tprediction\n" + "".join(lines))

    def analyse(self, desc: str = "a run") -> int:
        return analysis.main(["--desc", desc, "--data_dir", str(self.folder), "--log_dir", str(self.folder)])

    def picture(self, desc: str = "a run") -> np.ndarray:
        return matplotlib.image.imread(self.folder / f"{desc}.png")


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_best_valid_and_test_accuracy_are_printed(run, capsys):
    assert run.analyse() == 0
    assert capsys.readouterr() == ("ROCStories Valid Accuracy: 61.24\nROCStories Test Accuracy:  71.43\n", "")


@pytest.mark.parametrize("predictions, accuracy", [(LABELS, "100.00"), ([1 - y for y in LABELS], "0.00")])
def test_accuracy_of_all_right_and_all_wrong(run, capsys, predictions, accuracy):
    run.write_predictions("a run", predictions)
    assert run.analyse() == 0
    assert f"Test Accuracy:  {accuracy}\n" in capsys.readouterr().out


def test_every_run_is_analysed_from_its_own_files(run, capsys):
    run.write_log("v1.5", [SETTINGS, LOGS[1]])
    run.write_predictions("v1.5", [1] * 7)
    assert run.analyse("v1.5") == 0
    assert capsys.readouterr().out == "ROCStories Valid Accuracy: 58.00\nROCStories Test Accuracy:  57.14\n"
    assert (run.folder / "v1.5.png").exists() and not (run.folder / "a run.png").exists()


# Wilson's interval by hand, z = 1.959964: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
# For 7 of 10: z^2 / 2n = 0.192073, the root is sqrt(0.021 + 0.009604) = 0.174939, the divisor 1.384146.
@pytest.mark.parametrize(
    "right, n, low, high",
    [(7, 10, 39.678, 89.221), (0, 5, 0, 43.449), (5, 5, 56.551, 100), (50, 100, 40.383, 59.617)],
)
def test_intervals_are_wilsons(right, n, low, high):
    lengths = np.repeat(range(3, 8), n)  # five groups of one length each; the first is looked at
    is_right = np.arange(5 * n) < right
    first = accuracy_by_length(["w " * k for k in lengths], is_right).iloc[0]
    assert first[["first", "last", "n"]].tolist() == [3, 3, n]
    np.testing.assert_allclose(
        first[["accuracy", "low", "high"]].astype(float), [100 * right / n, low, high], atol=2e-3
    )


def test_groups_of_length_are_of_like_size_and_hold_every_story():
    lengths = np.random.default_rng(0).permutation(np.repeat(np.arange(20, 45), 4))  # four stories of each length
    table = accuracy_by_length([" ".join("w" * n) for n in lengths], lengths < 25)
    assert table[["first", "last", "n", "accuracy"]].to_numpy().tolist() == [
        [20, 24, 20, 100], [25, 29, 20, 0], [30, 34, 20, 0], [35, 39, 20, 0], [40, 44, 20, 0]
    ]  # fmt: skip
    few = accuracy_by_length([" ".join("w" * n) for n in (9, 9, 9, 9, 30)], np.array([True] * 5))
    assert few[["first", "last", "n"]].to_numpy().tolist() == [[9, 9, 4], [30, 30, 1]]


@pytest.mark.parametrize("n", [1, 6])
def test_stories_of_one_length_are_one_group(n):
    table = accuracy_by_length(["a b c"] * n, np.array([True] * n))
    assert table[["first", "last", "n"]].to_numpy().tolist() == [[3, 3, n]]


# --- metrics and their intervals -------------------------------------------------------------------------------------


def some_predictions(metric: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if metric in ("pearson", "spearman"):
        labels = rng.integers(0, 11, n) / 2  # with ties
        return labels, labels + rng.normal(0, 2, n).round(1)
    n_labels = 2 if metric == "f1" else 3
    labels = rng.integers(0, n_labels, n)
    return labels, np.where(rng.random(n) < 0.7, labels, rng.integers(0, n_labels, n))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_on_counts_are_those_of_the_resampled_examples(metric, constant):
    labels, predictions = some_predictions(metric, 40, 0)
    if constant:
        predictions = np.full_like(predictions, 0)
    which = np.random.default_rng(1).integers(0, 40, (20, 40))
    which[0], which[1] = 3, np.arange(40)  # one example 40 times; each once
    counts = np.stack([np.bincount(resample, minlength=40) for resample in which])
    expected = [METRICS[metric].of(labels[resample], predictions[resample]) for resample in which]
    np.testing.assert_allclose(ON_COUNTS[metric](labels, predictions, counts), expected, atol=1e-12)


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


def test_intervals_cover_the_true_accuracy():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        found = intervals(["acc"], np.ones(100, int), (rng.random(100) < 0.8).astype(int))["acc"]
        covered += found["low"] <= 80 <= found["high"]
    assert 0.89 < covered / 200 < 0.99


def test_intervals_of_many_examples_take_little_time_and_memory():
    labels, predictions = some_predictions("mcc", 400_000, 0)
    found = intervals(["acc", "mcc"], labels, predictions)
    assert 79.7 < found["acc"]["low"] < found["acc"]["value"] < found["acc"]["high"] < 80.3


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


def test_errors_of_scores_by_length():
    table = error_by_length(["a"] * 4 + ["a b c"] * 4, np.array([0.5, 0.5, 0.5, 0.5, 1, 1, 3, 3]), n_bins=2)
    assert table[["first", "last", "n", "error"]].to_numpy().tolist() == [[1, 1, 4, 0.5], [3, 3, 4, 2]]
    assert table[["low", "high"]].to_numpy().tolist() == [[0.5, 0.5], [2 - 0.98, 2 + 0.98]]  # 1.96 * 1 / sqrt(4)


# --- runs of every form ----------------------------------------------------------------------------------------------


class AnyRun:
    """A finished run on any data set, its files written by hand."""

    def __init__(self, folder: Path, dataset: str = "own", metrics=("acc",), **settings) -> None:
        self.folder, names = folder, [f"{key}_{metric}" for metric in metrics for key in ("tr", "va")]
        logs = [dict(n_updates=n, tr_cost=0.5, va_cost=0.6, **dict.fromkeys(names, 10.0 * n)) for n in (1, 2)]
        lines = [SETTINGS | {"desc": "any", "dataset": dataset, "seed": 1} | settings, *logs]
        (folder / "any.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(self, split: str, examples: list[dict]) -> None:
        (self.folder / f"{split}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))

    def predict(self, split: str, probabilities, written: list[str] | None = None) -> None:
        np.save(self.folder / f"any.{split}.npy", np.array(probabilities))
        if written:
            lines = ["index\tprediction", *(f"{i}\t{text}" for i, text in enumerate(written))]
            (self.folder / "any.tsv").write_text("\n".join(lines) + "\n")

    def analyse(self) -> tuple[list[str], dict]:
        """Return the lines printed and the numbers written."""
        flags = ["--desc", "any", "--data_dir", str(self.folder), "--log_dir", str(self.folder)]
        assert analysis.main(flags) == 0
        assert (matplotlib.image.imread(self.folder / "any.png")[..., :3] < 0.9).any(-1).mean() > 0.01
        return self.capsys.readouterr().out.splitlines(), json.loads((self.folder / "any.json").read_text())

    def table(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.folder / "any.errors.tsv").read_text().splitlines()]


@pytest.fixture
def any_run(tmp_path, capsys):
    AnyRun.capsys = capsys
    return lambda *args, **settings: AnyRun(tmp_path, *args, **settings)


def numbers(lines: list[str]) -> list[float]:
    return [float(number) for line in lines for number in re.findall(r"-?\d+\.\d\d\b", line)]


def test_classes_have_confusion_calibration_and_errors_and_the_json_holds_what_is_printed(any_run):
    run = any_run(task="classification", columns="text=review")
    labels = ["$a$ b", "ja", "no"]  # dollar signs are no mathematics
    train = [{"review": "x y", "label": label} for label in labels]
    test = [{"review": "word " * n + "\tend", "label": labels[n % 3]} for n in range(1, 31)]
    for split, examples in (("train", train), ("valid", train), ("test", test)):
        run.write(split, examples)
    run.predict("valid", np.eye(3) * 0.7 + 0.1)
    # always the second label, the more confident the longer the text
    confidence = 0.4 + np.arange(30) / 60
    probabilities = np.stack([(1 - confidence) / 4, confidence, 3 * (1 - confidence) / 4], 1)
    run.predict("test", probabilities, ["ja"] * 30)
    lines, report = run.analyse()

    assert lines[:2] == ["Own data Valid Accuracy: 20.00", "Own data Test Accuracy:  33.33"]
    assert lines[2] == (
        "Own data Valid: Accuracy 100.00 (95 % interval 100.00 to 100.00), expected calibration error 20.00; 3 examples"
    )
    assert lines[3].startswith("Own data Test: Accuracy 33.33 (95 % interval ") and "; 30 examples" in lines[3]
    assert lines[4].startswith("Own data Test: picture ") and len(lines) == 5
    assert all(str(run.folder / f"any.{suffix}") in lines[4] for suffix in ("png", "json", "errors.tsv"))
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
    head, first, *_ = run.table()
    assert head == ["number", "where", "label", "prediction", "confidence", "probability_of_label", "texts"]
    where, text = str(run.folder / "test.jsonl") + ", line 30", " ".join(["word"] * 30 + ["end"])
    assert first == ["29", where, "$a$ b", "ja", "88.333", "2.917", text] and len(run.table()) == 21


def test_a_test_set_without_labels_leaves_valid_to_be_analysed(any_run):
    run = any_run(task="entailment")
    examples = [{"premise": "a b", "hypothesis": "c", "label": label} for label in ("yes", "no", "yes", "yes")]
    for split in ("train", "valid"):
        run.write(split, examples)
    run.write("test", [{"premise": "a", "hypothesis": "b"}] * 2)
    run.predict("valid", [[0.4, 0.6], [0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])  # of no, yes
    run.predict("test", [[1, 0]] * 2, ["no"] * 2)
    lines, report = run.analyse()
    assert lines[0] == "Own data Valid Accuracy: 20.00" and lines[1].startswith("Own data Valid: Accuracy 75.00 (95 %")
    assert not any(" Test" in line for line in lines)
    assert report["analysed"] == "valid" and list(report["splits"]) == ["valid"]
    assert report["confusion"] == [[1, 0], [1, 2]] and report["accuracy_by_length"][0]["first"] == 3
    assert [(line["number"], line["texts"]) for line in report["errors"]] == [(2, ["a b", "c"])]


def test_scores_have_correlations_a_scatter_and_the_largest_errors(any_run):
    run = any_run(task="similarity", metrics=("pearson", "spearman"))
    rng, scores = np.random.default_rng(0), [0, 4, *range(5), *range(5)] * 3
    for split in ("train", "test"):
        run.write(split, [{"text_a": "a " * (i % 7 + 1), "text_b": "b", "label": y} for i, y in enumerate(scores)])
    probabilities = rng.dirichlet(np.ones(6), len(scores))
    expected = probabilities @ np.linspace(0, 4, 6)
    run.predict("valid", probabilities[:3])  # a tenth of train is held out
    run.predict("test", probabilities, [f"{score:.3f}" for score in expected])
    lines, report = run.analyse()

    pearson = scipy.stats.pearsonr(scores, expected.round(3)).statistic * 100
    spearman = scipy.stats.spearmanr(scores, expected.round(3)).statistic * 100
    assert lines[:2] == ["Own data Valid Pearson: 20.00", f"Own data Test Pearson:  {pearson:.2f}"]
    assert f"Test: Pearson {pearson:.2f} (95 % interval " in lines[3] and f"Spearman {spearman:.2f} (" in lines[3]
    assert report["scores"] == [0, 4] and report["guess"] is None
    assert not report.keys() & {"confusion", "calibration", "accuracy_by_length"}
    assert report["splits"]["test"]["all"].keys() == {"n", "metrics"}
    errors = [line["error"] for line in report["errors"]]
    assert errors == sorted(np.abs(expected.round(3) - scores), reverse=True)[:20]
    assert sum(group["n"] for group in report["error_by_length"]) == len(scores)


def test_choices_of_different_numbers_even_of_more_than_in_training(any_run):
    run = any_run(task="multiple_choice")
    for split, n_choices in (("train", [2, 3]), ("valid", [3, 2]), ("test", [2, 4, 3, 4])):
        choices = [["c" * (i + 1) for i in range(n)] for n in n_choices]
        run.write(split, [{"context": "a b c", "choices": c, "label": len(c)} for c in choices])
    run.predict("valid", [[0.2, 0.2, 0.6], [0.1, 0.9, 0]])
    probabilities = [[0.7, 0.3, 0, 0], [0.1, 0.2, 0.1, 0.6], [0, 0.9, 0.1, 0], [0.1, 0.1, 0.1, 0.7]]
    run.predict("test", probabilities, written_answers(np.array([0, 3, 1, 3]), ["1", "2", "3"], None))
    lines, report = run.analyse()
    assert lines[1] == "Own data Test Accuracy:  50.00"
    assert report["labels"] == ["1", "2", "3", "4"] and report["guess"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    assert report["confusion"] == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2]]
    found = [(line["number"], line["label"], line["prediction"]) for line in report["errors"]]
    assert found == [(2, "3", "2"), (0, "2", "1")]
    assert run.table()[1][-1] == "a b c | c | cc | ccc"


def write_mnli(folder: Path) -> None:
    """Write the columns that are read; the matched dev set has a short line and an unknown label."""
    for name, labels in (
        ("train", ["neutral"]),
        ("dev_matched", ["neutral", "-", None, "entailment"]),
        ("dev_mismatched", ["neutral", "contradiction", "neutral"]),
        ("test_matched", ["", ""]),
        ("test_mismatched", [""]),
    ):
        head = "\t".join([*"01234567", "sentence1", "sentence2"] + ["gold_label"] * (labels[0] != ""))
        lines = [
            "short" if y is None else "\t".join(["x"] * 8 + [f"{name} {i}", "hyp", y]) for i, y in enumerate(labels)
        ]
        (folder / f"{name}.tsv").write_text("\n".join([head, *lines]) + "\n")


def test_parts_are_reported_each_and_together_and_bad_lines_are_left_out(any_run):
    run = any_run("mnli")
    write_mnli(run.folder)
    # entailment, neutral, contradiction: right are 1 of 2 matched and 2 of 3 mismatched
    right, wrong = [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]
    run.predict("valid", [right, wrong, right, right, right])
    lines, report = run.analyse()
    assert lines[0] == "MNLI Valid Accuracy: 20.00"
    assert [line.split(" (")[0] for line in lines[1:4]] == [
        "MNLI Valid all: Accuracy 60.00", "MNLI Valid matched: Accuracy 50.00", "MNLI Valid mismatched: Accuracy 66.67"
    ]  # fmt: skip
    assert [line.split("; ")[1] for line in lines[1:4]] == ["5 examples", "2 examples", "3 examples"]
    parts = report["splits"]["valid"]
    assert [numbers["metrics"]["acc"]["value"] for numbers in parts.values()] == pytest.approx([60, 50, 200 / 3])
    assert parts["matched"]["calibration_error"] == pytest.approx((20 + 60) / 2)
    where = [(line["where"].rsplit("/")[-1], line["texts"][0]) for line in report["errors"]]
    assert where == [("dev_mismatched.tsv, line 3", "dev_mismatched 1"), ("dev_matched.tsv, line 5", "dev_matched 3")]


@pytest.mark.parametrize("max_examples", [None, 30])
@pytest.mark.parametrize("scores", [False, True])
def test_texts_and_labels_are_in_the_order_of_the_rows(tmp_path, model_dir, scores, max_examples):
    rng, names = np.random.default_rng(0), ["text_a", "text_b", "label"]
    for split in ("train", "test"):
        labels = rng.integers(0, 5, 60).tolist() if scores else rng.choice(["yes", "no"], 60).tolist()
        rows = [dict(zip(names, (f"{split} {i}", f"{i} x", label), strict=True)) for i, label in enumerate(labels)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vocabulary = model_dir / "encoder_bpe_40000.json", model_dir / "vocab_40000.bpe"
    encoder, task = TextEncoder(*vocabulary), find_task("own", tmp_path, "similarity")
    options = dict(n_valid=7, seed=5, max_examples=max_examples)
    splits = read_splits(task, tmp_path, encoder, vocabulary, n_ctx=64, **options)
    found, *both = read_texts(task, tmp_path, **options)
    assert (found.labels, found.scores, found.metrics) == tuple(
        getattr(splits.task, name) for name in ("labels", "scores", "metrics")
    )
    for texts, rows, parts in zip(
        both, (splits.valid, splits.test), (splits.valid_parts, splits.test_parts), strict=True
    ):
        assert texts.labels.tolist() == rows.labels.tolist() and texts.parts == parts
        ids = [encoder.encode(list(example.texts), verbose=False) for example in texts.examples]
        assert ids == [rows.encoded.texts(int(i)) for i in rows.which]
    assert [len(texts.examples) for texts in both] == [3 if max_examples else 6, max_examples or 60]


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths, logs",
    [(range(4, 11), LOGS), ([5] * 7, LOGS), ([4, 4, 4, 4, 4, 4, 90], LOGS[:1])],
    ids=["some lengths", "one length", "two lengths and one log"],
)
def test_a_picture_is_drawn_and_not_empty(run, lengths, logs):
    run.write_test(lengths)
    run.write_log("a run", [SETTINGS, *logs])
    assert run.analyse() == 0
    picture = run.picture()[..., :3]
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    for rows in (slice(height), slice(height, None)):
        for columns in (slice(width), slice(width, None)):
            assert (picture[rows, columns] < 0.9).any(-1).mean() > 0.01  # ink in each of the four


def test_the_picture_has_six_panels(run):
    rng = np.random.default_rng(0)
    for split in ("valid", "test"):
        np.save(run.folder / f"a run.{split}.npy", rng.dirichlet([1, 1], 7))
    assert run.analyse() == 0
    picture = run.picture()[..., :3]
    for rows in np.array_split(picture, 2):
        for panel in np.array_split(rows, 3, axis=1):
            assert (panel < 0.9).any(-1).mean() > 0.01


def test_the_picture_shows_the_files(run):
    pictures = []
    for logs, predictions in ((LOGS, PREDICTIONS), (LOGS[:1], PREDICTIONS), (LOGS, [1] * 7)):
        run.write_log("a run", [SETTINGS, *logs])
        run.write_predictions("a run", predictions)
        assert run.analyse() == 0
        pictures.append(run.picture())
    assert not any(np.array_equal(pictures[0], other) for other in pictures[1:])


def test_perplexities_of_pre_training_are_drawn(run):
    lines = [{"desc": "text"}, *({"n_updates": n, "tr_ppl": 9.0 / n, "va_ppl": 10.0 / n} for n in (1, 2))]
    run.write_log("text", lines)
    draw_perplexity(run.folder / "text.jsonl")
    assert (run.picture("text")[..., :3] < 0.9).any(-1).mean() > 0.01
    with pytest.raises(InputError, match="a run.jsonl is not the log"):
        draw_perplexity(run.folder / "a run.jsonl")


# --- bad files -------------------------------------------------------------------------------------------------------


def binary(path: Path) -> None:
    path.write_bytes(b"\x00\xff\xfe\x80")


BAD_FILES = {
    "no log": (lambda run: (run.folder / "a run.jsonl").unlink(), ["a run.jsonl is missing", "--log_dir"]),
    "empty log": (lambda run: run.write_log("a run", []), ["a run.jsonl", "not the log"]),
    "settings alone": (lambda run: run.write_log("a run", [SETTINGS]), ["a run.jsonl", "not the log"]),
    "log of other things": (
        lambda run: run.write_log("a run", [SETTINGS, {"loss": 1}]),
        ["a run.jsonl", "not the log"],
    ),
    "log that is no JSON": (lambda run: (run.folder / "a run.jsonl").write_text("{"), ["a run.jsonl", "not the log"]),
    "log that is no text": (lambda run: binary(run.folder / "a run.jsonl"), ["a run.jsonl", "not the log"]),
    "no predictions": (lambda run: (run.folder / "a run.tsv").unlink(), ["a run.tsv is missing", "--submit"]),
    "empty predictions": (lambda run: (run.folder / "a run.tsv").write_text(""), ["a run.tsv", "--submit"]),
    "table of other things": (lambda run: (run.folder / "a run.tsv").write_text("a\tb\n"), ["a run.tsv", "--submit"]),
    "predictions that are no text": (lambda run: binary(run.folder / "a run.tsv"), ["a run.tsv", "--submit"]),
    "an index twice": (
        lambda run: (run.folder / "a run.tsv").write_text("index\tprediction\n" + "0\t1\n" * 7),
        ["a run.tsv", "indices"],
    ),
    "fewer predictions": (lambda run: run.write_predictions("a run", [1] * 6), ["6 predictions", "7 examples"]),
    "more predictions": (lambda run: run.write_predictions("a run", [1] * 8), ["8 predictions", "7 examples"]),
    "no test set": (lambda run: (run.folder / ROCSTORIES_TEST).unlink(), [ROCSTORIES_TEST, "missing"]),
    "no valid set": (lambda run: (run.folder / ROCSTORIES_VALID).unlink(), [ROCSTORIES_VALID, "missing"]),
    "log without settings": (lambda run: run.write_log("a run", LOGS), ["a run.jsonl"]),
    "words as predictions": (lambda run: run.write_predictions("a run", ["x"] * 7), ["a run.tsv"]),
    "gap in the predictions": (lambda run: run.write_predictions("a run", [1, 0, "", 1, 0, 0, 1]), ["a run.tsv"]),
    "predictions 7": (lambda run: run.write_predictions("a run", [7] * 7), ["a run.tsv"]),
}


BAD_FILES |= {
    "fewer probabilities": (
        lambda run: np.save(run.folder / "a run.valid.npy", np.ones((6, 2)) / 2),
        ["a run.valid.npy holds 6 predictions", "valid set", "7 examples"],
    ),
    "probabilities that are none": (lambda run: binary(run.folder / "a run.test.npy"), ["a run.test.npy"]),
    "another file than the run had": (
        lambda run: run.write_log("a run", [SETTINGS | {"digests": {ROCSTORIES_TEST: "0" * 64}}, *LOGS]),
        [f"{ROCSTORIES_TEST} is not the file", "--data_dir"],
    ),
    "another data set": (
        lambda run: run.write_log("a run", [SETTINGS | {"dataset": "weather"}, *LOGS]),
        ["a run on weather"],
    ),
}


def test_the_files_that_the_run_had_are_accepted(run):
    digests = {name: sha256(run.folder / name) for name in (ROCSTORIES_VALID, ROCSTORIES_TEST)}
    run.write_log("a run", [SETTINGS | {"digests": digests}, *LOGS])
    assert run.analyse() == 0


def test_a_run_on_another_data_set_than_the_flag_says_is_refused(run, capsys):
    run.write_log("a run", [SETTINGS | {"dataset": "rocstories"}, *LOGS])
    flags = ["--desc", "a run", "--data_dir", str(run.folder), "--log_dir", str(run.folder)]
    assert analysis.main([*flags, "--dataset", "rocstories"]) == 0
    assert analysis.main([*flags, "--dataset", "race"]) == 2
    assert "is of a run on rocstories, not on race" in capsys.readouterr().err


@pytest.mark.parametrize("damage, named", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_and_nothing_is_drawn(run, capsys, damage, named):
    damage(run)
    assert run.analyse() == 2
    message = capsys.readouterr().err
    assert message.startswith("analysis.py: ") and all(part in message for part in named), message
    assert not (run.folder / "a run.png").exists()


def test_an_unknown_dataset_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        analysis.main(["--dataset", "squad"])
    assert stop.value.code == 2
    assert "rocstories" in capsys.readouterr().err
