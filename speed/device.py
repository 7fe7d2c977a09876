"""Where and how tensors are computed: on a device that may still be at work, or recorded for another program."""

import torch
from torch import Tensor


def is_recorded() -> bool:
    """Return whether the network is traced or exported now: what it does must then be plain, and ask no values."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def is_known(value: Tensor) -> bool:
    """Return whether a value can be read without waiting for it: a GPU is still at work when it is asked for one."""
    return value.device.type == "cpu"


def to_device(t: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, which may be at work: from pinned memory it is copied meanwhile."""
    if device.type == "cuda" and t.device.type == "cpu":
        t = t.pin_memory()
    return t.to(device, non_blocking=True)
