"""What only the early PyTorch port has, for projects written for it: no run of ours uses it (FIDELITY 160 to 163).

Each name is handed on by the file where the port has it: dotdict by model_pytorch.py, the losses by loss.py, rocstories
by analysis.py, append_batch by generate.py. Shape letters as in model_pytorch.py.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from formats.files import InputError

# --- settings of the network -----------------------------------------------------------------------------------------


class dotdict(dict):  # noqa: N801  the port's name
    """A dict whose items are attributes too, None for one that is missing."""

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask whether there are methods of such names
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name, None)


# --- losses of a batch, with backward and update ---------------------------------------------------------------------


class MultipleChoiceLossCompute:
    """The losses of a batch from its logits, and where they are not only asked for the update too.

    Args:
        lm_criterion, clf_criterion: torch.nn.CrossEntropyLoss(reduction="none"), say, for next tokens and choices.
        lm_coef: weight of the language model's losses.
        opt: an optimiser, or None: backward only.
    """

    def __init__(self, lm_criterion: Callable, clf_criterion: Callable, lm_coef: float, opt=None):
        self.lm_criterion = lm_criterion
        self.clf_criterion = clf_criterion
        self.lm_coef = lm_coef
        self.opt = opt

    def __call__(
        self,
        X: Tensor,
        Y: Tensor,
        M: Tensor,
        clf_logits: Tensor,
        lm_logits: Tensor | None = None,
        only_return_losses: bool = False,
    ) -> float | Tensor | tuple[Tensor, Tensor]:
        """Return the training loss, a sum over the batch, after backward and, if there is an opt, its step.

        Args:
            X: token and position ids (B, K, T, 2); of ClassificationLossCompute (B, T, 2), here and below K left out.
            Y: the right choices or classes (B,).
            M: 1 on real tokens, 0 on padding (B, K, T).
            clf_logits: (B, K), or (B, n_class).
            lm_logits: (B*K*(T-1), V); None: without the language model.
            only_return_losses: return the losses of the task (B,) and, with lm_logits, those of the language model
                (B*K,), and change nothing.
        """
        task_losses = self.clf_criterion(clf_logits, Y)
        lm_losses = None
        if lm_logits is not None:
            lm_losses = self.lm_losses(X, M, lm_logits)
        if only_return_losses:
            return task_losses if lm_losses is None else (task_losses, lm_losses)

        # sums, not means (FIDELITY 160)
        loss = task_losses.sum()
        if self.lm_coef > 0 and lm_losses is not None:
            loss = loss + self.lm_coef * lm_losses.sum()
        loss.backward()
        if self.opt is not None:
            self.opt.step()
            self.opt.zero_grad()
        return loss.item()

    def lm_losses(self, X: Tensor, M: Tensor, lm_logits: Tensor) -> Tensor:
        """Return for each row the mean of the criterion over its real next tokens (B*K,), 0 where there is none."""
        # each token is predicted from those before it
        is_next = M[..., 1:].flatten(0, -2)  # (B*K, T-1)
        targets = X[..., 1:, 0].flatten()
        losses = self.lm_criterion(lm_logits, targets).view(is_next.shape)
        sums = (losses * is_next).sum(1)
        return sums / is_next.sum(1).clamp(min=1)


class ClassificationLossCompute(MultipleChoiceLossCompute):
    """The same for one row an example: X (B, T, 2), M (B, T), clf_logits (B, n_class)."""


# --- generating ------------------------------------------------------------------------------------------------------


def append_batch(x: Tensor, next_idx: Tensor) -> Tensor:
    """Return token and position ids (B, T, 2) with one more token (B, 1) at the next position: (B, T + 1, 2)."""
    positions = x[:, -1:, 1] + 1
    return torch.cat([x, torch.stack([next_idx, positions], -1)], 1)


# --- analysis of a run -----------------------------------------------------------------------------------------------


def rocstories(data_dir: str | os.PathLike, pred_path: str | os.PathLike, log_path: str | os.PathLike) -> None:
    """Print a run's best accuracy on valid, from its log, and that of its predictions of the official test file.

    Args:
        data_dir: folder of the Story Cloze Test, as of datasets.rocstories.
        pred_path: table `index<TAB>prediction`, as of train.py --submit.
        log_path: a JSON object a line; those with `va_acc`, in %, count.

    Raises InputError when a file is missing or damaged, or the predictions are not of the test file.
    """
    from reading.tasks import ROCSTORIES_TEST, TASKS, read_cloze  # here: importing the model needs torch and numpy only

    try:
        lines = [json.loads(line) for line in Path(log_path).read_text(encoding="utf-8").splitlines()]
        valid = max(line["va_acc"] for line in lines if "va_acc" in line)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{log_path} is not the log of a run ({error}). Train again.") from None
    try:
        _, *rows = Path(pred_path).read_text(encoding="utf-8").splitlines()
        predictions = [int(row.split("\t")[1]) for row in rows]
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{pred_path} is not a table of predictions ({error}). Predict again.") from None

    *_, labels = read_cloze(TASKS["rocstories"].find(Path(data_dir)) / ROCSTORIES_TEST)
    if len(labels) != len(predictions):
        raise InputError(f"{pred_path} has {len(predictions)} predictions, the test file {len(labels)}. Predict again.")
    print(f"ROCStories Valid Accuracy: {valid:.2f}")
    print(f"ROCStories Test Accuracy:  {100 * (labels == predictions).mean():.2f}")
