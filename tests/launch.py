"""Commands in processes of their own, one or several together, to be watched, stopped and killed."""

import faulthandler
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from helpers import ROOT

TIMEOUT = 600  # seconds; only a deadlock reaches it, also on a slow machine with other work


@cache
def forks() -> multiprocessing.context.BaseContext:
    """Return what starts processes that branch off from a server which has imported everything.

    They take 30 ms instead of seconds. The server looks for modules in PYTHONPATH alone, and passes over any that it
    does not find: then every process would import them anew.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pretrain", "test_golden", "test_pretrain", "warm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]))
        forkserver.ensure_running()
    return context


class Processes:
    """An action in one process or, as torchrun starts them, in several that train together.

    Args:
        action: what each does; returns its exit code.
        folder: where; made if need be. `<rank>.out` and `<rank>.err` in it take what is printed.
        n_processes: None for one that torchrun has not started.
        environment: further variables.
    """

    def __init__(
        self, action: Callable[[], int | None], folder: Path, n_processes: int | None = None, **environment: int
    ):
        self.folder, self.processes = folder, []
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if n_processes is not None:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment |= {"WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": n_processes}
        for rank in range(n_processes or 1):
            own = environment if n_processes is None else environment | {"RANK": rank, "LOCAL_RANK": rank}
            self.processes.append(forks().Process(target=_act, args=(action, folder, rank, own), daemon=True))
            self.processes[-1].start()

    def send(self, number: int) -> None:
        """Send a signal to all that are alive."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def wait(self) -> list[int]:
        """Return the exit codes, -n where signal n killed."""
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def out(self, rank: int = 0) -> str:
        """Return what a process has printed."""
        return (self.folder / f"{rank}.out").read_text()

    def err(self, rank: int = 0) -> str:
        """Return what a process has printed to stderr, progress bars apart."""
        lines = (self.folder / f"{rank}.err").read_text().replace("\r", "\n").split("\n")
        return "\n".join(line for line in lines if line.strip(" \x1b[A") and "%|" not in line and "/s]" not in line)


def _act(action: Callable[[], int | None], folder: Path, rank: int, environment: dict[str, int]) -> None:
    os.chdir(folder)
    os.environ.update({name: str(value) for name, value in environment.items()})
    for descriptor, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    # one that hangs writes where it stands into its .err and ends with code 1, also when its parent is dead
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    torch.set_num_threads(1)
    sys.exit(action())


def rank() -> int:
    """Return the number of this process."""
    return int(os.environ.get("RANK", 0))


def torchrun(n_processes: int, script: Path, argv: list, folder: Path, *flags: str) -> tuple[int, str, str]:
    """Run a script as a user runs it on several devices; return exit code, stdout and stderr."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *flags, str(script), *map(str, argv)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()  # it then ends what it has started
            raise
    return process.returncode, out, err
