"""The network of "Improving Language Understanding by Generative Pre-Training" (2018) and its heads.

Shape letters: B examples, K choices per example, T tokens, C features (n_embd), H attention heads, D = C / H,
V entries of the embedding matrix (tokens, then special tokens, then positions). The blocks work on the N real tokens
of a batch, concatenated; only attention arranges them in S sequences of L slots (packing.py). "TF" is the authors'
train.py at commit a69b5c4; "FIDELITY n" is the detail with number n in FIDELITY.md.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from formats.authors import load_openai_pretrained_model  # noqa: F401  a public name of this file
from formats.config import DEFAULT_CONFIG, Config  # noqa: F401  public names of this file
from port import dotdict  # noqa: F401  a public name of this file
from speed.device import is_recorded
from speed.kernels import Dropout, activated_linear, attention
from speed.packing import Packing, first_of


def gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit in its tanh form: TF:22 (FIDELITY 34)."""
    return F.gelu(x, approximate="tanh")


swish = F.silu
ACTIVATIONS = {"relu": F.relu, "swish": swish, "gelu": gelu}
ACT_FNS = ACTIVATIONS  # the port's name


# --- the transformer -------------------------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """Normalise the features to mean 0 and variance 1, then scale by g and shift by b."""

    def __init__(self, n_state: int, e: float = 1e-5):
        super().__init__()
        self.g = nn.Parameter(torch.ones(n_state))
        self.b = nn.Parameter(torch.zeros(n_state))
        self.e = e  # added to the variance, inside the square root: TF:47

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.g.shape, self.g, self.b, self.e)


class Conv1D(nn.Module):
    """A linear map (N, nx) -> (N, nf); its weights are [nx, nf], as in the authors' 1x1 convolution (TF:106-115)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.w = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.b = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor, act=None) -> Tensor:
        """Return x @ w + b, or act(x) @ w + b."""
        return activated_linear(x, self.w, self.b, act)


class Attention(nn.Module):
    """Causal multi-head self-attention; one matrix product gives queries, keys and values."""

    def __init__(self, cfg):
        super().__init__()
        if cfg.n_embd % cfg.n_head:
            raise ValueError(f"n_embd {cfg.n_embd} must be a multiple of n_head {cfg.n_head}")
        self.n_head = cfg.n_head
        self.c_attn = Conv1D(3 * cfg.n_embd, cfg.n_embd)
        self.c_proj = Conv1D(cfg.n_embd, cfg.n_embd)
        self.attn_dropout = Dropout(cfg.attn_pdrop)
        self.resid_dropout = Dropout(cfg.resid_pdrop)
        self.register_load_state_dict_pre_hook(_remove_mask_buffer)

    def forward(self, x: Tensor, packing: Packing, cache=None) -> Tensor:
        # queries, keys and values of all heads, by one product
        q, k, v = packing.to_sequences(self.c_attn(x).unflatten(1, (3, self.n_head, -1)))  # (H, S, L, D)
        if cache is not None:
            k, v = cache.append(k, v)

        # each token gets what it attends to, and the heads are mixed
        a = attention(q, k, v, packing.mask, self.attn_dropout, packing.is_full)
        return self.resid_dropout(self.c_proj(packing.to_tokens(a).flatten(1)))  # (N, C)


class MLP(nn.Module):
    """Two linear maps, C -> 4C -> C, with an activation between them."""

    def __init__(self, cfg):
        super().__init__()
        self.c_fc = Conv1D(4 * cfg.n_embd, cfg.n_embd)
        self.c_proj = Conv1D(cfg.n_embd, 4 * cfg.n_embd)
        self.act = ACTIVATIONS[cfg.afn]
        self.dropout = Dropout(cfg.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.c_fc(x), self.act))  # the activation comes before c_proj


class Block(nn.Module):
    """Attention and MLP, each added to its input and then normalised (post-norm, TF:140-147)."""

    def __init__(self, cfg):
        super().__init__()
        # declared in the order of the authors' weight files, on which load_openai_pretrained_model relies
        self.attn = Attention(cfg)
        self.ln_1 = LayerNorm(cfg.n_embd)
        self.mlp = MLP(cfg)
        self.ln_2 = LayerNorm(cfg.n_embd)

    def forward(self, x: Tensor, packing: Packing, cache=None) -> Tensor:
        n = self.ln_1(x + self.attn(x, packing, cache))
        return self.ln_2(n + self.mlp(n))


class TransformerModel(nn.Module):
    """Token and position ids -> hidden states.

    Args:
        cfg: anything with the attributes of `Config`.
        vocab: V, entries of the embedding matrix: tokens, special tokens and positions together.
        n_ctx: how many of these are positions; no input may have more tokens.
    """

    def __init__(self, cfg, vocab: int = 40990, n_ctx: int = 512):
        super().__init__()
        if cfg.afn not in ACTIVATIONS:
            raise ValueError(f"afn {cfg.afn!r} is not one of {', '.join(ACTIVATIONS)}")
        self.n_ctx = n_ctx
        self.checkpoint_activations = False  # store only each block's input; recompute the rest in backward
        self.embed = nn.Embedding(vocab, cfg.n_embd, _weight=torch.empty(vocab, cfg.n_embd).normal_(std=0.02))
        self.drop = Dropout(cfg.embd_pdrop)
        self.h = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))

    def dropped_table(self) -> Tensor:
        """Return the embedding matrix (V, C) after dropout: one mask, shared by the input and the LM head (TF:165)."""
        return self.drop(self.embed.weight)

    def forward(self, x: Tensor | Packing, table: Tensor | None = None, caches: Sequence | None = None) -> Tensor:
        """Return the hidden states (B*K, T, C) of x, or (N, C) of a packed batch.

        Args:
            x: token ids and position ids (..., T, 2), or a Packing of them. Further channels (token types, say) are
                looked up in the table and added too.
            table: embedding matrix after dropout, from `dropped_table`, to share with the LM head; None: a new one.
            caches: generation.new_caches; x, without padding, continues the sequences they hold and is added to them.

        Raises ValueError when x has no position ids, or is longer than n_ctx.
        """
        # the input as a list of tokens
        packing = x if isinstance(x, Packing) else Packing.full(x)
        if not is_recorded() and packing.shape[1] > self.n_ctx:
            raise ValueError(
                f"the input has {packing.shape[1]} tokens, the model has positions for {self.n_ctx}: cut the input"
            )

        # their embeddings
        table = self.dropped_table() if table is None else table
        # without dropout `embed` itself, so that forward hooks on it work
        rows = self.embed(packing.tokens) if table is self.embed.weight else F.embedding(packing.tokens, table)
        h = rows.sum(-2)  # (N, C): token + position

        # the blocks, one after another
        for block, cache in zip(self.h, caches or [None] * len(self.h), strict=True):
            if self.checkpoint_activations and self.training:
                h = checkpoint(block, h, packing, use_reentrant=False)
            else:
                h = block(h, packing, cache)
        return h if packing is x else packing.unpack(h)


# --- the heads -------------------------------------------------------------------------------------------------------


class LMHead(nn.Module):
    """Hidden states -> logits over all V entries of the embedding matrix, which is tied (TF:174-175).

    With `trunc_and_reshape` the last position, which has no next token, is left out and the rest flattened.
    """

    def __init__(self, model: TransformerModel, cfg, trunc_and_reshape: bool = True):
        super().__init__()
        vocab, n_embd = model.embed.weight.shape
        self.decoder = nn.Linear(n_embd, vocab, bias=False, device="meta")  # no memory for weights that are replaced
        self.decoder.weight = model.embed.weight  # tied
        self.trunc_and_reshape = trunc_and_reshape

    def forward(self, h: Tensor, table: Tensor | None = None) -> Tensor:
        """Return logits (B*K*(T-1), V), or (B*K, T, V) without `trunc_and_reshape`; `table` as in TransformerModel."""
        h = h[:, :-1].flatten(0, 1) if self.trunc_and_reshape else h
        return self.decoder(h) if table is None or table is self.decoder.weight else F.linear(h, table)


class TaskHead(nn.Module):
    """What the three task heads share: the state at each row's first classify token, and a linear map."""

    def __init__(self, clf_token: int, cfg, n_out: int):
        super().__init__()
        self.clf_token = clf_token
        self.dropout = Dropout(cfg.clf_pdrop)
        self.linear = nn.Linear(cfg.n_embd, n_out)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the states (B, K, C) at the first classify token of each row of x (B, K, T, 2) or (B, T, 2) (TF:182).

        Raises ValueError for a row without one.
        """
        ids = x[..., 0] if x.dim() == 4 else x[:, None, :, 0]  # (B, K, T)
        first = first_of(ids, self.clf_token)
        return h[torch.arange(h.size(0), device=h.device), first.flatten()].unflatten(0, first.shape)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.logits(self.pool(h, x))


class ClfHead(TaskHead):
    """Logits (B, n_class) of the classes; one row per example."""

    def __init__(self, clf_token: int, cfg, n_class: int):
        super().__init__(clf_token, cfg, n_class)

    def logits(self, pooled: Tensor) -> Tensor:
        return self.linear(self.dropout(pooled.squeeze(1)))


class MultipleChoiceHead(TaskHead):
    """Logits (B, K) of the choices; one row per choice."""

    def __init__(self, clf_token: int, cfg):
        super().__init__(clf_token, cfg, 1)

    def logits(self, pooled: Tensor) -> Tensor:
        pooled = pooled * self.dropout(torch.ones_like(pooled[:, :1]))  # one mask for all choices: TF:185-188
        return self.linear(pooled).squeeze(-1)


class SimilarityHead(TaskHead):
    """Logits (B, n_out) of two texts; K = 2 rows, one for each order of the texts (paper, section 3.3)."""

    def __init__(self, clf_token: int, cfg, n_out: int = 1):
        super().__init__(clf_token, cfg, n_out)

    def logits(self, pooled: Tensor) -> Tensor:
        return self.linear(self.dropout(pooled.sum(1)))


# --- the models ------------------------------------------------------------------------------------------------------


class LMModel(nn.Module):
    """The transformer as a language model: x (B, T, 2) -> logits (B, T, V) of the next token.

    With `return_probs`, probabilities instead; those of the n_ctx positions are 0.
    """

    def __init__(self, cfg, vocab: int = 40990, n_ctx: int = 512, return_probs: bool = False):
        super().__init__()
        self.cfg = cfg
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg, trunc_and_reshape=False)
        self.return_probs = return_probs
        self.register_load_state_dict_pre_hook(_complete_keys)

    def forward(self, x: Tensor) -> Tensor:
        table = self.transformer.dropped_table()
        logits = self.lm_head(self.transformer(x, table), table)
        if not self.return_probs:
            return logits

        # a position is never the next token
        n_words = logits.size(-1) - self.transformer.n_ctx
        return F.pad(logits[..., :n_words].softmax(-1), (0, self.transformer.n_ctx))


class DoubleHeadModel(nn.Module):
    """The transformer with a language-model head and a task head: x -> (lm_logits, task_logits).

    Args:
        cfg, vocab, n_ctx: as in TransformerModel.
        clf_token: id of the token whose state the task head reads.
        task_head_type: 'multiple_choice', 'similarity' or ('similarity', n_out), 'inference' (3 classes) or
            ('classification', n_class).
    """

    def __init__(self, cfg, clf_token: int, task_head_type: str | tuple, vocab: int = 40990, n_ctx: int = 512):
        super().__init__()
        self.cfg = cfg
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg)

        # the task head; a list, which JSON makes of a tuple, matches too
        match task_head_type:
            case "multiple_choice":
                self.task_head = MultipleChoiceHead(clf_token, cfg)
            case "similarity":
                self.task_head = SimilarityHead(clf_token, cfg)
            case ("similarity", int(n_out)):
                self.task_head = SimilarityHead(clf_token, cfg, n_out)
            case "inference":
                self.task_head = ClfHead(clf_token, cfg, 3)
            case ("classification", int(n_class)):
                self.task_head = ClfHead(clf_token, cfg, n_class)
            case _:
                raise ValueError(
                    f"task_head_type {task_head_type!r} is not 'multiple_choice', 'similarity', ('similarity', n_out), "
                    "'inference' or ('classification', n_class)"
                )
        self.register_load_state_dict_pre_hook(_complete_keys)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        table = self.transformer.dropped_table()
        h = self.transformer(x, table)
        return self.lm_head(h, table), self.task_head(h, x)

    def forward_packed(self, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states (N, C), the embedding matrix after dropout (V, C), and the task logits.

        Training, evaluation and prediction call this. The logits of the language model, the largest tensor of all, are
        not computed here: the loss computes them in chunks.
        """
        # one mask of dropout for the input and the language model
        table = self.transformer.dropped_table()
        h = self.transformer(packing, table)

        # the states that the task head reads
        pooled = h.index_select(0, packing.read.flatten()).unflatten(0, packing.read.shape)  # (B, K, C)
        task_logits = self.task_head.logits(pooled)
        if packing.is_choice is not None:  # examples may have different numbers of choices
            task_logits = task_logits.masked_fill(~packing.is_choice, -math.inf)
        return h, table, task_logits


# --- files of the early PyTorch port ---------------------------------------------------------------------------------


def _remove_mask_buffer(module, state_dict, prefix, *_):
    state_dict.pop(prefix + "b", None)  # the causal mask, which the port saves with the weights


def _complete_keys(module, state_dict, prefix, *_):
    # remove DataParallel's prefix `module.`, and LMModel's mask of the positions
    of_parallel = prefix + "module."
    for key in list(state_dict):
        if key.startswith(of_parallel):
            state_dict[prefix + key.removeprefix(of_parallel)] = state_dict.pop(key)
    state_dict.pop(prefix + "pos_emb_mask", None)

    # our own files hold the tied embedding matrix only once
    table = prefix + "transformer.embed.weight"
    if table in state_dict:
        state_dict.setdefault(prefix + "lm_head.decoder.weight", state_dict[table])
