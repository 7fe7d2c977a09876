"""What fine-tuning and pre-training share: processes, updates with their guards, stopping without loss."""

import atexit
import ctypes
import math
import os
import platform
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from opt import OpenAIAdam
from utils import InputError, Interrupted

# --- processes -------------------------------------------------------------------------------------------------------


class Ranks:
    """The processes that train together, each on a device of its own; with one, every method is free.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: where this one computes.
        is_first: whether this one writes the files and shows the progress.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None):
        self.rank, self.size, self.is_first = rank, size, rank == 0
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        if device is not None:
            self.device = device

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return a module that averages the gradients of all processes; all start with the first one's parameters."""
        return objective if self.size == 1 else DistributedDataParallel(objective, gradient_as_bucket_view=True)

    def mean(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        return value if self.size == 1 else self.gather(torch.tensor([value], dtype=torch.float64)).mean().item()

    def gather(self, t: Tensor) -> Tensor:
        """Return the tensors (n, ...) of all processes, in their order, as one (size * n, ...) on the CPU."""
        if self.size == 1:
            return t.cpu()
        t = t.to(self.device).contiguous()
        parts = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(parts, t)
        return torch.cat(parts).cpu()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process do what stands in the `with` before the others do."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started, nccl between GPUs and gloo between CPUs; started alone, be alone.

    Raises InputError when a host has fewer GPUs than processes, and when another process is lost.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Ranks()
        return
    local, rank, size = (int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        if local >= torch.accelerator.device_count():
            raise InputError(
                f"--nproc_per_node {os.environ['LOCAL_WORLD_SIZE']} is more than the "
                f"{torch.accelerator.device_count()} devices here. Start one process a device."
            )
        device = torch.device(torch.accelerator.current_accelerator().type, local)
        torch.accelerator.set_device_index(local)
    # the others wait while the first tokenizes a corpus; one that dies is noticed at once all the same
    timeout = timedelta(days=1)
    # restarted processes meet where the ones before them did, and must not find what those had left there
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"start {_restarts()}", store)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield Ranks(rank, size, device)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(f"process {rank} of {size} has lost another one, whose own message says why.") from None
    finally:
        # Held to the end: were DistributedDataParallel the last to hold the group, its going would wait, and let no
        # Python run, for gloo's threads, which at times wait to run Python.
        atexit.register(id, dist.group.WORLD)
        dist.destroy_process_group()


def restarted() -> bool:
    """Return whether torchrun has started this process again after one died."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


# --- updates ---------------------------------------------------------------------------------------------------------


def make_parts(rows: Sequence, n_batch: int, ranks: Ranks) -> list:
    """Return the parts of an update's rows that this process computes, n_batch each, one behind the other."""
    own = rows[len(rows) // ranks.size * ranks.rank :][: len(rows) // ranks.size]
    return [own[start : start + n_batch] for start in range(0, len(own), n_batch)]


def update(
    objective: nn.Module, parts: Iterable[tuple], n_parts: int, optimizer: OpenAIAdam, autocast, ranks: Ranks, rows
) -> float:
    """Make one update with the mean of the parts' costs and return that cost, over all processes.

    Args:
        objective: maps what a part holds to its mean cost; from Ranks.wrap.
        parts: n_parts of one size, computed one after the other.
        rows: numbers of the rows of all parts of all processes, for an error to name.

    Raises:
        InputError: cost or gradient is not finite, and no parameter has changed; or the device's memory is full.
    """
    optimizer.zero_grad(set_to_none=False)  # they stay where make_optimizer put them
    cost = 0.0
    try:
        for i, part in enumerate(parts, 1):
            # gradients travel once an update
            with nullcontext() if ranks.size == 1 or i == n_parts else objective.no_sync():
                with autocast:
                    part_cost = objective(*part) / n_parts
                part_cost.backward()
            cost = cost + part_cost.detach()
    except (RuntimeError, MemoryError) as error:
        is_full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
        if not is_full:
            raise
        raise InputError(
            f"out of memory on {ranks.device}, {len(rows) // ranks.size // n_parts} examples at a time. Halve "
            "--n_batch and double --accumulate for the same update; --checkpoint_activations and --precision bf16 "
            "save memory too."
        ) from None
    cost = ranks.mean(float(cost))
    reason = None if math.isfinite(cost) else f"the cost is {cost}"
    try:
        if reason is None:
            optimizer.step()
    except FloatingPointError as error:
        reason = str(error)
    if reason is not None:
        raise InputError(
            f"{reason}; the update was not made. Its rows: {', '.join(map(str, rows))}. Look at them, or lower --lr."
        )
    return cost


# --- stopping --------------------------------------------------------------------------------------------------------


class Stopped(Interrupted):
    """Every process stopped at the same point, with nothing half done."""


class Stop:
    """Within its `with`, SIGTERM and Ctrl-C wait until the training asks for them, where it can stop without loss.

    Another one some seconds later does not wait: it raises Interrupted wherever the process is.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    PATIENCE = 5  # seconds; schedulers and terminals send a signal twice

    def __init__(self, ranks: Ranks):
        self.ranks, self.asked, self.since = ranks, 0, 0.0

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # others cannot
            self.earlier = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        else:
            self.earlier = {}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if not self.asked:
            self.asked, self.since = number, time.monotonic()
        elif time.monotonic() > self.since + self.PATIENCE:
            raise Interrupted(number)

    def here(self) -> None:
        """Raise Stopped, in all processes at once, if one of them was asked to stop."""
        asked = int(self.ranks.gather(torch.tensor([self.asked])).max()) if self.ranks.size > 1 else self.asked
        if asked:
            raise Stopped(asked)


# --- the machine -----------------------------------------------------------------------------------------------------


def peak_memory(device: torch.device) -> str:
    """Return how much memory the process has held at most, and on a GPU its tensors."""
    text = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    return text


def describe_device(precision: str, ranks: Ranks) -> str:
    """Return in words what a run computes on."""
    processes = f"{ranks.size} processes, " * (ranks.size > 1)
    return f"{ranks.device}, {precision}, {processes}{torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def keep_freed_memory() -> None:
    """Let the C library reuse freed memory, where it would return it and have each new page cleared: 15 % of an update.

    Does nothing where the C library is not glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # numbers from malloc.h
    with suppress(OSError, AttributeError):
        for option in (m_trim_threshold, m_mmap_threshold):
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)


def make_deterministic() -> None:
    """Let torch use deterministic algorithms alone. To be called before the first work on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def provenance(ranks: Ranks) -> dict[str, str | int | None]:
    """Return what a result depends on beside flags and files: versions, device, processes, threads and commit."""
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # no repository, or no git
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{ranks.device.type} {name}".strip(),
        "n_processes": ranks.size,
        "n_threads": torch.get_num_threads(),
        "commit": commit,
    }
