"""The two losses of fine-tuning: the task's, and the auxiliary one of the language model (paper, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_pytorch import DoubleHeadModel


def compute_losses(
    model: DoubleHeadModel, x: Tensor, m: Tensor, y: Tensor, lm_coef: float
) -> tuple[Tensor, Tensor | None]:
    """Return the task loss of each example (B,) and the language-model loss of each row (B*K,).

    The training loss is `task.mean() + lm_coef * lm.mean()` (TF:204-207). With lm_coef 0 the second is None and costs
    nothing.

    Args:
        x: token and position-row ids (B, K, T, 2), or (B, T, 2) for one text.
        m: 1 on real tokens, 0 on padding (B, K, T), or (B, T).
        y: what task_losses takes.
    """
    table = model.transformer.dropped_table()
    h = model.transformer(x, table, m)
    task = task_losses(model.task_head(h, x), y)
    if lm_coef == 0:
        return task, None
    return task, lm_losses(h, table, x, m)


def at_least_float32(t: Tensor) -> Tensor:
    """Return t in float32, or as it is where that is more: losses are never rounded to bfloat16."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def task_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of each example (B,).

    Args:
        logits: (B, K) over choices or classes, or the single one of a SimilarityHead (B, 1).
        y: the right choice or class (B,); or weights of the classes (B, n_class), for soft labels; for a single logit,
            how similar the texts are, from 0 to 1 (B,).
    """
    logits = at_least_float32(logits)
    if logits.size(1) == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits), reduction="none")
    return F.cross_entropy(logits, y if y.is_floating_point() else y.long(), reduction="none")


def lm_losses(h: Tensor, table: Tensor, x: Tensor, m: Tensor) -> Tensor:
    """Return for each row the mean cross entropy of its real next tokens (B*K,), 0 for a row without any (TF:176-178).

    Args:
        h: hidden states (B*K, T, C).
        table: the decoder (V, C), with the drop-out that the inputs had.
        x, m: as of compute_losses.
    """
    targets = x[..., 1:, 0].flatten(0, -2)  # (B*K, T-1)
    is_real = m[..., 1:].flatten(0, -2).bool()
    logits = at_least_float32(F.linear(h[:, :-1][is_real], table))  # no work at padding
    losses = torch.zeros_like(is_real, dtype=logits.dtype)
    losses[is_real] = F.cross_entropy(logits, targets[is_real].long(), reduction="none")
    return losses.sum(1) / is_real.sum(1).clamp(min=1)
