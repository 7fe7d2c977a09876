"""Pre-training that starts from a model, zero-shot probes at each log, TensorBoard, and the speed that is shown."""

import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_data, write_model
from helpers import read_lines, refused, shard_values, stop_at_the_first_log

import convert
import pretrain
import train
from reading.splits import Limits, read_splits
from reading.tasks import find_task
from scoring import score_ids
from weights import open_model, open_run
from zero_shot import parse_probes, zero_shot

FLAGS = "--corpus corpus.txt --n_batch 2 --n_iter 2 --lr 1e-2 --lr_warmup 3 --log_every 5 --valid_share 0.1".split()
SIZES = "--n_embd 16 --n_head 2 --n_layer 2 --n_ctx 64 --n_merges 40".split()
PROBES = "choice:rocstories:data,acceptability:own:data"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a model of 64 positions, examples, and a text whose tokens are all in its vocabulary."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "first")
    write_data(tmp_path / "data")
    rng = np.random.default_rng(0)
    words = "the cat was in a red hat and sat on the mat".split()
    lines = [" ".join(rng.choice(words, rng.integers(5, 12))) + ".\n" for _ in range(120)]
    Path("corpus.txt").write_text("".join(lines))
    rows = [f"{line.strip()},{'good' if i % 2 else 'bad'}\n" for i, line in enumerate(lines[:60])]
    Path("data/train.csv").write_text("text,label\n" + "".join(rows))
    return tmp_path


def flags_of(*flags: str, init_from: str | None = "first", model_dir: str = "second") -> list[str]:
    start = ["--init_from", init_from] if init_from else []
    return [*FLAGS, *start, "--model_dir", model_dir, *flags]


def run(*flags: str, **how) -> int:
    return pretrain.main(flags_of(*flags, **how))


def logs(desc: str = "pretrain") -> list[dict]:
    return read_lines(f"log/{desc}.jsonl")[1:]


# --- starting from a model -------------------------------------------------------------------------------------------


def test_updates_of_rate_0_leave_the_model_as_it_was():
    assert run("--lr", "0", "--n_ctx", "16") == 0
    np.testing.assert_array_equal(shard_values("second"), shard_values("first"))  # all 64 positions too
    for name in ("encoder_bpe_40000.json", "vocab_40000.bpe", "params_shapes.json", "hparams.json"):
        assert Path("second", name).read_bytes() == Path("first", name).read_bytes()


def test_a_hugging_face_folder_serves_as_well():
    assert convert.main(["to_hf", "first", "theirs"]) == 0
    assert run("--lr", "0", init_from="theirs") == 0
    np.testing.assert_array_equal(shard_values("second"), shard_values("first"))


def test_a_saved_run_serves_without_its_special_tokens():
    flags = "--model_dir first --data_dir data --n_valid 10 --n_iter 1 --desc tuned --lr 1e-2".split()
    assert train.main(flags) == 0
    assert run("--lr", "0", init_from="save/tuned") == 0
    tuned, (written, encoder) = open_run("save/tuned").model.transformer, open_model("second")
    table, n_vocab, n_ctx = written.transformer.embed.weight, len(encoder.encoder), tuned.n_ctx
    assert len(table) == n_vocab + n_ctx and len(tuned.embed.weight) == n_vocab + 3 + n_ctx
    assert torch.equal(table[:n_vocab], tuned.embed.weight[:n_vocab])
    assert torch.equal(table[n_vocab:], tuned.embed.weight[-n_ctx:])
    for ours, theirs in zip(written.transformer.h.parameters(), tuned.h.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_perplexity_before_is_that_of_the_model_and_training_lowers_it(capsys):
    assert run() == 0
    before = float(re.search(r"^before   perplexity: held out ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)[1])
    tokens = np.fromfile("save/pretrain/tokens.bin", np.uint16).astype(int)
    sequences = tokens[: len(tokens) // 64 * 64].reshape(-1, 64)
    model, _ = open_model("first", return_probs=False)
    held_out = sequences[-max(1, round(0.1 * len(sequences))) :]
    scored = np.array([score_ids(model, row.tolist()).log_probabilities for row in held_out])[:, 1:]
    assert before == pytest.approx(math.exp(-scored.mean()), abs=2e-3)
    assert logs()[-1]["va_ppl"] < 0.7 * before
    assert "before" not in capsys.readouterr().out


def test_a_run_that_starts_from_a_model_is_resumed_from_its_checkpoint(capsys):
    assert run() == 0
    unbroken = shard_values("second")
    stop_at_the_first_log(pretrain.main, flags_of("--desc", "broken", "--checkpoint_every", "4", model_dir="third"))
    capsys.readouterr()
    assert run("--desc", "broken", "--checkpoint_every", "4", "--resume", model_dir="third") == 0
    np.testing.assert_array_equal(shard_values("third"), unbroken)
    assert "before" not in capsys.readouterr().out  # it had been
    assert logs("broken") == logs()


def test_a_model_that_does_not_fit_is_refused_in_one_line(capsys):
    def refusal(*flags, **how) -> str:
        return refused(pretrain.main, flags_of(*flags, **how), capsys)

    assert "first has n_embd 16, not 32. Leave out --n_embd." in refusal("--n_embd", "32")
    assert "first has n_layer 2, not 1." in refusal("--n_layer", "1")
    assert "first has afn gelu, not relu." in refusal("--afn", "relu")
    assert "first has 64 positions, fewer than n_ctx 65. Lower --n_ctx." in refusal("--n_ctx", "65")
    assert "nowhere/params_shapes.json is missing" in refusal(init_from="nowhere")
    assert "first holds weights already" in refusal(model_dir="first")
    Path("other").mkdir()
    Path("other/vocab_40000.bpe").write_text("#version: 0.2\nt h\n")
    assert "other/vocab_40000.bpe differs from first/vocab_40000.bpe" in refusal(model_dir="other")
    assert sorted(path.name for path in Path("other").iterdir()) == ["vocab_40000.bpe"]
    assert run("--n_embd", "16", "--n_head", "2") == 0  # the same sizes are no contradiction


def test_a_run_is_not_resumed_from_the_weights_of_another_model(capsys):
    stop_at_the_first_log(pretrain.main, flags_of("--checkpoint_every", "4"))
    array = np.load("first/params_0.npy")
    np.save("first/params_0.npy", array + 1)
    assert run("--checkpoint_every", "4", "--resume") == 2
    assert "was made with another digests" in capsys.readouterr().err


# --- probes ----------------------------------------------------------------------------------------------------------


def test_probes_are_logged_and_change_no_other_number(capsys):
    assert run(*SIZES, model_dir="plain", init_from=None) == 0
    without = logs()
    probes = "--probe", PROBES, "--probe_examples", "5"
    assert run(*SIZES, *probes, model_dir="watched", init_from=None) == 0
    np.testing.assert_array_equal(shard_values("watched"), shard_values("plain"))
    for line, expected in zip(logs(), without, strict=True):
        assert line.keys() - expected.keys() == {"choice_rocstories", "acceptability_own"}
        assert {name: line[name] for name in expected} == expected
    assert re.search(r"; choice_rocstories [\d.]+, acceptability_own [\d.]+\n", capsys.readouterr().out)


def test_the_figure_is_that_of_the_model_on_the_first_examples():
    assert run("--probe", PROBES, "--probe_examples", "7") == 0
    model, encoder = open_model("second", return_probs=False)
    for heuristic, dataset, form, metric in (
        ("choice", "rocstories", None, "acc"),
        ("acceptability", "own", "classification", "acc"),
    ):
        task = find_task(dataset, Path("data"), form)
        splits = read_splits(task, Path("data"), encoder, Limits(n_valid=7, seed=42, n_ctx=64))
        splits = type(splits)(splits.task, splits.train.first(7), splits.valid.first(7), None)
        _, expected = zero_shot(model, encoder, splits, heuristic)["valid"]
        assert logs()[-1][f"{heuristic}_{dataset}"] == pytest.approx(expected[metric])


def test_a_probe_may_be_added_on_resume():
    stop_at_the_first_log(pretrain.main, flags_of("--checkpoint_every", "4"))
    assert run("--checkpoint_every", "4", "--resume", "--probe", PROBES, "--probe_examples", "5") == 0
    assert logs()[0].keys() >= {"choice_rocstories", "va_ppl"}


@pytest.mark.parametrize(
    "text", ["choice", "choice:rocstories", "choice:rocstories:", "guess:rocstories:data", "choice:nothing:data", ","]
)
def test_a_probe_in_another_form_is_refused(text, capsys):
    with pytest.raises(ValueError, match="--probe"):
        parse_probes(text)
    assert run("--probe", text) == 2
    assert "--probe" in capsys.readouterr().err


def test_probes_are_taken_apart():
    assert parse_probes(None) == []
    assert parse_probes("choice:race:C:/race,sentiment:sst2:b") == [
        ("choice", "race", Path("C:/race")),
        ("sentiment", "sst2", Path("b")),
    ]
    with pytest.raises(ValueError, match="two probes are choice:own"):
        parse_probes("choice:own:a,choice:own:b")


def test_a_probe_that_cannot_be_read_stops_the_run_before_it_begins(capsys):
    assert run("--probe", "choice:rocstories:nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert run("--probe", "choice:rocstories:data", "--probe_examples", "200") == 2
    assert "holding out 200 of its 40 examples leaves none to train on" in capsys.readouterr().err
    assert run("--probe", "sentiment:rocstories:data", "--probe_examples", "5") == 2
    assert "sentiment takes a classification with two labels" in capsys.readouterr().err
    assert not Path("log/pretrain.jsonl").exists()


# --- TensorBoard -----------------------------------------------------------------------------------------------------


class Writer:
    """Stands in for torch's SummaryWriter."""

    written: dict[str, list[tuple]] = {}

    def __init__(self, folder: str):
        self.scalars = self.written[folder] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        pass

    close = flush


COMMANDS = {
    "pretrain": lambda *flags: run(*flags),
    "rocstories": lambda *flags: train.main(
        ["--model_dir=first", "--data_dir=data", "--n_valid=10", "--n_iter=2", *flags]
    ),
}


def scalars_of(desc: str) -> list[tuple]:
    scalars = []
    for line in logs(desc):
        costs = line.pop("costs")
        scalars += [(name, value, line["n_updates"]) for name, value in line.items()]
        scalars += [("cost", cost, line["n_updates"] - len(costs) + i) for i, cost in enumerate(costs, 1)]
    return scalars


@pytest.mark.parametrize("desc", COMMANDS)
def test_the_log_is_written_for_tensorboard_too_and_whole_after_a_resume(monkeypatch, desc):
    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr(Writer, "written", {})
    assert COMMANDS[desc]("--tensorboard") == 0
    assert {folder: sorted(found) for folder, found in Writer.written.items()} == {
        f"log/{desc}.tensorboard": sorted(scalars_of(desc))
    }
    assert len(logs(desc)) > 1
    Path(f"log/{desc}.tensorboard").mkdir()
    old = Path(f"log/{desc}.tensorboard/events.out.tfevents.1.host")
    old.write_bytes(b"of an earlier run")
    assert COMMANDS[desc]("--tensorboard", "--resume") == 0
    assert not old.exists() and Writer.written[f"log/{desc}.tensorboard"] == scalars_of(desc)


@pytest.mark.parametrize("desc", COMMANDS)
def test_tensorboard_reads_the_scalars(desc):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert COMMANDS[desc]("--tensorboard") == 0
    events = accumulator.EventAccumulator(f"log/{desc}.tensorboard")
    events.Reload()
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert found == pytest.approx({(name, step): value for name, value, step in scalars_of(desc)})


@pytest.mark.parametrize("desc", COMMANDS)
def test_without_the_package_the_run_does_not_begin(monkeypatch, capsys, desc):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert COMMANDS[desc]("--tensorboard") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--tensorboard needs a package that is not installed: pip install tensorboard")
    assert not Path("log").exists()
