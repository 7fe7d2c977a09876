"""The network of "Improving Language Understanding by Generative Pre-Training" (2018), its heads and its weights.

Shape letters: B examples, K choices per example, T tokens, C features (n_embd), H heads, D = C / H,
V rows of the joint table (tokens, then special tokens, then positions). "TF" in comments is the authors' train.py at
commit a69b5c4; "FIDELITY n" is row n of FIDELITY.md.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils import InputError, find, read_json, replacing, write_json

ACTIVATIONS = {
    "relu": F.relu,
    "swish": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),  # TF:22 (FIDELITY 34)
}


@dataclass(frozen=True)
class Config:
    """Settings of the network; the defaults are the paper's."""

    n_embd: int = 768  # features
    n_head: int = 12  # attention heads; divides n_embd
    n_layer: int = 12  # blocks
    embd_pdrop: float = 0.1  # drop-out of the joint table
    attn_pdrop: float = 0.1  # drop-out of the attention weights
    resid_pdrop: float = 0.1  # drop-out of what attention and MLP add
    clf_pdrop: float = 0.1  # drop-out of the state the task head reads
    afn: str = "gelu"  # activation of the MLP: gelu, relu or swish


DEFAULT_CONFIG = Config()


# --- the transformer -------------------------------------------------------------------------------------------------


class _DropOut(torch.autograd.Function):
    """Drop n_dropped of 2**16 elements, for which 16 random bits each are drawn, and scale the others.

    One byte an element is kept. Large tensors are worked on in pieces that stay in the cache.
    """

    PIECE = 2**20  # elements; a multiple of 4

    @staticmethod
    def forward(ctx, x: Tensor, n_dropped: int) -> Tensor:
        out, mask = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=torch.int8)
        ctx.scale = 2**16 / (2**16 - n_dropped)
        for of_out, of_mask, of_x in _DropOut.pieces(out, mask, x):
            seed = int(torch.randint(2**63 - 1, ()))  # torch's own generator takes half as long again
            bits = torch.from_numpy(np.random.SFC64(seed).random_raw(math.ceil(len(of_x) / 4)).view(np.int16))
            of_mask.copy_(bits[: len(of_x)].ge_(n_dropped - 2**15))
            of_out.copy_(of_mask).mul_(of_x).mul_(ctx.scale)
        ctx.save_for_backward(mask)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_x, (mask,) = torch.empty(grad.shape, dtype=grad.dtype), ctx.saved_tensors
        for of_piece, of_mask, of_out in _DropOut.pieces(of_x, mask, grad):
            of_piece.copy_(of_mask).mul_(of_out).mul_(ctx.scale)
        return of_x, None

    @staticmethod
    def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Return the elements of tensors of one size, piece by piece."""
        return zip(*(t.reshape(-1).split(_DropOut.PIECE) for t in tensors), strict=True)


class Dropout(nn.Dropout):
    """Drop-out, on a CPU in a fifth of the time that torch takes."""

    def forward(self, x: Tensor) -> Tensor:
        n_dropped = round(self.p * 2**16)  # of 2**16 equally likely values: p to 1e-5
        if not self.training or n_dropped in (0, 2**16) or x.device.type != "cpu":
            return super().forward(x)
        return _DropOut.apply(x, n_dropped)


class LayerNorm(nn.Module):
    """Normalise the features to mean 0 and variance 1, then scale by g and shift by b."""

    def __init__(self, n_state: int, e: float = 1e-5):
        super().__init__()
        self.g = nn.Parameter(torch.ones(n_state))
        self.b = nn.Parameter(torch.zeros(n_state))
        self.e = e  # inside the root: TF:47

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.g.shape, self.g, self.b, self.e)


class Conv1D(nn.Module):
    """A linear map (N, in) -> (N, out), its weights [in, out] as the authors' one-wide convolution (TF:106-115)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.w = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.b = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, x, self.w)


class Packing:
    """Which tokens of a batch are computed, and which of them see each other.

    All but attention works on the N tokens alone that are neither padding nor computed before, one behind the other.
    In attention they stand in rows of equal length. Made on the CPU and then moved, it costs a GPU no wait.

    Args:
        x: token and position-row ids (B, K, T, 2), or (B, T, 2) for one text.
        m: 1 on real tokens, 0 on the padding behind each row (B, K, T), or (B, T); None: all are real.
        share_context: compute once what the K choices of an example begin with; each then sees it and itself.
    """

    MULTIPLE = 4  # of which N and M are filled up: a CPU's products of bfloat16 are up to a sixth faster then

    def __init__(self, x: Tensor, m: Tensor | None = None, share_context: bool = False):
        n_choices = x.size(1) if share_context and x.dim() == 4 else 1
        ids = x.reshape(-1, n_choices, *x.shape[-2:])  # (R, K, T, 2): R rows of attention
        real = torch.ones(ids.shape[:3]) if m is None else m.reshape(ids.shape[:3])
        real = real.to(ids.device).bool()
        self.shape = (ids.size(0) * n_choices, ids.size(2))  # (B*K, T)

        # a row of attention: the common beginning, then what is each choice's own
        lengths = real.sum(2)  # (R, K)
        common = ((ids == ids[:, :1]).all(3) & real).all(1).cumprod(1).sum(1)  # (R,)
        common = common.clamp(max=lengths.amin(1) - 1) if n_choices > 1 else torch.zeros_like(common)
        own = lengths - common[:, None]
        t = torch.arange(ids.size(2), device=ids.device)
        is_common = (t < common[:, None])[:, None]  # (R, 1, T)
        place = t + (own.cumsum(1) - own)[:, :, None] * ~is_common  # (R, K, T)
        self.rows = (ids.size(0), int((common + own.sum(1)).max()))  # (R, L)
        choice = torch.arange(n_choices, device=ids.device)[:, None]
        computed = real & ~(is_common & (choice > 0))
        place = place + torch.arange(ids.size(0), device=ids.device)[:, None, None] * self.rows[1]

        # token n of N: its ids, its place in the rows of attention (R*L)
        tokens, places = ids[computed], place[computed]  # (N, 2), (N,)
        is_free = torch.ones(self.rows[0] * self.rows[1], dtype=torch.bool, device=ids.device)
        is_free[places] = False
        self.is_dense = len(places) == len(is_free)
        fill = is_free.nonzero()[: -len(places) % Packing.MULTIPLE, 0]  # tokens of no use, seen by none
        self.tokens, self.places = F.pad(tokens, (0, 0, 0, len(fill))), torch.cat([places, fill])
        n_tokens = len(self.places)
        number = torch.full_like(is_free, n_tokens, dtype=torch.long)
        number[self.places] = torch.arange(n_tokens, device=ids.device)
        source = torch.where(real, number[place * real], n_tokens)  # (R, K, T): the token there, N on padding
        self.source = source.view(self.shape)
        self.mask = None  # (R, L, L) what attends to what, where it is more than causality
        if n_choices > 1:
            speaker = torch.full_like(number, n_choices)
            speaker[places] = torch.where(is_common, -1, choice)[computed]
            speaker = speaker.view(self.rows)
            seen = (speaker[:, None, :] == -1) | (speaker[:, None, :] == speaker[:, :, None])
            self.mask = seen.tril()

        # the language model: from which token each distinct next token is predicted, and which of them a row counts
        is_next = computed[:, :, 1:]
        n_next = int(is_next.sum())
        fill = 0, -n_next % Packing.MULTIPLE
        self.predictors = F.pad(source[:, :, :-1][is_next], fill)  # (M,)
        self.targets = F.pad(ids[:, :, 1:, 0][is_next].long(), fill)  # (M,)
        number = torch.full((n_tokens + 1,), len(self.targets), device=ids.device)
        number[source[:, :, 1:][is_next]] = torch.arange(n_next, device=ids.device)
        self.predictions = number[self.source[:, 1:]]  # (B*K, T-1), M where there is none

    def to(self, device: torch.device) -> "Packing":
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device, non_blocking=True))
        return self

    def spread(self, t: Tensor) -> Tensor:
        """Return what belongs to the N tokens (N, ..., D) in the rows of attention (..., R, L, D), 0 elsewhere."""
        if self.is_dense:
            return t.movedim(0, -2).unflatten(-2, self.rows)
        spread = t.new_zeros(*t.shape[1:-1], self.rows[0] * self.rows[1], t.size(-1))
        spread.movedim(-2, 0).index_put_((self.places,), t)  # keeps, unlike index_copy, nothing of t
        return spread.unflatten(-2, self.rows)

    def gather(self, t: Tensor) -> Tensor:
        """Return what the rows of attention (..., R, L, D) hold for the N tokens (N, ..., D)."""
        t = t.flatten(-3, -2).movedim(-2, 0)
        return t if self.is_dense else t.index_select(0, self.places)

    def unpack(self, t: Tensor) -> Tensor:
        """Return what belongs to the N tokens (N, ...) for each token of the batch (B*K, T, ...), 0 on padding."""
        if self.is_dense and self.mask is None and self.rows == self.shape:
            return t.unflatten(0, self.shape)
        return F.pad(t, (0, 0) * (t.dim() - 1) + (0, 1)).index_select(0, self.source.flatten()).unflatten(0, self.shape)


class Attention(nn.Module):
    """Causal multi-head self-attention, queries, keys and values from one product."""

    def __init__(self, cfg):
        super().__init__()
        if cfg.n_embd % cfg.n_head:
            raise ValueError(f"n_embd {cfg.n_embd} must be a multiple of n_head {cfg.n_head}")
        self.n_head = cfg.n_head
        self.c_attn = Conv1D(3 * cfg.n_embd, cfg.n_embd)
        self.c_proj = Conv1D(cfg.n_embd, cfg.n_embd)
        self.attn_dropout = Dropout(cfg.attn_pdrop)
        self.resid_dropout = Dropout(cfg.resid_pdrop)
        self.register_load_state_dict_pre_hook(_drop_mask_buffer)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        q, k, v = packing.spread(self.c_attn(x).unflatten(1, (3, self.n_head, -1)))  # (H, R, L, D)
        pdrop, mask = self.attn_dropout.p if self.training else 0.0, packing.mask
        if pdrop and x.device.type == "cpu":  # torch's own function draws its masks slowly there
            mask = torch.ones(q.size(2), q.size(2), dtype=torch.bool).tril() if mask is None else mask
            scores = (q @ k.transpose(-2, -1)).div_(math.sqrt(q.size(-1)))  # (H, R, L, L)
            scores = scores.add_(torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -math.inf))
            a = self.attn_dropout(scores.softmax(-1)) @ v
        else:
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=pdrop, is_causal=mask is None)
        return self.resid_dropout(self.c_proj(packing.gather(a).flatten(1)))


def _drop_mask_buffer(module, state_dict, prefix, *_):
    state_dict.pop(prefix + "b", None)  # files of the early PyTorch port carry the causal mask


class _ActivatedLinear(torch.autograd.Function):
    """act(u) @ w + b, of one dtype, that keeps u alone for the gradient and makes act(u) again.

    That is a sixth of a block's memory.
    """

    @staticmethod
    def forward(ctx, u: Tensor, w: Tensor, b: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.act = act
        ctx.save_for_backward(u, w)
        return torch.addmm(b, act(u), w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, w = ctx.saved_tensors
        with torch.enable_grad():
            a = ctx.act(u := u.detach().requires_grad_())
        (of_u,) = torch.autograd.grad(a, u, grad @ w.T)
        return of_u, a.detach().T @ grad, grad.sum(0), None


class MLP(nn.Module):
    """Two linear maps with an activation between them, four times as wide inside."""

    def __init__(self, cfg):
        super().__init__()
        self.c_fc = Conv1D(4 * cfg.n_embd, cfg.n_embd)
        self.c_proj = Conv1D(cfg.n_embd, 4 * cfg.n_embd)
        self.act = ACTIVATIONS[cfg.afn]
        self.dropout = Dropout(cfg.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        u = self.c_fc(x)
        if u.dtype != self.c_proj.w.dtype:  # autocast: half as large, and act(u) is kept
            return self.dropout(self.c_proj(self.act(u)))
        return self.dropout(_ActivatedLinear.apply(u, self.c_proj.w, self.c_proj.b, self.act))


class Block(nn.Module):
    """Attention and MLP, each added to its input and then normalised (post-norm, TF:140-147)."""

    def __init__(self, cfg):
        super().__init__()
        # declared in the order of the authors' weight files: load_openai_pretrained_model relies on it
        self.attn = Attention(cfg)
        self.ln_1 = LayerNorm(cfg.n_embd)
        self.mlp = MLP(cfg)
        self.ln_2 = LayerNorm(cfg.n_embd)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        n = self.ln_1(x + self.attn(x, packing))
        return self.ln_2(n + self.mlp(n))


class TransformerModel(nn.Module):
    """Token and position ids -> hidden states.

    Args:
        cfg: anything with the attributes of `Config`.
        vocab: V, rows of the joint table: tokens, special tokens and positions together.
        n_ctx: how many of those rows are positions, the longest input.
    """

    def __init__(self, cfg, vocab: int = 40990, n_ctx: int = 512):
        super().__init__()
        if cfg.afn not in ACTIVATIONS:
            raise ValueError(f"afn {cfg.afn!r} is not one of {', '.join(ACTIVATIONS)}")
        self.n_ctx = n_ctx
        self.checkpoint_activations = False  # compute the blocks' insides again in the backward pass: memory for time
        self.embed = nn.Embedding(vocab, cfg.n_embd, _weight=torch.empty(vocab, cfg.n_embd).normal_(std=0.02))
        self.drop = Dropout(cfg.embd_pdrop)
        self.h = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))

    def dropped_table(self) -> Tensor:
        """Return the joint table (V, C) after one draw of drop-out, for the inputs and the decoder alike (TF:165)."""
        return self.drop(self.embed.weight)

    def forward(self, x: Tensor, table: Tensor | None = None, m: Tensor | None = None) -> Tensor:
        """Return the hidden states (B*K, T, C) of x, integers (..., T, 2): token ids and position-row ids.

        Args:
            table: what `dropped_table` returned, where the caller needs the same draw again; else a new draw is made.
            m: (..., T), 0 on the padding behind each row: no work is done there, and its states are 0.
        """
        packing = Packing(x, m)
        return packing.unpack(self.packed_states(packing, self.dropped_table() if table is None else table))

    def packed_states(self, packing: Packing, table: Tensor) -> Tensor:
        """Return the hidden states (N, C) of the tokens that a packing says are to be computed."""
        if packing.shape[1] > self.n_ctx:
            raise ValueError(
                f"the input has {packing.shape[1]} tokens, the model has positions for {self.n_ctx}: cut the input"
            )
        h = F.embedding(packing.tokens, table).sum(-2)
        for block in self.h:
            if self.checkpoint_activations and self.training:
                h = checkpoint(block, h, packing, use_reentrant=False)
            else:
                h = block(h, packing)
        return h


# --- the heads -------------------------------------------------------------------------------------------------------


class LMHead(nn.Module):
    """Hidden states -> logits over all V rows of the joint table, which is also the decoder (TF:174-175).

    With `trunc_and_reshape` the last position, which has no next token, is left out and the rest flattened.
    """

    def __init__(self, model: TransformerModel, cfg, trunc_and_reshape: bool = True):
        super().__init__()
        vocab, n_embd = model.embed.weight.shape
        self.decoder = nn.Linear(n_embd, vocab, bias=False, device="meta")
        self.decoder.weight = model.embed.weight  # tied
        self.trunc_and_reshape = trunc_and_reshape

    def forward(self, h: Tensor, table: Tensor | None = None) -> Tensor:
        """Return logits (B*K*(T-1), V), or (B*K, T, V) without `trunc_and_reshape`; `table` as in TransformerModel."""
        h = h[:, :-1].flatten(0, 1) if self.trunc_and_reshape else h
        return F.linear(h, self.decoder.weight if table is None else table)


class TaskHead(nn.Module):
    """The state at each row's first classify token and a linear map; what the three heads share."""

    def __init__(self, clf_token: int, cfg, n_out: int):
        super().__init__()
        self.clf_token = clf_token
        self.dropout = Dropout(cfg.clf_pdrop)
        self.linear = nn.Linear(cfg.n_embd, n_out)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the states (B, K, C) at the first classify token of each row of x (B, K, T, 2) or (B, T, 2) (TF:182).

        Raises ValueError for a row without one: a position taken at random would train on noise.
        """
        x = x.unsqueeze(1) if x.dim() == 3 else x
        is_clf = (x[..., 0] == self.clf_token).flatten(0, 1)  # (B*K, T)
        if not (found := is_clf.any(1)).all():
            row = int(found.int().argmin())
            raise ValueError(
                f"example {row // x.size(1)}, choice {row % x.size(1)} holds no classify token (id {self.clf_token}): "
                "end every row with it"
            )
        first = is_clf.int().argmax(1)
        return h[torch.arange(len(h), device=h.device), first].unflatten(0, x.shape[:2])


class ClfHead(TaskHead):
    """Logits (B, n_class) of the classes of one text."""

    def __init__(self, clf_token: int, cfg, n_class: int):
        super().__init__(clf_token, cfg, n_class)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.pool(h, x).squeeze(1)))


class MultipleChoiceHead(TaskHead):
    """Logits (B, K) of the choices."""

    def __init__(self, clf_token: int, cfg):
        super().__init__(clf_token, cfg, 1)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        pooled = self.pool(h, x)  # (B, K, C)
        pooled = pooled * self.dropout(torch.ones_like(pooled[:, :1]))  # one mask for all choices: TF:185-188
        return self.linear(pooled).squeeze(-1)


class SimilarityHead(TaskHead):
    """One logit (B, 1) for two texts, given in both orders as K = 2 (paper, section 3.3)."""

    def __init__(self, clf_token: int, cfg):
        super().__init__(clf_token, cfg, 1)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.pool(h, x).sum(1)))


class LMModel(nn.Module):
    """The transformer as a language model: x (B, T, 2) -> logits (B, T, V) of the next token.

    With `return_probs`, probabilities instead, 0 for the n_ctx position rows.
    """

    def __init__(self, cfg, vocab: int = 40990, n_ctx: int = 512, return_probs: bool = False):
        super().__init__()
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg, trunc_and_reshape=False)
        self.return_probs = return_probs
        self.register_load_state_dict_pre_hook(_complete_keys)

    def forward(self, x: Tensor) -> Tensor:
        table = self.transformer.dropped_table()
        logits = self.lm_head(self.transformer(x, table), table)
        if not self.return_probs:
            return logits
        n_words = logits.size(-1) - self.transformer.n_ctx
        return F.pad(logits[..., :n_words].softmax(-1), (0, self.transformer.n_ctx))


class DoubleHeadModel(nn.Module):
    """The transformer with a language-model head and a task head: x -> (lm_logits, task_logits).

    Args:
        cfg, vocab, n_ctx: as of TransformerModel.
        clf_token: id of the token whose state the task head reads.
        task_head_type: 'multiple_choice', 'similarity', 'inference' (3 classes) or ('classification', n_class).
    """

    def __init__(self, cfg, clf_token: int, task_head_type: str | tuple, vocab: int = 40990, n_ctx: int = 512):
        super().__init__()
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg)
        match task_head_type:
            case "multiple_choice":
                self.task_head = MultipleChoiceHead(clf_token, cfg)
            case "similarity":
                self.task_head = SimilarityHead(clf_token, cfg)
            case "inference":
                self.task_head = ClfHead(clf_token, cfg, 3)
            case ("classification", int(n_class)) | ["classification", int(n_class)]:
                self.task_head = ClfHead(clf_token, cfg, n_class)
            case _:
                raise ValueError(
                    f"task_head_type {task_head_type!r} is not 'multiple_choice', 'similarity', 'inference' or "
                    "('classification', n_class)"
                )
        self.register_load_state_dict_pre_hook(_complete_keys)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        table = self.transformer.dropped_table()
        h = self.transformer(x, table)
        return self.lm_head(h, table), self.task_head(h, x)


def _complete_keys(module, state_dict, prefix, *_):
    # files of the early PyTorch port: keys behind `module.`, and LMModel's mask of the position rows
    for key in [key for key in state_dict if key.startswith(prefix + "module.")]:
        state_dict[prefix + key.removeprefix(prefix + "module.")] = state_dict.pop(key)
    state_dict.pop(prefix + "pos_emb_mask", None)
    # our own files hold the tied table once
    if (table := prefix + "transformer.embed.weight") in state_dict:
        state_dict.setdefault(prefix + "lm_head.decoder.weight", state_dict[table])


# --- the weights -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderSizes:
    """What a model folder says of the network in it."""

    n_vocab: int  # token rows
    n_positions: int
    n_embd: int
    n_head: int
    n_layer: int

    def shapes(self) -> list[list[int]]:
        """Return the shapes of the arrays in the authors' order: positions, tokens, then twelve a block."""
        c = self.n_embd
        attn = [[1, c, 3 * c], [3 * c], [1, c, c], [c]]
        mlp = [[1, c, 4 * c], [4 * c], [1, 4 * c, c], [c]]
        ln = [[c], [c]]
        return [[self.n_positions, c], [self.n_vocab, c]] + (attn + ln + mlp + ln) * self.n_layer


def read_sizes(path: str | os.PathLike) -> FolderSizes:
    """Return the sizes of the network in a model folder, from its params_shapes.json and hparams.json.

    Raises InputError when the shapes are missing or are not those of such a network.
    """
    shapes = read_json(path := Path(path) / "params_shapes.json")
    hparams = path.with_name("hparams.json")
    try:
        n_head = read_json(hparams)["n_head"] if hparams.exists() else 12  # the one size that no shape tells
        (n_positions, n_embd), (n_vocab, _) = shapes[:2]
        sizes = FolderSizes(n_vocab, n_positions, n_embd, n_head, n_layer=(len(shapes) - 2) // 12)
        fits = sizes.shapes() == shapes and n_embd % n_head == 0
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        fits = False
    if not fits:
        raise InputError(
            f"{path}: not the shapes of this network: positions [n, C], tokens [n, C], then twelve arrays a block, "
            "C a multiple of n_head (12, or what hparams.json says). Fetch both files again."
        )
    return sizes


def load_openai_pretrained_model(
    model: TransformerModel,
    n_ctx: int = -1,
    n_special: int = -1,
    n_transfer: int = 12,
    path: str | os.PathLike = "./model/",
) -> int:
    """Copy weights in the authors' format into a transformer and return how many blocks were copied.

    The special rows are drawn as TF:410 draws them, N(0, 0.02) from NumPy's global stream.

    Args:
        model: a TransformerModel; all checks come before its first parameter changes.
        n_ctx: position rows of the model; -1: as many as the folder has.
        n_special: special rows of the model; -1: all rows that are neither tokens nor positions.
        n_transfer: blocks to copy, at most all; 0: the joint table alone; -1: nothing.
        path: folder with params_shapes.json and params_0.npy .. params_9.npy; a relative path that does not exist
            below the current directory is looked up beside the scripts.

    Raises:
        InputError: a file is missing or damaged, or its sizes are not the model's.
    """
    if n_transfer < 0:
        return 0
    path = find(path)
    sizes = read_sizes(path)
    vocab, n_embd = model.embed.weight.shape
    n_ctx = sizes.n_positions if n_ctx < 0 else n_ctx
    n_special = vocab - sizes.n_vocab - n_ctx if n_special < 0 else n_special
    if n_embd != sizes.n_embd:
        raise InputError(f"{path}: the weights have n_embd {sizes.n_embd}, the model {n_embd}. Make the two agree.")
    if n_transfer and len(model.h) and model.h[0].attn.n_head != sizes.n_head:
        raise InputError(
            f"{path}: the weights are for {sizes.n_head} heads, the model has {model.h[0].attn.n_head}. "
            "Make the two agree; a hparams.json beside the weights may say n_head, else it is 12."
        )
    if n_ctx > sizes.n_positions:
        raise InputError(f"{path}: the weights hold {sizes.n_positions} positions, n_ctx asks {n_ctx}. Lower n_ctx.")
    if n_special < 0 or sizes.n_vocab + n_special + n_ctx != vocab:
        raise InputError(
            f"{path}: {sizes.n_vocab} tokens + {n_special} special + {n_ctx} positions are not the model's {vocab} "
            "rows. Build the model with that many."
        )
    shards = [_open_shard(path / f"params_{i}.npy") for i in range(10)]
    n_found, n_expected = sum(map(len, shards)), sum(map(math.prod, sizes.shapes()))
    if n_found != n_expected:
        raise InputError(
            f"{path}: params_0.npy .. params_9.npy hold {n_found:,} values, params_shapes.json asks for "
            f"{n_expected:,}. Fetch them again."
        )

    n_transfer = min(n_transfer, sizes.n_layer, len(model.h))
    with torch.no_grad():
        # the values lie one behind the other across the shards: each tensor is filled from where its array starts
        table = model.embed.weight
        tokens, special, positions = table.split([sizes.n_vocab, n_special, n_ctx])
        tensors = [positions, tokens, *model.h[:n_transfer].parameters()]
        array_starts = np.cumsum([0] + [math.prod(shape) for shape in sizes.shapes()])
        shard_start = 0
        for i in range(len(shards)):
            values, shards[i] = torch.from_numpy(shards[i]), None  # one shard resident at a time
            for tensor, array_start in zip(tensors, array_starts, strict=False):
                start = max(array_start, shard_start)
                end = min(array_start + tensor.numel(), shard_start + len(values))
                if start < end:
                    source = values[start - shard_start : end - shard_start]
                    tensor.view(-1)[start - array_start : end - array_start].copy_(source)
            shard_start += len(values)
        special.copy_(torch.from_numpy(np.random.randn(n_special, n_embd) * 0.02))
    return n_transfer


def save_openai_model(model: TransformerModel, n_vocab: int, path: str | os.PathLike) -> None:
    """Write a transformer as a model folder in the authors' format, with the hparams.json that tells n_head.

    Special rows are left out: whoever loads the folder draws his own.

    Args:
        model: a TransformerModel with one block or more; its table holds n_vocab tokens first and n_ctx positions last.
        n_vocab: token rows.
        path: an existing folder; files of the same names are replaced.
    """
    path = Path(path)
    table = model.embed.weight
    arrays = [table[-model.n_ctx :], table[:n_vocab], *model.h.parameters()]
    values = np.concatenate([array.detach().cpu().float().flatten().numpy() for array in arrays])
    sizes = FolderSizes(n_vocab, model.n_ctx, table.size(1), model.h[0].attn.n_head, len(model.h))
    for i, piece in enumerate(np.array_split(values, 10)):
        with replacing(path / f"params_{i}.npy") as file:
            np.save(file, piece)
    write_json(path / "params_shapes.json", sizes.shapes())
    write_json(path / "hparams.json", {"n_head": sizes.n_head})


def _open_shard(path: Path) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing. See 'Weights and data' in README.md for where to get it.") from None
    except (OSError, ValueError, EOFError) as error:  # truncated, no .npy file, or Python objects in it
        raise InputError(f"{path} is no sound array of numbers ({error}). Fetch it again.") from None
    if values.dtype != np.float32 or values.ndim != 1:
        raise InputError(f"{path} holds {values.dtype} {list(values.shape)}, not a row of float32. Fetch it again.")
    return values
