"""What was stopped, killed or damaged goes on to the same end, to the bit; what would lose work is refused."""

import errno
import json
import os
import pickle
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_data, write_model
from launch import ROOT, Processes, rank, torchrun
from safetensors.torch import save_file
from test_pretrain import write_corpus

import opt
import pretrain
import train
from formats.files import InputError, sha256
from running import checkpoint
from running.processes import Ranks

ONE = Ranks(device=torch.device("cpu"))
COMMANDS = {"train": train, "pretrain": pretrain}
TWO = ("--n_batch", 2)  # with which two processes make the updates of one
EVERY = {"train": 3, "pretrain": 4}  # updates between two checkpoints


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model, examples and a corpus: 14 updates of 4 examples, with an evaluation and test examples."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_data(folder / "data", n_valid=37, n_test=7)
    write_corpus(folder / "corpus.txt", n_lines=40)
    return folder


def command(name: str, world: Path, *more) -> Callable[[], int]:
    """Return a small run, dropout on, to be called in a process of its own."""
    flags = {
        "train": ["--model_dir", world / "model", "--data_dir", world / "data", "--submit"]
        + "--n_valid 9 --n_batch 4 --n_iter 2 --lr 1e-3".split(),
        "pretrain": ["--corpus", world / "corpus.txt", "--model_dir", "model"]
        + "--n_merges 40 --n_ctx 16 --n_embd 16 --n_head 2 --n_layer 2 --n_batch 4 --n_iter 2".split()
        + "--lr 5e-3 --lr_warmup 3 --log_every 5 --valid_share 0.2".split(),
    }[name]
    return partial(COMMANDS[name].main, list(map(str, [*flags, "--checkpoint_every", EVERY[name], *more])))


def finish(action: Callable[[], int], folder: Path, *processes, **environment) -> Processes:
    """Run an action to its good end."""
    run = Processes(action, folder, *processes, **environment)
    assert set(run.wait()) == {0}, run.err()
    return run


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a run's folder by the number of updates, the newest last."""
    return {int(path.name.removeprefix("checkpoint_")): path for path in sorted(folder.glob("save/*/checkpoint_*"))}


def outcome(folder: Path) -> dict[str, bytes]:
    """Return all that a run leaves: log, predictions, parameters, weights, newest checkpoint."""
    *older, newest = checkpoints(folder).values()
    found = {}
    for path in sorted(path for path in folder.glob("*/**/*") if path.is_file()):
        name = str(path.relative_to(folder))
        # what a kill may leave beside, and the older checkpoints, of other updates after a stop
        if not any(old in path.parents for old in older) and ".part" not in name and "checkpoint.old" not in name:
            found[name] = re.sub(rb'"(commit|time)": [^,}]+', b"", path.read_bytes())  # which change meanwhile
    return found


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> dict[str, Path]:
    """The folders of the small commands' runs, to be copied."""
    return {name: finish(command(name, world), tmp_path_factory.mktemp(name)).folder for name in COMMANDS}


@pytest.fixture(scope="module")
def unbroken(finished) -> dict[str, dict[str, bytes]]:
    """What these runs leave."""
    outcomes = {name: outcome(folder) for name, folder in finished.items()}
    names = {Path(path).name for path in outcomes["train"]}
    assert names >= {"tensors.safetensors", "state.json", "best_params", "rocstories.jsonl", "ROCStories.tsv"}
    return outcomes


def assert_goes_on(name: str, world: Path, folder: Path, unbroken: dict, *processes: int) -> None:
    """Resume the run in a folder and compare its end with the unbroken one's."""
    finish(command(name, world, "--resume", *(TWO if processes == (2,) else ())), folder, *processes)
    ours, theirs = outcome(folder), unbroken[name]
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []


@pytest.fixture(scope="module")
def unbroken_by_two(world, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    return {"train": outcome(finish(command("train", world, *TWO), tmp_path_factory.mktemp("two"), 2).folder)}


def at_call(function: str, number: int, do: Callable[[], None], action: Callable[[], int], who: int = 0) -> int:
    """Do an action; process `who` does something else first at a call of the function that `function` names.

    Restarted processes do not.
    """
    owner, _, name = function.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    original, calls = getattr(owner, name), count(1)

    def watched(*arguments, **keywords):
        if next(calls) == number and rank() == who and "TORCHELASTIC_RESTART_COUNT" not in os.environ:
            do()
        return original(*arguments, **keywords)

    setattr(owner, name, watched)
    return action()


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory) -> Path:
    """The folder of a run that was stopped after 8 of its 14 updates, to be copied."""
    run = partial(at_call, "opt.OpenAIAdam.step", 8, partial(signal_self, signal.SIGTERM), command("train", world))
    folder = tmp_path_factory.mktemp("stopped")
    assert Processes(run, folder).wait() == [143]
    return folder


@pytest.fixture
def copy(tmp_path) -> Callable[[Path], Path]:
    """Copy a run's folder to one of the test's own."""
    return partial(shutil.copytree, dst=tmp_path / "run")


# --- signals ---------------------------------------------------------------------------------------------------------

STOPS = [  # command, function, call of it, updates made when the run stops
    ("train", "text_utils:TextEncoder.encode", 1, 0),
    ("train", "opt.OpenAIAdam.step", 5, 5),
    ("train", "running.inference.predict", 2, 7),  # on valid
    ("train", "running.training.save_checkpoint", 2, 6),
    pytest.param("train", "train.predict", 1, 14, marks=pytest.mark.slow),  # on test
    ("pretrain", "reading.corpus.learn_vocabulary", 1, 0),
    pytest.param("pretrain", "text_utils:TextEncoder.encode", 1, 0, marks=pytest.mark.slow),
    ("pretrain", "opt.OpenAIAdam.step", 6, 6),
    pytest.param("pretrain", "pretrain.sequence_losses", 2, 5, marks=pytest.mark.slow),  # on held-out sequences
    pytest.param("pretrain", "running.training:Run.write_log", 2, 10, marks=pytest.mark.slow),
    ("pretrain", "pretrain.save_openai_model", 1, 10),
]


@pytest.mark.parametrize("name, function, number, updates", STOPS)
def test_a_signal_stops_within_an_update_and_loses_nothing(world, unbroken, tmp_path, name, function, number, updates):
    for cache in (world / "data").glob("encoded_*") if "encode" in function else []:
        shutil.rmtree(cache)
    asked = (signal.SIGTERM, signal.SIGINT)[number % 2]
    run = Processes(partial(at_call, function, number, partial(signal_self, asked), command(name, world)), tmp_path)
    assert run.wait() == [128 + asked]
    assert run.err() == f"{name}.py: stopped; --resume goes on"
    assert max(checkpoints(tmp_path), default=0) == updates
    assert_goes_on(name, world, tmp_path, unbroken)


@pytest.mark.parametrize(
    "function, number, updates", [("opt.OpenAIAdam.step", 5, 5), ("running.inference.predict", 2, 7)]
)
def test_a_signal_to_one_of_two_processes_stops_both(world, unbroken_by_two, tmp_path, function, number, updates):
    action = partial(at_call, function, number, partial(signal_self, signal.SIGTERM), command("train", world, *TWO), 1)
    run = Processes(action, tmp_path, 2)
    assert run.wait() == [143, 143], run.err()
    assert "Traceback" not in run.err() + run.err(1)
    assert max(checkpoints(tmp_path)) == updates
    assert_goes_on("train", world, tmp_path, unbroken_by_two, 2)


# --- what would lose work --------------------------------------------------------------------------------------------


def refuse(action: Callable[[], int], folder: Path, *processes) -> str:
    """Run an action that must end with one line and exit code 2; return the line."""
    run = Processes(action, folder, *processes)
    assert set(run.wait()) == {2}, run.err()
    (line,) = run.err().splitlines()
    return line


def test_checkpoints_of_an_unfinished_run_are_not_overwritten(world, unbroken, stopped, copy):
    folder = copy(stopped)
    before = outcome(folder)
    assert "holds checkpoints of an unfinished run. --resume goes on" in refuse(command("train", world), folder)
    other = command("train", world, "--resume", "--lr", "2e-3", "--lm_coef", 0.25)
    assert "was made with another lm_coef, lr. Resume with the settings it had" in refuse(other, folder)
    two = Processes(command("train", world, "--resume"), folder, 2)
    assert two.wait() == [2, 2] and "was made with another n_processes, t_total." in two.err()
    assert outcome(folder) == before
    finish(command("train", world, "--resume", "--checkpoint_every", 5), folder)  # this one may change
    assert outcome(folder) == unbroken["train"]


def test_checkpoints_of_a_finished_run_are_replaced(world, finished, copy):
    folder = copy(finished["train"])
    before = outcome(folder)
    finish(command("train", world, "--seed", 1), folder)
    assert outcome(folder).keys() == before.keys() and outcome(folder) != before
    assert list(checkpoints(folder)) == [12, 14]


def test_a_finished_run_resumed_predicts_again(world, finished, unbroken, copy):
    folder = copy(finished["train"])
    (folder / "submission/ROCStories.tsv").unlink()
    run = finish(command("train", world, "--resume"), folder)
    assert "14 of them done" in run.out()
    assert outcome(folder) == unbroken["train"]


def test_a_finished_run_resumed_without_predicting_keeps_its_predictions(world, finished, unbroken, copy):
    folder = copy(finished["train"])
    flags = [flag for flag in command("train", world, "--resume").args[0] if flag != "--submit"]
    finish(partial(train.main, flags), folder)
    assert outcome(folder) == unbroken["train"]


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def kill_at_random(name: str, world: Path, folder: Path, rng: random.Random) -> Path:
    """Kill a run some time after its log was begun and before its end."""
    moment = rng.random()
    for attempt in count():
        run = Processes(command(name, world), folder / str(attempt))
        while run.processes[0].is_alive() and not list(run.folder.glob("log/*.jsonl")):
            time.sleep(0.001)
        time.sleep(moment)
        run.send(signal.SIGKILL)
        codes = run.wait()
        if codes == [-signal.SIGKILL]:
            return run.folder
        assert codes == [0], run.err()
        moment *= 0.7  # it had ended


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_goes_on_to_the_same_end(world, unbroken, tmp_path, name):
    assert_goes_on(name, world, kill_at_random(name, world, tmp_path, random.Random()), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(world, unbroken, tmp_path, name, seed):
    assert_goes_on(name, world, kill_at_random(name, world, tmp_path, random.Random(seed)), unbroken)


@pytest.mark.parametrize(
    "name, function, number",
    [
        ("train", "opt.OpenAIAdam.step", 9),
        pytest.param("train", "running.inference.predict", 4, marks=pytest.mark.slow),
        pytest.param("train", "running.training.save_parameters", 1, marks=pytest.mark.slow),
        ("train", "running.checkpoint.save_file", 4),
        pytest.param("pretrain", "running.training:Run.write_log", 2, marks=pytest.mark.slow),
        ("pretrain", "formats.files.replacing", 3),  # some weights are written
    ],
)
def test_a_run_killed_at_each_kind_of_work_goes_on(world, unbroken, tmp_path, name, function, number):
    action = partial(at_call, function, number, partial(signal_self, signal.SIGKILL), command(name, world))
    assert Processes(action, tmp_path).wait() == [-signal.SIGKILL]
    assert_goes_on(name, world, tmp_path, unbroken)


def test_processes_restarted_after_one_was_killed_reach_the_same_end(world, unbroken_by_two, tmp_path):
    action = partial(
        at_call, "opt.OpenAIAdam.step", 8, partial(signal_self, signal.SIGKILL), command("train", world, *TWO), 1
    )
    run = Processes(action, tmp_path, 2)
    assert run.wait() == [2, -signal.SIGKILL]
    assert "process 0 of 2 has lost another one" in run.err() and "Traceback" not in run.err()
    finish(action, tmp_path, 2, TORCHELASTIC_RESTART_COUNT=1)  # as torchrun starts them, without --resume
    assert outcome(tmp_path) == unbroken_by_two["train"]


WORKER = """
import os, signal, sys
import train
from opt import OpenAIAdam

original, number = OpenAIAdam.step, 0

def step(*arguments, **keywords):
    global number
    number += 1
    if number == 8 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill({who}, signal.{number})
    return original(*arguments, **keywords)

OpenAIAdam.step = step
sys.exit(train.main())
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_worker_was_killed(world, unbroken_by_two, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(who="os.getpid()", number="SIGKILL"))
    code, out, err = torchrun(2, script, command("train", world, *TWO).args[0], tmp_path / "run", "--max-restarts=3")
    assert code == 0, err
    assert out.count("plan  ") == 2 and "7 of them done" in out
    assert outcome(tmp_path / "run") == unbroken_by_two["train"]


@pytest.mark.slow
def test_torchrun_stopped_goes_on_to_the_same_end(world, unbroken_by_two, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(who="os.getppid()", number="SIGTERM"))
    code, _, err = torchrun(2, script, command("train", world, *TWO).args[0], tmp_path / "run")
    assert code != 0 and err.count("train.py: stopped; --resume goes on") == 2
    assert max(checkpoints(tmp_path / "run")) in (8, 9)
    code, _, err = torchrun(
        2, ROOT / "train.py", [*command("train", world, *TWO).args[0], "--resume"], tmp_path / "run"
    )
    assert code == 0, err
    assert outcome(tmp_path / "run") == unbroken_by_two["train"]


# --- saving ----------------------------------------------------------------------------------------------------------


def small(updates: int) -> tuple[torch.nn.Module, opt.OpenAIAdam]:
    """Return a network and its optimiser, all their numbers this one."""
    model = torch.nn.Linear(3, 3)
    optimizer = opt.OpenAIAdam(model.parameters(), 0.1, "warmup_linear", 0.1, 100)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    for values in (vars for vars in optimizer.state.values()):
        for value in values.values():
            value.fill_(updates)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(updates)
    return model, optimizer


def state_of(updates: int) -> dict:
    return {"settings": {}, "logs": [updates], "costs": [], "sizes": []}


def save_small(folder: Path, updates: int) -> None:
    checkpoint.save_checkpoint(folder, updates, *small(updates), ONE, **state_of(updates))


def assert_is(found: tuple[dict[str, torch.Tensor], dict], updates: int) -> None:
    tensors, state = found
    assert (state["updates"], state["logs"]) == (updates, [updates])
    names = [name for name in tensors if not name.startswith("random")]
    assert len(names) == 8 and all((tensors[name] == updates).all() for name in names)


STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}


def save_and_die(folder: Path, updates: int, step: int) -> None:
    """Save, and end without a word before a given step: each call that touches the disk, each file half written."""
    steps = count(1)

    def tick() -> None:
        if next(steps) == step:
            os._exit(9)

    def in_steps(write: Callable, path_of: Callable) -> Callable:
        def write_in_steps(*arguments):
            write(*arguments)
            whole = path_of(arguments).read_bytes()
            for fraction in (0, 0.01, 0.5, 0.99):
                path_of(arguments).write_bytes(whole[: int(fraction * len(whole))])
                tick()
            write(*arguments)

        return write_in_steps

    fsync = os.fsync
    os.fsync = lambda descriptor: tick() or fsync(descriptor)
    checkpoint.save_file = in_steps(save_file, lambda arguments: arguments[1])
    Path.write_text = in_steps(Path.write_text, lambda arguments: arguments[0])
    arguments = folder, updates, *small(updates), ONE
    sys.addaudithook(lambda event, _: tick() if event in STEPS else None)
    checkpoint.save_checkpoint(*arguments, **state_of(updates))
    os._exit(0)


def save_and_die_at_each_step(earlier: tuple[int, ...], updates: int) -> None:
    """Check what a kill leaves, at one step after the other until a save is complete."""
    kept = [number for number in earlier if number < updates]
    for step in count(1):
        folder = Path(str(step))
        for number in earlier:
            save_small(folder, number)
        for leftover in ("checkpoint.part", "checkpoint.old")[: 1 + len(earlier)]:  # of a kill before
            (folder / leftover).mkdir(parents=True)
            (folder / leftover / "state.json").write_text("")
        if (child := os.fork()) == 0:
            save_and_die(folder, updates, step)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = checkpoint.read_checkpoint(folder, ONE)
        if code == 0:
            break
        assert code == 9
        if found is None:
            assert not kept  # there was none; or the only one was of this very update
        else:
            newest = int(checkpoint.checkpoints(folder)[0].name.removeprefix("checkpoint_"))
            assert newest in (*kept[-1:], updates)
            assert_is(found, newest)
        save_small(folder, updates)
        assert_is(checkpoint.read_checkpoint(folder, ONE), updates)
    print(step - 1, "kills")
    assert step > 50
    assert_is(found, updates)
    assert sorted(path.name for path in folder.iterdir()) == [f"checkpoint_{n:09d}" for n in (*kept[-1:], updates)]


SLOW = [pytest.param(earlier, marks=pytest.mark.slow) for earlier in ((), (3,), (2, 3))]


@pytest.mark.parametrize("earlier", [(1, 2), *SLOW], ids=str)
def test_a_kill_at_any_step_of_saving_leaves_a_checkpoint(tmp_path, earlier):
    run = Processes(partial(save_and_die_at_each_step, earlier, 3), tmp_path)
    assert run.wait() == [0], run.err()
    assert "damaged" not in run.out()  # none is ever seen half written, or half removed


def flip(path: Path, rng: random.Random) -> Callable[[], None]:
    """Flip one bit of a file; return what flips it back."""
    whole = path.read_bytes()
    position, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
    path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
    return lambda: path.write_bytes(whole)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    save_small(tmp_path, 1)
    model, optimizer = small(1)
    tensors, state = checkpoint.read_checkpoint(tmp_path, ONE)
    del state["param_groups"][0]["t"]
    with pytest.raises(InputError, match="of another version of this code"):
        checkpoint.restore(tensors, state, model, optimizer, ONE)


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path, capsys):
    rng = random.Random(0)
    save_small(tmp_path, 1)
    save_small(tmp_path, 2)
    newest = tmp_path / "checkpoint_000000002"
    for _ in range(100):
        flip_back = flip(rng.choice(sorted(newest.iterdir())), rng)
        assert_is(checkpoint.read_checkpoint(tmp_path, ONE), 1)
        assert capsys.readouterr().out == f"{newest} is damaged: skipped\n"
        flip_back()
        assert_is(checkpoint.read_checkpoint(tmp_path, ONE), 2)
    flip(newest / "state.json", rng)
    flip(tmp_path / "checkpoint_000000001/state.json", rng)
    with pytest.raises(InputError, match="every checkpoint is damaged. Restore one from a copy, or remove them"):
        checkpoint.read_checkpoint(tmp_path, ONE)


def test_any_flipped_bit_of_the_best_parameters_is_noticed(tmp_path):
    rng = random.Random(0)
    path, (model, _) = tmp_path / "best_params", small(1)
    checkpoint.save_parameters(path, model)
    for _ in range(100):
        flip_back = flip(rng.choice([path, tmp_path / "best_params.sha256"]), rng)
        with pytest.raises(InputError, match="is not the file that .*best_params.sha256 describes"):
            checkpoint.load_parameters(path, model)
        flip_back()
    other, _ = small(2)
    checkpoint.load_parameters(path, other)
    assert (other.weight == 1).all()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256.json"])
def test_a_checkpoint_that_lacks_something_is_passed_over(tmp_path, damage, name):
    save_small(tmp_path, 1)
    save_small(tmp_path, 2)
    damage(tmp_path / "checkpoint_000000002" / name)
    assert_is(checkpoint.read_checkpoint(tmp_path, ONE), 1)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(world, unbroken, stopped, copy):
    folder = copy(stopped)
    older, newest = checkpoints(folder).values()
    flip(newest / "tensors.safetensors", random.Random(0))
    assert_goes_on("train", world, folder, unbroken)
    assert f"{newest.relative_to(folder)} is damaged: skipped" in (folder / "0.out").read_text()


# --- a disk that takes no more ---------------------------------------------------------------------------------------


def fill_disk() -> None:
    """From here on no file may grow beyond 4 kB, as the system sees to it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def fail_to_rename() -> None:
    def replace(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    os.replace = replace


def lose_folder() -> None:
    shutil.rmtree("save/rocstories")
    Path("save/rocstories").write_text("")


@pytest.mark.parametrize("trouble", [fill_disk, fail_to_rename])
@pytest.mark.parametrize(
    "function, number, file", [("save_checkpoint", 2, "checkpoint_000000006"), ("save_parameters", 1, "best_params")]
)
def test_a_full_disk_is_named_and_costs_no_checkpoint(world, unbroken, tmp_path, trouble, function, number, file):
    line = refuse(partial(at_call, f"running.training.{function}", number, trouble, command("train", world)), tmp_path)
    assert f"error: save/rocstories/{file} cannot be written (" in line and "intact" in line
    assert max(checkpoints(tmp_path)) == {2: 3, 1: 6}[number]
    assert_goes_on("train", world, tmp_path, unbroken)


def test_a_full_disk_ends_all_processes(world, unbroken_by_two, tmp_path):
    run = Processes(
        partial(at_call, "running.training.save_checkpoint", 2, fill_disk, command("train", world, *TWO)), tmp_path, 2
    )
    assert run.wait() == [2, 2]
    assert "checkpoint_000000006 cannot be written" in run.err() and "has lost another one" in run.err(1)
    assert "Traceback" not in run.err() + run.err(1)
    assert_goes_on("train", world, tmp_path, unbroken_by_two, 2)


def test_a_lost_folder_is_named(world, tmp_path):
    line = refuse(
        partial(at_call, "running.training.save_checkpoint", 2, lose_folder, command("train", world)), tmp_path
    )
    assert "error: save/rocstories/checkpoint_000000006 cannot be written (" in line


# --- files that would run a program ----------------------------------------------------------------------------------


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def evil(tmp_path) -> Evil:
    evil = Evil(tmp_path / "it has run")
    pickle.loads(pickle.dumps(evil))
    evil.marker.rmdir()  # it works
    return evil


def test_a_pickle_in_the_place_of_a_checkpoint_is_passed_over(world, unbroken, stopped, copy, tmp_path, evil):
    for number, path in reversed(checkpoints(copy(stopped)).items()):
        (path / "tensors.safetensors").write_bytes(pickle.dumps(evil))
        digests = {name: sha256(path / name) for name in checkpoint.FILES}
        (path / "SHA256.json").write_text(json.dumps(digests))
        if number == 8:
            shutil.copytree(tmp_path / "run", tmp_path / "copy")
            assert_goes_on("train", world, tmp_path / "copy", unbroken)
    assert "every checkpoint is damaged" in refuse(command("train", world, "--resume"), tmp_path / "run")
    assert not evil.marker.exists()


def test_a_pickle_in_the_place_of_the_best_parameters_is_refused(world, finished, copy, tmp_path, evil):
    best = copy(finished["train"]) / "save/rocstories/best_params"
    best.write_bytes(pickle.dumps(evil))
    best.with_name("best_params.sha256").write_text(f"{sha256(best)}  best_params\n")
    line = refuse(command("train", world, "--resume"), tmp_path / "run")
    assert "best_params is not the file that" in line and not evil.marker.exists()


@pytest.mark.parametrize("as_array", [False, True])
def test_a_pickle_in_the_place_of_weights_is_refused(world, tmp_path, evil, as_array):
    shutil.copytree(world / "model", tmp_path / "model")
    with open(tmp_path / "model/params_3.npy", "wb") as file:
        if as_array:
            np.save(file, np.array([evil], object), allow_pickle=True)
        else:
            pickle.dump(evil, file)
    line = refuse(command("train", world, "--model_dir", tmp_path / "model"), tmp_path / "run")
    assert "params_3.npy is not a valid array of numbers" in line and not evil.marker.exists()


def test_a_pickle_in_the_place_of_the_encoded_texts_is_not_run(world, unbroken, tmp_path, evil):
    for cache in (world / "data").glob("encoded_*"):
        for name in ("ids", "index.json"):
            (cache / name).write_bytes(pickle.dumps(evil))
            run = finish(command("train", world), tmp_path / "run")
            assert outcome(tmp_path / "run") == unbroken["train"]
            assert f"{cache} is damaged" in run.out() and not evil.marker.exists()
