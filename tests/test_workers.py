"""The process pool: results as they end, one message for what goes wrong, and no worker that outlives its caller."""

import atexit
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from formats.files import InputError
from reading.workers import in_processes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the workers import from the same folders all the same


def reciprocal(n: int) -> float:
    if n < 0:
        raise InputError(f"{n} is below 0")
    return 1 / n


@pytest.mark.parametrize("n_workers", [1, 2])
def test_every_job_comes_back_with_its_result(n_workers):
    assert sorted(in_processes(reciprocal, range(1, 6), n_workers)) == [(n, 1 / n) for n in range(1, 6)]
    assert list(in_processes(reciprocal, [], n_workers)) == []


@pytest.mark.parametrize("n_workers", [1, 2])
def test_what_goes_wrong_in_a_job_arrives_as_it_is(n_workers):
    with pytest.raises(InputError, match="^-1 is below 0$"):
        list(in_processes(reciprocal, [1, -1], n_workers))
    with pytest.raises(ZeroDivisionError) as error:
        list(in_processes(reciprocal, [0], n_workers))
    assert "return 1 / n" in "".join(traceback.format_exception(error.value))


class WithTwoArguments(Exception):
    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


def raise_what_cannot_be_unpickled(word: str) -> None:
    raise WithTwoArguments(word, "sour")


def test_an_exception_that_does_not_travel_arrives_as_its_text():
    with pytest.raises(RuntimeError, match="WithTwoArguments: sweet and sour"):
        list(in_processes(raise_what_cannot_be_unpickled, ["sweet"], 2))


def leave_a_file(job: tuple[int, Path]) -> None:
    """Make a file of the job's number; job 0 waits for that of job 3, which the other worker begins after 1 and 2."""
    number, folder = job
    while number == 0 and not (folder / "3").exists():
        time.sleep(0.01)
    (folder / str(number)).touch()


def test_jobs_come_back_in_the_order_in_which_they_end(tmp_path):
    jobs = [(number, tmp_path) for number in range(4)]
    found = [number for (number, _), _ in in_processes(leave_a_file, jobs, 2)]
    assert found[:2] == [1, 2]


def kill(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(100)


def test_a_worker_that_is_killed_is_one_message():
    with pytest.raises(InputError, match="^a worker process was killed, perhaps .* with fewer workers if memory"):
        list(in_processes(kill, [signal.SIGKILL], 2))


def environment_of_a_worker(left: Path) -> tuple[str, str, bool]:
    atexit.register(left.touch)
    return os.environ["OMP_NUM_THREADS"], os.getcwd(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_worker_has_one_thread_and_ignores_ctrl_c_and_ends_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    ((_, found),) = in_processes(environment_of_a_worker, [tmp_path / "left"], 2)
    assert found == ("1", str(tmp_path), True)
    assert (tmp_path / "left").exists()  # a killed process would leave no mark, and its locks to others
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def outlast_the_signal(started: Path) -> None:
    """Do what a training run does that is asked to stop after its last update: end as if nothing had happened."""
    if started.name == "waits":
        while not started.with_name("outlasts").exists():
            time.sleep(0.01)
        return
    asked = []
    earlier = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    started.touch()
    while not asked:
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, earlier)
    started.with_name("asked").touch()


def test_a_caller_that_stops_asks_its_workers_to_stop_and_waits_for_them(tmp_path):
    names = ("outlasts", "waits", "third", "fourth")
    jobs = in_processes(outlast_the_signal, [tmp_path / name for name in names], 2)
    assert next(jobs)[0].name == "waits"
    jobs.close()  # as when the caller is stopped
    assert (tmp_path / "asked").exists() and not (tmp_path / "fourth").exists()


def test_a_script_in_any_folder_may_use_it(tmp_path):
    (tmp_path / "script.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from reading.workers import in_processes\n"
        "def square(n): return n * n\n"
        "if __name__ == '__main__': print(sorted(in_processes(square, [3, 1, 2], 2)))\n"
    )
    run = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert run.stdout == "[(1, 1), (2, 4), (3, 9)]\n" and run.stderr == ""
