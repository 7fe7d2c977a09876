"""Measure speed and memory: `python bench.py --n_batch 8 --precision fp32 bf16`, or `--what pretrain` for that task.

Writes a table, a picture and all figures with their conditions: <out>.md, <out>.png and <out>.json.

A row of the table is measured in a process of its own, for its peak memory to be its own. The processes of one
precision, batch and length take turns, an update each, so that other work on the machine disturbs all of them alike;
a process that does nothing but matrix products of that precision has its turns too.
Weights are random, of the model folder's shapes; stories are in file order, and begin again when they run out. For
pre-training, their text is one stream that is cut into sequences of n_ctx tokens.

Work is counted on real tokens, each choice's row by itself. With features C, a table of V rows and rows of n tokens:
    forward    2 * 12 C^2 a token and block; 4 C a block for each pair of a token and one it sees, n (n + 1) / 2 a row
    LM head    2 V C for each real next token, n - 1 a row; in training only
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
from torch import Tensor, nn

from datasets import TASKS
from encoding import Encoded, encode_cached
from finetuning import FineTuning, Prepared, Settings, build_model, network
from inputs import N_SPECIAL, Rows, position_rows
from loss import sequence_losses
from model_pytorch import Config, DoubleHeadModel, LMModel
from opt import OpenAIAdam
from packing import Packing
from processes import Ranks, autocast, join_ranks, keep_freed_memory, provenance
from settings import COUNT, HelpFormatter, number
from shards import vocabulary_files
from splits import Splits, values_of_labels
from text_utils import TextEncoder
from training import count_operations, make_parts, matrix_product, product_size, update
from utils import InputError, exit_code, find, make_output_folder, replacing, write_json

GROWTH = {"n_ctx": [64, 128, 256, 512], "n_batch": [8, 1, 64]}  # one grows while the other is the first
RACE = {"n_choices": 4, "n_story": 350, "n_ending": 15}  # about the sizes of that task's examples
N_PRODUCTS = 5  # matrix products of a turn, of which the median counts


# --- rows and their work ---------------------------------------------------------------------------------------------


def read_stories(model_dir: Path, data_dir: Path) -> tuple[list[Rows], int]:
    """Return the rows of the valid and of the test file, cut as train.py does, and the vocabulary size."""
    vocabulary, task = tuple(map(str, vocabulary_files(model_dir))), TASKS["rocstories"]
    encoder, folder = TextEncoder(*vocabulary), task.find(data_dir)
    _, sizes = network(Settings(model_dir=str(model_dir)), n_vocab := len(encoder.encoder))
    rows = []
    for sources in (task.train, task.test):
        encoded = encode_cached(sources, folder, encoder, vocabulary, task.labels, strict=True)
        labels = values_of_labels(task, encoded, folder / sources[0].files[0])
        rows.append(Rows(encoded, labels, task.form, task.cut, n_vocab, sizes.n_positions))
    return rows, n_vocab


def first_rows(rows: Rows, n_rows: int) -> Rows:
    """Return rows of the first n_rows examples, or of all there are."""
    return rows.first(min(n_rows, len(rows)))


def repeated_rows(rows: Rows, n_ctx: int, n_rows: int) -> Rows:
    """Return rows of exactly n_ctx tokens: stories, and the shorter endings, repeated."""
    examples = []
    for i in range(min(n_rows, len(rows))):
        story, *endings = rows.encoded.texts(i)
        n_ending = max(1, min(max(map(len, endings)), (n_ctx - N_SPECIAL) // 2))
        lengths = n_ctx - N_SPECIAL - n_ending, n_ending, n_ending
        texts = zip((story, *endings), lengths, strict=True)
        examples.append([list(islice(cycle(text or [0]), length)) for text, length in texts])
    return Rows(Encoded.of(examples), rows.labels[:n_rows], rows.form, "longest", rows.n_vocab, n_ctx)


def race_rows(n_vocab: int, n_rows: int) -> Rows:
    """Return rows of random tokens with the sizes of RACE."""
    rng, n_ctx = np.random.default_rng(0), RACE["n_story"] + RACE["n_ending"] + N_SPECIAL
    stories = rng.integers(n_vocab, size=(n_rows, RACE["n_story"])).tolist()
    endings = rng.integers(n_vocab, size=(n_rows, RACE["n_choices"], RACE["n_ending"])).tolist()
    encoded = Encoded.of([[story, *choices] for story, choices in zip(stories, endings, strict=True)])
    labels = rng.integers(RACE["n_choices"], size=n_rows)
    return Rows(encoded, labels, "multiple_choice", "longest", n_vocab, n_ctx)


def count_work(x: np.ndarray, m: np.ndarray, cfg: Config, n_table: int, training: bool, share_context: bool) -> int:
    """Return the floating-point operations of rows x (B, K, T, 2), m (B, K, T), as defined at the top of this file."""
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
    if not training:
        return int(count_operations(cfg, n_tokens, n_pairs))
    return int(3 * count_operations(cfg, n_tokens, n_pairs, n_next, n_table))


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Rows of pre-training (S, T), all of one length, with what is needed of `Rows`."""

    ids: np.ndarray
    n_vocab: int

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each sequence (S,)."""
        return np.full(len(self.ids), self.ids.shape[1])

    def batch(self, which: np.ndarray) -> tuple[Tensor, Tensor, None]:
        """Return x (B, 1, T, 2) and m (B, 1, T) of some sequences."""
        x = torch.from_numpy(position_rows(self.ids[which], self.n_vocab))[:, None]
        return x, torch.ones(x.shape[:3], dtype=torch.int8), None


def sequences_of(rows: Rows, n_ctx: int, n_rows: int) -> Sequences:
    """Return n_rows sequences of the texts of rows, which begin again when they run out."""
    stream = np.array([i for example in range(len(rows)) for text in rows.encoded.texts(example) for i in text])
    return Sequences(np.resize(stream, (n_rows, n_ctx)), rows.n_vocab)


# --- what is measured ------------------------------------------------------------------------------------------------

Step = Callable[[np.ndarray], object]  # makes one update of, or predicts, the rows of these numbers


@dataclasses.dataclass(frozen=True)
class Job:
    """What one row of the table measures."""

    what: str  # train, predict, pretrain or matrix
    settings: Settings  # of train.py
    n_threads: int  # of each process
    prepared: Prepared | None = None
    library: str | None = None  # whose network; None: this code's
    n_processes: int = 1

    @property
    def name(self) -> str:
        shared = self.settings.share_context and "context shared"
        processes = self.n_processes > 1 and f"{self.n_processes} processes of {self.n_threads} threads"
        return ", ".join(filter(None, (self.what, shared, processes, self.library)))

    def examples(self, i: int) -> np.ndarray:
        """Return the numbers of the examples of update i, or of the batch to predict."""
        n = self.settings.n_batch * self.settings.accumulate * self.n_processes
        return np.arange(i * n, (i + 1) * n) % len(self.prepared.splits.train)

    def n_table(self) -> int:
        """Return the number of rows of the embedding matrix."""
        return self.prepared.n_vocab + N_SPECIAL * (self.what != "pretrain") + self.prepared.n_ctx


def make_model(job: Job, ranks: Ranks) -> DoubleHeadModel:
    """Return the network with random weights."""
    model, _ = build_model(job.prepared, -1, "")
    model.transformer.checkpoint_activations = job.settings.checkpoint_activations
    return model.to(ranks.device)


def make_optimizer(settings: Settings, model: nn.Module) -> OpenAIAdam:
    """Return the optimiser as train.py and pretrain.py set it up."""
    schedule = {"schedule": settings.lr_schedule, "warmup": settings.lr_warmup, "t_total": 1000}
    optimizer = OpenAIAdam(model.parameters(), **settings.adam(), **schedule)
    optimizer.preallocate()
    return optimizer


def train_step(job: Job, ranks: Ranks) -> Step:
    """Return the update of fine-tuning."""
    settings, rows = job.settings, job.prepared.splits.train
    model = make_model(job, ranks).train()
    optimizer = make_optimizer(settings, model)
    forward = autocast(settings.precision, ranks.device)
    objective = ranks.wrap(FineTuning(model, settings.lm_coef))

    def step(which: np.ndarray) -> float:
        parts = make_parts(which, settings.n_batch, ranks)
        batches = (rows.packed(part, settings.share_context, ranks.device) for part in parts)
        return update(objective, batches, settings.accumulate, optimizer, forward, ranks, which)

    return step


def pretrain_step(job: Job, ranks: Ranks) -> Step:
    """Return the update of pre-training."""
    settings, prepared = job.settings, job.prepared
    model = LMModel(prepared.cfg, job.n_table(), prepared.n_ctx).to(ranks.device).train()
    model.transformer.checkpoint_activations = settings.checkpoint_activations
    optimizer = make_optimizer(settings, model)
    forward = autocast(settings.precision, ranks.device)

    def objective(packing: Packing) -> Tensor:
        return sequence_losses(model, packing).mean()

    def step(which: np.ndarray) -> float:
        parts = make_parts(which, settings.n_batch, ranks)
        batches = ((Packing(prepared.splits.train.batch(part)[0][:, 0]).to(ranks.device),) for part in parts)
        return update(objective, batches, settings.accumulate, optimizer, forward, ranks, which)

    return step


@torch.no_grad()
def predict_batch(model: DoubleHeadModel, x: Tensor, m: Tensor, share_context: bool, device: torch.device) -> Tensor:
    """Return the logits (B, K) of a batch as inference.predict does, which always shares the context."""
    _, _, logits = model.forward_packed(Packing(x, m, share_context).to(device))
    return logits.float().cpu()


def predict_step(job: Job, ranks: Ranks) -> Step:
    """Return the prediction of a batch."""
    model = make_model(job, ranks).eval()
    forward = autocast(job.settings.precision, ranks.device)

    def step(which: np.ndarray) -> Tensor:
        x, m, _ = job.prepared.splits.train.batch(which)
        with forward:
            return predict_batch(model, x, m, job.settings.share_context, ranks.device)

    return step


def transformers_step(job: Job, ranks: Ranks) -> Step:
    """Return an update of, or the prediction of a batch by, that library's network with two heads, as its users do it.

    All rows are padded to the longest; in predicting too it computes the language model's logits.
    """
    from transformers import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel

    settings, prepared, training = job.settings, job.prepared, job.what == "train"
    sizes = {name: getattr(prepared.cfg, name) for name in ("n_embd", "n_head", "n_layer")}
    config = OpenAIGPTConfig(vocab_size=prepared.n_vocab + N_SPECIAL, n_positions=max(prepared.n_ctx, 512), **sizes)
    model = OpenAIGPTDoubleHeadsModel(config).to(ranks.device).train(training)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    forward = autocast(settings.precision, ranks.device)

    def step(which: np.ndarray) -> None:
        optimizer.zero_grad()
        for part in np.split(which, settings.accumulate):
            x, m, y = (t.to(ranks.device) for t in prepared.splits.train.batch(part, prepared.n_ctx))
            ids, real = x[..., 0], m.bool()
            labels = {"labels": ids.masked_fill(~real, -100), "mc_labels": y} if training else {}
            with forward, torch.set_grad_enabled(training):
                out = model(ids, mc_token_ids=real.sum(2) - 1, **labels)
            if training:
                ((out.mc_loss + settings.lm_coef * out.loss) / settings.accumulate).backward()
            else:
                out.mc_logits.float().cpu()
        if training:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()

    return step


def transformers_pretrain_step(job: Job, ranks: Ranks) -> Step:
    """Return an update of that library's language model on the same sequences, as its users make it."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    settings, prepared = job.settings, job.prepared
    sizes = {name: getattr(prepared.cfg, name) for name in ("n_embd", "n_head", "n_layer")}
    config = OpenAIGPTConfig(vocab_size=prepared.n_vocab, n_positions=prepared.n_ctx, **sizes)
    model = OpenAIGPTLMHeadModel(config).to(ranks.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    forward = autocast(settings.precision, ranks.device)

    def step(which: np.ndarray) -> None:
        optimizer.zero_grad()
        for part in np.split(which, settings.accumulate):
            ids = prepared.splits.train.batch(part)[0][:, 0, :, 0].to(ranks.device)
            with forward:
                loss = model(ids, labels=ids).loss
            (loss / settings.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()

    return step


def matrix_step(job: Job, ranks: Ranks) -> Step:
    """Return a matrix product."""
    product = matrix_product(job.settings.precision, ranks.device)
    return lambda _: product()


def make_step(job: Job, ranks: Ranks) -> Step:
    """Return what a job is to time."""
    ours = {"train": train_step, "predict": predict_step, "pretrain": pretrain_step, "matrix": matrix_step}
    theirs = {"train": transformers_step, "predict": transformers_step, "pretrain": transformers_pretrain_step}
    return (theirs if job.library else ours)[job.what](job, ranks)


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
    matrix = Worker(Job("matrix", jobs[0].settings, jobs[0].n_threads))
    workers = [Worker(job) for job in jobs]
    for worker in (matrix, *workers):
        worker.ask()
    matrix_rates = []
    for i in range(n_warm_up + n_updates):
        for worker in workers:
            worker.seconds.append(max(worker.ask(worker.job.examples(i))))
        matrix_rates.append(matrix.matrix_rate())
    matrix.close()
    rows = [figures(worker, worker.close(), matrix_rates, n_warm_up) for worker in workers]
    return rows, matrix_rates[n_warm_up:]


def figures(worker: Worker, peak: float, matrix_rates: list[float], n_warm_up: int) -> dict:
    """Return a row of the table, its rates the medians over the updates after those that warm up."""
    job, settings, prepared = worker.job, worker.job.settings, worker.job.prepared
    n_batch = f"{settings.n_batch * job.n_processes}" + f" x {settings.accumulate}" * (settings.accumulate > 1)
    row = {"what": job.name, "precision": settings.precision, "n_batch": n_batch, "n_ctx": prepared.n_ctx}
    if worker.error:
        return row | {"error": worker.error}
    rates = []
    for i in range(n_warm_up, len(worker.seconds)):
        which, seconds = job.examples(i), worker.seconds[i]
        x, m = (t.numpy() for t in prepared.splits.train.batch(which)[:2])
        of_batch = x, m, prepared.cfg, job.n_table(), job.what != "predict"
        flops = count_work(*of_batch, False) / seconds
        of_matrix_rate = count_work(*of_batch, settings.share_context) / seconds / matrix_rates[i]
        rates.append([1e3 * seconds, len(which) / seconds, m.sum() / seconds, flops, of_matrix_rate])
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
    is_pretraining = report["rows"][0]["what"].startswith("pretrain")
    headings = [name.replace("stories", "sequences") if is_pretraining else name for name in HEADINGS]
    lines = [
        f"{conditions}; matrix rate: {rates}",
        "",
        "| " + " | ".join(headings) + " |",
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
    help_ = "what to measure; default: train predict, of race predict"
    flag("--what", nargs="+", choices=("train", "predict", "pretrain"), help=help_)
    flag("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="of matrix products")
    flag("--n_batch", nargs="+", type=COUNT, help="examples of a batch; default: 8, of pretrain 4")
    help_ = "measure rows of exactly so many tokens, text repeated; default: the rows as they are, of pretrain 512"
    flag("--n_ctx", nargs="+", type=number(int, 6), help=help_)
    flag("--growth", action="store_true", help=f"measure {GROWTH}, one of them growing at a time")
    flag("--shapes", choices=("stories", "race"), default="stories", help=f"race: random tokens, {RACE}")
    flag("--updates", type=COUNT, default=10, help="updates measured, of which the median counts")
    flag("--warm_up", type=number(int, 0), default=3, help="updates before them")
    flag("--accumulate", type=COUNT, default=1, help="batches of an update; predictions are of one batch")
    flag("--checkpoint_activations", action="store_true", help="save memory: recompute the blocks in the backward pass")
    flag("--share_context", action="store_true", help="measure training with a shared context too")
    flag("--threads", type=COUNT, default=torch.get_num_threads(), help="CPU threads")
    flag("--against", choices=("transformers",), help="measure that library too; needs requirements-bench.txt")
    flag("--ranks", action="store_true", help="measure training by two processes too, batch and threads halved")
    flag("--out", default="bench", help="files to write, without their suffixes")
    args = parser.parse_args(argv)
    if args.shapes == "race" and (args.n_ctx or args.growth):
        parser.error("--shapes race has a length of its own: leave out --n_ctx and --growth")
    args.what = args.what or ["train", "predict"][args.shapes == "race" :]
    is_pretraining = "pretrain" in args.what
    if is_pretraining and (len(args.what) > 1 or args.shapes == "race" or args.ranks or args.share_context):
        parser.error("--what pretrain goes without train, predict, --shapes race, --ranks and --share_context")
    silent = {"n_ctx": [512], "n_batch": [4]} if is_pretraining else {"n_ctx": [None], "n_batch": [8]}
    silent = GROWTH if args.growth else silent
    args.n_ctx, args.n_batch = args.n_ctx or silent["n_ctx"], args.n_batch or silent["n_batch"]
    if args.ranks and (odd := [n for n in args.n_batch if n % 2]):
        parser.error(f"--n_batch {odd[0]} cannot be halved between the two processes of --ranks")
    return args


def make_jobs(args: argparse.Namespace, precision: str, n_batch: int, prepared: Prepared) -> list[Job]:
    """Return what takes turns on one precision, batch and length."""

    def job(what: str, share_context: bool = False, halves: int = 1, library: str | None = None) -> Job:
        settings = Settings(
            model_dir=args.model_dir,
            n_transfer=-1,
            precision=precision,
            n_batch=n_batch // halves,
            accumulate=1 if what == "predict" else args.accumulate,
            share_context=share_context,
            checkpoint_activations=args.checkpoint_activations,
        )
        return Job(what, settings, max(1, args.threads // halves), prepared, library, halves)

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
    """Measure and report. Raises InputError for what the user can fix."""
    out, device = Path(args.out), Ranks().device
    make_output_folder(out.parent)
    if args.against and importlib.util.find_spec(args.against) is None:
        raise InputError(f"{args.against} is not installed: pip install -r requirements-bench.txt")
    stories, n_vocab = read_stories(find(args.model_dir), find(args.data_dir))
    cfg, sizes = network(Settings(model_dir=args.model_dir), n_vocab)

    # the rows of the table
    table, matrix_rates, n_updates = [], {name: [] for name in args.precision}, args.warm_up + args.updates
    n_rows = n_updates * max(args.n_batch) * args.accumulate
    for precision, n_ctx in product(args.precision, args.n_ctx):
        if args.what == ["pretrain"]:
            of, rows = "the stories' text in sequences", sequences_of(stories[0], n_ctx, n_rows)
        elif args.shapes == "race":
            of, rows = "random tokens of the sizes of RACE", race_rows(n_vocab, n_rows)
        elif n_ctx is None:
            of, rows = "the stories", first_rows(stories[0], n_rows)
        else:
            of, rows = "the stories' text repeated to n_ctx", repeated_rows(stories[0], n_ctx, n_rows)
        n_ctx = max(int(split.lengths().max()) for split in (stories if of == "the stories" else [rows]))
        prepared = Prepared(Splits(TASKS["rocstories"], rows, rows, rows), cfg, n_vocab, n_ctx)
        for n_batch in args.n_batch:
            if args.growth and n_ctx != args.n_ctx[0] and n_batch != args.n_batch[0]:
                continue
            print(f"measuring {precision}, batches of {n_batch}, n_ctx {n_ctx}", file=sys.stderr)
            jobs = make_jobs(args, precision, n_batch, prepared)
            of_jobs, of_turns = measure(jobs, args.warm_up, args.updates)
            table += of_jobs
            matrix_rates[precision] += of_turns

    # the report
    measured = [row for row in table if "error" not in row]
    if not measured:
        raise InputError(f"nothing could be measured: {table[0]['error']}")
    conditions = {"machine": machine_name(device)} | provenance(Ranks())
    conditions |= {"n_threads": args.threads, "date": datetime.now().isoformat(timespec="minutes")}
    conditions |= {args.against: version(args.against)} if args.against else {}
    conditions |= {"rows": of, "weights": "random", "updates": args.updates}
    report = {"conditions": conditions, "sizes": dataclasses.asdict(sizes), "settings": vars(args)}
    report |= {"matrix_rates": matrix_rates, "rows": table}
    text = markdown(report)
    print(text, end="")
    write_json(out.with_name(out.name + ".json"), report, indent=2)
    with replacing(out.with_name(out.name + ".md")) as file:
        file.write(text.encode())
    draw(measured, out.with_name(out.name + ".png"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    return exit_code("bench.py", lambda: run(args), "nothing is written")


if __name__ == "__main__":
    sys.exit(main())
