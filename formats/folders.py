"""Model folders, the authors' and Hugging Face's: which files they hold, and the sizes of their networks.

No weights are read here, and nothing is imported that takes time: a wrong folder is told of before torch is loaded.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from formats.config import SIZES
from formats.files import InputError, find, read_json, sha256, write_json

# the authors' files
ENCODER_FILE, BPE_FILE = "encoder_bpe_40000.json", "vocab_40000.bpe"
SHAPES_FILE = "params_shapes.json"
HPARAMS_FILE = "hparams.json"  # what no shape tells; absent beside the authors' own weights
SHARDS = [f"params_{i}.npy" for i in range(10)]
LSTM_FILE = "LSTM.safetensors"  # ours: what the paper compares the transformer with

# those of a run of train.py, which can be opened with them alone; the first makes it one
RUN_FILES = ("settings.json", ENCODER_FILE, BPE_FILE, "best_params", "best_params.sha256")

# Hugging Face's files
CONFIG_FILE, VOCAB_FILE, MERGES_FILE = "config.json", "vocab.json", "merges.txt"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
INDEX = ".index.json"  # behind the name of such a file: which files it was split into

# config.json: its names of activations and ours, sizes where it has none, and what this network has one of
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu", "relu": "relu", "silu": "swish", "swish": "swish"}
DEFAULT_SIZES = {"vocab_size": 40478, "n_positions": 512, "n_embd": 768, "n_layer": 12, "n_head": 12}
EPSILON = 1e-5  # of the layer norms


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
        embeddings = [[self.n_positions, c], [self.n_vocab, c]]
        attn = [[1, c, 3 * c], [3 * c], [1, c, c], [c]]
        mlp = [[1, c, 4 * c], [4 * c], [1, 4 * c, c], [c]]
        ln = [[c], [c]]
        block = attn + ln + mlp + ln
        return embeddings + block * self.n_layer

    def n_values(self) -> int:
        """Return how many numbers the arrays hold."""
        c = self.n_embd
        n_embeddings = (self.n_positions + self.n_vocab) * c
        n_block = 12 * c * c + 13 * c
        return n_embeddings + self.n_layer * n_block


# --- what a folder holds ---------------------------------------------------------------------------------------------


def open_folder(path: str | os.PathLike) -> Path:
    """Return a folder that a notebook names: as it is, or else the one of that name beside the scripts.

    Public functions that take a model's or a run's folder begin with this; those below them take the Path as it is.
    """
    return find(path)


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, in the authors' format or Hugging Face's."""
    return (folder / SHAPES_FILE).exists() or is_hugging_face(folder)


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run of train.py, whole or not."""
    return (folder / "best_params").exists() or (folder / "settings.json").exists()


def vocabulary_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of a model folder's vocabulary and merges, which both formats have under their own names."""
    if is_hugging_face(folder):
        return tokenizer_files(folder)
    return folder / ENCODER_FILE, folder / BPE_FILE


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that hold its weights."""
    if is_hugging_face(folder):
        return hugging_face_weights(folder)
    return [folder / name for name in SHARDS if (folder / name).exists()]


def read_sizes(folder: str | os.PathLike) -> FolderSizes:
    """Return the sizes of the network in a model folder.

    In the authors' format they follow from params_shapes.json and hparams.json, in Hugging Face's from config.json and
    the vocabulary. Raises InputError when a file is missing or is not of such a network.
    """
    folder = Path(folder)
    if is_hugging_face(folder):
        config = read_config(folder)
        same = {name: config[name] for name in ("n_positions", *SIZES)}
        return FolderSizes(n_tokens(folder, config), **same)

    # the authors' format
    shapes = read_json(folder / SHAPES_FILE)
    hparams = {}
    if (folder / HPARAMS_FILE).exists():
        hparams = read_json(folder / HPARAMS_FILE)
    try:
        sizes = _sizes_of(shapes, hparams)
    except (AttributeError, LookupError, TypeError, ValueError, ZeroDivisionError):
        raise InputError(
            f"{folder / SHAPES_FILE}: not the shapes of this network: positions [n, C], tokens [n, C], then twelve "
            "arrays a block, C a multiple of n_head (12, or what hparams.json says). Fetch both files again."
        ) from None
    return sizes


def _sizes_of(shapes: Any, hparams: Any) -> FolderSizes:
    """Return the sizes that JSON values tell. Raises one of several errors when they are not of this network."""
    # as the first shapes tell them
    n_positions, n_embd = shapes[0]
    n_vocab, _ = shapes[1]
    n_layer = (len(shapes) - 2) // 12
    n_head = hparams.get("n_head", 12)
    for size in (n_positions, n_embd, n_vocab, n_head):
        if type(size) is not int or size < 1:  # 2.0 and True are equal to whole numbers
            raise ValueError("no size")
    sizes = FolderSizes(n_vocab, n_positions, n_embd, n_head, n_layer, hparams.get("afn", "gelu"))

    # all others follow from these
    if sizes.shapes() != shapes or n_embd % n_head != 0:
        raise ValueError("other shapes")
    if sizes.afn not in list(ACTIVATIONS.values()):  # a list, as what JSON holds may have no hash
        raise ValueError("no activation of this network")
    return sizes


# --- what a Hugging Face folder holds --------------------------------------------------------------------------------


def is_hugging_face(folder: Path) -> bool:
    """Return whether a folder holds a Hugging Face model; one in the authors' format goes first."""
    if (folder / SHAPES_FILE).exists():
        return False
    indices = [name + INDEX for name in WEIGHTS_FILES]
    names = [CONFIG_FILE, *WEIGHTS_FILES, *indices]
    return any((folder / name).exists() for name in names)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json with the sizes of the network, and the activation by our name.

    Raises InputError for a file that is missing or damaged, and for a model of another architecture.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} is not an object of settings. Fetch it again.")

    # the architecture
    model_type = config.get("model_type")
    if model_type != "openai-gpt":
        raise InputError(f"{path}: model_type is {model_type!r}, not 'openai-gpt'. Name a folder of that architecture.")
    config = DEFAULT_SIZES | {"afn": "gelu", "layer_norm_epsilon": EPSILON} | config

    # sizes
    for name in DEFAULT_SIZES:
        if type(config[name]) is not int or config[name] < 1:
            raise InputError(f"{path}: {name} is a whole number from 1, not {config[name]!r}. Fetch it again.")
    if config["n_embd"] % config["n_head"]:
        raise InputError(f"{path}: n_embd {config['n_embd']} is not a multiple of n_head {config['n_head']}.")

    # the functions of the network
    if config["afn"] not in list(ACTIVATIONS):
        raise InputError(f"{path}: the activation {config['afn']!r} is not one of {', '.join(ACTIVATIONS)}.")
    if config["layer_norm_epsilon"] != EPSILON:
        raise InputError(f"{path}: layer_norm_epsilon is {config['layer_norm_epsilon']}, this network has {EPSILON}.")
    config["afn"] = ACTIVATIONS[config["afn"]]
    return config


def n_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    """Return how many tokens the vocabulary has, without one all; further embeddings are of added tokens."""
    file, _ = tokenizer_files(folder)
    if not file.exists():
        return config["vocab_size"]
    vocabulary = read_json(file)

    # the file that the user has, of which this one may be made
    path = folder / (VOCAB_FILE if file.parent == folder else TOKENIZER_FILE)
    if not isinstance(vocabulary, dict):
        raise InputError(f"{path} is not an object of tokens and their ids. Fetch it again.")
    if not 0 < len(vocabulary) <= config["vocab_size"]:
        raise InputError(
            f"{path} has {len(vocabulary)} tokens, the weights are for {config['vocab_size']}. "
            "Take both from one model."
        )
    return len(vocabulary)


def tokenizer_files(folder: Path) -> tuple[Path, Path]:
    """Return the files of vocabulary and merges; made of tokenizer.json, if it is alone. Raises InputError for that."""
    paths = (folder / VOCAB_FILE, folder / MERGES_FILE)
    tokenizer = folder / TOKENIZER_FILE
    if all(path.exists() for path in paths) or not tokenizer.exists():
        return paths
    return _vocabulary_in(tokenizer, sha256(tokenizer))


def check_vocabulary(folder: Path) -> None:
    """Raise InputError for a folder without a vocabulary."""
    path, _ = tokenizer_files(folder)
    if not path.exists():
        raise InputError(
            f"{path} is missing, and so is {TOKENIZER_FILE}: no text can be encoded. Fetch one of them; "
            "the transformer alone opens without, by load_openai_pretrained_model."
        )


@cache
def _vocabulary_in(path: Path, _digest: str) -> tuple[Path, Path]:
    """Return files of vocabulary and merges with what tokenizer.json holds, in a folder that is removed at the end."""
    tokenizer = read_json(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        merges = []
        for merge in tokenizer["model"]["merges"]:
            # a pair, and in older files its tokens with a space between them
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            if left + right not in vocabulary:
                raise ValueError(f"the merge {left!r} {right!r} makes no token")
            merges.append(f"{left} {right}\n")
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError("the ids are not 0 .. n - 1")

        # the unknown token is 0 here
        unknown = [token["id"] for token in tokenizer.get("added_tokens", []) if token["content"] == "<unk>"]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no vocabulary with byte-pair merges ({error}). Fetch it again.") from None
    if any(unknown):
        raise InputError(f"{path}: <unk> has the id {unknown[0]}, and here 0. Give it that one, in the weights too.")

    # as the authors have them
    folder = Path(tempfile.mkdtemp(prefix="vocabulary_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_json(folder / VOCAB_FILE, vocabulary)
    (folder / MERGES_FILE).write_text("".join(["#version: 0.2\n", *merges]), encoding="utf-8")
    return folder / VOCAB_FILE, folder / MERGES_FILE


def weights_or_index(folder: Path) -> Path:
    """Return the file of the weights, or the index of several. Raises InputError when there is none."""
    for name in WEIGHTS_FILES:
        for path in (folder / name, folder / (name + INDEX)):
            if path.exists():
                return path
    raise InputError(f"{folder / WEIGHTS_FILES[0]} is missing, and so is {WEIGHTS_FILES[1]}. Fetch one of them.")


def hugging_face_weights(folder: Path) -> list[Path]:
    """Return the files of the weights: one, or all that an index names. Raises InputError when one is missing."""
    path = weights_or_index(folder)
    if not path.name.endswith(INDEX):
        return [path]

    # the index says in which file of the folder each tensor is
    index = read_json(path)
    files = index.get("weight_map") if isinstance(index, dict) else None
    names = {str(name) for name in files.values()} if isinstance(files, dict) else set()
    if not names or any(name != Path(name).name for name in names):
        raise InputError(f"{path} does not say which files hold the weights. Fetch it again.")
    paths = [folder / name for name in sorted(names)]
    for part in paths:
        if not part.exists():
            raise InputError(f"{part} is missing, which {path.name} names. Fetch it.")
    return paths
