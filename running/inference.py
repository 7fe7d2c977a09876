"""What a trained network is used for, without gradients: predictions and their cost."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from loss import task_losses
from model_pytorch import DoubleHeadModel
from reading.rows import Rows
from running.metrics import METRICS
from running.processes import Ranks


def progress_bar(total: int, name: str | None, unit: str, ranks: Ranks, done: int = 0) -> tqdm:
    """Return the first process's progress bar, which vanishes when full; without a name, one that is not shown."""
    return tqdm(
        total=total,
        initial=done,
        desc=f"{name or '':>10}",
        unit=f" {unit}",
        unit_scale=total >= 10**5,
        ncols=100,
        leave=False,
        disable=not ranks.is_first or name is None,
    )


@torch.no_grad()
def predict(
    model: DoubleHeadModel,
    rows: Rows,
    n_batch: int,
    ranks: Ranks,
    name: str | None = None,
) -> Tensor:
    """Return the task logits (N, n_out) of rows in evaluation mode, on the CPU, in float32.

    Where examples have different numbers of choices, those that an example lacks have the logit -infinity. The context
    shared by the choices of an example is computed once. Examples of similar length are computed together, the longest
    first: attention has few free slots, and where memory is too small, that is known at once. The examples are divided
    among the processes, and every process gets all logits. A signal may stop it after each batch.
    """
    model.eval()
    n_own = math.ceil(len(rows) / ranks.size)
    own = np.arange(ranks.rank * n_own, min((ranks.rank + 1) * n_own, len(rows)))
    by_length = own[np.argsort(-rows.lengths()[own], kind="stable")]
    n_out = rows.n_choices() if rows.has_choices() else model.task_head.linear.out_features
    logits = torch.full((n_own, n_out), -math.inf)
    with progress_bar(n_own, name, "examples", ranks) as bar:
        for start in range(0, n_own, n_batch):
            batch = by_length[start : start + n_batch]
            if len(batch) > 0:
                packing = rows.packed(batch, share_context=True).to(ranks.device)
                _, _, task_logits = model.forward_packed(packing)
                places = torch.from_numpy(batch - own[0])
                logits[places, : task_logits.size(1)] = task_logits.float().cpu()
            bar.update(len(batch))
            ranks.pause()
    return ranks.gather(logits)[: len(rows)]


def answers(logits: Tensor, scores: tuple[float, float] | None) -> np.ndarray:
    """Return the likeliest label or choice of each example (N,); with the range of scores, the expected score."""
    if scores is None:
        return logits.argmax(1).numpy()
    low, high = scores
    classes = torch.linspace(low, high, logits.size(1), dtype=torch.float64)
    return (logits.double().softmax(1) @ classes).numpy()


def written_answers(found: np.ndarray, labels: Sequence[str] | None, scores: tuple[float, float] | None) -> list[str]:
    """Return what `answers` found as files have it: labels in their words, scores with three decimals.

    Choices beyond the labels, where examples have more of them than those of training, are numbers that count on.
    """
    if scores:
        return [f"{score:.3f}" for score in found]
    first = 0 if labels[0] == "0" else 1
    return [labels[i] if i < len(labels) else str(i + first) for i in found]


def evaluate(
    model: DoubleHeadModel,
    rows: Rows,
    metrics: Sequence[str],
    n_batch: int,
    ranks: Ranks,
    name: str,
) -> tuple[float, dict[str, float]]:
    """Return the mean task cost (nats) and metrics, keys of METRICS (%), on rows with labels."""
    logits = predict(model, rows, n_batch, ranks, name)
    cost = task_losses(logits, rows.targets(np.arange(len(rows)))).mean().item()
    found = answers(logits, rows.scores)
    return cost, {metric: METRICS[metric].of(rows.labels, found) * 100 for metric in metrics}
