"""The training loop of fine-tuning and of pre-training: updates, logs, checkpoints, resuming."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from formats.files import InputError, ResultLogger, write_json
from model_pytorch import Config
from opt import OpenAIAdam
from running.checkpoint import read_checkpoint, remove_checkpoints, restore, save_checkpoint, save_parameters
from running.inference import progress_bar
from running.processes import Ranks, Stop, Stopped, provenance, restarted
from speed.kernels import product

# --- one update ------------------------------------------------------------------------------------------------------


def make_parts(examples: Sequence, n_batch: int, ranks: Ranks) -> list:
    """Return the examples of an update that this process computes, in parts (micro-batches) of n_batch."""
    own = examples[len(examples) // ranks.size * ranks.rank :][: len(examples) // ranks.size]
    return [own[start : start + n_batch] for start in range(0, len(own), n_batch)]


def update(
    objective: nn.Module, parts: Iterable[tuple], n_parts: int, optimizer: OpenAIAdam, autocast, ranks: Ranks, examples
) -> float:
    """Make one update on the mean cost of all parts of all processes, and return that cost.

    Args:
        objective: arguments of a part -> its mean cost; wrapped by Ranks.wrap.
        parts: n_parts micro-batches of one size, whose gradients are accumulated.
        examples: indices of the examples of all parts of all processes; an error message names them.

    Raises:
        InputError: the cost or a gradient is not finite (no parameter has changed then), or memory is full.
    """
    optimizer.zero_grad()
    cost = 0.0
    try:
        for i, part in enumerate(parts, 1):
            # the processes exchange gradients only once per update, in the last part's backward
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
            f"out of memory on {ranks.device}, {len(examples) // ranks.size // n_parts} examples at a time. Halve "
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
            f"{reason}; the update was not made. Its examples: {', '.join(map(str, examples))}. Look at them, or "
            "lower --lr."
        )
    return cost


# --- how fast --------------------------------------------------------------------------------------------------------


def count_operations(cfg: Config, n_tokens: int, n_pairs: int, n_next: int = 0, n_table: int = 0) -> int:
    """Return the floating-point operations of a forward pass; training takes three times as many.

    Args:
        n_tokens, n_pairs: tokens, and pairs of a token and one that it attends to, n (n + 1) / 2 in a row of n.
        n_next, n_table: next tokens predicted, each among so many rows of the embedding matrix.
    """
    blocks = cfg.n_layer * (24 * cfg.n_embd**2 * n_tokens + 4 * cfg.n_embd * n_pairs)
    return blocks + 2 * n_table * cfg.n_embd * n_next


def product_size(device: torch.device) -> int:
    """Return n of the n x n matrices whose product tells the machine's rate."""
    return 8192 if device.type == "cuda" else 2048


def matrix_product(precision: str, device: torch.device) -> Callable[[], Tensor]:
    """Return a product of two matrices of that size, as training makes them, to be called."""
    n, dtype = product_size(device), torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)  # of its own: the random numbers of a run stay as they are
    a, b = (torch.randn(n, n, dtype=dtype, device=device, generator=generator) for _ in range(2))
    return lambda: product(a, b)


def matrix_rate(precision: str, device: torch.device) -> float:
    """Return the operations per second of plain matrix products, measured in about half a second."""
    multiply = matrix_product(precision, device)
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    multiply()  # the first one is slower
    times, end = [], time.perf_counter() + 0.5
    while not times or time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        multiply()
        wait()
        times.append(time.perf_counter() - start)
    return 2 * product_size(device) ** 3 / sorted(times)[len(times) // 2]


class Speed:
    """How fast updates are made, since the last log and as a fraction of what the machine's matrix products reach.

    Args:
        unit, per_update: what is counted, and how many of it an update of all processes has.
        operations: floating-point operations of this process in an update.
        matrix_rate: measures the operations per second of plain matrix products.
    """

    PATIENCE = 5  # seconds of updates before the matrix rate is measured: short runs do without

    def __init__(self, unit: str, per_update: int, operations: int, matrix_rate: Callable[[], float]):
        self.unit, self.per_update, self.operations = unit, per_update, operations
        self.matrix_rate, self.rate = matrix_rate, None
        self.began, self.n_updates = time.perf_counter(), 0  # of this process
        self.seconds, self.n_recent = 0.0, 0  # since the last log

    def add(self, seconds: float, is_first: bool) -> None:
        """Count an update; the first process measures the matrix rate once it is worth its time."""
        self.seconds, self.n_recent, self.n_updates = self.seconds + seconds, self.n_recent + 1, self.n_updates + 1
        if is_first and self.rate is None and time.perf_counter() - self.began > self.PATIENCE:
            try:
                self.rate = self.matrix_rate()
            except torch.OutOfMemoryError:
                self.rate = math.nan  # the training has all the memory there is

    def of_matrix_rate(self) -> str | None:
        """Return the fraction of the matrix rate in per cent; None before that is known."""
        if not self.rate or math.isnan(self.rate) or not self.seconds:
            return None
        return f"{100 * self.operations * self.n_recent / self.seconds / self.rate:.0f} %"

    def describe(self, n_left: int) -> str:
        """Return in words the speed since the last log and how long n_left updates will take, with all that is due."""
        if not self.seconds:
            return ""
        found = [f"{self.n_recent * self.per_update / self.seconds:,.0f} {self.unit}/s"]
        found += [f"{percent} of the matrix rate"] if (percent := self.of_matrix_rate()) else []
        left = n_left * (time.perf_counter() - self.began) / self.n_updates
        return ", ".join([*found, f"{tqdm.format_interval(left)} left"])


def summary_writer() -> type:
    """Return torch's writer of files for TensorBoard. Raises InputError when that package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # here: it is optional, and slow to import
    except ImportError:
        raise InputError("--tensorboard needs a package that is not installed: pip install tensorboard") from None
    return SummaryWriter


# --- the loop --------------------------------------------------------------------------------------------------------


def find_checkpoint(folder: Path, settings: dict, resume: bool, ranks: Ranks) -> tuple[dict[str, Tensor], dict] | None:
    """Return the tensors and the state to resume from; None to start from the beginning.

    Raises InputError when the checkpoint is of a run with other settings, or when a run that is not resumed would
    overwrite the checkpoints of an unfinished one.
    """
    found = read_checkpoint(folder, ranks)
    if found is None:
        return None
    _, state = found
    if not (resume or restarted()):
        if state["updates"] < state["settings"]["t_total"]:
            raise InputError(
                f"{folder} holds checkpoints of an unfinished run. --resume goes on; else change --desc or remove them."
            )
        return None
    # a flag that the checkpoint does not know is newer than it, and was off
    theirs = {name: False for name, value in settings.items() if value is False} | state["settings"]
    if changed := [name for name in settings if settings[name] != theirs.get(name)]:
        raise InputError(f"{folder} was made with another {', '.join(changed)}. Resume with the settings it had.")
    return found


class Training:
    """A training run, from its first update or its newest checkpoint to its last update.

    Args:
        model: what is trained; its parameters are saved.
        objective: module, arguments of a batch -> mean cost (nats).
        optimizer: of all parameters of model.
        make_batch: indices of examples -> arguments of objective, on this process's device.
        epoch_order: epoch, from 0 -> indices of the examples, in the order they are trained on.
        measure: mean training cost since the last log, pause -> metrics for a line of the log. It must call pause()
            regularly, as only there can a signal stop it.
        is_log_due: number of updates made -> whether to log now.
        best_by: metric whose highest value decides which parameters are kept as the best; None: none are.
        log_format: format string of the line printed at each log.
        n_batch, accumulate, n_iter, per_epoch: examples per batch, batches per update on each process, epochs,
            updates per epoch.
        folder: of checkpoints, best parameters and settings.json.
        settings: a run is resumed only with the same ones.
        checkpoint_every: updates between checkpoints; 0: only at the end of each epoch.
        resume: continue from the newest checkpoint in folder, if there is one.

    Raises:
        InputError: the checkpoints in folder do not fit this run.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        objective: nn.Module,
        optimizer: OpenAIAdam,
        autocast: torch.autocast,
        make_batch: Callable[[np.ndarray], tuple],
        epoch_order: Callable[[int], np.ndarray],
        measure: Callable[[float, Callable[[], None]], dict],
        is_log_due: Callable[[int], bool],
        log_format: str,
        n_batch: int,
        accumulate: int,
        n_iter: int,
        per_epoch: int,
        folder: Path,
        settings: dict,
        checkpoint_every: int,
        resume: bool,
        ranks: Ranks,
        best_by: str | None = None,
    ):
        self.model, self.optimizer, self.autocast, self.ranks = model, optimizer, autocast, ranks
        self.make_batch, self.epoch_order, self.measure = make_batch, epoch_order, measure
        self.is_log_due, self.log_format, self.best_by = is_log_due, log_format, best_by
        self.n_batch, self.accumulate, self.per_epoch = n_batch, accumulate, per_epoch
        self.n_update, self.t_total = n_batch * accumulate * ranks.size, per_epoch * n_iter
        self.folder, self.settings, self.checkpoint_every = folder, settings, checkpoint_every
        self.updates, self.logs, self.cost_since_log = 0, [], 0.0
        if found := find_checkpoint(folder, settings, resume, ranks):
            tensors, state = found
            restore(tensors, state, model, optimizer, ranks)
            self.updates, self.logs, self.cost_since_log = (state[k] for k in ("updates", "logs", "cost_since_log"))
        self.saved = self.updates, len(self.logs)
        self.objective = ranks.wrap(objective)
        self.logger, self.board, self.speed = None, None, None

    def open_log(self, path: Path, tensorboard: bool = False, **more) -> None:
        """Start the log and settings.json, which replace those of an earlier run of the same name.

        With tensorboard, the figures of the log go to a folder beside it too, `<desc>.tensorboard`.
        """
        if not self.ranks.is_first:
            return
        if not self.updates:
            remove_checkpoints(self.folder)
        settings = self.settings | provenance(self.ranks) | more
        write_json(self.folder / "settings.json", settings, indent=2)
        self.logger = ResultLogger(path, **settings)
        if tensorboard:
            folder = path.with_suffix(".tensorboard")
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self.board = summary_writer()(str(folder))
        for line in self.logs:
            self.write(line)

    def write(self, line: dict) -> None:
        """Write a line of the log."""
        self.logger.log(**line)
        if self.board is not None:
            for name, value in line.items():
                self.board.add_scalar(name, value, line["n_updates"])
            self.board.flush()

    def close(self) -> None:
        """Close the log."""
        for log in (self.logger, self.board):
            if log is not None:
                log.close()

    def run(self, stop: Stop, speed: Speed | None = None) -> None:
        """Make the remaining updates. When a signal stops them, save a checkpoint and raise Stopped.

        With speed, progress is shown in its unit, and its figures with each log.
        """
        self.speed = speed
        unit, per_update = (speed.unit, speed.per_update) if speed else ("examples", self.n_update)
        bar = progress_bar(self.t_total * per_update, "training", unit, self.ranks, self.updates * per_update)
        order, order_epoch = None, None
        try:
            while True:
                # log, and keep the parameters if they are the best so far
                if self.is_log_due(self.updates) and self.updates > self.last_log():
                    self.log(stop)

                # write a checkpoint if one is due, and stop here if a signal asked for it
                if self.is_checkpoint_due():
                    self.save()
                    stop.here()

                if self.updates == self.t_total:
                    return

                # the examples of this update; each process computes its own, n_batch at a time
                start = time.perf_counter()
                epoch, i = divmod(self.updates, self.per_epoch)
                if epoch != order_epoch:
                    order, order_epoch = self.epoch_order(epoch), epoch
                examples = order[i * self.n_update : (i + 1) * self.n_update]
                batches = (self.make_batch(part) for part in make_parts(examples, self.n_batch, self.ranks))

                # forward, backward, clip, step
                self.model.train()
                cost = update(
                    self.objective, batches, self.accumulate, self.optimizer, self.autocast, self.ranks, examples
                )
                self.updates += 1
                self.cost_since_log += cost

                # show the progress, and stop here if a signal asked for it
                figures = {"cost": f"{cost:.3f}", "lr": f"{self.optimizer.param_groups[0]['lr']:.2e}"}
                if speed:
                    speed.add(time.perf_counter() - start, self.ranks.is_first)
                    figures |= {"matrix": percent} if (percent := speed.of_matrix_rate()) else {}
                bar.set_postfix(figures, refresh=False)
                bar.update(per_update)
                stop.here()
        except Stopped:
            if not self.is_saved():
                self.save()
            raise
        finally:
            bar.close()

    def last_log(self) -> int:
        """Return the number of updates made at the last log, 0 if there is none."""
        return self.logs[-1]["n_updates"] if self.logs else 0

    def log(self, stop: Stop) -> None:
        """Measure, write a line of the log, and keep the parameters if they are the best so far."""
        mean_cost = self.cost_since_log / (self.updates - self.last_log())
        line = {"n_epochs": self.updates // self.per_epoch, "n_updates": self.updates}
        line |= self.measure(mean_cost, stop.here)
        # on a tie the earlier parameters are kept: TF:286-290
        is_best = self.best_by and all(line[self.best_by] > earlier[self.best_by] for earlier in self.logs)
        self.logs.append(line)
        self.cost_since_log = 0.0
        if self.ranks.is_first:
            self.write(line)
            speed = self.speed.describe(self.t_total - self.updates) if self.speed else ""
            tqdm.write(self.log_format.format(**line) + (speed and f"; {speed}"))
            if is_best:
                save_parameters(self.folder / "best_params", self.model)
        if self.speed:
            self.speed.seconds, self.speed.n_recent = 0.0, 0

    def is_checkpoint_due(self) -> bool:
        """Return whether to write a checkpoint now."""
        every = self.checkpoint_every or self.per_epoch
        is_due = self.updates % self.per_epoch == 0 or self.updates % every == 0
        return is_due and not self.is_saved()

    def is_saved(self) -> bool:
        """Return whether the newest checkpoint holds this update and all logs."""
        return self.saved == (self.updates, len(self.logs))

    def save(self) -> None:
        """Write a checkpoint."""
        state = {"settings": self.settings, "logs": self.logs, "cost_since_log": self.cost_since_log}
        save_checkpoint(self.folder, self.updates, self.model, self.optimizer, self.ranks, **state)
        self.saved = self.updates, len(self.logs)
