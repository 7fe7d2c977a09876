"""Small shared helpers: data, logs, files, and how a command ends."""

import errno
import hashlib
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

from formats import files
from formats.files import InputError, make_output_folder, making_folder, replacing, replacing_all
from running import command
from running.checkpoint import only_writer
from running.processes import Ranks
from utils import (
    ResultLogger,
    encode_dataset,
    flatten,
    iter_data,
    make_path,
    np_softmax,
    remove_none,
    stsb_label_encoding,
)

# --- data ------------------------------------------------------------------------------------------------------------


class Lengths:
    """An encoder that gives a text's length as its ids, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked = []

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.asked.append(list(texts))
        return [[len(text)] for text in texts]


def test_text_columns_are_encoded_and_labels_stay():
    labels, encoder = np.array([1, 0]), Lengths()
    (train, valid) = encode_dataset((["a", "bb"], ["ccc", ""], labels), (["dddd"], [0.5]), encoder=encoder)
    assert train[:2] == ([[1], [2]], [[3], [0]]) and train[2] is labels
    assert valid == ([[4]], [0.5])
    assert encoder.asked == [["a", "bb"], ["ccc", ""], ["dddd"]]


def test_splits_without_texts_or_rows_are_left_alone():
    encoder = Lengths()
    assert encode_dataset(([], np.array([])), encoder=encoder)[0][0] == []
    assert encode_dataset(encoder=encoder) == []
    assert encode_dataset((np.array(["a", "bb"]),), encoder=encoder) == [([[1], [2]],)]


@pytest.mark.parametrize("truncate, expected", [(False, [4, 4, 2]), (True, [4, 4])])
@pytest.mark.parametrize("verbose", [False, True])
def test_batches_of_several_arrays_are_tuples(truncate, expected, verbose):
    x, y = np.arange(20).reshape(10, 2), list(range(10))
    batches = list(iter_data(x, y, n_batch=4, truncate=truncate, verbose=verbose))
    assert all(isinstance(batch, tuple) for batch in batches)
    assert [len(batch[0]) for batch in batches] == expected
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in batches]), x[: sum(expected)])
    assert [i for batch in batches for i in batch[1]] == y[: sum(expected)]


@pytest.mark.parametrize(
    "n, n_batch, truncate, expected",
    [
        (5, 2, False, [[0, 1], [2, 3], [4]]),
        (5, 2, True, [[0, 1], [2, 3]]),
        (4, 2, True, [[0, 1], [2, 3]]),
        (2, 128, False, [[0, 1]]),
        (2, 3, True, []),
        (0, 3, False, []),
    ],
)
def test_batches_of_one_array_are_bare(n, n_batch, truncate, expected):
    assert [batch.tolist() for batch in iter_data(np.arange(n), n_batch=n_batch, truncate=truncate)] == expected


def test_at_most_so_many_batches_are_given():
    assert [batch.tolist() for batch in iter_data(np.arange(5), n_batch=2, max_batches=2)] == [[0, 1], [2, 3]]
    assert len(list(iter_data(np.arange(5), n_batch=2, max_batches=9, verbose=True))) == 3
    assert list(iter_data(np.arange(5), n_batch=2, max_batches=0)) == []


# --- further names of the port ---------------------------------------------------------------------------------------


def test_lists_are_joined_and_freed_of_none():
    assert flatten([[1, 2], [], (3,)]) == [1, 2, 3]
    assert remove_none([0, None, "", None, 2]) == [0, "", 2]


def test_softmax_is_over_the_last_axis_at_a_temperature():
    x = np.array([[0.0, np.log(3)], [1000, 1000]])
    np.testing.assert_allclose(np_softmax(x), [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(np_softmax(x * 2, t=2), np_softmax(x))


def test_scores_become_soft_labels():
    found = stsb_label_encoding([0, 3.6, 5, 2])
    assert found.dtype == np.float32
    expected = [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0.4, 0.6, 0], [0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert stsb_label_encoding([1], nclass=3).tolist() == [[0, 1, 0]]


def test_the_folder_of_a_file_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b/file", "a/b/other", "file"):
        assert make_path(name) == name
    assert Path("a/b").is_dir() and list(Path("a/b").iterdir()) == []


# --- logs ------------------------------------------------------------------------------------------------------------


def test_a_log_is_settings_then_a_line_per_log_each_on_disk_at_once(tmp_path):
    path = tmp_path / "log/run.jsonl"  # the folder is made
    before = time.time()
    ResultLogger(path, desc="an earlier run").close()
    logger = ResultLogger(path, seed=42, desc="Zoë")
    for n in range(3):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        times = [line.pop("time") for line in lines]
        assert lines == [{"seed": 42, "desc": "Zoë"}, *({"n_updates": i, "va_acc": 50.5} for i in range(n))]
        assert before <= times[0] and times == sorted(times) and times[-1] <= time.time()
        logger.log(n_updates=n, va_acc=50.5)
    logger.log(time=3)
    logger.close()
    assert path.read_text().splitlines()[4:] == ['{"time": 3}']


# --- files -----------------------------------------------------------------------------------------------------------


def test_replacing_shows_the_new_file_only_once_it_is_whole(tmp_path):
    path = tmp_path / "best_params"
    for old, new in ((None, b"first"), (b"first", b"second")):
        with replacing(path) as file:
            file.write(new)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == old
        assert path.read_bytes() == new
        assert [p.name for p in tmp_path.iterdir()] == ["best_params"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [b"whole", None])
def test_a_failure_while_writing_leaves_the_old_file_and_no_part(tmp_path, error, old):
    path = tmp_path / "best_params"
    if old:
        path.write_bytes(old)
    with pytest.raises(error), replacing(path) as file:
        file.write(b"half")
        raise error
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"best_params": old} if old else {})


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_does_not_take_a_file_is_named_and_the_old_file_stays(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "best_params"
    path.write_bytes(b"whole")
    monkeypatch.setattr(os, call, full)
    with (
        pytest.raises(InputError, match="best_params cannot be written .No space left on device.*intact"),
        replacing(path) as file,
    ):
        file.write(b"half")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"best_params": b"whole"}


def test_a_pipe_is_written_into_and_a_link_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with replacing(tmp_path / "pipe") as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(reader)
    (tmp_path / "link").symlink_to("target")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "target").read_bytes() == b"new" and (tmp_path / "link").is_symlink()
    for path in (tmp_path, Path("/"), Path("")):
        with pytest.raises(InputError, match="is a folder"), replacing(path):
            pass


def test_a_part_of_a_dead_process_is_removed_and_that_of_a_living_one_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for number in (dead.pid, os.getppid()):
        (tmp_path / f"x.{platform.node()}.{number}.part").write_text("half")
    with replacing(tmp_path / "x") as file:
        file.write(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"x", f"x.{platform.node()}.{os.getppid()}.part"}


def test_files_that_belong_together_are_replaced_together(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in (*paths, tmp_path / "old"):
        path.write_bytes(b"before")
    with pytest.raises(ValueError), replacing_all(paths, [tmp_path / "old"]) as files:
        files[0].write(b"half")
        raise ValueError
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"before"}
    with replacing_all(paths, [tmp_path / "old"]) as files:
        for file in files:
            file.write(b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("abc", b"after")


@pytest.mark.parametrize("at", range(4))
def test_a_process_that_dies_leaves_a_set_of_files_old_or_new_or_without_the_first(tmp_path, monkeypatch, at):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"before")
    replace, calls = os.replace, []

    def die(*names):
        calls.append(names)
        if len(calls) > at:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr(os, "replace", die)
    with suppress(KeyboardInterrupt), replacing_all(paths) as files:
        for file in files:
            file.write(b"after")
    found = {path.name: path.read_bytes() for path in paths if path.exists()}
    assert "a" not in found or found == dict.fromkeys("abc", b"after")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), making_folder(tmp_path / "new") as part:
            (part / "a").write_text("half")
            raise error
    assert list(tmp_path.iterdir()) == []
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f"new.{platform.node()}.{dead.pid}.part").mkdir()
    (tmp_path / "new").mkdir()
    with making_folder(tmp_path / "new") as part:
        (part / "a").write_text("whole")
        assert list((tmp_path / "new").iterdir()) == []
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["new", "new/a"]
    for path, message in (("new", "holds a already"), ("new/a", "cannot be written to")):
        with pytest.raises(InputError, match=message), making_folder(tmp_path / path):
            pass


def test_the_lock_of_a_run_is_free_when_its_process_is_dead(tmp_path):
    script = "import sys, time\nfrom running.checkpoint import *\n"
    script += (
        f"with only_writer(Path({str(tmp_path)!r}), Ranks()):\n    print('locked', flush=True)\n    time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="being written by another run"), only_writer(tmp_path, Ranks()):
            pass
        with only_writer(tmp_path, Ranks(1, 2)):  # the first process has the lock for all
            pass
        other.kill()
    for _ in range(2):
        with only_writer(tmp_path, Ranks()):
            pass


def test_the_log_of_an_earlier_run_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "log"
    path.write_text("earlier")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="log cannot be written .No space"):
        patch.setattr(os, "fsync", full)
        files.LogFile(path, n=1)
    assert path.read_text() == "earlier"
    log = files.LogFile(path, n=1)
    log.file.close()
    log.file = open("/dev/full", "wb")
    with pytest.raises(InputError, match="log cannot be written .No space"):
        log.log(n=2)
    log.close()
    assert path.read_text() == '{"n": 1}\n'


def test_digests_are_those_of_the_standard_library_by_name(tmp_path):
    contents = {f"{i}.npy": bytes(range(256)) * 1000 * i for i in range(20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = files.digests(tmp_path / name for name in contents)
    assert found == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_a_path_is_looked_up_here_and_then_beside_the_scripts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.find("opt.py") == ROOT / "opt.py"
    assert files.find("./opt.py") == ROOT / "opt.py"
    assert files.find("no such file") == Path("no such file")
    Path("opt.py").write_text("")
    assert files.find("opt.py") == Path("opt.py")
    assert files.find(tmp_path / "opt.py") == tmp_path / "opt.py"
    assert files.find(tmp_path / "no such file") == tmp_path / "no such file"


def test_an_output_folder_is_made_and_left_empty_or_named(tmp_path):
    for _ in range(2):
        make_output_folder(tmp_path / "log/deep")
    assert list((tmp_path / "log/deep").iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/deep"):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))} cannot be written to .* Name another folder"):
            make_output_folder(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is missing. See 'The paper's result' in README.md"),
        (b"{", "cannot be read as JSON .* See 'The paper's result' in README.md"),
        (b"", "cannot be read as JSON .* See 'The paper's result' in README.md"),
        (b'{"caf\xe9": 0}', "cannot be read as JSON .* See 'The paper's result' in README.md"),
    ],
    ids=repr,
)
def test_a_json_file_that_is_missing_or_damaged_is_named(tmp_path, content, message):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} {message}"):
        files.read_json(path)
    with pytest.raises(InputError, match=r"Train again\.$"):
        files.read_json(path, remedy="Train again.")


def test_a_json_file_is_utf_8(tmp_path):
    (tmp_path / "file.json").write_bytes('{"ö": [1, null]}'.encode())
    assert files.read_json(tmp_path / "file.json") == {"ö": [1, None]}


# --- the end of a command --------------------------------------------------------------------------------------------


def test_a_command_ends_with_0_2_130_or_143(capsys):
    def fail(error):
        raise error

    assert command.exit_code("p", lambda: None, "x") == 0
    assert command.exit_code("p", lambda: fail(InputError("a file: its remedy")), "x") == 2
    assert command.exit_code("p", lambda: fail(KeyboardInterrupt()), "what was there stays") == 130
    assert capsys.readouterr().err == "p: error: a file: its remedy\np: stopped; what was there stays\n"
    handler = signal.getsignal(signal.SIGTERM)
    assert command.exit_code("p", lambda: os.kill(os.getpid(), signal.SIGTERM), "what was there stays") == 143
    assert capsys.readouterr().err == "p: stopped; what was there stays\n"
    assert signal.getsignal(signal.SIGTERM) is handler
    with pytest.raises(ZeroDivisionError):  # a mistake of ours keeps its traceback
        command.exit_code("p", lambda: fail(ZeroDivisionError()), "x")


def parse_brackets():
    json.loads("[" * 100_000)


def call_itself():
    call_itself()


FIXABLE = {
    "a long name": (lambda: open("x" * 300), "xxx cannot be read or written .File name too long"),
    "no folder": (lambda: os.mkdir("/proc/x/y"), "/proc/x/y cannot be read or written"),
    "no memory": (lambda: bytearray(2**60), "not enough memory"),
    "no memory for torch": (lambda: torch.empty(2**50), "not enough memory"),
    "brackets": (parse_brackets, "cannot be parsed"),
    "an early end": (lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"), "No space left on device"),
}


@pytest.mark.parametrize("action, message", FIXABLE.values(), ids=FIXABLE)
def test_what_the_system_refuses_is_one_line(capsys, action, message):
    assert command.exit_code("p", action, "x") == 2
    err = capsys.readouterr().err
    assert err.startswith("p: error: ") and err.count("\n") == 1 and re.search(message, err)


@pytest.mark.parametrize("action", [call_itself, lambda: math.exp(1000), lambda: [][0], lambda: torch.ones(2) @ None])
def test_a_fault_of_ours_stays_a_traceback(action):
    with pytest.raises((RecursionError, OverflowError, IndexError, TypeError)):
        command.exit_code("p", action, "x")


@pytest.mark.parametrize("output", ["/dev/full", "a closed pipe"])
@pytest.mark.parametrize("n", [1, 100_000])
def test_standard_output_that_takes_nothing_is_one_line(output, n):
    script = (
        f"import sys\nfrom running.command import exit_code\nsys.exit(exit_code('p', lambda: print('x' * {n}), 'x'))"
    )
    if output == "/dev/full":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True)
    os.close(out)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and run.stderr.startswith("p: error: "), run.stderr


@pytest.mark.parametrize("name", ["train.py", "demo/stories.py", "bench/update.py"])
def test_ctrl_c_while_a_command_is_loaded_is_one_line(tmp_path, name):
    module = name.removesuffix(".py").replace("/", ".")
    # a library that asks for Ctrl-C when it is imported
    (tmp_path / "random.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", module, "--help"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 130 and run.stderr == f"{Path(name).name}: stopped before it had begun\n", run.stderr


def test_a_second_sigterm_does_not_disturb_the_end():
    ended = []

    def action():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append(True)

    assert command.exit_code("program", action, "nothing is written") == 128 + signal.SIGTERM
    assert ended == [True]
