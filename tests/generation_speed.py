"""Speed of generation, with the key-value cache and without, and beside transformers: see BENCHMARKS.md.

    python tests/generation_speed.py --n_tokens 100 --against without transformers

The authors' sizes, random weights, greedy, from a prompt of 8 tokens. All take turns, so that other work on the machine
disturbs them alike; times are medians over the turns. The course of the time per token is in CPU time, of all threads.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from generation import generate  # noqa: E402
from model_pytorch import DEFAULT_CONFIG, LMModel  # noqa: E402

N_VOCAB, N_CTX, PROMPT = 40478, 512, list(range(481, 489))


@torch.no_grad()
def without_cache(model: LMModel, n_tokens: int) -> list[int]:
    """Compute all tokens again for each next one, but logits only for that one."""
    ids, table = [*PROMPT], model.transformer.embed.weight
    for _ in range(n_tokens):
        x = torch.tensor([[[i, N_VOCAB + t] for t, i in enumerate(ids)]])
        ids.append(int(F.linear(model.transformer(x)[:, -1], table[:N_VOCAB]).argmax()))
    return ids[len(PROMPT) :]


def with_cache(model: LMModel, n_tokens: int, n_samples: int, times: list[float]) -> list[int]:
    """Append the CPU time of each step to `times`."""
    found, start = [], time.process_time()
    for tokens in generate(model, PROMPT, n_tokens, temperature=0, n_samples=n_samples):
        times.append(time.process_time() - start)
        start += times[-1]
        found.append(tokens[0])
    return found


def transformers_model(model: LMModel) -> Callable[[int], list[int]]:
    """Return transformers' generation from the same weights."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig()).eval()
    table = model.transformer.embed.weight
    with torch.no_grad():
        theirs.transformer.tokens_embed.weight.copy_(table[:N_VOCAB])
        theirs.transformer.positions_embed.weight.copy_(table[N_VOCAB:])
        for p, q in zip(theirs.transformer.h.parameters(), model.transformer.h.parameters(), strict=True):
            p.copy_(q)

    def run(n_tokens: int) -> list[int]:
        ids = torch.tensor([PROMPT])
        how = dict(do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0)
        out = theirs.generate(ids, max_new_tokens=n_tokens, min_new_tokens=n_tokens, **how)
        return out[0, len(PROMPT) :].tolist()

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("n_tokens", 100), ("n_turns", 3), ("n_samples", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--against", nargs="*", choices=("without", "transformers"), default=())
    flags = parser.parse_args()
    torch.manual_seed(0)
    model, times = LMModel(DEFAULT_CONFIG, N_VOCAB + N_CTX, N_CTX).eval(), []
    ways = {"with cache": lambda n: with_cache(model, n, flags.n_samples, times)}
    if "without" in flags.against:
        ways["without"] = lambda n: without_cache(model, n)
    if "transformers" in flags.against:
        ways["transformers"] = transformers_model(model)
    seconds, tokens = {name: [] for name in ways}, {}
    for turn in range(flags.n_turns + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            tokens[name] = way(flags.n_tokens if turn else 3)  # the first turn is a warm-up
            if turn:
                seconds[name].append(time.perf_counter() - start)
            else:
                times.clear()
    print(platform.machine(), torch.get_num_threads(), "threads, torch", torch.__version__, flags)
    ours = statistics.median(seconds["with cache"])
    for name, all_seconds in seconds.items():
        s = statistics.median(all_seconds)
        same = sum(a == b for a, b in zip(tokens[name], tokens["with cache"], strict=True))
        print(f"{name:12} {s:7.2f} s {flags.n_tokens / s:7.1f} tokens/s {s / ours:6.2f} x; same tokens: {same}", end="")
        print(" ", [round(s, 2) for s in all_seconds])
    steps = torch.tensor(times).view(flags.n_turns, flags.n_tokens).median(0).values[1:]  # without the prompt's
    for at, part in zip(range(0, len(steps), 50), steps.split(50), strict=True):
        print(f"tokens {at + 1:3} to {at + len(part):3}: {1e3 * part.median():.1f} ms of CPU time a token")


if __name__ == "__main__":
    main()
