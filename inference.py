"""What a trained network is used for, without gradients: predictions and their cost."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from inputs import Rows
from loss import METRICS, task_losses
from model_pytorch import DoubleHeadModel
from processes import Ranks


def progress_bar(total: int, name: str, unit: str, ranks: Ranks, done: int = 0) -> tqdm:
    """Return the first process's progress bar, which vanishes when full."""
    return tqdm(
        total=total,
        initial=done,
        desc=f"{name:>10}",
        unit=f" {unit}",
        unit_scale=total >= 10**5,
        ncols=100,
        leave=False,
        disable=not ranks.is_first,
    )


@torch.no_grad()
def predict(
    model: DoubleHeadModel,
    rows: Rows,
    n_batch: int,
    ranks: Ranks,
    name: str,
    pause: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the task logits (N, n_out) of rows in evaluation mode, on the CPU, in float32.

    The context shared by the choices of an example is computed once. The examples are divided among the processes, and
    every process gets all logits. `pause` is called after each batch.
    """
    model.eval()
    n_own = math.ceil(len(rows) / ranks.size)
    own = np.arange(ranks.rank * n_own, min((ranks.rank + 1) * n_own, len(rows)))
    logits = None
    with progress_bar(n_own, name, "examples", ranks) as bar:
        for start in range(0, n_own, n_batch):
            batch = own[start : start + n_batch]
            if len(batch) or logits is None:  # a process without examples computes one: all gather the same shape
                packing, _ = rows.packed(batch if len(batch) else np.zeros(1, int), True, ranks.device)
                _, _, task_logits = model.forward_packed(packing)
                logits = torch.zeros(n_own, task_logits.size(1)) if logits is None else logits
                logits[start : start + len(batch)] = task_logits[: len(batch)].float().cpu()
            bar.update(len(batch))
            pause()
    return ranks.gather(logits)[: len(rows)]


def evaluate(
    model: DoubleHeadModel,
    rows: Rows,
    metric: str,
    n_batch: int,
    ranks: Ranks,
    name: str,
    pause: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Return the mean task cost (nats) and a metric, a key of METRICS (%), on rows with labels."""
    logits, labels = predict(model, rows, n_batch, ranks, name, pause), rows.labels
    cost = task_losses(logits, torch.from_numpy(labels)).mean().item()
    return cost, METRICS[metric].of(labels, logits.argmax(1).numpy()) * 100
