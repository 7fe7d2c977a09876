"""An update of pre-training, ours and transformers' in turn: `python -m bench.pretrain --n_batch 4 --n_ctx 512`."""

from functools import partial

import torch
from torch import Tensor

from bench import common
from bench.common import Case, Step, Work
from loss import sequence_losses
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
    n_pairs = n * (n + 1) // 2
    of_sequence = 3 * common.count_operations(case, n, n_pairs, n - 1, case.n_vocab + n)
    return case.n_batch * n, case.n_batch * of_sequence


def our_model(case: Case) -> LMModel:
    """Return our language model."""
    return LMModel(Config(**case.sizes()), case.n_vocab + case.n_ctx, case.n_ctx).to(Ranks().device)


def peer_model(case: Case):
    """Return transformers' language model."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    config = OpenAIGPTConfig(vocab_size=case.n_vocab, n_positions=case.n_ctx, **case.sizes())
    return OpenAIGPTLMHeadModel(config).to(Ranks().device)


def ours(case: Case) -> tuple[Step, Work]:
    """Return our update."""
    model = our_model(case).train()

    def cost_of(turn: int) -> Tensor:
        x = with_positions(batch(case, turn).numpy(), case.n_vocab)
        packing = Packing.full(torch.from_numpy(x)).to(Ranks().device)
        return sequence_losses(model, packing).mean()

    return common.updates(cost_of, model, common.our_optimizer(model), case), partial(count_work, case)


def peers(case: Case) -> tuple[Step, Work]:
    """Return the update of transformers' users."""
    model = peer_model(case).train()

    def cost_of(turn: int) -> Tensor:
        ids = batch(case, turn).to(Ranks().device)
        return model(ids, labels=ids).loss

    return common.updates(cost_of, model, common.peer_optimizer(model), case), partial(count_work, case)


CONTENDERS = {"ours": ours, common.PEER: peers, common.MATRIX: common.matrix_products}
measure = partial(common.measure, "pretrain", CONTENDERS)


if __name__ == "__main__":
    common.command(__doc__, measure, DEFAULTS)
