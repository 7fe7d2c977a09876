"""Scores of texts against a plain statement in float64, the losses of training, and what pre-training logged."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model_pytorch import CFG, N_VOCAB, make
from test_packing import rows_of
from test_pretrain import SMALL, write_corpus

import pretrain
from formats.files import InputError
from loss import compute_losses, lm_losses
from model_pytorch import LMModel
from scoring import (
    HEADER,
    _perplexity,
    next_tokens,
    pack,
    score,
    score_file,
    score_ids,
    windows,
)
from weights import open_model

N_CTX = 8


@pytest.fixture
def model() -> LMModel:
    torch.manual_seed(0)
    model = LMModel(CFG, N_VOCAB + N_CTX, N_CTX).double()
    with torch.no_grad():
        model.transformer.embed.weight.mul_(30)
    return model


def plain_logs(model: LMModel, ids: list[int], n_words: int | None) -> torch.Tensor:
    """Return the log-probabilities of what follows each token of a row (T, n_words), from the model's logits."""
    first_position = len(model.transformer.embed.weight) - model.transformer.n_ctx
    x = torch.tensor([[[i, first_position + t] for t, i in enumerate(ids)]])
    with torch.no_grad():
        return model.eval()(x)[0, :, :n_words].log_softmax(-1)


@pytest.mark.parametrize("n_words", [N_VOCAB, None], ids=["words", "all rows"])
def test_log_probabilities_equal_a_plain_statement(model, n_words):
    rows = [[1, 2, 3, 4, 5, 6, 7, 8], [3, 3], [9], [0, 10, 4]]
    found = next_tokens(model.transformer, pack(model.transformer, [[row] for row in rows]), n_words)
    found = torch.stack(found, 1)  # (4, 3, 7)
    assert found.shape == (4, 3, 7)
    for row, values in zip(rows, found, strict=True):
        for t, logs in enumerate(plain_logs(model, row, n_words)[:-1]):
            own = logs[row[t + 1]]
            expected = [own, -(logs.exp() * logs).sum(), (logs >= own).sum()]
            torch.testing.assert_close(values[:, t], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
        assert (values[:, len(row) - 1 :] == 0).all()


def test_rows_that_share_a_context_are_scored_as_by_themselves(model):
    examples = [[[1, 2, 3, 4], [1, 2, 5, 6, 7]], [[8, 2], [8, 9]]]
    t = model.transformer
    shared, alone = (next_tokens(t, pack(t, examples, share), N_VOCAB)[0] for share in (True, False))
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("share_context", [False, True])
def test_all_rows_equal_the_losses_of_training(share_context):
    model = make()[0].eval()
    examples = [[[11, 1, 2, 12, 3, 13], [11, 1, 2, 12, 4, 5, 6, 7, 13]], [[11, 8, 12, 1, 13], [11, 9, 9, 12, 1, 13]]]
    x, m = rows_of(examples)
    _, expected = compute_losses(model, x, m, torch.tensor([0, 1]), lm_coef=0.5)
    packing = pack(model.transformer, examples, share_context)
    found = next_tokens(model.transformer, packing).log_probabilities
    lengths = torch.tensor([len(row) - 1 for rows in examples for row in rows])
    torch.testing.assert_close(-found.sum(1) / lengths, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        own = lm_losses(model.transformer(packing), model.transformer.embed.weight, packing)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)


def test_all_rows_in_float32_equal_the_losses_of_training(model_dir):
    model, encoder = open_model(model_dir, return_probs=False)
    text = "the cat was in the red hat, and the dog was in bed"
    found = score(model, encoder, text, all_rows=True)
    packing = pack(model.transformer, [[encoder.encode([text], verbose=False)[0]]])
    with torch.no_grad():
        expected = lm_losses(model.transformer(packing), model.transformer.embed.weight, packing).item()
    assert -np.nanmean(found.log_probabilities) == pytest.approx(expected, abs=1e-6)


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_docstring():
    assert list(windows(7, 4, 2)) == [(0, 4, 1), (2, 6, 4), (4, 7, 6)]
    assert list(windows(7, 4, 4)) == [(0, 4, 1), (4, 7, 5)]
    assert list(windows(5, 4, 4)) == [(0, 4, 1)]
    assert list(windows(3, 4, 2)) == [(0, 3, 1)]
    assert list(windows(1, 4, 2)) == list(windows(0, 4, 2)) == []


@pytest.mark.parametrize("stride", [1, 3, 4, 7])
@pytest.mark.parametrize("n_tokens", [2, 7, 8, 9, 12, 31])
def test_windows_score_each_token_but_the_first_once_in_a_context_long_enough(n_tokens, stride):
    scored = []
    for start, end, first in windows(n_tokens, N_CTX, stride):
        assert end - start <= N_CTX
        assert first - start >= min(first, N_CTX - stride)
        scored += range(first, end)
    assert scored == list(range(1, n_tokens))


def test_a_token_is_scored_from_the_context_of_its_window(model):
    ids = [(5 * i + i * i) % N_VOCAB for i in range(19)]
    for stride in (None, 2, N_CTX):
        found = score_ids(model, ids, N_VOCAB, stride, n_batch=3).log_probabilities
        expected = np.full(19, np.nan)
        for start, end, first in windows(19, N_CTX, stride or N_CTX // 2):
            logs = plain_logs(model, ids[start:end], N_VOCAB)
            expected[first:end] = [logs[t - start - 1, ids[t]].item() for t in range(first, end)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert np.isnan(found).nonzero()[0].tolist() == [0, 8, 16]


@pytest.mark.parametrize("stride", [0, -1, N_CTX + 1])
def test_a_stride_that_skips_tokens_is_refused(model, stride):
    with pytest.raises(InputError, match=f"the stride is {stride}; .* 1 to that many"):
        score_ids(model, [1, 2, 3], stride=stride)


def test_a_model_in_training_is_scored_without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    found = [score_ids(model.train(), [1, 2, 3, 4], N_VOCAB) for _ in range(2)]
    np.testing.assert_array_equal(*found)


# --- texts and files -------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(model_dir):
    return open_model(model_dir, return_probs=False)


def test_scores_of_words_are_sums_over_their_tokens(opened):
    found = score(*opened, "the cat and the hat")
    lengths = [len(word.ids) for word in found.words]
    assert [word.text for word in found.words] == "the cat and the hat".split()
    assert sum(lengths) == len(found.log_probabilities)
    of_words = found.of_words()
    assert np.isnan(of_words[0]) and np.isnan(found.log_probabilities[0])
    assert of_words[1] == pytest.approx(found.log_probabilities[1 : 1 + lengths[1]].sum())
    assert of_words[1:].sum() == pytest.approx(found.log_probabilities[1:].sum())
    assert found.per_token() == pytest.approx(math.exp(-found.log_probabilities[1:].mean()))
    assert found.per_word() == pytest.approx(math.exp(-of_words[1:].mean()))
    np.testing.assert_allclose(found.surprisal()[1:] * math.log(2), -of_words[1:])

    # special tokens that a user adds, as users of the early port do, change nothing
    opened[1].encoder["_start_"] = len(opened[1].encoder)
    again = score(*opened, found.words)
    np.testing.assert_array_equal(again.log_probabilities, found.log_probabilities)
    assert again.n_entries == found.n_entries


def test_words_that_are_given_have_a_surprisal_each(opened):
    given = ["The", "mother-in-law", "don’t", "sit."]
    found = score(*opened, given)
    assert [word.text for word in found.words] == given
    as_text = score(*opened, " ".join(given))
    assert np.array_equal(found.log_probabilities, as_text.log_probabilities, equal_nan=True)
    ids = opened[1].encode(given, verbose=False)
    starts = np.cumsum([0, *map(len, ids)])
    for i in range(1, len(given)):
        expected = -as_text.log_probabilities[starts[i] : starts[i + 1]].sum() / math.log(2)
        assert found.surprisal()[i] == pytest.approx(expected)


@pytest.mark.parametrize("context", ["red", ["The", "mother-in-law"], "the red cat was in the hat. " * 30])
def test_a_context_is_read_and_not_scored(opened, context):
    n_before = len(score(*opened, context, context="x").log_probabilities)
    joined = f"{context if isinstance(context, str) else ' '.join(context)} the cat"
    whole = score(*opened, joined)
    found = score(*opened, "the cat", context=context)
    assert [word.text for word in found.words] == ["the", "cat"]
    np.testing.assert_array_equal(found.log_probabilities, whole.log_probabilities[n_before:])
    assert len(score(*opened, "the", context=context).log_probabilities) == 1
    with pytest.raises(InputError, match="0 tokens: there is nothing to score"):
        score(*opened, "", context=context)


def test_the_distribution_entropy_and_rank_of_each_next_word(opened):
    model, encoder = opened
    given, context = ["the", "mother-in-law", "was", "red"], "in"
    found = score(model, encoder, given, context=context)
    ids = encoder.encode([context, *given], verbose=False)
    for w in range(len(given)):
        before = sum(ids[: w + 1], [])
        expected = plain_logs(model, before, encoder.n_vocab)[-1]
        first = ids[w + 1][0]
        np.testing.assert_allclose(found.next_word(model, w), expected.exp(), atol=1e-6)
        assert found.entropy()[w] == pytest.approx(-(expected.exp() * expected).sum().item() / math.log(2), abs=1e-5)
        assert found.rank()[w] == (expected >= expected[first]).sum()
    after = plain_logs(model, sum(ids, []), encoder.n_vocab)[-1].exp()
    np.testing.assert_allclose(found.next_word(model), after, atol=1e-6)

    # without a context, and in more than n_ctx tokens
    long = score(model, encoder, given * 10)
    assert np.isnan([long.entropy()[0], long.rank()[0]]).all() and np.isfinite(long.entropy()[1:]).all()
    last = plain_logs(model, (sum(ids[1:], []) * 10)[-64:], encoder.n_vocab)[-1].exp()
    np.testing.assert_allclose(long.next_word(model), last, atol=1e-6)
    with pytest.raises(ValueError, match="nothing comes before the first word"):
        long.next_word(model, 0)


@pytest.mark.parametrize("text", ["", " \n", "x"])
def test_a_text_with_nothing_to_score_is_refused(opened, text):
    with pytest.raises(InputError, match="tokens: there is nothing to score"):
        score(*opened, text)


def test_the_table_of_a_file(opened, tmp_path):
    (path := tmp_path / "text.txt").write_text('The "cat"\tsat.\n\n  Don’t!\n', encoding="utf-8")
    found = score_file(*opened, path, out := io.StringIO())
    header, *rows = csv.reader(io.StringIO(out.getvalue()), delimiter="\t", quoting=csv.QUOTE_NONE)
    assert tuple(header) == HEADER
    assert [row[3] for row in rows] == ["The", '"', "cat", '"', "sat", ".", "\\n", "Do", "n’t", "!", "\\n"]
    assert [row[0] for row in rows] == ["1"] * 7 + ["3"] * 4
    assert rows[0][1:3] == ["0", "3"] and rows[8][1:3] == ["4", "7"] and rows[6][1:3] == ["", ""]
    assert rows[0][4] == rows[0][6] == "NA"
    tokens = [token for row in rows for token in row[5].split()]
    logs = [float(value) for row in rows for value in row[6].split() if value != "NA"]
    ids = [i for word in found.words for i in word.ids]
    assert tokens == [opened[1].decoder[i].replace("\n", "\\n") for i in ids]
    np.testing.assert_allclose(logs, found.log_probabilities[1:], atol=1e-5)
    assert float(rows[3][4]) == pytest.approx(-sum(map(float, rows[3][6].split())) / math.log(2), abs=1e-4)
    assert score_file(*opened, path).per_token() == found.per_token()
    line = found.perplexities()
    assert f"perplexity {found.per_token():.4f} per token" in line
    assert "in 11 words" in line and f"over {opened[1].n_vocab} entries" in line


def test_each_line_of_a_file_by_itself(opened, tmp_path):
    lines = ["The cat sat.", "", "x", "a red hat. " * 30, "The cat sat."]
    (path := tmp_path / "text.txt").write_text("\n".join(lines))
    found = score_file(*opened, path, out := io.StringIO(), stride=5, by_line=True)
    rows = list(csv.reader(io.StringIO(out.getvalue()), delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    expected = []
    for line in (lines[0], lines[3], lines[4]):
        expected.append(score(*opened, line, stride=5).log_probabilities)
    expected.insert(1, [np.nan] * len(opened[1].encode(["x"], verbose=False)[0]))
    np.testing.assert_allclose(found.log_probabilities, np.concatenate(expected), atol=1e-5)
    assert "\\n" not in [row[3] for row in rows] and {row[0] for row in rows} == set("1345")
    (path := tmp_path / "short.txt").write_text("x\nx\n")
    with pytest.raises(InputError, match="short.txt: .*nothing to score"):
        score_file(*opened, path, by_line=True)


def test_files_that_cannot_be_scored_are_named(opened, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin1"))
    (tmp_path / "short.txt").write_text("")
    for name, message in (("latin", "line 1: not UTF-8"), ("short", "nothing to score"), ("none", "is missing")):
        with pytest.raises(InputError, match=f"{name}.txt.*{message}"):
            score_file(*opened, tmp_path / f"{name}.txt")


# --- pre-training ----------------------------------------------------------------------------------------------------


def test_perplexity_of_the_held_out_text_is_what_pre_training_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("corpus.txt"))
    assert pretrain.main([*SMALL, "--n_iter", "1"]) == 0
    logged = json.loads(Path("log/pretrain.jsonl").read_text().splitlines()[-1])["va_ppl"]
    model, encoder = open_model("model", return_probs=False)
    n_ctx = model.transformer.n_ctx

    # the words of the file are the tokens of pre-training; the last tenth of their sequences was held out
    words = score_file(model, encoder, "corpus.txt").words
    ids = [i for word in words for i in word.ids]
    assert ids == np.fromfile("save/pretrain/tokens.bin", np.uint16).tolist()
    n_sequences = len(ids) // n_ctx
    held_out = ids[(n_sequences - round(0.1 * n_sequences)) * n_ctx : n_sequences * n_ctx]
    found = score_ids(model, held_out, stride=n_ctx).log_probabilities
    assert math.exp(-np.nanmean(found)) == pytest.approx(logged, rel=1e-6)


def test_packing_has_the_position_rows_of_the_model(model):
    assert pack(model.transformer, [[[1, 2]]]).tokens.tolist() == [[1, N_VOCAB], [2, N_VOCAB + 1]]
    assert pack(make()[0].transformer, [[[1, 2]]]).tokens.tolist() == [[1, N_VOCAB + 3], [2, N_VOCAB + 4]]


def test_the_perplexity_of_a_long_word_may_be_infinite():
    assert _perplexity(np.array([np.nan, -800.0])) == math.inf
    assert _perplexity(np.array([-math.log(2)])) == pytest.approx(2)
