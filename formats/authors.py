"""Model folders: the authors' format (params_shapes.json, ten .npy shards) read and written, Hugging Face's read."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formats.files import WHERE_TO_GET_IT, InputError, refuse_special, replacing_all
from formats.folders import (
    CONFIG_FILE,
    HPARAMS_FILE,
    SHAPES_FILE,
    SHARDS,
    FolderSizes,
    hugging_face_weights,
    is_hugging_face,
    open_folder,
    read_sizes,
    weights_or_index,
)
from formats.hugging_face import array_names, authors_arrays, read_tensors


def check_bytes(folder: Path, sizes: FolderSizes) -> None:
    """Raise InputError when the weights of a model folder are too few for its sizes.

    To be called before a network of these sizes is built, which may not fit into memory. Reads no weights.
    """
    # the shards tell how many values they hold
    if not is_hugging_face(folder):
        n_found = sum(len(_open_shard(folder / name)) for name in SHARDS)
        _check_count(folder, sizes, n_found)
        return

    # of Hugging Face's files the size does, roughly: a number has a byte or more
    paths = hugging_face_weights(folder)
    for path in paths:
        refuse_special(path)
    n_bytes = sum(path.stat().st_size for path in paths)
    if n_bytes < sizes.n_values():
        read_tensors(folder)  # a damaged file says so itself
        raise InputError(
            f"{weights_or_index(folder)}: {n_bytes:,} bytes are not the {sizes.n_values():,} numbers that "
            f"{CONFIG_FILE} asks for. Take both from one model."
        )


def _check_count(folder: Path, sizes: FolderSizes, n_found: int) -> None:
    """Raise InputError unless the shards of a folder hold as many values as the shapes ask for."""
    if n_found != sizes.n_values():
        raise InputError(
            f"{folder}: params_0.npy .. params_9.npy hold {n_found:,} values, params_shapes.json asks for "
            f"{sizes.n_values():,}. Fetch them again."
        )


# --- loading ---------------------------------------------------------------------------------------------------------


def load_openai_pretrained_model(
    model: nn.Module,
    n_ctx: int = -1,
    n_special: int = -1,
    n_transfer: int = 12,
    path: str | os.PathLike = "./model/",
    n_embd: int = -1,
    path_names: str | os.PathLike = "./",
) -> int:
    """Copy the weights of a model folder into a transformer and return how many blocks were copied.

    The special tokens' embeddings are initialised as TF:410 does: N(0, 0.02) from NumPy's global stream. Tokens that
    were added to a Hugging Face folder are left out; other tensors than the transformer's are named on standard error.

    Args:
        model: a TransformerModel; all checks come before its first parameter changes.
        n_ctx: positions of the model; -1: as many as the folder has.
        n_special: special tokens of the model; -1: all embeddings that are neither tokens nor positions.
        n_transfer: blocks to copy, at most all; 0: the embedding matrix only; -1: nothing.
        path: folder with params_shapes.json and params_0.npy .. params_9.npy, or a Hugging Face folder; a relative
            path that does not exist below the current directory is looked up beside the scripts.
        n_embd: features of the weights, which is checked; -1: any.
        path_names: taken and not used, as no file of names is needed (FIDELITY 161).

    Raises:
        InputError: a file is missing or damaged, holds NaN or infinity, or its sizes are not the model's.
    """
    if n_transfer < 0:
        return 0

    # the sizes of the weights, and what -1 stands for
    folder = open_folder(path)
    sizes = read_sizes(folder)
    if n_embd not in (-1, sizes.n_embd):
        raise InputError(f"{folder}: the weights have n_embd {sizes.n_embd}, the call says {n_embd}. Correct the call.")
    if n_ctx < 0:
        n_ctx = sizes.n_positions
    if n_special < 0:
        n_special = len(model.embed.weight) - sizes.n_vocab - n_ctx
    n_transfer = min(n_transfer, sizes.n_layer, len(model.h))
    check_sizes(folder, sizes, model, n_ctx, n_special, n_transfer)

    # the arrays in the folder's order; the model has the tokens first
    with torch.no_grad():
        tokens, special, positions = model.embed.weight.split([sizes.n_vocab, n_special, n_ctx])
        _copy_arrays(folder, sizes, [positions, tokens, *model.h[:n_transfer].parameters()])
        drawn = np.random.randn(*special.shape) * 0.02
        special.copy_(torch.from_numpy(drawn))
    return n_transfer


def check_sizes(
    folder: Path, sizes: FolderSizes, model: nn.Module, n_ctx: int, n_special: int, n_transfer: int
) -> None:
    """Raise InputError unless the weights of a folder fit into a model."""
    # features and heads
    n_embeddings, n_embd = model.embed.weight.shape
    if n_embd != sizes.n_embd:
        raise InputError(f"{folder}: the weights have n_embd {sizes.n_embd}, the model {n_embd}. Make the two agree.")
    if n_transfer > 0 and model.h[0].attn.n_head != sizes.n_head:
        raise InputError(
            f"{folder}: the weights are for {sizes.n_head} heads, the model has {model.h[0].attn.n_head}. "
            "Make the two agree; a hparams.json beside the weights may say n_head, else it is 12."
        )

    # the rows of the embedding matrix
    if n_ctx > sizes.n_positions:
        raise InputError(f"{folder}: the weights hold {sizes.n_positions} positions, n_ctx asks {n_ctx}. Lower n_ctx.")
    if n_special < 0 or sizes.n_vocab + n_special + n_ctx != n_embeddings:
        raise InputError(
            f"{folder}: {sizes.n_vocab} tokens + {n_special} special tokens + {n_ctx} positions are not the "
            f"{n_embeddings} embeddings of the model. Build the model with that many."
        )


def _copy_arrays(folder: Path, sizes: FolderSizes, tensors: list[Tensor]) -> None:
    """Copy the first arrays of a folder into tensors, which may have fewer rows, once all of the folder is checked."""
    if is_hugging_face(folder):
        found = read_tensors(folder)
        arrays = authors_arrays(folder, found, sizes)
        unused = sorted(found.keys() - set(array_names(sizes.n_layer)))
        if unused:
            shown = ", ".join(unused)
            print(f"{weights_or_index(folder)}: not of the transformer, left out: {shown}", file=sys.stderr)
        for tensor, array in zip(tensors, arrays[: len(tensors)], strict=True):
            tensor.copy_(array[: len(tensor)])
    else:
        _check_shards(folder, sizes)
        _copy_shards(folder, sizes, tensors)


def _copy_shards(folder: Path, sizes: FolderSizes, tensors: list[Tensor]) -> None:
    """Copy the first arrays of the shards into tensors."""
    # the arrays follow each other across the shards: each tensor is filled from where its array starts
    n_values = [math.prod(shape) for shape in sizes.shapes()]
    array_starts = np.cumsum([0, *n_values])
    shard_start = 0
    for name in SHARDS:
        values = torch.from_numpy(_open_shard(folder / name))  # one shard in memory at a time
        shard_end = shard_start + len(values)
        for tensor, array_start in zip(tensors, array_starts[: len(tensors)], strict=True):
            # what of the array is in this shard
            start = max(array_start, shard_start)
            end = min(array_start + tensor.numel(), shard_end)
            if start < end:
                part = tensor.view(-1)[start - array_start : end - array_start]
                part.copy_(values[start - shard_start : end - shard_start])
        shard_start = shard_end


def _check_shards(folder: Path, sizes: FolderSizes) -> None:
    """Raise InputError unless the shards of a folder hold as many finite values as the shapes ask for."""
    n_found = 0
    for name in SHARDS:
        values = _open_shard(folder / name)
        n_found += len(values)
        # a NaN or infinity anywhere shows in the sum of squares, which is a tenth of the work
        with np.errstate(over="ignore", invalid="ignore"):
            is_suspect = not np.isfinite(np.dot(values, values))
        if is_suspect:
            wrong = np.flatnonzero(~np.isfinite(values))
            if len(wrong) > 0:  # else finite values with squares that are not
                at = wrong[0]
                raise InputError(f"{folder / name}: value {at:,} is {values[at]}, no finite number. Fetch it again.")
    _check_count(folder, sizes, n_found)


def _open_shard(path: Path) -> np.ndarray:
    """Return the values of a shard, memory-mapped. Raises InputError when it is not a list of float32 numbers."""
    refuse_special(path)
    try:
        values = np.lib.format.open_memmap(path, mode="c")
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {WHERE_TO_GET_IT}") from None
    except Exception as error:  # whatever a header that anybody may have written leads to
        why = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{path} is not a valid array of numbers ({why}). Fetch it again.") from None

    # an array that is none of the authors' shards
    if values.dtype != np.float32 or values.ndim != 1:
        raise InputError(f"{path} holds {values.dtype} {list(values.shape)}, not a list of float32. Fetch it again.")
    return values


# --- writing ---------------------------------------------------------------------------------------------------------


def save_openai_model(model: nn.Module, n_vocab: int, path: str | os.PathLike, afn: str = "gelu") -> None:
    """Write a transformer as a model folder in the authors' format, with a hparams.json for what no shape tells.

    Special-token embeddings are not saved; loading initialises them anew.

    Args:
        model: a TransformerModel with one block or more; its embedding matrix holds n_vocab tokens first and n_ctx
            positions last.
        n_vocab: number of tokens.
        path: an existing folder; files of the same names are replaced.
    """
    folder = Path(path)
    table = model.embed.weight
    n_head = model.h[0].attn.n_head
    sizes = FolderSizes(n_vocab, model.n_ctx, table.size(1), n_head, len(model.h), afn)

    # what no shape tells; the authors have twelve heads and gelu
    hparams: dict[str, Any] = {"n_head": n_head}
    if afn != "gelu":
        hparams["afn"] = afn
    has_hparams = hparams != {"n_head": 12}
    written = [SHAPES_FILE, *SHARDS]
    gone = []
    if has_hparams:
        written.append(HPARAMS_FILE)
    else:
        gone.append(folder / HPARAMS_FILE)

    # the arrays one after another, cut into as many parts as there are shards
    positions = table[-model.n_ctx :]
    tokens = table[:n_vocab]
    arrays = [positions, tokens, *model.h.parameters()]
    values = np.concatenate([array.detach().cpu().float().flatten().numpy() for array in arrays])
    parts = np.array_split(values, len(SHARDS))

    # the shapes first: a folder without them is no model
    with replacing_all([folder / name for name in written], gone) as files:
        files[0].write(json.dumps(sizes.shapes()).encode())
        for file, part in zip(files[1 : 1 + len(SHARDS)], parts, strict=True):
            np.save(file, part)
        if has_hparams:
            files[-1].write(json.dumps(hparams).encode())
