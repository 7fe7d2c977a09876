"""What fine-tuning and pre-training share: the order of updates, progress, log, checkpoints, resuming, signals.

The updates themselves, forward, backward and step, stand in train.py and pretrain.py.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from formats.files import InputError, LogFile, write_json
from opt import OpenAIAdam
from running.checkpoint import (
    checkpoint_to_resume,
    only_writer,
    remove_checkpoints,
    restore,
    save_checkpoint,
    save_parameters,
)
from running.command import is_out_of_memory
from running.inference import progress_bar
from running.processes import (
    Ranks,
    Stopped,
    autocast,
    join_ranks,
    keep_freed_memory,
    make_deterministic,
    pick_precision,
    provenance,
    signals_wait,
    warn_of_slow_bf16,
)
from running.record import meaning
from running.settings import RunFlags
from speed.device import is_known


@contextmanager
def run_processes(settings: RunFlags) -> Iterator[Ranks]:
    """Join the processes of a run within the `with`; no other run writes into its folder meanwhile."""
    keep_freed_memory()
    if settings.deterministic:
        make_deterministic()
    with join_ranks() as ranks, only_writer(settings.run_folder(), ranks):
        yield ranks


@dataclass(frozen=True)
class Plan:
    """How many updates a training makes, and of how many examples."""

    n_examples: int  # to train on
    n_batch: int  # examples on a device at a time
    accumulate: int  # batches for each update on each process
    n_processes: int
    n_iter: int  # epochs

    @property
    def update_size(self) -> int:
        """Return the number of examples of an update, of all processes."""
        return self.n_batch * self.accumulate * self.n_processes

    @property
    def per_epoch(self) -> int:
        """Return the number of updates of an epoch; the last examples, fewer than an update has, are left out."""
        return self.n_examples // self.update_size

    @property
    def t_total(self) -> int:
        return self.per_epoch * self.n_iter


class Figure:
    """A number on its way from the device: asked for now, read some updates later."""

    def __init__(self, value: Tensor):
        self.value = value.to("cpu", non_blocking=True)
        self.arrived = None
        if not is_known(value):
            self.arrived = torch.Event(value.device)
            self.arrived.record()

    def read(self) -> float:
        """Return the number; waits for the update that it is of, not for later ones."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.value)


class Counted(NamedTuple):
    """An update whose figures are not read yet."""

    examples: Sequence[int]
    size: int
    cost: Figure
    norm: Figure  # of the gradients


AHEAD = 2  # updates that a GPU is given before the figures of the first are read, so that it always has work


class Run:
    """A training run, from its first update or its newest checkpoint to its last update.

    Used as `with run:`, in which signals wait, errors name the examples of the update, and the log is closed at the
    end. Within it: `for examples in run.updates(orders)`.

    Args:
        settings: of the command.
        plan: the number of updates.
        model: what is trained; its parameters are saved.
        optimizer: of all parameters of model.
        record: what settings.json holds; a run is resumed only with the same.
        ranks: the processes.

    Attributes:
        n_updates: updates made.
        logs: lines of the log, without the settings.
        costs: training costs (nats) of the updates since the last line.
        sizes: how much each of these costs weighs.
        counted: the last updates, whose costs are not yet among these; `settle` reads them.

    Raises:
        InputError: the checkpoints of an earlier run do not fit this one.
    """

    def __init__(
        self, settings: RunFlags, plan: Plan, model: nn.Module, optimizer: OpenAIAdam, record: dict, ranks: Ranks
    ):
        # what is trained, and how
        self.settings = settings
        self.plan = plan
        self.model = model
        self.optimizer = optimizer
        self.record = record
        self.ranks = ranks

        # how it is computed, and where it is kept
        self.precision = pick_precision(settings.precision, ranks.device)
        warn_of_slow_bf16(self.precision, ranks)
        self.autocast = autocast(self.precision, ranks.device)
        self.folder = settings.run_folder()

        # where an earlier run stopped
        self.n_updates = 0
        self.logs: list[dict] = []
        self.costs: list[float] = []
        self.sizes: list[int] = []
        self.counted: deque[Counted] = deque()
        found = checkpoint_to_resume(self.folder, record, settings.resume, ranks)
        if found is not None:
            tensors, state = found
            try:
                restore(tensors, state, model, optimizer, ranks)
            except (LookupError, TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"{self.folder}: the newest checkpoint is not of this network ({error!r}). Remove it, or change "
                    "--desc."
                ) from None
            self.n_updates = state["updates"]
            self.logs = state["logs"]
            self.costs = state["costs"]
            self.sizes = state["sizes"]
        self.saved = (self.n_updates, len(self.logs))  # what the newest checkpoint holds; at first there is nothing

    # --- the beginning and the end -----------------------------------------------------------------------------------

    def __enter__(self) -> "Run":
        # the first process writes the settings, and the log up to here
        self.log = None
        self.bar = None
        if self.ranks.is_first:
            if self.n_updates == 0:
                remove_checkpoints(self.folder)
            told = self.record | provenance(self.ranks)
            write_json(self.folder / "settings.json", told, indent=2)
            self.log = Log(self.settings.log_file(), told, self.settings.tensorboard)
            for line in self.logs:
                self.log.write(line)

        # signals wait for the end of an update
        self.examples: Sequence[int] = []  # of the update that is being made
        self.signals = signals_wait(self.ranks)
        self.signals.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # a run that was asked to stop is saved, which reads figures that may not be finite
        try:
            if isinstance(error, Stopped) and not self.is_saved():
                self.save()
        except FloatingPointError as bad:
            error = bad
        finally:
            self.signals.__exit__(None, None, None)
            for opened in (self.bar, self.log):
                if opened is not None:
                    opened.close()

        # what the user can fix
        if isinstance(error, FloatingPointError):
            raise InputError(
                f"{error}; the update was not made. Its examples: {', '.join(map(str, self.examples))}. Look at them, "
                "or lower --lr."
            ) from None
        if error is not None and is_out_of_memory(error):
            raise InputError(
                f"out of memory on {self.ranks.device}, {self.plan.n_batch} examples at a time. Halve --n_batch and "
                "double --accumulate for the same update; --checkpoint_activations and --precision bf16 save memory "
                "too."
            ) from None

    # --- the updates -------------------------------------------------------------------------------------------------

    def wrap(self, losses: nn.Module) -> nn.Module:
        """Return the module that computes the losses, so wrapped that all processes get the mean of their gradients."""
        self.losses = self.ranks.wrap(losses)
        return self.losses

    def updates(self, order_of_epoch: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the examples of each update that is left; between two, write checkpoints and stop where asked to.

        Args:
            order_of_epoch: indices of the examples in the order they are trained on, by the number of the epoch.
        """
        per_epoch = self.plan.per_epoch
        size = self.plan.update_size
        self.bar = progress_bar(self.plan.t_total, "training", "updates", self.ranks, self.n_updates)
        epoch_before = -1
        while True:
            # a checkpoint, and the end; a signal that came meanwhile stops the run here, too
            if self.is_checkpoint_due():
                self.save()
                self.ranks.pause()
            if self.n_updates == self.plan.t_total:
                self.settle()
                return

            # the next examples
            epoch, i = divmod(self.n_updates, per_epoch)
            if epoch != epoch_before:
                order = order_of_epoch[epoch]
                epoch_before = epoch
            self.examples = order[i * size : (i + 1) * size]
            self.model.train()
            yield self.examples
            self.ranks.pause()

    def parts(self, examples: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the examples of an update that this process computes, n_batch at a time."""
        n_batch = self.plan.n_batch
        n_own = len(examples) // self.ranks.size
        own = examples[n_own * self.ranks.rank : n_own * (self.ranks.rank + 1)]
        for start in range(0, n_own, n_batch):
            # the processes exchange gradients only once per update, in the last part's backward
            exchange = nullcontext()
            is_last = start + n_batch >= n_own
            if self.ranks.size > 1 and not is_last:
                exchange = self.losses.no_sync()
            with exchange:
                yield own[start : start + n_batch]

    def weight(self, counts: np.ndarray, part: Sequence[int]) -> float:
        """Return how much a part of the update that is being made weighs among all its parts, 1.0 if all hold as much.

        So weighted, the parts' means, of all processes, make the mean over one large batch.

        Args:
            counts: of what the mean is over, rows or tokens, in each example of the data set.
        """
        n_parts = self.plan.accumulate * self.plan.n_processes
        return float(n_parts * counts[part].sum() / counts[self.examples].sum())

    def count(self, cost: Tensor, norm: Tensor, size: int = 1) -> None:
        """Count an update, and show the last one whose figures have arrived: on a CPU this one.

        Args:
            cost: before the update.
            norm: of the gradients.
            size: how much the cost weighs among those of the log.

        Raises FloatingPointError for an update that was not made, as one of these two is not finite.
        """
        # on a GPU the figures are on their way while the next updates are made
        self.n_updates += 1
        self.counted.append(Counted(self.examples, int(size), Figure(cost), Figure(norm)))
        self.settle(0 if is_known(cost) else AHEAD)
        self.bar.update()

    def settle(self, n_left: int = 0) -> None:
        """Read the figures of the updates counted, but for the last n_left. Raises as `count` does."""
        while len(self.counted) > n_left:
            update = self.counted.popleft()
            # this waits for the update
            cost = update.cost.read()
            norm = update.norm.read()
            for value, name in ((cost, "cost"), (norm, "norm of the gradients")):
                if not math.isfinite(value):
                    self.take_back(update)
                    raise FloatingPointError(f"the {name} is {value}")

            # the update was made
            self.costs.append(cost)
            self.sizes.append(update.size)
            rate = self.optimizer.param_groups[0]["rate"]
            self.bar.set_postfix({"cost": f"{cost:.3f}", "lr": f"{rate:.2e}"}, refresh=False)

    def take_back(self, update: Counted) -> None:
        """Count an update no longer, which was not made, nor those after it, which were not made either."""
        # one update that is not finite makes those after it not finite
        n_not_made = 1 + len(self.counted)
        self.counted.clear()
        self.n_updates -= n_not_made
        self.optimizer.take_back(n_not_made)
        self.examples = update.examples

    # --- the log -----------------------------------------------------------------------------------------------------

    def n_updates_logged(self) -> int:
        """Return the number of updates made at the last log, 0 if there is none."""
        return self.logs[-1]["n_updates"] if self.logs else 0

    def write_log(self, figures: dict[str, float], shown: str, best_by: str | None = None) -> None:
        """Write a line of the log and print it; keep the parameters if they are the best so far.

        Args:
            figures: of the evaluation.
            shown: what is printed.
            best_by: figure whose highest value decides; on a tie the earlier parameters are kept (TF:286-290).
        """
        # the figures, and the costs since the line before
        self.settle()
        line = {"n_epochs": self.n_updates // self.plan.per_epoch, "n_updates": self.n_updates, **figures}
        is_best = best_by is not None and all(line[best_by] > earlier[best_by] for earlier in self.logs)
        line["costs"] = [round(cost, 6) for cost in self.costs]
        self.logs.append(line)
        self.costs = []
        self.sizes = []

        # one process writes for all
        if self.log is not None:
            self.log.write(line)
            tqdm.write(f"{line['n_epochs']} {line['n_updates']} {shown}")
            if is_best:
                save_parameters(self.folder / "best_params", self.model, meaning(self.record))

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def is_checkpoint_due(self) -> bool:
        """Return whether to write one: at the end of each epoch, and every --checkpoint_every updates."""
        per_epoch = self.plan.per_epoch
        every = self.settings.checkpoint_every or per_epoch
        is_due = self.n_updates % per_epoch == 0 or self.n_updates % every == 0
        return is_due and not self.is_saved()

    def is_saved(self) -> bool:
        """Return whether the newest checkpoint holds this update and all logs."""
        return self.saved == (self.n_updates, len(self.logs))

    def save(self) -> None:
        """Write a checkpoint."""
        self.settle()
        # what __init__ takes from it
        state = {"settings": self.record, "logs": self.logs, "costs": self.costs, "sizes": self.sizes}
        save_checkpoint(self.folder, self.n_updates, self.model, self.optimizer, self.ranks, **state)
        self.saved = (self.n_updates, len(self.logs))


class Log:
    """The log of a run: a file of JSON lines, first the settings; and if asked for, TensorBoard's file beside it."""

    def __init__(self, path: Path, settings: dict, tensorboard: bool):
        self.file = LogFile(path, **settings)

        # those of an earlier run would be drawn over this one
        self.board = None
        if tensorboard:
            folder = path.with_suffix(".tensorboard")
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self.board = summary_writer()(str(folder))

    def write(self, line: dict) -> None:
        """Write a line; TensorBoard's file gets the cost of every update too."""
        self.file.log(**line)
        if self.board is None:
            return

        # the figures of this line
        for name, value in line.items():
            if name != "costs":
                self.board.add_scalar(name, value, line["n_updates"])

        # the costs of the updates up to it
        first = line["n_updates"] - len(line["costs"]) + 1
        for n_updates, cost in enumerate(line["costs"], first):
            self.board.add_scalar("cost", cost, n_updates)
        self.board.flush()

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def summary_writer() -> type:
    """Return torch's writer of files for TensorBoard. Raises InputError when that package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # here: it is optional, and slow to import
    except ImportError:
        raise InputError("--tensorboard needs a package that is not installed: pip install tensorboard") from None
    return SummaryWriter
