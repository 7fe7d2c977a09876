"""Which tokens of a batch are computed: no padding, and what the choices have in common only once."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Packing:
    """A batch as a list of N tokens, and the slots of these tokens in the sequences that attention works on.

    All layers but attention work on the list: the real tokens, each computed once, concatenated. Attention works on S
    sequences of L slots. Build a packing on the CPU and then move it: on a GPU, building it would synchronise.

    Example: a story 5 6 with the endings 7 and 8 9; start is 1, delimiter 2, classify 3. The K = 2 rows are

        1 5 6 2 7 3
        1 5 6 2 8 9 3

    Without share_context: 13 tokens in S = 2 sequences of L = 7 slots. With it, the common prefix is computed once:

        slot        0 1 2 3 4 5 6 7 8      N = 9 tokens in S = 1 sequence of L = 9 slots
        token       1 5 6 2 7 3 8 9 3
        position    0 1 2 3 4 5 4 5 6      slots 4, 5 attend to 0-3 and themselves; so do 6, 7, 8

    The language model predicts each distinct next token once, here M = 8: 5 6 2 7 3 of the first row, 8 9 3 of the
    second. predictors = 0 1 2 3 4 3 6 7 index the tokens they are predicted from, targets = 5 6 2 7 3 8 9 3, and
    predictions = 0 1 2 3 4 - and 0 1 2 5 6 7 say which of the M predictions belong to each row (-: padding).

    Args:
        x: token and position ids (B, K, T, 2), or (B, T, 2) for one row per example.
        m: 1 on real tokens, 0 on the padding at each row's end (B, K, T), or (B, T); None: all are real.
        share_context: compute the prefix common to the K rows of an example once; each row attends to it and itself.
        n_choices: (B,) number of choices of each example, its first rows; its other rows only pad it to K and do not
            count. None: all K rows are choices.
    """

    MULTIPLE = 4  # N (where there are free slots) and M are padded to it; for CPU products in bfloat16

    def __init__(
        self, x: Tensor, m: Tensor | None = None, share_context: bool = False, n_choices: Tensor | None = None
    ):
        self.x, self.is_choice = x, None  # is_choice: (B, K); None: all rows are
        if n_choices is not None and (n_choices < x.size(1)).any():
            self.is_choice = torch.arange(x.size(1)) < n_choices[:, None]
        n_choices = x.size(1) if share_context and x.dim() == 4 else 1
        ids = x.reshape(-1, n_choices, *x.shape[-2:])  # (S, K, T, 2)
        self.shape = (ids.size(0) * n_choices, ids.size(2))  # (B*K, T)
        is_exporting = torch.compiler.is_exporting()  # then no size may follow from values: no targets
        # full: no padding and nothing shared, each token in its own slot; attention then works in blocks
        self.is_full = m is None and n_choices == 1 and not is_exporting
        if self.is_full or is_exporting:
            self.tokens, self.sequences, self.is_dense, self.mask = ids.flatten(0, 2), self.shape, True, None
            if not is_exporting:
                self.slots = torch.arange(len(self.tokens), device=ids.device)
                self.source = self.slots.view(self.shape)
                targets = x[..., 1:, 0].flatten().long()
                padding = 0, -len(targets) % Packing.MULTIPLE
                self.predictors = F.pad(self.source[:, :-1].flatten(), padding)
                self.targets = F.pad(targets, padding)
                self.predictions = torch.arange(len(targets), device=ids.device).view(len(ids), -1)
            return

        real = torch.ones(ids.shape[:3]) if m is None else m.reshape(ids.shape[:3])
        real = real.to(ids.device).bool()
        # a sequence: the common prefix, then the rest of each row; slots are numbered across sequences
        lengths = real.sum(2)  # (S, K)
        common = ((ids == ids[:, :1]).all(3) & real).all(1).cumprod(1).sum(1)  # (S,)
        common = common.clamp(max=lengths.amin(1) - 1) if n_choices > 1 else torch.zeros_like(common)
        own = lengths - common[:, None]
        t = torch.arange(ids.size(2), device=ids.device)
        is_common = (t < common[:, None])[:, None]  # (S, 1, T)
        slot = t + (own.cumsum(1) - own)[:, :, None] * ~is_common  # (S, K, T)
        self.sequences = (ids.size(0), int((common + own.sum(1)).max()))  # (S, L)
        slot = slot + torch.arange(ids.size(0), device=ids.device)[:, None, None] * self.sequences[1]
        choice = torch.arange(n_choices, device=ids.device)[:, None]
        computed = real & ~(is_common & (choice > 0))

        # the list: ids and slot of each token; then dummy tokens in free slots, to which nothing attends
        tokens, slots = ids[computed], slot[computed]  # (N, 2), (N,)
        is_free = torch.ones(self.sequences[0] * self.sequences[1], dtype=torch.bool, device=ids.device)
        is_free[slots] = False
        self.is_dense = len(slots) == len(is_free)
        dummies = is_free.nonzero()[: -len(slots) % Packing.MULTIPLE, 0]
        self.tokens, self.slots = F.pad(tokens, (0, 0, 0, len(dummies))), torch.cat([slots, dummies])
        n_tokens = len(self.slots)
        index = torch.full_like(is_free, n_tokens, dtype=torch.long)
        index[self.slots] = torch.arange(n_tokens, device=ids.device)
        source = torch.where(real, index[slot * real], n_tokens)  # (S, K, T): the token there, N on padding
        self.source = source.view(self.shape)

        # attention mask, where causality is not enough: a token attends to the prefix and to its own row
        self.mask = None  # (S, L, L)
        if n_choices > 1:
            owner = torch.full_like(index, n_choices)
            owner[slots] = torch.where(is_common, -1, choice)[computed]
            owner = owner.view(self.sequences)
            attends = (owner[:, None, :] == -1) | (owner[:, None, :] == owner[:, :, None])
            self.mask = attends.tril()

        # the language model: the distinct next tokens, and which of them belong to each row
        is_next = computed[:, :, 1:]
        n_next = int(is_next.sum())
        padding = 0, -n_next % Packing.MULTIPLE
        self.predictors = F.pad(source[:, :, :-1][is_next], padding)  # (M,)
        self.targets = F.pad(ids[:, :, 1:, 0][is_next].long(), padding)  # (M,)
        index = torch.full((n_tokens + 1,), len(self.targets), device=ids.device)
        index[source[:, :, 1:][is_next]] = torch.arange(n_next, device=ids.device)
        self.predictions = index[self.source[:, 1:]]  # (B*K, T-1), M where there is none

    def n_next(self) -> Tensor:
        """Return how many next tokens each row predicts (B*K,)."""
        return (self.predictions < len(self.targets)).sum(1)

    def to(self, device: torch.device) -> "Packing":
        """Move all tensors to a device, without waiting for it, and return self."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device, non_blocking=True))
        return self

    def to_sequences(self, t: Tensor) -> Tensor:
        """Put values of the N tokens (N, ..., D) into the slots of attention (..., S, L, D), 0 in free slots."""
        if self.is_dense:
            return t.movedim(0, -2).unflatten(-2, self.sequences)
        out = t.new_zeros(*t.shape[1:-1], self.sequences[0] * self.sequences[1], t.size(-1))
        out.movedim(-2, 0).index_put_((self.slots,), t)  # unlike index_copy, saves no tensor for backward
        return out.unflatten(-2, self.sequences)

    def to_tokens(self, t: Tensor) -> Tensor:
        """Take the values of the N tokens (N, ..., D) from the slots of attention (..., S, L, D)."""
        t = t.flatten(-3, -2).movedim(-2, 0)
        return t if self.is_dense else t.index_select(0, self.slots)

    def unpack(self, t: Tensor) -> Tensor:
        """Copy values of the N tokens (N, ...) to every token of the batch (B*K, T, ...), 0 on padding."""
        if self.is_dense and self.mask is None and self.sequences == self.shape:
            return t.unflatten(0, self.shape)
        return F.pad(t, (0, 0) * (t.dim() - 1) + (0, 1)).index_select(0, self.source.flatten()).unflatten(0, self.shape)
