"""Settings of the commands: dataclasses whose fields are the flags, with default, help text and check in one line."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, TypeVar

from formats.authors import BPE_FILE, ENCODER_FILE, vocabulary_files
from formats.examples import OWN_FIELDS, parse_columns
from formats.files import find
from model_pytorch import ACTIVATIONS, DEFAULT_CONFIG, Config
from opt import SCHEDULES
from reading.tasks import TASKS

S = TypeVar("S")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that the help text explains itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


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


def required(help: str, parse: Callable | None = None, nargs: str | None = None) -> Any:
    """Return a dataclass field that is also a flag which must be given; `nargs` as argparse's."""
    return dataclasses.field(metadata={"help": help, "type": parse, "nargs": nargs})


def positional(help: str, choices: Container[str] | None = None) -> Any:
    """Return a dataclass field that is given without a flag, by its place on the command line."""
    return dataclasses.field(metadata={"help": help, "choices": choices, "positional": True})


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add a flag for each field of a dataclass of settings, and the positional arguments."""
    # the command's own flags first, then those it has in common with others
    for field in sorted(dataclasses.fields(settings), key=lambda field: field.name not in settings.__annotations__):
        given = {name: value for name, value in field.metadata.items() if value is not None}
        if given.pop("positional", False):
            parser.add_argument(field.name, **given)
        elif field.default is False:
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


SIZES = ("n_embd", "n_head", "n_layer", "afn")  # what a model folder tells


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The fields of `Config`; sizes left out are taken from the model folder."""

    n_embd: int | None = setting(None, f"features; default: as in --model_dir, else {DEFAULT_CONFIG.n_embd}", COUNT)
    n_head: int | None = setting(
        None, f"attention heads; default: as in --model_dir, else {DEFAULT_CONFIG.n_head}", COUNT
    )
    n_layer: int | None = setting(None, f"blocks; default: as in --model_dir, else {DEFAULT_CONFIG.n_layer}", COUNT)
    embd_pdrop: float = setting(DEFAULT_CONFIG.embd_pdrop, "dropout rate of the embedding matrix", FRACTION)
    attn_pdrop: float = setting(DEFAULT_CONFIG.attn_pdrop, "dropout rate of the attention weights", FRACTION)
    resid_pdrop: float = setting(DEFAULT_CONFIG.resid_pdrop, "dropout rate of the attention and MLP outputs", FRACTION)
    clf_pdrop: float = setting(DEFAULT_CONFIG.clf_pdrop, "dropout rate of the state the task head reads", FRACTION)
    afn: str | None = setting(
        None, f"activation of the MLP; default: as in --model_dir, else {DEFAULT_CONFIG.afn}", choices=ACTIVATIONS
    )

    def config(self, sizes=DEFAULT_CONFIG) -> Config:
        """Return the network's settings; sizes that are None are taken from `sizes`. Raises ValueError."""
        chosen = {name: getattr(self, name) or getattr(sizes, name) for name in SIZES}
        if chosen["n_embd"] % chosen["n_head"]:
            raise ValueError(
                f"--n_embd {chosen['n_embd']} is not a multiple of --n_head {chosen['n_head']}. Change one of them."
            )
        return Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)} | chosen)


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """The arguments of OpenAIAdam, except its schedule."""

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
    """Memory, speed and long runs. All but accumulate, which makes updates larger, change results by rounding only."""

    precision: str | None = setting(
        None, "precision of matrix products; default: bf16 on a GPU that has it, else fp32", choices=("fp32", "bf16")
    )
    accumulate: int = setting(1, "batches of --n_batch computed one by one for each update", COUNT)
    checkpoint_activations: bool = setting(False, "save memory: recompute the blocks in the backward pass")
    deterministic: bool = setting(False, "let torch use deterministic algorithms only")
    checkpoint_every: int = setting(
        0, "updates between two checkpoints in --save_dir; 0: only at the end of each epoch", number(int, 0)
    )
    resume: bool = setting(False, "continue from the newest checkpoint of --desc, if there is one")
    tensorboard: bool = setting(False, "write the log for TensorBoard too, to <desc>.tensorboard/ in --log_dir")


# --- fine-tuning -----------------------------------------------------------------------------------------------------


class _Datasets:
    """The names of --dataset: those in TASKS at the time a flag is read, and own."""

    def __contains__(self, name: object) -> bool:
        return name in self.__iter__()

    def __iter__(self):
        return iter([*TASKS, "own"])


DATASETS = _Datasets()


@dataclass(frozen=True, kw_only=True)
class Settings(MachineSettings, NetworkSettings, AdamSettings):
    """The flags of train.py; the defaults are the paper's and the authors' (FIDELITY 74)."""

    dataset: str = setting("rocstories", "task to fine-tune on; own: your files in --data_dir", choices=DATASETS)
    task: str | None = setting(None, "task form of --dataset own", choices=OWN_FIELDS)
    columns: str | None = setting(None, "your column names for --dataset own, such as text=review,label=stars")
    race: str = setting("all", "which part of --dataset race", choices=("middle", "high", "all"))
    max_examples: int | None = setting(None, "read at most this many examples of each file, for a dry run", COUNT)
    class_weights: str = setting("none", "balanced: rare labels weigh more in the loss", choices=("none", "balanced"))
    desc: str | None = setting(None, "name of the run, in the names of its files; default: the dataset's name")
    data_dir: str = setting("data/", "folder of the task's files")
    model_dir: str = setting("model/", "folder of the pre-trained model, in the authors' format or Hugging Face's")
    encoder_path: str | None = setting(None, f"vocabulary; default: {ENCODER_FILE} or vocab.json in --model_dir")
    bpe_path: str | None = setting(None, f"byte-pair merges; default: {BPE_FILE} or merges.txt in --model_dir")
    log_dir: str = setting("log/", "folder for <desc>.jsonl (log), .tsv (predictions) and .png (curves)")
    save_dir: str = setting("save/", "folder for <desc>/: best_params, settings.json, vocabulary, checkpoints")
    submission_dir: str = setting("submission/", "folder for the predictions to hand in")
    submit: bool = setting(False, "predict the test set with the parameters best on valid")
    analysis: bool = setting(False, "print valid and test results and draw the curves; needs --submit")
    verify: bool = setting(False, "check that files and answers of --model_dir are the authors', and stop")
    seed: int = setting(42, "seed of all random numbers", number(int, 0, 2**32 - 1))
    n_iter: int = setting(3, "epochs", COUNT)
    n_batch: int = setting(8, "examples per device and batch; an update in the paper has 32", COUNT)
    share_context: bool = setting(False, "compute the choices' common prefix once in training too, as in prediction")
    n_valid: int = setting(
        374, "examples held out where there is no validation file (own data: at most a tenth of train)", COUNT
    )
    n_ctx: int = setting(512, "tokens of the longest row allowed", number(int, 6))
    n_transfer: int = setting(12, "blocks to load; 0: only the embeddings; -1: nothing", number(int, -1))
    lm_coef: float = setting(0.5, "weight of the auxiliary language-model loss; 0: none", NOT_NEGATIVE)
    lr_schedule: str = setting("warmup_linear", "learning-rate schedule", choices=SCHEDULES)
    lr_warmup: float = setting(0.002, "fraction of all updates spent warming up", number(float, 0, 1))

    def __post_init__(self):
        """Fill in the paths that follow from others. Raises ValueError for settings that contradict each other."""
        encoder_path, bpe_path = vocabulary_files(find(self.model_dir))
        object.__setattr__(self, "desc", self.dataset if self.desc is None else self.desc)
        object.__setattr__(self, "encoder_path", self.encoder_path or str(encoder_path))
        object.__setattr__(self, "bpe_path", self.bpe_path or str(bpe_path))
        check_name(self.desc)
        if self.analysis and not self.submit:
            raise ValueError("--analysis reads the predictions that --submit writes: give both")
        if (self.dataset == "own") != (self.task is not None):
            raise ValueError("--task is the form of --dataset own: give both or neither")
        if self.columns and self.dataset != "own":
            raise ValueError("--columns is for --dataset own: the official files have known columns")
        parse_columns(self.columns)


# settings that may change when a run is resumed
FREE_ON_RESUME = {"resume", "checkpoint_every", "submit", "analysis", "verify", "log_dir", "save_dir", "submission_dir"}
FREE_ON_RESUME |= {"tensorboard", "probe", "probe_examples"}
FREE_ON_RESUME |= {"workers", "tokenize_only"}


def fixed_on_resume(settings: Any) -> dict[str, Any]:
    """Return the settings that a resumed run must share with its checkpoint."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE_ON_RESUME}
