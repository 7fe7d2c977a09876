"""The one process pool: a function is called for each of many jobs, in processes that end with the one that began them.

The processes are started afresh (spawn), not forked: the caller may hold threads, torch and a GPU.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

from formats.files import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")

SECONDS_BETWEEN_SIGNALS = 30
PARENT_HAS_ENDED = threading.Event()  # in a worker


def n_cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    function: Callable[[Job], Result], jobs: Iterable[Job], n_workers: int
) -> Iterator[tuple[Job, Result]]:
    """Yield each job with function(job), in the order in which they end; one worker is this process itself.

    Function, jobs and results must be picklable. When the caller stops for whatever reason, the workers get SIGTERM.

    Raises:
        InputError: of a job, or because a worker was killed. Any other exception of a job arrives with its traceback.
    """
    # no worker is needed
    if n_workers < 2:
        for job in jobs:
            yield job, function(job)
        return

    # the caller alone holds the writing end, so that its end, or that of the loop below, is the end of the pipe
    parent_lives, until_it_ends = multiprocessing.Pipe(duplex=False)
    pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), _end_with_parent, (parent_lives,))
    waiting = iter(jobs)
    running: dict[Future, Job] = {}

    def start_jobs(n: int) -> None:
        with _inherited_by_workers():
            for job in islice(waiting, n):
                running[pool.submit(_begin, function, job)] = job

    try:
        # not more jobs than workers at a time, so that there is little to take back when the caller stops
        start_jobs(n_workers)
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                job = running.pop(future)
                result = future.result()
                start_jobs(1)
                yield job, result
        pool.shutdown()  # no job is left: the workers end in order
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed, perhaps for lack of memory. Finished parts are kept: run the command again, "
            "with fewer workers if memory is short."
        ) from None
    finally:
        until_it_ends.close()
        pool.shutdown(cancel_futures=True)
        parent_lives.close()


@contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """Set for a moment what a process that is started gets from this one: one thread for products, and no SIGINT.

    The terminal sends SIGINT to all processes; the caller, which gets it too, ends its workers.
    """
    # what this process has, to be set again at the end
    n_threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if n_threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = n_threads
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)  # last: a Ctrl-C that came meanwhile is raised here


def _end_with_parent(parent_lives: Connection) -> None:
    """Make this process a worker: it gets SIGTERM when the other end of a pipe is closed, and again until it is gone.

    Again, as a job may be at a point where it does not listen.
    """

    def leave(number: int, _frame) -> None:
        raise SystemExit(128 + number)  # so that files are closed and locks given back

    def wait_for_the_end() -> None:
        parent_lives.poll(None)
        PARENT_HAS_ENDED.set()
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SECONDS_BETWEEN_SIGNALS)

    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=wait_for_the_end, daemon=True).start()


def _begin(function: Callable[[Job], Result], job: Job) -> Result:
    """Do a job in a worker. One that was asked to stop begins no further job, even if it was sent one before.

    An exception that cannot be pickled and read again would look like a killed worker: its text is sent instead.
    """
    if PARENT_HAS_ENDED.is_set():
        raise SystemExit
    try:
        return function(job)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError("".join(traceback.format_exception(error))) from None
        raise
