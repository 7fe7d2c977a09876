"""A fine-tuning run: any data set of one record, evaluation and prediction, when to log."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from helpers import NO_DROPOUT, read_lines
from launch import Processes

import analysis
import train
from formats.examples import Example
from model_pytorch import Config, DoubleHeadModel
from reading import tasks
from reading.encoding import Encoded
from reading.rows import Layout, Rows, pad_rows
from reading.tasks import Source, Task
from running.inference import evaluate, predict
from running.processes import Ranks, join_ranks
from weights import open_run

RANKS = Ranks(device=torch.device("cpu"))


# --- a data set is one reader and one record -------------------------------------------------------------------------

WEATHER = {"rain": "the red cat was wet", "snow": "in the white hall", "sun": "and a king ate"}


def write_weather(folder: Path) -> None:
    rng = random.Random(0)
    folder.mkdir()
    for name, n in (("weather.tsv", 68), ("weather_test.tsv", 12)):
        lines = []
        for _ in range(n):
            label = rng.choice(list(WEATHER))
            lines.append(f"{label}\t{rng.choice(['', 'the cat ', 'the '])}{WEATHER[label]}\n")
        (folder / name).write_text("".join(lines))


def read_weather(folder: Path, file: str, form: str) -> Iterator[Example]:
    """Read lines of label and text; further texts of an example are the text without its first words."""
    for number, line in enumerate((folder / file).read_text().splitlines(), 1):
        label, text = line.split("\t")
        texts = tuple(text.split(" ", i)[-1] for i in range(N_TEXTS[form]))
        if form == "multiple_choice":
            label = str(1 + list(WEATHER).index(label))
        yield Example(texts, label, f"{file}, line {number}")


N_TEXTS = {"classification": 1, "entailment": 2, "similarity": 2, "multiple_choice": 4}


def weather(form: str) -> Task:
    def source(file: str) -> tuple[Source]:
        return (Source((file,), partial(read_weather, file=file, form=form)),)

    return Task(
        title="Weather",
        form=form,
        labels=("1", "2", "3") if form == "multiple_choice" else tuple(WEATHER),
        written=tuple(WEATHER),
        metrics=("acc",),
        train=source("weather.tsv"),
        test=source("weather_test.tsv"),
        submission={"": "Weather.tsv"},
        split_seed=7,
    )


def test_examples(task: Task, folder: Path) -> list[Example]:
    (source,) = task.test
    return list(source.read(folder))


test_examples.__test__ = False


FLAGS = "--dataset weather --data_dir data --model_dir model --n_valid 8 --n_batch 4 --submit --analysis".split()


@pytest.fixture
def folder(tmp_path, monkeypatch, model_dir) -> Path:
    """The current folder, with the small model and the weather."""
    monkeypatch.chdir(tmp_path)
    write_weather(tmp_path / "data")
    return tmp_path


def column(path: str) -> list[str]:
    """Return the predictions in a file, after a look at its form."""
    head, *lines = Path(path).read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    assert head == "index\tprediction" and [int(i) for i, _ in cells] == list(range(len(cells)))
    return [label for _, label in cells]


def predictions(split: str) -> list[dict]:
    """Return the examples of a split in the run's file of predictions."""
    found = read_lines("log/weather.predictions.jsonl")
    return [example for example in found if example["split"] == split]


def test_a_new_data_set_goes_from_training_to_predictions_and_analysis(folder, monkeypatch, capsys):
    task = weather("classification")
    monkeypatch.setitem(tasks.TASKS, "weather", task)
    assert train.main([*FLAGS, "--n_iter", "20", "--lr", "1e-2", "--lm_coef", "0", *NO_DROPOUT]) == 0
    out = capsys.readouterr().out
    settings, *lines = read_lines("log/weather.jsonl")
    assert (settings["dataset"], settings["form"]) == ("weather", "classification")
    assert settings["labels"] == ["rain", "snow", "sun"]
    assert {"weather.tsv", "weather_test.tsv"} <= settings["digests"].keys()
    assert len(lines) == 20 and lines[-1]["tr_cost"] < 0.1 < 0.8 < lines[0]["tr_cost"]

    # it learns: the words of a label are written, and they are right
    test = test_examples(task, folder / "data")
    right = [example.label for example in test]
    handed_in = column("submission/Weather.tsv")
    assert set(handed_in) == set(WEATHER)
    accuracy = np.mean([ours == theirs for ours, theirs in zip(handed_in, right, strict=True)]) * 100
    assert accuracy > 80
    written = predictions("test")
    assert [example["prediction"] for example in written] == handed_in
    assert [Example(tuple(of["texts"]), of["label"], of["where"]) for of in written] == test
    assert len(predictions("valid")) == 8

    # the analysis prints the same when it is run later
    printed = [line for line in out.splitlines() if line.startswith("Weather")]
    best = max(line["va_acc"] for line in lines)
    assert printed[:2] == [f"Weather Valid Accuracy: {best:.2f}", f"Weather Test Accuracy:  {accuracy:.2f}"]
    assert Path("log/weather.png").read_bytes().startswith(b"\x89PNG")
    Path("log/weather.png").unlink()
    assert analysis.main(["--desc", "weather"]) == 0
    assert capsys.readouterr().out.splitlines() == printed and Path("log/weather.png").exists()

    # and the run can be used from Python
    found = open_run("save/weather").predict([example.texts[0] for example in test])
    assert [prediction.label for prediction in found] == handed_in
    for prediction in found:
        assert list(prediction.probabilities) == list(WEATHER)
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert [list(of.probabilities.values()) for of in found] == [pytest.approx(of["probabilities"]) for of in written]
    with pytest.raises(ValueError, match="example 0 has 2 texts; a classification example takes 1$"):
        open_run("save/weather").predict([("one", "two")])


@pytest.mark.parametrize("form", ["entailment", "similarity", "multiple_choice"])
def test_each_form_trains_and_predicts(folder, monkeypatch, form):
    task = weather(form)
    monkeypatch.setitem(tasks.TASKS, "weather", task)
    assert train.main([*FLAGS, "--n_iter", "2", "--n_ctx", "30"]) == 0
    handed_in = column("submission/Weather.tsv")
    assert len(handed_in) == 12 and set(handed_in) <= set(WEATHER)
    run, test = open_run("save/weather"), test_examples(task, folder / "data")
    found = [prediction.label for prediction in run.predict([example.texts for example in test])]
    assert found == [example["prediction"] for example in predictions("test")]
    words = dict(zip(task.shown_labels(), task.written_labels(), strict=True))  # of the official files -> handed in
    assert [words[label] for label in found] == handed_in
    takes = {"multiple_choice": "1 and two choices or more"}.get(form, N_TEXTS[form])
    with pytest.raises(ValueError, match=f"example 0 has 1 texts; a {form} example takes {takes}$"):
        run.predict(["one"])


# --- when to log -----------------------------------------------------------------------------------------------------


def test_a_log_is_due_at_each_epochs_end_and_in_the_first_after_doubling_thousands():
    def due(n: int, per_epoch: int) -> list[int]:
        run = SimpleNamespace(plan=SimpleNamespace(per_epoch=per_epoch), n_updates_logged=lambda: 0)
        return [updates for updates in range(n) if train.is_log_due(SimpleNamespace(n_updates=updates, **vars(run)))]

    assert due(40_001, 17_000) == [1000, 2000, 4000, 8000, 16_000, 17_000, 34_000]
    assert due(10, 3) == [3, 6, 9]


# --- evaluation ------------------------------------------------------------------------------------------------------


def make_rows(n: int, n_choices: int = 2) -> tuple[DoubleHeadModel, Rows]:
    """Make a model of weights that matter, and rows of several lengths, whose contexts are of several lengths too."""
    rng = np.random.default_rng(0)
    examples = [[rng.integers(20, size=rng.integers(1, 5)).tolist() for _ in range(1 + n_choices)] for _ in range(n)]
    rows = Rows(Encoded.of(examples), Layout("multiple_choice", "longest", 20, 12), rng.integers(0, n_choices, n))
    model = DoubleHeadModel(Config(n_embd=8, n_head=2, n_layer=1), 22, "multiple_choice", 23 + 12, 12)
    reference.randomise(model, seed=0)
    return model, rows


@pytest.mark.parametrize("n_choices", [2, 4])
def test_evaluation_cost_is_the_mean_over_rows_whatever_the_batch(n_choices):
    model, rows = make_rows(5, n_choices)
    y = rows.labels
    x, _ = pad_rows([rows.rows(i) for i in range(5)], 20, 12)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(x))[1]  # with no common prefix, and padding computed
    logits = expected.double().numpy()
    cost = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(5), y])
    for n_batch in (1, 2, 5, 64):
        torch.testing.assert_close(predict(model, rows, n_batch, RANKS, "rows"), expected, rtol=0, atol=1e-5)
        found = evaluate(model, rows, ["acc"], n_batch, RANKS, "rows")
        assert found == (pytest.approx(cost, abs=1e-5), {"acc": pytest.approx((logits.argmax(1) == y).mean() * 100)})


def test_evaluation_computes_what_choices_share_once_and_pauses_after_each_batch(monkeypatch):
    model, rows = make_rows(5)
    n_computed, pauses, forward = [], [], model.transformer.forward
    monkeypatch.setattr(
        model.transformer,
        "forward",
        lambda packing, table: n_computed.append(len(packing.tokens)) or forward(packing, table),
    )
    ranks = Ranks(device=torch.device("cpu"))
    monkeypatch.setattr(ranks, "pause", lambda: pauses.append(len(n_computed)))
    predict(model, rows, 2, ranks, "rows")
    assert pauses == [1, 2, 3]
    n_distinct = []
    for i in range(5):
        first, second = rows.rows(i)
        n_shared = next(n for n in range(12) if first[: n + 1] != second[: n + 1])
        assert n_shared >= 3  # start, context, delimiter
        n_distinct.append(len(first) + len(second) - n_shared)
    by_length = sorted(range(5), key=lambda i: -max(map(len, rows.rows(i))))  # the longest are computed first
    assert n_computed == [sum(n_distinct[i] for i in by_length[k : k + 2]) for k in (0, 2, 4)]


def test_evaluation_drops_nothing_and_runs_no_lm_head(monkeypatch):
    def forbidden(*_):
        raise AssertionError("the language-model head ran")

    monkeypatch.setattr("model_pytorch.LMHead.forward", forbidden)
    monkeypatch.setattr("loss.lm_losses", forbidden)
    model, rows = make_rows(5)
    assert len({str(evaluate(model.train(), rows, ["acc"], 2, RANKS, "rows")) for _ in range(3)}) == 1


def predict_together(n: int, n_batch: int) -> None:
    """Predict with all processes, and compare with what one predicts."""
    model, rows = make_rows(n)
    pauses = []
    with join_ranks() as ranks:
        ranks.pause = lambda: pauses.append(ranks.wait())
        found = predict(model, rows, n_batch, ranks, "rows")
        torch.testing.assert_close(found, predict(model, rows, n_batch, RANKS, "rows"))
        assert found.shape == (n, 2)
        assert (ranks.gather(torch.tensor([len(pauses)])) == len(pauses)).all()


@pytest.mark.parametrize("n, n_batch", [(1, 1), (2, 4), (4, 1), (4, 2), (5, 4)])
def test_processes_without_examples_predict_too(tmp_path, n, n_batch):
    run = Processes(partial(predict_together, n, n_batch), tmp_path, 3)
    assert run.wait() == [0, 0, 0], run.err() + run.err(1) + run.err(2)
