"""The LSTM that the paper compares the transformer with (its Table 5): same input, heads and losses.

One layer of nn.LSTM, with its initial weights, replaces all blocks. The position embeddings, which it does not need,
stay: it reads the same rows. There is dropout on the embedding matrix and before the task head only.
"""

import dataclasses
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from formats.config import DEFAULT_CONFIG
from formats.files import InputError, refuse_special, sha256
from formats.folders import ENCODER_FILE, LSTM_FILE
from model_pytorch import LMModel, TransformerModel
from running.checkpoint import load_parameters, save_parameters
from speed.packing import Packing


class LSTM(nn.Module):
    """An LSTM and a linear map back to the features, from packed tokens to packed tokens as all blocks together."""

    def __init__(self, n_embd: int, n_hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(n_embd, n_hidden, batch_first=True)
        self.c_proj = nn.Linear(n_hidden, n_embd)

    def forward(self, x: Tensor, packing: Packing, cache: None = None) -> Tensor:
        """Return the states (N, C) of tokens (N, C); what rows have in common is computed for each of them."""
        # in float32, as not every device has it in bf16; the padding ends a row: no token sees it
        with torch.autocast(x.device.type, enabled=False):
            h, _ = self.lstm(packing.unpack(x.float()))  # (R, T, n_hidden)
        h = h.flatten(0, 1)
        if packing.source is not None:
            # each token's state, from one of the rows that hold it
            index = packing.source.new_zeros(len(x) + 1)
            index[packing.source.flatten()] = torch.arange(len(h), device=x.device)
            h = h.index_select(0, index[:-1])
        return self.c_proj(h)


def hidden_size(n_embd: int, n_parameters: int) -> int:
    """Return the size of the hidden state with which an LSTM above has a number of parameters, as nearly as can be."""
    # 4 H (C + H + 2) in the gates, C (H + 1) in the linear map: a quadratic equation of H
    half = (5 * n_embd + 8) / 8
    root = math.sqrt(half**2 + (n_parameters - n_embd) / 4)
    return max(1, round(root - half))


def replace_blocks(transformer: TransformerModel, n_hidden: int) -> None:
    """Put an LSTM in the place of the blocks.

    Args:
        n_hidden: size of its hidden state; 0: the one with which it has as many parameters as the blocks.
    """
    n_embd = transformer.embed.weight.size(1)
    if n_hidden == 0:
        n_hidden = hidden_size(n_embd, sum(p.numel() for p in transformer.h.parameters()))
    transformer.h = nn.ModuleList([LSTM(n_embd, n_hidden)])


# --- its file, LSTM.safetensors beside the vocabulary ----------------------------------------------------------------


def save_lstm(model: LMModel, folder: Path) -> None:
    """Write the parameters of a pre-trained LSTM to its folder. Raises InputError when the disk does not take them."""
    save_parameters(folder / LSTM_FILE, model)


def load_lstm(transformer: TransformerModel, n_vocab: int, vocabulary: Path, folder: Path) -> None:
    """Put a pre-trained LSTM in the place of the blocks, with its embeddings; those of special tokens stay.

    Args:
        transformer: of n_vocab tokens, special ones, and its n_ctx positions.
        vocabulary: the file of these tokens.
        folder: what save_lstm wrote to.

    Raises InputError for a file that is missing or damaged, and for an LSTM of another vocabulary or size.
    """
    # the file, and whether it fits
    path = folder / LSTM_FILE
    n_rows, n_embd, n_hidden = sizes_of(path)
    if sha256(folder / ENCODER_FILE) != sha256(vocabulary):
        raise InputError(f"{path} has the vocabulary beside it, not {vocabulary}. Take one that was made with that.")
    n_positions = n_rows - n_vocab
    n_ctx = transformer.n_ctx
    if n_embd != transformer.embed.weight.size(1) or n_positions < n_ctx:
        raise InputError(
            f"{path} has {n_embd} features and {n_positions} positions, the network {transformer.embed.weight.size(1)} "
            f"and {n_ctx}. Take one of the same sizes."
        )

    # the network as it was pre-trained
    cfg = dataclasses.replace(DEFAULT_CONFIG, n_embd=n_embd, n_head=1, n_layer=0)
    source = LMModel(cfg, n_rows, n_positions)
    replace_blocks(source.transformer, n_hidden)
    load_parameters(path, source)

    # its LSTM, its tokens and its first positions
    transformer.h = source.transformer.h
    loaded = source.transformer.embed.weight
    with torch.no_grad():
        table = transformer.embed.weight
        table[:n_vocab] = loaded[:n_vocab]
        table[-n_ctx:] = loaded[n_vocab : n_vocab + n_ctx]


def sizes_of(path: Path) -> tuple[int, int, int]:
    """Return the numbers of embeddings, features and units of the LSTM in a file. Raises InputError."""
    refuse_special(path)
    try:
        with safe_open(path, "pt") as file:
            n_rows, n_embd = file.get_slice("transformer.embed.weight").get_shape()
            _, n_hidden = file.get_slice("transformer.h.0.lstm.weight_hh_l0").get_shape()
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no LSTM that can be read ({error}). pretrain.py --lstm_units makes one.") from None
    return n_rows, n_embd, n_hidden
