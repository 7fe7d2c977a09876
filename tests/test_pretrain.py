"""Pre-training: a run, what it writes, and resuming after every kind of interruption."""

import gzip
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import contents, read_lines, refused, shard_values, stop_at_the_first_log
from safetensors.torch import load_file

import loss
import model_pytorch
import pretrain
import train
from formats.authors import load_openai_pretrained_model
from formats.folders import read_sizes
from model_pytorch import Config, LMModel, TransformerModel
from reading import corpus
from running import checkpoint

SMALL = (
    "--corpus corpus.txt --model_dir model --n_merges 40 --n_ctx 16 --n_batch 4 --n_embd 16 --n_head 2 --n_layer 2 "
    "--n_iter 3 --lr 5e-3 --lr_warmup 3 --log_every 5 --checkpoint_every 4 --valid_share 0.1"
).split()


def write_corpus(path: Path, n_lines: int = 60) -> None:
    rng = random.Random(0)
    words = "the cat sat on a mat and saw one red bird while it rained, he said: don't go!".split()
    path.write_text("".join(" ".join(rng.choices(words, k=rng.randint(4, 12))) + ".\n" for _ in range(n_lines)))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("corpus.txt"))
    return tmp_path


def outcome(folder: Path) -> dict[str, bytes]:
    """Return the files that a run writes for its user: weights, log and picture."""
    paths = [*folder.glob("model/*"), *folder.glob("log/*")]
    return {str(path.relative_to(folder)): re.sub(rb'"time": [^,}]+', b"", path.read_bytes()) for path in paths}


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.pictures
def test_a_run_learns_and_writes_a_folder_that_loads_bit_for_bit(monkeypatch):
    trained = []
    save = pretrain.save_openai_model
    monkeypatch.setattr(pretrain, "save_openai_model", lambda model, *rest: trained.append(model) or save(model, *rest))
    assert pretrain.main(SMALL) == 0
    settings, *logs = read_lines("log/pretrain.jsonl")
    assert logs[-1]["n_updates"] == settings["t_total"] and logs[-1]["va_ppl"] < 0.7 * logs[0]["va_ppl"]
    assert Path("log/pretrain.png").read_bytes().startswith(b"\x89PNG")

    sizes = read_sizes("model")
    assert (sizes.n_positions, sizes.n_embd, sizes.n_head, sizes.n_layer) == (16, 16, 2, 2)
    n_values = [len(np.load(f"model/params_{i}.npy")) for i in range(10)]
    assert max(n_values) - min(n_values) <= 1  # cut as the authors cut theirs
    cfg = Config(n_embd=16, n_head=2, n_layer=2)
    loaded = TransformerModel(cfg, sizes.n_vocab + 16, 16)
    load_openai_pretrained_model(loaded, path="model")
    for (name, ours), theirs in zip(loaded.named_parameters(), trained[0].parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_fine_tuning_starts_from_the_folder(data_dir):
    assert pretrain.main(SMALL) == 0
    assert train.main(f"--model_dir model --data_dir {data_dir} --n_valid 10 --n_ctx 12 --n_iter 1".split()) == 0


def test_perplexity_is_that_of_the_held_out_sequences():
    assert pretrain.main([*SMALL, "--n_iter", "1"]) == 0
    last = read_lines("log/pretrain.jsonl")[-1]
    sizes = read_sizes("model")
    model = LMModel(Config(n_embd=16, n_head=2, n_layer=2), sizes.n_vocab + 16, 16).eval()
    load_openai_pretrained_model(model.transformer, path="model")
    tokens = np.fromfile("save/pretrain/tokens.bin", np.uint16).astype(int)
    sequences = tokens[: len(tokens) // 16 * 16].reshape(-1, 16)
    held_out = sequences[-round(0.1 * len(sequences)) :]
    costs = []
    for sequence in held_out:
        x = torch.tensor(np.stack([sequence, np.arange(sizes.n_vocab, sizes.n_vocab + 16)], -1))[None]
        with torch.no_grad():
            log_probabilities = model(x)[0].double().log_softmax(-1)
        costs += [-log_probabilities[t, sequence[t + 1]].item() for t in range(15)]
    assert last["va_ppl"] == pytest.approx(math.exp(np.mean(costs)), rel=1e-5)


def test_the_same_seed_gives_the_same_folder(folder):
    outcomes = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        pretrain.main([*SMALL, "--n_iter", "1", "--model_dir", f"{name}/model", "--desc", name])
        outcomes.append(contents(Path(name, "model")))
    assert outcomes[0] == outcomes[1]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(capsys):
    assert pretrain.main(SMALL) == 0
    weights = Path("model/params_0.npy").read_bytes()
    *_, newest = sorted(Path("save/pretrain").glob("checkpoint_*"))
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "tensors.safetensors").write_bytes(content)
    Path("model/params_0.npy").unlink()
    assert pretrain.main([*SMALL, "--resume"]) == 0
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert Path("model/params_0.npy").read_bytes() == weights


def test_initial_matrices_have_the_spread_asked_for(monkeypatch):
    spreads, original = [], loss.TokenLoss.forward

    def forward(token_loss, packing):
        spreads.append(token_loss.model.transformer.embed.weight.std().item())
        return original(token_loss, packing)

    monkeypatch.setattr(loss.TokenLoss, "forward", forward)
    for n, flags in enumerate((["--desc", "a"], ["--desc", "b", "--model_dir", "b", "--init_std", "0.1"])):
        spreads.clear()
        pretrain.main([*SMALL, "--n_iter", "1", *flags])
        assert spreads[0] == pytest.approx((0.02, 0.1)[n], rel=0.05)


def test_bf16_rounds_the_products_but_not_the_parameters():
    perplexities = []
    for name in ("fp32", "bf16"):
        assert pretrain.main([*SMALL, "--precision", name, "--desc", name, "--model_dir", name]) == 0
        perplexities.append(read_lines(f"log/{name}.jsonl")[-1]["va_ppl"])
    assert perplexities[0] != perplexities[1] == pytest.approx(perplexities[0], rel=1e-2)
    *_, newest = sorted(Path("save/bf16").glob("checkpoint_*"))
    assert {value.dtype for value in load_file(newest / "tensors.safetensors").values()} == {torch.float32, torch.uint8}


def test_checkpointed_activations_change_nothing(monkeypatch):
    calls, original, folders = [], model_pytorch.checkpoint, []
    monkeypatch.setattr(model_pytorch, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    for name, flags in (("kept", []), ("computed_twice", ["--checkpoint_activations"])):
        assert pretrain.main([*SMALL, "--n_iter", "1", "--desc", name, "--model_dir", name, *flags]) == 0
        assert bool(calls) == bool(flags)
        folders.append(shard_values(name))
    np.testing.assert_allclose(folders[0], folders[1], rtol=0, atol=1e-7)


def test_two_checkpoints_are_kept(folder):
    assert pretrain.main(SMALL) == 0
    assert len(list(Path("save/pretrain").glob("checkpoint_*"))) == checkpoint.KEPT == 2


# --- corpora of many files -------------------------------------------------------------------------------------------


def test_files_compressed_or_not_are_one_corpus(folder, capsys):
    lines = Path("corpus.txt").read_bytes().splitlines(keepends=True)
    Path("books").mkdir()
    Path("books/1.txt").write_bytes(b"".join(lines[:20]))
    Path("books/2.txt.gz").write_bytes(gzip.compress(b"".join(lines[20:50])))
    Path("last.txt").write_bytes(b"".join(lines[50:]))
    assert pretrain.main([*SMALL, "--n_iter", "1"]) == 0
    whole = contents("model")
    many = [*SMALL, "--n_iter", "1", "--model_dir", "other", "--desc", "many", "--corpus", "books", "last.txt"]
    assert pretrain.main(many) == 0
    assert contents("other") == whole
    digests = read_lines("log/many.jsonl")[0]["digests"]
    assert digests.keys() == {"corpus", "encoder_bpe_40000.json", "vocab_40000.bpe"}
    with open("last.txt", "a") as file:
        file.write("the cat sat .\n")
    capsys.readouterr()
    assert pretrain.main([*many, "--resume"]) == 2
    assert "was made with another digests. Resume with" in capsys.readouterr().err


def test_a_run_trains_on_tokens_that_were_made_before(capsys, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_BYTES", 900)
    assert pretrain.main([*SMALL, "--n_iter", "1", "--workers", "1"]) == 0
    weights = Path("model/params_0.npy").read_bytes()
    many = [*SMALL, "--n_iter", "1", "--model_dir", "other", "--desc", "many", "--workers", "1"]
    capsys.readouterr()
    assert pretrain.main([*many, "--tokenize_only"]) == 0
    tokens = Path("save/many/tokens.bin")
    assert capsys.readouterr().out.startswith(f"tokens   {tokens.stat().st_size // 2:,}, vocabulary 78: {tokens}")
    assert not Path("log/many.jsonl").exists() and not Path("other/params_0.npy").exists()
    written = tokens.stat().st_mtime_ns
    assert pretrain.main(many) == 0
    assert tokens.stat().st_mtime_ns == written and Path("other/params_0.npy").read_bytes() == weights


# --- bad input -------------------------------------------------------------------------------------------------------


def fails(capsys, *flags: str) -> str:
    return refused(pretrain.main, [*SMALL, *flags], capsys)


def test_a_missing_corpus_is_named(capsys):
    assert "nowhere.txt cannot be read" in fails(capsys, "--corpus", "nowhere.txt")


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_corpus_is_named(capsys, content):
    Path("corpus.txt").write_text(content)
    assert "corpus.txt holds no words" in fails(capsys)


def test_a_corpus_too_small_for_its_plan_is_named(capsys):
    Path("corpus.txt").write_text("the cat\n")
    assert "make 0 sequences" in fails(capsys)


def test_sequences_longer_than_the_corpus_are_named(capsys):
    assert "--n_ctx" in fails(capsys, "--n_ctx", "100000")


def test_a_corpus_in_another_encoding_is_named_with_its_line(capsys):
    Path("corpus.txt").write_bytes(b"the cat\ncaf\xe9\n")
    assert "corpus.txt, line 2: not UTF-8" in fails(capsys)


def test_weights_and_checkpoints_of_an_earlier_run_are_not_overwritten(capsys):
    assert pretrain.main([*SMALL, "--n_iter", "1"]) == 0
    left = outcome(Path(".")), sorted(Path("save/pretrain").rglob("*"))
    assert "holds weights already" in fails(capsys)
    assert "holds weights already" in fails(capsys, "--desc", "other", "--resume")
    assert "n_embd" in fails(capsys, "--resume", "--n_embd", "32")
    assert left == (outcome(Path(".")), sorted(Path("save/pretrain").rglob("*")))


def test_checkpoints_of_an_unfinished_run_are_not_overwritten(capsys):
    stop_at_the_first_log(pretrain.main, SMALL)
    checkpoints = sorted(Path("save").rglob("*"))
    assert [path.name for path in checkpoints if path.name.startswith("checkpoint")] == ["checkpoint_000000004"]
    assert "holds checkpoints of an unfinished run. --resume goes on" in fails(capsys)
    assert sorted(Path("save").rglob("*")) == checkpoints


def test_a_cost_without_a_perplexity_is_told_as_diverged():
    with pytest.raises(FloatingPointError, match="the cost is 800"):
        pretrain.perplexity(800.0)
