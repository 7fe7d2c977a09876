"""Looking inside a network: hidden states and attention weights, with where each stands in the user's own text.

Shape letters as in model_pytorch.py; further W words. All of it works by forward hooks on the network as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from formats.files import InputError
from model_pytorch import DoubleHeadModel
from reading.rows import Ids, special_tokens
from scoring import pack
from text_utils import Span, TextEncoder, Word

Example = str | Sequence[str]  # one text; of a fine-tuned run also two: premise and hypothesis, context and choice, ...


class Unit(NamedTuple):
    """A token or a word of what the network reads."""

    text: str  # a token as in the vocabulary; a word as the user wrote it; `_start_`, `_delimiter_`, `_classify_`
    span: Span | None  # start and end in the user's text; None: a special token, or unknown (text_utils.py)
    source: int | None = 0  # which of the example's texts it is of; None: a special token


@dataclass(frozen=True)
class Row:
    """What the network reads for one example: T tokens in W words. A special token is a word of its own."""

    ids: list[int] = field(default_factory=list)
    tokens: list[Unit] = field(default_factory=list)
    words: list[Unit] = field(default_factory=list)
    word_ends: list[int] = field(default_factory=list)  # the last token of each word, an index into tokens

    def word_of_token(self) -> list[int]:
        """Return for each token the index of its word."""
        return [int(w) for w in torch.bucketize(torch.arange(len(self.ids)), torch.tensor(self.word_ends))]

    def is_text(self) -> list[bool]:
        """Return for each token whether it is of the user's text, not a special token."""
        return [token.source is not None for token in self.tokens]

    def add(self, ids: Ids, tokens: Sequence[Unit], word: Unit) -> None:
        """Append a word."""
        self.ids.extend(ids)
        self.tokens.extend(tokens)
        self.words.append(word)
        self.word_ends.append(len(self.ids) - 1)

    def add_special(self, token: int, name: str) -> None:
        self.add([token], [Unit(name, None, None)], Unit(name, None, None))

    def add_words(self, words: Sequence[Word], encoder: TextEncoder, text: str, source: int) -> None:
        """Append words of a text."""
        for word in words:
            spelled = text[slice(*word.span)] if word.span else word.text
            pairs = zip(word.ids, word.spans, strict=True)
            tokens = [Unit(encoder.decoder[i], span, source) for i, span in pairs]
            self.add(word.ids, tokens, Unit(spelled, word.span, source))


def read_row(model: nn.Module, encoder: TextEncoder, example: Example) -> Row:
    """Return an example as the network reads it.

    A pre-trained network reads the text by itself. A fine-tuned run reads `start text classify`, with a delimiter
    between the texts where there are two.

    Raises:
        InputError: the example has no tokens, or more than the network has positions.
        ValueError: several texts for a network that was not fine-tuned.
    """
    texts, row = ([example] if isinstance(example, str) else list(example)), Row()
    is_tuned = isinstance(model, DoubleHeadModel)
    if len(texts) != 1 and not is_tuned:
        raise ValueError(f"{len(texts)} texts: only a fine-tuned network has a token to put between them")
    special = special_tokens(encoder.n_vocab)
    for i, text in enumerate(texts):
        if is_tuned:
            row.add_special(special.delimiter if i else special.start, "_delimiter_" if i else "_start_")
        row.add_words(encoder.words_with_spans(text), encoder, text, i)
    if not any(row.is_text()):
        raise InputError(f"{example!r} holds no tokens. Leave it out.")
    if is_tuned:
        row.add_special(special.classify, "_classify_")
    check_length(row.ids, model.transformer.n_ctx, " ".join(texts))
    return row


def check_length(ids: Ids, n_ctx: int, text: str) -> None:
    """Raise InputError for a row with more tokens than the network has positions."""
    if len(ids) > n_ctx:
        raise InputError(
            f"a text takes {len(ids)} tokens, the network has positions for {n_ctx}. Split it, or give a fixed "
            f"context (n_context): {text[:60]!r} ..."
        )


# --- hidden states ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Hidden states of an example, one for each of its tokens or words."""

    units: list[Unit]
    states: Tensor  # (T, C), or (W, C), on the CPU


@torch.no_grad()
def hidden_states(model: nn.Module, rows: Sequence[Ids], layer: int = -1, n_batch: int = 16) -> list[Tensor]:
    """Return the states of each row of token ids (T, C), in float32, on the CPU.

    Args:
        layer: 0: the embeddings, token and position added; i: what block i gives out; -1: the last block.

    Raises ValueError for a layer that there is not.
    """
    blocks = model.transformer.h
    if not -len(blocks) - 1 <= layer <= len(blocks):
        raise ValueError(f"layer {layer}: the network has 0 (the embeddings) to {len(blocks)}, or -1 for the last")
    layer %= len(blocks) + 1
    model.eval()
    caught: list[Tensor] = []
    if layer:
        hook = blocks[layer - 1].register_forward_hook(lambda block, inputs, output: caught.append(output))
    else:
        hook = blocks[0].register_forward_pre_hook(lambda block, inputs: caught.append(inputs[0]))
    found = []
    try:
        for start in range(0, len(rows), n_batch):
            batch = rows[start : start + n_batch]
            packing = pack(model.transformer, [[ids] for ids in batch])
            model.transformer(packing)
            states = packing.unpack(caught.pop()).float().cpu()  # (B, T, C)
            found += [row[: len(ids)] for row, ids in zip(states, batch, strict=True)]
    finally:
        hook.remove()
    return found


def features(
    model: nn.Module,
    encoder: TextEncoder,
    texts: Sequence[Example],
    layer: int = -1,
    per: str = "token",
    n_context: int | None = None,
    n_batch: int = 16,
) -> list[Features]:
    """Return the hidden states of each text, for each token or word, with their spans in the text.

    Args:
        model, encoder: from open_model or open_run (run.model, run.encoder).
        texts: as of read_row; special tokens of a fine-tuned run are among the tokens and words.
        layer: as of hidden_states.
        per: token; or word: the state at its last token.
        n_context: of words only: the network sees so many words before each word, instead of all of them; each word is
            then the end of a row of its own, and special tokens have no states.
    """
    if per not in ("token", "word") or (n_context is not None and per == "token"):
        raise ValueError(f"per {per!r}, n_context {n_context}: per is 'token' or 'word', n_context is of words")
    if n_context is not None:
        return [_in_fixed_context(model, encoder, text, layer, n_context, n_batch) for text in texts]
    rows = [read_row(model, encoder, text) for text in texts]
    states = hidden_states(model, [row.ids for row in rows], layer, n_batch)
    if per == "token":
        return [Features(row.tokens, state) for row, state in zip(rows, states, strict=True)]
    return [Features(row.words, state[row.word_ends]) for row, state in zip(rows, states, strict=True)]


def _in_fixed_context(
    model: nn.Module, encoder: TextEncoder, text: str, layer: int, n_context: int, n_batch: int
) -> Features:
    """Return the state at the last token of each word, which the network sees with n_context words before it."""
    if not isinstance(text, str) or n_context < 0:
        raise ValueError(f"a fixed context is of one text, and of 0 words or more: {text!r}, {n_context}")
    words, row = encoder.words_with_spans(text), Row()
    row.add_words(words, encoder, text, 0)
    if not words:
        raise InputError(f"{text!r} holds no tokens. Leave it out.")
    start = [special_tokens(encoder.n_vocab).start] if isinstance(model, DoubleHeadModel) else []
    rows = [start + [i for word in words[max(0, w - n_context) : w + 1] for i in word.ids] for w in range(len(words))]
    check_length(max(rows, key=len), model.transformer.n_ctx, text)
    states = hidden_states(model, rows, layer, n_batch)
    return Features(row.words, torch.stack([state[-1] for state in states]))


def pooled_features(
    model: nn.Module,
    encoder: TextEncoder,
    texts: Sequence[Example],
    layer: int = -1,
    pool: str = "mean",
    n_batch: int = 16,
) -> Tensor:
    """Return one vector for each text (N, C).

    Args:
        pool: mean: the mean over the tokens of the text; last: the state at its last token; classify: at `_classify_`,
            which the task head of a fine-tuned run reads.
    """
    if pool not in ("mean", "last", "classify"):
        raise ValueError(f"pool {pool!r} is not 'mean', 'last' or 'classify'")
    if pool == "classify" and not isinstance(model, DoubleHeadModel):
        raise ValueError("pool 'classify' needs a fine-tuned run: a pre-trained network reads no _classify_")
    rows = [read_row(model, encoder, text) for text in texts]
    vectors = []
    for row, states in zip(rows, hidden_states(model, [row.ids for row in rows], layer, n_batch), strict=True):
        own = states if pool == "classify" else states[torch.tensor(row.is_text())]
        vectors.append(own.mean(0) if pool == "mean" else own[-1])
    return torch.stack(vectors)


# --- attention weights -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """What each token of an example attends to, in each of n_layer blocks and H heads."""

    row: Row
    weights: Tensor  # (n_layer, H, T, T): of each token (third axis) to each (last axis), which sum to 1; on the CPU

    def to_words(self, position: int = -1) -> Tensor:
        """Return what the token at a position attends to (n_layer, H, W): for each word the sum over its tokens.

        The default is the last position: of a fine-tuned run `_classify_`.
        """
        found = self.weights.new_zeros(*self.weights.shape[:2], len(self.row.words))
        return found.index_add_(2, torch.tensor(self.row.word_of_token()), self.weights[:, :, position])


@torch.no_grad()
def attention_weights(model: nn.Module, encoder: TextEncoder, example: Example) -> Attention:
    """Return the attention weights of an example, computed from what each block's c_attn gives out."""
    row, found = read_row(model, encoder, example), []

    def catch(conv: nn.Module, inputs: tuple, output: Tensor) -> None:
        found.append(weights_of(output, model.transformer.h[len(found)].attn.n_head).float().cpu())

    model.eval()
    hooks = [block.attn.c_attn.register_forward_hook(catch) for block in model.transformer.h]
    try:
        model.transformer(pack(model.transformer, [[row.ids]]))
    finally:
        for hook in hooks:
            hook.remove()
    return Attention(row, torch.stack(found))


def weights_of(qkv: Tensor, n_head: int) -> Tensor:
    """Return softmax(q k' / sqrt(D)) (H, T, T) of one row: queries, keys and values of all heads (T, 3C)."""
    q, k, _ = qkv.unflatten(1, (3, n_head, -1)).permute(1, 2, 0, 3)  # (H, T, D)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))  # (H, T, T)
    causal = torch.ones_like(scores, dtype=torch.bool).tril()
    return scores.masked_fill(~causal, -math.inf).softmax(-1)
