"""Checkpoints of a running training: written whole or not at all, checked against their digests, free of pickle."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils import sha256

KEPT = 2  # the newest ones; an older one serves when the newest is damaged
FILES = ("tensors.safetensors", "state.json")


def save_checkpoint(folder: Path, updates: int, model: nn.Module, optimizer: torch.optim.Optimizer, **state) -> None:
    """Write `checkpoint_<updates>` into a folder and remove all but the last two.

    It holds the parameters, the optimiser's state, torch's random state on the CPU and, where there is one, on the
    accelerator, and `state`, anything that JSON can hold. It is written beside, flushed and renamed.
    """
    optimizer_state = optimizer.state_dict()
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for i, values in optimizer_state["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.accelerator.is_available():
        tensors["random.accelerator"] = torch.get_device_module().get_rng_state()
    state = {"updates": updates, "param_groups": optimizer_state["param_groups"], **state}

    part = folder / "checkpoint.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part / FILES[0])
    (part / FILES[1]).write_text(json.dumps(state))
    (part / "SHA256.json").write_text(json.dumps({name: sha256(part / name) for name in FILES}))
    for path in (*part.iterdir(), part):
        _flush(path)
    final = folder / f"checkpoint_{updates:09d}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    _flush(folder)
    for old in _checkpoints(folder)[KEPT:]:
        shutil.rmtree(old)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """Return tensors and state of the newest sound checkpoint of a folder, or None where there is none.

    Damaged ones are named and passed over.
    """
    for path in _checkpoints(folder):
        if _is_sound(path):
            return load_file(path / FILES[0]), json.loads((path / FILES[1]).read_text())
        print(f"{path} is damaged: passed over")
    return None


def restore(tensors: dict[str, Tensor], state: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's parameters, optimiser state and random states where they were."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    values: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            values.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": values, "param_groups": state["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if torch.accelerator.is_available() and "random.accelerator" in tensors:
        torch.get_device_module().set_rng_state(tensors["random.accelerator"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint_*"), reverse=True)  # the newest first


def _is_sound(path: Path) -> bool:
    try:
        digests = json.loads((path / "SHA256.json").read_text())
        return digests == {name: sha256(path / name) for name in FILES}
    except (OSError, ValueError):
        return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
