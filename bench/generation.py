"""Generated tokens, ours and transformers' in turn: `python -m bench.generation --n_ctx 108`.

The most probable token each time, after a prompt of 8, until all n_ctx positions are taken; n_batch samples are
computed together. transformers has no key-value cache for this network.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import sys
from functools import partial

import torch
from torch import Tensor

from bench import common
from bench.common import Case, Step, Work
from bench.pretrain import our_model, their_model
from generation import generate
from running.processes import Ranks

N_PROMPT = 8
DEFAULTS = Case(n_batch=1, n_ctx=N_PROMPT + 100, n_turns=3)


def prompt(case: Case, turn: int) -> Tensor:
    """Return random ids (8,), of which all samples are continuations."""
    generator = torch.Generator().manual_seed(turn)
    ids = torch.randint(case.n_vocab, (N_PROMPT,), generator=generator)
    return ids.to(Ranks().device)


def count_work(case: Case, turn: int) -> tuple[int, int]:
    """Return how many tokens are generated; operations are not counted, as memory decides the speed."""
    return case.n_batch * (case.n_ctx - N_PROMPT), 0


def ours(case: Case) -> tuple[Step, Work]:
    """Return our generation."""
    model = our_model(case).eval()
    n_new = case.n_ctx - N_PROMPT

    def continue_prompt(turn: int) -> list:
        ids = prompt(case, turn)
        steps = generate(model, ids, n_new, n_samples=case.n_batch, temperature=0)
        return list(steps)  # nothing is computed before

    return common.without_gradients(continue_prompt, case), partial(count_work, case)


def theirs(case: Case) -> tuple[Step, Work]:
    """Return transformers' generation."""
    model = their_model(case).eval()
    n_new = case.n_ctx - N_PROMPT
    how = {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}

    def continue_prompt(turn: int) -> Tensor:
        # there is no padding
        ids = prompt(case, turn).expand(case.n_batch, -1)
        mask = torch.ones_like(ids)
        return model.generate(ids, attention_mask=mask, **how)

    return common.without_gradients(continue_prompt, case), partial(count_work, case)


# name -> who takes turns
CONTENDERS = {"ours": ours, common.PEER: theirs}
measure = partial(common.measure, "generation", CONTENDERS)

if __name__ == "__main__":
    sys.exit(common.main("generation", __doc__, measure, DEFAULTS))
