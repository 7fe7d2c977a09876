"""Measure speed and memory of fine-tuning and predicting: `python bench.py --n_batch 8 --precision fp32 bf16`.

Writes a table, a picture and all figures with their conditions: <out>.md, <out>.png and <out>.json.

A row of the table is measured in a process of its own, for its peak memory to be its own. The processes of one
precision, batch and length take turns, an update each, so that other work on the machine disturbs all of them alike;
a process that does nothing but matrix products of that precision has its turns too.
Weights are random, of the model folder's shapes; stories are in file order, and begin again when they run out.

Work is counted on real tokens, each choice's row by itself. With features C, a table of V rows and rows of n tokens:
    forward    2 * 12 C^2 a token and block; 4 C a block for each pair of a token and one it sees, n (n + 1) / 2 a row
    LM head    2 V C for each real next token, n - 1 a row; in training alone
    training   3 forward passes, whether or not --checkpoint_activations makes a fourth
"TFLOP/s" is this count over time in every mode, so that what a shared context saves shows as speed. "of matrix rate" is
the median share of the rate of the matrix products of the same turn, a shared context counted once.
"""

import argparse
import dataclasses
import importlib.util
import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from itertools import cycle, islice, product
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor

import train
from datasets import ROCSTORIES_TEST, ROCSTORIES_VALID, encode_cached, read_cloze
from model_pytorch import Config, DoubleHeadModel, Packing
from text_utils import TextEncoder
from train import COUNT, N_SPECIAL, FineTuning, HelpFormatter, Rows, Task, number
from training import Ranks, join_ranks, keep_freed_memory, make_parts, provenance, update
from utils import InputError, exit_code, find, make_output_folder, replacing, write_json

GROWTH = {"n_ctx": [64, 128, 256, 512], "n_batch": [8, 1, 64]}  # one grows while the other is the first
RACE = {"n_choices": 4, "n_story": 350, "n_ending": 15}  # about the sizes of that task's examples
N_PRODUCTS = 5  # matrix products of a turn, of which the median counts


# --- rows and their work ---------------------------------------------------------------------------------------------


def read_stories(model_dir: Path, data_dir: Path) -> tuple[list[tuple], int]:
    """Return the columns of the valid and of the test file as token ids, and the number of tokens there are."""
    vocabulary = str(model_dir / "encoder_bpe_40000.json"), str(model_dir / "vocab_40000.bpe")
    encoder = TextEncoder(*vocabulary)
    texts = tuple(read_cloze(data_dir / name) for name in (ROCSTORIES_VALID, ROCSTORIES_TEST))
    return encode_cached(texts, encoder, data_dir, vocabulary), len(encoder.encoder)


def real_rows(splits: list[tuple], n_vocab: int, n_positions: int) -> Rows:
    """Return the rows of the valid file, padded to the longest of both files as train.py does."""
    max_len = n_positions // 2 - 2
    n_ctx = min(n_positions, train.longest_row(splits, max_len))
    *texts, labels = splits[0]
    return *train.transform_roc(*texts, n_vocab, n_ctx, max_len), labels


def repeated_rows(splits: list[tuple], n_vocab: int, n_ctx: int) -> Rows:
    """Return rows of exactly n_ctx tokens: those of the valid file, stories and the shorter endings repeated."""
    *texts, labels = splits[0]
    columns = [], [], []
    for story, *endings in zip(*texts, strict=True):
        n_ending = max(1, min(max(map(len, endings)), (n_ctx - N_SPECIAL) // 2))
        lengths = n_ctx - N_SPECIAL - n_ending, n_ending, n_ending
        for column, text, length in zip(columns, (story, *endings), lengths, strict=True):
            column.append(list(islice(cycle(text or [0]), length)))
    return *train.transform_roc(*columns, n_vocab, n_ctx, n_ctx), labels


def race_rows(n_vocab: int, n_rows: int) -> Rows:
    """Return rows of random tokens with the sizes of RACE."""
    rng, n_ctx = np.random.default_rng(0), RACE["n_story"] + RACE["n_ending"] + N_SPECIAL
    stories = rng.integers(n_vocab, size=(n_rows, RACE["n_story"])).tolist()
    endings = rng.integers(n_vocab, size=(RACE["n_choices"], n_rows, RACE["n_ending"])).tolist()
    pairs = [(stories, *endings[k : k + 2]) for k in range(0, len(endings), 2)]
    x, m = zip(*(train.transform_roc(*pair, n_vocab, n_ctx, n_ctx) for pair in pairs), strict=True)
    return np.concatenate(x, 1), np.concatenate(m, 1), rng.integers(RACE["n_choices"], size=n_rows)


def count_work(x: np.ndarray, m: np.ndarray, cfg: Config, n_table: int, training: bool, share_context: bool) -> int:
    """Return the floating-point operations of rows x (B, K, T, 2), m (B, K, T), as the head of this file says."""
    real = m.astype(bool)
    lengths = real.sum(2)  # (B, K)
    common = np.zeros(len(x), int)  # (B,) tokens that are computed once for all choices
    if share_context:
        is_common = (x[..., 0] == x[:, :1, :, 0]).all(1) & real.all(1)
        common = np.minimum(is_common.cumprod(1).sum(1), lengths.min(1) - 1)
    own = lengths - common[:, None]
    n_tokens = common.sum() + own.sum()
    n_pairs = (common * (common + 1) // 2).sum() + (own * common[:, None] + own * (own + 1) // 2).sum()
    n_next = n_tokens - np.where(common > 0, 1, lengths.shape[1]).sum()
    forward = cfg.n_layer * (24 * cfg.n_embd**2 * n_tokens + 4 * cfg.n_embd * n_pairs)
    return int(3 * (forward + 2 * n_table * cfg.n_embd * n_next) if training else forward)


# --- what is measured ------------------------------------------------------------------------------------------------

Step = Callable[[np.ndarray], object]  # makes one update of, or predicts, the rows of these numbers


@dataclasses.dataclass(frozen=True)
class Job:
    """What one row of the table measures."""

    what: str  # train, predict or matrix
    args: argparse.Namespace  # of train.py
    n_threads: int  # of each process
    task: Task | None = None
    library: str | None = None  # whose network; None: this code's
    n_processes: int = 1

    @property
    def name(self) -> str:
        shared = self.args.share_context and "context shared"
        processes = self.n_processes > 1 and f"{self.n_processes} processes of {self.n_threads} threads"
        return ", ".join(filter(None, (self.what, shared, processes, self.library)))

    def rows(self, i: int) -> np.ndarray:
        """Return the numbers of the rows of update i, or of the batch to predict."""
        n = self.args.n_batch * self.args.accumulate * self.n_processes
        return np.arange(i * n, (i + 1) * n) % len(self.task.splits[0][0])


def train_step(job: Job, ranks: Ranks) -> Step:
    """Return train.py's update."""
    args = job.args
    model, _ = train.build_model(args, job.task)
    model.to(ranks.device).train()
    optimizer = train.make_optimizer(model, args, args.lr_schedule, args.lr_warmup, job.task.t_total)
    autocast = train.pick_precision(args, ranks.device)
    objective = ranks.wrap(FineTuning(model, args.lm_coef))

    def step(rows: np.ndarray) -> float:
        parts = make_parts(rows, args.n_batch, ranks)
        batches = (train.make_batch(job.task.splits[0], part, ranks.device, args.share_context) for part in parts)
        return update(objective, batches, args.accumulate, optimizer, autocast, ranks, rows)

    return step


@torch.no_grad()
def predict_batch(model: DoubleHeadModel, x: Tensor, m: Tensor, share_context: bool, device: torch.device) -> Tensor:
    """Return the logits (B, K) of a batch as train.predict does, which always shares the context."""
    packing = Packing(x, m, share_context).to(device)
    h = model.transformer.packed_states(packing, model.transformer.dropped_table())
    return model.task_head(packing.unpack(h), x.to(device)).float().cpu()


def predict_step(job: Job, ranks: Ranks) -> Step:
    """Return the prediction of a batch."""
    model, _ = train.build_model(job.args, job.task)
    model.to(ranks.device).eval()
    autocast = train.pick_precision(job.args, ranks.device)

    def step(rows: np.ndarray) -> Tensor:
        x, m, _ = (torch.from_numpy(column[rows]) for column in job.task.splits[0])
        with autocast:
            return predict_batch(model, x, m, job.args.share_context, ranks.device)

    return step


def transformers_step(job: Job, ranks: Ranks) -> Step:
    """Return an update of, or the prediction of a batch by, that library's network with two heads, as its users do it.

    All rows are padded to the longest; in predicting too it computes the language model's logits.
    """
    from transformers import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel

    args, task, training = job.args, job.task, job.what == "train"
    sizes = {name: getattr(task.cfg, name) for name in ("n_embd", "n_head", "n_layer")}
    config = OpenAIGPTConfig(vocab_size=task.n_vocab + N_SPECIAL, n_positions=max(task.n_ctx, 512), **sizes)
    model = OpenAIGPTDoubleHeadsModel(config).to(ranks.device).train(training)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    autocast = train.pick_precision(args, ranks.device)

    def step(rows: np.ndarray) -> None:
        optimizer.zero_grad()
        for part in np.split(rows, args.accumulate):
            x, m, y = (torch.from_numpy(column[part]).to(ranks.device) for column in task.splits[0])
            ids, real = x[..., 0], m.bool()
            labels = {"labels": ids.masked_fill(~real, -100), "mc_labels": y} if training else {}
            with autocast, torch.set_grad_enabled(training):
                out = model(ids, mc_token_ids=real.sum(2) - 1, **labels)
            if training:
                ((out.mc_loss + args.lm_coef * out.loss) / args.accumulate).backward()
            else:
                out.mc_logits.float().cpu()
        if training:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()

    return step


def product_size(device: torch.device) -> int:
    """Return n of the n x n matrices whose product tells the machine's rate."""
    return 8192 if device.type == "cuda" else 2048


def matrix_step(job: Job, ranks: Ranks) -> Step:
    """Return a matrix product."""
    n, dtype = product_size(ranks.device), {"fp32": torch.float32, "bf16": torch.bfloat16}[job.args.precision]
    a, b, out = (torch.randn(n, n, device=ranks.device).to(dtype) for _ in range(3))
    return lambda _: torch.mm(a, b, out=out)


def make_step(job: Job, ranks: Ranks) -> Step:
    """Return what a job is to time."""
    steps = {"train": train_step, "predict": predict_step, "matrix": matrix_step}
    return (transformers_step if job.library else steps[job.what])(job, ranks)


# --- processes -------------------------------------------------------------------------------------------------------


def serve(connection, environment: dict[str, str]) -> None:
    """Take a job, then answer each step asked for with its seconds, None with the peak memory; a text says why not."""
    os.environ |= environment
    job = connection.recv()
    torch.set_num_threads(job.n_threads)
    torch.manual_seed(0)
    try:
        with join_ranks() as ranks:
            if job.library is None:
                keep_freed_memory()  # as train.py does
            is_gpu = ranks.device.type == "cuda"
            wait = torch.cuda.synchronize if is_gpu else lambda: None
            step = make_step(job, ranks)
            connection.send(0.0)  # ready
            while (rows := connection.recv()) is not None:
                wait()
                start = time.perf_counter()
                step(rows)
                wait()
                connection.send(time.perf_counter() - start)
            connection.send(torch.cuda.max_memory_allocated() if is_gpu else peak_bytes())
    except EOFError:
        pass  # nobody asks any more
    except (InputError, RuntimeError, MemoryError) as error:
        connection.send(str(error).partition("\n")[0] or type(error).__name__)


def peak_bytes() -> int:
    """Return the memory that this process has held at most."""
    # not getrusage where there is /proc: its maximum is at least the size of the process that started this one
    status = Path("/proc/self/status")
    held = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * (int(held[1]) if held else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class Worker:
    """The processes of one job. `error` says why they ended early, if they did; then each answer is 0."""

    def __init__(self, job: Job):
        self.job, self.seconds, self.error = job, [], None
        environments = [{}]
        if job.n_processes > 1:  # what torchrun sets, its store in this process
            self.store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            names = {"WORLD_SIZE": job.n_processes, "LOCAL_WORLD_SIZE": job.n_processes, "MASTER_ADDR": "localhost"}
            names |= {"MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
            names |= {"TORCHELASTIC_RESTART_COUNT": 0}
            environments = [names | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(job.n_processes)]
        context = multiprocessing.get_context("spawn")
        self.connections, self.processes = [], []
        for environment in environments:
            connection, other = context.Pipe()
            arguments = other, {name: str(value) for name, value in environment.items()}
            process = context.Process(target=serve, args=arguments, daemon=True)
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process alone,
            process.start()
            signal.signal(signal.SIGINT, handler)  # and its end ends the others
            other.close()
            self.connections.append(connection)
            self.processes.append(process)
        for connection in self.connections:
            connection.send(job)

    def ask(self, *requests: np.ndarray | None) -> list[float]:
        """Return each process's seconds for a step, or with None its peak memory; with no request, once it is ready."""
        if self.error is None:
            try:
                for connection, request in product(self.connections, requests):
                    connection.send(request)
                answers = [connection.recv() for connection in self.connections]
            except (EOFError, OSError):
                answers = ["a process died: out of memory?"]
            self.error = next((answer for answer in answers if isinstance(answer, str)), None)
            if self.error is None:
                return answers
            for process in self.processes:
                process.kill()
        return [0.0]

    def close(self) -> float:
        """End the processes and return their peak memory together (bytes)."""
        peak = sum(self.ask(None))
        for process in self.processes:
            process.join()
        return peak

    def matrix_rate(self) -> float:
        """Return the operations per second of several matrix products, the median."""
        times = [max(self.ask(np.empty(0))) for _ in range(N_PRODUCTS)]
        if self.error:
            raise InputError(f"no matrix product could be timed: {self.error}")
        return 2 * product_size(Ranks().device) ** 3 / float(np.median(times))


def measure(jobs: list[Job], n_warm_up: int, n_updates: int) -> tuple[list[dict], list[float]]:
    """Let the jobs make their updates in turn and return their rows of the table, and the matrix rate of each turn."""
    matrix = Worker(Job("matrix", jobs[0].args, jobs[0].n_threads))
    workers = [Worker(job) for job in jobs]
    for worker in (matrix, *workers):
        worker.ask()
    matrix_rates = []
    for i in range(n_warm_up + n_updates):
        for worker in workers:
            worker.seconds.append(max(worker.ask(worker.job.rows(i))))
        matrix_rates.append(matrix.matrix_rate())
    matrix.close()
    rows = [figures(worker, worker.close(), matrix_rates, n_warm_up) for worker in workers]
    return rows, matrix_rates[n_warm_up:]


def figures(worker: Worker, peak: float, matrix_rates: list[float], n_warm_up: int) -> dict:
    """Return a row of the table, its rates the medians over the updates after those that warm up."""
    job, args, task, (x, m, _) = worker.job, worker.job.args, worker.job.task, worker.job.task.splits[0]
    n_batch = f"{args.n_batch * job.n_processes}" + f" x {args.accumulate}" * (args.accumulate > 1)
    row = {"what": job.name, "precision": args.precision, "n_batch": n_batch, "n_ctx": task.n_ctx}
    if worker.error:
        return row | {"error": worker.error}
    rates = []
    for i in range(n_warm_up, len(worker.seconds)):
        rows, seconds = job.rows(i), worker.seconds[i]
        batch = x[rows], m[rows], task.cfg, task.n_vocab + N_SPECIAL + task.n_ctx, job.what == "train"
        flops = count_work(*batch, False) / seconds
        of_matrix_rate = count_work(*batch, args.share_context) / seconds / matrix_rates[i]
        rates.append([1e3 * seconds, len(rows) / seconds, m[rows].sum() / seconds, flops, of_matrix_rate])
    names = "ms", "stories_per_s", "tokens_per_s", "flops", "of_matrix_rate"
    row |= dict(zip(names, np.median(rates, 0).tolist(), strict=True))
    return row | {"peak_bytes": peak, "seconds": worker.seconds[n_warm_up:]}


# --- the report ------------------------------------------------------------------------------------------------------

HEADINGS = ("what", "precision", "n_batch", "n_ctx", "stories/s", "real tokens/s", "ms per update")
HEADINGS += ("peak memory, GiB", "TFLOP/s", "of matrix rate")


def markdown(report: dict) -> str:
    """Return the conditions and the table in Markdown."""
    conditions = "; ".join(f"{name}: {value}" for name, value in report["conditions"].items())
    rates = ", ".join(
        f"{name} {np.median(rates) / 1e12:.3f} TFLOP/s (best turn {max(rates) / 1e12:.3f})"
        for name, rates in report["matrix_rates"].items()
    )
    lines = [
        f"{conditions}; matrix rate: {rates}",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---" * len(HEADINGS) + "|",
    ]
    for row in report["rows"]:
        cells = [str(row[name]) for name in HEADINGS[:4]]
        if "error" in row:
            cells += [row["error"]] + [""] * 5
        else:
            cells += [f"{row['stories_per_s']:.2f}", f"{row['tokens_per_s']:,.0f}", f"{row['ms']:,.0f}"]
            cells += [f"{row['peak_bytes'] / 2**30:.2f}", f"{row['flops'] / 1e12:.3f}", f"{row['of_matrix_rate']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Draw speed and share of the matrix rate of each row; of several lengths, how the time per token grows."""
    figure = Figure(figsize=(12, 2 + 0.3 * len(rows)), layout="constrained")
    speed, other = figure.subplots(1, 2)
    speed.barh(range(len(rows)), [row["tokens_per_s"] for row in rows])
    labels = [f"{row['what']}, {row['precision']}, batch {row['n_batch']}, n_ctx {row['n_ctx']}" for row in rows]
    speed.set_yticks(range(len(rows)), labels)
    speed.invert_yaxis()
    speed.set(xlabel="real tokens per second")
    speed.locator_params(axis="x", nbins=5)
    if len({row["n_ctx"] for row in rows}) > 1:
        series = {}
        for row in rows:
            label = f"{row['what']}, {row['precision']}, batch {row['n_batch']}"
            series.setdefault(label, []).append((row["n_ctx"], 1e6 / row["tokens_per_s"]))
        for label, points in series.items():
            other.plot(*zip(*points, strict=True), "o-", label=label)
        other.set(xlabel="tokens of a row", ylabel="µs per real token", ylim=(0, None))
        other.legend(fontsize="small")
    else:
        other.barh(range(len(rows)), [100 * row["of_matrix_rate"] for row in rows], color="tab:green")
        other.invert_yaxis()
        other.set(xlabel="% of the matrix rate", yticks=[])
    figure.savefig(path, dpi=120)


def machine_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found[1] if found else platform.processor()


# --- the command -----------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the settings; a wrong flag ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description="Measure speed and memory.", formatter_class=HelpFormatter)
    flag = parser.add_argument
    flag("--model_dir", default="demo/model", help="folder that gives vocabulary and sizes; its weights are not read")
    flag("--data_dir", default="demo/data", help="folder of the Story Cloze files")
    flag("--what", nargs="+", choices=("train", "predict"), help="what to measure; default: both, of race predict")
    flag("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="of matrix products")
    flag("--n_batch", nargs="+", type=COUNT, help="examples of a batch; default: 8")
    help_ = "measure rows of exactly so many tokens, text repeated; default: the rows as they are"
    flag("--n_ctx", nargs="+", type=number(int, 6), help=help_)
    flag("--growth", action="store_true", help=f"measure {GROWTH}, one of them growing at a time")
    flag("--shapes", choices=("stories", "race"), default="stories", help=f"race: random tokens, {RACE}")
    flag("--updates", type=COUNT, default=10, help="updates measured, of which the median counts")
    flag("--warm_up", type=number(int, 0), default=3, help="updates before them")
    flag("--accumulate", type=COUNT, default=1, help="batches of an update; predictions are of one batch")
    flag("--checkpoint_activations", action="store_true", help="save memory: compute the blocks twice")
    flag("--share_context", action="store_true", help="measure training with a shared context too")
    flag("--threads", type=COUNT, default=torch.get_num_threads(), help="CPU threads")
    flag("--against", choices=("transformers",), help="measure that library too; needs requirements-bench.txt")
    flag("--ranks", action="store_true", help="measure training by two processes too, batch and threads halved")
    flag("--out", default="bench", help="files to write, without their suffixes")
    args = parser.parse_args(argv)
    if args.shapes == "race" and (args.n_ctx or args.growth):
        parser.error("--shapes race has a length of its own: leave out --n_ctx and --growth")
    args.what = args.what or ["train", "predict"][args.shapes == "race" :]
    silent = GROWTH if args.growth else {"n_ctx": [None], "n_batch": [8]}
    args.n_ctx, args.n_batch = args.n_ctx or silent["n_ctx"], args.n_batch or silent["n_batch"]
    if args.ranks and (odd := [n for n in args.n_batch if n % 2]):
        parser.error(f"--n_batch {odd[0]} cannot be halved between the two processes of --ranks")
    return args


def make_jobs(args: argparse.Namespace, precision: str, n_batch: int, task: Task) -> list[Job]:
    """Return what takes turns on one precision, batch and length."""

    def job(what: str, share_context: bool = False, halves: int = 1, library: str | None = None) -> Job:
        flags = ["--model_dir", args.model_dir, "--n_transfer", "-1", "--precision", precision]
        flags += ["--n_batch", str(n_batch // halves), "--accumulate", str(args.accumulate if what == "train" else 1)]
        flags += ["--share_context"] * share_context + ["--checkpoint_activations"] * args.checkpoint_activations
        return Job(what, train.parse_args(flags), max(1, args.threads // halves), task, library, halves)

    jobs = []
    for what in args.what:
        jobs.append(job(what))
        if what == "predict" or args.share_context:
            jobs.append(job(what, share_context=True))
        if what == "train" and args.ranks:
            jobs.append(job(what, halves=2))
        if args.against:
            jobs.append(job(what, library=f"{args.against} {version(args.against)}"))
    return jobs


def run(args: argparse.Namespace) -> None:
    """Measure and report. Raises InputError for what the user can mend."""
    out, device = Path(args.out), Ranks().device
    make_output_folder(out.parent)
    if args.against and importlib.util.find_spec(args.against) is None:
        raise InputError(f"{args.against} is not installed: pip install -r requirements-bench.txt")
    splits, n_vocab = read_stories(find(args.model_dir), find(args.data_dir))
    cfg, sizes = train.network(train.parse_args(["--model_dir", args.model_dir]), n_vocab)

    # the rows of the table
    rows, matrix_rates, n_updates = [], {name: [] for name in args.precision}, args.warm_up + args.updates
    n_rows = n_updates * max(args.n_batch) * args.accumulate
    for precision, n_ctx in product(args.precision, args.n_ctx):
        if args.shapes == "race":
            of, data = "random tokens of the sizes of RACE", race_rows(n_vocab, n_rows)
        elif n_ctx is None:
            of, data = "the stories", real_rows(splits, n_vocab, sizes.n_positions)
        else:
            of, data = "the stories' text repeated to n_ctx", repeated_rows(splits, n_vocab, n_ctx)
        data = tuple(column[:n_rows] for column in data)
        task = Task(n_vocab, data[0].shape[2], cfg, (data, data, data), n_updates, {})
        for n_batch in args.n_batch:
            if args.growth and n_ctx != args.n_ctx[0] and n_batch != args.n_batch[0]:
                continue
            print(f"measuring {precision}, batches of {n_batch}, n_ctx {task.n_ctx}", file=sys.stderr)
            jobs = make_jobs(args, precision, n_batch, task)
            of_jobs, of_turns = measure(jobs, args.warm_up, args.updates)
            rows += of_jobs
            matrix_rates[precision] += of_turns

    # the report
    measured = [row for row in rows if "error" not in row]
    if not measured:
        raise InputError(f"nothing could be measured: {rows[0]['error']}")
    conditions = {"machine": machine_name(device)} | provenance(Ranks())
    conditions |= {"n_threads": args.threads, "date": datetime.now().isoformat(timespec="minutes")}
    conditions |= {args.against: version(args.against)} if args.against else {}
    conditions |= {"rows": of, "weights": "random", "updates": args.updates}
    report = {"conditions": conditions, "sizes": dataclasses.asdict(sizes), "settings": vars(args)}
    report |= {"matrix_rates": matrix_rates, "rows": rows}
    table = markdown(report)
    print(table, end="")
    write_json(out.with_name(out.name + ".json"), report, indent=2)
    with replacing(out.with_name(out.name + ".md")) as file:
        file.write(table.encode())
    draw(measured, out.with_name(out.name + ".png"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    return exit_code("bench.py", lambda: run(args), "nothing is written")


if __name__ == "__main__":
    sys.exit(main())
