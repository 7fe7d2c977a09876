"""The authors' modified Adam and its learning-rate schedules (their opt.py, commit a69b5c4)."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from speed.device import is_known


def warmup_cosine(x: float, warmup: float) -> float:
    """Rise linearly to 1 over the first `warmup` of the updates, then follow 0.5 (1 + cos(pi x))."""
    if 0 < warmup and x <= warmup:
        return x / warmup
    return 0.5 * (1 + math.cos(math.pi * x))


def warmup_constant(x: float, warmup: float) -> float:
    """Rise linearly to 1 over the first `warmup` of the updates, then stay."""
    if 0 < warmup and x <= warmup:
        return x / warmup
    return 1.0


def warmup_linear(x: float, warmup: float) -> float:
    """As warmup_constant, times 1 - x: the peak stays a little below 1."""
    return warmup_constant(x, warmup) * (1 - x)


SCHEDULES = {
    "warmup_cosine": warmup_cosine,
    "warmup_constant": warmup_constant,
    "warmup_linear": warmup_linear,
}


class OpenAIAdam(torch.optim.AdamW):
    """Adam with a schedule, clipping by the global norm, and weight decay inside the bias-corrected rate.

    Update t = 1, 2, ... of parameter p with rate r = lr * schedule(t / t_total) * sqrt(1 - b2^t) / (1 - b1^t):
        p -= r * (m / (sqrt(v) + e) + l2 * p)
    This is torch's fused AdamW with lr, eps and weight_decay set before each update (FIDELITY 67).

    Args:
        params: all parameters of the model, heads included: the norm is over all of them. Or groups, as torch has them:
            dicts of `params` and, if they differ, lr and l2.
        lr: peak learning rate; so is `param_groups[i]["lr"]`, which may be changed between updates.
        schedule: a name in SCHEDULES.
        warmup: fraction of t_total spent warming up, 0 for none.
        t_total: number of updates planned; later ones keep the schedule's last value.
        b1, b2: decay of the running mean of gradients and of their squares.
        e: added to the root of the running mean of squares, outside the bias correction.
        l2: weight decay of parameters with two or more axes; with vector_l2 of all.
        max_grad_norm: gradients are scaled down to this global norm; 0 or less: never.
        further: ignored, as by the port (FIDELITY 164).

    param_groups has the caller's groups, in their order. A group's biases and gains, which do not decay, stand in a
    further group behind all of these, whose lr follows it.

    Raises:
        ValueError: an unknown schedule, or a setting outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float,
        schedule: str,
        warmup: float,
        t_total: int,
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-8,
        l2: float = 0,
        vector_l2: bool = False,
        max_grad_norm: float = -1,
        **further,
    ):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup {warmup} is a fraction of t_total, from 0 to 1")
        if t_total < 1:
            raise ValueError(f"t_total {t_total} must be 1 update or more")

        # parameters without groups are one
        params = list(params)
        has_groups = len(params) > 0 and isinstance(params[0], dict)
        given = params if has_groups else [{"params": params}]
        groups = _groups(given, lr, l2, vector_l2)
        super().__init__(groups, lr=lr, betas=(b1, b2), eps=e, fused=True)

        # what AdamW does not know
        self.schedule: Callable[[float, float], float] = SCHEDULES[schedule]
        self.warmup = warmup
        self.t_total = t_total
        self.e = e
        self.max_grad_norm = max_grad_norm
        self.found_inf: Tensor | None = None  # 1.0: no update is made; the name is AdamW's

    def preallocate(self) -> None:
        """Preallocate the running means, before activations: made between them, they fragment memory."""
        for group in self.param_groups:
            for p in group["params"]:
                # as AdamW's own
                exp_avg = torch.zeros_like(p)
                exp_avg_sq = torch.zeros_like(p)
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}

    @torch.no_grad()
    def step(self, closure: Callable | None = None, cost: Tensor | None = None) -> Tensor | None:
        """Make one update from the gradients, which are clipped in place.

        Args:
            cost: that the gradients are of. With it no GPU is waited for, and the norm of the gradients is returned:
                an update whose cost or norm is not finite changes nothing, nor do those after it, which count all the
                same until `take_back`.

        Raises FloatingPointError, with nothing changed, when no cost is given and the norm is not finite.
        """
        if closure is not None:
            raise ValueError("OpenAIAdam takes no closure: call backward() before step()")
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(grads)

        # without a cost the norm is waited for
        if cost is None:
            if not norm.isfinite():
                raise FloatingPointError(f"the norm of the gradients is {norm.item()}")
            self._update(grads, norm)
            return None

        # with one the verdict stays on the device, and is that of all updates so far
        is_bad = ~(norm.isfinite() & cost.isfinite())
        if self.found_inf is None:
            self.found_inf = torch.zeros_like(norm, dtype=torch.float32)
        self.found_inf = torch.maximum(self.found_inf, is_bad.float())
        self._update(grads, norm)
        return norm

    def take_back(self, n: int) -> None:
        """Count the last n updates no longer, which were not made."""
        self.found_inf = None
        for group in self.param_groups:
            group["t"] -= n

    def _update(self, grads: list[Tensor], norm: Tensor) -> None:
        """Clip gradients of this norm in place, and make one update from them."""
        if self.max_grad_norm > 0 and not (is_known(norm) and norm <= self.max_grad_norm):
            # as TF's clip_by_global_norm, opt.py:30-31: no epsilon in the quotient
            scale = torch.where(norm > self.max_grad_norm, self.max_grad_norm / norm, 1.0)
            torch._foreach_mul_(grads, scale)

        # AdamW's settings for this update
        peaks = [self.param_groups[group["lr_of"]]["lr"] for group in self.param_groups]
        for group, peak in zip(self.param_groups, peaks, strict=True):
            b1, b2 = group["betas"]
            group["t"] = t = group["t"] + 1
            correction = math.sqrt(1 - b2**t)
            # t, not TF's unordered t - 1 or t: opt.py:27-29 and 41 (FIDELITY 70)
            group["rate"] = peak * self.schedule(min(t / self.t_total, 1.0), self.warmup)
            group["lr"] = group["rate"]
            group["eps"] = self.e / correction
            group["weight_decay"] = group["l2"] * correction / (1 - b1**t)
        super().step()

        # between updates lr is the peak
        for group, peak in zip(self.param_groups, peaks, strict=True):
            group["lr"] = peak


def _groups(given: list[dict], lr: float, l2: float, vector_l2: bool) -> list[dict]:
    """Return the groups of an optimiser: those given, and behind them the parameters of each that do not decay.

    In each, so that state_dict holds them, beside AdamW's: lr_of, the group whose lr it has; t, the updates made; rate,
    the lr of the last update.
    """
    groups = []
    behind = []
    for i, group in enumerate(given):
        group = {"lr": lr, "l2": l2} | group | {"lr_of": i, "t": 0, "rate": 0.0}
        params = group["params"]
        if isinstance(params, Tensor):
            params = [params]

        # gains and biases have one axis
        decaying = []
        others = []
        for p in params:
            if vector_l2 or p.dim() > 1:
                decaying.append(p)
            else:
                others.append(p)
        groups.append(group | {"params": decaying})
        if others:
            behind.append(group | {"params": others, "l2": 0.0})
    return groups + behind
