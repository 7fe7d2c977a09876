"""Hugging Face folders of the model type openai-gpt: read and checked, and written. transformers is not needed.

Their weights are the authors' arrays under other names, without transposition; vocab.json and merges.txt are the
authors' two vocabulary files byte for byte. Special tokens are added tokens there: they follow the vocabulary.
transformers of today writes tokenizer.json instead of these two, and large weights in several files with an index.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from formats.files import InputError, copy_file, read_json, refuse_special, replacing, write_json
from formats.folders import (
    CONFIG_FILE,
    EPSILON,
    MERGES_FILE,
    VOCAB_FILE,
    WEIGHTS_FILES,
    FolderSizes,
    hugging_face_weights,
    weights_or_index,
)

SPECIAL_TOKENS = ("_start_", "_delimiter_", "_classify_")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder by the names that OpenAIGPTModel has for them, with those of heads.

    Python objects in pytorch_model.bin are refused, and nothing in it is executed.

    Raises InputError for a file that is missing or damaged, or holds anything but tensors of finite numbers.
    """
    # all that the files hold
    path = weights_or_index(folder)
    loaded = {}
    for part in hugging_face_weights(folder):
        loaded |= _load(part)

    # only dense tensors of finite numbers
    tensors = {}
    for name, tensor in loaded.items():
        # a view may claim any size: it has more numbers than the file
        if not _is_plain(name, tensor) or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise InputError(f"{path}: {name!r} is not a tensor of numbers. Fetch it again.")

        # the causal mask and the numbers of the positions are no weights
        name = _name_of_today(name)
        if name.endswith((".attn.bias", ".attn.masked_bias", "position_ids")):
            continue
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"{path}: {name} holds values that are not finite numbers. Fetch it again.")
        tensors[name] = tensor

    # the decoder is the embedding matrix, and in some files the only one of the two
    decoder = tensors.pop("lm_head.weight", None)
    if "tokens_embed.weight" not in tensors:
        if decoder is None:
            raise InputError(f"{path}: tokens_embed.weight is missing. Fetch it again.")
        tensors["tokens_embed.weight"] = decoder
    elif decoder is not None and not torch.equal(decoder, tensors["tokens_embed.weight"]):
        raise InputError(f"{path}: lm_head.weight differs from the embedding matrix; in this network they are tied.")
    return tensors


def _load(path: Path) -> dict:
    """Return what a file of weights holds, by names. Raises InputError for a damaged one; executes nothing in it."""
    from safetensors.torch import load_file  # here: the model needs torch and NumPy only

    refuse_special(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a damaged file lead to
        reason = str(error).strip() or type(error).__name__
        reason = reason.split("\n")[0].split(". ")[0]
        raise InputError(
            f"{path} is not a valid file of tensors ({reason}). Nothing in it was executed. Fetch it again."
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not tensors by their names. Fetch it again.")
    return found


def _is_plain(name: Any, tensor: Any) -> bool:
    """Return whether these are a name and a dense tensor with its numbers."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _name_of_today(name: str) -> str:
    """Return the name that OpenAIGPTModel has now for a tensor: in 2018 weights ended with w or g, biases with b."""
    name = name.removeprefix("transformer.")
    for old, new in ((".w", ".weight"), (".g", ".weight"), (".b", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def array_names(n_layer: int) -> list[str]:
    """Return their names of the authors' arrays, in the authors' order."""
    names = ["positions_embed.weight", "tokens_embed.weight"]
    for i in range(n_layer):
        for part in ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"):
            names += [f"h.{i}.{part}.weight", f"h.{i}.{part}.bias"]
    return names


def authors_arrays(folder: Path, tensors: Mapping[str, Tensor], sizes: FolderSizes) -> list[Tensor]:
    """Return the authors' arrays among the tensors of a folder.

    Args:
        sizes: of the network; more tokens than that are added ones, left in.

    Raises InputError when one is missing or has another shape, and when there are more blocks than these.
    """
    path = weights_or_index(folder)
    names = array_names(sizes.n_layer)

    # no further block
    for name in tensors:
        if name.startswith("h.") and name not in names:
            raise InputError(f"{path}: {name} is not of this network. Take weights and config.json from one model.")

    # each array is there in its shape; the embedding matrix may have more tokens
    arrays = []
    for name, shape in zip(names, sizes.shapes(), strict=True):
        if name not in tensors:
            raise InputError(f"{path}: {name} is missing. Take weights and config.json from one model.")
        expected = list(shape[-2:])  # the authors' matrices have a third axis, of size 1
        found = list(tensors[name].shape)

        # added tokens stand behind those of the vocabulary
        if name == "tokens_embed.weight" and found[1:] == expected[1:]:
            expected[0] = max(expected[0], found[0])
        if found != expected:
            raise InputError(f"{path}: {name} is {found}, config.json and vocab.json ask for {expected}.")
        arrays.append(tensors[name])
    return arrays


# --- writing ---------------------------------------------------------------------------------------------------------


def write_hugging_face(
    folder: Path,
    transformer: nn.Module,
    n_vocab: int,
    vocabulary: tuple[Path, Path],
    head: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder. config.json comes last: without it the folder is not complete.

    Args:
        folder: an existing folder.
        transformer: a TransformerModel; its embeddings between the n_vocab tokens and the positions are added tokens.
        vocabulary: the authors' two files.
        head: tensors beside the transformer's, by their names.
        config: architectures, activation, dropouts.
    """
    from safetensors.torch import save

    # the weights: the arrays in the authors' order under their names
    table = transformer.embed.weight
    n_positions = transformer.n_ctx
    arrays = [table[-n_positions:], table[:-n_positions], *transformer.h.parameters()]
    tensors = dict(head)
    for name, array in zip(array_names(len(transformer.h)), arrays, strict=True):
        tensors[f"transformer.{name}"] = array
    tensors = {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()}
    with replacing(folder / WEIGHTS_FILES[0]) as file:
        file.write(save(tensors, {"format": "pt"}))

    # the tokenizer
    encoder_path, bpe_path = vocabulary
    copy_file(encoder_path, folder / VOCAB_FILE)
    copy_file(bpe_path, folder / MERGES_FILE)

    # and which of its tokens are special
    vocab_size = len(table) - n_positions
    special = SPECIAL_TOKENS if vocab_size == n_vocab + len(SPECIAL_TOKENS) else ()
    if read_json(folder / VOCAB_FILE).get("<unk>") == 0:  # else no tokenizer of theirs gives unknown tokens our id
        write_json(folder / "tokenizer_config.json", tokenizer_config(n_vocab, n_positions, special))

    # the settings
    sizes = {
        "model_type": "openai-gpt",
        "vocab_size": vocab_size,
        "n_positions": n_positions,
        "n_ctx": n_positions,
        "n_embd": table.size(1),
        "n_layer": len(transformer.h),
        "n_head": transformer.h[0].attn.n_head,
        "layer_norm_epsilon": EPSILON,
        "tie_word_embeddings": True,
    }
    write_json(folder / CONFIG_FILE, sizes | dict(config), indent=2)


def tokenizer_config(n_vocab: int, n_positions: int, special: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the tokenizer that transformers makes of vocab.json and merges.txt.

    Special tokens are read where a text holds them: `_start_ a _delimiter_ b _classify_` gives the tokens of a run's
    row; rows are padded with id 0. Its words are split by BERT's rules, not spaCy's: some texts get other tokens.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "OpenAIGPTTokenizer",
        "model_max_length": n_positions,
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    }
    if special:
        config["bos_token"], config["sep_token"], config["cls_token"] = special
        added = {}
        for i, token in enumerate(special, n_vocab):
            added[str(i)] = {"content": token, "special": True, "normalized": False}
        config["added_tokens_decoder"] = added
    return config
