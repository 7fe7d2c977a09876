"""The paper's zero-shot heuristics against plain statements, and on files of data sets."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef

from formats.files import InputError
from reading.splits import Limits, Splits, read_splits
from reading.tasks import TASKS, find_task
from weights import open_model
from zero_shot import continuation_scores, fit_threshold, heuristic_scores, zero_shot, zero_shot_on


@pytest.fixture
def opened(model_dir):
    model, encoder = open_model(model_dir, return_probs=False)
    with torch.no_grad():
        model.transformer.embed.weight.mul_(20)  # so that probabilities differ
    return model, encoder


def splits_of(opened, dataset: str, folder: Path, form: str | None = None, n_valid: int = 5) -> Splits:
    task = find_task(dataset, folder, form)
    return read_splits(task, folder, opened[1], Limits(n_valid=n_valid, seed=1, n_ctx=64))


def of_continuation(model, context: list[int], ids: list[int]) -> np.ndarray:
    """Return the log-probabilities, among the words, of a row's tokens after the context; never of its first one."""
    row = [*context, *ids]
    n_words = len(model.transformer.embed.weight) - model.transformer.n_ctx
    x = torch.tensor([[[i, n_words + t] for t, i in enumerate(row)]])
    with torch.no_grad():
        logs = model(x)[0, :, :n_words].double().log_softmax(-1).numpy()
    return np.array([logs[t - 1, row[t]] for t in range(max(1, len(context)), len(row))])


# --- scores of continuations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [True, False])
def test_continuations_are_scored_given_their_context(opened, mean):
    model, encoder = opened
    examples = [([1, 2, 3], [[4, 5], [6], [4, 7, 8]]), ([9], [[1, 2], [3]]), ([], [[5, 6, 7]])]
    found = continuation_scores(model, examples, encoder.n_vocab, mean)
    for (context, continuations), values in zip(examples, found, strict=True):
        parts = [of_continuation(model, context, ids) for ids in continuations]
        np.testing.assert_allclose(values, [p.mean() if mean else p.sum() for p in parts], atol=1e-5)


def test_a_context_too_long_loses_its_beginning(opened):
    model, encoder = opened
    context, continuations, long = [i % 50 for i in range(90)], [[1, 2, 3], [4]], list(range(90))
    first, second = continuation_scores(model, [(context, continuations), ([1], [long])], encoder.n_vocab)
    expected = [of_continuation(model, context[-61:], ids).mean() for ids in continuations]
    np.testing.assert_allclose(first, expected, atol=1e-5)
    np.testing.assert_allclose(second, of_continuation(model, [1], long[:63]).mean(), atol=1e-5)


def test_a_continuation_without_tokens_is_never_the_answer(opened):
    examples = [([1, 2], [[], [3]]), ([], [[], [3]]), ([1], [[2]])]
    first, second, third = continuation_scores(opened[0], examples, 90)
    assert first[0] == -math.inf and np.isfinite(first[1])
    assert (second == -math.inf).all() and np.isfinite(third).all()
    (alone,) = continuation_scores(opened[0], examples[1:2], 90)
    assert (alone == -math.inf).all()


# --- the heuristics --------------------------------------------------------------------------------------------------


def write_reading(folder: Path) -> Path:
    """Write one article of RACE with two questions, to each split."""
    for split in ("train", "dev", "test"):
        for level in ("middle", "high"):
            (path := folder / "RACE" / split / level).mkdir(parents=True)
            article = {"article": "the cat was red", "questions": ["what was it", "it was _"], "answers": ["A", "C"]}
            options = [["the cat", "the hat", "a hat", "an ant"], ["in", "an", "red", "it"]]
            (path / "1.txt").write_text(json.dumps(article | {"options": options}))
    return folder


def write_glue(folder: Path, n: int = 12) -> Path:
    texts = ["the cat was in", "red was the hat", "an ant", "the the the", "in red", "was"]
    (folder / "SST-2").mkdir(parents=True)
    (folder / "CoLA").mkdir()
    for name in ("train", "dev"):
        rows = [(texts[i % 6] + " the" * (i // 6), str(i * 5 // 3 % 2)) for i in range(n)]
        (folder / f"SST-2/{name}.tsv").write_text("sentence\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in rows))
        (folder / f"CoLA/{name}.tsv").write_text("".join(f"x\t{y}\t\t{t}\n" for t, y in rows))
    (folder / "SST-2/test.tsv").write_text("index\tsentence\n0\tthe cat\n")
    (folder / "CoLA/test.tsv").write_text("index\tsentence\n0\tthe cat\n")
    return folder


@pytest.mark.parametrize(
    "dataset, sizes",
    [
        ("rocstories", {"train": 35, "valid": 5, "test": 12}),
        ("race", {"train": 4, "valid": 4, "test": 4}),
        ("sst2", {"train": 12, "valid": 12}),  # the published test set has no labels
    ],
)
def test_the_answer_is_the_likeliest_continuation(opened, data_dir, tmp_path, dataset, sizes):
    model, encoder = opened
    write_glue(write_reading(data_dir))
    splits = splits_of(opened, dataset, data_dir)
    very, negative, positive = encoder.encode(["very", "negative", "positive"], verbose=False)
    rows = splits.test if dataset == "rocstories" else splits.valid
    right = []
    for i, label in enumerate(rows.labels):
        match rows.encoded.texts(i):
            case [text]:
                values = [of_continuation(model, [*text, *very], ids).sum() for ids in (negative, positive)]
            case [story, first, second]:
                values = [of_continuation(model, story, ids).mean() for ids in (first, second)]
            case [article, question, *choices]:
                values = [of_continuation(model, [*article, *question], ids).mean() for ids in choices]
        right.append(int(np.argmax(values)) == label)
    encoder.encoder["_start_"] = len(encoder.encoder)  # as users of the early port do: it changes nothing
    found = zero_shot(model, encoder, splits, "sentiment" if dataset == "sst2" else "choice")
    assert {name: n for name, (n, _) in found.items()} == sizes
    assert found["test" if dataset == "rocstories" else "valid"][1] == {"acc": pytest.approx(100 * np.mean(right))}


def test_sentiment_needs_its_words_in_the_vocabulary(opened, tmp_path, monkeypatch):
    splits = splits_of(opened, "sst2", write_glue(tmp_path / "glue"))
    monkeypatch.setattr(opened[1], "encode", lambda texts, verbose: [[0, 0] for _ in texts])
    with pytest.raises(InputError, match="the vocabulary lacks letters of 'very'"):
        zero_shot(*opened, splits, "sentiment")


def test_acceptability_is_the_mean_log_probability_above_a_threshold_of_train(opened, tmp_path):
    splits = splits_of(opened, "cola", write_glue(tmp_path / "glue"))
    scores, of_train = (
        np.concatenate(heuristic_scores(*opened, rows, "acceptability")) for rows in (splits.valid, splits.train)
    )
    for i, value in enumerate(scores):
        (ids,) = splits.valid.encoded.texts(i)
        parts = of_continuation(opened[0], [], ids)
        assert value == (pytest.approx(parts.mean(), abs=1e-5) if len(ids) > 1 else -math.inf)
    assert -math.inf in scores
    threshold = fit_threshold(of_train, splits.train.labels)
    expected = 100 * matthews_corrcoef(splits.valid.labels, scores > threshold)
    assert zero_shot(*opened, splits, "acceptability")["valid"] == (12, {"mcc": pytest.approx(expected)})


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_has_the_largest_matthews_correlation(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=30).round(1), rng.integers(0, 2, 30)
    if seed == 7:
        scores[:3] = -math.inf  # texts of one token
    best = max(matthews_corrcoef(labels, scores > t) for t in (-math.inf, *scores))
    assert matthews_corrcoef(labels, scores > fit_threshold(scores, labels)) == pytest.approx(best)


def test_a_threshold_of_one_label_or_one_score_is_a_number():
    assert fit_threshold(np.array([1.0, 2.0]), np.array([1, 1])) == -math.inf
    assert fit_threshold(np.array([2.0, 2.0]), np.array([0, 1])) == -math.inf


@pytest.mark.parametrize(
    "heuristic, message",
    [("choice", "choice takes a multiple choice; SST-2 is classification with 2 labels"), ("acceptability", None)],
)
def test_a_heuristic_says_what_it_is_for(opened, tmp_path, heuristic, message):
    splits = splits_of(opened, "sst2", write_glue(tmp_path / "glue"))
    if message:
        with pytest.raises(InputError, match=message):
            zero_shot(*opened, splits, heuristic)
    three = dataclasses.replace(splits, task=dataclasses.replace(TASKS["sst2"], labels=("0", "1", "2")))
    with pytest.raises(InputError, match="with 3 labels"):
        zero_shot(*opened, three, heuristic)


@pytest.mark.parametrize("heuristic", ["sentiment", "acceptability"])
def test_the_meaning_of_a_label_is_not_its_place_in_the_alphabet(opened, tmp_path, heuristic):
    found = []
    for bad, good in (("neg", "pos"), ("sad", "glad")):
        (folder := tmp_path / bad).mkdir()
        for name in ("train", "valid"):
            lines = [f"the {word} was in,{good if word in 'cat hat' else bad}" for word in ("cat", "hat", "red")]
            (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
        splits = splits_of(opened, "own", folder, "classification")
        names = None if bad == "neg" else (bad, good)
        found.append(zero_shot(*opened, splits, heuristic, names))
    assert found[0] == found[1]
    with pytest.raises(InputError, match="which label is the bad one, and which the good one.+--label_names glad,sad"):
        zero_shot(*opened, splits, heuristic)


def test_own_data_are_answered_in_words(opened, tmp_path):
    (folder := tmp_path / "own").mkdir()
    for name, n in (("train", 6), ("valid", 4)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(
                [("text", "label"), *[("the cat", "negative"), ("a hat", "positive")] * (n // 2)]
            )
    lines = zero_shot_on(*opened, "sentiment", find_task("own", folder, "classification"), folder)
    assert [line.split(": ")[0] for line in lines] == [
        "Own data, train, 6 examples, zero-shot sentiment",
        "Own data, valid, 4 examples, zero-shot sentiment",
    ]
    assert all("Accuracy" in line and line.endswith(" %") for line in lines)
