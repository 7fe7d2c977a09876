"""The command: from flags to predictions, and what it says when something is wrong with them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from helpers import NO_DROPOUT, read_lines, refused
from safetensors.torch import load_file

import analysis
import datasets as readers
import loss
import model_pytorch
import train
from datasets import read_cloze
from model_pytorch import Config, DoubleHeadModel
from opt import SCHEDULES, OpenAIAdam
from reading.rows import N_SPECIAL, Rows, pad_rows
from reading.tasks import ROCSTORIES_TEST, ROCSTORIES_VALID
from running import processes
from running.processes import Ranks
from running.record import RunRecord
from text_utils import TextEncoder


@pytest.fixture
def command(tmp_path, monkeypatch, model_dir, data_dir):
    """Run train.py in an empty folder on the small model and data, with further flags."""
    monkeypatch.chdir(tmp_path)
    flags = ["--data_dir", str(data_dir), "--model_dir", str(model_dir), "--n_valid", "10", "--n_batch", "4"]
    return lambda *more: train.main([*flags, *map(str, more)])


def logs(desc: str = "rocstories") -> list[dict]:
    return read_lines(f"log/{desc}.jsonl")


def best_parameters(desc: str = "rocstories") -> dict[str, torch.Tensor]:
    return load_file(f"save/{desc}/best_params")


def last_parameters(desc: str = "rocstories") -> dict[str, torch.Tensor]:
    """Return the parameters after the last update."""
    tensors = load_file(max(Path("save", desc).glob("checkpoint_*")) / "tensors.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("model.")}


# --- one run from command to prediction ------------------------------------------------------------------------------


@pytest.mark.pictures
def test_a_run_leaves_log_parameters_predictions_and_picture(command, capsys, data_dir):
    assert command("--submit", "--analysis", "--n_iter", 2) == 0
    out = capsys.readouterr().out
    settings, *measured = logs()
    assert [(log["n_epochs"], log["n_updates"]) for log in measured] == [(1, 7), (2, 14)]
    assert [len(log["costs"]) for log in measured] == [7, 7]
    assert settings["t_total"] == 14 and settings["n_embd"] == 16 and settings["n_ctx"] < 64
    assert set(settings) >= {"seed", "lr", "lm_coef", "n_transfer", "l2", "b1", "b2", "e", "lr_warmup", "n_head"}

    lines = Path("submission/ROCStories.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and [line.split("\t")[0] for line in lines[1:]] == [
        str(i) for i in range(12)
    ]
    *_, labels = read_cloze(data_dir / ROCSTORIES_TEST)
    right = np.mean([int(line.split("\t")[1]) for line in lines[1:]] == labels) * 100
    predicted = read_lines("log/rocstories.predictions.jsonl")
    assert [example["split"] for example in predicted] == ["valid"] * 10 + ["test"] * 12
    assert [int(example["label"]) - 1 for example in predicted[10:]] == labels.tolist()  # as the file has them
    assert [int(example["prediction"]) - 1 for example in predicted[10:]] == [int(line[-1]) for line in lines[1:]]
    assert f"ROCStories Valid Accuracy: {max(log['va_acc'] for log in measured):.2f}\n" in out
    assert f"ROCStories Test Accuracy:  {right:.2f}\n" in out
    assert Path("log/rocstories.png").read_bytes().startswith(b"\x89PNG")

    state = best_parameters()
    assert not any(key.startswith("module.") for key in state)
    saved = RunRecord.read(Path("save/rocstories"))
    vocab = saved.n_vocab + N_SPECIAL + saved.n_ctx
    model = DoubleHeadModel(Config(n_embd=16, n_head=2, n_layer=2), saved.n_vocab + 2, "multiple_choice", vocab)
    model.load_state_dict(state)


@pytest.mark.pictures
def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(command, tmp_path):
    produced = []
    for seed in (1, 1, 2):
        command("--submit", "--analysis", "--n_iter", 1, "--seed", seed, "--lr", 1e-3)
        produced.append(
            {p: p.read_bytes() for d in ("log", "save", "submission") for p in Path(d).rglob("*") if p.is_file()}
        )
    assert sorted(path.name for path in produced[0]) == sorted(
        ["rocstories.jsonl", "rocstories.png", "ROCStories.tsv", "settings.json", "best_params"]
        + ["rocstories.predictions.jsonl", "rocstories.json", "rocstories.errors.tsv"]
        + ["best_params.sha256", "tensors.safetensors", "state.json", "SHA256.json", "lock"]
        + ["encoder_bpe_40000.json", "vocab_40000.bpe"]
    )
    assert produced[0] == produced[1]
    assert produced[0][Path("save/rocstories/best_params")] != produced[2][Path("save/rocstories/best_params")]


def test_training_learns_the_rows_it_sees(command):
    command("--n_iter", 12, "--lr", 1e-2, "--lm_coef", 0, *NO_DROPOUT)
    costs = [row["tr_cost"] for row in logs()[1:]]
    assert costs[0] > 0.6 and costs[-1] < 0.6


def test_the_best_parameters_on_valid_are_the_ones_that_predict(command, monkeypatch):
    accuracies, states, predicting, original = iter([50.0, 80.0, 80.0, 10.0]), [], [], train.predict

    def copied(model):
        return {key: value.clone() for key, value in model.state_dict().items()}

    def evaluate(model, rows, metrics, n_batch, ranks, name):
        assert metrics == ("acc",)
        if name == "train rows":
            return 1.0, {"acc": 50.0}
        states.append(copied(model))
        return 1.0, {"acc": next(accuracies)}

    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(train, "predict", lambda model, *a: predicting.append(copied(model)) or original(model, *a))
    command("--n_iter", 4, "--lr", 1e-2, "--submit")
    saved = best_parameters()
    assert len(states) == 4 and len(predicting) == 2  # valid and test
    for state in (states[1], *predicting):  # the first of equals
        assert all(torch.equal(saved[key], state[key]) for key in saved)
    assert not torch.equal(saved["transformer.embed.weight"], states[2]["transformer.embed.weight"])


@pytest.mark.parametrize(
    "adam, lm_coef",
    [
        ({}, 0.5),
        (dict(l2=0.5, b1=0.5, b2=0.9, e=1e-3, max_grad_norm=0.05), 2.0),
        (dict(l2=0.5, vector_l2=True, max_grad_norm=0, warmup=0.6, schedule_name="warmup_cosine"), 0),
    ],
    ids=["defaults", "other numbers", "other switches"],
)
def test_a_run_makes_the_updates_that_its_flags_ask_for(command, monkeypatch, adam, lm_coef):
    batches, packed_losses, packed = [], loss.packed_losses, Rows.packed
    laid_out = []

    def watched_packed(rows, which, *arguments, **more):
        examples = [rows.rows(i) for i in which]
        laid_out[:] = pad_rows(examples, rows.layout.n_vocab, rows.lengths().max())
        return packed(rows, which, *arguments, **more)

    def watched_losses(model, packing, y, *arguments, **more):
        batches.append((reference.get_parameters(model), *laid_out, y.numpy(), model.training))
        return packed_losses(model, packing, y, *arguments, **more)

    monkeypatch.setattr(Rows, "packed", watched_packed)
    monkeypatch.setattr(loss, "packed_losses", watched_losses)
    names = {"warmup": "lr_warmup", "schedule_name": "lr_schedule"}
    flags = [f"--{names.get(k, k)}" + ("" if v is True else f"={v}") for k, v in adam.items()]
    command("--n_iter", 1, "--lr", 1e-2, "--lm_coef", lm_coef, *NO_DROPOUT, *flags)
    settings = dict(lr=1e-2, warmup=0.002, t_total=7, l2=0.01, max_grad_norm=1.0, schedule_name="warmup_linear") | adam
    start, p, state = batches[0][0], batches[0][0], reference.START
    clf_token = logs()[0]["n_vocab"] + 2
    for _, x, m, y, is_training in batches:
        assert is_training
        grads = reference.gradients(p, x, m, y, clf_token, 2, "gelu", lm_coef)
        p, state = reference.adam(p, grads, state, **settings)
    saved = best_parameters()
    error = sum(((saved[name].numpy() - p[name]) ** 2).sum() for name in p)
    assert error < 1e-4 * sum(((p[name] - start[name]) ** 2).sum() for name in p)


@pytest.mark.slow
def test_the_first_epoch_logs_at_doubling_thousands(command, data_dir, monkeypatch):
    lines = (data_dir / ROCSTORIES_VALID).read_text().splitlines()
    (data_dir / ROCSTORIES_VALID).write_text("\n".join([lines[0], *(lines[1 + i % 40] for i in range(3020))]))
    n_made, one = [], torch.ones(1, requires_grad=True)
    monkeypatch.setattr(train, "PackedLosses", lambda *_: lambda packing, y: (0.7 * one, None))
    monkeypatch.setattr(OpenAIAdam, "step", lambda *_, cost: n_made.append(1) or cost)
    monkeypatch.setattr(train, "evaluate", lambda *_: (1.0, {"acc": 50.0}))
    command("--n_iter", 2, "--n_batch", 1, "--n_ctx", 8)
    updates = [(row["n_epochs"], row["n_updates"]) for row in logs()[1:]]
    assert updates == [(0, 1000), (0, 2000), (1, 3010), (2, 6020)] and len(n_made) == 6020
    assert [len(row["costs"]) for row in logs()[1:]] == [1000, 1000, 1010, 3010]  # of every update once


def test_a_log_is_of_the_first_rows_of_train_and_of_valid(command, model_dir, data_dir, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "evaluate", lambda model, rows, *_: seen.append(rows) or (1.0, {"acc": 50.0}))
    command("--n_iter", 1)
    encoder = TextEncoder(model_dir / "encoder_bpe_40000.json", model_dir / "vocab_40000.bpe")
    n_vocab, train_and_valid = len(encoder.encoder), readers.rocstories(data_dir, 10)[:2]
    for rows, (*columns, y) in zip(seen, train_and_valid, strict=True):
        found = pad_rows([rows.rows(i) for i in range(len(rows))], n_vocab, 64)
        ids = [encoder.encode(column[:10], verbose=False) for column in columns]
        expected = train.transform_roc(*ids, n_vocab, 64, max_len=30)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(rows.labels, y[:10])


@pytest.mark.parametrize("n_transfer, loaded", [(-1, "nothing"), (0, "0 blocks"), (1, "1 blocks"), (12, "2 blocks")])
def test_n_transfer_loads_what_it_says(command, capsys, n_transfer, loaded):
    assert command("--n_iter", 1, "--n_transfer", n_transfer) == 0
    assert loaded in capsys.readouterr().out


def test_the_epochs_order_is_the_same_with_and_without_weights(command, monkeypatch):
    orders = []
    original = train.shuffled

    def shuffled(n):
        orders.append(original(n))
        return orders[-1]

    monkeypatch.setattr(train, "shuffled", shuffled)
    command("--n_iter", 2, "--n_transfer", -1)
    command("--n_iter", 2)
    rng = np.random.RandomState(42)
    rng.randn(3, 16)  # the special rows come first
    expected = [rng.permutation(30) for _ in range(2)]
    np.testing.assert_array_equal(orders, expected + expected)


def test_without_transfer_no_shard_is_needed_and_sizes_are_free(command, model_dir):
    for i in range(10):
        (model_dir / f"params_{i}.npy").unlink()
    (model_dir / "params_shapes.json").unlink()
    sizes = ["--n_embd", 12, "--n_layer", 1, "--n_head", 3, "--n_ctx", 40]
    assert command("--n_iter", 1, "--n_transfer", -1, *sizes) == 0
    assert (logs()[0]["n_embd"], logs()[0]["n_layer"], logs()[0]["n_head"]) == (12, 1, 3)


SETTINGS = [["--afn", afn] for afn in ("gelu", "relu", "swish")] + [["--lr_warmup", 0]]
SETTINGS += [["--lr_schedule", schedule, "--vector_l2", "--max_grad_norm", 0] for schedule in SCHEDULES]


@pytest.mark.parametrize("flags", SETTINGS, ids=lambda flags: " ".join(map(str, flags[:2])))
def test_every_activation_runs(command, flags):
    assert command("--n_iter", 1, *flags) == 0
    assert logs()[0][flags[0][2:]] == flags[1]


def test_fewer_blocks_than_the_weights_have(command):
    assert command("--n_iter", 1, "--n_layer", 1) == 0
    assert logs()[0]["n_layer"] == 1


def test_two_runs_keep_their_own_predictions(command, capsys):
    for desc, seed in (("one", 1), ("two", 7)):
        command("--desc", desc, "--submit", "--analysis", "--n_iter", 1, "--lr", 0.01, "--seed", seed)
    first_run = capsys.readouterr().out.split("done")[0]
    assert analysis.main(["--desc", "one"]) == 0
    again = capsys.readouterr().out
    assert again.splitlines() == [line for line in first_run.splitlines() if line.startswith("ROCStories")]


def test_a_new_run_does_not_inherit_the_predictions_of_an_older_one(command, capsys):
    command("--submit", "--n_iter", 1)
    command("--n_iter", 1)
    assert "--submit" in refused(analysis.main, [], capsys)


# --- bad input: one message, exit code 2, nothing lost ---------------------------------------------------------------


def edit(path: Path, line: int, old: bytes, new: bytes) -> None:
    """Replace `old` in a line of a file, counted from 1."""
    lines = path.read_bytes().split(b"\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_bytes(b"\n".join(lines))


DAMAGES = {
    "no data folder": (lambda m, d: d.rename(d.with_name("elsewhere")), ["data: no such folder", "The data folder is"]),
    "no test file": (lambda m, d: (d / ROCSTORIES_TEST).unlink(), [ROCSTORIES_TEST, "is missing"]),
    "Latin-1": (lambda m, d: edit(d / ROCSTORIES_VALID, 3, b"id1", b"caf\xe9"), ["line 3", "Latin-1", "iconv"]),
    "few columns": (lambda m, d: edit(d / ROCSTORIES_VALID, 5, b"id3,", b""), ["line 5", "7 columns"]),
    "label 3": (
        lambda m, d: (d / ROCSTORIES_TEST).write_text("h\n1,a,b,c,d,e,f,2\n1,a,b,c,d,e,f,3\n"),
        [ROCSTORIES_TEST, "line 3", "'3'"],
    ),
    "no examples": (lambda m, d: (d / ROCSTORIES_TEST).write_text("h\n"), [ROCSTORIES_TEST, "no examples"]),
    "no header": (
        lambda m, d: (d / ROCSTORIES_TEST).write_text("1,a,b,c,d,e,f,2\n2,a,b,c,d,e,f,1\n"),
        [ROCSTORIES_TEST, "line 1", "column names"],
    ),
    "ids that are no numbers": (
        lambda m, d: (m / "encoder_bpe_40000.json").write_text('{"a": "0", "b": "1"}'),
        ["encoder_bpe_40000.json", "ids"],
    ),
    "empty file": (lambda m, d: (d / ROCSTORIES_VALID).write_text(""), [ROCSTORIES_VALID, "no examples"]),
    "broken quotes": (
        lambda m, d: (d / ROCSTORIES_VALID).write_text('h\n1,"a" b,c,d,e,f,g,1\n'),
        [ROCSTORIES_VALID, "line 2", "not CSV"],
    ),
    "missing shard": (lambda m, d: (m / "params_3.npy").unlink(), ["params_3.npy", "missing"]),
    "truncated shard": (
        lambda m, d: (m / "params_3.npy").write_bytes((m / "params_3.npy").read_bytes()[:-8]),
        ["params_3.npy", "Fetch it again"],
    ),
    "pickle as a shard": (
        lambda m, d: np.save(m / "params_3.npy", np.array([{}], object), allow_pickle=True),
        ["params_3.npy", "Python objects"],
    ),
    "double shard": (lambda m, d: np.save(m / "params_3.npy", np.zeros(9)), ["params_3.npy", "float64"]),
    "short shard": (
        lambda m, d: np.save(m / "params_3.npy", np.zeros(9, np.float32)),
        ["params_shapes.json", "values"],
    ),
    "wrong shapes": (lambda m, d: (m / "params_shapes.json").write_text("[[1, 2]]"), ["params_shapes.json"]),
    "no shapes": (lambda m, d: (m / "params_shapes.json").unlink(), ["params_shapes.json", "missing"]),
    "heads that do not divide": (lambda m, d: (m / "hparams.json").write_text('{"n_head": 5}'), ["hparams.json"]),
    "no merges": (lambda m, d: (m / "vocab_40000.bpe").unlink(), ["vocab_40000.bpe", "merges"]),
    "empty merges": (lambda m, d: (m / "vocab_40000.bpe").write_text(""), ["vocab_40000.bpe", "no merges"]),
    "half a merge": (lambda m, d: edit(m / "vocab_40000.bpe", 4, b"a n", b"an"), ["vocab_40000.bpe", "line 4"]),
    "merges of another vocabulary": (
        lambda m, d: edit(m / "vocab_40000.bpe", 4, b"a n", b"x q"),
        ["vocab_40000.bpe", "'x q'"],
    ),
    "a vocabulary that is no JSON": (
        lambda m, d: (m / "encoder_bpe_40000.json").write_text("{"),
        ["encoder_bpe_40000.json", "JSON"],
    ),
    "ids with a gap": (
        lambda m, d: (m / "encoder_bpe_40000.json").write_text('{"a": 0, "b": 2}'),
        ["encoder_bpe_40000.json", "ids"],
    ),
}


@pytest.mark.parametrize("damage, named", DAMAGES.values(), ids=DAMAGES)
def test_bad_input_is_named_and_an_earlier_run_stays(command, capsys, model_dir, data_dir, damage, named):
    Path("log").mkdir()
    for suffix in ("jsonl", "predictions.jsonl", "png"):
        Path(f"log/rocstories.{suffix}").write_text("an earlier run")
    damage(model_dir, data_dir)
    message = refused(lambda _: command(), [], capsys)
    assert message.startswith("train.py: error: ") and all(part in message for part in named), message
    assert [path.read_text() for path in Path("log").iterdir()] == ["an earlier run"] * 3


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--analysis"], "error: analysis reads the predictions that submit writes"),
        (["--afn", "tanh"], "gelu"),
        (["--lr_schedule", "none"], "warmup_cosine"),
        (["--dataset", "poems"], "rocstories"),
        (["--dataset", "own"], "task is the form of dataset own"),
        (["--dataset", "own", "--task", "poetry"], "entailment"),
        (["--task", "entailment"], "task is the form of dataset own"),
        (["--columns", "text=review"], "columns is for dataset own"),
        (["--dataset", "own", "--task", "classification", "--columns", "text"], "text=review,label=stars"),
        (["--dataset", "race", "--race", "low"], "middle"),
        (["--class_weights", "heavy"], "balanced"),
        (["--max_examples", "0"], "0 is not 1 or more"),
        (["--n_batch", "0"], "argument --n_batch: 0 is not 1 or more"),
        (["--n_iter", "x"], "argument --n_iter: 'x' is not a whole number"),
        (["--attn_pdrop", "1"], "below 1"),
        (["--desc", "a/b"], "becomes a file name"),
        (["--no_such_flag"], "unrecognized"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_named(command, capsys, flags, named):
    assert named in refused(lambda argv: command(*argv), flags, capsys)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--n_embd", "32"], "n_embd 16"),
        (["--n_head", "3"], "n_embd 16 is not a multiple of n_head 3"),
        (["--n_head", "4"], "for 2 heads, the model has 4"),
        (["--n_batch", "31"], "--n_batch 31"),
        (["--n_valid", "40"], "holding out 40"),
    ],
    ids=" ".join,
)
def test_flags_that_contradict_the_files_are_named(command, capsys, flags, named):
    assert named in refused(lambda argv: command(*argv), flags, capsys)


@pytest.mark.parametrize("flag", ["--log_dir", "--save_dir", "--submission_dir"])
def test_an_unwritable_output_folder_is_found_before_training(command, capsys, monkeypatch, flag):
    monkeypatch.setattr(train, "PackedLosses", lambda *_: pytest.fail("training began"))
    Path("file").write_text("")
    assert "file/folder" in refused(lambda argv: command(*argv), ["--submit", flag, "file/folder"], capsys)


@pytest.mark.parametrize("slowdown, n_warnings", [(85.0, 1), (0.5, 0)])
def test_bf16_that_is_slower_than_fp32_is_warned_of(monkeypatch, capsys, slowdown, n_warnings):
    monkeypatch.setattr(processes, "bf16_slowdown", lambda device: slowdown)
    processes.warn_of_slow_bf16("bf16", Ranks())
    assert capsys.readouterr().out.count("this CPU has no units for bf16: its products take 85 times") == n_warnings
    processes.warn_of_slow_bf16("fp32", Ranks())
    assert capsys.readouterr().out == ""


def test_products_in_both_precisions_are_timed():
    assert 0.01 < processes.bf16_slowdown(torch.device("cpu")) < 10_000


def test_bf16_rounds_the_products_but_not_parameters_or_losses(command):
    command("--n_iter", 1, "--desc", "fp32")
    command("--n_iter", 1, "--desc", "bf16", "--precision", "bf16")
    exact, rounded = logs("fp32")[1], logs("bf16")[1]
    assert exact["va_cost"] != rounded["va_cost"]
    assert exact["va_cost"] == pytest.approx(rounded["va_cost"], rel=1e-2)
    state = best_parameters("bf16")
    assert {value.dtype for value in state.values()} == {torch.float32}


# --- flags of memory and speed ---------------------------------------------------------------------------------------


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.parametrize("accumulate", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulated_batches_make_the_updates_of_one_large_batch(command, accumulate):
    # a large epsilon: Adam would blow up the rounding errors of gradients that are 0 but for them
    flags = ["--n_iter", 3, "--lr", 0.3, "--e", 0.1, *NO_DROPOUT]
    command("--desc", "whole", "--n_batch", 4, *flags)
    command("--desc", "parts", "--n_batch", 4 // accumulate, "--accumulate", accumulate, *flags)
    command("--desc", "start", "--n_batch", 4, *flags, "--lr", 0)
    whole, parts, start = map(last_parameters, ("whole", "parts", "start"))
    assert logs("parts")[-1]["n_updates"] == logs("whole")[-1]["n_updates"] == 21
    assert largest_difference(whole, start) > 1e-2
    assert largest_difference(whole, parts) < 1e-6


@pytest.mark.parametrize("flags", [NO_DROPOUT, []], ids=["without dropout", "with dropout"])
def test_checkpointed_activations_change_nothing(command, monkeypatch, flags):
    calls, original = [], model_pytorch.checkpoint
    monkeypatch.setattr(model_pytorch, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    command("--desc", "kept", "--n_iter", 2, "--lr", 1e-2, *flags)
    assert not calls
    command("--desc", "computed_twice", "--n_iter", 2, "--lr", 1e-2, *flags, "--checkpoint_activations")
    assert len(calls) == 14 * 2  # updates, blocks; none in evaluation
    assert largest_difference(last_parameters("kept"), last_parameters("computed_twice")) <= 1e-7


def test_a_shared_context_makes_the_same_updates(command, monkeypatch):
    n_tokens, original = {"apart": 0, "shared": 0}, loss.packed_losses

    def packed_losses(model, packing, *arguments, **more):
        n_tokens[desc] += len(packing.tokens)
        return original(model, packing, *arguments, **more)

    monkeypatch.setattr(loss, "packed_losses", packed_losses)
    for desc, flags in (("apart", []), ("shared", ["--share_context"])):
        command("--desc", desc, "--n_iter", 3, "--lr", 0.3, "--e", 0.1, *NO_DROPOUT, *flags)
    assert n_tokens["shared"] < 0.8 * n_tokens["apart"]
    assert largest_difference(last_parameters("apart"), last_parameters("shared")) < 1e-6


# --- what is not loaded where it is not needed -----------------------------------------------------------------------


def test_texts_are_encoded_once_and_then_read_without_their_libraries(command, monkeypatch, data_dir):
    command("--n_iter", 1, "--submit", "--desc", "first")
    cached = {path: path.read_bytes() for path in data_dir.glob("encoded_*/*")}
    assert len(list(data_dir.glob("encoded_*"))) == 2  # of the valid and of the test file
    monkeypatch.setattr(TextEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    for library in ("spacy", "ftfy"):
        monkeypatch.setitem(sys.modules, library, None)  # cannot be imported
    command("--n_iter", 1, "--submit", "--desc", "second")
    assert largest_difference(last_parameters("first"), last_parameters("second")) == 0
    assert {path: path.read_bytes() for path in data_dir.glob("encoded_*/*")} == cached
