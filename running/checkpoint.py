"""Checkpoints and best parameters of a run: written whole or not at all, checked when read, no pickle."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from formats.files import InputError, locked, make_output_folder, placing, refuse_special, replacing, sha256, to_disk
from running.processes import Ranks, restarted

KEPT = 2  # checkpoints; the older one is used when the newest is damaged
FILES = ("tensors.safetensors", "state.json")


@contextmanager
def only_writer(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Let no other run write into a run's folder within the `with`; the lock of a run that was killed is free.

    Raises InputError when another run writes there.
    """
    # the first process writes for all
    if not ranks.is_first:
        yield
        return
    make_output_folder(folder)
    with locked(folder / "lock") as is_free:
        if not is_free:
            raise InputError(f"{folder} is being written by another run. Wait for its end, or name another --desc.")
        yield


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

    # parameters and the optimiser's values, each under a name of its own
    for name, value in model.named_parameters():
        tensors[f"model.{name}"] = value
    optimizer_state = optimizer.state_dict()
    for i, values in optimizer_state["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{i}.{name}"] = value
    state = {"updates": updates, "param_groups": optimizer_state["param_groups"], **state}

    # written under another name
    final = folder / f"checkpoint_{updates:09d}"
    try:
        with placing(final, folder / "checkpoint.part") as part:
            part.mkdir(parents=True)
            _save_tensors(tensors, part / FILES[0])
            (part / FILES[1]).write_text(json.dumps(state))
            (part / "SHA256.json").write_text(json.dumps({name: sha256(part / name) for name in FILES}))
            if final.exists():
                # of the same update, before its evaluation: there until the new one is on disk
                to_disk(part)
                _remove_at_once(final)

        # the earlier ones, now that this one is safe
        for old in checkpoints(folder)[KEPT:]:
            _remove_at_once(old)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{final} cannot be written ({error}). Earlier checkpoints are intact; make room.") from None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, valid or not, the newest first."""
    return sorted(folder.glob("checkpoint_*"), reverse=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a folder, the newest last: it is the one that shows whether the run was finished."""
    for path in reversed(checkpoints(folder)):
        _remove_at_once(path)


def read_checkpoint(folder: Path, ranks: Ranks) -> tuple[dict[str, Tensor], dict] | None:
    """Return tensors and state of the newest valid checkpoint of a folder, or None where there is none at all.

    Damaged ones are named and skipped. Raises InputError when no other is left.
    """
    paths = checkpoints(folder)
    for path in paths:
        # one with another digest is damaged, as is one that cannot be read
        try:
            digests = json.loads((path / "SHA256.json").read_text())
            if digests == {name: sha256(path / name) for name in FILES}:
                state = json.loads((path / FILES[1]).read_text())
                if _is_state(state):
                    return load_file(path / FILES[0]), state
        except (OSError, ValueError, RecursionError, InputError, SafetensorError):
            pass
        if ranks.is_first:
            print(f"{path} is damaged: skipped")
    if paths:
        raise InputError(
            f"{folder}: every checkpoint is damaged. Restore one from a copy, or remove them all to start again."
        )
    return None


def checkpoint_to_resume(
    folder: Path, record: dict, resumes: bool, ranks: Ranks
) -> tuple[dict[str, Tensor], dict] | None:
    """Return the tensors and the state that a run goes on from; None to start from the beginning.

    Args:
        record: what settings.json holds; a run is resumed only with the same.
        resumes: whether --resume was given.

    Raises InputError when the checkpoint is of a run with other settings, or when a run that is not resumed would
    overwrite the checkpoints of an unfinished one.
    """
    found = read_checkpoint(folder, ranks)
    if found is None:
        return None
    _, state = found

    # a run that begins takes no checkpoint, and spares those that somebody may want to go on from
    if not (resumes or restarted()):
        if state["updates"] < state["settings"].get("t_total", 0):
            raise InputError(
                f"{folder} holds checkpoints of an unfinished run. --resume goes on; else change --desc or remove them."
            )
        return None

    # a run that goes on is the same run
    changed = sorted(name for name, value in record.items() if state["settings"].get(name) != value)
    if changed:
        raise InputError(f"{folder} was made with another {', '.join(changed)}. Resume with the settings it had.")
    return found


def _is_state(state: Any) -> bool:
    """Return whether what was read from a checkpoint is what a run's save has written."""
    kinds = {"updates": int, "param_groups": list, "settings": dict, "logs": list, "costs": list, "sizes": list}
    if not isinstance(state, dict):
        return False
    return all(isinstance(state.get(name), kind) for name, kind in kinds.items())


def restore(
    tensors: dict[str, Tensor], state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> None:
    """Restore parameters, optimiser state and this process's random states from a checkpoint.

    Raises InputError for one of another version of this code.
    """
    # the groups of ours have the settings of this version
    ours = optimizer.state_dict()["param_groups"]
    if [group.keys() for group in state["param_groups"]] != [group.keys() for group in ours]:
        raise InputError(
            "the checkpoints are of another version of this code. Finish the run with that version, or start it again "
            "without --resume."
        )

    # the parameters
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

    # this process's random states; cloned, as torch 2.13's set_rng_state ignores a view's storage offset
    torch.set_rng_state(tensors["random.cpu"][ranks.rank].clone())
    if ranks.device.type != "cpu":
        torch.get_device_module().set_rng_state(tensors["random.accelerator"][ranks.rank].clone())


def save_parameters(path: Path, model: nn.Module, meaning: str = "") -> None:
    """Write a model's parameters as one safetensors file, whole or not at all, and its digest as `<path>.sha256`.

    Args:
        meaning: what `meaning_of` returns.
    """
    try:
        with placing(path, path.with_name(path.name + ".part")) as part:
            _save_tensors(dict(model.named_parameters()), part, {"meaning": meaning})
            digest = sha256(part)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written ({error}). What was there before is intact.") from None

    # until it is written too, the old digest says that the file is not whole
    with replacing(path.with_name(path.name + ".sha256")) as file:
        file.write(_digest_line(digest, path))


def load_parameters(path: Path, model: nn.Module) -> None:
    """Read what save_parameters wrote. Raises InputError when a file is missing or not what was written."""
    digest = path.with_name(path.name + ".sha256")
    refuse_special(digest)
    # a file that cannot be read is not whole either
    try:
        is_whole = digest.read_bytes() == _digest_line(sha256(path), path)
        tensors = load_file(path)
    except (OSError, SafetensorError):
        is_whole = False
    if not is_whole:
        raise _not_whole(path)
    model.load_state_dict(tensors)


def meaning_of(path: Path) -> str:
    """Return the digest of the settings that the parameters in a file were saved with (running/record.py).

    Raises InputError for a file of another kind.
    """
    refuse_special(path)
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("meaning", "")
    except (OSError, SafetensorError):
        raise _not_whole(path) from None


def _not_whole(path: Path) -> InputError:
    digest = path.with_name(path.name + ".sha256")
    return InputError(f"{path} is not the file that {digest} describes. Train again, or restore it from a copy.")


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(on_cpu, path, metadata)


def _digest_line(digest: str, path: Path) -> bytes:
    return f"{digest}  {path.name}\n".encode()  # as sha256sum writes


def _remove_at_once(path: Path) -> None:
    """Remove a checkpoint without ever leaving half of it under its name."""
    # one that was left by a run that was killed meanwhile
    gone = path.with_name("checkpoint.old")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone)
