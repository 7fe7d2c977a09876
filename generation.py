"""Text from a language model: tokens sampled one by one with a key-value cache, and readable text as it comes.

    model, encoder = open_model("demo/model")
    print(generate_text(model, encoder, "Anna had a big exam.", 40, temperature=0)[0])

Shape letters as in model_pytorch.py; S samples that are computed together, R rows of the embedding matrix that may be
sampled.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from formats.files import InputError
from model_pytorch import DoubleHeadModel, LMModel, TransformerModel
from reading.rows import special_tokens
from text_utils import TextEncoder, WordJoiner

Model = TransformerModel | LMModel | DoubleHeadModel

# --- tokens ----------------------------------------------------------------------------------------------------------


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a token for each row of logits (S, R), of the arguments that `generate` explains."""
    if temperature == 0:
        return logits.argmax(1)  # (S,)
    logits = (logits - logits.amax(1, keepdim=True)) / temperature
    if 0 < top_k < logits.size(1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
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
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    n_samples: int = 1,
    generator: torch.Generator | None = None,
    n_allowed: int | None = None,
    stop_ids: Collection[int] = (),
    note: Callable[[str], object] = lambda text: None,
) -> Iterator[list[int | None]]:
    """Continue a prompt: yield the next token of each sample, n_tokens times; None for a sample that has ended.

    Positions are absolute. When all n_ctx are taken, the last n_ctx // 2 tokens take the first positions and are
    computed once more.

    Args:
        model: put into evaluation mode.
        ids: token ids of the prompt (T,), or of several prompts of one length (B, T).
        temperature: logits are divided by it; 0: always the most probable token.
        top_k: sample among so many of the most probable tokens; 0: among all.
        top_p: sample among the most probable tokens whose probabilities sum to at least this.
        repetition_penalty: the logits of tokens that have occurred are divided by it, or multiplied if negative.
        n_samples: of each prompt, computed together; those of one prompt follow each other.
        generator: of random numbers, on the model's device; default: torch's own.
        n_allowed: the first so many rows of the embedding matrix can be sampled; default: all but the positions.
        stop_ids: can be sampled too, and end a sample; they are not yielded.
        note: called with one line when all positions are taken for the first time.

    Raises ValueError for a prompt that is empty or longer than n_ctx.
    """
    transformer = getattr(model, "transformer", model).eval()
    table, n_ctx = transformer.embed.weight, transformer.n_ctx
    first_position = len(table) - n_ctx
    prompt = torch.as_tensor(ids, dtype=torch.long, device=table.device)
    prompt = prompt if prompt.dim() == 2 else prompt[None]
    if not 0 < prompt.size(1) <= n_ctx:
        raise ValueError(f"the prompt has {prompt.size(1)} tokens, the model has positions for 1 to {n_ctx}")
    window = prompt.repeat_interleave(n_samples, 0)  # (S, T)
    new = prompt if len(prompt) == 1 else window  # one prompt is computed once for all samples
    n_slots = min(n_ctx, prompt.size(1) + n_tokens)
    caches = transformer.new_caches(len(window), n_slots)

    # the rows that can be sampled
    n_allowed = first_position if n_allowed is None else n_allowed
    rows = table[: max([n_allowed, *(i + 1 for i in stop_ids)])]  # (R, C)
    forbidden = sorted({*range(n_allowed, len(rows))} - {*stop_ids})
    has_occurred = torch.zeros(len(window), len(table), dtype=torch.bool, device=table.device).scatter_(1, window, True)
    has_ended = [False] * len(window)

    for _ in range(n_tokens):
        # the logits of the next token, from the states of tokens that are not in the cache
        positions = first_position + torch.arange(window.size(1) - new.size(1), window.size(1), device=table.device)
        h = transformer(torch.stack([new, positions.expand_as(new)], -1), caches=caches)[:, -1]
        logits = F.linear(h, rows).float().expand(len(window), -1)  # (S, R)
        if forbidden:
            logits = logits.index_fill(1, torch.tensor(forbidden, device=table.device), -math.inf)
        if repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
            logits = torch.where(has_occurred[:, : len(rows)], penalised, logits)

        # one token a sample
        tokens = sample(logits, temperature, top_k, top_p, generator)[:, None]  # (S, 1)
        has_ended = [ended or i in stop_ids for ended, i in zip(has_ended, tokens[:, 0].tolist(), strict=True)]
        yield [None if ended else i for ended, i in zip(has_ended, tokens[:, 0].tolist(), strict=True)]
        if all(has_ended):
            return
        has_occurred.scatter_(1, tokens, True)

        # the window and its cache
        window, new = torch.cat([window, tokens], 1), tokens
        if window.size(1) > n_ctx:
            n_kept = max(1, n_ctx // 2)
            note(
                f"the window of {n_ctx} tokens is full: it goes on with its last {n_kept}, now and each time it is full"
            )
            note = lambda text: None  # noqa: E731  once
            window = new = window[:, -n_kept:]
            caches = transformer.new_caches(len(window), n_slots)


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
        self.encoder, self.stops, self.join = encoder, stops, WordJoiner()
        for word in encoder.words(prompt):
            self.join(word)
        self.text, self.word = "", ""  # words so far, and the beginning of the next one
        self.n_shown, self.has_ended = 0, False

    def add(self, token: int | None, is_last: bool = False) -> str | None:
        """Return the text that a token completes; the rest of it for None or the last token, and None after that."""
        if self.has_ended:
            return None
        self.has_ended = token is None or is_last
        self.word += self.encoder.text_of(token) if token is not None else ""
        if self.word and (self.has_ended or self.word.endswith("</w>")):
            joined = self.join(self.encoder.spelled(self.word.removesuffix("</w>")))
            self.text += joined if self.text else joined.lstrip(" ")
            self.word = ""
        found = [at for stop in self.stops if (at := self.text.lower().find(stop)) >= 0]
        if found:
            self.text, self.has_ended = self.text[: min(found)], True
        n_held = 0  # characters that may be the beginning of a stop text
        if not self.has_ended:
            beginnings = (stop[:n] for stop in self.stops for n in range(1, len(stop)))
            n_held = max((len(b) for b in beginnings if self.text.lower().endswith(b)), default=0)
        shown, self.n_shown = self.text[self.n_shown : len(self.text) - n_held], len(self.text) - n_held
        return shown


def stream_text(
    model: LMModel | DoubleHeadModel,
    encoder: TextEncoder,
    prompt: str | Sequence[int],
    n_tokens: int,
    *,
    n_samples: int = 1,
    stops: Sequence[str] = (),
    **how,
) -> Iterator[list[str | None]]:
    """Continue a text: for each token, the words that it completes for each sample; None once that has ended.

    A DoubleHeadModel continues a row as in fine-tuning: it begins with the start token, and ends at a delimiter or
    classify token. An LMModel knows none of these.

    Args:
        model, encoder: from weights.open_model, or the attributes of what weights.open_run returns.
        prompt: text or token ids, at most n_ctx tokens; not repeated in what is yielded.
        n_tokens: of each sample, at most.
        n_samples: computed together.
        stops: a sample ends before any of these texts; the case of letters does not matter.
        how: temperature and so on, see `generate`.

    Raises InputError for a prompt that cannot be continued.
    """
    special, n_ctx = special_tokens(n_vocab := len(encoder.encoder)), model.transformer.n_ctx
    start, ends = ([special.start], special[1:]) if isinstance(model, DoubleHeadModel) else ([], ())
    ids = encode_prompt(encoder, prompt, n_ctx - len(start)) if isinstance(prompt, str) else list(prompt)
    transcripts = [Transcript(encoder, ids, [stop.lower() for stop in stops if stop]) for _ in range(n_samples)]
    how |= dict(n_samples=n_samples, n_allowed=n_vocab, stop_ids=ends)

    def steps() -> Iterator[list[str | None]]:
        for n_done, tokens in enumerate(generate(model, [*start, *ids], n_tokens, **how), 1):
            yield [t.add(token, n_done == n_tokens) for t, token in zip(transcripts, tokens, strict=True)]
            if all(t.has_ended for t in transcripts):
                return

    return steps()


def generate_text(
    model: LMModel | DoubleHeadModel, encoder: TextEncoder, prompt: str | Sequence[int], n_tokens: int, **how
) -> list[str]:
    """Return what follows a prompt, a text a sample; the arguments are those of `stream_text`."""
    steps = list(stream_text(model, encoder, prompt, n_tokens, **how))
    return ["".join(filter(None, of_sample)) for of_sample in zip(*steps, strict=True)]
