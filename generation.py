"""Text from a language model: tokens sampled one by one with a key-value cache, and readable text as it comes.

    model, encoder = open_model("demo/model")
    print(generate_text(model, encoder, "Anna had a big exam.", 40, temperature=0)[0])

Shape letters as in model_pytorch.py; S samples that are computed together, R rows of the embedding matrix that may be
sampled.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from formats.files import InputError
from model_pytorch import DoubleHeadModel, LMModel, TransformerModel
from reading.rows import special_tokens
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
    if 0 < top_k < logits.size(1):
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        probabilities, order = logits.softmax(1).sort(descending=True)
        is_out = probabilities.cumsum(1) - probabilities >= top_p  # those before it suffice
        is_out[:, 0] = False
        logits = logits.masked_fill(is_out.scatter(1, order, is_out), -math.inf)
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    model: Model,
    ids: Sequence[int] | Tensor,
    n_tokens: int,
    *,
    repetition_penalty: float = 1.0,
    n_samples: int = 1,
    n_allowed: int | None = None,
    stop_ids: Collection[int] = (),
    **how,
) -> Iterator[list[int | None]]:
    """Continue a prompt: yield the next token of each sample, n_tokens times; None for a sample that has ended.

    Positions are absolute. When all n_ctx are taken, the last n_ctx // 2 tokens take the first positions and are
    computed once more.

    Args:
        model: put into evaluation mode.
        ids: token ids of the prompt (T,).
        repetition_penalty: the logits of tokens that have occurred are divided by it, or multiplied if negative.
        n_samples: computed together, the prompt once for all.
        n_allowed: the first so many rows of the embedding matrix can be sampled; default: all but the positions.
        stop_ids: can be sampled too, and end a sample; they are not yielded.
        how: temperature, top_k, top_p and generator, see `sample`.

    Raises ValueError for a prompt that is empty or longer than n_ctx.
    """
    transformer = getattr(model, "transformer", model).eval()
    table = transformer.embed.weight  # (V, C)
    n_ctx = transformer.n_ctx
    first_position = len(table) - n_ctx
    if not 0 < len(ids) <= n_ctx:
        raise ValueError(f"the prompt has {len(ids)} tokens, the model has positions for 1 to {n_ctx}")

    # the tokens that are not in the cache, and all so far
    new = torch.as_tensor(ids, dtype=torch.long, device=table.device)[None]  # (1, T): the same for all samples
    window = new.expand(n_samples, -1)  # (S, T)
    n_slots = min(n_ctx, len(ids) + n_tokens)
    caches = transformer.new_caches(n_samples, n_slots)

    # the rows of the embedding matrix that can be sampled
    n_allowed = first_position if n_allowed is None else n_allowed
    n_rows = max([n_allowed, *(i + 1 for i in stop_ids)])
    is_forbidden = torch.arange(n_rows, device=table.device) >= n_allowed  # (R,)
    is_forbidden[list(stop_ids)] = False

    has_occurred = torch.zeros(n_samples, len(table), dtype=torch.bool, device=table.device)  # (S, V)
    has_occurred.scatter_(1, window, True)
    has_ended = [False] * n_samples
    for _ in range(n_tokens):
        # the logits of the next token
        positions = first_position + torch.arange(window.size(1) - new.size(1), window.size(1), device=table.device)
        h = transformer(torch.stack([new, positions.expand_as(new)], -1), caches=caches)[:, -1]
        logits = F.linear(h, table[:n_rows]).float().expand(n_samples, -1)  # (S, R)
        logits = logits.masked_fill(is_forbidden, -math.inf)
        if repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
            logits = torch.where(has_occurred[:, :n_rows], penalised, logits)

        # one token a sample
        tokens = sample(logits, **how)  # (S,)
        step: list[int | None] = []
        for i, token in enumerate(tokens.tolist()):
            has_ended[i] = has_ended[i] or token in stop_ids
            step.append(None if has_ended[i] else token)
        yield step
        if all(has_ended):
            return

        # the window goes on, or begins anew with its last half
        new = tokens[:, None]
        window = torch.cat([window, new], 1)
        has_occurred.scatter_(1, new, True)
        if window.size(1) > n_ctx:
            window = new = window[:, -max(1, n_ctx // 2) :]
            caches = transformer.new_caches(n_samples, n_slots)


# --- text ------------------------------------------------------------------------------------------------------------


def encode_prompt(encoder: TextEncoder, text: str, n_allowed: int) -> list[int]:
    """Return the token ids of a prompt of at most n_allowed tokens.

    Raises InputError for one that is longer, empty, or without any token of the vocabulary.
    """
    (ids,) = encoder.encode([text], verbose=False)
    if not ids:
        raise InputError("the prompt is empty. Give at least one word.")
    if len(ids) > n_allowed:
        raise InputError(f"the prompt has {len(ids)} tokens, the model takes at most {n_allowed}. Shorten it.")
    if not any(ids):  # 0 is the unknown token
        raise InputError(f"no token of the prompt is in the vocabulary: {text.strip()[:60]!r}. Give other words.")
    return ids


class Transcript:
    """The readable text of one sample as its tokens come; it ends before a stop text.

    Args:
        encoder: the tokenizer.
        prompt: token ids before the first one, which decide what is attached to what.
        stops: texts in lower case.
    """

    def __init__(self, encoder: TextEncoder, prompt: Sequence[int], stops: Sequence[str]):
        self.stops = stops
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
        if token is not None:
            self.text += self.words.add(token)
        if token is None or is_last:
            self.text += self.words.finish()
            self.has_ended = True
        self.text = self.text.lstrip(" ")

        # the first stop text ends it, what may be the beginning of one is held back
        lower = self.text.lower()
        found = [lower.find(stop) for stop in self.stops if stop in lower]
        if found:
            self.text = self.text[: min(found)]
            self.has_ended = True
        n_held = 0 if self.has_ended else max((_overlap(lower, stop) for stop in self.stops), default=0)
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

    A DoubleHeadModel continues a row as in fine-tuning: it begins with the start token, and ends at a delimiter or
    classify token. An LMModel knows none of these.

    Args:
        model, encoder: from weights.open_model, or the attributes of what weights.open_run returns.
        prompt: text or token ids, at most n_ctx tokens; not repeated in what is yielded.
        n_tokens: of each sample, at most.
        n_samples: computed together.
        stops: a sample ends before any of these texts; the case of letters does not matter.
        how: repetition_penalty, see `generate`; temperature, top_k, top_p and generator, see `sample`.

    Raises InputError for a prompt that cannot be continued.
    """
    start: list[int] = []
    ends: list[int] = []
    if isinstance(model, DoubleHeadModel):
        special = special_tokens(encoder.n_vocab)
        start = [special.start]
        ends = [special.delimiter, special.classify]
    if isinstance(prompt, str):
        ids = encode_prompt(encoder, prompt, model.transformer.n_ctx - len(start))
    else:
        ids = [int(i) for i in prompt]
    stops = [stop.lower() for stop in stops if stop]
    transcripts = [Transcript(encoder, ids, stops) for _ in range(n_samples)]
    how |= dict(n_samples=n_samples, n_allowed=encoder.n_vocab, stop_ids=ends)
    return _show(generate(model, [*start, *ids], n_tokens, **how), transcripts, n_tokens)


def _show(steps: Iterator[list[int | None]], transcripts: list[Transcript], n_tokens: int) -> Iterator[list[str]]:
    """Yield what each transcript shows after each of n_tokens steps, until all of them have ended."""
    for n_done, tokens in enumerate(steps, 1):
        is_last = n_done == n_tokens
        yield [transcript.add(token, is_last) for transcript, token in zip(transcripts, tokens, strict=True)]
        if all(transcript.has_ended for transcript in transcripts):
            return


def generate_text(
    model: LMModel | DoubleHeadModel, encoder: TextEncoder, prompt: str | Sequence[int], n_tokens: int, **how
) -> list[str]:
    """Return what follows a prompt, a text a sample; the arguments are those of `stream_text`."""
    steps = stream_text(model, encoder, prompt, n_tokens, **how)
    return ["".join(of_sample) for of_sample in zip(*steps, strict=True)]
