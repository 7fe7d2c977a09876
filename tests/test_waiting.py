"""Nobody waits: the user not for torch, where the answer needs none, and the host not for the device."""

import json
import math
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import loss
import model_pytorch
import opt
import pretrain
import train
from reading.encoding import Encoded
from reading.rows import Layout, Rows
from running import settings, training
from running.inference import predict
from running.processes import Ranks
from scoring import score_ids
from speed import kernels
from speed.packing import Packing

ROOT = Path(__file__).parents[1]

# --- a first answer --------------------------------------------------------------------------------------------------

MODEL = str(ROOT / "demo/model")
DATA = str(ROOT / "demo/data")
STORIES = str(ROOT / "demo/stories.txt")

# each command with an input that is not there, and the one line that names it
MISSING = [
    ("train.py", ["--model_dir", "gone", "--data_dir", DATA], "gone/encoder_bpe_40000.json is missing."),
    ("train.py", ["--model_dir", MODEL, "--data_dir", "gone"], "gone: no such folder."),
    ("train.py", ["--model_dir", MODEL, "--data_dir", DATA, "--dataset", "rte"], f"{DATA}/train.tsv is missing."),
    ("pretrain.py", ["--model_dir", "new", "--corpus", "gone.txt"], "gone.txt cannot be read"),
    ("pretrain.py", ["--model_dir", "new", "--corpus", STORIES, "--init_from", "gone"], "gone/params_shapes.json is"),
    ("predict.py", ["--save_dir", "gone", "--desc", "run"], "gone/run/settings.json is missing."),
    ("generate.py", ["--model_dir", "gone"], "gone/params_shapes.json is missing."),
    ("generate.py", ["--run", "gone"], "gone/settings.json is missing."),
    ("generate.py", ["--model_dir", MODEL, "--score", "gone.txt"], "gone.txt is missing."),
    ("generate.py", ["--model_dir", MODEL, "--prompt_file", "gone.txt"], "gone.txt is missing."),
    ("generate.py", ["--model_dir", MODEL, "--zero_shot", "choice", "--data_dir", "gone"], "gone: no such folder."),
    ("convert.py", ["to_hf", "gone", "new"], "gone is missing."),
    ("verify.py", ["--model_dir", "gone"], "gone is missing."),
    ("analysis.py", ["--log_dir", "gone", "--desc", "run"], "gone/run.jsonl is missing."),
    ("reproduce.py", ["--data_dir", "gone", "--model_dir", MODEL], "gone is missing."),
    ("reproduce.py", ["--data_dir", DATA, "--model_dir", "gone"], "gone/params_shapes.json is missing."),
    ("reproduce.py", ["--report", "--out", "gone"], "gone/results.json is missing."),
]
COMMANDS = sorted({command for command, _, _ in MISSING})

# runs commands one after the other; what they load stays loaded
RUN_ALL = """
import contextlib, io, json, runpy, sys
root, commands = json.loads(sys.argv[1])
sys.path.insert(0, root)
heavy = {"torch", "spacy", "ftfy", "pandas", "sklearn", "scipy", "matplotlib", "tqdm"}
found = []
for command, *flags in commands:
    out, err, code = io.StringIO(), io.StringIO(), None
    sys.argv = [command, *flags]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(f"{root}/{command}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    found.append([code, out.getvalue(), err.getvalue(), sorted(heavy & sys.modules.keys())])
print(json.dumps(found))
"""


def answers(folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Return exit code, output and errors of commands; none may load what takes time."""
    given = json.dumps([str(ROOT), commands])
    done = subprocess.run([sys.executable, "-c", RUN_ALL, given], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = []
    for command, (*answer, loaded) in zip(commands, json.loads(done.stdout), strict=True):
        assert loaded == [], command
        found.append(tuple(answer))
    return found


def test_help_and_a_wrong_flag_are_answered_before_torch_is_loaded(tmp_path):
    asked = [[command, flag] for command in COMMANDS for flag in ("--help", "--wrong_flag")]
    for (command, flag), (code, out, err) in zip(asked, answers(tmp_path, asked), strict=True):
        if flag == "--help":
            assert code == 0 and err == "" and out.startswith(f"usage: {command} "), command
            assert getattr(settings, FLAGS[command]).ABOUT.split()[0] in out
        else:
            assert code == 2 and out == "" and f"{command}: error: " in err.splitlines()[-1], command


def test_a_missing_input_is_told_of_before_torch_is_loaded(tmp_path):
    asked = [[command, *flags] for command, flags, _ in MISSING]
    for (command, _, message), (code, out, err) in zip(MISSING, answers(tmp_path, asked), strict=True):
        assert code == 2 and out == "" and err.startswith(f"{command}: error: {message}"), err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


FLAGS = {
    "train.py": "FineTuningFlags",
    "pretrain.py": "PreTrainingFlags",
    "predict.py": "PredictFlags",
    "generate.py": "GenerateFlags",
    "convert.py": "ConvertFlags",
    "verify.py": "VerifyFlags",
    "analysis.py": "AnalysisFlags",
    "reproduce.py": "ReproduceFlags",
}


def test_names_that_flags_repeat_are_those_of_what_takes_time_to_import():
    assert set(settings.AFNS) == model_pytorch.ACTIVATIONS.keys()
    assert set(settings.SCHEDULES) == opt.SCHEDULES.keys()


@pytest.mark.parametrize("rank, code", [("0", 2), ("1", None)])
def test_of_several_processes_the_first_answers(monkeypatch, capsys, rank, code):
    from running.starting import answer_at_once

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["verify.py", "--model_dir", "gone"])
    found = None
    try:
        answer_at_once("VerifyFlags")
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert (capsys.readouterr().err == "") == (code is None)


# --- a device at work ------------------------------------------------------------------------------------------------

META = torch.device("meta")  # its tensors hold no values: whatever asks for one, or copies one to the host, is an error


class Unread:
    """Stands for running.training.Figure: a number that is read so many updates after it was asked for."""

    n_asked = 0
    delays: ClassVar[list[int]] = []

    def __init__(self, value: Tensor):
        assert value.device == META
        Unread.n_asked += 1
        self.number = Unread.n_asked

    def read(self) -> float:
        Unread.delays.append((Unread.n_asked - self.number) // 2)  # an update has two figures
        return 1.0


def gpu_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool
) -> Tensor:
    """Attention as a GPU launches it in fp32: one kernel, before it one for a mask."""
    bias = None
    if attn_mask is not None:
        bias = torch.where(attn_mask, 0.0, -math.inf).expand(*q.shape[:2], -1, -1)
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    return attention(q, k, v, bias, True, dropout_p, is_causal)[0]


def gpu_dropout(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    """Dropout as a GPU launches it: one kernel."""
    return torch.native_dropout(x, p, True)[0] if training else x


@pytest.fixture
def meta(monkeypatch):
    """Let updates be made on the device meta, by the operations of a GPU; nothing is measured or saved."""
    Unread.n_asked = 0
    Unread.delays.clear()
    monkeypatch.setattr(training, "Figure", Unread)
    monkeypatch.setattr(training, "save_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(training, "save_parameters", lambda *_: None)
    monkeypatch.setattr(training, "autocast", lambda *_: nullcontext())
    monkeypatch.setattr(train, "evaluate", lambda *_: (1.0, {"acc": 50.0}))
    monkeypatch.setattr(pretrain.Measured, "figures", lambda *_: {"va_ppl": 1.0})
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", gpu_attention)
    monkeypatch.setattr(torch.nn.functional, "dropout", gpu_dropout)


@pytest.mark.parametrize("wait", [Tensor.item, Tensor.cpu, bool])
def test_waiting_for_this_device_is_an_error(wait):
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.ones((), device=META))


@pytest.mark.parametrize("name", ["train", "pretrain", "by document"])
def test_the_updates_of_a_page_never_wait_for_the_device(meta, tmp_path, name):
    flags = ["--n_iter", "1", "--n_batch", "4", "--n_layer", "1", "--n_embd", "64", "--n_head", "2"]
    flags += ["--save_dir", str(tmp_path / "save"), "--log_dir", str(tmp_path / "log")]
    if name == "train":
        flags += ["--model_dir", MODEL, "--data_dir", DATA, "--n_transfer", "-1"]
        flags += ["--max_examples", "30", "--n_valid", "10"]
        train.fine_tune(settings.parse(settings.FineTuningFlags, flags), Ranks(device=META))
    else:
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("the cat sat on the mat .\nit sat .\n" * 60)
        flags += ["--corpus", str(corpus), "--model_dir", str(tmp_path / "new"), "--n_merges", "20"]
        flags += ["--n_ctx", "16", "--lr_warmup", "2", "--workers", "1"]
        flags += ["--by_document"] if name == "by document" else []
        pretrain.pre_train(settings.parse(settings.PreTrainingFlags, flags), Ranks(device=META))

    # only before a log or checkpoint the figures of the last updates are read at once
    delays = Unread.delays
    assert len(delays) >= 10 and delays[: -2 * training.AHEAD] == [training.AHEAD] * (len(delays) - 2 * training.AHEAD)


class Launches(TorchDispatchMode):
    """Counts what a GPU is asked to do; views and new memory are nothing to do."""

    n = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        is_nothing = function.is_view or "empty" in str(function) or function is torch.ops.aten.detach.default
        self.n += not is_nothing
        return function(*arguments, **(keywords or {}))


def launches(n_layer: int) -> int:
    """Return what an update of fine-tuning launches."""
    with META:
        cfg = model_pytorch.Config(n_embd=64, n_head=2, n_layer=n_layer)
        losses = loss.PackedLosses(model_pytorch.DoubleHeadModel(cfg, 50, "multiple_choice", 67, 16), 0.5)
    optimizer = opt.OpenAIAdam(losses.parameters(), 1e-3, "warmup_linear", 0.1, 8, l2=0.01, max_grad_norm=1)
    optimizer.preallocate()
    packing = Packing.of_rows([[[1, 2, 3, 50], [1, 2, 4, 5, 50]]], 51).to(META)
    with Launches() as found:
        task, lm = losses(packing, torch.zeros(1, dtype=torch.long, device=META))
        cost = task.mean() + 0.5 * lm.mean()
        cost.backward()
        optimizer.step(cost=cost.detach())
    return found.n


def test_a_block_launches_at_most_60_operations_an_update(meta):
    assert 20 < launches(2) - launches(1) <= 60


# --- figures that come later -----------------------------------------------------------------------------------------


@pytest.fixture
def late(monkeypatch):
    """Let a CPU's updates be made as a GPU's are: their figures are read some updates later."""
    for module in (opt, training, kernels):
        monkeypatch.setattr(module, "is_known", lambda value: False)
    monkeypatch.setattr(training, "Figure", lambda value: SimpleNamespace(read=lambda: float(value)))


def train_in(folder: Path, *flags: str) -> int:
    """Make 10 updates of train.py on the demo's stories; the results are in the folder."""
    flags = ["--model_dir", MODEL, "--data_dir", DATA, "--n_batch", "4", "--n_iter", "2", "--desc", "run", *flags]
    flags += ["--max_examples", "30", "--n_valid", "10", "--n_layer", "1", "--max_grad_norm", "3"]
    return train.main([*flags, "--save_dir", str(folder / "save"), "--log_dir", str(folder / "log")])


def results(folder: Path) -> dict[str, bytes]:
    """Return the digests of the newest checkpoint and of the best parameters, and the lines of the log."""
    found = {"log": (folder / "log/run.jsonl").read_text().splitlines()[1:]}
    for name in ("checkpoint_000000010/SHA256.json", "best_params.sha256"):
        found[name] = (folder / "save/run" / name).read_text()
    return found


def test_figures_that_come_later_are_the_same_in_logs_and_checkpoints(request, tmp_path):
    assert train_in(tmp_path / "at once") == 0
    request.getfixturevalue("late")
    assert train_in(tmp_path / "later") == 0
    assert results(tmp_path / "later") == results(tmp_path / "at once")


@pytest.mark.parametrize("last, is_promise_kept", [(1.0, True), (2.0, False)])
def test_gradients_are_nan_where_rows_do_not_weigh_alike_as_promised(late, last, is_promise_kept):
    states = torch.randn(4, 8, requires_grad=True)
    table = torch.randn(5, 8)
    targets = torch.arange(4)
    predictions = targets.view(2, 2)
    of_rows = torch.tensor([1.0, last])
    gradients = []
    for losses in (kernels.plain_row_losses, partial(kernels.row_losses, alike=True)):
        cost = (losses(states, table, targets, predictions, torch.ones(2, 2)) * of_rows).sum()
        gradients.append(torch.autograd.grad(cost, states)[0])
    if is_promise_kept:
        torch.testing.assert_close(*gradients)
    else:
        assert gradients[1].isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_update_that_is_told_of_later_changed_nothing(late, monkeypatch, capsys, tmp_path, bad):
    forward, updates, runs = loss.PackedLosses.forward, [], []

    def spoilt(losses, *batch):
        task, lm = forward(losses, *batch)
        return (task * bad if len(updates) == 3 else task), lm

    def watched(run, examples):
        state = [value.clone() for value in run.model.parameters()]
        state += [value.clone() for values in run.optimizer.state.values() for value in values.values()]
        updates.append((examples, state, run.optimizer.param_groups[0]["t"]))
        runs[:] = [run]
        return parts(run, examples)

    parts = training.Run.parts
    monkeypatch.setattr(loss.PackedLosses, "forward", spoilt)
    monkeypatch.setattr(training.Run, "parts", watched)
    assert train_in(tmp_path) == 2
    examples, before, t = updates[2]
    message = f"the cost is {bad}; the update was not made. Its examples: {', '.join(map(str, examples))}. Look at them"
    assert message in capsys.readouterr().err
    assert len(updates) == 3 + training.AHEAD  # two more were begun, and changed nothing either
    after = list(runs[0].model.parameters())
    after += [value for values in runs[0].optimizer.state.values() for value in values.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert runs[0].n_updates == t == runs[0].optimizer.param_groups[0]["t"] == 2
    assert not list(tmp_path.glob("save/run/checkpoint_*"))


# --- texts of mixed lengths ------------------------------------------------------------------------------------------


@pytest.fixture
def slots(monkeypatch):
    """Return a list that gets the tokens, and the slots that attention works on, of each batch."""
    found = []
    forward = model_pytorch.TransformerModel.forward

    def watched(transformer, x, *arguments):
        found.append((len(x.tokens), math.prod(x.sequences)))
        return forward(transformer, x, *arguments)

    monkeypatch.setattr(model_pytorch.TransformerModel, "forward", watched)
    return found


N_VOCAB = 50
LENGTHS = [2 + 61 * i % 59 for i in range(60)]  # in no order
TEXTS = [[(7 * i + 3 * t) % N_VOCAB for t in range(n)] for i, n in enumerate(LENGTHS)]


def test_texts_of_similar_length_are_predicted_together_and_given_in_their_order(slots):
    torch.manual_seed(0)
    cfg = model_pytorch.Config(n_embd=16, n_head=2, n_layer=1)
    model = model_pytorch.DoubleHeadModel(cfg, N_VOCAB + 2, ("classification", 2), N_VOCAB + 3 + 64, 64)
    rows = Rows(Encoded.of([[text] for text in TEXTS]), Layout("classification", "longest", N_VOCAB, 64))
    ranks = Ranks(device=torch.device("cpu"))
    together = predict(model, rows, 6, ranks)
    n_tokens, n_slots = np.sum(slots, 0)
    assert len(slots) == 10 and n_slots < 1.15 * n_tokens
    assert slots[0][0] == max(n for n, _ in slots)
    torch.testing.assert_close(together, predict(model, rows, 1, ranks), rtol=0, atol=1e-5)


def test_texts_of_similar_length_are_scored_together_and_given_in_their_order(slots):
    torch.manual_seed(0)
    model = model_pytorch.LMModel(model_pytorch.Config(n_embd=16, n_head=2, n_layer=1), N_VOCAB + 64, 64)
    ids = [i for text in TEXTS for i in text]
    starts = np.cumsum([0, *LENGTHS[:-1]])
    together = score_ids(model, ids, N_VOCAB, n_batch=6, starts=starts).log_probabilities
    n_tokens, n_slots = np.sum(slots, 0)
    assert len(slots) == 10 and n_slots < 1.15 * n_tokens
    alone = score_ids(model, ids, N_VOCAB, n_batch=1, starts=starts).log_probabilities
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
