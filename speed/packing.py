"""Which tokens of a batch are computed: no padding, and what the choices have in common only once.

Shape letters as in model_pytorch.py; further R rows, N tokens, S sequences of L slots, M predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speed.device import is_recorded, to_device

# to which row of its sequence a slot belongs, where to none of the rows 0, 1, ...
SHARED = -1  # to all of them
FREE = -2  # to none


@dataclass
class Packing:
    """A batch as a list of N tokens, and the slots of these tokens in the sequences that attention works on.

    All layers but attention work on the list: the real tokens, each computed once, concatenated. Attention works on S
    sequences of L slots. There are three ways to make one: `of_rows`, `of_padded` and `full`. Make it on the CPU and
    then move it: on a GPU, making it would synchronise.

    Example: a story 5 6 with the endings 7 and 8 9; start is 1, delimiter 2, classify 3. The R = 2 rows are

        1 5 6 2 7 3
        1 5 6 2 8 9 3

    Without share_context: N = 13 tokens in S = 2 sequences of L = 7 slots. With it, the common prefix is computed once:

        slot        0 1 2 3 4 5 6 7 8      N = 9 tokens in S = 1 sequence of L = 9 slots
        token       1 5 6 2 7 3 8 9 3
        position    0 1 2 3 4 5 4 5 6      slots 4, 5 attend to 0-3 and themselves; so do 6, 7, 8

    The language model predicts each distinct next token once, here M = 8: 5 6 2 7 3 of the first row, 8 9 3 of the
    second: targets = 5 6 2 7 3 8 9 3. They are predicted from the tokens with the indices predictors = 0 1 2 3 4 3 6 7
    in the list. predictions = 0 1 2 3 4 - and 0 1 2 5 6 7 say which of the M each row consists of (-: padding).
    """

    tokens: Tensor  # (N, 2) ids of token and position
    shape: tuple[int, int]  # (R, T) of the padded batch
    sequences: tuple[int, int]  # (S, L)
    slots: Tensor | None = None  # (N,) of each token, numbered across sequences; None: in order, without gaps
    mask: Tensor | None = None  # (S, L, L) which slots attend to which; None: causal
    source: Tensor | None = None  # (R, T) index of each padded token in the list, N on padding; None: in order
    read: Tensor | None = None  # (B, K) index of the token of each row that the task head reads
    is_choice: Tensor | None = None  # (B, K) False where an example has fewer choices than K; None: nowhere
    predictors: Tensor | None = None  # (M,) index of the token that each next token is predicted from
    targets: Tensor | None = None  # (M,) ids of these next tokens
    predictions: Tensor | None = None  # (R, T-1) which of the M each row consists of, M on padding

    # --- three ways to make one --------------------------------------------------------------------------------------

    @classmethod
    def full(cls, x: Tensor) -> "Packing":
        """Return the packing of a batch without padding: x (..., T, 2), token and position ids.

        Raises ValueError for x without position ids.
        """
        check_channels(x)
        x = x.flatten(0, -3)  # (R, T, 2)
        packing = cls(x.flatten(0, 1), shape=x.shape[:2], sequences=x.shape[:2])
        if is_recorded():  # without a loss
            return packing
        of_rows = torch.arange(len(packing.tokens), device=x.device).view(packing.shape)
        packing.predictors = of_rows[:, :-1].flatten()
        packing.targets = x[:, 1:, 0].flatten().long()
        packing.predictions = torch.arange(len(packing.targets), device=x.device).view(len(x), -1)
        return packing

    @classmethod
    def of_rows(
        cls, examples: Sequence[list[list[int]]], first_position: int, share_context: bool = False
    ) -> "Packing":
        """Return the packing of the rows of examples, lists of token ids; the task head reads the last one of a row.

        Args:
            first_position: id of position 0.
            share_context: compute the prefix common to the rows of an example once; each row attends to it and itself.
        """
        # rows that share their beginning stand in one sequence
        groups = examples if share_context else [[row] for rows in examples for row in rows]
        lengths = [[len(row) for row in rows] for rows in groups]
        n_common = [common_prefix(rows) for rows in groups]

        # the list of tokens; of what is common only that of the first row
        ids = []
        positions = []
        for rows, n in zip(groups, n_common, strict=True):
            for k, row in enumerate(rows):
                start = n if k > 0 else 0
                ids += row[start:]
                positions += range(first_position + start, first_position + len(row))
        tokens = torch.tensor([ids, positions]).T
        packing = cls._of_groups(tokens.contiguous(), lengths, n_common)

        # the last token of each row; examples may have different numbers of choices
        n_choices = torch.tensor([len(rows) for rows in examples])
        most = int(n_choices.max())
        is_choice = torch.arange(most) < n_choices[:, None]
        last = torch.tensor([length - 1 for of_rows in lengths for length in of_rows])
        packing.read = torch.zeros(len(examples), most, dtype=torch.long)
        packing.read[is_choice] = packing.source_of(last)
        if not is_choice.all():
            packing.is_choice = is_choice
        return packing

    @classmethod
    def of_padded(
        cls, x: Tensor, m: Tensor | None = None, share_context: bool = False, clf_token: int | None = None
    ) -> "Packing":
        """Return the packing of a padded batch.

        Args:
            x: token and position ids (B, K, T, 2), or (B, T, 2) for one row per example.
            m: 1 on real tokens, 0 on the padding at each row's end (B, K, T), or (B, T); None: all are real.
            clf_token: id of the token that the task head reads, the first one in each row.

        Raises ValueError for a row with padding before a token, or without a clf_token, and for x without position ids.
        """
        check_channels(x)
        ids = x if x.dim() == 4 else x.unsqueeze(1)  # (B, K, T, 2)
        real = torch.ones(ids.shape[:3], device=x.device)
        if m is not None:
            real = m.reshape(ids.shape[:3])
        n_real = real.sum(2).int()  # (B, K)

        # padding stands at the end
        expected = torch.arange(ids.size(2), device=x.device) < n_real[..., None]
        is_wrong = (real != expected).flatten(0, 1).any(1)  # (B*K,)
        if is_wrong.any():
            row = int(is_wrong.int().argmax())
            raise ValueError(
                f"row {row} of the mask has a 0 before a 1: padding stands at the end of a row. Move the tokens to its "
                "beginning"
            )

        # rows that share their beginning stand in one sequence
        rows = ids.flatten(0, 1)
        lengths = n_real.tolist() if share_context else n_real.view(-1, 1).tolist()
        n_common = [0] * len(lengths)
        if share_context and ids.size(1) > 1:
            is_common = (ids == ids[:, :1]).all(3).all(1).cumprod(1)  # (B, T)
            n_common = torch.minimum(is_common.sum(1), n_real.amin(1) - 1).clamp(min=0).tolist()
        tokens = []
        for n, of_rows in zip(n_common, lengths, strict=True):
            for k, length in enumerate(of_rows):
                start = n if k > 0 else 0
                tokens.append(rows[len(tokens), start:length])
        packing = cls._of_groups(torch.cat(tokens), lengths, n_common, n_tokens=ids.size(2)).to(x.device)
        if clf_token is not None:
            packing.read = packing.source_of(first_of(ids[..., 0], clf_token))
        return packing

    @classmethod
    def _of_groups(cls, tokens: Tensor, lengths: list[list[int]], n_common: list[int], n_tokens: int = 0) -> "Packing":
        """Return the packing of a list of tokens: the S sequences one by one, each its rows one by one.

        Args:
            tokens: (N, 2).
            lengths: tokens of each row of each sequence.
            n_common: tokens that the rows of a sequence have in common; in the list they belong to its first row.
            n_tokens: width of the padded batch, at least that of its longest row.
        """
        # how many slots each sequence takes: its tokens, of which the common ones stand there once
        n_slots = []
        for n, of_rows in zip(n_common, lengths, strict=True):
            n_repeated = n * (len(of_rows) - 1)
            n_slots.append(sum(of_rows) - n_repeated)

        # the padded batch holds padding at first, and no slot belongs to a row
        n_rows = sum(map(len, lengths))
        longest = max(map(max, lengths))
        shape = (n_rows, max(longest, n_tokens))
        sequences = (len(lengths), max(n_slots))
        source = np.full(shape, len(tokens))
        owner = np.full(sequences, FREE)

        # row by row: its tokens in the list are those that it shares with the first row, then its own
        slots = []
        predictors = []
        predicted = []
        row = 0
        n_done = 0  # tokens of the list
        for s, of_rows in enumerate(lengths):
            begin = n_done
            for k, length in enumerate(of_rows):
                n_shared = n_common[s] if k > 0 else 0
                end = n_done + length - n_shared
                index = np.concatenate([np.arange(begin, begin + n_shared), np.arange(n_done, end)])
                source[row, :length] = index
                owner[s, n_done - begin : end - begin] = k

                # each token that is new in this row is predicted from the one before it, the first of a row from none
                first = max(n_shared, 1)
                predictors.append(index[first - 1 : -1])
                predicted.append(index[first:])
                row += 1
                n_done = end
            owner[s, : n_common[s]] = SHARED
            first_slot = s * sequences[1]
            slots.append(np.arange(first_slot, first_slot + n_slots[s]))

        # the language model's predictions: which of them each token is, M for one that is none
        predictors = np.concatenate(predictors)
        predicted = np.concatenate(predicted)
        prediction_of = np.full(len(tokens) + 1, len(predicted))
        prediction_of[predicted] = np.arange(len(predicted))
        of_rows = prediction_of[source[:, 1:]]
        packing = cls(tokens, shape, sequences)
        packing.predictors = torch.from_numpy(predictors)
        packing.predictions = torch.from_numpy(of_rows)
        places = torch.from_numpy(predicted).to(tokens.device)
        packing.targets = tokens[places, 0].long()

        # what is not simply in order
        if len(tokens) < sequences[0] * sequences[1]:
            slots = np.concatenate(slots)
            packing.slots = torch.from_numpy(slots)
        if len(tokens) < shape[0] * shape[1]:
            packing.source = torch.from_numpy(source)
        if n_rows > len(lengths):
            owner = torch.from_numpy(owner)
            of_query = owner[:, :, None]
            of_key = owner[:, None, :]
            attends = (of_key == SHARED) | (of_key == of_query)
            packing.mask = attends.tril()
        return packing

    # --- between the list, the sequences and the padded batch --------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Return whether attention is causal and has no free slots; then it needs no mask."""
        return self.slots is None and self.mask is None

    def source_of(self, places: Tensor) -> Tensor:
        """Return the index in the list of the token at a place of each row; places: of all rows, in any shape."""
        rows = torch.arange(self.shape[0], device=places.device).view(places.shape)
        return rows * self.shape[1] + places if self.source is None else self.source[rows, places]

    def to(self, device: torch.device) -> "Packing":
        """Move all tensors to a device, without waiting for it, and return self."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, to_device(value, device))
        return self

    def to_sequences(self, t: Tensor) -> Tensor:
        """Put values of the N tokens (N, ..., D) into the slots of attention (..., S, L, D), 0 in free slots."""
        if self.slots is None:
            return t.movedim(0, -2).unflatten(-2, self.sequences)
        n_sequences, n_slots = self.sequences
        out = t.new_zeros(*t.shape[1:-1], n_sequences * n_slots, t.size(-1))
        out.movedim(-2, 0).index_put_((self.slots,), t)  # unlike index_copy, saves no tensor for backward
        return out.unflatten(-2, self.sequences)

    def to_tokens(self, t: Tensor) -> Tensor:
        """Take the values of the N tokens (N, ..., D) from the slots of attention (..., S, L, D)."""
        t = t.flatten(-3, -2)
        t = t.movedim(t.dim() - 2, 0)
        return t if self.slots is None else t.index_select(0, self.slots)

    def unpack(self, t: Tensor) -> Tensor:
        """Copy values of the N tokens (N, ...) to every token of the batch (R, T, ...), 0 on padding."""
        if self.source is None:
            return t.unflatten(0, self.shape)
        padding = t.new_zeros(1, *t.shape[1:])
        return torch.cat([t, padding]).index_select(0, self.source.flatten()).unflatten(0, self.shape)


# --- where tokens stand in rows --------------------------------------------------------------------------------------


def check_channels(x: Tensor) -> None:
    """Raise ValueError for token ids that have no position ids beside them."""
    if x.dim() < 3 or x.size(-1) < 2:
        raise ValueError(
            f"x {tuple(x.shape)} needs two channels, token ids and position ids (B, T, 2). Of ids (B, T): "
            "x = torch.stack([ids, n_vocab + n_special + torch.arange(ids.size(1)).expand_as(ids)], -1), where "
            "n_vocab + n_special is len(model.transformer.embed.weight) - model.transformer.n_ctx"
        )


def common_prefix(rows: list[list[int]]) -> int:
    """Return how many tokens rows have in common at their beginning; all but one of the shortest row's, at most.

    So each row keeps a token of its own. A single row has none in common.
    """
    if len(rows) == 1:
        return 0
    first, *others = rows
    most = min(map(len, rows)) - 1
    for t in range(most):
        for row in others:
            if row[t] != first[t]:
                return t
    return most


def first_of(ids: Tensor, token: int) -> Tensor:
    """Return where a token first stands in each row of ids (B, K, T): (B, K).

    Raises ValueError for a row without it, where argmax would silently give 0.
    """
    is_token = ids == token
    is_found = is_token.any(2)
    if not is_recorded() and not is_found.all():
        example, choice = (~is_found).nonzero()[0].tolist()
        raise ValueError(
            f"example {example}, choice {choice} holds no classify token (id {token}): end every row with it"
        )
    return is_token.int().argmax(2)
