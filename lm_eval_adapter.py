"""Run tasks of lm-evaluation-harness (requirements-lm-eval.txt) on a pre-trained model, with the harness's own flags:

python lm_eval_adapter.py --model gpt1 --model_args model_dir=model --tasks NAMES
"""

import re
import sys
from os.path import commonprefix, dirname, realpath

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
        self.transformer = self.model.to(device if device == "cpu" else Ranks().device).transformer
        self.n_words, self.n_ctx = len(self.encoder.encoder), self.transformer.n_ctx
        self.n_batch = int(batch_size) if str(batch_size).isdecimal() else 8  # "auto"

    def encode(self, context: str, continuation: str = "") -> tuple[list[int], int]:
        """Return the ids of both texts together, after a newline if there is no context, and how many it continues."""
        before, ids = self.encoder.encode([context, context + continuation], verbose=False)
        n_context, newline = len(commonprefix([before, ids])), self.encoder.encoder.get("\n</w>", 0)
        return (ids, len(ids) - n_context) if n_context else ([newline, *ids], len(ids))

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation of a context, and whether it is the most probable one."""
        rows, found = [self.encode(*request.args) for request in requests], []
        if (longest := max(n for _, n in rows)) >= self.n_ctx:
            raise InputError(f"a continuation has {longest} tokens, the model takes {self.n_ctx - 1}. Leave it out.")
        for start in range(0, len(rows), self.n_batch):
            batch = [(ids[-self.n_ctx :], n) for ids, n in rows[start : start + self.n_batch]]
            packing = pack(self.transformer, [[ids] for ids, _ in batch])
            logs, _, ranks = next_tokens(self.transformer, packing, self.n_words)
            for i, own in enumerate(slice(len(ids) - 1 - n, len(ids) - 1) for ids, n in batch):
                found.append((logs[i, own].sum().item(), bool((ranks[i, own] == 1).all())))
        return found

    def loglikelihood_rolling(self, requests) -> list[float]:
        """Return the log-probability of each text, of any length; each of its tokens is scored once."""
        rows = [self.encode("", *request.args)[0] for request in requests]
        found = [score_ids(self.model, ids, self.n_words, n_batch=self.n_batch) for ids in rows]
        return [float(tokens.log_probabilities[1:].sum()) for tokens in found]

    def generate_until(self, requests) -> list[str]:
        """Return what follows each context, in lower case, up to any of the texts `until`."""
        texts = []
        for context, how in (request.args for request in requests):
            n_tokens, until = int(how.get("max_gen_toks", 256)), how.get("until") or []
            ids = self.encode(context)[0][-max(self.n_ctx - n_tokens, self.n_ctx // 2) :]
            stops = [re.sub(r"\s*\n\s*", "\n", stop) for stop in ([until] if isinstance(until, str) else until)]
            chosen = {"temperature": how.get("temperature", 1.0) if how.get("do_sample") else 0, "stops": stops}
            texts += generate_text(self.model, self.encoder, ids, n_tokens, **chosen)
        return texts


def main() -> None:
    """Run the harness. Raises InputError where it is not installed."""
    # It imports Hugging Face's `datasets`, and this folder has a datasets.py. Our files, imported above, keep what they
    # took from it; from here on the name means the installed package.
    here = dirname(realpath(__file__))
    sys.path[:] = [folder for folder in sys.path if realpath(folder) != here] + [here]
    sys.modules.pop("datasets", None)
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api import model, registry
    except ImportError as error:
        raise InputError(f"lm_eval is missing ({error}). Run pip install -r requirements-lm-eval.txt.") from None
    registry.register_model("gpt1")(type("GPT1", (Adapter, model.LM), {}))
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(exit_code("lm_eval_adapter.py", main, "there are no results"))
