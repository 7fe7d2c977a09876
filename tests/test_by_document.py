"""Pre-training by document: where texts are cut, the mean over tokens, resuming, processes, bad input."""

import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import read_lines, shard_values, stop_at_the_first_log
from launch import Processes
from test_pretrain import SMALL, outcome, write_corpus

import pretrain
import reading.rows
from loss import TokenLoss, sequence_losses, token_mean
from model_pytorch import Config, LMModel
from reading.rows import Sequences, with_positions
from weights import open_model

N_VOCAB, NEWLINE = 10, 9
BY_DOCUMENT = [*SMALL, "--by_document"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("corpus.txt"))
    return tmp_path


def ids_of(sequences: Sequences) -> list[list[int]]:
    return [sequences.tokens[a : a + n].tolist() for a, n in zip(sequences.starts, sequences.lengths, strict=True)]


def plain_documents(tokens: list[int], newline: int, n_ctx: int) -> list[list[int]]:
    """Return the sequences by document, one token after the other."""
    found, document = [], []
    for token in tokens:
        document.append(token)
        if token == newline:
            found += [document[i : i + n_ctx] for i in range(0, len(document), n_ctx)]
            document = []
    return [sequence for sequence in found if len(sequence) > 1]


def perplexity(desc: str) -> float:
    return read_lines(f"log/{desc}.jsonl")[-1]["va_ppl"]


# --- sequences -------------------------------------------------------------------------------------------------------


def test_documents_are_cut_at_the_newline_and_at_n_ctx(monkeypatch):
    example = np.array([5, 6, 9, 1, 2, 3, 4, 5, 9, 9], np.uint16)
    assert ids_of(Sequences(example, 4, NEWLINE)) == [[5, 6, 9], [1, 2, 3, 4], [5, 9]]
    assert ids_of(Sequences(example, 4)) == [[5, 6, 9, 1], [2, 3, 4, 5]]
    monkeypatch.setattr(reading.rows, "SEARCHED", 7)
    rng = np.random.default_rng(0)
    for n_ctx in (2, 3, 5, 50):
        tokens = rng.integers(0, 10, 200).astype(np.uint16)
        assert ids_of(Sequences(tokens, n_ctx, NEWLINE)) == plain_documents(tokens.tolist(), NEWLINE, n_ctx)


@pytest.mark.parametrize("tokens", [[], [NEWLINE], [NEWLINE] * 3, [1, 2, 3]])
def test_without_a_document_of_two_tokens_there_is_no_sequence(tokens):
    assert len(Sequences(np.array(tokens, np.uint16), 4, NEWLINE)) == 0


def test_a_batch_is_padded_to_its_longest_document_and_each_begins_at_position_0():
    sequences = Sequences(np.array([5, 6, 9, 1, 2, 3, 4, 5, 9, 7, 9], np.uint16), 4, NEWLINE)
    packing = sequences.packed(np.array([0, 2, 3]), N_VOCAB)
    assert packing.shape == (3, 3)
    n = 3 + 2 + 2
    assert packing.tokens[:n].tolist() == [[5, 10], [6, 11], [9, 12], [5, 10], [9, 11], [7, 10], [9, 11]]
    assert (packing.predictions < len(packing.targets)).sum(1).tolist() == [2, 1, 1]


def test_windows_are_packed_as_a_batch_without_padding():
    tokens = np.random.default_rng(0).integers(0, 10, 50).astype(np.uint16)
    sequences, rows = Sequences(tokens, 8), tokens[:48].reshape(6, 8)
    packing = sequences.packed(np.array([1, 4]), N_VOCAB)
    assert len(sequences) == 6 and packing.is_full
    np.testing.assert_array_equal(packing.unpack(packing.tokens), with_positions(rows[[1, 4]], N_VOCAB))


# --- the cost --------------------------------------------------------------------------------------------------------


def plain_costs(model: LMModel, documents: list[list[int]], n_vocab: int) -> list[torch.Tensor]:
    """Return the cost of each next token, documents one by one and from all logits."""
    costs = []
    for ids in documents:
        x = torch.from_numpy(with_positions(np.array(ids), n_vocab))[None]
        log_probabilities = model(x)[0].double().log_softmax(-1)
        costs += [-log_probabilities[t, ids[t + 1]] for t in range(len(ids) - 1)]
    return costs


def test_the_cost_by_document_is_the_mean_over_tokens():
    torch.manual_seed(0)
    model = LMModel(Config(n_embd=16, n_head=2, n_layer=2), N_VOCAB + 8, 8).eval()
    for matrix in model.parameters():
        torch.nn.init.normal_(matrix, std=0.3)  # so that tokens and documents differ in cost
    tokens = np.array([1, 9, 5, 6, 7, 8, 1, 2, 9, 3, 3, 9, 4, 9], np.uint16)
    sequences = Sequences(tokens, 8, NEWLINE)
    packing = sequences.packed(np.arange(4), N_VOCAB)
    cost = TokenLoss(model)(packing)
    n_next = torch.from_numpy(sequences.lengths - 1)
    held_out = token_mean(sequence_losses(model, packing), n_next)
    gradients = torch.autograd.grad(cost, list(model.parameters()))
    costs = plain_costs(model, ids_of(sequences), N_VOCAB)
    expected = torch.stack(costs).mean()
    assert cost.item() == held_out.item() == pytest.approx(expected.item(), rel=1e-6)
    mean_of_means = torch.stack([costs[0], *[torch.stack(costs[i:j]).mean() for i, j in ((1, 7), (7, 9), (9, 10))]])
    assert abs(mean_of_means.mean().item() - expected.item()) > 1e-2
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_held_out_perplexity_by_document_is_over_tokens():
    assert pretrain.main([*BY_DOCUMENT, "--n_iter", "1"]) == 0
    model, encoder = open_model("model", return_probs=False)
    tokens = np.fromfile("save/pretrain/tokens.bin", np.uint16).tolist()
    documents = plain_documents(tokens, encoder.encoder["\n</w>"], 16)
    assert len(documents) > 60 and len(set(map(len, documents))) > 5  # some of the 60 lines are cut
    held_out = documents[-round(0.1 * len(documents)) :]
    with torch.no_grad():
        costs = plain_costs(model.eval(), held_out, len(encoder.encoder))
    assert perplexity("pretrain") == pytest.approx(torch.stack(costs).mean().exp().item(), rel=1e-5)
    settings = read_lines("log/pretrain.jsonl")[0]
    assert settings["by_document"] and settings["n_train"] == len(documents) - len(held_out)


@pytest.mark.parametrize("flags, tolerance", [("--checkpoint_activations", 1e-7), ("--precision bf16", 2e-2)])
def test_less_memory_or_precision_gives_the_same_training(flags, tolerance):
    for name, more in (("plain", ""), ("other", flags)):
        assert pretrain.main([*BY_DOCUMENT, "--n_iter", "1", "--desc", name, "--model_dir", name, *more.split()]) == 0
    assert perplexity("other") == pytest.approx(perplexity("plain"), rel=tolerance)


def test_a_model_of_its_own_serves_as_the_start(capsys):
    assert pretrain.main(BY_DOCUMENT) == 0
    capsys.readouterr()
    flags = "--init_from model --model_dir second --desc second --lr 0 --n_iter 1".split()
    assert pretrain.main([*BY_DOCUMENT, *flags]) == 0
    before = re.search(r"^before   perplexity: held out ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert float(before) == pytest.approx(perplexity("pretrain"), abs=1e-3)
    np.testing.assert_array_equal(shard_values("second"), shard_values("model"))


# --- resuming and processes ------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_same_end(folder, monkeypatch, capsys):
    assert pretrain.main(BY_DOCUMENT) == 0
    assert "sequences of at most 16\n" in capsys.readouterr().out
    unbroken = outcome(folder)
    (folder / "broken").mkdir()
    monkeypatch.chdir(folder / "broken")
    write_corpus(Path("corpus.txt"))
    stop_at_the_first_log(pretrain.main, BY_DOCUMENT)
    assert pretrain.main([*SMALL, "--resume"]) == 2
    (changed,) = re.findall("was made with another (.*?)\\.", capsys.readouterr().err)
    assert "by_document" in changed.split(", ")
    assert pretrain.main([*BY_DOCUMENT, "--resume"]) == 0
    assert outcome(Path.cwd()) == unbroken


def test_two_processes_train_as_two_batches_of_one_do(folder):
    flags = [*BY_DOCUMENT, "--embd_pdrop", "0", "--attn_pdrop", "0", "--resid_pdrop", "0", "--n_batch", "2"]
    logs = []
    for name, n_processes, more in (("one", None, ["--accumulate", "2"]), ("two", 2, [])):
        (folder / name).mkdir()
        write_corpus(folder / name / "corpus.txt")
        run = Processes(partial(pretrain.main, [*flags, *more]), folder / name, n_processes)
        assert set(run.wait()) == {0}, run.err()
        logs.append(read_lines(folder / name / "log/pretrain.jsonl")[1:])
    assert len(logs[0]) > 3
    for ours, theirs in zip(*logs, strict=True):
        assert ours.pop("costs") == pytest.approx(theirs.pop("costs"), rel=1e-5)
        assert ours == pytest.approx(theirs, rel=1e-5)
    np.testing.assert_allclose(shard_values("two/model"), shard_values("one/model"), rtol=0, atol=1e-5)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_corpus_of_one_document_is_named(capsys):
    Path("corpus.txt").write_text("the cat\n")
    assert pretrain.main(BY_DOCUMENT) == 2
    assert re.search(r"corpus.txt: \d+ tokens make 0 sequences to train on", capsys.readouterr().err)


def test_a_vocabulary_without_newline_is_named(capsys):
    assert pretrain.main([*SMALL, "--n_iter", "1"]) == 0
    path = Path("model/encoder_bpe_40000.json")
    ids = json.loads(path.read_text())
    path.write_text(json.dumps({("q q</w>" if token == "\n</w>" else token): i for token, i in ids.items()}))
    flags = "--init_from model --model_dir second --desc second --n_iter 1".split()
    assert pretrain.main([*BY_DOCUMENT, *flags]) == 2
    err = capsys.readouterr().err
    assert "encoder_bpe_40000.json has no newline token: leave out --by_document." in err
    assert not Path("second/params_0.npy").exists()
    assert math.isfinite(perplexity("pretrain")) and pretrain.main([*SMALL, *flags]) == 0
