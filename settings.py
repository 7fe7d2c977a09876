"""Settings of the commands: dataclasses whose fields are the flags, with default, help text and check in one line."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, TypeVar

from model_pytorch import ACTIVATIONS, DEFAULT_CONFIG, Config

S = TypeVar("S")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that the help text explains itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def number(kind: type, low: float = -math.inf, high: float = math.inf, below_high: bool = False) -> Callable:
    """Return a parser of a finite int or float from low to high, for argparse to complain with."""

    def parse(text: str) -> float:
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if not low <= value <= high or (below_high and value == high):
            limits = f"from {low} to {'below ' * below_high}{high}" if high < math.inf else f"{low} or more"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


COUNT, FRACTION, NOT_NEGATIVE = number(int, 1), number(float, 0, 1, below_high=True), number(float, 0)


def setting(default: Any, help: str, parse: Callable | None = None, choices: Container[str] | None = None) -> Any:
    """Return a dataclass field that is also a flag; a default of False makes it a switch."""
    return dataclasses.field(default=default, metadata={"help": help, "type": parse, "choices": choices})


def required(help: str, parse: Callable | None = None) -> Any:
    """Return a dataclass field that is also a flag which must be given."""
    return dataclasses.field(metadata={"help": help, "type": parse})


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add a flag for each field of a dataclass of settings."""
    for field in dataclasses.fields(settings):
        given = {name: value for name, value in field.metadata.items() if value is not None}
        if field.default is False:
            parser.add_argument(f"--{field.name}", action="store_true", **given)
        elif field.default is dataclasses.MISSING:
            parser.add_argument(f"--{field.name}", required=True, **given)
        else:
            parser.add_argument(f"--{field.name}", default=field.default, **given)


def parse(settings: type[S], description: str, argv: list[str] | None) -> S:
    """Return the settings that the command line gives; a wrong flag ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    add_flags(parser, settings)
    try:
        return settings(**vars(parser.parse_args(argv)))
    except ValueError as error:  # settings that contradict each other
        parser.error(str(error))


def check_name(desc: str) -> None:
    """Raise ValueError for a name of a run that is not a plain file name: it would be written elsewhere."""
    if desc in ("", ".", "..") or not desc.isprintable() or any(c in desc for c in '/\\:*?"<>|'):
        raise ValueError(f"--desc {desc!r} becomes a file name: use letters, digits, '-', '_' and '.'")


# --- groups of settings that commands have in common -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Those of `Config`; sizes left out follow from the model folder."""

    n_embd: int | None = setting(None, f"features; default: as in --model_dir, else {DEFAULT_CONFIG.n_embd}", COUNT)
    n_head: int | None = setting(
        None, f"attention heads; default: as in --model_dir, else {DEFAULT_CONFIG.n_head}", COUNT
    )
    n_layer: int | None = setting(None, f"blocks; default: as in --model_dir, else {DEFAULT_CONFIG.n_layer}", COUNT)
    embd_pdrop: float = setting(DEFAULT_CONFIG.embd_pdrop, "dropout of the embedding matrix", FRACTION)
    attn_pdrop: float = setting(DEFAULT_CONFIG.attn_pdrop, "dropout of the attention weights", FRACTION)
    resid_pdrop: float = setting(DEFAULT_CONFIG.resid_pdrop, "dropout of what attention and MLP add", FRACTION)
    clf_pdrop: float = setting(DEFAULT_CONFIG.clf_pdrop, "dropout of the state the task head reads", FRACTION)
    afn: str = setting(DEFAULT_CONFIG.afn, "activation of the MLP", choices=ACTIVATIONS)

    def config(self, sizes=DEFAULT_CONFIG) -> Config:
        """Return the network's settings; sizes that are None are taken from `sizes`. Raises ValueError."""
        chosen = {name: getattr(self, name) or getattr(sizes, name) for name in ("n_embd", "n_head", "n_layer")}
        if chosen["n_embd"] % chosen["n_head"]:
            raise ValueError(
                f"--n_embd {chosen['n_embd']} is not a multiple of --n_head {chosen['n_head']}. Change one of them."
            )
        return Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)} | chosen)


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Those of OpenAIAdam, except its schedule."""

    lr: float = setting(6.25e-5, "peak learning rate", NOT_NEGATIVE)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this global norm; 0 or less: never", number(float))
    l2: float = setting(0.01, "weight decay of parameters with two axes or more", NOT_NEGATIVE)
    vector_l2: bool = setting(False, "weight decay of the others (biases, gains) too")
    b1: float = setting(0.9, "decay of Adam's mean of gradients", FRACTION)
    b2: float = setting(0.999, "decay of Adam's mean of squared gradients", FRACTION)
    e: float = setting(1e-8, "Adam's epsilon", NOT_NEGATIVE)

    def adam(self) -> dict[str, float | bool]:
        """Return the arguments of OpenAIAdam."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(AdamSettings)}


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """Those of memory, speed and long runs, which change results by rounding only."""

    precision: str | None = setting(
        None, "of matrix products; default: bf16 on a GPU that has it, else fp32", choices=("fp32", "bf16")
    )
    accumulate: int = setting(1, "batches of --n_batch computed one by one for each update", COUNT)
    checkpoint_activations: bool = setting(False, "save memory: recompute the blocks in the backward pass")
    deterministic: bool = setting(False, "let torch use deterministic algorithms only")
    checkpoint_every: int = setting(
        0, "updates between two checkpoints in --save_dir; 0: only at the end of each epoch", number(int, 0)
    )
    resume: bool = setting(False, "go on from the newest checkpoint of --desc, if there is one")


# what may change when a run is resumed
FREE_ON_RESUME = {"resume", "checkpoint_every", "submit", "analysis", "verify", "log_dir", "save_dir", "submission_dir"}


def fixed_on_resume(settings: Any) -> dict[str, Any]:
    """Return the settings that a resumed run must share with its checkpoint."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE_ON_RESUME}
