"""An update of fine-tuning, ours and transformers' in turn: `python -m bench.update --n_batch 8 64 --precision bf16`.

Examples of the Story Cloze Test with random ids, in the lengths of real ones: lengths.npy holds the tokens of story,
first and second ending of 1,871 of the 3,742 examples of 2016 (1,400 and 471 of two files), all that were at hand.
An update is examples to tensors, forward, backward, clip, Adam. transformers pads to the longest row of a batch.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench import common
from bench.common import Case, Step, Work
from loss import packed_losses
from model_pytorch import Config, DoubleHeadModel
from reading.rows import N_SPECIAL, multiple_choice_rows, pad_rows, special_tokens
from running.processes import Ranks
from speed.packing import Packing

LM_COEF = 0.5
DEFAULTS = Case(n_ctx=77)  # the longest row


# --- the examples of a turn ------------------------------------------------------------------------------------------


def lengths_of(case: Case, turn: int) -> np.ndarray:
    """Return the lengths of the texts of a batch (B, 3): in file order, and from the first again after the last."""
    lengths = np.load(Path(__file__).with_name("lengths.npy")).astype(int)
    first = turn * case.n_batch
    which = np.arange(first, first + case.n_batch)
    return lengths[which % len(lengths)]


def batch(case: Case, turn: int) -> list[list[list[int]]]:
    """Return the two rows of each example."""
    rng = np.random.default_rng(turn)
    special = special_tokens(case.n_vocab)
    examples = []
    for lengths in lengths_of(case, turn):
        texts = [rng.integers(case.n_vocab, size=n).tolist() for n in lengths]
        examples.append(multiple_choice_rows(texts, special))
    return examples


def packed(case: Case, turn: int, share_context: bool) -> Packing:
    """Return the rows of a batch as our network reads them, on the device."""
    packing = Packing.of_rows(batch(case, turn), case.n_vocab + N_SPECIAL, share_context)
    return packing.to(Ranks().device)


def padded(case: Case, turn: int) -> tuple[Tensor, Tensor]:
    """Return the same rows padded to the longest, ids (B, 2, T), and their lengths (B, 2), on the device."""
    # each row's own length
    examples = batch(case, turn)
    lengths = torch.tensor([[len(row) for row in rows] for rows in examples])

    # they have no position ids
    x, _ = pad_rows(examples, case.n_vocab, int(lengths.max()))
    ids = torch.from_numpy(x[..., 0])
    return ids.to(Ranks().device), lengths.to(Ranks().device)


def count_work(case: Case, share_context: bool, training: bool, turn: int) -> tuple[int, int]:
    """Return the tokens of a batch, each row's own, and the operations on those that are computed."""
    lengths = lengths_of(case, turn)
    stories = lengths[:, :1]
    rows = stories + lengths[:, 1:] + N_SPECIAL  # (B, 2)
    n_tokens = rows.sum()
    n_pairs = common.count_pairs(rows).sum()
    n_next = (rows - 1).sum()

    # what the two rows have in common, start, story and delimiter, is computed once
    if share_context:
        prefixes = stories + 2
        n_tokens -= prefixes.sum()
        n_pairs -= common.count_pairs(prefixes).sum()
        n_next -= (prefixes - 1).sum()

    # a forward pass; in training with the language model's head, and a backward pass that takes twice as many
    if training:
        operations = 3 * common.count_operations(case, n_tokens, n_pairs, n_next, n_table(case))
    else:
        operations = common.count_operations(case, n_tokens, n_pairs)
    return int(rows.sum()), operations


# --- the contenders --------------------------------------------------------------------------------------------------


def n_table(case: Case) -> int:
    """Return the number of rows of the embedding matrix."""
    return case.n_vocab + N_SPECIAL + case.n_ctx


def our_model(case: Case) -> DoubleHeadModel:
    """Return our network for examples with choices."""
    cfg = Config(**case.sizes())
    classify = special_tokens(case.n_vocab).classify
    model = DoubleHeadModel(cfg, classify, "multiple_choice", n_table(case), case.n_ctx)
    return model.to(Ranks().device)


def their_model(case: Case):
    """Return transformers' network with the same two heads."""
    from transformers import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel

    config = OpenAIGPTConfig(vocab_size=case.n_vocab + N_SPECIAL, n_positions=case.n_ctx, **case.sizes())
    return OpenAIGPTDoubleHeadsModel(config).to(Ranks().device)


def ours(case: Case, share_context: bool = False) -> tuple[Step, Work]:
    """Return our update."""
    model = our_model(case).train()
    right = torch.zeros(case.n_batch, dtype=torch.long, device=Ranks().device)

    def cost_of(turn: int) -> Tensor:
        packing = packed(case, turn, share_context)
        task, lm = packed_losses(model, packing, right, LM_COEF, alike=True)
        return task.mean() + LM_COEF * lm.mean()

    step = common.updates(cost_of, model, common.our_optimizer(model), case)
    return step, partial(count_work, case, share_context, True)


def theirs(case: Case) -> tuple[Step, Work]:
    """Return the update of transformers' users."""
    model = their_model(case).train()
    right = torch.zeros(case.n_batch, dtype=torch.long, device=Ranks().device)

    def cost_of(turn: int) -> Tensor:
        # the padding has no next tokens to learn
        ids, lengths = padded(case, turn)
        places = torch.arange(ids.size(2), device=ids.device)
        is_padding = places >= lengths[..., None]
        labels = ids.masked_fill(is_padding, -100)  # which their loss leaves out
        out = model(ids, mc_token_ids=lengths - 1, labels=labels, mc_labels=right)
        return out.mc_loss + LM_COEF * out.loss

    step = common.updates(cost_of, model, common.their_optimizer(model), case)
    return step, partial(count_work, case, False, True)


# name -> who takes turns
CONTENDERS = {
    "ours": ours,
    "ours, context shared": partial(ours, share_context=True),
    common.PEER: theirs,
    common.MATRIX: common.matrix_products,
}
measure = partial(common.measure, "update", CONTENDERS)

if __name__ == "__main__":
    sys.exit(common.main("update", __doc__, measure, DEFAULTS))
