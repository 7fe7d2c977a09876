"""What a language model says of texts: log-probabilities, perplexity, surprisal, entropy, what may come next.

Shape letters as in model_pytorch.py; further R rows, W words. Probabilities are over the words of the vocabulary, as
published ones are, or over all V entries of the embedding matrix, special tokens and positions included, as in the
training loss.
"""

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

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
from speed.packing import Packing
from text_utils import TextEncoder, Word

# --- rows of ids -> log-probabilities --------------------------------------------------------------------------------


def pack(transformer: TransformerModel, examples: Sequence[list[Ids]], share_context: bool = False) -> Packing:
    """Return rows of token ids, some for each example, as the transformer's input, on its device."""
    # positions are the last entries of the embedding matrix, whether special tokens stand before them or not
    first_position = len(transformer.embed.weight) - transformer.n_ctx
    return Packing.of_rows(examples, first_position, share_context).to(transformer.embed.weight.device)


def pack_before(transformer: TransformerModel, rows: Sequence[Ids]) -> Packing:
    """As `pack`, for rows of two to n_ctx + 1 token ids: the last one is predicted and not read."""
    packing = pack(transformer, [[row[:-1]] for row in rows])

    # each token that is read predicts the one after it
    device = packing.tokens.device
    packing.predictors = torch.arange(len(packing.tokens), device=device)
    packing.targets = torch.tensor([i for row in rows for i in row[1:]], device=device)
    packing.predictions = packing.source
    if packing.source is None:
        packing.predictions = packing.predictors.view(packing.shape)
    return packing


class NextTokens(NamedTuple):
    """What a model says of the tokens of rows, or of a text: three numbers of each token."""

    log_probabilities: Tensor | np.ndarray  # nats
    entropies: Tensor | np.ndarray  # nats, of the distribution over what may stand in the token's place
    ranks: Tensor | np.ndarray  # 1 for the most probable token


@torch.no_grad()
def next_tokens(transformer: TransformerModel, packing: Packing, n_entries: int | None = None) -> NextTokens:
    """Return what the model says of each token of the rows but the first (R, T-1), 0 on padding.

    Args:
        n_entries: normalise over so many entries of the embedding matrix, the first ones; None: over all.
    """
    transformer.eval()
    states = transformer(packing).index_select(0, packing.predictors)  # (M, C)
    table = transformer.embed.weight[:n_entries]

    # a chunk at a time: all logits together would be the largest tensor of all
    found = []
    for state, target in zip(states.split(256), packing.targets.split(256), strict=True):
        logs = F.linear(state, table).log_softmax(1)
        own = logs.gather(1, target[:, None])[:, 0]
        entropy = -(logs.exp() * logs).sum(1)
        rank = 1 + (logs > own[:, None]).sum(1)
        found.append(torch.stack([own, entropy, rank.to(own.dtype)]))

    # from the M predictions to the rows; the one more is the padding's
    padded = F.pad(torch.cat(found, 1), (0, 1))
    return NextTokens(*padded[:, packing.predictions])


def windows(n_tokens: int, n_ctx: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield start and end of each window on a text, and the first token that is scored there.

    A token is scored in the first window that holds it behind another one. With n_ctx 4 and stride 2, 7 tokens are
    scored in 0-4 (tokens 1 2 3), 2-6 (4 5) and 4-7 (6); with stride 4 in 0-4 (1 2 3) and 4-7 (5 6): token 4 is not
    scored, as in pre-training.
    """
    end = 0
    for start in range(0, n_tokens, stride):
        first = max(end, start + 1)
        end = min(start + n_ctx, n_tokens)
        if first < end:
            yield start, end, first
        if end == n_tokens:
            return


def score_ids(
    model: nn.Module,
    ids: Ids,
    n_entries: int | None = None,
    stride: int | None = None,
    n_batch: int = 8,
    starts: Sequence[int] = (0,),
) -> NextTokens:
    """Return what the model says of each token of a text of any length (T,), NaN where it is not scored.

    Args:
        model: with a `transformer`: from open_model, open_run or LMModel.
        n_entries: as of next_tokens.
        stride: tokens from one window of n_ctx tokens to the next; each token but the first ones is predicted from
            n_ctx - stride tokens or more. None: half of n_ctx. With n_ctx, the first token of every window is not
            scored.
        n_batch: windows computed at a time.
        starts: where texts begin in ids, each of them scored by itself.
    """
    n_ctx = model.transformer.n_ctx
    stride = n_ctx // 2 if stride is None else stride
    if not 1 <= stride <= n_ctx:
        raise InputError(f"the stride is {stride}; windows of {n_ctx} tokens take 1 to that many.")

    # the windows on each text
    todo = []
    for begin, end_of_text in pairwise([*starts, len(ids)]):
        for start, end, first in windows(end_of_text - begin, n_ctx, stride):
            todo.append((begin + start, begin + end, begin + first))

    # those of similar length are computed together: attention has few free slots
    todo.sort(key=lambda window: window[0] - window[1])  # the longest first; else in their order

    # some windows at a time
    found = np.full((3, len(ids)), np.nan)
    name = "scoring" if len(todo) > n_batch else None  # short texts show no progress
    with progress_bar(len(todo), name, "windows", Ranks()) as bar:
        for i in range(0, len(todo), n_batch):
            batch = todo[i : i + n_batch]
            rows = [[ids[start:end]] for start, end, _ in batch]
            packing = pack(model.transformer, rows)
            tokens = next_tokens(model.transformer, packing, n_entries)
            of_rows = torch.stack(tokens, 1).cpu().numpy()  # (B, 3, T-1)

            # of each window what is scored there
            for (start, end, first), of_row in zip(batch, of_rows, strict=True):
                before_first = first - start - 1  # of_row[:, 0] is of the window's second token
                found[:, first:end] = of_row[:, before_first : before_first + end - first]
            bar.update(len(batch))
    return NextTokens(*found)


# --- texts -> scores -------------------------------------------------------------------------------------------------

Text = str | Sequence[str] | Sequence[Word]  # as it is, or split into words, by the user or by words_of


def words_of(encoder: TextEncoder, text: Text) -> list[Word]:
    """Return the words of a text as its user wrote them; in lower case where it is not known where they stand.

    Words that the user has split stay as they are, whatever the tokenizer makes of them; their spans are in themselves.

    Raises InputError for such a word without tokens.
    """
    words = []

    # a text that the encoder splits
    if isinstance(text, str):
        for word in encoder.words_with_spans(text):
            if word.span is not None:
                word = word._replace(text=text[slice(*word.span)])
            words.append(word)
        return words

    # words that are given: all tokens of one belong together
    for given in text:
        if isinstance(given, Word):
            words.append(given)
            continue
        word = Word(given, [], [])
        for part in encoder.words_with_spans(given):
            word.ids.extend(part.ids)
            word.spans.extend(part.spans)
        if not word.ids:
            raise InputError(f"the word {given!r}, number {len(words) + 1}, holds no tokens. Leave it out.")
        words.append(word)
    return words


@dataclass(frozen=True)
class Score:
    """What a model says of a text of T tokens in W words; marks and newlines count as words."""

    words: list[Word]
    log_probabilities: np.ndarray  # (T,) in nats, NaN for a token that is not scored: the first one without a context
    entropies: np.ndarray  # (T,) in nats, as of NextTokens
    ranks: np.ndarray  # (T,)
    context: list[int]  # ids before the text
    n_entries: int  # of the embedding matrix: what the probabilities are over

    def starts(self) -> np.ndarray:
        """Return the first token of each word (W,), as an index."""
        lengths = [len(word.ids) for word in self.words]
        return np.cumsum([0, *lengths[:-1]])

    def of_tokens(self) -> list[np.ndarray]:
        """Return for each word the log-probabilities of its tokens."""
        return np.split(self.log_probabilities, self.starts()[1:])

    def of_words(self) -> np.ndarray:
        """Return the log-probability of each word (W,), the sum over its tokens; NaN where one is not scored."""
        return np.array([logs.sum() for logs in self.of_tokens()])

    def surprisal(self) -> np.ndarray:
        """Return the surprisal of each word in bits (W,)."""
        return -self.of_words() / math.log(2)

    def entropy(self) -> np.ndarray:
        """Return how uncertain each word was before it came: the entropy of its first token in bits (W,)."""
        return self.entropies[self.starts()] / math.log(2)

    def rank(self) -> np.ndarray:
        """Return the rank of each word's first token among all that may stand there (W,), 1 for the most probable."""
        return self.ranks[self.starts()]

    @torch.no_grad()
    def next_word(self, model: nn.Module, word: int | None = None) -> np.ndarray:
        """Return the probability of each token to begin a word (n_entries,), given up to n_ctx tokens before it.

        Args:
            model: as of `score`.
            word: the index of the word; None: the one after the text.

        Raises ValueError for the first word of a text without a context.
        """
        ids = self.context + _ids_of(self.words[:word])
        if not ids:
            raise ValueError("nothing comes before the first word of a text without a context")

        # the state at the last of them says what comes next
        transformer = model.eval().transformer
        ids = ids[-transformer.n_ctx :]
        states = transformer(pack(transformer, [[ids]]))  # (N, C)
        table = transformer.embed.weight[: self.n_entries]
        logits = table @ states[len(ids) - 1]
        return logits.softmax(0).cpu().numpy()

    def per_token(self) -> float:
        """Return the perplexity per token that is scored."""
        return _perplexity(self.log_probabilities)

    def per_word(self) -> float:
        """Return the perplexity per word that is scored."""
        return _perplexity(self.of_words())

    def perplexities(self) -> str:
        """Return both perplexities and what they are of, in words."""
        n_tokens = len(self.log_probabilities)
        n_scored = np.count_nonzero(~np.isnan(self.log_probabilities))
        return (
            f"perplexity {self.per_token():.4f} per token, {self.per_word():.4f} per word; {n_scored:,} of "
            f"{n_tokens:,} tokens in {len(self.words):,} words scored, over {self.n_entries:,} entries of the "
            "embedding matrix"
        )


def _perplexity(log_probabilities: np.ndarray) -> float:
    scored = log_probabilities[~np.isnan(log_probabilities)]
    if len(scored) == 0:
        return math.nan
    try:
        return math.exp(-scored.mean())
    except OverflowError:  # of a long word: more than any float
        return math.inf


def _ids_of(words: Sequence[Word]) -> list[int]:
    return [i for word in words for i in word.ids]


def score(
    model: nn.Module,
    encoder: TextEncoder,
    text: Text,
    stride: int | None = None,
    all_rows: bool = False,
    context: Text = "",
    starts: Sequence[int] = (0,),
) -> Score:
    """Return the log-probabilities of a text.

    Args:
        text: also a list of words, which are then those of the score.
        model, stride: as of score_ids.
        all_rows: normalise over all entries of the embedding matrix, as the training loss does, not over the words
            only.
        context: what comes before the text; it is not scored itself.
        starts: as of score_ids, without a context: each text by itself.

    Raises InputError for a text without tokens, or of a single one without a context: the first one is not scored.
    """
    words = words_of(encoder, text)
    ids = _ids_of(words)
    before = _ids_of(words_of(encoder, context))
    if not ids or len(before) + len(ids) <= len(starts):
        raise InputError(f"{len(ids)} tokens: there is nothing to score, as the first one is not. Give a longer text.")

    # the context and the text as one; then the text alone
    n_entries = len(model.transformer.embed.weight) if all_rows else encoder.n_vocab
    found = score_ids(model, before + ids, n_entries, stride, starts=starts)
    log_probabilities, entropies, ranks = (values[len(before) :] for values in found)
    return Score(words, log_probabilities, entropies, ranks, before, n_entries)


# --- files -> scores -------------------------------------------------------------------------------------------------

HEADER = ("line", "start", "end", "word", "surprisal", "tokens", "log_probabilities")


def score_file(
    model: nn.Module,
    encoder: TextEncoder,
    path: str | os.PathLike,
    out: IO[str] | None = None,
    stride: int | None = None,
    all_rows: bool = False,
    by_line: bool = False,
) -> Score:
    """Return the score of a text file, and write a line for each of its words: tab separated, without quoting.

    The columns: number of the line; start and end of the word in it, empty where unknown; the word; its surprisal in
    bits; its tokens, separated by spaces; their log-probabilities in nats. NA where a token is not scored.

    Args:
        out: a file open for text; None: write nothing.
        model, stride, all_rows: as of `score`.
        by_line: score each line by itself, without a newline at its end; its first token is not scored.

    Raises InputError for a file that is missing, not UTF-8, or holds nothing to score.
    """
    # as in pre-training: lines that are not blank, each ended by the newline token
    newline = Word("\n", [encoder.encoder.get("\n</w>", 0)], [None])
    words = []
    numbers = []  # the line of each word
    starts = []  # the first token of each line
    n_tokens = 0
    for number, line, why in numbered_lines(Path(path)):
        if why:
            raise InputError(f"{path}, line {number}: {why}")
        of_line = words_of(encoder, line)
        if not of_line:
            continue
        if not by_line:
            of_line.append(newline)
        words += of_line
        numbers += [number] * len(of_line)
        starts.append(n_tokens)
        n_tokens += sum(len(word.ids) for word in of_line)

    # all lines are one text, or each one is
    try:
        found = score(model, encoder, words, stride, all_rows, starts=starts if by_line else [0])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if out is not None:
        write_surprisal(out, encoder, numbers, found)
    return found


def write_surprisal(out: IO[str], encoder: TextEncoder, numbers: Sequence[int], found: Score) -> None:
    """Write the table of score_file; numbers are the line of each word."""
    writer = csv.writer(out, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    writer.writerow(HEADER)
    columns = zip(numbers, found.words, found.surprisal(), found.of_tokens(), strict=True)
    for number, word, surprisal, log_probabilities in columns:
        # where it stands, unless that is unknown
        start = ""
        end = ""
        if word.span is not None:
            start, end = word.span

        # its tokens and what each adds to the surprisal
        tokens = " ".join(encoder.decoder[i] for i in word.ids)
        logs = " ".join(_number(value) for value in log_probabilities)
        writer.writerow((number, start, end, _escape(word.text), _number(surprisal), _escape(tokens), logs))


def _escape(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def _number(value: float) -> str:
    return "NA" if math.isnan(value) else f"{value:.5f}"
