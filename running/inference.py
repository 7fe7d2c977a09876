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
    # the examples of this process, the longest first
    n_own = math.ceil(len(rows) / ranks.size)
    first = ranks.rank * n_own
    own = np.arange(first, min(first + n_own, len(rows)))
    lengths = rows.lengths()[own]
    by_length = own[np.argsort(-lengths, kind="stable")]

    # as many outputs as labels, or as the largest number of choices
    n_out = rows.n_choices() if rows.has_choices() else model.task_head.linear.out_features
    logits = torch.full((n_own, n_out), -math.inf)

    # each process takes the same number of turns, as they pause together
    with progress_bar(n_own, name, "examples", ranks) as bar:
        for start in range(0, n_own, n_batch):
            batch = by_length[start : start + n_batch]
            if len(batch) > 0:
                packing = rows.packed(batch, share_context=True).to(ranks.device)
                _, _, task_logits = model.forward_packed(packing)
                # back to the order of the rows
                places = torch.from_numpy(batch - first)
                logits[places, : task_logits.size(1)] = task_logits.float().cpu()
            bar.update(len(batch))
            ranks.pause()
    return ranks.gather(logits)[: len(rows)]


def answers(logits: Tensor, scores: tuple[float, float] | None) -> np.ndarray:
    """Return the likeliest label or choice of each example (N,); with the range of scores, the expected score."""
    if scores is None:
        return logits.argmax(1).numpy()

    # the classes are equally far apart from the lowest score to the highest
    low, high = scores
    classes = torch.linspace(low, high, logits.size(1), dtype=torch.float64)
    return (logits.double().softmax(1) @ classes).numpy()


def written_answers(found: np.ndarray, labels: Sequence[str] | None, scores: tuple[float, float] | None) -> list[str]:
    """Return what `answers` found as files have it: labels in their words, scores with three decimals.

    Choices beyond the labels, where examples have more of them than those of training, are numbers that count on.
    """
    if scores:
        return [f"{score:.3f}" for score in found]
    # choices are counted from 0 or from 1
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

    # the mean cost over all examples, and how good their answers are
    targets = rows.targets(np.arange(len(rows)))
    cost = task_losses(logits, targets).mean().item()
    found = answers(logits, rows.scores)
    return cost, {metric: METRICS[metric].of(rows.labels, found) * 100 for metric in metrics}
