"""Logs and predictions -> the numbers printed and the picture drawn, from files made by hand."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import analysis
from datasets import ROCSTORIES_TEST, ROCSTORIES_VALID
from results import accuracy_by_length, draw_perplexity
from utils import InputError

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


@pytest.mark.parametrize("damage, named", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_and_nothing_is_drawn(run, capsys, damage, named):
    damage(run)
    assert run.analyse() == 2
    message = capsys.readouterr().err
    assert message.startswith("analysis.py: ") and all(part in message for part in named), message
    assert not (run.folder / "a run.png").exists()


def test_an_unknown_dataset_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        analysis.main(["--dataset", "race"])
    assert stop.value.code == 2
    assert "rocstories" in capsys.readouterr().err
