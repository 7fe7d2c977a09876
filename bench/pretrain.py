"""An update of pre-training, ours and transformers' in turn: `python -m bench.pretrain --n_batch 4 --n_ctx 512`."""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import sys
from functools import partial

import torch
from torch import Tensor

from bench import common
from bench.common import Case, Step, Work
from loss import TokenLoss
from model_pytorch import Config, LMModel
from reading.rows import with_positions
from running.processes import Ranks
from speed.packing import Packing

DEFAULTS = Case(n_batch=4)


def batch(case: Case, turn: int) -> Tensor:
    """Return random ids (B, T) of whole sequences."""
    generator = torch.Generator().manual_seed(turn)
    return torch.randint(case.n_vocab, (case.n_batch, case.n_ctx), generator=generator)


def count_work(case: Case, turn: int) -> tuple[int, int]:
    """Return the tokens and the operations of an update."""
    n = case.n_ctx
    n_table = case.n_vocab + n  # the positions are rows of the embedding matrix too
    n_pairs = common.count_pairs(n)
    # forward once, backward twice as many
    of_sequence = 3 * common.count_operations(case, n, n_pairs, n - 1, n_table)
    return case.n_batch * n, case.n_batch * of_sequence


def our_model(case: Case) -> LMModel:
    """Return our language model."""
    cfg = Config(**case.sizes())
    return LMModel(cfg, case.n_vocab + case.n_ctx, case.n_ctx).to(Ranks().device)


def their_model(case: Case):
    """Return transformers' language model."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    config = OpenAIGPTConfig(vocab_size=case.n_vocab, n_positions=case.n_ctx, **case.sizes())
    return OpenAIGPTLMHeadModel(config).to(Ranks().device)


def ours(case: Case) -> tuple[Step, Work]:
    """Return our update."""
    model = our_model(case).train()
    token_loss = TokenLoss(model)

    def cost_of(turn: int) -> Tensor:
        ids = batch(case, turn).numpy()
        x = torch.from_numpy(with_positions(ids, case.n_vocab))
        packing = Packing.full(x).to(Ranks().device)
        return token_loss(packing)

    step = common.updates(cost_of, model, common.our_optimizer(model), case)
    return step, partial(count_work, case)


def theirs(case: Case) -> tuple[Step, Work]:
    """Return the update of transformers' users."""
    model = their_model(case).train()

    def cost_of(turn: int) -> Tensor:
        ids = batch(case, turn).to(Ranks().device)
        out = model(ids, labels=ids)  # it shifts the labels by itself
        return out.loss

    step = common.updates(cost_of, model, common.their_optimizer(model), case)
    return step, partial(count_work, case)


# name -> who takes turns
CONTENDERS = {"ours": ours, common.PEER: theirs, common.MATRIX: common.matrix_products}
measure = partial(common.measure, "pretrain", CONTENDERS)

if __name__ == "__main__":
    sys.exit(common.main("pretrain", __doc__, measure, DEFAULTS))
