"""The LSTM of the paper's Table 5: what it computes, and its way from pre-training to the table."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file

import finetuning
import predict
import pretrain
import train
from formats.files import InputError
from formats.folders import BPE_FILE, ENCODER_FILE, LSTM_FILE, read_sizes
from loss import sequence_losses
from model_pytorch import Config, LMModel
from running.lstm import LSTM, hidden_size, replace_blocks
from speed.packing import Packing
from weights import open_run

# --- the network -----------------------------------------------------------------------------------------------------


def models(**sizes) -> tuple[LMModel, LMModel]:
    """Return a transformer and the LSTM that replaces it."""
    torch.manual_seed(0)
    pair = LMModel(Config(**sizes), 30, 10).eval(), LMModel(Config(**sizes), 30, 10).eval()
    replace_blocks(pair[1].transformer, 0)
    return pair


@pytest.mark.parametrize("n_embd, n_layer", [(16, 1), (96, 4), (96, 6), (768, 12)])
def test_the_lstm_has_as_many_parameters_as_the_blocks(n_embd, n_layer):
    n_blocks = n_layer * (12 * n_embd**2 + 13 * n_embd)
    n = sum(p.numel() for p in LSTM(n_embd, hidden_size(n_embd, n_blocks)).parameters())
    assert n == pytest.approx(n_blocks, rel=0.05 if n_embd == 16 else 0.01)


def test_the_lstm_takes_the_position_of_the_blocks():
    ours, theirs = ([p.numel() for p in model.parameters()] for model in models(n_embd=96, n_head=3, n_layer=4))
    assert sum(theirs) == pytest.approx(sum(ours), rel=0.01) and theirs[0] == ours[0] and len(theirs) == 7


def rows(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random rows (B, T, 2) and the mask of their real tokens."""
    x = torch.randint(0, 20, (len(lengths), max(lengths), 2))
    x[..., 1] = 20 + torch.arange(max(lengths))
    m = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return x * m[..., None], m.float()


def test_rows_of_different_lengths_do_not_influence_each_other():
    _, model = models(n_embd=16, n_head=2, n_layer=1)
    x, m = rows(8, 3, 5)
    packed = Packing.of_padded(x, m)
    together = packed.unpack(model.transformer(packed))
    for i, n in enumerate((8, 3, 5)):
        alone = model.transformer(x[i : i + 1, :n])[0]
        torch.testing.assert_close(together[i, :n], alone)
    full = model.transformer(Packing.full(x[:1]))  # without padding: nothing is packed
    torch.testing.assert_close(full, model.transformer(x[:1])[0])


def test_no_token_sees_a_later_one():
    _, model = models(n_embd=16, n_head=2, n_layer=1)
    x, m = rows(8, 6)
    changed = x.clone()
    changed[0, 5, 0] = (x[0, 5, 0] + 1) % 20
    before, after = (
        packed.unpack(model.transformer(packed)) for packed in (Packing.of_padded(x, m), Packing.of_padded(changed, m))
    )
    torch.testing.assert_close(after[0, :5], before[0, :5])
    torch.testing.assert_close(after[1], before[1])
    assert not torch.allclose(after[0, 5:8], before[0, 5:8])


def test_a_shared_context_changes_nothing():
    _, model = models(n_embd=16, n_head=2, n_layer=1)
    x, m = rows(7, 8)
    x[1, :4] = x[0, :4]
    x, m = x[None], m[None]
    packings = [Packing.of_padded(x, m, share_context) for share_context in (False, True)]
    torch.testing.assert_close(*(packed.unpack(model.transformer(packed)) for packed in packings))


def test_in_bf16_the_lstm_gives_nearly_the_same_losses():
    _, model = models(n_embd=16, n_head=2, n_layer=1)
    packing = Packing.of_padded(*rows(8, 3))
    expected = sequence_losses(model, packing)
    with torch.autocast("cpu", torch.bfloat16):
        found = sequence_losses(model, packing)
    found.mean().backward()
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_the_lstm_learns_from_its_loss():
    _, model = models(n_embd=16, n_head=2, n_layer=1)
    sequence_losses(model, Packing.of_padded(*rows(8, 3))).mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


# --- its commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, model_dir, data_dir, capsys):
    """Pre-train an LSTM of 9 units with the small model's sizes and vocabulary; fine-tune it with further flags."""
    monkeypatch.chdir(tmp_path)
    Path("lstm").mkdir()
    for name in (ENCODER_FILE, BPE_FILE):
        shutil.copy(model_dir / name, "lstm")
    assert pretrain.main(pre_training(model_dir)) == 0
    assert "network  an LSTM of 9 units, 16 features" in capsys.readouterr().out
    flags = ["--data_dir", data_dir, "--model_dir", model_dir, "--lstm", "lstm", "--n_valid", 10, "--n_batch", 4]
    return lambda *more: [*map(str, flags), "--n_iter", "1", *more]


def pre_training(model_dir: Path) -> list[str]:
    """Write a text and return the flags to pre-train the LSTM on it."""
    Path("corpus.txt").write_text("She was happy.\nThe dog was at the park.\n" * 60)
    sizes = read_sizes(model_dir)
    flags = ["--corpus", "corpus.txt", "--model_dir", "lstm", "--lstm_units", 9, "--lr_warmup", 1, "--n_iter", 1]
    flags += ["--n_embd", sizes.n_embd, "--n_head", sizes.n_head, "--n_layer", 1, "--n_ctx", sizes.n_positions]
    return [*map(str, flags), "--n_batch", "2", "--workers", "1"]


def test_a_pre_trained_lstm_is_fine_tuned(command, capsys):
    pre_trained = load_file(f"lstm/{LSTM_FILE}")
    assert pre_trained["transformer.h.0.lstm.weight_hh_l0"].shape == (36, 9)
    # with a rate of 0 it stays as it was
    assert train.main(command("--lr", "0", "--submit", "--analysis")) == 0
    assert "loaded the LSTM in" in capsys.readouterr().out
    tuned = load_file("save/rocstories/best_params")
    n = 0
    for name, value in pre_trained.items():
        if name.startswith("transformer.h."):
            assert torch.equal(tuned[name], value), name
            n += 1
    assert n == 6
    table = tuned["transformer.embed.weight"]
    before = pre_trained["transformer.embed.weight"]
    n_ctx = len(table) - (len(before) - read_sizes("model").n_positions) - 3
    n_vocab = len(before) - read_sizes("model").n_positions
    assert torch.equal(table[:n_vocab], before[:n_vocab])
    assert torch.equal(table[-n_ctx:], before[n_vocab : n_vocab + n_ctx])


def test_a_run_of_an_lstm_is_for_train_alone(command, capsys):
    assert train.main(command()) == 0
    error = refused(predict.main, ["--desc", "rocstories", "--input", "corpus.txt"], capsys)
    assert "rocstories is a run of an LSTM (--lstm), which train.py alone uses: --submit predicts." in error
    with pytest.raises(InputError, match="is a run of an LSTM"):
        open_run("save/rocstories")
    with pytest.raises(InputError, match="Leave out lstm"):
        finetuning.fit(["a", "b"], ["x", "y"], model_dir="model", lstm="lstm")


def test_a_resumed_run_has_the_same_lstm(command, capsys):
    assert train.main(command()) == 0
    path = Path("lstm", LSTM_FILE)
    tensors = load_file(path)
    path.unlink()
    assert pretrain.main([*pre_training(Path("model")), "--seed", "2", "--desc", "second"]) == 0
    assert not torch.equal(load_file(path)["transformer.embed.weight"], tensors["transformer.embed.weight"])
    assert "was made with another digests" in refused(train.main, command("--resume"), capsys)


def test_an_lstm_that_does_not_fit_is_refused(command, capsys):
    path = Path("lstm", LSTM_FILE)
    tensors = load_file(path)

    # of other sizes
    narrow = {name: value[..., :4].contiguous() for name, value in tensors.items()}
    save_file(narrow, path)
    error = refused(train.main, command(), capsys)
    assert f"{path} has 4 features and" in error and "Take one of the same sizes." in error

    # with other values than were written, and with none
    save_file({name: value + 1 for name, value in tensors.items()}, path)
    assert f"{path} is not the file that {path}.sha256 describes" in refused(train.main, command(), capsys)
    path.write_bytes(b"none")
    assert f"{path} is no LSTM that can be read" in refused(train.main, command(), capsys)
    path.unlink()
    assert f"{path} is missing. pretrain.py --lstm_units makes it." in missing(command())

    # with another vocabulary
    save_file(tensors, path)
    with open(f"lstm/{ENCODER_FILE}", "a") as file:
        file.write(" ")
    assert f"{path} has the vocabulary beside it, not" in refused(train.main, command(), capsys)


def missing(argv: list[str]) -> str:
    """Return what is said of a missing input before torch is loaded."""
    with pytest.raises(InputError) as caught:
        train.parse(train.FineTuningFlags, argv).refuse_missing()
    return str(caught.value)


def test_flags_that_contradict_an_lstm_are_refused(command, model_dir, capsys):
    assert "leave out one of them" in refused(train.main, command("--n_transfer", "-1"), capsys)
    flags = pre_training(model_dir)
    assert "leave out init_from" in refused(pretrain.main, [*flags, "--init_from", str(model_dir)], capsys)
    # what is there is not overwritten
    before = Path("lstm", LSTM_FILE).read_bytes()
    assert "holds weights already" in refused(pretrain.main, flags, capsys)
    assert Path("lstm", LSTM_FILE).read_bytes() == before
