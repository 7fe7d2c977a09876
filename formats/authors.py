"""Model folders: in the authors' format (params_shapes.json, ten .npy shards) read, written, verified; others read."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from formats.files import InputError, find, read_json, replacing, write_json
from formats.hugging_face import (
    ACTIVATIONS,
    MERGES_FILE,
    VOCAB_FILE,
    authors_arrays,
    is_hugging_face,
    n_tokens,
    read_config,
    read_tensors,
    weights_file,
)

ENCODER_FILE, BPE_FILE = "encoder_bpe_40000.json", "vocab_40000.bpe"
N_SHARDS = 10

# git blob ids of the authors' published files (openai/finetune-transformer-lm, commit a69b5c4, folder model/)
AUTHORS_BLOB_IDS = {
    "params_0.npy": "84d83ac1f1cc878f56f33b167482c184491875d2",
    "params_1.npy": "0f19f4d4cda3d8f908e3faffd2cb2a8b9a4039da",
    "params_2.npy": "25bc19c72fdff69505a828ec6d73b32063532148",
    "params_3.npy": "5b2e6958d42a930966c9d602a012eb846ca67c83",
    "params_4.npy": "87ad158987e307e6aa64952610f466d750b73bc7",
    "params_5.npy": "74f3853316bba327229605dbedfe921996f11448",
    "params_6.npy": "5ef44e40bc076d0c9686d1273d54cbc16c3f0980",
    "params_7.npy": "d8d5c8d3bee9b20a677605ac1fe6c7af4df57c94",
    "params_8.npy": "f980f4b393716f396ae5ae6401708dcf4f270dc9",
    "params_9.npy": "d389eb2074dd74754444b8062aba78b49f6a9053",
    ENCODER_FILE: "9dc3f0af5a80956e57dc8d9401e16dfadcade7c2",
    BPE_FILE: "0023a687b3d4d0b795a5e97cc914bdabb5a253df",
    "params_shapes.json": "29fac299ae848d7e447be84a33345edcf1b5353c",
}


@dataclass(frozen=True)
class FolderSizes:
    """The sizes of the network in a model folder."""

    n_vocab: int  # tokens
    n_positions: int
    n_embd: int
    n_head: int
    n_layer: int
    afn: str = "gelu"  # activation

    def shapes(self) -> list[list[int]]:
        """Return the shapes of the arrays in the authors' order: positions, tokens, then twelve a block."""
        c = self.n_embd
        attn = [[1, c, 3 * c], [3 * c], [1, c, c], [c]]
        mlp = [[1, c, 4 * c], [4 * c], [1, 4 * c, c], [c]]
        ln = [[c], [c]]
        return [[self.n_positions, c], [self.n_vocab, c]] + (attn + ln + mlp + ln) * self.n_layer


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, in the authors' format or Hugging Face's."""
    return (folder / "params_shapes.json").exists() or is_hugging_face(folder)


def vocabulary_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of a model folder's vocabulary and merges, which both formats have under their own names."""
    names = (VOCAB_FILE, MERGES_FILE) if is_hugging_face(folder) else (ENCODER_FILE, BPE_FILE)
    return folder / names[0], folder / names[1]


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that hold its weights."""
    return [weights_file(folder)] if is_hugging_face(folder) else sorted(folder.glob("params_?.npy"))


def read_sizes(path: str | os.PathLike) -> FolderSizes:
    """Return the sizes of the network in a model folder.

    In the authors' format they follow from params_shapes.json and hparams.json, in Hugging Face's from config.json and
    vocab.json. Raises InputError when a file is missing or is not of such a network.
    """
    if is_hugging_face(folder := Path(path)):
        config = read_config(folder)
        sizes = {name: config[name] for name in ("n_positions", "n_embd", "n_head", "n_layer", "afn")}
        return FolderSizes(n_vocab=n_tokens(folder, config), **sizes)
    shapes = read_json(path := folder / "params_shapes.json")
    hparams = path.with_name("hparams.json")
    try:
        told = read_json(hparams) if hparams.exists() else {}
        n_head, afn = told.get("n_head", 12), told.get("afn", "gelu")  # what no shape tells
        (n_positions, n_embd), (n_vocab, _) = shapes[:2]
        sizes = FolderSizes(n_vocab, n_positions, n_embd, n_head, n_layer=(len(shapes) - 2) // 12, afn=afn)
        fits = sizes.shapes() == shapes and n_embd % n_head == 0 and afn in ACTIVATIONS.values()
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        fits = False
    if not fits:
        raise InputError(
            f"{path}: not the shapes of this network: positions [n, C], tokens [n, C], then twelve arrays a block, "
            "C a multiple of n_head (12, or what hparams.json says). Fetch both files again."
        )
    return sizes


def load_openai_pretrained_model(
    model: nn.Module,
    n_ctx: int = -1,
    n_special: int = -1,
    n_transfer: int = 12,
    path: str | os.PathLike = "./model/",
) -> int:
    """Copy the weights of a model folder into a transformer and return how many blocks were copied.

    The special rows are initialised as TF:410 does: N(0, 0.02) from NumPy's global stream. Tokens that were added to a
    Hugging Face folder are left out.

    Args:
        model: a TransformerModel; all checks come before its first parameter changes.
        n_ctx: position rows of the model; -1: as many as the folder has.
        n_special: special rows of the model; -1: all rows that are neither tokens nor positions.
        n_transfer: blocks to copy, at most all; 0: the embedding matrix only; -1: nothing.
        path: folder with params_shapes.json and params_0.npy .. params_9.npy, or a Hugging Face folder; a relative
            path that does not exist below the current directory is looked up beside the scripts.

    Raises:
        InputError: a file is missing or damaged, holds NaN or infinity, or its sizes are not the model's.
    """
    if n_transfer < 0:
        return 0
    path = find(path)
    sizes = read_sizes(path)
    vocab, n_embd = model.embed.weight.shape
    n_ctx = sizes.n_positions if n_ctx < 0 else n_ctx
    n_special = vocab - sizes.n_vocab - n_ctx if n_special < 0 else n_special
    if n_embd != sizes.n_embd:
        raise InputError(f"{path}: the weights have n_embd {sizes.n_embd}, the model {n_embd}. Make the two agree.")
    if n_transfer and len(model.h) and model.h[0].attn.n_head != sizes.n_head:
        raise InputError(
            f"{path}: the weights are for {sizes.n_head} heads, the model has {model.h[0].attn.n_head}. "
            "Make the two agree; a hparams.json beside the weights may say n_head, else it is 12."
        )
    if n_ctx > sizes.n_positions:
        raise InputError(f"{path}: the weights hold {sizes.n_positions} positions, n_ctx asks {n_ctx}. Lower n_ctx.")
    if n_special < 0 or sizes.n_vocab + n_special + n_ctx != vocab:
        raise InputError(
            f"{path}: {sizes.n_vocab} tokens + {n_special} special + {n_ctx} positions are not the model's {vocab} "
            "rows. Build the model with that many."
        )
    # all checks come before the first tensor changes
    if is_hugging_face(path):
        arrays = authors_arrays(path, read_tensors(path), sizes.shapes())
    else:
        _check_shards(path, sizes)
    n_transfer = min(n_transfer, sizes.n_layer, len(model.h))
    with torch.no_grad():
        tokens, special, positions = model.embed.weight.split([sizes.n_vocab, n_special, n_ctx])
        tensors = [positions, tokens, *model.h[:n_transfer].parameters()]
        if is_hugging_face(path):
            for tensor, array in zip(tensors, arrays, strict=False):
                tensor.copy_(array[: len(tensor)])
        else:
            _fill_from_shards(path, sizes, tensors)
        special.copy_(torch.from_numpy(np.random.randn(n_special, n_embd) * 0.02))
    return n_transfer


def save_openai_model(model: nn.Module, n_vocab: int, path: str | os.PathLike, afn: str = "gelu") -> None:
    """Write a transformer as a model folder in the authors' format, with a hparams.json for what no shape tells.

    Special-token embeddings are not saved; loading initialises them anew.

    Args:
        model: a TransformerModel with one block or more; its embedding matrix holds n_vocab tokens first and n_ctx
            positions last.
        n_vocab: number of tokens.
        path: an existing folder; files of the same names are replaced.
    """
    path = Path(path)
    table = model.embed.weight
    arrays = [table[-model.n_ctx :], table[:n_vocab], *model.h.parameters()]
    values = np.concatenate([array.detach().cpu().float().flatten().numpy() for array in arrays])
    sizes = FolderSizes(n_vocab, model.n_ctx, table.size(1), model.h[0].attn.n_head, len(model.h))
    for i, part in enumerate(np.array_split(values, N_SHARDS)):
        with replacing(path / f"params_{i}.npy") as file:
            np.save(file, part)
    write_json(path / "params_shapes.json", sizes.shapes())
    # absent beside the authors' own weights, which have twelve heads and gelu
    hparams = {"n_head": sizes.n_head} | ({"afn": afn} if afn != "gelu" else {})
    if hparams == {"n_head": 12}:
        (path / "hparams.json").unlink(missing_ok=True)
    else:
        write_json(path / "hparams.json", hparams)


def _check_shards(path: Path, sizes: FolderSizes) -> None:
    """Raise InputError unless the shards of a folder hold as many finite values as the shapes ask for."""
    n_found = sum(len(_open_shard(path / f"params_{i}.npy")) for i in range(N_SHARDS))
    n_expected = sum(map(math.prod, sizes.shapes()))
    if n_found != n_expected:
        raise InputError(
            f"{path}: params_0.npy .. params_9.npy hold {n_found:,} values, params_shapes.json asks for "
            f"{n_expected:,}. Fetch them again."
        )


def _fill_from_shards(path: Path, sizes: FolderSizes, tensors: list[torch.Tensor]) -> None:
    """Copy the first arrays of a folder into tensors, which may have fewer rows."""
    # the arrays follow each other across the shards: each tensor is filled from where its array starts
    array_starts = np.cumsum([0] + [math.prod(shape) for shape in sizes.shapes()])
    shard_start = 0
    for i in range(N_SHARDS):
        values = torch.from_numpy(_open_shard(path / f"params_{i}.npy", check=False))  # one shard in memory at a time
        for tensor, array_start in zip(tensors, array_starts, strict=False):
            start = max(array_start, shard_start)
            end = min(array_start + tensor.numel(), shard_start + len(values))
            if start < end:
                source = values[start - shard_start : end - shard_start]
                tensor.view(-1)[start - array_start : end - array_start].copy_(source)
        shard_start += len(values)


def _open_shard(path: Path, check: bool = True) -> np.ndarray:
    """Return the values of a shard, memory-mapped. Raises InputError when they are not finite float32 numbers."""
    try:
        values = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing. See 'Weights and data' in README.md for where to get it.") from None
    except (OSError, ValueError, EOFError) as error:  # truncated, no .npy file, or Python objects in it
        raise InputError(f"{path} is not a valid array of numbers ({error}). Fetch it again.") from None
    if values.dtype != np.float32 or values.ndim != 1:
        raise InputError(f"{path} holds {values.dtype} {list(values.shape)}, not a row of float32. Fetch it again.")
    # a NaN or infinity anywhere shows in the sum of squares, which is a tenth of the work
    with np.errstate(over="ignore", invalid="ignore"):
        is_suspect = check and not np.isfinite(np.dot(values, values))
    if is_suspect and not (finite := np.isfinite(values)).all():
        at = int(finite.argmin())
        raise InputError(f"{path}: value {at:,} is {values[at]}, no finite number. Fetch it again.")
    return values


def git_blob_id(path: Path) -> str:
    """Return the id git gives a file's content: sha1 of `blob <size>`, a zero byte and the bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_authors_files(folder: Path) -> None:
    """Print for each file of the authors' model folder whether it is theirs. Raises InputError if any is not.

    Of a Hugging Face folder, the two vocabulary files.
    """
    bad, blob_ids = [], {folder / name: blob_id for name, blob_id in AUTHORS_BLOB_IDS.items()}
    if is_hugging_face(folder):
        ids = (AUTHORS_BLOB_IDS[ENCODER_FILE], AUTHORS_BLOB_IDS[BPE_FILE])
        blob_ids = dict(zip(vocabulary_files(folder), ids, strict=True))
    for path, blob_id in blob_ids.items():
        verdict = "missing" if not path.exists() else "ok" if git_blob_id(path) == blob_id else "differs"
        print(f"{verdict:8} {path}")
        if verdict != "ok":
            bad.append(f"{path.name} ({verdict})")
    if bad:
        raise InputError(f"{folder}: not the authors' files: {', '.join(bad)}. Fetch them again.")
