"""Run jobs in processes of one thread each, which end with the process that started them."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from formats.files import InputError
from running.processes import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent

N_LINES = 5  # of a failed job's log that are shown


@dataclass(frozen=True)
class Job:
    """A call of a function that can be imported; its result must be picklable."""

    name: str  # for messages
    function: Callable
    arguments: tuple
    log: Path  # of what it prints


@dataclass(frozen=True)
class Failure:
    """What a worker returns for a job that failed."""

    reason: str


def run_jobs(jobs: Iterable[Job], n_workers: int, watch: Callable[[], None] | None = None) -> Iterator[tuple[Job, Any]]:
    """Yield each job with its result, in the order in which they end; `watch` is called every few seconds.

    After a failed job no other is begun; those in progress are yielded first. When the caller stops, so do the workers:
    a training run after writing its checkpoint.

    Raises InputError with the end of the failed job's log.
    """
    waiting, busy, workers, failed = iter(jobs), {}, [], None

    def give(pipe: Connection) -> None:
        job = None if failed else next(waiting, None)
        if job is not None:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            busy[pipe] = job  # first: a Ctrl-C in between must find the worker busy
            pipe.send(job)

    try:
        context = multiprocessing.get_context("spawn")
        for _ in range(n_workers):
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(theirs,))
            worker.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            workers.append((ours, worker))
            give(ours)
            if ours not in busy:
                break  # there are fewer jobs than workers
        while busy:
            for pipe in wait(list(busy), timeout=5):
                job = busy.pop(pipe)
                try:
                    result = pipe.recv()
                except EOFError:
                    result = Failure("its process was killed: out of memory?")
                if isinstance(result, Failure):
                    failed = failed or (job, result.reason)
                else:
                    yield job, result
                    give(pipe)
            if watch is not None:
                watch()
    finally:
        for pipe, worker in workers:
            pipe.close()  # ends a worker that waits; a job that ends before it notices the signal is the worker's last
            if pipe in busy:
                worker.terminate()
        for _, worker in workers:
            worker.join()
    if failed:
        job, reason = failed
        lines = job.log.read_text(errors="replace").replace("\r", "\n").splitlines() if job.log.exists() else []
        tail = "".join(f"\n  {line}" for line in lines[-N_LINES:])
        raise InputError(f"{job.name} failed: {reason}. The other results are kept. The end of {job.log}:{tail}")


def work(pipe: Connection) -> None:
    """Serve run_jobs: receive jobs, send results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent, which gets it too, sends SIGTERM
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same results everywhere; the networks are small
    torch.set_num_threads(1)
    keep_freed_memory()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        with open(job.log, "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                result = job.function(*job.arguments)
            except KeyboardInterrupt:  # Stopped: its checkpoint is written
                return
            except (Exception, SystemExit) as error:
                is_input = isinstance(error, InputError | SystemExit)  # the latter: of a wrong flag, named in the log
                if not is_input:
                    traceback.print_exc()
                result = Failure(str(error) if is_input else f"{type(error).__name__}: {error}")
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            pipe.send(result)


def end_with_parent() -> None:
    """Wait for the parent's end, then end this process as a SIGTERM does."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
