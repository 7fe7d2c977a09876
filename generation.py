"""Text from a language model: tokens sampled one by one with a key-value cache, and readable text as it comes.

    model, encoder = open_model("demo/model")
    print(generate_text(model, encoder, "Anna had a big exam.", 40, temperature=0)[0])

Shape letters as in model_pytorch.py; S samples that are computed together, R rows of the embedding matrix that may be
sampled.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from formats.files import InputError
from model_pytorch import DoubleHeadModel, LMModel, TransformerModel
from reading.rows import special_tokens
from running.processes import total_memory
from text_utils import Detokenizer, TextEncoder

Model = TransformerModel | LMModel | DoubleHeadModel

# --- tokens ----------------------------------------------------------------------------------------------------------


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a token for each row of logits (S, R) -> (S,).

    Args:
        temperature: logits are divided by it; 0: always the most probable token.
        top_k: sample among so many of the most probable tokens; 0: among all.
        top_p: sample among the most probable tokens whose probabilities sum to at least this.
        generator: of random numbers, on the logits' device; default: torch's own.
    """
    if temperature == 0:
        return logits.argmax(1)

    # in float32 a smaller temperature would be 0
    logits = (logits - logits.amax(1, keepdim=True)) / max(temperature, 1e-30)

    # what is not among the most probable tokens gets no probability
    if 0 < top_k < logits.size(1):
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        probabilities, order = logits.softmax(1).sort(descending=True)
        is_out = probabilities.cumsum(1) - probabilities >= top_p  # those before it suffice
        is_out[:, 0] = False
        is_out = is_out.scatter(1, order, is_out)  # in the order of the tokens again
        logits = logits.masked_fill(is_out, -math.inf)
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def generate(
    model: Model, ids: Sequence[int] | Tensor, n_tokens: int, *, n_samples: int = 1, **how
) -> Iterator[list[int | None]]:
    """Continue a prompt: yield the next token of each sample, n_tokens times; None for a sample that has ended.

    Positions are absolute. When all n_ctx are taken, the last n_ctx // 2 tokens take the first positions and are
    computed once more.

    Args:
        model: put into evaluation mode.
        ids: token ids of the prompt (T,).
        n_samples: computed together, the prompt once for all.
        how: see generate_batch.

    Raises ValueError for a prompt that is empty or longer than n_ctx.
    """
    for step, _ in _generate(model, [ids], n_tokens, n_samples, **how):
        yield step


class Token(NamedTuple):
    """A generated token."""

    id: int
    log_probability: float  # nats; over all that may be sampled, whatever temperature, top_k, top_p and penalty are


def generate_batch(model: Model, prompts: Sequence[Sequence[int]], n_tokens: int, **how) -> list[list[Token]]:
    """Continue prompts of any lengths together, each by up to n_tokens tokens, as `generate` does one alone.

    Args:
        model: put into evaluation mode.
        prompts: token ids of each.
        how: repetition_penalty: the logits of tokens that have occurred are divided by it, or multiplied if negative;
            n_allowed: the first so many rows of the embedding matrix can be sampled, default: all but the positions;
            stop_ids: can be sampled too, and end a continuation, without being part of it;
            temperature, top_k, top_p and generator: see `sample`.

    Raises ValueError for a prompt that is empty or longer than n_ctx.
    """
    found: list[list[Token]] = [[] for _ in prompts]
    if not prompts:
        return found

    # the shortest begins; the others begin when they have been read, and none goes on for longer
    lengths = [len(ids) for ids in prompts]
    n_steps = n_tokens + max(lengths) - min(lengths)
    for step, logits in _generate(model, prompts, n_steps, **how):
        # of all samples, also of those whose token does not count
        ids = torch.tensor([0 if token is None else token for token in step], device=logits.device)
        log_probabilities = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)
        for tokens, token, value in zip(found, step, log_probabilities.tolist(), strict=True):
            if token is not None and len(tokens) < n_tokens:
                tokens.append(Token(token, value))
    return found


@torch.no_grad()
def _generate(
    model: Model,
    prompts: Sequence[Sequence[int] | Tensor],
    n_steps: int,
    n_samples: int = 1,
    *,
    repetition_penalty: float = 1.0,
    n_allowed: int | None = None,
    stop_ids: Collection[int] = (),
    **how,
) -> Iterator[tuple[list[int | None], Tensor]]:
    """Yield the next token of each sample, None for one that has ended or whose prompt goes on, and the logits (S, R).

    The logits are those over all that may be sampled, before temperature, top_k, top_p and penalty.

    All prompts begin at the same time. Once the shortest has been read, each step reads one more token of the longer
    ones: all samples have the same positions, and no padding.

    Args:
        n_steps: from the first token of the shortest prompt on.
        n_samples: of one prompt; several prompts have one each.
        prompts and the others: as of generate_batch.
    """
    transformer = getattr(model, "transformer", model).eval()
    table = transformer.embed.weight  # (V, C)
    n_ctx = transformer.n_ctx
    first_position = len(table) - n_ctx
    for ids in prompts:
        if not 0 < len(ids) <= n_ctx:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model has positions for 1 to {n_ctx}")

    # the tokens that are not in the cache, and all so far
    n_samples = max(n_samples, len(prompts))
    n_first = min(map(len, prompts))
    first = [torch.as_tensor(ids[:n_first], dtype=torch.long) for ids in prompts]
    new = torch.stack(first).to(table.device)  # (1, T): one for all samples; or (S, T)
    window = new.expand(n_samples, -1)  # (S, T)
    n_slots = min(n_ctx, n_first + n_steps)
    caches = new_caches(transformer, n_samples, n_slots)

    # the rows of the embedding matrix that can be sampled
    n_allowed = first_position if n_allowed is None else n_allowed
    n_rows = max([n_allowed, *(i + 1 for i in stop_ids)])
    is_forbidden = torch.arange(n_rows, device=table.device) >= n_allowed  # (R,)
    is_forbidden[list(stop_ids)] = False

    # what the penalty is for, and which samples go on
    has_occurred = torch.zeros(n_samples, len(table), dtype=torch.bool, device=table.device)  # (S, V)
    has_occurred.scatter_(1, window, True)
    has_ended = [False] * n_samples
    for n_read in range(n_first, n_first + n_steps):
        # the logits of the next token
        end = window.size(1)
        positions = first_position + torch.arange(end - new.size(1), end, device=table.device)
        x = torch.stack([new, positions.expand_as(new)], -1)
        h = transformer(x, caches=caches)[:, -1]
        logits = F.linear(h, table[:n_rows]).float().expand(n_samples, -1)  # (S, R)
        logits = logits.masked_fill(is_forbidden, -math.inf)
        unchanged = logits

        # what has occurred becomes less probable
        if repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
            logits = torch.where(has_occurred[:, :n_rows], penalised, logits)

        # one token a sample
        tokens = sample(logits, **how)  # (S,)
        step: list[int | None] = []
        for i, token in enumerate(tokens.tolist()):
            if len(prompts) > 1 and n_read < len(prompts[i]):  # what the prompt goes on with, instead
                tokens[i] = prompts[i][n_read]
                step.append(None)
                continue
            has_ended[i] = has_ended[i] or token in stop_ids
            step.append(None if has_ended[i] else token)
        yield step, unchanged
        if all(has_ended):
            return

        # the window goes on, or begins anew with its last half
        new = tokens[:, None]
        window = torch.cat([window, new], 1)
        has_occurred.scatter_(1, new, True)
        if window.size(1) > n_ctx:
            n_kept = max(1, n_ctx // 2)
            window = new = window[:, -n_kept:]
            caches = new_caches(transformer, n_samples, n_slots)


class KeyValueCache:
    """The keys and values of a block's earlier tokens, for up to n_slots tokens in each of S sequences.

    Without gradients; the tokens computed next attend to these too.
    """

    def __init__(self, like: Tensor, n_head: int, n_sequences: int, n_slots: int):
        shape = (n_head, n_sequences, n_slots, like.size(-1) // n_head)
        self.k = like.new_empty(shape)  # (H, S, n_slots, D)
        self.v = like.new_empty(shape)
        self.n_used = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (H, S, L, D) and return all so far.

        In the first call they may be of one sequence, which all S share.
        """
        start = self.n_used
        end = start + k.size(2)
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        self.n_used = end
        if start == 0:
            return k, v  # as they came: of one sequence where they are those of all
        return self.k[:, :, :end], self.v[:, :, :end]


def new_caches(transformer: TransformerModel, n_sequences: int, n_slots: int) -> list[KeyValueCache]:
    """Return empty caches, one a block, for n_sequences of up to n_slots tokens each."""
    table = transformer.embed.weight
    return [KeyValueCache(table, block.attn.n_head, n_sequences, n_slots) for block in transformer.h]


# --- text ------------------------------------------------------------------------------------------------------------


def encode_prompt(encoder: TextEncoder, text: str, n_allowed: int, may_be_empty: bool = False) -> list[int]:
    """Return the token ids of a prompt of at most n_allowed tokens.

    Raises InputError for one that is longer, empty unless it may be, or without any token of the vocabulary.
    """
    (ids,) = encoder.encode([text], verbose=False)
    if not ids and not may_be_empty:
        raise InputError("the prompt is empty. Give at least one word.")
    if len(ids) > n_allowed:
        raise InputError(f"the prompt has {len(ids)} tokens, the model takes at most {n_allowed}. Shorten it.")
    if ids and not any(ids):  # 0 is the unknown token
        raise InputError(f"no token of the prompt is in the vocabulary: {text.strip()[:60]!r}. Give other words.")
    return ids


def check_memory(transformer: TransformerModel, n_samples: int, n_tokens: int) -> None:
    """Raise InputError when the keys and values of so many samples cannot fit into the memory of the device."""
    # a key and a value for each token, feature and block
    table = transformer.embed.weight
    n_slots = min(n_tokens, transformer.n_ctx)
    n_values = 2 * len(transformer.h) * table.size(1) * n_slots  # of a sample
    needed = n_samples * n_values * table.element_size() / 2**30
    there = total_memory(table.device) / 2**30
    if needed > there:
        raise InputError(
            f"{n_samples:,} samples at once need {needed:,.0f} GiB of memory, there are {there:,.0f}. Ask for fewer."
        )


class Transcript:
    """The readable text of one sample as its tokens come; it ends before a stop text.

    Args:
        encoder: the tokenizer.
        prompt: token ids before the first one, which decide what is attached to what.
        stops: texts; the case of letters does not matter, empty ones are left out.
    """

    def __init__(self, encoder: TextEncoder, prompt: Sequence[int], stops: Sequence[str]):
        self.stops = [stop.lower() for stop in stops if stop]
        self.words = Detokenizer(encoder)
        for token in prompt:
            self.words.add(token)
        self.words.finish()
        self.text = ""
        self.n_shown = 0  # characters of it
        self.has_ended = False

    def add(self, token: int | None, is_last: bool = False) -> str:
        """Return the text that can be shown after a token, the rest of it after the last one or None, for the end."""
        if self.has_ended:
            return ""

        # the words that are complete now
        if token is not None:
            self.text += self.words.add(token)
        if token is None or is_last:
            self.text += self.words.finish()
            self.has_ended = True
        self.text = self.text.lstrip(" ")

        # the first stop text ends it
        lower = self.text.lower()
        found = [lower.find(stop) for stop in self.stops if stop in lower]
        if found:
            self.text = self.text[: min(found)]
            self.has_ended = True

        # what may be the beginning of one is held back
        n_held = 0
        if not self.has_ended:
            n_held = max((_overlap(lower, stop) for stop in self.stops), default=0)
        shown = self.text[self.n_shown : len(self.text) - n_held]
        self.n_shown += len(shown)
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop text."""
    return max(n for n in range(len(stop)) if text.endswith(stop[:n]))


def stream_text(
    model: LMModel | DoubleHeadModel,
    encoder: TextEncoder,
    prompt: str | Sequence[int],
    n_tokens: int,
    *,
    n_samples: int = 1,
    stops: Sequence[str] = (),
    **how,
) -> Iterator[list[str]]:
    """Continue a text: yield for each token the words that it completes, a text for each sample, "" where none is.

    A DoubleHeadModel continues a row as in fine-tuning: it begins with the start token, even where the prompt is empty,
    and ends at a delimiter or classify token. An LMModel knows none of these.

    Args:
        model, encoder: from weights.open_model, or the attributes of what weights.open_run returns.
        prompt: text or token ids, at most n_ctx tokens; not repeated in what is yielded.
        n_tokens: of each sample, at most.
        n_samples: computed together.
        stops: a sample ends before any of these texts; the case of letters does not matter.
        how: repetition_penalty, see `generate`; temperature, top_k, top_p and generator, see `sample`.

    Raises InputError for a prompt that cannot be continued, and for more samples than memory holds.
    """
    # what begins the row and what ends it
    start, ends, (ids,) = _read_prompts(model, encoder, [prompt])
    check_memory(model.transformer, n_samples, len(ids) + n_tokens)

    # tokens -> text, of each sample by itself
    how |= dict(n_samples=n_samples, n_allowed=encoder.n_vocab, stop_ids=ends)
    steps = generate(model, [*start, *ids], n_tokens, **how)
    transcripts = [Transcript(encoder, ids, stops) for _ in range(n_samples)]
    return _show(steps, transcripts, n_tokens)


def _read_prompts(
    model: LMModel | DoubleHeadModel, encoder: TextEncoder, prompts: Sequence[str | Sequence[int]]
) -> tuple[list[int], list[int], list[list[int]]]:
    """Return the tokens before a prompt, those that end its continuation, and those of each. Raises InputError."""
    # a fine-tuned network continues a row: it begins and ends with special tokens
    start = []
    ends = []
    if isinstance(model, DoubleHeadModel):
        special = special_tokens(encoder.n_vocab)
        start = [special.start]
        ends = [special.delimiter, special.classify]

    # the token ids of each; behind a start token a prompt may be empty
    n_allowed = model.transformer.n_ctx - len(start)
    ids_of = []
    for prompt in prompts:
        if isinstance(prompt, str):
            prompt = encode_prompt(encoder, prompt, n_allowed, may_be_empty=len(start) > 0)
        ids_of.append([int(i) for i in prompt])
    return start, ends, ids_of


def _show(steps: Iterator[list[int | None]], transcripts: list[Transcript], n_tokens: int) -> Iterator[list[str]]:
    """Yield what each transcript shows after each of n_tokens steps, until all of them have ended."""
    for n_done, tokens in enumerate(steps, 1):
        is_last = n_done == n_tokens
        pairs = zip(transcripts, tokens, strict=True)
        yield [transcript.add(token, is_last) for transcript, token in pairs]
        if all(transcript.has_ended for transcript in transcripts):
            return


def generate_text(
    model: LMModel | DoubleHeadModel, encoder: TextEncoder, prompt: str | Sequence[int], n_tokens: int, **how
) -> list[str]:
    """Return what follows a prompt, a text a sample; the arguments are those of `stream_text`."""
    steps = stream_text(model, encoder, prompt, n_tokens, **how)
    return ["".join(of_sample) for of_sample in zip(*steps, strict=True)]


class Continuation(NamedTuple):
    """What follows a prompt."""

    text: str
    tokens: list[Token]  # those of the stop text too


def generate_texts(
    model: LMModel | DoubleHeadModel,
    encoder: TextEncoder,
    prompts: Sequence[str | Sequence[int]],
    n_tokens: int,
    *,
    stops: Sequence[str] = (),
    **how,
) -> list[Continuation]:
    """Return what follows each of several prompts, which are computed together; the arguments as of `stream_text`."""
    # prompts -> tokens
    start, ends, ids_of = _read_prompts(model, encoder, prompts)
    rows = [[*start, *ids] for ids in ids_of]
    how |= dict(n_allowed=encoder.n_vocab, stop_ids=ends)
    tokens_of = generate_batch(model, rows, n_tokens, **how)

    # tokens -> text, up to a stop text
    found = []
    for ids, tokens in zip(ids_of, tokens_of, strict=True):
        transcript = Transcript(encoder, ids, stops)
        parts = []
        for token in tokens:
            parts.append(transcript.add(token.id))
            if transcript.has_ended:
                break
        text = "".join(parts) + transcript.add(None)
        found.append(Continuation(text, tokens[: len(parts)]))
    return found
