"""Predictions, ours and transformers' in turn: `python -m bench.predict`. The examples are those of bench.update.

Ours computes a context once for its choices, as predict.py does. transformers' network with a head for choices
computes the language model's logits too.
"""

from functools import partial

from torch import Tensor

from bench import common
from bench.common import Case, Step, Work
from bench.update import DEFAULTS, count_work, our_model, packed, padded, peer_model


def ours(case: Case) -> tuple[Step, Work]:
    """Return our prediction of a batch."""
    model = our_model(case).eval()

    def predict(turn: int) -> Tensor:
        _, _, logits = model.forward_packed(packed(case, turn, share_context=True))
        return logits.cpu()

    return common.without_gradients(predict, case), partial(count_work, case, True, False)


def peers(case: Case) -> tuple[Step, Work]:
    """Return transformers' prediction of a batch."""
    model = peer_model(case).eval()

    def predict(turn: int) -> Tensor:
        ids, lengths = padded(case, turn)
        out = model(ids, mc_token_ids=lengths - 1)
        return out.mc_logits.cpu()

    return common.without_gradients(predict, case), partial(count_work, case, False, False)


CONTENDERS = {"ours": ours, common.PEER: peers, common.MATRIX: common.matrix_products}
measure = partial(common.measure, "predict", CONTENDERS)


if __name__ == "__main__":
    common.command(__doc__, measure, DEFAULTS)
