"""Several processes train as one does; updates that must not be made are not; a log tells what its run depends on."""

import math
import os
import re
import signal
import sys
import threading
import types
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_data, write_model
from helpers import NO_DROPOUT, ROOT, read_lines, write_lines
from launch import Processes, rank, torchrun
from safetensors.torch import load_file
from test_golden import GOLDEN, Golden, Product
from test_pretrain import write_corpus

import loss
import opt
import pretrain
import train
from formats.files import InputError, sha256
from running import processes, training
from running.command import Interrupted
from speed.packing import Packing

PRETRAIN = (
    "--n_merges 40 --n_ctx 16 --n_embd 16 --n_head 2 --n_layer 2 --n_iter 2 --lr 5e-3 --lr_warmup 3 --log_every 5"
).split()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model, examples and a corpus; 32 examples are trained on, 9 validated, 13 tested."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_data(folder / "data", n_valid=41, n_test=13)
    write_corpus(folder / "corpus.txt")
    (folder / "choices").mkdir()
    examples = [{"context": "a cat", "choices": ["sat", "saw a bird"], "label": 1 + i % 2} for i in range(40)]
    write_lines(folder / "choices/train.jsonl", examples)
    return folder


def train_flags(world: Path, *more) -> list[str]:
    folders = ["--model_dir", world / "model", "--data_dir", world / "data", "--n_valid", 9]
    return [*map(str, folders), *NO_DROPOUT, *map(str, more)]


def pretrain_flags(world: Path, *more) -> list[str]:
    probe = ["--probe", f"choice:own:{world / 'choices'}", "--probe_examples", "4"]
    return [
        "--corpus",
        str(world / "corpus.txt"),
        "--model_dir",
        "model",
        *PRETRAIN,
        *probe,
        *NO_DROPOUT,
        *map(str, more),
    ]


def read_log(folder: Path, desc: str = "rocstories") -> list[dict]:
    return read_lines(folder / f"log/{desc}.jsonl")


def newest_tensors(folder: Path) -> dict[str, torch.Tensor]:
    *_, newest = sorted(folder.glob("save/*/checkpoint_*"))
    return load_file(newest / "tensors.safetensors")


def assert_same_training(ours: Path, theirs: Path, desc: str) -> None:
    """Compare logs, parameters and Adam's means to 1e-6, and predictions exactly."""
    for line, expected in zip(read_log(ours, desc)[1:], read_log(theirs, desc)[1:], strict=True):
        assert line.pop("costs") == pytest.approx(expected.pop("costs"), abs=2e-6, rel=1e-6)
        assert line == pytest.approx(expected, abs=1e-6, rel=1e-6)
    tensors, expected = newest_tensors(ours), newest_tensors(theirs)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        # the gradient of this one is 0 but for rounding, which Adam scales up: see test_golden.py
        if not name.startswith("random") and name != "model.task_head.linear.bias":
            torch.testing.assert_close(tensors[name], value, atol=1e-6, rtol=0, msg=name)
    for path in ours.glob("submission/*"):
        assert path.read_bytes() == (theirs / "submission" / path.name).read_bytes()


# --- processes -------------------------------------------------------------------------------------------------------

TWENTY_UPDATES = ("--n_iter", 5, "--lr", "1e-3", "--submit")
MAINS = {"train": train.main, "pretrain": pretrain.main}
DESCS = {"train": "rocstories", "pretrain": "pretrain"}


def flags_of(name: str, world: Path, *more) -> list[str]:
    """Return the flags of twenty updates or more: train.py's, or those of pretrain.py with a probe."""
    return train_flags(world, *TWENTY_UPDATES, *more) if name == "train" else pretrain_flags(world, *more)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> dict[str, Path]:
    """The folders of the two runs in one process: updates of 8 examples, and of 4 sequences."""
    folders = {}
    for name, n_batch in (("train", 8), ("pretrain", 4)):
        action = partial(MAINS[name], flags_of(name, world, "--n_batch", n_batch))
        run = Processes(action, tmp_path_factory.mktemp("alone"))
        assert run.wait() == [0], run.err()
        folders[name] = run.folder
    assert read_log(folders["train"])[0]["t_total"] == 20
    settings, first, *_ = read_log(folders["pretrain"], "pretrain")
    assert settings["t_total"] >= 20 and first["choice_own"]
    return folders


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name, n_processes, n_batch, more",
    [
        ("train", None, 4, ("--accumulate", 2)),
        ("train", 1, 8, ()),
        ("train", 2, 2, ("--accumulate", 2)),
        slow("train", 2, 4, ()),
        slow("train", 4, 2, ()),
        ("pretrain", None, 2, ("--accumulate", 2)),
        ("pretrain", None, 4, ("--checkpoint_activations",)),
        ("pretrain", 2, 2, ()),
        slow("pretrain", 2, 1, ("--accumulate", 2)),
        slow("pretrain", 4, 1, ()),
    ],
)
def test_processes_and_accumulation_train_as_one_batch_does(world, alone, tmp_path, name, n_processes, n_batch, more):
    flags = flags_of(name, world, "--n_batch", n_batch, *more)
    run = Processes(partial(MAINS[name], flags), tmp_path / "together", n_processes)
    assert run.wait() == [0] * (n_processes or 1), run.err()
    assert name == "pretrain" or "20 updates of 8 examples" in run.out()
    assert_same_training(run.folder, alone[name], DESCS[name])
    for other in range(1, n_processes or 1):  # only the first prints
        assert run.out(other) + run.err(other) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name, n", [("train", 8), ("pretrain", 4)])
@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_torchrun_trains_as_one_process_does(world, alone, tmp_path, name, n, n_processes):
    flags = flags_of(name, world, "--n_batch", n // n_processes)
    code, out, err = torchrun(n_processes, ROOT / f"{name}.py", flags, tmp_path / "together")
    assert code == 0, err
    assert out.count("plan  ") == 1
    assert_same_training(tmp_path / "together", alone[name], DESCS[name])


def write_first_gradients(main, flags: list[str]) -> None:
    """Run a command up to its first update, write the gradients that it is made with, and what it costs."""

    def step(optimizer, **_) -> None:
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        np.save(f"gradients_{rank()}.npy", torch.cat(gradients).numpy())
        sys.exit(0)

    opt.OpenAIAdam.step = step
    main(flags)


def unequal_flags(world: Path) -> list[str]:
    """Return flags of a run on examples of two to five choices."""
    folder = world / "unequal"
    folder.mkdir(exist_ok=True)
    words = "the cat was in red".split()
    examples = []
    for i in range(40):
        choices = [f"{word} {' was' * i}" for word in words[: 2 + i * i % 4]]
        examples.append({"context": f"a {words[i % 5]}", "choices": choices, "label": 1 + i % 2})
    write_lines(folder / "train.jsonl", examples)
    return train_flags(world, "--dataset", "own", "--task", "multiple_choice", "--data_dir", folder, "--lm_coef", 3)


@pytest.mark.parametrize("form", ["choices", "windows", "documents"])
def test_the_parts_of_an_update_have_the_gradients_of_one_large_batch(world, tmp_path, form):
    main, flags = train.main, unequal_flags(world)
    if form != "choices":
        main, flags = pretrain.main, pretrain_flags(world, "--init_std", 0.2)
    if form == "documents":
        flags.append("--by_document")
    found = {}
    for n_batch, accumulate, n_processes in ((8, 1, None), (1, 8, None), (2, 2, 2)):
        more = [f"--n_batch={n_batch}", f"--accumulate={accumulate}"]
        run = Processes(partial(write_first_gradients, main, flags + more), tmp_path / f"by_{n_batch}", n_processes)
        assert set(run.wait()) == {0}, run.err()
        found[n_batch] = np.load(run.folder / "gradients_0.npy")
    assert np.abs(found[8]).max() > 0.1
    for n_batch in (1, 2):
        np.testing.assert_allclose(found[n_batch], found[8], rtol=0, atol=1e-6)


def test_the_training_perplexity_is_over_tokens(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes, costs, original = [], [], training.Run.count

    def count_update(run, cost, norm, size):
        costs.append(float(cost))
        sizes.append(size)
        original(run, cost, norm, size)

    monkeypatch.setattr(training.Run, "count", count_update)
    assert pretrain.main(pretrain_flags(world, "--n_batch", 4, "--by_document")) == 0
    logged = read_log(tmp_path, "pretrain")[1]
    n = logged["n_updates"]
    assert len(set(sizes[:n])) > 1
    assert logged["tr_ppl"] == pytest.approx(math.exp(np.average(costs[:n], weights=sizes[:n])), rel=1e-12)


def run_of(ranks: processes.Ranks, n_batch: int, accumulate: int = 1, **attributes) -> training.Run:
    """Return a run that has no files."""
    run = training.Run.__new__(training.Run)
    run.ranks = ranks
    run.plan = training.Plan(100, n_batch, accumulate, ranks.size, 1)
    vars(run).update(attributes)
    return run


def make_golden_updates(n_parts: int) -> None:
    """Make TensorFlow's updates with all processes, each in n_parts, and compare as test_golden.py does."""
    with processes.join_ranks() as ranks:
        assert ranks.gather(torch.tensor([ranks.rank, -1])).tolist() == [0, -1, 1, -1]
        for path in sorted(GOLDEN.glob("*.npz")):
            golden = Golden(path)
            product = Product(golden)
            product.set_parameters(golden.parameters("init"))
            n_batch = golden.config["n_batch"] if "n_batch" in golden.config else len(golden.batch(0)[2])
            run = run_of(ranks, n_batch // (ranks.size * n_parts), n_parts)
            losses = run.wrap(loss.PackedLosses(product.model, product.lm_coef))
            for u in range(golden.config["n_updates"]):
                x, m, y = golden.batch(u)
                product.optimizer.zero_grad()
                cost = 0.0
                for part in map(list, run.parts(range(len(y)))):
                    x_part, m_part = torch.from_numpy(x[part].astype(int)), torch.from_numpy(m[part])
                    packing = Packing.of_padded(x_part, m_part, clf_token=product.model.task_head.clf_token)
                    task, lm = losses(packing, torch.tensor(y[part]))
                    of_part = task.mean() if lm is None else task.mean() + product.lm_coef * lm.mean()
                    (of_part / n_parts).backward()
                    cost = cost + of_part.detach() / n_parts
                cost = ranks.mean(cost)
                product.optimizer.step()
                theirs = golden.arrays[f"{u}/clf"].mean() + product.lm_coef * golden.arrays[f"{u}/lm"].mean()
                assert abs(cost - theirs) < Product.tolerance, (path, u)
                if u in (0, 4, 11):
                    assert golden.movement(u, product.get_parameters()) < 5e-3, (path, u)


@pytest.mark.parametrize("n_parts", [1, 2])
def test_two_processes_make_the_updates_of_tensorflow(tmp_path, n_parts):
    run = Processes(partial(make_golden_updates, n_parts), tmp_path, 2)
    assert run.wait() == [0, 0], run.err() + run.err(1)


def test_the_examples_of_an_update_are_shared_out_in_order():
    for number, expected in enumerate([[range(0, 3), range(3, 6)], [range(6, 9), range(9, 12)]]):
        ranks = processes.Ranks(number, 2, torch.device("cpu"))
        run = run_of(ranks, 3, 2, losses=types.SimpleNamespace(no_sync=nullcontext))
        assert list(run.parts(range(12))) == expected


def test_more_processes_than_devices_are_refused(monkeypatch):
    for name, value in {"LOCAL_RANK": 3, "RANK": 3, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--nproc_per_node 4 is more than the 2 devices"), processes.join_ranks():
        pass


# --- guards ----------------------------------------------------------------------------------------------------------


def spoil(cost: torch.Tensor, parameter: torch.Tensor, how: str) -> torch.Tensor:
    zero = parameter.sum() - parameter.sum().detach()  # the slope of its root is infinite
    match how:
        case "nan in the cost":
            return cost * float("nan")
        case "inf in the cost":
            return cost + float("inf")
        case "nan in the gradient":
            return cost + 0 * zero.sqrt()
        case "inf in the gradient":
            return cost + zero.sqrt()
        case "GPU memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        case "CPU memory":
            return cost + torch.empty(2**60)
        case "array memory":
            return cost + torch.from_numpy(np.empty(2**58))
        case "mistake":
            raise RuntimeError("a mistake of ours")


def run_spoilt(name: str, argv: list[str], how: str, at: int, who: int = 0) -> int:
    """Run a command where in update `at` of process `who` something is wrong. Assert that the update changes nothing.

    It prints the examples of that update.
    """
    command = {"train": train, "pretrain": pretrain}[name]
    losses_class = {"train": loss.PackedLosses, "pretrain": loss.TokenLoss}[name]
    forward, parts, numbers, last = losses_class.forward, training.Run.parts, count(1), []

    def spoilt_forward(self, *batch):
        found = forward(self, *batch)
        if next(numbers) != at or rank() != who:
            return found
        if name == "pretrain":
            return spoil(found, next(self.parameters()), how)
        task, lm = found
        return spoil(task, next(self.parameters()), how), lm

    def state(run) -> list[torch.Tensor]:
        moments = [value for values in run.optimizer.state.values() for value in values.values()]
        updates = torch.tensor([group["t"] for group in run.optimizer.param_groups])
        return [t.clone() for t in (*run.model.parameters(), *moments, updates)]

    def watched_parts(self, examples):
        last[:] = self, state(self)
        return parts(self, examples)

    losses_class.forward, training.Run.parts = spoilt_forward, watched_parts
    code = command.main(argv)
    run, before = last
    assert before[-1].tolist() == [at - 1, at - 1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(run), before, strict=True))
    print("examples", ", ".join(map(str, run.examples)))
    return code


def spoilt_flags(name: str, world: Path, n_batch: int) -> list[str]:
    return (train_flags if name == "train" else pretrain_flags)(world, "--n_batch", n_batch)


AT = [("train", 8), ("pretrain", 4)]  # after 8 updates of train and 5 of pretrain there would be a log
AT += [pytest.param(*at, marks=pytest.mark.slow) for at in (("train", 3), ("pretrain", 5))]
HOW = [f"{value} in the {part}" for value in ("nan", "inf") for part in ("cost", "gradient")]


def assert_not_made(run: Processes, who: int, how: str, at: int, n_examples: int) -> None:
    reason = "the cost is" if "cost" in how else "the norm of the gradients is"
    examples = run.out(who).splitlines()[-1].removeprefix("examples ")
    assert len(examples.split(", ")) == n_examples
    assert f"error: {reason} {how[:3]}; the update was not made. Its examples: {examples}. Look at them" in run.err(who)
    assert "Traceback" not in run.err(who)
    assert not list(run.folder.glob(f"save/*/checkpoint_{at:09d}"))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name, at", AT)
def test_an_update_that_is_no_number_is_not_made(world, tmp_path, name, at, how):
    run = Processes(partial(run_spoilt, name, spoilt_flags(name, world, 4), how, at), tmp_path)
    assert run.wait() == [2], run.err()
    assert len(run.err().splitlines()) == 1
    assert_not_made(run, 0, how, at, 4)


@pytest.mark.parametrize("name, how", [("train", HOW[0]), ("train", HOW[3]), ("pretrain", HOW[1])])
def test_an_update_that_is_no_number_in_one_process_is_made_in_none(world, tmp_path, name, how):
    run = Processes(partial(run_spoilt, name, spoilt_flags(name, world, 2), how, 3, 1), tmp_path, 2)
    assert run.wait() == [2, 2], run.err()
    for who in (0, 1):
        assert_not_made(run, who, how, 3, 4)


@pytest.mark.parametrize("how", ["GPU memory", "CPU memory", "array memory"])
def test_full_memory_is_named_with_batch_and_remedy(world, tmp_path, how):
    run = Processes(partial(run_spoilt, "train", spoilt_flags("train", world, 4), how, 3), tmp_path)
    assert run.wait() == [2], run.err()
    (message,) = run.err().splitlines()
    assert "error: out of memory on cpu, 4 examples at a time. Halve --n_batch and double --accumulate" in message


def test_full_memory_of_one_process_ends_all(world, tmp_path):
    run = Processes(partial(run_spoilt, "train", spoilt_flags("train", world, 2), "CPU memory", 3, 1), tmp_path, 2)
    assert run.wait() == [2, 2], run.err()
    assert "process 0 of 2 has lost another one, whose own message says why" in run.err()
    assert "out of memory on cpu, 2 examples at a time" in run.err(1)
    assert "Traceback" not in run.err() + run.err(1)


def test_a_mistake_of_ours_keeps_its_traceback(world, tmp_path):
    run = Processes(partial(run_spoilt, "train", spoilt_flags("train", world, 2), "mistake", 3, 1), tmp_path, 2)
    assert run.wait() == [2, 1], run.err()
    assert "Traceback" in run.err(1) and "RuntimeError: a mistake of ours" in run.err(1)


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_signal_waits_and_another_one_soon_after_does_not_count():
    earlier = signal.getsignal(signal.SIGTERM)
    ranks = processes.Ranks(device=torch.device("cpu"))
    with processes.signals_wait(ranks):
        ranks.pause()  # nothing was asked
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(processes.Stopped) as stopped:
            ranks.pause()
        assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_another_signal_later_does_not_wait_and_leaves_no_checkpoint(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", -1)
    with processes.signals_wait(processes.Ranks(device=torch.device("cpu"))):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
    assert not isinstance(interrupted.value, processes.Stopped)  # what train.py writes a checkpoint after


def test_a_run_in_a_thread_leaves_the_signals_alone():
    handlers = []

    def watch():
        ranks = processes.Ranks(device=torch.device("cpu"))
        with processes.signals_wait(ranks):
            handlers.append(signal.getsignal(signal.SIGTERM))
            ranks.pause()

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


# --- the machine -----------------------------------------------------------------------------------------------------


def test_the_first_line_of_a_log_tells_what_the_run_depends_on(world, alone):
    for name, folder in alone.items():
        settings = read_log(folder, DESCS[name])[0]
        assert settings["torch"] == torch.__version__ and re.fullmatch(r"3\.\d+\.\d+", settings["python"])
        assert settings["device"].startswith("cpu") and (settings["n_processes"], settings["n_threads"]) == (1, 1)
        assert settings["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", settings["commit"])
    files = [*(world / "data").glob("*.csv"), *(world / "model").glob("params_?.npy")]
    files += [world / "model/encoder_bpe_40000.json", world / "model/vocab_40000.bpe"]
    assert len(files) == 14
    assert read_log(alone["train"])[0]["digests"] == {path.name: sha256(path) for path in files}
    expected = {path.name: sha256(alone["pretrain"] / "model" / path.name) for path in files[-2:]}
    expected["corpus"] = sha256(world / "corpus.txt")
    assert read_log(alone["pretrain"], "pretrain")[0]["digests"] == expected


def run_deterministically(argv: list[str]) -> int:
    assert not torch.are_deterministic_algorithms_enabled()
    code = train.main([*argv, "--deterministic"])
    assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"]
    return code


def test_deterministic_algorithms_can_be_asked_for(world, alone, tmp_path):
    run = Processes(partial(run_deterministically, flags_of("train", world, "--n_batch", 8)), tmp_path)
    assert run.wait() == [0], run.err()
    assert read_log(run.folder)[0]["deterministic"]
    assert_same_training(run.folder, alone["train"], "rocstories")


def test_a_forked_child_does_not_inherit_the_patience_with_signals():
    with processes.signals_wait(processes.Ranks(device=torch.device("cpu"))):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)  # not reached
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
