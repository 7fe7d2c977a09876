"""The user's own data: what is read, what is refused, what is told and saved."""

import csv
import json
import os
import random
import re
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
from launch import ROOT
from sklearn.metrics import f1_score

import train
from finetuning import fit
from formats.examples import Bad, Example
from formats.files import InputError
from formats.own import OwnData, own_example
from reading.splits import Limits, Splits, read_splits
from reading.tasks import find_task
from text_utils import TextEncoder
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


def test_unknown_tokens_and_examples_of_train_in_the_others_are_said(command, capsys):
    def trained(rows: list, test: list) -> str:
        write(Path("data/train.csv"), ["text", "label"], rows)
        write(Path("data/test.csv"), ["text"], test)
        assert command("classification", "--model_dir", ROOT / "demo/model", "--n_transfer", -1, "--n_embd", 9) == 0
        return capsys.readouterr().out

    known = [[f"Ben {'sat ' * i}", "no" if i % 4 else "yes"] for i in range(40)]
    out = trained(known, [["Ida ran"], ["Ben sat sat"], ["Ben  sat sat sat"]])
    assert "unknown  0.00% of the tokens are not in the vocabulary\n" in out and "warning  the network" not in out
    assert "warning  2 of 3 test examples are in train too" in out and "valid examples are in train" not in out
    out = trained([[f"Бен {text}", label] for text, label in known[:20]] * 2, [["Ида"]])
    assert "warning  the network reads all unknown tokens as one" in out
    assert re.search(r"warning  [1-4] of 4 valid examples are in train too", out)

    # texts that differ only in unknown words are two
    assert "test examples are in train too" not in trained(known, [["Ben, Ида"], ["Ben, Бен"]])
    assert "1 of 2 test examples are in train too" in trained(
        [*known, ["Ben, Ида", "no"]], [["ben,  ида"], ["Ben, Бен"]]
    )


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


@pytest.mark.parametrize("columns", [None, "id=key"])
def test_answers_have_the_ids_of_the_data_and_classes_a_macro_f1(command, capsys, columns):
    write(Path("data/train.csv"), ["text", "label", "key"], [[*row, i] for i, row in enumerate(texts(40))])
    rows = [[text, label, f"r{i}"] for i, (text, label) in enumerate(texts(4))]
    write(Path("data/test.csv"), ["text", "label", "id" if columns is None else "key"], rows)
    assert command("classification", "--submit", "--analysis", *(["--columns", columns] if columns else [])) == 0
    lines = [line.split("\t") for line in Path("submission/own.tsv").read_text().splitlines()]
    assert [line[0] for line in lines] == ["id", "r0", "r1", "r2", "r3"]

    # beside the accuracy, in the log, the numbers and what is printed
    log = json.loads(Path("log/own.jsonl").read_text().splitlines()[1])
    results = json.loads(Path("log/own.json").read_text())
    metrics = results["splits"]["test"]["all"]["metrics"]
    expected = f1_score([row[1] for row in rows], [line[1] for line in lines[1:]], average="macro")
    assert metrics["macro_f1"]["value"] == pytest.approx(100 * expected) and "va_macro_f1" in log
    assert f"macro-F1 {100 * expected:.2f} (95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a\tb", "", [1]])
def test_what_is_no_name_of_an_example_is_none_unless_it_is_said_to_be_one(name):
    record = {"text": "the cat", "id": name}
    assert own_example(record, "here", OwnData("classification"), None) == Example(("the cat",), None, "here")
    found = own_example(record, "here", OwnData("classification", {"id": "id"}), None)
    assert found == Bad("here", "no text of one line in 'id'. Fix the line, or use --columns.")


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
    "no file": ("classification", {}, "holds none of train.csv, train.tsv, train.jsonl"),
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


@pytest.mark.parametrize(
    "train, valid",
    [
        ("text,label\na,x\nb,y\n" * 9, "text,label\na," + "xy" * 999 + "\n"),
        ("text," + "label" * 99 + "\na,x\n", None),
        ("".join(f"{'c' * 99}{i}," for i in range(99)) + "\na,b\n", None),
        ("text,label\na,x\n" + "".join(f"b,{i}{'c' * 99}\n" for i in range(30)), "text,label\nb,x y\n"),
    ],
)
def test_a_message_is_one_line_of_at_most_300_characters(command, capsys, train, valid):
    Path("data").mkdir()
    Path("data/train.csv").write_text(train)
    if valid is not None:
        Path("data/valid.csv").write_text(valid)
    assert command("classification") == 2
    error = capsys.readouterr().err.rpartition("\r")[2].strip()
    message = error.removeprefix("train.py: error: ")
    assert message.startswith("data/") and len(message) <= 300 and "\n" not in message


def test_a_dry_run_reads_a_few_examples(command, capsys):
    # sorted by label, as sets are
    write(Path("data/train.csv"), ["text", "label"], sorted(texts(400), key=lambda row: row[1]))
    shown = []
    for seed in (1, 1, 2):
        assert command("classification", "--max_examples", 20, "--n_valid", 2, "--seed", seed) == 0
        assert re.search(r"examples 18 train, 2 valid.*\nlabels   no [45], yes 1[34];", capsys.readouterr().out)
        shown.append(read_examples())
    assert shown[0] == shown[1] != shown[2] and all(len(places) == 20 for places in shown)


def read_examples() -> list[str]:
    """Return where the examples stand that the newest cache holds."""
    *_, newest = sorted(Path("data").glob("encoded_*"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(line)[2] for line in (newest / "records.jsonl").read_text().splitlines()]


def test_lines_that_cannot_be_read_are_left_out_where_the_flag_says_so(command, capsys):
    write(Path("data/train.csv"), ["text", "label"], [*texts(40), ["", "no"], ["the cat", ""]])
    assert command("classification") == 2
    assert command("classification", "--skip_bad") == 0
    note = "2 lines could not be used; the first: data/train.csv, line 42: an empty text"
    assert note in capsys.readouterr().out
    assert any(note in line for line in json.loads(Path("log/own.jsonl").read_text().splitlines()[0])["notes"])


def test_labels_that_cannot_be_used_are_left_out_where_the_flag_says_so(command, capsys):
    write(Path("data/train.csv"), ["text", "label"], texts(40))
    write(Path("data/valid.csv"), ["text", "label"], [["a cat", "perhaps"], *texts(8), ["a rat", "maybe"]])
    assert command("classification") == 2
    assert "data/valid.csv, line 2: the label 'perhaps' is not one of no, yes" in capsys.readouterr().err
    assert command("classification", "--skip_bad", "--submit") == 0
    out = capsys.readouterr().out
    assert "40 train, 8 valid" in out and "2 lines could not be used; the first: data/valid.csv, line 2: the l" in out

    write(
        Path("data/train.csv"), ["text", "label"], [*([text, i] for i, (text, _) in enumerate(texts(20))), ["a", "NA"]]
    )
    Path("data/valid.csv").unlink()
    assert command("regression", "--skip_bad") == 0
    out = capsys.readouterr().out
    assert "18 train, 2 valid" in out and "1 lines could not be used; the first: data/train.csv, line 22: the l" in out
    write(Path("data/train.csv"), ["text", "label"], [["a", "1"], ["b", "1.0"], ["c", "NA"]] * 9)
    assert command("regression", "--skip_bad") == 2
    assert "its labels ('1', '1.0', 'NA') are not two numbers or more" in capsys.readouterr().err


def test_a_label_of_test_that_train_lacks_is_wrong_and_said(command, capsys):
    write(Path("data/train.csv"), ["text", "label"], texts(40))
    write(Path("data/test.csv"), ["text", "label"], [["the cat was in", "perhaps"], ["the red was in", "yes"]])
    assert command("classification", "--submit", "--analysis") == 0
    assert "1 test examples have a label that train lacks: each counts as wrong" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("log/own.predictions.jsonl").read_text().splitlines()]
    test = [line for line in lines if line["split"] == "test"]
    assert [line["label"] for line in test] == ["perhaps", "yes"]
    results = json.loads(Path("log/own.json").read_text())
    n_right = sum(line["label"] == line["prediction"] for line in test)
    assert results["splits"]["test"]["all"]["metrics"]["acc"]["value"] == 50 * n_right
    assert results["labels"] == ["no", "yes", "perhaps"]


def test_numbers_that_are_spelled_in_two_ways_are_one_label(command):
    rows = [[text, ("1", "1.0", "2")[i % 3]] for i, (text, _) in enumerate(texts(40))]
    write(Path("data/train.csv"), ["text", "label"], rows)
    write(Path("data/valid.csv"), ["text", "label"], [["the cat", "2.0"], ["the hat", "1.00"]])
    assert command("classification") == 0
    assert settings()["labels"] == ["1", "2"]


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


@pytest.mark.parametrize("labels", [[2, 0, 1] * 10, np.array([2, 0, 1] * 10), ["2", "0", "1"] * 10], ids=type)
def test_labels_come_back_as_the_kind_of_value_they_were_given_as(model_dir, tmp_path, labels):
    kind = str if labels[0] == "2" else int
    run = fit([f"the {w} was in" for w in WORDS] * 6, labels, model_dir=model_dir, n_iter=1)
    run.save(tmp_path / "kept")
    for saved in (run, open_run(tmp_path / "kept")):
        (found,) = saved.predict(["the cat"])
        assert type(found.label) is kind and [*found.probabilities] == [kind(i) for i in range(3)]


def test_a_run_is_trained_further(command, model_dir):
    write(Path("data/train.csv"), ["text", "label"], texts(40))
    assert command("classification", "--desc", "first", "--lr", 1e-3) == 0
    first = open_run("save/first")
    again = ["--desc", "second", "--lr", 0, "--model_dir", "save/first"]
    assert command("classification", *again) == 0
    second = open_run("save/second")

    # all of the transformer is that of the first run, special tokens too, and the head is a new one
    for name, value in first.model.transformer.state_dict().items():
        assert torch.equal(value, second.model.transformer.state_dict()[name]), name
    assert not torch.equal(first.model.task_head.linear.weight, second.model.task_head.linear.weight)
    assert {"best_params"} <= settings("second")["digests"].keys()

    # in another form too, by its name or as it is, with shorter rows and some of the blocks
    pairs, labels = [("the cat", "red"), ("the hat", "in")] * 10, ["a", "b"] * 10
    how = {"lr": 0.0, "n_iter": 1, "n_transfer": 1}
    for model in ("save/first", first):
        run = fit(pairs, labels, "similarity", model_dir=model, **how)
        blocks, expected = run.model.transformer.h, first.model.transformer.h
        assert torch.equal(blocks[0].ln_1.g, expected[0].ln_1.g) and torch.equal(
            blocks[0].mlp.c_fc.w, expected[0].mlp.c_fc.w
        )
        assert not torch.equal(blocks[1].mlp.c_fc.w, expected[1].mlp.c_fc.w)
    with pytest.raises(InputError, match="the weights have n_embd 16, the model 32"):
        fit(pairs, labels, "similarity", model_dir=first, n_embd=32)
    assert command("classification", *again, "--desc", "first") == 2
    Path("save/first/best_params").unlink()
    assert command("classification", *again) == 2


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


# --- what is taken for what ------------------------------------------------------------------------------------------


def read(model_dir: Path, form: str, **settings) -> Splits:
    """Return the splits of the folder data."""
    encoder = TextEncoder(model_dir / "encoder_bpe_40000.json", model_dir / "vocab_40000.bpe")
    task = find_task("own", Path("data"), form, **settings)
    return read_splits(task, Path("data"), encoder, Limits(n_valid=4, seed=1, n_ctx=64))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


PAIRS = [[a, b, 1 + i % 5] for i, (a, b) in enumerate(zip(WORDS * 4, sorted(WORDS * 4), strict=True))]


@pytest.mark.parametrize("label", ["NA", "3,5", "x"])
@pytest.mark.parametrize("form", ["similarity", "regression"])
def test_one_label_that_is_no_number_does_not_make_classes_of_scores(folder, model_dir, form, label):
    rows = [*PAIRS[:6], ["the", "cat", label], *PAIRS[6:]]
    write(folder / "train.csv", ["text_a", "text_b", "label"], rows)
    columns = {"text": "text_a"} if form == "regression" else {}
    with pytest.raises(InputError, match=f"train.csv, line 8: the label '{label}' is not a number, as the others are"):
        read(model_dir, form, columns=columns)


def test_whole_numbers_of_a_similarity_are_said_to_be_scores(folder, model_dir):
    write(folder / "train.csv", ["text_a", "text_b", "label"], PAIRS)
    splits = read(model_dir, "similarity")
    assert splits.task.scores == (1, 5)
    assert splits.notes == (
        "data/train.csv: its labels are 5 different numbers, so they are scores. If they are classes, "
        "write them as words, such as c1",
    )


@pytest.mark.parametrize("form", ["classification", "similarity", "regression"])
def test_placeholders_in_a_test_file_are_no_labels(folder, model_dir, form):
    rows = [[*row[:2], row[2] % 2] for row in PAIRS] if form == "classification" else PAIRS
    names = ["text_a", "text_b", "label"] if form == "similarity" else ["text", "more", "label"]
    write(folder / "train.csv", names, rows)
    write(folder / "test.csv", names, [[*row[:2], -1] for row in rows])
    splits = read(model_dir, form)
    assert splits.test.labels is None and len(splits.test) == 20
    assert "data/test.csv: every label is '-1', which is none of train's: taken for no label" in splits.notes


def test_a_test_file_may_write_its_only_label_in_another_way(folder, model_dir):
    write(folder / "train.csv", ["text", "label"], [[text, i % 2] for i, (text, _) in enumerate(texts(20))])
    write(folder / "test.csv", ["text", "label"], [["the cat", "1.0"], ["a hat", "1.0"]])
    splits = read(model_dir, "classification")
    assert splits.task.labels == ("0", "1") and splits.test.labels.tolist() == [1, 1] and not splits.notes


def test_a_line_of_names_that_was_taken_for_an_example_is_said(folder, model_dir):
    write(folder / "train.csv", ["class", "words"], [row[::-1] for row in texts(20)])
    splits = read(model_dir, "classification", columns={"text": "1", "label": "0"})
    assert splits.notes == ("data/train.csv: only the first line has the label 'class': is it a line of names?",)


def test_choices_are_answered_as_they_are_counted(command):
    rows = [["the cat", "red", "hat", "in", i % 3] for i in range(12)]
    for name in ("train", "test"):
        write(Path(f"data/{name}.csv"), ["context", "choice_1", "choice_2", "choice_3", "label"], rows)
    assert command("multiple_choice", "--first_choice", 0, "--n_batch", 2, "--submit", "--analysis") == 0
    assert settings()["labels"] == ["0", "1", "2"]
    lines = [json.loads(line) for line in Path("log/own.predictions.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines if line["split"] == "test"] == list("012" * 4)
    assert {line["prediction"] for line in lines} <= {"0", "1", "2"}
    (found,) = open_run("save/own").predict([("the cat", "red", "hat", "in", "an")])
    assert list(found.probabilities) == ["0", "1", "2", "3"]


def test_what_a_test_file_lacks_is_said(folder, model_dir):
    write(folder / "train.csv", ["text", "label"], texts(40))
    write(folder / "test.csv", ["text", "label"], [["the cat", ""], ["the hat", "yes"], ["a rat", ""]])
    splits = read(model_dir, "classification")
    note = "data/test.csv: 2 of 3 examples have no label: they are predicted, not scored"
    assert splits.test.labels is None and note in splits.notes
    write(folder / "test.csv", ["text", "label"], [["the cat", "yes"], ["the hat", "perhaps"]])
    assert (
        "1 test examples have a label that train lacks: each counts as wrong" in read(model_dir, "classification").notes
    )


@pytest.mark.parametrize("name", ["dev.csv", "validation.csv", "val.csv", "Valid.CSV"])
def test_files_beside_train_are_used_or_named(folder, model_dir, name):
    write(folder / "Train.csv", ["text", "label"], texts(20))
    with open(folder / name, "w") as file:
        file.write(MANY)
    write(folder / "extra.jsonl", ["text"], [["a"]])
    splits = read(model_dir, "classification")
    assert (len(splits.train), len(splits.valid)) == (20, 40)
    assert splits.notes == ("data: not used: extra.jsonl",)
    write(folder / "val.tsv", ["text", "label"], texts(3))
    with pytest.raises(InputError, match="Keep one of them"):
        read(model_dir, "classification")


def test_scores_of_one_text_are_learned(command, capsys):
    write(Path("data/train.csv"), ["essay", "grade"], [[f"the {WORDS[i % 5]} was in", i % 5 / 2] for i in range(40)])
    assert command("regression", "--columns", "text=essay,label=grade", "--submit", "--analysis") == 0
    assert "scores   0 to 2, mean" in capsys.readouterr().out
    assert settings()["metrics"] == ["pearson", "spearman"] and settings()["n_out"] == 6
    assert 0 <= float(open_run("save/own").predict(["the cat"])[0].label) <= 2


@pytest.mark.parametrize("label", [None, float("nan"), np.float64("nan")])
def test_a_label_that_is_nothing_is_no_class(tmp_path, monkeypatch, model_dir, label):
    with pytest.raises(InputError, match="line 3: no label|example 3 is None"):
        fit(["the cat", "a hat", "in"], ["yes", "no", label], model_dir=str(model_dir), n_iter=1)


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
