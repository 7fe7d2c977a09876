"""`make test` ends, whatever a test does: one that hangs or kills its process has failed, and the others go on."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

HANGING = """
import multiprocessing, os, signal, time

def test_that_sleeps():
    time.sleep(100)

def test_that_waits_for_another_process_in_c():
    multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,), daemon=True).start()
    os.wait()

def test_that_is_killed():
    os.kill(os.getpid(), signal.SIGKILL)
"""
PASSING = "import pytest\n@pytest.mark.parametrize('i', range(6))\ndef test_that_passes(i):\n    pass\n"
# it dies, but its fork holds the pipe to the process that waits for it
FORKING = "import os, time\ndef test_that_forks():\n    if os.fork() == 0:\n        time.sleep(100)\n    os._exit(1)\n"


def make_test(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run the tests of a folder as the Makefile runs ours."""
    (line,) = re.findall(r"^test:.*\n\t.venv/bin/python (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [sys.executable, *shlex.split(line), "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), *flags]
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=600)


def test_a_test_that_hangs_or_is_killed_fails_alone(tmp_path):
    (tmp_path / "test_a.py").write_text(HANGING)
    (tmp_path / "test_b.py").write_text(PASSING)
    run = make_test(tmp_path, "-o", "faulthandler_timeout=3", "-p", "no:cacheprovider")
    assert run.returncode == 1 and "3 failed, 6 passed" in run.stdout, run.stdout
    crashed = re.findall(r"crashed while running '\S+::(\w+)'", run.stdout)
    assert set(crashed) == set(re.findall(r"def (test_\w+)", HANGING))
    assert "in test_that_sleeps" in run.stderr and "in test_that_waits_for_another_process_in_c" in run.stderr


@pytest.mark.slow
def test_a_run_that_waits_for_ever_is_ended_with_its_report(tmp_path):
    (tmp_path / "test_a.py").write_text(FORKING)
    (tmp_path / "test_b.py").write_text(PASSING)
    ours = f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\nimport tests.conftest\n"
    ours += "from tests.conftest import pytest_xdist_setupnodes\ntests.conftest.ALL_TESTS = 15\n"
    (tmp_path / "conftest.py").write_text(ours)
    run = make_test(tmp_path, "-p", "no:cacheprovider")
    assert run.returncode == 1 and "the tests are not done after 15 s" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_commands_read_and_write_utf8_whatever_the_locale_says(encoding):
    program = "import sys; from running.command import exit_code; exit_code('x', lambda: print(input()), '')"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        input="“é…漢\n".encode(),
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    assert ended.stdout == "“é…漢\n".encode()
