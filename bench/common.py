"""What the scripts of bench/ share: a case, contenders that take turns, a table and a JSON file.

A contender works in a process of its own, so that its peak memory is its own; they take turns, so that other work on
the machine disturbs all alike. Weights and token ids are random: no data and no vocabulary are read.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import platform
import re
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from formats.files import write_json
from opt import OpenAIAdam
from running.processes import Ranks, autocast, keep_freed_memory, provenance
from speed.kernels import product

HAS_PEER = importlib.util.find_spec("transformers") is not None
PEER = f"transformers {importlib.metadata.version('transformers')}" if HAS_PEER else "transformers"
MATRIX = "matrix products"
WARM_UP = 2  # turns that do not count


@dataclass(frozen=True)
class Case:
    """What is measured; the defaults are the authors' sizes."""

    n_batch: int = 8  # examples, sequences or samples
    precision: str = "fp32"  # or bf16
    n_ctx: int = 512  # positions of the network
    n_turns: int = 10  # that count
    threads: int = torch.get_num_threads()
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 12
    n_vocab: int = 40478

    def sizes(self) -> dict[str, int]:
        """Return the sizes that our Config and transformers' share; both have a dropout of 0.1."""
        return {"n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": self.n_head}


# the number of a turn -> what is timed; and -> its real tokens, and its floating-point operations without padding
Step = Callable[[int], object]
Work = Callable[[int], tuple[int, int]]
Contender = Callable[[Case], tuple[Step, Work]]  # can be pickled

# --- what contenders are made of -------------------------------------------------------------------------------------


def our_optimizer(model: nn.Module) -> OpenAIAdam:
    """Return the optimiser, set up as for training."""
    keep_freed_memory()
    schedule = {"schedule": "warmup_linear", "warmup": 0.002, "t_total": 1000}
    optimizer = OpenAIAdam(model.parameters(), lr=6.25e-5, l2=0.01, max_grad_norm=1, **schedule)
    optimizer.preallocate()
    return optimizer


def peer_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """Return torch's fused AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=6.25e-5, weight_decay=0.01, fused=True)


def updates(cost_of: Callable[[int], Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, case: Case) -> Step:
    """Return the step of an update, given the mean cost of the batch of a turn."""
    forward = autocast(case.precision, Ranks().device)

    def step(turn: int) -> None:
        optimizer.zero_grad()
        with forward:
            cost = cost_of(turn)
        cost.backward()
        if not isinstance(optimizer, OpenAIAdam):  # which clips by itself
            nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()

    return step


def without_gradients(function: Callable[[int], object], case: Case) -> Step:
    """Return the step of a function in evaluation."""
    forward = autocast(case.precision, Ranks().device)

    @torch.no_grad()
    def step(turn: int) -> None:
        with forward:
            function(turn)

    return step


def count_operations(case: Case, n_tokens: int, n_pairs: int, n_next: int = 0, n_table: int = 0) -> int:
    """Return the floating-point operations of a forward pass; a backward pass takes twice as many.

    Args:
        n_tokens, n_pairs: tokens, and pairs of a token and one that it attends to, n (n + 1) / 2 in a row of n.
        n_next, n_table: next tokens predicted, each among so many rows of the embedding matrix.
    """
    blocks = case.n_layer * (24 * case.n_embd**2 * n_tokens + 4 * case.n_embd * n_pairs)
    return int(blocks + 2 * n_table * case.n_embd * n_next)


def matrix_products(case: Case) -> tuple[Step, Work]:
    """Multiply two large matrices as training does: what the machine reaches."""
    n = 8192 if Ranks().device.type == "cuda" else 1024
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    a, b = torch.randn(2, n, n, dtype=dtype, device=Ranks().device)
    return lambda turn: product(a, b), lambda turn: (0, 2 * n**3)


# --- turns -----------------------------------------------------------------------------------------------------------


def take_turns(connection: Connection, contender: Contender, case: Case) -> None:
    """Answer each turn with its seconds, the peak memory (bytes) and its work; a text says what failed."""
    has_gpu = Ranks().device.type == "cuda"
    wait = torch.cuda.synchronize if has_gpu else lambda: None
    try:
        torch.set_num_threads(case.threads)
        torch.manual_seed(0)
        step, work = contender(case)
        while True:
            turn = connection.recv()
            if has_gpu:
                step(turn)  # is not timed: it takes again the memory that was left to the others
            wait()
            start = time.perf_counter()
            step(turn)
            wait()
            seconds = time.perf_counter() - start
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if has_gpu:
                peak = torch.cuda.max_memory_allocated()
                torch.cuda.empty_cache()
            connection.send((seconds, peak, *work(turn)))
    except (EOFError, KeyboardInterrupt):
        pass  # nobody asks any more
    except Exception as error:  # whatever it is, the others go on
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


def ask(connection: Connection, turn: int) -> tuple | str:
    """Let a process take a turn and return its answer."""
    try:
        connection.send(turn)
        return connection.recv()
    except (EOFError, OSError):
        return "the process was killed: out of memory?"


def figures(answers: list[tuple | str]) -> dict:
    """Return what was measured: medians over the turns that count."""
    failed = [answer for answer in answers if isinstance(answer, str)]
    if failed:
        return {"error": failed[0]}
    seconds, peaks, tokens, operations = zip(*answers[WARM_UP:], strict=True)
    found = {"seconds": seconds, "ms": 1e3 * statistics.median(seconds), "peak_gib": peaks[-1] / 2**30}
    if any(tokens):
        found["tokens_per_s"] = statistics.median(n / s for n, s in zip(tokens, seconds, strict=True))
    if any(operations):
        found["tflops"] = statistics.median(n / s / 1e12 for n, s in zip(operations, seconds, strict=True))
    return found


def measure(what: str, contenders: dict[str, Contender], case: Case, limit: float | None = None) -> list[dict]:
    """Let the contenders take turns and return a row of the table for each that is installed.

    No turn begins after so many seconds as limit says, once one has counted.
    """
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for name, contender in contenders.items():
        if name == PEER and not HAS_PEER:
            continue
        connections[name], theirs = context.Pipe()
        processes.append(context.Process(target=take_turns, args=(theirs, contender, case), daemon=True))
        processes[-1].start()
        theirs.close()

    answers = {name: [] for name in connections}
    for turn in range(WARM_UP + case.n_turns):
        if limit is not None and turn > WARM_UP and time.monotonic() > start + limit:
            break
        for name, connection in connections.items():
            answers[name].append(ask(connection, turn))
    for process in processes:
        process.kill()
        process.join()

    # against the matrix products, and turn by turn against the peer
    found = {name: figures(of_turns) for name, of_turns in answers.items()}
    matrix_rate = found.get(MATRIX, {}).get("tflops")
    of_peer = found.get(PEER, {}).get("seconds")
    for row in found.values():
        if matrix_rate and "tflops" in row:
            row["of_matrix_rate"] = row["tflops"] / matrix_rate
        if of_peer and "tokens_per_s" in row:
            ratios = [theirs / ours for theirs, ours in zip(of_peer, row["seconds"], strict=True)]
            row["times_peer"] = statistics.median(ratios)
    return [{"what": what, "by": name} | asdict(case) | row for name, row in found.items()]


# --- the report ------------------------------------------------------------------------------------------------------

COLUMNS = {
    "what": "{what}",
    "by": "{by}",
    "precision": "{precision}",
    "n_batch": "{n_batch}",
    "ms": "{ms:,.1f}",
    "tokens/s": "{tokens_per_s:,.0f}",
    "times the peer's speed": "{times_peer:.2f}",
    "TFLOP/s": "{tflops:.3g}",
    "of matrix rate": "{of_matrix_rate:.0%}",
    "peak memory, GiB": "{peak_gib:.2f}",
}


def cell(row: dict, form: str) -> str:
    """Return a cell of the table; for a figure that the row does not have, a dash."""
    try:
        return form.format_map(row)
    except KeyError:
        return "-"


def machine() -> str:
    """Return the name of the GPU or of the processor."""
    if Ranks().device.type == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return names[0] if names else platform.processor()


def report(rows: list[dict], out: Path, columns: dict[str, str] = COLUMNS, **more) -> str:
    """Write the rows and their conditions as JSON, and return the table in Markdown."""
    conditions = {"machine": machine(), "peer": PEER if HAS_PEER else None} | provenance(Ranks())
    conditions |= {"command": shlex.join(sys.orig_argv), "date": datetime.now().isoformat(timespec="minutes")}
    write_json(out, {"conditions": conditions | more, "rows": rows}, indent=2)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row, form) for form in columns.values()) + " |" for row in rows]
    lines += [f"{row['what']}, {row['by']}: {row['error']}" for row in rows if "error" in row]
    if not HAS_PEER:
        lines.append("transformers is not installed: ours alone")
    return "\n".join(lines)


def command(doc: str, measure_case: Callable, defaults, argv: list[str] | None = None, columns: dict = COLUMNS) -> None:
    """Measure every combination of the values that the flags have, print the table and write the JSON file.

    Args:
        measure_case: a case -> rows of the table.
        defaults: the case without flags, a dataclass; each of its fields is a flag, which takes several values.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name}", type=type(value), nargs="+", default=[value], help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="JSON file; default: %(default)s")
    flags = vars(parser.parse_args(argv))
    out = flags.pop("out")
    rows = []
    for values in itertools.product(*flags.values()):
        rows += measure_case(type(defaults)(*values))
    print(report(rows, out, columns))
