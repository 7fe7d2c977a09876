"""The two losses of fine-tuning, the task's and the auxiliary one of the language model (paper, 3.2).

Shape letters as in model_pytorch.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_pytorch import DoubleHeadModel, LMModel
from port import ClassificationLossCompute, MultipleChoiceLossCompute  # noqa: F401  public names of this file
from speed.kernels import at_least_float32, row_losses
from speed.packing import Packing


def compute_losses(
    model: DoubleHeadModel, x: Tensor, m: Tensor, y: Tensor, lm_coef: float
) -> tuple[Tensor, Tensor | None]:
    """Return the task loss of each example (B,) and the language-model loss of each row (B*K,).

    The training loss is `task.mean() + lm_coef * lm.mean()` (TF:204-207). With lm_coef 0 the second is None and is not
    computed.

    Args:
        x: token and position ids (B, K, T, 2), or (B, T, 2) for one row per example.
        m: 1 on real tokens, 0 on padding (B, K, T), or (B, T).
        y: what task_losses takes.
    """
    # the padding is not computed
    packing = Packing.of_padded(x, m, clf_token=model.task_head.clf_token)
    return packed_losses(model, packing, y, lm_coef)


def packed_losses(
    model: DoubleHeadModel, packing: Packing, y: Tensor, lm_coef: float, alike: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return what compute_losses does, of a packed batch; alike as of lm_losses."""
    h, table, task_logits = model.forward_packed(packing)
    task = task_losses(task_logits, y)
    lm = None if lm_coef == 0 else lm_losses(h, table, packing, alike)
    return task, lm


class PackedLosses(nn.Module):
    """packed_losses of a network as a module, as DistributedDataParallel needs.

    The loss made of these must weigh all rows' language-model losses alike.
    """

    def __init__(self, model: DoubleHeadModel, lm_coef: float):
        super().__init__()
        self.model = model
        self.lm_coef = lm_coef

    def forward(self, packing: Packing, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return packed_losses(self.model, packing, y, self.lm_coef, alike=True)


class TokenLoss(nn.Module):
    """The mean next-token cross entropy (nats) of all tokens of sequences, as a module for DistributedDataParallel."""

    def __init__(self, model: LMModel):
        super().__init__()
        self.model = model

    def forward(self, packing: Packing) -> Tensor:
        # all next tokens weigh alike, as those of one row do
        table = self.model.transformer.dropped_table()
        h = self.model.transformer(packing, table)
        states = h.index_select(0, packing.predictors)
        n = len(states)
        row = torch.arange(n, device=states.device).view(1, n)
        weights = torch.full_like(row, 1 / n, dtype=torch.promote_types(h.dtype, torch.float32))
        return row_losses(states, table, packing.targets, row, weights, alike=True).sum()


def sequence_losses(model: LMModel, packing: Packing) -> Tensor:
    """Return the mean next-token cross entropy (nats) of each sequence (B,)."""
    table = model.transformer.dropped_table()
    return lm_losses(model.transformer(packing, table), table, packing)


def token_mean(losses: Tensor, n_next: Tensor) -> Tensor:
    """Return the mean over all next tokens, given the mean of each sequence (B,) and its number of next tokens (B,)."""
    return (losses * n_next).sum() / n_next.sum()


def task_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of each example (B,).

    Args:
        logits: (B, K) over choices or classes, or the single one of a SimilarityHead (B, 1).
        y: the right choice or class (B,); or weights of the classes (B, n_class), for soft labels; for a single logit,
            how similar the texts are, from 0 to 1 (B,).
    """
    logits = at_least_float32(logits)

    # a single logit is of how similar the texts are
    if logits.size(1) == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits), reduction="none")

    # several are of classes; weights of classes stay as they are
    if not y.is_floating_point():
        y = y.long()
    return F.cross_entropy(logits, y, reduction="none")


def lm_losses(h: Tensor, table: Tensor, packing: Packing, alike: bool = False) -> Tensor:
    """Return for each row the mean cross entropy of its real next tokens (B*K,), 0 for a row without any (TF:176-178).

    Args:
        h: hidden states (N, C) of the packing's tokens.
        table: embedding matrix (V, C), with the dropout that the inputs had.
        alike: whether the caller promises that the loss weighs all rows alike; then backward waits for no GPU.
    """
    # each next token weighs 1 / the number of them in its row
    is_next = packing.predictions < len(packing.targets)  # (B*K, T-1)
    weights = at_least_float32(is_next.to(h.dtype)) / is_next.sum(1, keepdim=True).clamp(min=1)

    # each is predicted from the state before it
    states = h.index_select(0, packing.predictors)  # (M, C)
    return row_losses(states, table, packing.targets, packing.predictions, weights, alike)
