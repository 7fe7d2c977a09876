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
import resource
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from formats.files import write_json
from opt import OpenAIAdam
from running.command import exit_code
from running.processes import Ranks, autocast, bf16_slowdown, keep_freed_memory, provenance
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


# the number of a turn -> what is timed
Step = Callable[[int], object]

# the number of a turn -> its real tokens, and its floating-point operations without padding
Work = Callable[[int], tuple[int, int]]

# a case -> the two; it is pickled for its process
Contender = Callable[[Case], tuple[Step, Work]]

# --- what contenders are made of -------------------------------------------------------------------------------------


def our_optimizer(model: nn.Module) -> OpenAIAdam:
    """Return the optimiser, set up as for training."""
    keep_freed_memory()  # as train.py does
    schedule = {"schedule": "warmup_linear", "warmup": 0.002, "t_total": 1000}
    optimizer = OpenAIAdam(model.parameters(), lr=6.25e-5, l2=0.01, max_grad_norm=1, **schedule)
    optimizer.preallocate()
    return optimizer


def their_optimizer(model: nn.Module) -> torch.optim.AdamW:
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
        if isinstance(optimizer, OpenAIAdam):
            optimizer.step(cost=cost.detach())  # clips by itself
        else:
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
        n_tokens, n_pairs: tokens, and pairs of a token and one that it attends to.
        n_next, n_table: next tokens predicted, each among so many rows of the embedding matrix.
    """
    products = 24 * case.n_embd**2 * n_tokens  # by the matrices of a block, of 12 C^2 elements
    attention = 4 * case.n_embd * n_pairs  # scores, and means of values
    lm_head = 2 * case.n_embd * n_table * n_next
    return int(case.n_layer * (products + attention) + lm_head)


def count_pairs(n_tokens):
    """Return the pairs of a token and one that it attends to in rows of so many tokens, an int or an array."""
    return n_tokens * (n_tokens + 1) // 2


def matrix_products(case: Case) -> tuple[Step, Work]:
    """Multiply two large matrices as training does: what the machine reaches."""
    device = Ranks().device
    n = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    a, b = torch.randn(2, n, n, dtype=dtype, device=device)

    def step(turn: int) -> Tensor:
        return product(a, b)

    def work(turn: int) -> tuple[int, int]:
        return 0, 2 * n**3

    return step, work


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

            # on a GPU once untimed, which takes again the memory that was left to the others
            if has_gpu:
                step(turn)

            # the time
            wait()
            start = time.perf_counter()
            step(turn)
            wait()
            seconds = time.perf_counter() - start

            # the memory; what is free is left to the others
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
    for answer in answers:
        if isinstance(answer, str):
            return {"error": answer}
    seconds, peaks, tokens, operations = np.array(answers[WARM_UP:]).T
    found = {"seconds": seconds.tolist()}
    found["ms"] = 1e3 * np.median(seconds)
    found["peak_gib"] = peaks[-1] / 2**30
    if tokens.any():
        found["tokens_per_s"] = np.median(tokens / seconds)
    if operations.any():
        found["tflops"] = np.median(operations / seconds) / 1e12
    return found


def measure(what: str, contenders: dict[str, Contender], case: Case, limit: float | None = None) -> list[dict]:
    """Let the contenders take turns and return a row of the table for each that is installed.

    No turn begins after so many seconds as limit says, once one has counted.
    """
    start = time.monotonic()
    if case.precision == "bf16" and bf16_slowdown(Ranks().device) > 1.5:
        return [{"what": what, "by": "ours", "error": "no bf16 units: not measured"} | asdict(case)]

    # a process each
    context = multiprocessing.get_context("spawn")
    connections = {}
    processes = []
    for name, contender in contenders.items():
        if name == PEER and not HAS_PEER:
            continue
        connections[name], theirs = context.Pipe()
        process = context.Process(target=take_turns, args=(theirs, contender, case), daemon=True)
        process.start()
        processes.append(process)
        theirs.close()

    # the turns; at least one that counts
    answers = {name: [] for name in connections}
    for turn in range(WARM_UP + case.n_turns):
        is_late = limit is not None and time.monotonic() > start + limit
        if is_late and turn > WARM_UP:
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
            row["times_peer"] = np.median(np.divide(of_peer, row["seconds"]))
    return [{"what": what, "by": name} | asdict(case) | row for name, row in found.items()]


# --- the report ------------------------------------------------------------------------------------------------------

# heading -> form of a cell
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
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor()


def report(rows: list[dict], out: Path, columns: dict[str, str] = COLUMNS, **more) -> str:
    """Write the rows and their conditions as JSON, and return the table in Markdown."""
    conditions = {"machine": machine(), "peer": PEER if HAS_PEER else None}
    conditions |= provenance(Ranks())
    conditions["command"] = shlex.join(sys.orig_argv)
    conditions["date"] = datetime.now().isoformat(timespec="minutes")
    write_json(out, {"conditions": conditions | more, "rows": rows}, indent=2)

    # the table
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [cell(row, form) for form in columns.values()]
        lines.append("| " + " | ".join(cells) + " |")

    # below it what failed
    for row in rows:
        if "error" in row:
            lines.append(f"{row['what']}, {row['by']}: {row['error']}")
    if not HAS_PEER:
        lines.append("transformers is not installed: ours alone")
    return "\n".join(lines)


def command(doc: str, measure_case: Callable, defaults, argv: list[str] | None = None, columns: dict = COLUMNS) -> None:
    """Measure every combination of the values that the flags have, print the table and write the JSON file.

    Args:
        measure_case: a case -> rows of the table.
        defaults: the case without flags, a dataclass; each of its fields is a flag, which takes several values.
    """
    # the flags
    parser = argparse.ArgumentParser(description=doc.splitlines()[0], allow_abbrev=False)
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name}", type=type(value), nargs="+", default=[value], help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="JSON file; default: %(default)s")
    flags = vars(parser.parse_args(argv))
    out = flags.pop("out")

    # one case after the other
    rows = []
    for values in itertools.product(*flags.values()):
        case = type(defaults)(*values)
        rows += measure_case(case)
    print(report(rows, out, columns))


def main(program: str, *arguments, **more) -> int:
    """Run `command` with these arguments as a program, and return its exit code."""
    return exit_code(f"{program}.py", partial(command, *arguments, **more), "nothing is written")
