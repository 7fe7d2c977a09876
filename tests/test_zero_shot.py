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
from zero_shot import continuation_scores, fit_threshold, mean_log_probabilities, zero_shot, zero_shot_on


@pytest.fixture
def opened(model_dir):
    model, encoder = open_model(model_dir, return_probs=False)
    with torch.no_grad():
        model.transformer.embed.weight.mul_(20)  # so that probabilities differ
    return model, encoder


def splits_of(opened, dataset: str, folder: Path, form: str | None = None, n_valid: int = 5) -> Splits:
    task = find_task(dataset, folder, form)
    return read_splits(task, folder, opened[1], Limits(n_valid=n_valid, seed=1, n_ctx=64))


def logs(model, ids: list[int], n_words: int) -> np.ndarray:
    """Return the log-probabilities (T, n_words) of what follows each token of a row."""
    first_position = len(model.transformer.embed.weight) - model.transformer.n_ctx
    x = torch.tensor([[[i, first_position + t] for t, i in enumerate(ids)]])
    with torch.no_grad():
        return model(x)[0, :, :n_words].double().log_softmax(-1).numpy()


def of_continuation(model, context: list[int], ids: list[int], n_words: int) -> np.ndarray:
    values = logs(model, row := [*context, *ids], n_words)
    return np.array([values[t - 1, row[t]] for t in range(max(1, len(context)), len(row))])


# --- scores of continuations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [True, False])
def test_continuations_are_scored_given_their_context(opened, mean):
    model, encoder = opened
    n_words = len(encoder.encoder)
    examples = [([1, 2, 3], [[4, 5], [6], [4, 7, 8]]), ([9], [[1, 2], [3]]), ([], [[5, 6, 7]])]
    found = list(continuation_scores(model, examples, n_words, mean, n_batch=2))
    for (context, continuations), values in zip(examples, found, strict=True):
        parts = [of_continuation(model, context, ids, n_words) for ids in continuations]
        np.testing.assert_allclose(values, [p.mean() if mean else p.sum() for p in parts], atol=1e-5)


def test_a_context_too_long_loses_its_beginning(opened):
    model, encoder = opened
    context, continuations = [i % 50 for i in range(90)], [[1, 2, 3], [4]]
    (found,) = continuation_scores(model, [(context, continuations)], len(encoder.encoder))
    expected = [of_continuation(model, context[-61:], ids, len(encoder.encoder)).mean() for ids in continuations]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (found,) = continuation_scores(model, [([1], [list(range(90))])], len(encoder.encoder))
    np.testing.assert_allclose(
        found, of_continuation(model, [1], list(range(63)), len(encoder.encoder)).mean(), atol=1e-5
    )


def test_a_continuation_without_tokens_is_never_the_answer(opened):
    model, encoder = opened
    first, second, third = continuation_scores(model, [([1, 2], [[], [3]]), ([], [[], [3]]), ([1], [[2]])], 90)
    assert first[0] == -math.inf and np.isfinite(first[1])
    assert (second == -math.inf).all() and np.isfinite(third).all()
    (alone,) = continuation_scores(model, [([], [[3], []])], 90)
    assert (alone == -math.inf).all()


# --- the heuristics --------------------------------------------------------------------------------------------------


def test_choice_takes_the_largest_mean_given_the_story(opened, data_dir):
    model, encoder = opened
    splits = splits_of(opened, "rocstories", data_dir)
    found = zero_shot(model, encoder, splits, "choice", n_batch=3)
    right, n_words = [], len(encoder.encoder)
    for i in range(len(splits.test)):
        context, *choices = splits.test.encoded.texts(i)
        scores = [of_continuation(model, context, ids, n_words).mean() for ids in choices]
        right.append(int(np.argmax(scores)) == splits.test.labels[i])
    assert found["test"] == (12, {"acc": pytest.approx(100 * np.mean(right))})
    assert found["train"][0] == 35 and found["valid"][0] == 5


def write_reading(folder: Path) -> Path:
    """Write one article of RACE with two questions, to each split."""
    for split in ("train", "dev", "test"):
        for level in ("middle", "high"):
            (path := folder / "RACE" / split / level).mkdir(parents=True)
            article = {"article": "the cat was red", "questions": ["what was it", "it was _"], "answers": ["A", "C"]}
            options = [["the cat", "the hat", "a hat", "an ant"], ["in", "an", "red", "it"]]
            (path / "1.txt").write_text(json.dumps(article | {"options": options}))
    return folder


def test_choice_of_reading_is_given_article_and_question(opened, tmp_path):
    model, encoder = opened
    splits = splits_of(opened, "race", write_reading(tmp_path))
    right, n_words = [], len(encoder.encoder)
    for i in range(len(splits.valid)):
        article, question, *choices = splits.valid.encoded.texts(i)
        scores = [of_continuation(model, [*article, *question], ids, n_words).mean() for ids in choices]
        right.append(int(np.argmax(scores)) == splits.valid.labels[i])
    assert zero_shot(model, encoder, splits, "choice")["valid"] == (4, {"acc": 100 * np.mean(right)})


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


def test_sentiment_compares_positive_and_negative_after_very(opened, tmp_path):
    model, encoder = opened
    splits = splits_of(opened, "sst2", write_glue(tmp_path / "glue"))
    very, negative, positive = encoder.encode(["very", "negative", "positive"], verbose=False)
    right, n_words = [], len(encoder.encoder)
    for i in range(len(splits.valid)):
        context = [*splits.valid.encoded.texts(i)[0], *very]
        scores = [of_continuation(model, context, word, n_words).sum() for word in (negative, positive)]
        right.append((scores[1] > scores[0]) == splits.valid.labels[i])
    found = zero_shot(model, encoder, splits, "sentiment")
    assert found["valid"] == (12, {"acc": pytest.approx(100 * np.mean(right))})
    assert set(found) == {"train", "valid"}  # the published test set has no labels


def test_sentiment_needs_its_words_in_the_vocabulary(opened, tmp_path):
    model, encoder = opened
    splits = splits_of(opened, "sst2", write_glue(tmp_path / "glue"))
    encoder.cache["positive"] = [0, 0]
    with pytest.raises(InputError, match="the vocabulary lacks letters of 'positive'"):
        zero_shot(model, encoder, splits, "sentiment")


def test_acceptability_is_the_mean_log_probability_above_a_threshold_of_train(opened, tmp_path):
    model, encoder = opened
    splits = splits_of(opened, "cola", write_glue(tmp_path / "glue"))
    scores = mean_log_probabilities(model, encoder, splits.valid)
    n_words = len(encoder.encoder)
    for i, value in enumerate(scores):
        (ids,) = splits.valid.encoded.texts(i)
        parts = of_continuation(model, [], ids, n_words)
        assert value == (pytest.approx(parts.mean(), abs=1e-5) if len(ids) > 1 else -math.inf)
    assert -math.inf in scores
    threshold = fit_threshold(mean_log_probabilities(model, encoder, splits.train), splits.train.labels)
    expected = 100 * matthews_corrcoef(splits.valid.labels, scores > threshold)
    assert zero_shot(model, encoder, splits, "acceptability")["valid"] == (12, {"mcc": pytest.approx(expected)})


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


def test_own_data_are_answered_in_words(opened, tmp_path):
    (folder := tmp_path / "own").mkdir()
    for name, n in (("train", 6), ("valid", 4)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(
                [("text", "label"), *[("the cat", "negative"), ("a hat", "positive")] * (n // 2)]
            )
    lines = zero_shot_on(*opened, "sentiment", "own", folder, "classification")
    assert [line.split(": ")[0] for line in lines] == [
        "Own data, train, 6 examples, zero-shot sentiment",
        "Own data, valid, 4 examples, zero-shot sentiment",
    ]
    assert all("Accuracy" in line and line.endswith(" %") for line in lines)
