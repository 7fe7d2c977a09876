"""What a command meets before it begins: closed streams, a folder that is gone, variables of the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(path.name for path in ROOT.glob("*.py") if "running.starting" in path.read_text())


def shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    line = line.replace("python", sys.executable).replace("ROOT", str(ROOT))
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=os.environ | variables)


def assert_refused(done: subprocess.CompletedProcess, message: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and message in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_finds_its_modules_whatever_the_environment_says(name, tmp_path):
    done = shell(f"python ROOT/{name} --no_such_flag", tmp_path, PYTHONSAFEPATH="1")
    assert done.returncode == 2 and "ModuleNotFoundError" not in done.stderr


@pytest.mark.parametrize("name", ["train.py", "predict.py"])
def test_a_closed_standard_output_and_a_folder_that_is_gone_are_refused(name, tmp_path):
    assert_refused(shell(f"python ROOT/{name} --help >&-", tmp_path), "standard output is closed")
    assert shell(f"python ROOT/{name} --help <&- >&- 2>&-", tmp_path).returncode == 2
    assert_refused(shell(f"mkdir x; cd x; rmdir ../x; python ROOT/{name}", tmp_path), "the current folder is gone")


@pytest.mark.slow
def test_closed_streams_and_a_wrong_backend_do_not_keep_a_run_from_its_end(tmp_path):
    data = "--model_dir ROOT/demo/model --data_dir ROOT/demo/data"
    few = "--n_iter 1 --n_batch 8 --max_examples 40 --n_valid 8 --submit --analysis"
    done = shell(f"python ROOT/train.py {data} {few} <&- 2>&-", tmp_path, MPLBACKEND="garbage")
    assert done.returncode == 0 and "picture log/rocstories.png" in done.stdout
    done = shell("python ROOT/predict.py --desc rocstories <&-", tmp_path)
    assert done.returncode == 2 and done.stderr.endswith("predict.py: error: standard input holds no examples.\n")
