"""The user's own data: what is read, what is refused, what is told and saved."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from finetuning import fit
from formats.files import InputError
from weights import open_model, open_run

WORDS = ("cat", "red", "hat", "rat", "in")


def write(path: Path, names: list[str], rows: list[list]) -> Path:
    """Write a table in the format that the suffix names."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [names, *rows]))
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    return path


def texts(n: int) -> list[list]:
    return [[f"the {WORDS[i % 5]} was in", "yes" if i % 4 else "no"] for i in range(n)]


@pytest.fixture
def command(tmp_path, monkeypatch, model_dir):
    """Run train.py on own data in an empty folder, for one short epoch."""
    monkeypatch.chdir(tmp_path)
    common = ["--dataset", "own", "--data_dir", "data", "--model_dir", str(model_dir), "--n_iter", "1"]
    return lambda task, *more: train.main([*common, "--task", task, *map(str, more)])


def settings(desc: str = "own") -> dict:
    return json.loads(Path(f"save/{desc}/settings.json").read_text())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_each_format_is_read_and_trains_alike(command, capsys, suffix):
    write(Path("data", f"train{suffix}"), ["id", "text", "label"], [[i, *row] for i, row in enumerate(texts(40))])
    write(Path("data", f"test{suffix}"), ["text"], [row[:1] for row in texts(7)])  # without labels
    assert command("classification", "--submit") == 0
    out = capsys.readouterr().out
    # 10 of 40 are "no"; a tenth is held out, the same fraction of each label
    assert "examples 36 train, 4 valid, 7 test" in out
    assert "labels   no 9, yes 27; always the most frequent: 75.00% of valid" in out
    assert out.count("example  label ") == 3 and "_start_ the " in out and " was in _classify_" in out
    saved = settings()
    assert (saved["form"], saved["labels"], saved["task"]) == ("classification", ["no", "yes"], "classification")
    assert Path("submission/own.tsv").read_text().startswith("index\tprediction\n0\t")
    assert set(line.split("\t")[1] for line in Path("submission/own.tsv").read_text().splitlines()[1:]) <= {"no", "yes"}
    costs = [json.loads(line)["va_cost"] for line in Path("log/own.jsonl").read_text().splitlines()[1:]]
    assert np.isfinite(costs).all()


def test_files_of_the_three_formats_hold_the_same_examples(command):
    parameters = []
    for suffix in (".csv", ".tsv", ".jsonl"):
        path = write(Path("data", f"train{suffix}"), ["text", "label"], texts(40))
        assert command("classification") == 0
        parameters.append(Path("save/own/best_params").read_bytes())
        path.unlink()
    assert parameters[0] == parameters[1] == parameters[2]


def test_columns_are_renamed(command):
    write(Path("data/train.csv"), ["stars", "review"], [row[::-1] for row in texts(40)])
    assert command("classification") == 2
    assert command("classification", "--columns", "text=review,label=stars") == 0
    assert settings()["columns"] == "text=review,label=stars"


def test_validation_and_test_files_are_used(command, capsys):
    write(Path("data/train.csv"), ["premise", "hypothesis", "label"], [[a, b, a == b] for a in WORDS for b in WORDS])
    write(Path("data/valid.tsv"), ["premise", "hypothesis", "label"], [[a, a, True] for a in WORDS])
    write(Path("data/test.jsonl"), ["premise", "hypothesis", "label"], [[a, a, "True"] for a in WORDS[:3]])
    assert command("entailment", "--submit") == 0
    assert "examples 25 train, 5 valid, 3 test" in capsys.readouterr().out
    assert settings()["labels"] == ["False", "True"]


def test_numbers_of_a_similarity_are_scores(command, capsys):
    rows = [[a, b, round(i * 0.25 - 1, 2)] for i, (a, b) in enumerate(zip(WORDS * 5, sorted(WORDS * 5), strict=True))]
    write(Path("data/train.csv"), ["text_a", "text_b", "label"], rows)
    write(Path("data/test.csv"), ["text_a", "text_b"], [row[:2] for row in rows[:4]])
    assert command("similarity", "--submit", "--n_batch", 4) == 0
    assert "scores   -1 to 5, mean" in capsys.readouterr().out
    assert settings()["scores"] == [-1, 5] and settings()["n_out"] == 6
    log = json.loads(Path("log/own.jsonl").read_text().splitlines()[1])
    assert {"va_pearson", "va_spearman"} <= log.keys()
    scores = [line.split("\t")[1] for line in Path("submission/own.tsv").read_text().splitlines()[1:]]
    assert len(scores) == 4 and all(-1 <= float(s) <= 5 and len(s.partition(".")[2]) == 3 for s in scores)
    assert open_run("save/own").predict([("cat", "hat")])[0].label != ""


def test_two_values_of_a_similarity_are_classes(command):
    write(Path("data/train.csv"), ["text_a", "text_b", "label"], [[a, b, int(a == b)] for a in WORDS for b in WORDS])
    assert command("similarity") == 0
    assert settings()["labels"] == ["0", "1"] and settings()["scores"] is None


def test_choices_are_named_by_number_or_by_their_text(command):
    rows = [[f"the {a}", "cat", "red", "hat", label] for a in WORDS for label in (1, 2, "hat")]
    names = ["context", "choice_1", "choice_2", "choice_3", "label"]
    write(Path("data/train.csv"), names, rows)
    assert command("multiple_choice") == 0
    assert settings()["labels"] == ["1", "2", "3"]
    # in JSON examples may differ in how many choices they have
    Path("data/train.csv").unlink()
    records = [[f"the {a}", list(WORDS[: 2 + i % 3]), "cat"] for i, a in enumerate(WORDS * 4)]
    write(Path("data/train.jsonl"), ["context", "choices", "label"], records)
    assert command("multiple_choice", "--desc", "mixed", "--share_context") == 0
    assert settings("mixed")["labels"] == ["1", "2", "3", "4"]
    found = open_run("save/mixed").predict([("the cat", "red", "hat"), ("the cat", "red", "hat", "in", "an", "at")])
    assert [list(p.probabilities) for p in found] == [["1", "2"], ["1", "2", "3", "4", "5"]]


ONE = "text,label\nthe cat,yes\n"
MANY = "text,label\n" + "".join(f"{text},{label}\n" for text, label in texts(40))
CHOICES = "context,choice_1,choice_2,choice_3,label\nthe cat,red,hat,in,1\n"
SCORES = "text_a,text_b,label\na,b,2\n"
BAD = {  # form, files and what is said of the last one
    "an empty text": ("classification", {"train.csv": ONE + ",no\n"}, "line 3: an empty text"),
    "no label": ("classification", {"train.csv": ONE + "the hat,\n"}, "line 3: no label"),
    "a missing column": ("classification", {"train.csv": "texts,label\nthe cat,yes\n"}, "line 1: no column 'text'"),
    "a short line": ("classification", {"train.tsv": "text\tlabel\nthe hat\n"}, "line 2: 1 columns, 2 are needed"),
    "an open quote": ("classification", {"train.csv": 'text,label\n"the cat,yes\n'}, "not CSV"),
    "no JSON": ("classification", {"train.jsonl": '{"text": "a", "label": 1}\n{"text"\n'}, "line 2: not JSON"),
    "no object": ("classification", {"train.jsonl": "3\n"}, "line 1: not a JSON object"),
    "a missing field": ("classification", {"train.jsonl": '{"text": "a"}\n'}, "line 1: no label"),
    "Latin-1": ("classification", {"train.csv": "text,label\ncaf\xe9,yes\n"}, "line 2: not UTF-8"),
    "a NUL byte": ("classification", {"train.tsv": "text\tlabel\nthe\0cat\tyes\n"}, "line 2: a NUL byte"),
    "one label": ("classification", {"train.csv": ONE + "the hat,yes\n"}, "every label is 'yes'"),
    "nothing": ("classification", {"train.csv": "text,label\n"}, "holds no examples"),
    "no file": ("classification", {}, "holds none of train.csv, train.tsv and train.jsonl"),
    "two files": ("classification", {"train.tsv": ONE, "train.csv": ONE}, "holds train.csv and train.tsv. Keep one"),
    "a label that train lacks": (
        "classification",
        {"train.csv": MANY, "valid.csv": ONE + "the hat,perhaps\n"},
        "line 3: the label 'perhaps' is not one of no, yes",
    ),
    "a score that is no number": (
        "similarity",
        {"train.csv": SCORES + "a,b,1\na,b,3\n", "valid.csv": SCORES + "a,b,x\n"},
        "line 3: the label 'x' is not a number, as the others are",
    ),
    "too long choices": (
        "multiple_choice",
        {"train.csv": CHOICES + f"the cat,{'the cat was in ' * 9},a,b,1\n"},
        "line 3: 66 tokens without its context, which is all that may be cut; n_ctx is 16",
    ),
}
for bad_label in ("0", "4", "x"):
    said = f"line 3: the label {bad_label!r} is neither a number from 1 to 3"
    BAD[f"no choice: {bad_label}"] = ("multiple_choice", {"train.csv": CHOICES + f"a,red,hat,in,{bad_label}\n"}, said)


@pytest.mark.parametrize("what", BAD)
def test_malformed_own_data_stops_with_file_and_line(command, capsys, what):
    form, files, message = BAD[what]
    Path("data").mkdir()
    for name, content in files.items():
        Path("data", name).write_text(content, encoding="latin-1")
    assert command(form, "--n_ctx", 16) == 2
    (error,) = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "error" in line]
    assert error.startswith("train.py: error: data") and list(files or ["data"])[-1] in error and message in error
    assert not Path("save/own/best_params").exists()


def test_a_dry_run_reads_a_few_examples(command, capsys):
    write(Path("data/train.csv"), ["text", "label"], texts(400))
    assert command("classification", "--max_examples", 20) == 0
    assert "examples 18 train, 2 valid" in capsys.readouterr().out


def test_balanced_weights_make_labels_weigh_the_same(command):
    write(Path("data/train.csv"), ["text", "label"], texts(40))
    assert command("classification", "--class_weights", "balanced") == 0
    balanced = Path("save/own/best_params").read_bytes()
    assert command("classification") == 0
    assert Path("save/own/best_params").read_bytes() != balanced
    Path("data/train.csv").unlink()
    write(Path("data/train.csv"), ["context", "choice_1", "choice_2", "label"], [["the cat", "red", "hat", 1]] * 20)
    assert command("multiple_choice", "--class_weights", "balanced") == 2


def test_a_run_that_learns_nothing_says_so(command, capsys):
    write(Path("data/train.csv"), ["text", "label"], texts(40))
    assert command("classification", "--lr", 0) == 0
    assert "warning  valid accuracy" in capsys.readouterr().out


def test_long_texts_are_cut_and_counted(command, capsys):
    rows = [["the cat was in " * (20 if i == 3 else 1), "yes" if i % 2 else "no"] for i in range(20)]
    write(Path("data/train.csv"), ["text", "label"], rows)
    assert command("classification", "--n_ctx", 16) == 0
    out = capsys.readouterr().out
    assert "n_ctx 16" in out and "1 examples are cut" in out


def test_three_lines_of_python_fit_predict_and_save(tmp_path, monkeypatch, model_dir):
    monkeypatch.chdir(tmp_path)
    sentences = [f"the {w} was in" for w in WORDS] * 8
    run = fit(sentences, ["cat" in s for s in sentences], model_dir=str(model_dir), n_iter=1)
    found = run.predict(sentences[:3])
    run.save("kept")
    assert open_run("kept").predict(sentences[:3]) == found
    assert {p.label for p in found} <= {"False", "True"} and list(found[0].probabilities) == ["False", "True"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["kept", "model"]
    pairs = [(a, b) for a in WORDS for b in WORDS]
    run = fit(pairs, [float(len(a) - len(b)) for a, b in pairs], "similarity", model_dir=str(model_dir), n_iter=1)
    assert -2 <= float(run.predict([("cat", "in")])[0].label) <= 2
    choices = [("the cat", "red", "hat"), ("the hat", "in", "an", "at")] * 10
    assert fit(choices, np.array([1, 3] * 10), "multiple_choice", model_dir=str(model_dir), n_iter=1).predict(
        choices[:1]
    )


TABLE = SimpleNamespace(columns=["text"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"examples": [("a", "b")]}, "example 1 is 2 texts; a classification example has 1"),
        ({"task": "poetry"}, "task 'poetry' is not one of"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"n_iter": 0}, "n_iter: 0 is not 1 or more"),
        ({"n_batch": 2.5}, "n_batch: '2.5' is not"),
        ({"n_batch": None}, "n_batch: 'None' is not"),
        ({"lr": "x"}, "lr: 'x' is not"),
        ({"precision": "fp64"}, "precision: 'fp64' is not one of"),
        ({"examples": [None]}, "the texts of example 1 are NoneType, not a list"),
        ({"examples": [(None,)]}, "example 1: None is no text"),
        ({"examples": "a"}, "examples are str, not a list"),
        ({"examples": TABLE}, "examples are a table: give a column"),
        ({"labels": "x"}, "labels are str, not a list"),
        ({"labels": [None]}, "labels: that of example 1 is None"),
        ({"examples": ["a", "b"]}, "examples are 2, labels 1"),
    ],
)
def test_what_cannot_be_fitted_is_an_error_of_the_input(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match=message):
        fit(**{"examples": ["a"], "labels": ["x"]} | arguments)
    assert not any(tmp_path.iterdir())  # no temporary folder stays


def test_fit_leaves_the_users_random_numbers_and_process_as_they_were(tmp_path, monkeypatch, model_dir):
    monkeypatch.chdir(tmp_path)
    sentences = [f"the {w} was in" for w in WORDS] * 8
    labels = ["cat" in s for s in sentences]
    settings = {"model_dir": str(model_dir), "n_iter": 1}

    def numbers() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    seed()
    expected = numbers()
    seed()
    before = dict(os.environ), torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    alone = fit(sentences, labels, **settings).predict(sentences[:3])
    open_model(model_dir)
    assert numbers() == expected
    assert before == (dict(os.environ), torch.get_num_threads(), signal.getsignal(signal.SIGTERM))

    # two at once give what one gives
    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(lambda _: fit(sentences, labels, **settings), range(2)))
    assert [run.predict(sentences[:3]) for run in runs] == [alone, alone]


def test_modules_of_other_packages_named_datasets_and_utils_are_no_matter():
    program = """
import sys, types
sys.modules["datasets"] = types.ModuleType("datasets")
sys.modules["utils"] = types.ModuleType("utils")
import features, finetuning, generation, model_pytorch, scoring, train, weights
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=True)
