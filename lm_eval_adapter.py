"""Run tasks of lm-evaluation-harness (requirements-lm-eval.txt) on a pre-trained model, with the harness's own flags:

python lm_eval_adapter.py --model gpt1 --model_args model_dir=model --tasks NAMES
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import re
import sys
from os.path import commonprefix

from formats.files import InputError
from generation import generate_text
from running.command import exit_code
from running.processes import Ranks
from scoring import next_tokens, pack, score_ids
from weights import open_model


class Adapter:
    """What the harness asks of a model; a request holds its arguments in `args`."""

    def __init__(self, model_dir: str = "model", batch_size: int | str = 8, device: str | None = None, **unused):
        super().__init__()
        self.model, self.encoder = open_model(model_dir)
        self.model.to("cpu" if device == "cpu" else Ranks().device)
        self.transformer = self.model.transformer
        self.n_ctx = self.transformer.n_ctx
        self.n_words = self.encoder.n_vocab
        self.n_batch = int(batch_size) if str(batch_size).isdecimal() else 8  # "auto"

    def encode(self, context: str, continuation: str = "") -> tuple[list[int], int]:
        """Return the ids of both texts together, after a newline if there is no context, and how many it continues."""
        before, ids = self.encoder.encode([context, context + continuation], verbose=False)
        n_context = len(commonprefix([before, ids]))
        if n_context:
            return ids, len(ids) - n_context
        newline = self.encoder.encoder.get("\n</w>", 0)
        return [newline, *ids], len(ids)

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation of a context, and whether it is the most probable one."""
        rows = [self.encode(*request.args) for request in requests]
        longest = max(n for _, n in rows)
        if longest >= self.n_ctx:
            raise InputError(f"a continuation has {longest} tokens, the model takes {self.n_ctx - 1}. Leave it out.")
        found = []
        for start in range(0, len(rows), self.n_batch):
            # a context that is too long is cut from the left
            batch = [(ids[-self.n_ctx :], n) for ids, n in rows[start : start + self.n_batch]]
            packing = pack(self.transformer, [[ids] for ids, _ in batch])
            logs, _, ranks = next_tokens(
                self.transformer, packing, self.n_words
            )  # (B, T-1), of all tokens but the first
            for i, (ids, n) in enumerate(batch):
                end = len(ids) - 1
                own = slice(end - n, end)
                found.append((logs[i, own].sum().item(), bool((ranks[i, own] == 1).all())))
        return found

    def loglikelihood_rolling(self, requests) -> list[float]:
        """Return the log-probability of each text, of any length; each of its tokens is scored once."""
        found = []
        for request in requests:
            ids, _ = self.encode("", *request.args)
            tokens = score_ids(self.model, ids, self.n_words, n_batch=self.n_batch)
            found.append(float(tokens.log_probabilities[1:].sum()))
        return found

    def generate_until(self, requests) -> list[str]:
        """Return what follows each context, in lower case, up to any of the texts `until`."""
        texts = []
        for request in requests:
            context, how = request.args
            n_tokens = int(how.get("max_gen_toks", 256))
            temperature = how.get("temperature", 1.0) if how.get("do_sample") else 0
            until = how.get("until") or []
            until = [until] if isinstance(until, str) else until
            stops = [re.sub(r"\s*\n\s*", "\n", stop) for stop in until]

            # the window starts with as much of the context as leaves room for what follows, but at least half of it
            ids, _ = self.encode(context)
            ids = ids[-max(self.n_ctx - n_tokens, self.n_ctx // 2) :]
            texts += generate_text(self.model, self.encoder, ids, n_tokens, temperature=temperature, stops=stops)
        return texts


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
    registry.register_model("gpt1")(type("GPT1", (Adapter, model.LM), {}))
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(exit_code("lm_eval_adapter.py", main, "there are no results"))
