"""Predictions, ours and transformers' in turn: `python -m bench.predict`. The examples are those of bench.update.

Ours computes a context once for its choices, as predict.py does. transformers' network with a head for choices
computes the language model's logits too.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import sys
from functools import partial

from torch import Tensor

from bench import common
from bench.common import Case, Step, Work
from bench.update import DEFAULTS, count_work, our_model, packed, padded, their_model


def ours(case: Case) -> tuple[Step, Work]:
    """Return our prediction of a batch."""
    model = our_model(case).eval()

    def predict(turn: int) -> Tensor:
        packing = packed(case, turn, share_context=True)
        _, _, logits = model.forward_packed(packing)
        return logits.cpu()

    return common.without_gradients(predict, case), partial(count_work, case, True, False)


def theirs(case: Case) -> tuple[Step, Work]:
    """Return transformers' prediction of a batch."""
    model = their_model(case).eval()

    def predict(turn: int) -> Tensor:
        ids, lengths = padded(case, turn)
        out = model(ids, mc_token_ids=lengths - 1)
        return out.mc_logits.cpu()

    return common.without_gradients(predict, case), partial(count_work, case, False, False)


# name -> who takes turns
CONTENDERS = {"ours": ours, common.PEER: theirs, common.MATRIX: common.matrix_products}
measure = partial(common.measure, "predict", CONTENDERS)

if __name__ == "__main__":
    sys.exit(common.main("predict", __doc__, measure, DEFAULTS))
