"""Checkpoints and best parameters of a run: written whole or not at all, checked when read, no pickle."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from formats.files import InputError, flush, replacing, sha256
from running.processes import Ranks

KEPT = 2  # checkpoints; the older one is used when the newest is damaged
FILES = ("tensors.safetensors", "state.json")


def save_checkpoint(
    folder: Path, updates: int, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, **state
) -> None:
    """Write `checkpoint_<updates>` into a folder and remove all but the last two. To be called by all processes.

    It holds the parameters, the optimiser's state, torch's random states of all processes, and `state`, anything that
    JSON can hold.

    Raises InputError, with earlier checkpoints intact, when the disk does not take it.
    """
    # the random states are of all processes, (processes, bytes); the rest is the same in each
    tensors = {"random.cpu": ranks.gather(torch.get_rng_state()[None])}
    if ranks.device.type != "cpu":
        tensors["random.accelerator"] = ranks.gather(torch.get_device_module().get_rng_state()[None])
    if not ranks.is_first:
        return
    for name, value in model.named_parameters():
        tensors[f"model.{name}"] = value
    optimizer_state = optimizer.state_dict()
    for i, values in optimizer_state["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{i}.{name}"] = value
    state = {"updates": updates, "param_groups": optimizer_state["param_groups"], **state}

    # written under another name, flushed and renamed
    part = folder / "checkpoint.part"
    final = folder / f"checkpoint_{updates:09d}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _save_tensors(tensors, part / FILES[0])
        (part / FILES[1]).write_text(json.dumps(state))
        (part / "SHA256.json").write_text(json.dumps({name: sha256(part / name) for name in FILES}))
        for path in (*part.iterdir(), part):
            flush(path)
        if final.exists():
            _remove(final)  # of the same update, before its evaluation
        os.replace(part, final)
        flush(folder)
        for old in checkpoints(folder)[KEPT:]:
            _remove(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"{final} cannot be written ({error}). Earlier checkpoints are intact; make room.") from None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, valid or not, the newest first."""
    return sorted(folder.glob("checkpoint_*"), reverse=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a folder, the newest last: it is the one that shows whether the run was finished."""
    for path in reversed(checkpoints(folder)):
        _remove(path)


def read_checkpoint(folder: Path, ranks: Ranks) -> tuple[dict[str, Tensor], dict] | None:
    """Return tensors and state of the newest valid checkpoint of a folder, or None where there is none at all.

    Damaged ones are named and skipped. Raises InputError when no other is left.
    """
    paths = checkpoints(folder)
    for path in paths:
        try:
            digests = json.loads((path / "SHA256.json").read_text())
            if digests == {name: sha256(path / name) for name in FILES}:
                return load_file(path / FILES[0]), json.loads((path / FILES[1]).read_text())
        except (OSError, ValueError, SafetensorError):
            pass  # damaged, like one with another digest
        if ranks.is_first:
            print(f"{path} is damaged: skipped")
    if paths:
        raise InputError(
            f"{folder}: every checkpoint is damaged. Restore one from a copy, or remove them all to start again."
        )
    return None


def restore(
    tensors: dict[str, Tensor], state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> None:
    """Restore parameters, optimiser state and this process's random states from a checkpoint.

    Raises InputError for one of another version of this code.
    """
    ours = optimizer.state_dict()["param_groups"]
    if [group.keys() for group in state["param_groups"]] != [group.keys() for group in ours]:
        raise InputError(
            "the checkpoints are of another version of this code. Finish the run with that version, or start it again "
            "without --resume."
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])

    # the optimiser's values, by the number of the parameter
    values: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            values.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": values, "param_groups": state["param_groups"]})

    # cloned, as torch 2.13's set_rng_state ignores a view's storage offset
    torch.set_rng_state(tensors["random.cpu"][ranks.rank].clone())
    if ranks.device.type != "cpu":
        torch.get_device_module().set_rng_state(tensors["random.accelerator"][ranks.rank].clone())


def save_parameters(path: Path, model: nn.Module, meaning: str = "") -> None:
    """Write a model's parameters as one safetensors file, whole or not at all, and its digest as `<path>.sha256`.

    Args:
        meaning: what `meaning_of` returns.
    """
    part = path.with_name(path.name + ".part")
    try:
        _save_tensors(dict(model.named_parameters()), part, {"meaning": meaning})
        digest = sha256(part)
        flush(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written ({error}). What was there before is intact.") from None
    with replacing(path.with_name(path.name + ".sha256")) as file:
        file.write(_digest_line(digest, path))


def load_parameters(path: Path, model: nn.Module) -> None:
    """Read what save_parameters wrote. Raises InputError when a file is missing or not what was written."""
    digest = path.with_name(path.name + ".sha256")
    try:
        is_whole = digest.read_bytes() == _digest_line(sha256(path), path)
        tensors = load_file(path)
    except (OSError, SafetensorError):
        is_whole = False
    if not is_whole:
        raise InputError(f"{path} is not the file that {digest} describes. Train again, or restore it from a copy.")
    model.load_state_dict(tensors)


def meaning_of(path: Path) -> str:
    """Return the digest of the settings that the parameters in a file were saved with (running/record.py)."""
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("meaning", "")


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata)


def _digest_line(digest: str, path: Path) -> bytes:
    return f"{digest}  {path.name}\n".encode()  # as sha256sum writes


def _remove(path: Path) -> None:
    """Remove a checkpoint without ever leaving half of it under its name."""
    gone = path.with_name("checkpoint.old")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone)
