"""The settings of the network, which flags and files of runs hold too: to read them takes no torch."""

from collections.abc import KeysView
from dataclasses import dataclass
from typing import Any


class Items:
    """What makes the attributes of a dataclass items too: cfg["n_embd"], dict(cfg)."""

    def keys(self) -> KeysView[str]:
        return vars(self).keys()

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


@dataclass(frozen=True)
class Config(Items):
    """Settings of the network; the defaults are the paper's."""

    n_embd: int = 768  # features
    n_head: int = 12  # attention heads; divides n_embd
    n_layer: int = 12  # blocks
    embd_pdrop: float = 0.1  # dropout rate of the embedding matrix
    attn_pdrop: float = 0.1  # dropout rate of the attention weights
    resid_pdrop: float = 0.1  # dropout rate of the attention and MLP outputs
    clf_pdrop: float = 0.1  # dropout rate of the state the task head reads
    afn: str = "gelu"  # activation of the MLP: gelu, relu or swish


DEFAULT_CONFIG = Config()
SIZES = ("n_embd", "n_head", "n_layer", "afn")  # what a model folder tells
