"""Looking inside a network: hidden states and attention weights, with where each stands in the user's own text.

Shape letters as in model_pytorch.py; further W words. All of it works by forward hooks on the network as it is.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from formats.files import InputError
from model_pytorch import DoubleHeadModel, TransformerModel
from reading.rows import Ids, special_tokens
from scoring import Text, pack, words_of
from speed.packing import Packing
from text_utils import Span, TextEncoder, Word

# a text, or a list of its words; of a fine-tuned run also a tuple of two: premise and hypothesis, context and choice
Example = Text | tuple[Text, ...]
Layer = int | str

# --- what the network reads ------------------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A token or a word of what the network reads."""

    text: str  # a token as in the vocabulary; a word as the user wrote it; `_start_`, `_delimiter_`, `_classify_`
    span: Span | None  # start and end in the text, or the given word; None: a special token, or unknown (text_utils.py)
    source: int | None = 0  # which of the example's texts it is of; None: a special token


@dataclass(frozen=True)
class Row:
    """What the network reads for one example: T tokens in W words. A special token is a word of its own."""

    ids: list[int] = field(default_factory=list)
    tokens: list[Unit] = field(default_factory=list)
    words: list[Unit] = field(default_factory=list)
    tokens_of_words: list[range] = field(default_factory=list)  # of each word: its tokens, as indices

    def add(self, word: Word, source: int | None, tokens: Sequence[str]) -> None:
        """Append a word and its tokens."""
        start = len(self.ids)
        self.ids.extend(word.ids)
        self.tokens_of_words.append(range(start, len(self.ids)))
        self.words.append(Unit(word.text, word.span, source))
        for token, span in zip(tokens, word.spans, strict=True):
            self.tokens.append(Unit(token, span, source))

    def add_special(self, name: str, token: int) -> None:
        self.add(Word(name, [token], [None]), None, [name])

    def tokens_of_text(self) -> list[int]:
        """Return the tokens that are of the user's text, not special ones, as indices."""
        return [i for i, token in enumerate(self.tokens) if token.source is not None]


def read_row(model: nn.Module, encoder: TextEncoder, example: Example) -> Row:
    """Return an example as the network reads it.

    A pre-trained network reads the text by itself. A fine-tuned run reads `start text classify`, with a delimiter
    between the texts where there are two.

    Raises:
        InputError: the example has no tokens, or more than the network has positions.
        ValueError: several texts for a network that was not fine-tuned, or a list of them instead of a tuple.
    """
    # one text, or several for a fine-tuned run
    texts = example if isinstance(example, tuple) else (example,)
    is_tuned = isinstance(model, DoubleHeadModel)
    if len(texts) != 1 and not is_tuned:
        raise ValueError(f"{len(texts)} texts: only a fine-tuned network has a token to put between them")
    if is_tuned and isinstance(example, list) and any(" " in word for word in example):
        raise ValueError(f"{example!r}: a list is of words, which hold no spaces. Give several texts as a tuple")

    # the texts, each after a special token
    special = special_tokens(encoder.n_vocab)
    row = Row()
    for source, text in enumerate(texts):
        if is_tuned and source == 0:
            row.add_special("_start_", special.start)
        elif is_tuned:
            row.add_special("_delimiter_", special.delimiter)
        for word in words_of(encoder, text):
            row.add(word, source, [encoder.decoder[i] for i in word.ids])
    if is_tuned:
        row.add_special("_classify_", special.classify)

    if not row.tokens_of_text():
        raise InputError(f"{example!r} holds no tokens. Leave it out.")
    check_length(row.ids, model.transformer.n_ctx, example)
    return row


def check_length(ids: Ids, n_ctx: int, example: Example) -> None:
    """Raise InputError for a row with more tokens than the network has positions."""
    if len(ids) > n_ctx:
        start = str(example)[:60]
        raise InputError(
            f"a text takes {len(ids)} tokens, the network has positions for {n_ctx}. Split it, or give a fixed "
            f"context (n_context): {start} ..."
        )


@contextmanager
def caught_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Within it, collect what modules give out, in the order in which they are called."""
    caught = []
    hooks = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        caught.append(output)

    for module in modules:
        hooks.append(module.register_forward_hook(keep))
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


# --- hidden states ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Hidden states of an example, one for each of its tokens or words."""

    units: list[Unit]
    states: Tensor  # (T, C), or (W, C), on the CPU; with all layers (n_layer + 1, T, C), or (n_layer + 1, W, C)


def layer_states(transformer: TransformerModel, packing: Packing) -> list[Tensor]:
    """Return the embeddings, token and position added, and what each block gives out (N, C)."""
    with caught_outputs(transformer.h) as of_blocks:
        transformer(packing)
    return [transformer.embed(packing.tokens).sum(-2), *of_blocks]


@torch.no_grad()
def hidden_states(model: nn.Module, rows: Sequence[Ids], layer: Layer = -1, n_batch: int = 16) -> list[Tensor]:
    """Return the states of each row of token ids (T, C), in float32, on the CPU.

    Args:
        layer: 0: the embeddings, token and position added; i: what block i gives out; -1: the last block; all: all of
            these, from 0 on (n_layer + 1, T, C).
        n_batch: rows computed at a time.

    Raises ValueError for a layer that there is not.
    """
    n_layer = len(model.transformer.h)
    if layer != "all" and layer not in range(-n_layer - 1, n_layer + 1):
        raise ValueError(f"layer {layer}: the network has 0 (the embeddings) to {n_layer}, -1 for the last, or 'all'")

    # some rows at a time
    model.eval()
    found = []
    for start in range(0, len(rows), n_batch):
        batch = rows[start : start + n_batch]
        packing = pack(model.transformer, [[ids] for ids in batch])
        layers = layer_states(model.transformer, packing)
        states = torch.stack(layers, 1) if layer == "all" else layers[layer]  # (N, L, C) or (N, C)
        padded = packing.unpack(states).float().cpu()  # (B, T, L, C) or (B, T, C)
        for ids, of_row in zip(batch, padded, strict=True):
            own = of_row[: len(ids)]  # without the padding
            found.append(own.movedim(0, -2))
    return found


def pooled(states: Tensor, tokens: Sequence[int], pool: str) -> Tensor:
    """Return the mean or the last of the states of some tokens: (..., T, C) to (..., C)."""
    own = states[..., tokens, :]
    return own[..., -1, :] if pool == "last" else own.mean(-2)


def features(
    model: nn.Module,
    encoder: TextEncoder,
    texts: Sequence[Example],
    layer: Layer = -1,
    per: str = "token",
    n_context: int | None = None,
    pool: str = "last",
) -> list[Features]:
    """Return the hidden states of each text, for each token or word, with their spans in the text.

    Args:
        model, encoder: from open_model or open_run (run.model, run.encoder).
        texts: as of read_row; special tokens of a fine-tuned run are among the tokens and words.
        layer: as of hidden_states.
        per: token or word. Where the text is a list of words, these are the words.
        n_context: of words only: the network sees so many words before each word, instead of all of them; each word is
            then the end of a row of its own, and special tokens have no states.
        pool: of words only: the state at the last of its tokens, or the mean over them.
    """
    if per not in ("token", "word") or (n_context is not None and per == "token"):
        raise ValueError(f"per {per!r}, n_context {n_context}: per is 'token' or 'word', n_context is of words")
    if pool not in ("last", "mean"):
        raise ValueError(f"pool {pool!r} is not 'last' or 'mean'")

    # a row for each word
    if n_context is not None:
        return [_in_fixed_context(model, encoder, text, layer, n_context, pool) for text in texts]

    # a row for each text
    rows = [read_row(model, encoder, text) for text in texts]
    of_rows = hidden_states(model, [row.ids for row in rows], layer)
    found = []
    for row, states in zip(rows, of_rows, strict=True):
        if per == "token":
            found.append(Features(row.tokens, states))
        else:
            of_words = [pooled(states, tokens, pool) for tokens in row.tokens_of_words]
            found.append(Features(row.words, torch.stack(of_words, -2)))
    return found


def _in_fixed_context(
    model: nn.Module, encoder: TextEncoder, text: Text, layer: Layer, n_context: int, pool: str
) -> Features:
    """Return the states of the words, each of which the network sees with n_context words before it."""
    if isinstance(text, tuple) or n_context < 0:
        raise ValueError(f"a fixed context is of one text, and of 0 words or more: {text!r}, {n_context}")
    words = words_of(encoder, text)
    if not words:
        raise InputError(f"{text!r} holds no tokens. Leave it out.")

    # a row for each word
    is_tuned = isinstance(model, DoubleHeadModel)
    start = special_tokens(encoder.n_vocab).start
    rows = []
    for i in range(len(words)):
        seen = words[max(0, i - n_context) : i + 1]
        ids = [start] if is_tuned else []
        for word in seen:
            ids += word.ids
        check_length(ids, model.transformer.n_ctx, text)
        rows.append(ids)

    # the word is at its end
    of_words = []
    for word, states in zip(words, hidden_states(model, rows, layer), strict=True):
        of_words.append(pooled(states, range(-len(word.ids), 0), pool))
    units = [Unit(word.text, word.span) for word in words]
    return Features(units, torch.stack(of_words, -2))


def pooled_features(
    model: nn.Module, encoder: TextEncoder, texts: Sequence[Example], layer: Layer = -1, pool: str = "mean"
) -> Tensor:
    """Return one vector for each text (N, C); with all layers (N, n_layer + 1, C).

    Args:
        pool: mean: the mean over the tokens of the text; last: the state at its last token; classify: at `_classify_`,
            which the task head of a fine-tuned run reads.
    """
    if pool not in ("mean", "last", "classify"):
        raise ValueError(f"pool {pool!r} is not 'mean', 'last' or 'classify'")
    if pool == "classify" and not isinstance(model, DoubleHeadModel):
        raise ValueError("pool 'classify' needs a fine-tuned run: a pre-trained network reads no _classify_")

    # a row for each text
    rows = [read_row(model, encoder, text) for text in texts]
    of_rows = hidden_states(model, [row.ids for row in rows], layer)
    vectors = []
    for row, states in zip(rows, of_rows, strict=True):
        if pool == "classify":
            vectors.append(states[..., -1, :])
        else:
            vectors.append(pooled(states, row.tokens_of_text(), pool))
    return torch.stack(vectors)


# --- attention weights -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionWeights:
    """What each token of an example attends to, in each of n_layer blocks and H heads."""

    row: Row
    weights: Tensor  # (n_layer, H, T, T): of each token (third axis) to each (last axis), which sum to 1; on the CPU

    def to_words(self, position: int = -1) -> Tensor:
        """Return what the token at a position attends to (n_layer, H, W): for each word the sum over its tokens.

        The default is the last position: of a fine-tuned run `_classify_`.
        """
        of_tokens = self.weights[:, :, position]  # (n_layer, H, T)
        of_words = [of_tokens[..., tokens].sum(-1) for tokens in self.row.tokens_of_words]
        return torch.stack(of_words, -1)


@torch.no_grad()
def attention_weights(model: nn.Module, encoder: TextEncoder, example: Example) -> AttentionWeights:
    """Return the attention weights of an example, computed from what each block's c_attn gives out."""
    row = read_row(model, encoder, example)
    transformer = model.eval().transformer
    with caught_outputs(block.attn.c_attn for block in transformer.h) as projections:
        transformer(pack(transformer, [[row.ids]]))

    # queries and keys of each block to its weights
    n_head = transformer.h[0].attn.n_head
    weights = [causal_weights(qkv, n_head).float().cpu() for qkv in projections]
    return AttentionWeights(row, torch.stack(weights))


def causal_weights(qkv: Tensor, n_head: int) -> Tensor:
    """Return softmax(q k' / sqrt(D)) (H, T, T) of one row: queries, keys and values of all heads (T, 3C)."""
    by_head = qkv.unflatten(1, (3, n_head, -1))  # (T, 3, H, D)
    q, k, _ = by_head.permute(1, 2, 0, 3)  # (H, T, D)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))  # (H, T, T)
    is_later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(is_later, -math.inf).softmax(-1)
