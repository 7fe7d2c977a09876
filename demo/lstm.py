"""The LSTM that the paper compares the transformer with (its Table 5): same input, losses and number of parameters.

One layer of nn.LSTM, with its initial weights, replaces all blocks. The position embeddings, which it does not need,
stay: it reads the same rows. There is dropout on the embedding matrix and before the task head only.
"""

import math
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

import finetuning
import pretrain
from formats.authors import read_sizes
from formats.files import find
from model_pytorch import DoubleHeadModel, LMModel, TransformerModel
from running.checkpoint import load_parameters, save_parameters
from running.processes import Ranks, Stop, join_ranks
from speed.packing import Packing


class LSTM(nn.Module):
    """An LSTM and a linear map back to the features, from packed tokens to packed tokens as all blocks together."""

    def __init__(self, n_embd: int, n_hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(n_embd, n_hidden, batch_first=True)
        self.c_proj = nn.Linear(n_hidden, n_embd)

    def forward(self, x: Tensor, packing: Packing, cache: None = None) -> Tensor:
        """Return the states (N, C) of tokens (N, C); what rows have in common is computed for each of them."""
        h, _ = self.lstm(packing.unpack(x))  # (B*K, T, n_hidden); the padding ends a row: no token sees it
        # each token's state, from one of the rows that hold it; dummy tokens, which no row holds, take the first
        index = packing.source.new_zeros(len(x) + 1)
        index[packing.source.flatten()] = torch.arange(packing.source.numel(), device=x.device)
        return self.c_proj(h.flatten(0, 1).index_select(0, index[:-1]))


def n_hidden(n_embd: int, n_parameters: int) -> int:
    """Return the size of the hidden state with which an LSTM above has a number of parameters, as nearly as can be."""
    # 4 H (C + H + 2) in the gates, C (H + 1) in the linear map
    half = (5 * n_embd + 8) / 8
    return max(1, round(math.sqrt(half**2 + (n_parameters - n_embd) / 4) - half))


def replace_blocks(transformer: TransformerModel) -> None:
    """Put an LSTM of as many parameters in the position of the blocks."""
    n_embd = transformer.embed.weight.size(1)
    n_parameters = sum(p.numel() for p in transformer.h.parameters())
    transformer.h = nn.ModuleList([LSTM(n_embd, n_hidden(n_embd, n_parameters))])


class PreTrainingRun(pretrain.Run):
    """A pre-training run of the LSTM."""

    def new_model(self, n_positions: int, initial: TransformerModel | None) -> LMModel:
        model = super().new_model(n_positions, initial)
        replace_blocks(model.transformer)
        return model


def pre_train(settings: pretrain.Settings, weights: Path) -> None:
    """Pre-train the LSTM as pretrain.run does a transformer, and write its parameters to a file."""
    with join_ranks() as ranks, closing(PreTrainingRun(settings, ranks)) as run, Stop(ranks) as stop:
        run.train(stop)
    save_parameters(weights, run.model)


class FineTuningRun(finetuning.Run):
    """A fine-tuning run of the pre-trained LSTM.

    Args:
        settings: with the model_dir of a transformer with the same sizes and vocabulary, and n_transfer 0.
        weights: what pre_train wrote.
    """

    def __init__(self, settings: finetuning.Settings, ranks: Ranks, weights: Path):
        self.weights = weights
        super().__init__(settings, ranks)

    def new_model(self, prepared: finetuning.Prepared) -> tuple[DoubleHeadModel, int]:
        model, _ = super().new_model(prepared)
        n_vocab, n_ctx = prepared.n_vocab, prepared.n_ctx
        n_positions = read_sizes(find(self.settings.model_dir)).n_positions
        source = LMModel(prepared.cfg, n_vocab + n_positions, n_positions)
        for network in (model, source):
            replace_blocks(network.transformer)
        load_parameters(self.weights, source)
        with torch.no_grad():
            table, loaded = model.transformer.embed.weight, source.transformer.embed.weight
            table[:n_vocab] = loaded[:n_vocab]
            table[-n_ctx:] = loaded[n_vocab : n_vocab + n_ctx]
        model.transformer.h.load_state_dict(source.transformer.h.state_dict())
        return model, len(model.transformer.h)
