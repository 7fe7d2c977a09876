"""Compare a pre-trained model's held-out perplexity with that of a 5-gram on the same tokens.

python -m demo.ngram --log log/pretrain.jsonl --tokens save/pretrain/tokens.bin

Both leave out the first token of each sequence: of each window, or with --by_document of each document. The 5-gram
counts in all tokens before the first held-out sequence.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from reading.rows import Sequences


def ngram_probabilities(tokens: np.ndarray, n_train: int, n_vocab: int, order: int = 5) -> np.ndarray:
    """Return the probability of each token from n_train on, by n-grams of the tokens before it.

    Orders are interpolated after Witten and Bell: p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h)), where c counts
    in the first n_train tokens, t(h) is the number of different tokens that follow h there, and h' is h without its
    first token.
    """
    if n_vocab**order >= 2**63:
        raise ValueError(f"{order}-grams of {n_vocab} tokens do not fit 64 bits")
    tokens = tokens.astype(np.int64)
    p = np.full(len(tokens) - n_train, 1 / n_vocab)
    context = np.zeros_like(tokens)  # the n - 1 tokens before each position, as digits of one number
    for n in range(1, order + 1):
        if n > 1:
            context[n - 1 :] += tokens[: -(n - 1)] * n_vocab ** (n - 2)
        grams = context * n_vocab + tokens
        seen, counts = np.unique(grams[n - 1 : n_train], return_counts=True)
        contexts, first = np.unique(seen // n_vocab, return_index=True)
        totals, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(seen)))
        c_gram = look_up(seen, counts, grams[n_train:])
        c_context, t = (look_up(contexts, values, context[n_train:]) for values in (totals, kinds))
        p = np.where(c_context > 0, (c_gram + t * p) / np.maximum(c_context + t, 1), p)
    return p


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, 0 for a missing one; keys are sorted."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def held_out_tokens(tokens: np.ndarray, settings: dict) -> tuple[int, np.ndarray]:
    """Return where the held-out sequences of a run begin, and which of the tokens from there on it predicts (N,)."""
    newline = tokens[-1] if settings.get("by_document") else None  # each document ends with it
    sequences = Sequences(tokens, settings["n_ctx"], newline)
    starts, lengths = sequences.starts[settings["n_train"] :], sequences.lengths[settings["n_train"] :]
    steps = np.zeros(len(tokens) + 1, np.int64)  # +1 where predicted tokens begin, -1 where they end
    steps[starts + 1] += 1
    steps[starts + lengths] -= 1
    return starts[0], steps.cumsum()[starts[0] : -1] > 0


def main() -> None:
    """Print the two perplexities."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--log", default="log/pretrain.jsonl", help="log of pretrain.py")
    parser.add_argument("--tokens", default="save/pretrain/tokens.bin", help="the tokens it trained on")
    args = parser.parse_args()
    settings, *logs = [json.loads(line) for line in Path(args.log).read_text().splitlines()]
    n_vocab = settings["n_vocab"]
    tokens = np.fromfile(args.tokens, np.uint16 if n_vocab <= 2**16 else np.uint32)
    n_train, predicted = held_out_tokens(tokens, settings)
    p = ngram_probabilities(tokens, n_train, n_vocab)
    print(f"held-out tokens predicted {predicted.sum():,}")
    print(f"5-gram perplexity         {np.exp(-np.log(p[predicted]).mean()):.3f}  (its context crosses sequences)")
    print(f"pre-trained model         {logs[-1]['va_ppl']:.3f}")


if __name__ == "__main__":
    main()
