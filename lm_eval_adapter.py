"""Run tasks of lm-evaluation-harness (requirements-lm-eval.txt) on a pre-trained model, with the harness's own flags:

python lm_eval_adapter.py --model gpt1 --model_args model_dir=model --tasks NAMES
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("lm_eval_adapter.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    import running.starting  # noqa: F401  before what takes time

import re
import sys
from collections.abc import Sequence
from os.path import commonprefix

from formats.files import InputError
from generation import generate_text
from running.command import exit_code
from running.processes import Ranks
from scoring import next_tokens, pack_before
from weights import open_model


class Adapter:
    """What the harness asks of a model; a request holds its arguments in `args`."""

    def __init__(self, model_dir: str = "model", batch_size: int | str | None = 8, device: str | None = None, **unused):
        super().__init__()
        # the model
        self.model, self.encoder = open_model(model_dir)
        self.model.to("cpu" if device == "cpu" else Ranks().device)
        self.transformer = self.model.transformer
        self.n_ctx = self.transformer.n_ctx
        self.n_words = self.encoder.n_vocab

        # "auto", None and 0 are for us to choose
        self.n_batch = 8
        if str(batch_size).isdecimal() and int(batch_size) > 0:
            self.n_batch = int(batch_size)

    def encode(self, context: str, continuation: str = "") -> tuple[list[int], int]:
        """Return the ids of both texts together, after a newline if there is no context, and how many it continues."""
        # tokens may reach over the end of the context: those that it has by itself are its own
        before, ids = self.encoder.encode([context, context + continuation], verbose=False)
        n_context = len(commonprefix([before, ids]))
        if n_context > 0:
            return ids, len(ids) - n_context

        # the first token follows something too
        newline = self.encoder.encoder.get("\n</w>", 0)
        return [newline, *ids], len(ids)

    def score(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Return the log-probability of the last n ids of each row, and whether each is the most probable one.

        Args:
            rows: ids and n; the network reads the last n_ctx of the ids before the last one.
        """
        found = []
        for start in range(0, len(rows), self.n_batch):
            # what the network reads, and the last token, which it only predicts
            batch = rows[start : start + self.n_batch]
            windows = [ids[-self.n_ctx - 1 :] for ids, _ in batch]
            packing = pack_before(self.transformer, windows)
            logs, _, ranks = next_tokens(self.transformer, packing, self.n_words)  # (B, T-1)

            # the last n predictions of each row
            for i, (_, n) in enumerate(batch):
                end = len(windows[i]) - 1
                own = slice(end - n, end)
                is_most_probable = bool((ranks[i, own] == 1).all())
                found.append((logs[i, own].sum().item(), is_most_probable))
        return found

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation of a context, and whether it is the most probable one.

        Raises InputError for a continuation without tokens, or of more than n_ctx.
        """
        rows = []
        for request in requests:
            ids, n = self.encode(*request.args)
            if not 0 < n <= self.n_ctx:
                raise InputError(
                    f"a continuation has {n} tokens, the model takes 1 to {self.n_ctx}: {request.args[1][:60]!r}. "
                    "Leave it out."
                )
            rows.append((ids, n))
        return self.score(rows)

    def loglikelihood_rolling(self, requests) -> list[float]:
        """Return the log-probability of each text, of any length; each of its tokens is scored once.

        As in the harness, n_ctx tokens at a time are scored, the first of them behind one token only; at the end of a
        text the window is full too, and what is left is scored.
        """
        found = []
        for request in requests:
            ids, _ = self.encode("", *request.args)
            rows = []
            for start in range(1, len(ids), self.n_ctx):
                end = min(start + self.n_ctx, len(ids))
                rows.append((ids[:end], end - start))
            found.append(sum(log for log, _ in self.score(rows)))
        return found

    def generate_until(self, requests) -> list[str]:
        """Return what follows each context, in lower case, up to any of the texts `until`."""
        texts = []
        for request in requests:
            # how much, and up to where
            context, asked = request.args
            ids, _ = self.encode(context)
            n_tokens = length_asked(asked, len(ids))
            until = asked.get("until") or []
            until = [until] if isinstance(until, str) else until
            stops = [re.sub(r"\s*\n\s*", "\n", stop) for stop in until]

            # the window starts with as much of the context as leaves room for what follows, but at least half of it
            ids = ids[-max(self.n_ctx - n_tokens, self.n_ctx // 2) :]
            texts += generate_text(self.model, self.encoder, ids, n_tokens, stops=stops, **sampling_asked(asked))
        return texts


def length_asked(asked: dict, n_context: int) -> int:
    """Return how many tokens a request asks for, by any of the names that tasks have for it; 256 by default."""
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        if asked.get(name) is not None:
            return int(asked[name])
    if asked.get("max_length") is not None:  # of context and continuation together
        return max(1, int(asked["max_length"]) - n_context)
    return 256


def sampling_asked(asked: dict) -> dict:
    """Return how a request asks for tokens to be sampled, as arguments of generate_text; by default greedily."""
    how = {}
    for name, kind in (("temperature", float), ("top_k", int), ("top_p", float), ("repetition_penalty", float)):
        if asked.get(name) is not None:
            how[name] = kind(asked[name])

    # without do_sample, a temperature asks for samples
    samples = asked.get("do_sample")
    if samples is None:
        samples = how.get("temperature", 0) > 0
    if not samples:
        how["temperature"] = 0
    return how


def main() -> None:
    """Run the harness. Raises InputError where it is not installed."""
    # The harness imports Hugging Face's `datasets`. Python looks for it in this script's folder first, where our
    # datasets.py has that name: the folder goes last.
    sys.path.append(sys.path.pop(0))
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api import model, registry
    except ImportError as error:
        raise InputError(f"lm_eval is missing ({error}). Run pip install -r requirements-lm-eval.txt.") from None

    # under the name that --model takes
    register = registry.register_model("gpt1")
    register(type("GPT1", (Adapter, model.LM), {}))
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(exit_code("lm_eval_adapter.py", main, "there are no results"))
