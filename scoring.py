"""What a language model says of texts: log-probabilities, perplexity, surprisal.

Shape letters as in model_pytorch.py. Probabilities are over the words of the vocabulary, as published ones are, or over
all V rows of the embedding matrix, special tokens and positions included, as in the training loss.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formats.examples import numbered_lines
from formats.files import InputError
from model_pytorch import TransformerModel
from reading.rows import Ids
from running.inference import progress_bar
from running.processes import Ranks
from speed.kernels import row_losses
from speed.packing import Packing
from text_utils import TextEncoder, Word

# --- rows of ids -> log-probabilities --------------------------------------------------------------------------------


def pack(transformer: TransformerModel, examples: Sequence[list[Ids]], share_context: bool = False) -> Packing:
    """Return rows of token ids, some for each example, as the transformer's input, on its device."""
    # position rows are the last ones of the embedding matrix, whether special tokens stand before them or not
    first_position = len(transformer.embed.weight) - transformer.n_ctx
    return Packing.of_rows(examples, first_position, share_context).to(transformer.embed.weight.device)


@torch.no_grad()
def next_log_probabilities(transformer: TransformerModel, packing: Packing, n_words: int | None = None) -> Tensor:
    """Return the log-probability (nats) of each token of the rows but the first (B*K, T-1), 0 on padding.

    Args:
        n_words: normalise over so many rows of the embedding matrix, the first ones; None: over all.
    """
    return _log_probabilities(_predictors(transformer, packing), transformer.embed.weight[:n_words], packing)


@torch.no_grad()
def next_tokens(transformer: TransformerModel, packing: Packing, n_words: int | None = None) -> tuple[Tensor, Tensor]:
    """Return what next_log_probabilities does, and whether each token is the most probable one, true on padding."""
    states, table = _predictors(transformer, packing), transformer.embed.weight[:n_words]
    best = torch.cat([F.linear(chunk, table).argmax(1) for chunk in states.split(256)])  # (M,)
    is_best = torch.cat([best == packing.targets, best.new_ones(1, dtype=torch.bool)])
    return _log_probabilities(states, table, packing), is_best[packing.predictions]


def _predictors(transformer: TransformerModel, packing: Packing) -> Tensor:
    """Return the states from which the tokens of the rows but the first are predicted (M, C)."""
    transformer.eval()
    return transformer(packing).index_select(0, packing.predictors)


def _log_probabilities(states: Tensor, table: Tensor, packing: Packing) -> Tensor:
    m = len(packing.targets)
    each = torch.arange(m, device=states.device)[:, None]  # row_losses, with each prediction as a row of its own
    losses = row_losses(states, table, packing.targets, each, torch.ones_like(each, dtype=states.dtype))  # (M,)
    return torch.cat([-losses, losses.new_zeros(1)])[packing.predictions]


def windows(n_tokens: int, n_ctx: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield start and end of each window on a text, and the first token that is scored there.

    A token is scored in the first window that holds it behind another one. With n_ctx 4 and stride 2, 7 tokens are
    scored in 0-4 (tokens 1 2 3), 2-6 (4 5) and 4-7 (6); with stride 4 in 0-4 (1 2 3) and 4-7 (5 6): token 4 is not
    scored, as in pre-training.
    """
    done = 0
    for start in range(0, n_tokens, stride):
        end = min(start + n_ctx, n_tokens)
        if (first := max(done, start + 1)) < end:
            yield start, end, first
        if (done := end) == n_tokens:
            return


def log_probabilities(
    model: nn.Module, ids: Ids, n_words: int | None = None, stride: int | None = None, n_batch: int = 8
) -> np.ndarray:
    """Return the log-probability (nats) of each token of a text of any length (T,), NaN where it is not scored.

    Args:
        model: with a `transformer`: from open_model, open_run or LMModel.
        n_words: as of next_log_probabilities.
        stride: tokens from one window of n_ctx tokens to the next; each token but the first ones is predicted from
            n_ctx - stride tokens or more. None: half of n_ctx. With n_ctx, the first token of every window is not
            scored.
        n_batch: windows computed at a time.
    """
    transformer = model.transformer
    stride = transformer.n_ctx // 2 if stride is None else stride
    if not 1 <= stride <= transformer.n_ctx:
        raise InputError(f"the stride is {stride}; windows of {transformer.n_ctx} tokens take 1 to that many.")
    found, todo = np.full(len(ids), np.nan), list(windows(len(ids), transformer.n_ctx, stride))
    with progress_bar(len(todo), "scoring" if len(todo) > n_batch else None, "windows", Ranks()) as bar:
        for i in range(0, len(todo), n_batch):
            batch = todo[i : i + n_batch]
            packing = pack(transformer, [[ids[start:end]] for start, end, _ in batch])
            rows = next_log_probabilities(transformer, packing, n_words).cpu().numpy()
            for (start, end, first), row in zip(batch, rows, strict=True):
                found[first:end] = row[first - start - 1 : end - start - 1]
            bar.update(len(batch))
    return found


# --- texts -> scores -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a text of T tokens in W words; marks and newlines count as words."""

    words: list[Word]
    log_probabilities: np.ndarray  # (T,) in nats, NaN for a token that is not scored: the first one

    def of_words(self) -> np.ndarray:
        """Return the log-probability of each word (W,), the sum over its tokens; NaN where one is not scored."""
        ends = np.cumsum([len(word.ids) for word in self.words])
        return np.array([part.sum() for part in np.split(self.log_probabilities, ends[:-1])])

    def surprisal(self) -> np.ndarray:
        """Return the surprisal of each word in bits (W,)."""
        return -self.of_words() / math.log(2)

    def per_token(self) -> float:
        """Return the perplexity per token that is scored."""
        return _perplexity(self.log_probabilities)

    def per_word(self) -> float:
        """Return the perplexity per word that is scored."""
        return _perplexity(self.of_words())


def _perplexity(log_probabilities: np.ndarray) -> float:
    scored = log_probabilities[~np.isnan(log_probabilities)]
    return math.exp(-scored.mean()) if len(scored) else math.nan


def score(
    model: nn.Module,
    encoder: TextEncoder,
    text: str | Sequence[Word],
    stride: int | None = None,
    all_rows: bool = False,
    n_batch: int = 8,
) -> Score:
    """Return the log-probabilities of a text, or of words that the encoder has split.

    Args:
        model, stride, n_batch: as of log_probabilities.
        all_rows: normalise over all rows of the embedding matrix, as the training loss does, not over the words only.

    Raises InputError for a text of fewer than two tokens: the first one is not scored.
    """
    words = encoder.words_with_spans(text) if isinstance(text, str) else list(text)
    ids = [i for word in words for i in word.ids]
    if len(ids) < 2:
        raise InputError(f"{len(ids)} tokens: there is nothing to score, as the first one is not. Give a longer text.")
    n_words = None if all_rows else encoder.n_vocab
    return Score(words, log_probabilities(model, ids, n_words, stride, n_batch))


def read_words(encoder: TextEncoder, path: Path) -> Iterator[tuple[int, str, list[Word]]]:
    """Yield number, text and words of each line of a file that is not blank; newlines are tokens, as in pre-training.

    Raises InputError for a file that is missing or not UTF-8.
    """
    newline = Word("\n", [encoder.encoder.get("\n</w>", 0)], [None])
    for number, line, why in numbered_lines(path):
        if why:
            raise InputError(f"{path}, line {number}: {why}")
        if words := encoder.words_with_spans(line):
            yield number, line, [*words, newline]


HEADER = ("line", "start", "end", "word", "surprisal", "tokens", "log_probabilities")


def score_file(
    model: nn.Module,
    encoder: TextEncoder,
    path: str | os.PathLike,
    out: IO[str] | None = None,
    stride: int | None = None,
    all_rows: bool = False,
    n_batch: int = 8,
) -> Score:
    """Return the score of a text file, and write a line for each of its words: tab separated, without quoting.

    The columns: number of the line; start and end of the word in it, empty where unknown; the word; its surprisal in
    bits; its tokens, separated by spaces; their log-probabilities in nats. NA where a token is not scored.

    Args:
        out: a file open for text; None: write nothing.
        model, stride, all_rows, n_batch: as of `score`.

    Raises InputError for a file that is missing, not UTF-8, or holds fewer than two tokens.
    """
    lines = list(read_words(encoder, Path(path)))
    try:
        found = score(model, encoder, [w for _, _, words in lines for w in words], stride, all_rows, n_batch)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if out is not None:
        out.write("\t".join(HEADER) + "\n")
        out.writelines(_table(encoder, lines, found))
    return found


def _table(encoder: TextEncoder, lines: list[tuple[int, str, list[Word]]], found: Score) -> Iterator[str]:
    surprisal, values = iter(found.surprisal()), iter(found.log_probabilities)
    for number, line, words in lines:
        for word in words:
            start, end = word.span or ("", "")
            text = line[start:end] if word.span else word.text
            text = text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
            tokens = " ".join(encoder.decoder[i].replace("\n", "\\n") for i in word.ids)
            logs = " ".join(_number(next(values)) for _ in word.ids)
            yield f"{number}\t{start}\t{end}\t{text}\t{_number(next(surprisal))}\t{tokens}\t{logs}\n"


def _number(value: float) -> str:
    return "NA" if math.isnan(value) else f"{value:.5f}"


def summary(found: Score, n_words: int, n_rows: int, all_rows: bool) -> str:
    """Return in words what a score says; n_words is the size of the vocabulary, n_rows of the embedding matrix."""
    over = f"all {n_rows:,} rows of the embedding matrix" if all_rows else f"the {n_words:,} words of the vocabulary"
    n_tokens, n_scored = len(found.log_probabilities), int((~np.isnan(found.log_probabilities)).sum())
    return (
        f"perplexity {found.per_token():.4f} per token, {found.per_word():.4f} per word; {n_scored:,} of {n_tokens:,} "
        f"tokens in {len(found.words):,} words scored, over {over}"
    )
