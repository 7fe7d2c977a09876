"""The processes of a run, the signals that stop it, and the machine it runs on."""

import atexit
import ctypes
import os
import platform
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from formats.files import InputError
from running.command import STOPPING, Interrupted, handled

# --- ranks -----------------------------------------------------------------------------------------------------------


class Ranks:
    """The processes that train together, each on a device of its own; every method is a no-op with a single process.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: where this one computes.
        is_first: whether this one writes the files and shows the progress.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None):
        # which one this is
        self.rank = rank
        self.size = size
        self.is_first = rank == 0

        # the GPU if there is one
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.device = device
        self.asked_to_stop = 0  # number of the signal; 0: none

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return a module that averages the gradients of all processes; all start with the first one's parameters."""
        if self.size == 1:
            return objective
        return DistributedDataParallel(objective, gradient_as_bucket_view=True)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a number over the processes, on its device; a GPU is not waited for."""
        if self.size == 1:
            return value
        return self.gather(value.double().reshape(1)).mean()

    def gather(self, t: Tensor) -> Tensor:
        """Return the tensors (n, ...) of all processes, in their order, as one (size * n, ...) on the same device."""
        if self.size == 1:
            return t
        t = t.contiguous()
        parts = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(parts, t)
        return torch.cat(parts)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def pause(self) -> None:
        """Raise Stopped, in all processes at once, if one of them was asked to stop: here nothing is half done."""
        asked = self.asked_to_stop
        if self.size > 1:
            asked = int(self.gather(torch.tensor([asked])).max())
        if asked:
            raise Stopped(asked)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process run the body of the `with` before the others do."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun, be the only one.

    What is on GPUs is exchanged by nccl, what is on CPUs by gloo, which waits for no GPU.

    Raises InputError when a host has fewer GPUs than processes, and when another process is lost.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Ranks()
        return

    # a device for each process of this host
    local = int(os.environ["LOCAL_RANK"])
    rank = int(os.environ["RANK"])
    size = int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        if local >= torch.accelerator.device_count():
            raise InputError(
                f"--nproc_per_node {os.environ['LOCAL_WORLD_SIZE']} is more than the "
                f"{torch.accelerator.device_count()} devices here. Start one process a device."
            )
        device = torch.device(torch.accelerator.current_accelerator().type, local)
        torch.accelerator.set_device_index(local)

    # long, as the others wait while the first tokenizes a corpus; a process that dies is noticed at once all the same
    timeout = timedelta(days=1)
    # a prefix of its own for each restart: restarted processes must not read what the earlier ones left in the store
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"start {_restarts()}", store)

    # join the group of all processes
    backend = dist.get_default_backend_for_device(device)
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{backend}"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)

    # gloo tells that a process is lost by an error of no class of its own
    try:
        yield Ranks(rank, size, device)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(f"process {rank} of {size} has lost another one, whose own message says why.") from None
    finally:
        # kept until the end: if DistributedDataParallel held the last reference to the group, the group's destructor
        # would block while holding the GIL and deadlock gloo
        atexit.register(id, dist.group.WORLD)
        dist.destroy_process_group()


def restarted() -> bool:
    """Return whether torchrun has started this process again after one died."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


# --- stopping --------------------------------------------------------------------------------------------------------


class Stopped(Interrupted):
    """Every process stopped at the same point, with nothing half done."""


PATIENCE = 5  # seconds; schedulers and terminals send a signal twice


@contextmanager
def signals_wait(ranks: Ranks) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C wait for the next `ranks.pause()`.

    A second one some seconds later does not wait: it raises Interrupted wherever the process is.
    """
    since = 0.0

    def ask(number: int, _frame) -> None:
        nonlocal since
        # the first signal waits; another one soon after it is its echo
        if not ranks.asked_to_stop:
            ranks.asked_to_stop = number
            since = time.monotonic()
        elif time.monotonic() > since + PATIENCE:
            raise Interrupted(number)

    with handled((*STOPPING, signal.SIGINT), ask):
        yield


# --- random numbers --------------------------------------------------------------------------------------------------


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Leave the generators of random, NumPy and torch as they were: they are the user's in a notebook."""
    of_python = random.getstate()
    of_numpy = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


# --- the machine -----------------------------------------------------------------------------------------------------


def pick_precision(asked: str | None, device: torch.device) -> str:
    """Return the precision of matrix products: the one asked for, else bf16 on a GPU that has it, else fp32."""
    if asked is not None:
        return asked
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if has_bf16 else "fp32"


def bf16_slowdown(device: torch.device) -> float:
    """Return how many times longer a product of matrices takes in bf16 than in fp32; measured, except on a GPU.

    A CPU without units for bf16 (most before AVX512-BF16 and AMX) computes them one number at a time.
    """
    if device.type != "cpu":
        return 0.0

    # the shortest of some times: what other work on the machine disturbs is longer
    seconds = {}
    for dtype, n_times in ((torch.float32, 20), (torch.bfloat16, 3)):
        a = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(n_times):
            started = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def warn_of_slow_bf16(precision: str, ranks: Ranks) -> None:
    """Print a warning where bf16 is slower than fp32."""
    if precision == "fp32" or not ranks.is_first:
        return
    slowdown = bf16_slowdown(ranks.device)
    if slowdown > 1.5:
        print(f"warning  this CPU has no units for bf16: its products take {slowdown:.0f} times as long. Use fp32.")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of the forward pass. In bf16, parameters, Adam and losses stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> None:
    """Make the C library reuse freed memory instead of returning it to the system: an update is 1.15 times faster.

    Does nothing where the C library is not glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # numbers from malloc.h
    with suppress(OSError, AttributeError):
        for option in (m_trim_threshold, m_mmap_threshold):
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)


def make_deterministic() -> None:
    """Let torch use deterministic algorithms only. To be called before the first work on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def peak_memory(device: torch.device) -> str:
    """Return in words the largest memory the process has held, and on a GPU its tensors."""
    text = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    return text


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory that a device has, free or not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe_device(precision: str, ranks: Ranks) -> str:
    """Return in words what a run computes on."""
    parts = [str(ranks.device), precision]
    if ranks.size > 1:
        parts.append(f"{ranks.size} processes")
    parts += [f"{torch.get_num_threads()} CPU threads", f"torch {torch.__version__}"]
    return ", ".join(parts)


def provenance(ranks: Ranks) -> dict[str, str | int | None]:
    """Return what a result depends on beside flags and files: versions, device, processes, threads and commit."""
    # the commit, where the scripts stand in a repository
    folder = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # no repository, or no git

    # versions and the machine
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{ranks.device.type} {name}".strip(),
        "n_processes": ranks.size,
        "n_threads": torch.get_num_threads(),
        "commit": commit,
    }
