"""The LSTM that the paper compares the transformer with (its Table 5): same input, losses and number of parameters.

One layer of nn.LSTM, with its initial weights, replaces all blocks. The position embeddings, which it does not need,
stay: it reads the same rows. There is dropout on the embedding matrix and before the task head only.
"""

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import pretrain
import train
from formats.folders import read_sizes
from model_pytorch import DoubleHeadModel, LMModel, TransformerModel
from reading.splits import Splits
from running.checkpoint import load_parameters, save_parameters
from running.settings import FineTuningFlags, PreTrainingFlags
from running.training import run_processes
from speed.packing import Packing


class LSTM(nn.Module):
    """An LSTM and a linear map back to the features, from packed tokens to packed tokens as all blocks together."""

    def __init__(self, n_embd: int, n_hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(n_embd, n_hidden, batch_first=True)
        self.c_proj = nn.Linear(n_hidden, n_embd)

    def forward(self, x: Tensor, packing: Packing, cache: None = None) -> Tensor:
        """Return the states (N, C) of tokens (N, C); what rows have in common is computed for each of them."""
        h, _ = self.lstm(packing.unpack(x))  # (R, T, n_hidden); the padding ends a row: no token sees it
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


def replace_blocks(transformer: TransformerModel) -> None:
    """Put an LSTM of as many parameters in the position of the blocks."""
    n_embd = transformer.embed.weight.size(1)
    n_parameters = sum(p.numel() for p in transformer.h.parameters())
    lstm = LSTM(n_embd, hidden_size(n_embd, n_parameters))
    transformer.h = nn.ModuleList([lstm])


# --- pre-training ----------------------------------------------------------------------------------------------------


def language_model(
    settings: PreTrainingFlags, n_vocab: int, n_positions: int, initial: TransformerModel | None
) -> LMModel:
    """Return the LSTM in the place of what pretrain.py trains."""
    model = pretrain.build_network(settings, n_vocab, n_positions, initial)
    replace_blocks(model.transformer)
    return model


def pre_train(settings: PreTrainingFlags, weights: Path) -> None:
    """Pre-train the LSTM as pretrain.py does a transformer, and write its parameters to a file."""
    with run_processes(settings) as ranks:
        model = pretrain.pre_train(settings, ranks, language_model)
    save_parameters(weights, model)


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def fine_tune(settings: FineTuningFlags, weights: Path) -> None:
    """Fine-tune the pre-trained LSTM as train.py does a transformer.

    Args:
        settings: with the model_dir of a transformer with the same sizes and vocabulary, and n_transfer 0.
        weights: what pre_train wrote.
    """
    train.run(settings, partial(classifier, weights))


def classifier(weights: Path, settings: FineTuningFlags, splits: Splits, n_vocab: int) -> tuple[DoubleHeadModel, str]:
    """Return the pre-trained LSTM with a task head, in the place of what train.py trains."""
    # the network as it was pre-trained
    model, _ = train.build_network(settings, splits, n_vocab)
    n_positions = read_sizes(Path(settings.model_dir)).n_positions
    source = LMModel(model.cfg, n_vocab + n_positions, n_positions)
    for network in (model, source):
        replace_blocks(network.transformer)
    load_parameters(weights, source)

    # its tokens, its first positions and its LSTM
    n_ctx = model.transformer.n_ctx
    with torch.no_grad():
        table = model.transformer.embed.weight
        loaded = source.transformer.embed.weight
        table[:n_vocab] = loaded[:n_vocab]
        table[-n_ctx:] = loaded[n_vocab : n_vocab + n_ctx]
    model.transformer.h.load_state_dict(source.transformer.h.state_dict())
    return model, f"the LSTM in {weights}"
