"""Hand-written code for speed and memory, each function directly below the plain PyTorch that it equals.

`plain_dropout`, `plain_activated_linear`, `plain_attention` and `plain_row_losses` are the definitions. The network
calls their namesakes without `plain_`; tests/test_kernels.py compares values and gradients in float64.
Shape letters as in model_pytorch.py; also N tokens, M predictions, S sequences of L slots (packing.py).
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speed.device import is_known, is_recorded

# --- dropout ---------------------------------------------------------------------------------------------------------


def plain_dropout(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return x where mask is 1, rescaled by 1 / (1 - p), and 0 where mask is 0."""
    return x * mask / (1 - p)


class _Dropout(torch.autograd.Function):
    """Zero each element with probability n_dropped / 2**16 and rescale the rest. The mask has one byte per element."""

    CHUNK = 2**20  # elements, so that a chunk stays in the cache; a multiple of 4, as 64 random bits serve 4 elements

    @staticmethod
    def forward(ctx, x: Tensor, n_dropped: int) -> Tensor:
        ctx.scale = 2**16 / (2**16 - n_dropped)
        out, mask = _Dropout.sample(x, n_dropped, ctx.scale)
        ctx.save_for_backward(mask)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Dropout.apply_mask(grad, *ctx.saved_tensors, ctx.scale), None

    @staticmethod
    def sample(x: Tensor, n_dropped: int, scale: float | None = None) -> tuple[Tensor, Tensor]:
        """Return x where a new mask is 1, rescaled if asked, and 0 elsewhere; and the mask. Both are of x's shape."""
        out = torch.empty(x.shape, dtype=x.dtype)
        mask = torch.empty(x.shape, dtype=torch.int8)
        for out_chunk, mask_chunk, x_chunk in _Dropout.chunks(out, mask, x):
            bits = _Dropout.random_bits(len(x_chunk))
            is_kept = bits.ge_(n_dropped - 2**15)
            mask_chunk.copy_(is_kept)
            _Dropout.mask_chunk(out_chunk, mask_chunk, x_chunk, scale)
        return out, mask

    @staticmethod
    def random_bits(n: int) -> Tensor:
        """Return n random numbers of 16 bits, from -2**15 up."""
        # SFC64, seeded by torch: 1.5 times faster than torch's own
        seed = int(torch.randint(2**63 - 1, ()))
        n_words = math.ceil(n / 4)
        words = np.random.SFC64(seed).random_raw(n_words)
        bits = torch.from_numpy(words.view(np.int16))
        return bits[:n]

    @staticmethod
    def apply_mask(x: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
        """Return x under the mask of an earlier sample."""
        out = torch.empty(x.shape, dtype=x.dtype)
        for out_chunk, mask_chunk, x_chunk in _Dropout.chunks(out, mask, x):
            _Dropout.mask_chunk(out_chunk, mask_chunk, x_chunk, scale)
        return out

    @staticmethod
    def mask_chunk(out: Tensor, mask: Tensor, x: Tensor, scale: float | None) -> None:
        """Write x under a mask to out, rescaled if asked."""
        out.copy_(mask)
        if scale is None:
            out.mul_(x)
        else:
            torch.addcmul(out.new_zeros(()), out, x, value=scale, out=out)  # in one pass

    @staticmethod
    def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Return the elements of tensors of one size, chunk by chunk."""
        chunks = [t.reshape(-1).split(_Dropout.CHUNK) for t in tensors]
        return zip(*chunks, strict=True)


class Dropout(nn.Dropout):
    """nn.Dropout, 2 to 4 times faster on a CPU, where p is rounded to a multiple of 1 / 65536."""

    # buys 3 % of an update in fp32 and 9 % in bf16 (one core of an AMD EPYC, batch 8), and 1.0 of 8.2 GiB in fp32 and
    # 0.4 of 6.3 GiB in bf16 at batch 64

    def forward(self, x: Tensor) -> Tensor:
        n_dropped = round(self.p * 2**16)
        if not self.training or n_dropped in (0, 2**16) or x.device.type != "cpu":
            return super().forward(x)
        return _Dropout.apply(x, n_dropped)


# --- matrix products -------------------------------------------------------------------------------------------------


def plain_product(a: Tensor, b: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Return a @ b + bias: (N, in), (in, out), (out,) -> (N, out)."""
    return a @ b + bias


LARGE = 256  # rows and columns of the matrices that oneDNN multiplies; smaller ones are not worth the change of layout


def uses_onednn(a: Tensor, b: Tensor) -> bool:
    """Return whether `product` asks oneDNN: for large float32 matrices on a CPU with AVX512."""
    if is_recorded() or a.device.type != "cpu":
        return False
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        return False
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return min(*a.shape, b.size(1)) >= LARGE


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return plain_product, of large float32 matrices by oneDNN: torch's own is MKL's, without AVX512 on AMD's CPUs."""
    # buys 40 % of an update of 4 x 512 tokens in fp32 (one core of an AMD EPYC); bf16 products are oneDNN's in any case
    if uses_onednn(a, b):
        if bias is not None:
            bias = bias.to_mkldnn()
        return F.linear(a.to_mkldnn(), b.T.to_mkldnn(), bias).to_dense()
    if bias is None:
        return a @ b
    return torch.addmm(bias, a, b)


# --- activation and linear map ---------------------------------------------------------------------------------------


def plain_activated_linear(u: Tensor, w: Tensor, b: Tensor, act: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return act(u) @ w + b, or u @ w + b: (N, in), (in, out), (out,) -> (N, out)."""
    if act is not None:
        u = act(u)
    return torch.addmm(b, u, w)


class _ActivatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, w: Tensor, b: Tensor, act: Callable[[Tensor], Tensor] | None) -> Tensor:
        ctx.act = act
        ctx.save_for_backward(u, w)
        if act is not None:
            u = act(u)
        return product(u, w, b)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, w = ctx.saved_tensors
        grad_u = product(grad, w.T)
        if ctx.act is not None:
            # the activation once more, and through it
            u = u.detach().requires_grad_()
            with torch.enable_grad():
                activated = ctx.act(u)
            (grad_u,) = torch.autograd.grad(activated, u, grad_u)
            u = activated.detach()
        grad_w = product(u.T, grad)
        grad_b = grad.sum(0)
        return grad_u, grad_w, grad_b, None


def activated_linear(u: Tensor, w: Tensor, b: Tensor, act: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return plain_activated_linear; backward recomputes act(u) instead of storing it."""
    # buys 0.9 of 8.1 GiB at batch 64 in fp32, where an update takes 1 % longer (one core of an AMD EPYC, batch 8)
    is_autocast = torch.is_autocast_enabled(u.device.type)  # then storing act(u) takes only 16 bits
    if is_autocast or is_recorded() or u.dtype != w.dtype:
        return plain_activated_linear(u, w, b, act)

    # it is of use for oneDNN's product, and where act(u) would be stored
    if uses_onednn(u, w) or (act is not None and torch.is_grad_enabled()):
        return _ActivatedLinear.apply(u, w, b, act)
    return plain_activated_linear(u, w, b, act)


# --- attention -------------------------------------------------------------------------------------------------------


def causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """Return a mask (L, L or more), True where a slot of q attends to one of k; the last slots of both are the same."""
    n_queries = q.size(2)
    n_keys = k.size(2)
    everything = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device)
    return everything.tril(n_keys - n_queries)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pdrop: float) -> Tensor:
    """Return softmax(q k' / sqrt(D)) v (H, S, L, D), with dropout of the attention weights.

    Args:
        q: of L slots, the last ones of those that k and v have (H, S, L or more, D).
        mask: (S, L, L), True where a slot attends to another; None: causal.
        pdrop: probability that an attention weight is dropped.
    """
    is_whole = bool(q.size(2) == k.size(2))  # no bool by itself while the network is traced or exported
    if mask is None and not is_whole and q.size(2) > 1:
        mask = causal_mask(q, k)
    is_causal = mask is None and is_whole  # a single query, the last slot, attends to all
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=pdrop, is_causal=is_causal)


class _Attention(torch.autograd.Function):
    """Written out for dropout; a block of queries of a causal attention works on the keys up to its own last one."""

    BLOCK = 256  # queries

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, n_dropped: int, block: int) -> Tensor:
        ctx.scale = 2**16 / (2**16 - n_dropped)
        ctx.block = block
        q = q / math.sqrt(q.size(-1))
        out = q.new_empty(*q.shape[:-1], v.size(-1))
        kept = []
        for rows, seen in _Attention.blocks(q, k, block):
            # scores of the slots that a query attends to; a causal block attends to all slots before its own
            queries = q[:, :, rows]
            keys = k[:, :, seen]
            scores = queries @ keys.transpose(-2, -1)  # (H, S, block, seen)
            minus_inf = _Attention.barred(queries, mask)
            scores[..., -minus_inf.size(-1) :] += minus_inf

            # dropout of the weights; their rescaling is left to the smaller output
            weights = scores.softmax(-1)
            dropped, dropout_mask = _Dropout.sample(weights, n_dropped)
            out[:, :, rows] = dropped @ v[:, :, seen]
            kept += [weights, dropped, dropout_mask]
        ctx.save_for_backward(q, k, v, *kept)
        return out.mul_(ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad = grad * ctx.scale
        grad_q = torch.empty_like(q)
        grad_k_t = grad_v = None
        for rows, seen in reversed(_Attention.blocks(q, k, ctx.block)):
            # what forward kept last comes first
            dropout_mask = kept.pop()
            dropped = kept.pop()
            weights = kept.pop()

            # through the dropout and the softmax
            grad_out = grad[:, :, rows]
            grad_dropped = grad_out @ v[:, :, seen].transpose(-2, -1)
            grad_weights = _Dropout.apply_mask(grad_dropped, dropout_mask)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)

            # to queries, keys and values; the last block, the first one here, attends to all of k and v
            grad_q[:, :, rows] = grad_scores @ k[:, :, seen]
            of_k_t = q[:, :, rows].transpose(-2, -1) @ grad_scores  # (H, S, D, seen)
            of_v = dropped.transpose(-2, -1) @ grad_out  # (H, S, seen, D)
            if grad_v is None:
                grad_k_t = of_k_t
                grad_v = of_v
            else:
                grad_k_t[..., seen] += of_k_t
                grad_v[:, :, seen] += of_v
        grad_q.div_(math.sqrt(q.size(-1)))
        return grad_q, grad_k_t.transpose(-2, -1), grad_v, None, None, None

    @staticmethod
    def barred(queries: Tensor, mask: Tensor | None) -> Tensor:
        """Return what is added to scores: minus infinity where a slot does not attend to another, and 0 elsewhere.

        (S, L, L) as the mask; without one of the queries' own slots (L, L), where those before attend.
        """
        if mask is None:
            n = queries.size(2)
            return queries.new_full((n, n), -math.inf).triu_(1)
        return queries.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)

    @staticmethod
    def blocks(q: Tensor, k: Tensor, block: int) -> list[tuple[slice, slice]]:
        """Return the slots of q in each block of queries, and those of k that they can attend to."""
        n_before = k.size(2) - q.size(2)  # slots of k before the first of q
        found = []
        for start in range(0, q.size(2), block):
            end = min(start + block, q.size(2))
            found.append((slice(start, end), slice(n_before + end)))
        return found


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: nn.Dropout, is_full: bool = False
) -> Tensor:
    """Return plain_attention; written out for dropout on a CPU, as torch samples its masks slowly there."""
    # buys 7 % of an update in bf16, nothing in fp32 (one core of an AMD EPYC, batch 8), and 0.7 of 7.9 GiB in fp32 and
    # 1.3 of 7.2 GiB in bf16 at batch 64; blocks of 128 queries bought 0.4 of 5.1 GiB in fp32 at 4 x 512 tokens, and
    # those of 256 two thirds of that (by count) with a third fewer steps for threads to wait for each other
    pdrop = dropout.p if dropout.training else 0.0
    n_dropped = round(pdrop * 2**16)
    if n_dropped in (0, 2**16) or q.device.type != "cpu":
        return plain_attention(q, k, v, mask, pdrop)
    block = _Attention.BLOCK if is_full and mask is None else q.size(2)
    return _Attention.apply(q, k, v, mask, n_dropped, block)


# --- cross entropy over the vocabulary -------------------------------------------------------------------------------


def at_least_float32(t: Tensor) -> Tensor:
    """Return t in float32, or unchanged where its dtype is wider: losses are never rounded to bfloat16."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def plain_row_losses(states: Tensor, table: Tensor, targets: Tensor, predictions: Tensor, weights: Tensor) -> Tensor:
    """Return for each row the weighted sum of its predictions' cross entropies (B*K,).

    Args:
        states: (M, C), one per prediction.
        table: embedding matrix (V, C), tied: logits are states @ table.T.
        targets: the right next tokens (M,).
        predictions: index of the prediction at each position of a row (B*K, T-1); M where there is none.
        weights: of the positions (B*K, T-1), 0 where there is no prediction.
    """
    logits = F.linear(states, table)
    losses = F.cross_entropy(at_least_float32(logits), targets, reduction="none")  # (M,)
    return _sums(losses, predictions, weights)


class _RowLosses(torch.autograd.Function):
    """Chunked: never holds the full (M, V) logits.

    The gradient is computed in the forward pass, while a chunk's logits exist, assuming that the loss weighs all rows
    alike. If it does not, backward recomputes logits and gradient; but where that was promised and to look would mean
    to wait for a GPU, the gradient is NaN then.
    """

    CHUNK = 1024  # states whose logits are in memory at a time
    WIDTH = 2048  # table entries per matrix product on a CPU, so that it stays in the cache: 1.4 times faster

    @staticmethod
    def forward(
        ctx, states: Tensor, table: Tensor, targets: Tensor, predictions: Tensor, weights: Tensor, alike: bool
    ) -> Tensor:
        ctx.alike = alike
        device = states.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        of_each = None
        if any(ctx.needs_input_grad):
            of_each = _prediction_weights(predictions, weights, len(targets))
        losses, *gradients = _cross_entropies(states, table, targets, of_each, ctx.dtype)
        ctx.save_for_backward(states, table, targets, predictions, weights, *gradients)
        return _sums(losses, predictions, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        states, table, targets, predictions, weights, grad_states, grad_table = ctx.saved_tensors
        factor = grad_rows[0]
        is_alike = (grad_rows == factor).all()
        is_promised = ctx.alike and not is_known(is_alike)
        if is_promised:
            factor = torch.where(is_alike, factor, math.nan)
        if is_promised or is_alike:
            # in place, to use no further memory
            grad_states = grad_states.mul_(factor)
            grad_table = grad_table.mul_(factor)
        else:
            of_each = _prediction_weights(predictions, weights * grad_rows[:, None], len(targets))
            _, grad_states, grad_table = _cross_entropies(states, table, targets, of_each, ctx.dtype)
        return grad_states, grad_table, None, None, None, None


def row_losses(
    states: Tensor, table: Tensor, targets: Tensor, predictions: Tensor, weights: Tensor, alike: bool = False
) -> Tensor:
    """Return plain_row_losses without ever holding all logits (M, V).

    Args:
        alike: whether the caller promises that the loss weighs all rows alike; then backward waits for no GPU.
    """
    # buys 3.7 of 10.9 GiB in fp32 and 3.2 of 9.1 GiB in bf16 at batch 64; no time (one core of an AMD EPYC, batch 8)
    return _RowLosses.apply(states, table, targets, predictions, weights, alike)


def _sums(losses: Tensor, predictions: Tensor, weights: Tensor) -> Tensor:
    """Return for each row the weighted sum of its predictions' losses (B*K,); that of no prediction is 0."""
    of_positions = F.pad(losses, (0, 1))[predictions]  # (B*K, T-1)
    return (of_positions * weights).sum(1)


def _prediction_weights(predictions: Tensor, weights: Tensor, n: int) -> Tensor:
    """Return the weight of each of n distinct predictions in the sum over all rows (n,)."""
    of_each = weights.new_zeros(n + 1)  # the last is of no prediction
    of_each.index_add_(0, predictions.flatten(), weights.flatten())
    return of_each[:n]


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def _cross_entropies(
    states: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the cross entropies (M,) and, given weights (M,), the gradients of their weighted sum.

    Matrix products are in `dtype`.
    """
    losses = states.new_empty(len(states), dtype=torch.promote_types(states.dtype, torch.float32))
    grad_states = grad_table = None
    if weights is not None:
        grad_states = torch.zeros_like(states)
        grad_table = torch.zeros_like(table)
    width = _RowLosses.WIDTH if table.device.type == "cpu" else len(table)
    blocks = table.to(dtype).split(width)  # (W, C) each
    for start in range(0, len(states), _RowLosses.CHUNK):
        rows = slice(start, start + _RowLosses.CHUNK)
        chunk = _Chunk(states[rows].to(dtype), targets[rows], blocks, losses.dtype)
        losses[rows] = chunk.losses()
        if weights is not None:
            chunk.add_gradients(weights[rows, None], grad_states[rows], grad_table)
        del chunk  # before the next one is made: its softmaxes are the largest tensors here
    return losses, grad_states, grad_table


class _Chunk:
    """The softmax of P states over the V entries of the table, which comes in blocks of W entries.

    For each block: the softmax within the block, the logarithm of its normaliser, and where the targets stand in it.
    """

    def __init__(self, states: Tensor, targets: Tensor, blocks: tuple[Tensor, ...], dtype: torch.dtype):
        self.states = states  # (P, C)
        self.blocks = blocks  # (W, C) each
        self.softmaxes = []
        self.columns = []
        self.is_here = []
        self.target_logit = 0.0  # (P, 1)
        log_zs = []
        width = len(blocks[0])
        for i, block in enumerate(blocks):
            # the softmax within the block, whose largest probability is exp(0) / sum
            logits = product(states, block.T)  # (P, W)
            softmax = logits.softmax(1, dtype=dtype)
            largest = softmax.amax(1, keepdim=True)
            log_zs.append(logits.amax(1, keepdim=True) - largest.log())

            # where the targets stand, if they are of this block, and their logits
            column = (targets - i * width).clamp(0, len(block) - 1)[:, None]  # (P, 1)
            is_here = (targets // width == i).to(dtype)[:, None]
            logit = at_least_float32(logits.gather(1, column))
            self.target_logit = self.target_logit + logit * is_here
            self.softmaxes.append(softmax)
            self.columns.append(column)
            self.is_here.append(is_here)
        self.log_zs = torch.cat(log_zs, 1)  # (P, number of blocks)
        self.log_z = self.log_zs.logsumexp(1, keepdim=True)

    def losses(self) -> Tensor:
        """Return the cross entropies (P,)."""
        return (self.log_z - self.target_logit).squeeze(1)

    def add_gradients(self, weights: Tensor, grad_states: Tensor, grad_table: Tensor) -> None:
        """Add the gradients of the sum of the cross entropies, with weights (P, 1); uses up the softmaxes."""
        # gradient of the logits: weight * (softmax - one-hot target)
        scales = weights * (self.log_zs - self.log_z).exp()
        first = 0
        for i, block in enumerate(self.blocks):
            grad_logits = self.softmaxes[i].mul_(scales[:, i : i + 1])
            grad_logits.scatter_add_(1, self.columns[i], -weights * self.is_here[i])

            # to the states and the entries of the block
            grad_logits = grad_logits.to(block.dtype)
            end = first + len(block)
            grad_states += product(grad_logits, block)
            grad_table[first:end] += product(grad_logits.T, self.states)
            first = end
