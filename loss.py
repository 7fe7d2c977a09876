"""The two losses of fine-tuning: the task's, and the auxiliary one of the language model (paper, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_pytorch import DoubleHeadModel, Packing


def compute_losses(
    model: DoubleHeadModel, x: Tensor, m: Tensor, y: Tensor, lm_coef: float, packing: Packing | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the task loss of each example (B,) and the language-model loss of each row (B*K,).

    The training loss is `task.mean() + lm_coef * lm.mean()` (TF:204-207). With lm_coef 0 the second is None and costs
    nothing.

    Args:
        x: token and position-row ids (B, K, T, 2), or (B, T, 2) for one text.
        m: 1 on real tokens, 0 on padding (B, K, T), or (B, T).
        y: what task_losses takes.
        packing: `Packing(x, m)`, where it was made before or shares the context.
    """
    packing = Packing(x, m) if packing is None else packing
    table = model.transformer.dropped_table()
    h = model.transformer.packed_states(packing, table)
    task = task_losses(model.task_head(packing.unpack(h), x), y)
    return task, None if lm_coef == 0 else lm_losses(h, table, packing)


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


def lm_losses(h: Tensor, table: Tensor, packing: Packing) -> Tensor:
    """Return for each row the mean cross entropy of its real next tokens (B*K,), 0 for a row without any (TF:176-178).

    Args:
        h: hidden states (N, C) of the packing's tokens.
        table: the decoder (V, C), with the drop-out that the inputs had.
    """
    is_next = packing.predictions < len(packing.targets)  # (B*K, T-1)
    shares = at_least_float32(is_next.to(h.dtype)) / is_next.sum(1, keepdim=True).clamp(min=1)
    states = h.index_select(0, packing.predictors)
    return _RowCrossEntropy.apply(states, table, packing.targets, packing.predictions, shares)


class _RowCrossEntropy(torch.autograd.Function):
    """Weighted sums of cross entropies over rows, with neither all logits (M, V) in memory nor any computed twice.

    The gradients are formed while a piece of the logits exists, for a loss that is the mean of the rows. For another
    function of the rows they are formed again.
    """

    PIECE = 1024  # states whose logits exist at a time
    # table rows of one matrix product on a CPU, where it stays in the cache: one with all rows takes 1.4 times as long
    WIDTH = 2048

    @staticmethod
    def forward(ctx, states: Tensor, table: Tensor, targets: Tensor, predictions: Tensor, shares: Tensor) -> Tensor:
        device = states.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        weights = _weights(predictions, shares, len(targets)) if any(ctx.needs_input_grad) else None
        losses, *gradients = _cross_entropies(states, table, targets, weights, ctx.dtype)
        ctx.save_for_backward(states, table, targets, predictions, shares, *gradients)
        return (F.pad(losses, (0, 1))[predictions] * shares).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_rows: Tensor) -> tuple[Tensor | None, ...]:
        states, table, targets, predictions, shares, of_states, of_table = ctx.saved_tensors
        if (of_rows == of_rows[0]).all():
            of_states, of_table = of_states.mul_(of_rows[0]), of_table.mul_(of_rows[0])  # in place: no more memory
        else:
            weights = _weights(predictions, shares * of_rows[:, None], len(targets))
            _, of_states, of_table = _cross_entropies(states, table, targets, weights, ctx.dtype)
        return of_states, of_table, None, None, None


def _weights(predictions: Tensor, shares: Tensor, n: int) -> Tensor:
    """Return how much each of n distinct predictions weighs in the sum of the rows (n,)."""
    return shares.new_zeros(n + 1).index_add_(0, predictions.flatten(), shares.flatten())[:n]


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def _cross_entropies(
    states: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the cross entropies (M,) and, given weights (M,), the gradients of their weighted sum.

    Matrix products are in `dtype`.
    """
    losses = states.new_empty(len(states), dtype=torch.promote_types(states.dtype, torch.float32))
    of_states, of_table = (None, None) if weights is None else (torch.zeros_like(states), torch.zeros_like(table))
    width = _RowCrossEntropy.WIDTH if table.device.type == "cpu" else len(table)
    blocks = table.to(dtype).split(width)  # (W, C) each
    for start in range(0, len(states), _RowCrossEntropy.PIECE):
        piece = slice(start, start + _RowCrossEntropy.PIECE)
        state, target = states[piece].to(dtype), targets[piece]
        places = [(target - i * width).clamp(0, len(block) - 1)[:, None] for i, block in enumerate(blocks)]  # (P, 1)
        is_here = [(target // width == i).to(losses.dtype)[:, None] for i in range(len(blocks))]
        parts, tops, sums, logit = [], [], [], 0.0
        for block, place, here in zip(blocks, places, is_here, strict=True):
            part = at_least_float32(state @ block.T)  # (P, W) logits
            logit = logit + part.gather(1, place) * here
            tops.append(part.amax(1, keepdim=True))
            parts.append(part.sub_(tops[-1]).exp_())
            sums.append(parts[-1].sum(1, keepdim=True))
        tops, sums = torch.cat(tops, 1), torch.cat(sums, 1)  # (P, number of blocks)
        log_z = (tops + sums.log()).logsumexp(1, keepdim=True)
        losses[piece] = (log_z - logit).squeeze(1)
        if weights is None:
            continue
        weight = weights[piece, None]
        scales = weight * (tops - log_z).exp()
        for i, (part, block) in enumerate(zip(parts, blocks, strict=True)):
            of_logits = part.mul_(scales[:, i : i + 1]).scatter_add_(1, places[i], -weight * is_here[i]).to(dtype)
            of_states[piece] += of_logits @ block
            of_table[i * width : (i + 1) * width] += of_logits.T @ state
    return losses, of_states, of_table
