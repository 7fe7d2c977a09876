"""Hugging Face folders of the model type openai-gpt: read and checked, and written. transformers is not needed.

Their weights are the authors' arrays under other names, without transposition; vocab.json and merges.txt are the
authors' two vocabulary files byte for byte. Special tokens are added tokens there: rows that follow the vocabulary.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from formats.files import InputError, copy_file, read_json, replacing, write_json

CONFIG_FILE, VOCAB_FILE, MERGES_FILE = "config.json", "vocab.json", "merges.txt"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu", "relu": "relu", "silu": "swish", "swish": "swish"}  # theirs: ours
DEFAULTS = {"vocab_size": 40478, "n_positions": 512, "n_embd": 768, "n_layer": 12, "n_head": 12, "afn": "gelu"}
EPSILON = 1e-5  # of the layer norms
RUN_KEY = "fine_tuned"  # of config.json: the settings of a run of train.py, which transformers keeps when it saves
SPECIAL_TOKENS = ("_start_", "_delimiter_", "_classify_")


# --- reading ---------------------------------------------------------------------------------------------------------


def is_hugging_face(folder: Path) -> bool:
    """Return whether a folder holds a Hugging Face model; one in the authors' format goes first."""
    names = (CONFIG_FILE, *WEIGHTS_FILES)
    return not (folder / "params_shapes.json").exists() and any((folder / name).exists() for name in names)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json with the sizes of the network, and the activation by our name.

    Raises InputError for a file that is missing or damaged, and for a model of another architecture.
    """
    config = read_json(path := folder / CONFIG_FILE)
    if not isinstance(config, dict) or config.get("model_type") != "openai-gpt":
        found = config.get("model_type") if isinstance(config, dict) else None
        raise InputError(f"{path}: model_type is {found!r}, not 'openai-gpt'. Name a folder of that architecture.")
    config = DEFAULTS | config
    sizes = {name: config[name] for name in DEFAULTS if name != "afn"}
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes.values()):
        raise InputError(f"{path}: sizes are whole numbers from 1, these are {sizes}. Fetch it again.")
    if config["n_embd"] % config["n_head"]:
        raise InputError(f"{path}: n_embd {config['n_embd']} is not a multiple of n_head {config['n_head']}.")
    if not isinstance(config["afn"], str) or config["afn"] not in ACTIVATIONS:
        raise InputError(f"{path}: the activation {config['afn']!r} is not one of {', '.join(ACTIVATIONS)}.")
    if (epsilon := config.get("layer_norm_epsilon", EPSILON)) != EPSILON:
        raise InputError(f"{path}: layer_norm_epsilon is {epsilon}, this network has {EPSILON}.")
    return config | {"afn": ACTIVATIONS[config["afn"]]}


def n_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    """Return how many tokens vocab.json has; further rows of the embedding matrix are added tokens."""
    vocabulary = read_json(path := folder / VOCAB_FILE)
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= config["vocab_size"]:
        n = len(vocabulary) if isinstance(vocabulary, dict) else "no"
        raise InputError(
            f"{path} has {n} tokens, the weights are for {config['vocab_size']}. Take both from one model."
        )
    return len(vocabulary)


def weights_file(folder: Path) -> Path:
    """Return the file of the weights. Raises InputError when there is none."""
    for name in WEIGHTS_FILES:
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder / WEIGHTS_FILES[0]} is missing, and so is {WEIGHTS_FILES[1]}. Fetch one of them.")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder by the names that OpenAIGPTModel has for them, with those of heads.

    Python objects in pytorch_model.bin are refused, and nothing in it is executed.

    Raises InputError for a file that is missing or damaged, or holds anything but tensors of finite numbers.
    """
    from safetensors.torch import load_file  # here: the model needs torch and NumPy only

    path = weights_file(folder)
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a damaged file lead to
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].split(". ")[0]
        raise InputError(
            f"{path} is not a valid file of tensors ({reason}). Nothing in it was executed. Fetch it again."
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not tensors by their names. Fetch it again.")
    tensors = {}
    for name, tensor in found.items():
        is_plain = isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        is_plain = is_plain and not tensor.is_meta and not tensor.is_quantized
        if not is_plain or tensor.nbytes > tensor.untyped_storage().nbytes():  # a view may claim any size
            raise InputError(f"{path}: {name!r} is not a tensor of numbers. Fetch it again.")
        name, end = name.removeprefix("transformer."), name.rpartition(".")[2]
        if name.endswith((".attn.bias", ".attn.b", ".attn.masked_bias", "position_ids")):
            continue  # the causal mask and the numbers of the positions are no weights
        name = name.removesuffix(end) + {"w": "weight", "g": "weight", "b": "bias"}.get(end, end)  # as in 2018
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"{path}: {name} holds values that are not finite numbers. Fetch it again.")
        tensors[name] = tensor
    table = tensors.setdefault("tokens_embed.weight", decoder := tensors.pop("lm_head.weight", None))
    if table is None:
        raise InputError(f"{path}: tokens_embed.weight is missing. Fetch it again.")
    if decoder is not None and not torch.equal(decoder, table):
        raise InputError(f"{path}: lm_head.weight differs from the embedding matrix; in this network they are tied.")
    return tensors


def array_names(n_layer: int) -> list[str]:
    """Return their names of the authors' arrays, in the authors' order."""
    parts = ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
    block = [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    return ["positions_embed.weight", "tokens_embed.weight"] + [f"h.{i}.{n}" for i in range(n_layer) for n in block]


def authors_arrays(folder: Path, tensors: Mapping[str, Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the authors' arrays among the tensors of a folder.

    Args:
        shapes: of the arrays in the authors' order; more rows of tokens than that are added tokens, left in.

    Raises InputError when one is missing or has another shape, and when there are more blocks than these.
    """
    path, names = weights_file(folder), array_names((len(shapes) - 2) // 12)
    for name, shape in zip(names, shapes, strict=True):
        expected = list(shape[1:] if len(shape) == 3 else shape)
        if name not in tensors:
            raise InputError(f"{path}: {name} is missing. Take weights and config.json from one model.")
        found = list(tensors[name].shape)
        is_table = name == "tokens_embed.weight" and found[1:] == expected[1:]
        if found != expected and not (is_table and found[0] > expected[0]):
            raise InputError(f"{path}: {name} is {found}, config.json and vocab.json ask for {expected}.")
    if more := [name for name in tensors if name.startswith("h.") and name not in names]:
        raise InputError(f"{path}: {more[0]} is not of this network. Take weights and config.json from one model.")
    return [tensors[name] for name in names]


# --- writing ---------------------------------------------------------------------------------------------------------


def classifier_weights(linear: nn.Linear, ln: nn.Module) -> Tensor | None:
    """Return weights (n_out, C) with which a linear map without a bias gives what `linear` gives; None if none do.

    OpenAIGPTForSequenceClassification has no bias. It reads h = g n + b of the last layer norm, where n sums to 0: with
    w + a / g the logit grows by a sum(n) + a sum(b / g) = a sum(b / g), a constant, which is made the bias.
    """
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    if not bias.any():
        return weight.float()
    inverse = 1 / ln.g.detach().double()
    shift = bias[:, None] / (ln.b.detach().double() * inverse).sum() * inverse
    # added weights far larger than those there would cost float32 its digits
    is_small = shift.isfinite().all() and shift.abs().max() <= 10 * weight.abs().max()
    return (weight + shift).float() if is_small else None


def write_hugging_face(
    folder: Path,
    transformer: nn.Module,
    n_vocab: int,
    vocabulary: tuple[str | os.PathLike, str | os.PathLike],
    head: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder. config.json comes last: without it the folder is not complete.

    Args:
        folder: an existing folder.
        transformer: a TransformerModel; its rows after the n_vocab tokens, and before the positions, are added tokens.
        vocabulary: the authors' two files.
        head: tensors beside the transformer's, by their names.
        config: architectures, activation, dropouts, labels.
    """
    from safetensors.torch import save

    table, n_positions = transformer.embed.weight, transformer.n_ctx
    arrays = [table[-n_positions:], table[:-n_positions], *transformer.h.parameters()]
    names = array_names(len(transformer.h))
    tensors = {f"transformer.{name}": array for name, array in zip(names, arrays, strict=True)} | dict(head)
    tensors = {name: value.detach().cpu().float().clone() for name, value in tensors.items()}
    with replacing(folder / WEIGHTS_FILES[0]) as file:
        file.write(save(tensors, {"format": "pt"}))
    for name, source in zip((VOCAB_FILE, MERGES_FILE), vocabulary, strict=True):
        copy_file(Path(source), folder / name)
    n_rows = len(table) - n_positions
    special = SPECIAL_TOKENS if n_rows == n_vocab + len(SPECIAL_TOKENS) else ()
    for name, value in tokenizer_files(folder, n_positions, special).items():
        write_json(folder / name, value)
    sizes = {"vocab_size": n_rows, "n_positions": n_positions, "n_ctx": n_positions, "n_embd": table.size(1)}
    sizes |= {"n_layer": len(transformer.h), "n_head": transformer.h[0].attn.n_head}
    fixed = {"model_type": "openai-gpt", "layer_norm_epsilon": EPSILON, "tie_word_embeddings": True}
    write_json(folder / CONFIG_FILE, fixed | sizes | dict(config), indent=2)


def tokenizer_files(folder: Path, n_positions: int, special: Sequence[str]) -> dict[str, Any]:
    """Return name -> content of the files that make a tokenizer of vocab.json and merges.txt for transformers.

    With special tokens it writes texts as the run's rows: `_start_ a _classify_`, or `_start_ a _delimiter_ b
    _classify_`, padded on the right with id 0. Its words are split by BERT's rules, not spaCy's: some texts get other
    tokens than ours. Without `<unk>` as id 0, no such tokenizer can be made: {}.
    """
    encoder = json.loads((folder / VOCAB_FILE).read_text(encoding="utf-8"))
    merges = (folder / MERGES_FILE).read_text(encoding="utf-8").split("\n")[1:]
    if encoder.get("<unk>") != 0:
        return {}
    added = {"<unk>": 0} | {token: len(encoder) + i for i, token in enumerate(special)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    roles = dict(zip(("bos_token", "sep_token", "cls_token"), special, strict=False))
    roles |= {"unk_token": "<unk>"} | ({"pad_token": "<unk>"} if special else {})
    template = None
    if special:
        start, delimiter, classify = ({"SpecialToken": {"id": token, "type_id": 0}} for token in special)
        a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        template = {"type": "TemplateProcessing", "single": [start, a, classify]}
        template |= {"pair": [start, a, delimiter, b, classify]}
        template |= {"special_tokens": {t: {"id": t, "ids": [added[t]], "tokens": [t]} for t in special}}
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": ""}
    model |= {"end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": encoder, "merges": [line.split() for line in merges if line]}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": token, **flags} for token, i in added.items()],
            "normalizer": normalizer | {"strip_accents": None, "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": template,
            "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
            "model": model,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "OpenAIGPTTokenizer",
            "model_max_length": n_positions,
            "added_tokens_decoder": {str(i): {"content": token, **flags} for token, i in added.items()},
            **roles,
        },
        "special_tokens_map.json": roles,
        "added_tokens.json": {token: i for token, i in added.items() if i},
    }
