"""The flags of the commands: dataclasses whose fields are the flags, with default, help text and check in one line.

The checks hold in Python as on the command line: a value out of its range is a ValueError that names the field.
Nothing is imported here that takes time: --help and a wrong flag are answered before torch is loaded (starting.py).
"""

import argparse
import codecs
import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from formats.config import DEFAULT_CONFIG, SIZES, Config
from formats.files import NAME_A_RUN, WHERE_TO_GET_IT, InputError, find
from formats.folders import (
    BPE_FILE,
    ENCODER_FILE,
    LSTM_FILE,
    FolderSizes,
    is_model,
    is_run,
    open_folder,
    read_sizes,
    vocabulary_files,
)
from formats.own import OWN_FIELDS, parse_columns
from reading.files import find_files
from reading.tasks import TASKS, Task, find_task

S = TypeVar("S")

# --- what a value may be ---------------------------------------------------------------------------------------------


class WrongValue(argparse.ArgumentTypeError, ValueError):
    """A value that a setting cannot have; argparse prints its text."""


LARGEST = 2**63 - 1  # whole number that torch and NumPy can hold


def number(kind: type, low: float = -math.inf, high: float = math.inf, below_high: bool = False) -> Callable:
    """Return a parser of a finite int or float from low to high."""

    def parse(text: str) -> float:
        # a number that can be computed with
        try:
            value = kind(text)
        except ValueError:
            raise WrongValue(f"{text!r} is not a {parse.__name__}") from None
        if kind is int and value > LARGEST:
            raise WrongValue(f"{text} is more than {LARGEST}")
        if not math.isfinite(value):
            raise WrongValue(f"{text} is not a finite number")

        # within the limits
        is_too_high = value >= high if below_high else value > high
        if value < low or is_too_high:
            limits = f"{low} or more"
            if high < math.inf:
                limits = f"from {low} to {'below ' if below_high else ''}{high}"
            raise WrongValue(f"{text} is not {limits}")
        return value

    # argparse names it where a value is refused
    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


def run_name(text: str) -> str:
    """Return the name of a run, which becomes a file name."""
    is_special = text in ("", ".", "..") or not text.isprintable()
    if is_special or any(c in text for c in '/\\:*?"<>|'):
        raise WrongValue(f"{text!r} becomes a file name: use letters, digits, '-', '_' and '.'")
    return text


def columns_of_fields(text: str) -> str:
    """Return the text of --columns, which parse_columns reads."""
    try:
        parse_columns(text)
    except ValueError as error:
        raise WrongValue(str(error)) from None
    return text


def encoding_name(text: str) -> str:
    """Return the name of an encoding that Python knows."""
    try:
        codecs.lookup(text)
    except LookupError:
        raise WrongValue(f"{text!r} is no encoding: such as latin-1, cp1252, utf-16") from None
    return text


def dataset_names() -> list[str]:
    """Return the names of --dataset."""
    return [*TASKS, "own"]


# the parsers that many settings have
COUNT = number(int, 1)
COUNT_OR_ZERO = number(int, 0)
FRACTION = number(float, 0, 1, below_high=True)
NOT_NEGATIVE = number(float, 0)
SEED = number(int, 0, 2**32 - 1)

# --- fields that are flags -------------------------------------------------------------------------------------------


def setting(default: Any, help: str, parse: Callable = str, **more) -> Any:
    """Return a dataclass field that is also a flag; a default of False makes it a switch.

    Args:
        default: None: may be left out; dataclasses.MISSING: must be given.
        parse: text -> value; raises WrongValue.
        more: choices: a list of values, or a function that returns one; is_input: a path, looked up here and then
            beside the scripts; free_on_resume: a resumed run may have another value; positional: given by its place;
            nargs: as argparse's.
    """
    return dataclasses.field(default=default, metadata={"help": help, "parse": parse, **more})


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What all settings have in common: every value is checked, and paths of inputs are found, once, here."""

    ABOUT: ClassVar[str] = ""  # what the command does, for --help
    TITLE: ClassVar[str] = ""  # of flags that several commands have, for --help

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                checked = check(field, value)
            except ValueError as error:
                raise ValueError(f"{field.name}: {error}") from None
            object.__setattr__(self, field.name, checked)

    def fill_in(self, **values: Any) -> None:
        """Give fields that were left out what follows from others."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def fixed_on_resume(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with its checkpoint."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields if "free_on_resume" not in field.metadata}

    def refuse_missing(self) -> None:
        """Raise InputError when a file or folder that the command reads is not there."""


def check(field: dataclasses.Field, value: Any) -> Any:
    """Return a setting's value as its flag gives it. Raises ValueError."""
    # what no parser reads: switches, what was left out, and lists, whose values argparse has parsed
    if field.default is False:
        if not isinstance(value, bool):
            raise WrongValue(f"{value!r} is neither True nor False")
        return value
    if value is None and field.default is None:
        return None
    if "nargs" in field.metadata:
        return value

    # in Python a number is checked as its text is
    if not isinstance(value, str):
        value = str(value)
    value = field.metadata["parse"](value)
    allowed = choices_of(field)
    if allowed is not None and value not in allowed:
        raise WrongValue(f"{value!r} is not one of {', '.join(allowed)}")
    if "is_input" in field.metadata:
        return str(find(value))
    return value


def choices_of(field: dataclasses.Field) -> Sequence[str] | None:
    """Return the values that a setting may have; None: any."""
    choices = field.metadata.get("choices")
    return choices() if callable(choices) else choices


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that the help text explains itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def parse(settings: type[S], argv: list[str] | None) -> S:
    """Return the settings that the command line gives; a wrong flag ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=settings.ABOUT, formatter_class=HelpFormatter, allow_abbrev=False)
    # the command's own flags, then a group for each class of flags that it shares with others
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for kind in settings.__mro__:
        names = [name for name in inspect.get_annotations(kind) if name in fields]
        if not names:
            continue
        group = parser if kind is settings else parser.add_argument_group(kind.TITLE)
        for name in names:
            add_flag(group, fields.pop(name))  # a class may give a flag of its own another default

    # the values given
    try:
        return settings(**vars(parser.parse_args(argv)))
    except ValueError as error:  # settings that contradict each other
        parser.error(str(error))
    except InputError as error:  # a vocabulary that is damaged
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def add_flag(parser: argparse._ActionsContainer, field: dataclasses.Field) -> None:
    """Add a dataclass field to a parser, or to a group of one."""
    # a switch
    help_text = field.metadata["help"]
    if field.default is False:
        parser.add_argument(f"--{field.name}", action="store_true", help=help_text)
        return

    # a flag with a value, or an argument that is known by its place
    given = {"help": help_text, "type": field.metadata["parse"], "choices": choices_of(field)}
    if "nargs" in field.metadata:
        given["nargs"] = field.metadata["nargs"]
    if "positional" in field.metadata:
        parser.add_argument(field.name, **given)
    elif field.default is dataclasses.MISSING:
        parser.add_argument(f"--{field.name}", required=True, **given)
    else:
        parser.add_argument(f"--{field.name}", default=field.default, **given)


# --- what must be there ----------------------------------------------------------------------------------------------


def refuse_missing_file(path: str | Path, remedy: str = WHERE_TO_GET_IT) -> None:
    """Raise InputError when a file is not there."""
    if not os.path.exists(path):
        raise InputError(f"{path} is missing. {remedy}")


def refuse_missing_lstm(folder: str | Path) -> None:
    """Raise InputError when a folder holds no LSTM."""
    refuse_missing_file(Path(folder) / LSTM_FILE, "pretrain.py --lstm_units makes it.")


def refuse_missing_model(folder: str | Path) -> None:
    """Raise InputError when a folder holds neither a model nor a run."""
    folder = Path(folder)
    if is_run(folder):
        refuse_missing_file(folder / "settings.json", NAME_A_RUN)
    else:
        read_sizes(folder)


def refuse_missing_data(task: Task, folder: str | Path) -> None:
    """Raise InputError when a folder lacks a file of train or valid."""
    folder = task.find(Path(folder))
    for source in task.train + task.valid:
        for name in source.files:
            if not source.optional:
                refuse_missing_file(folder / name)


# --- groups of settings that commands have in common -----------------------------------------------------------------

AFNS = ("relu", "swish", "gelu")  # the keys of model_pytorch.ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class NetworkFlags(Flags):
    """The fields of `Config`; sizes left out are those of the model folder."""

    TITLE: ClassVar[str] = "network"

    # its size
    n_embd: int | None = setting(None, f"features; default: the model folder's, else {DEFAULT_CONFIG.n_embd}", COUNT)
    n_head: int | None = setting(
        None, f"attention heads; default: the model folder's, else {DEFAULT_CONFIG.n_head}", COUNT
    )
    n_layer: int | None = setting(None, f"blocks; default: the model folder's, else {DEFAULT_CONFIG.n_layer}", COUNT)
    # what is left out at random in training
    embd_pdrop: float = setting(DEFAULT_CONFIG.embd_pdrop, "dropout rate of the embedding matrix", FRACTION)
    attn_pdrop: float = setting(DEFAULT_CONFIG.attn_pdrop, "dropout rate of the attention weights", FRACTION)
    resid_pdrop: float = setting(DEFAULT_CONFIG.resid_pdrop, "dropout rate of the attention and MLP outputs", FRACTION)
    clf_pdrop: float = setting(DEFAULT_CONFIG.clf_pdrop, "dropout rate of the state the task head reads", FRACTION)
    afn: str | None = setting(
        None,
        f"activation of the MLP; default: the model folder's, else {DEFAULT_CONFIG.afn}",
        choices=AFNS,
    )

    def config(self, sizes: Config | FolderSizes = DEFAULT_CONFIG) -> Config:
        """Return the network's settings; sizes that are None are taken from `sizes`. Raises ValueError."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Config)}
        for name in SIZES:
            if values[name] is None:
                values[name] = getattr(sizes, name)
        if values["n_embd"] % values["n_head"]:
            raise ValueError(
                f"n_embd {values['n_embd']} is not a multiple of n_head {values['n_head']}. Change one of them."
            )
        return Config(**values)


@dataclass(frozen=True, kw_only=True)
class OwnFlags(Flags):
    """How the user's own files are read (formats/own.py)."""

    TITLE: ClassVar[str] = "own data"

    task: str | None = setting(None, "task form of --dataset own", choices=list(OWN_FIELDS))
    columns: str | None = setting(
        None,
        "your columns of --dataset own: text=review,label=stars,id=key; by number without a line of names: "
        "text=1,label=0; fields within fields of JSON: context=question.stem",
        columns_of_fields,
    )
    encoding: str | None = setting(
        None, "encoding of your files, such as latin-1; default: UTF-8, or UTF-16 where marked", encoding_name
    )
    first_choice: int = setting(1, "of --task multiple_choice: number of the first choice in labels", number(int, 0, 1))

    def own(self) -> dict[str, Any]:
        """Return the arguments of find_task that tell how they are read."""
        columns = parse_columns(self.columns)
        return {"form": self.task, "columns": columns, "encoding": self.encoding, "first_choice": self.first_choice}


@dataclass(frozen=True, kw_only=True)
class AdamFlags(Flags):
    """The arguments of OpenAIAdam, except its schedule."""

    TITLE: ClassVar[str] = "optimizer"

    # the step, and what keeps it small
    lr: float = setting(6.25e-5, "peak learning rate", NOT_NEGATIVE)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this global norm; 0 or less: never", number(float))
    l2: float = setting(0.01, "weight decay of parameters with two axes or more", NOT_NEGATIVE)
    vector_l2: bool = setting(False, "weight decay of the others (biases, gains) too")
    # what it remembers of the gradients
    b1: float = setting(0.9, "decay of Adam's mean of gradients", FRACTION)
    b2: float = setting(0.999, "decay of Adam's mean of squared gradients", FRACTION)
    e: float = setting(1e-8, "Adam's epsilon", NOT_NEGATIVE)

    def adam(self) -> dict[str, float | bool]:
        """Return the arguments of OpenAIAdam."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(AdamFlags)}


class OfARun:
    """Where the files of a run are, for flags that name it."""

    def run_folder(self) -> Path:
        """Return the folder of parameters, settings and checkpoints."""
        return Path(self.save_dir) / self.desc

    def log_file(self, suffix: str = "jsonl") -> Path:
        """Return the path of the log, or of another file beside it."""
        return Path(self.log_dir) / f"{self.desc}.{suffix}"


CHECKPOINT_EVERY = "updates between two checkpoints in --save_dir; 0: only at the end of each epoch"


@dataclass(frozen=True, kw_only=True)
class RunFlags(OfARun, Flags):
    """Where a run writes; memory, speed and long runs.

    All but accumulate, which makes updates larger, change results by rounding only.
    """

    TITLE: ClassVar[str] = "where a run writes; memory, speed and long runs"

    # where it writes
    log_dir: str = setting("log/", "folder for <desc>.jsonl (log), predictions and pictures", free_on_resume=True)
    save_dir: str = setting("save/", "folder for <desc>/: parameters, settings, checkpoints", free_on_resume=True)
    # how it computes
    seed: int = setting(42, "seed of all random numbers", SEED)
    precision: str | None = setting(
        None, "precision of matrix products; default: bf16 on a GPU that has it, else fp32", choices=["fp32", "bf16"]
    )
    accumulate: int = setting(1, "batches of --n_batch computed one by one for each update", COUNT)
    checkpoint_activations: bool = setting(False, "save memory: recompute the blocks in the backward pass")
    deterministic: bool = setting(False, "let torch use deterministic algorithms only")

    # long runs
    checkpoint_every: int = setting(0, CHECKPOINT_EVERY, COUNT_OR_ZERO, free_on_resume=True)
    resume: bool = setting(False, "continue from the newest checkpoint of --desc, if there is one", free_on_resume=True)
    tensorboard: bool = setting(
        False, "write the log for TensorBoard too, to <desc>.tensorboard/ in --log_dir", free_on_resume=True
    )


# --- fine-tuning -----------------------------------------------------------------------------------------------------


SCHEDULES = ("warmup_cosine", "warmup_constant", "warmup_linear")  # the keys of opt.SCHEDULES


@dataclass(frozen=True, kw_only=True)
class FineTuningFlags(OwnFlags, RunFlags, NetworkFlags, AdamFlags):
    """The flags of train.py; the defaults are the paper's and the authors' (FIDELITY 74)."""

    ABOUT: ClassVar[str] = "Fine-tune the transformer on a task, as the authors did."

    # what everybody names: the task, its folder, the model, the run, and what is made of it
    dataset: str = setting("rocstories", "task to fine-tune on; own: your files in --data_dir", choices=dataset_names)
    data_dir: str = setting("data/", "folder of the task's files", is_input=True)
    model_dir: str = setting(
        "model/",
        "folder of a pre-trained model, the authors' or Hugging Face's, or of a run to go on from",
        is_input=True,
    )
    desc: str | None = setting(
        None, "name of the run, in the names of its files; default: the dataset's name", run_name
    )
    submit: bool = setting(False, "predict the test set with the parameters best on valid", free_on_resume=True)
    analysis: bool = setting(
        False, "print valid and test results and draw the curves; needs --submit", free_on_resume=True
    )
    # which examples are read, and how they weigh
    race: str = setting("all", "which part of --dataset race", choices=["middle", "high", "all"])
    max_examples: int | None = setting(None, "use a random part of each file, at most this many examples", COUNT)
    skip_bad: bool = setting(False, "leave out lines that cannot be read, and count them")
    class_weights: str = setting("none", "balanced: rare labels weigh more in the loss", choices=["none", "balanced"])
    # other files
    encoder_path: str | None = setting(
        None, f"vocabulary; default: {ENCODER_FILE} or vocab.json in --model_dir", is_input=True
    )
    bpe_path: str | None = setting(
        None, f"byte-pair merges; default: {BPE_FILE} or merges.txt in --model_dir", is_input=True
    )
    submission_dir: str = setting("submission/", "folder for the predictions to hand in", free_on_resume=True)
    # the updates and their batches
    n_iter: int = setting(3, "epochs", COUNT)
    n_batch: int = setting(8, "examples per device and batch; an update in the paper has 32", COUNT)
    share_context: bool = setting(False, "compute the choices' common prefix once in training too, as in prediction")
    # the examples held out, and what a row may hold
    n_valid: int = setting(
        374, "examples held out where there is no validation file (own data: at most a tenth of train)", COUNT
    )
    n_ctx: int = setting(512, "tokens of the longest row allowed", number(int, 6))
    # what is loaded and what is learned
    n_transfer: int = setting(12, "blocks to load; 0: only the embeddings; -1: nothing", number(int, -1))
    lstm: str | None = setting(
        None,
        "folder with the LSTM of pretrain.py --lstm_units, to train in the place of the blocks (the paper's Table 5)",
        is_input=True,
    )
    lm_coef: float = setting(0.5, "weight of the auxiliary language-model loss; 0: none", NOT_NEGATIVE)
    lr_schedule: str = setting("warmup_linear", "learning-rate schedule", choices=SCHEDULES)
    lr_warmup: float = setting(0.002, "fraction of all updates spent warming up", number(float, 0, 1))

    def __post_init__(self):
        """Check all values and fill in those that follow from others. Raises ValueError."""
        super().__post_init__()

        # what follows from others
        encoder_path, bpe_path = vocabulary_files(Path(self.model_dir))
        self.fill_in(desc=self.dataset, encoder_path=str(encoder_path), bpe_path=str(bpe_path))

        # what contradicts others
        if self.analysis and not self.submit:
            raise ValueError("analysis reads the predictions that submit writes: give both")
        if (self.dataset == "own") != (self.task is not None):
            raise ValueError("task is the form of dataset own: give both or neither")
        for name in ("columns", "encoding"):
            if getattr(self, name) is not None and self.dataset != "own":
                raise ValueError(f"{name} is for dataset own: the official files are known")
        if self.lstm is not None and self.n_transfer < 0:
            raise ValueError("lstm is pre-trained, and n_transfer -1 loads nothing: leave out one of them")

    def find_task(self) -> Task:
        """Return the data set's record. Raises InputError for a missing folder."""
        return find_task(self.dataset, Path(self.data_dir), race=self.race, **self.own())

    def refuse_missing(self) -> None:
        """Raise InputError for a missing vocabulary, data set or model; with n_transfer -1 no model is read."""
        refuse_missing_file(self.encoder_path)
        refuse_missing_file(self.bpe_path)
        refuse_missing_data(self.find_task(), self.data_dir)
        if self.n_transfer >= 0:
            refuse_missing_model(self.model_dir)
        if self.lstm is not None:
            refuse_missing_lstm(self.lstm)


# --- pre-training ----------------------------------------------------------------------------------------------------

N_CTX = 512  # tokens in a sequence, as the paper has them


@dataclass(frozen=True, kw_only=True)
class PreTrainingFlags(RunFlags, NetworkFlags, AdamFlags):
    """The flags of pretrain.py; the defaults are the paper's (FIDELITY 104)."""

    ABOUT: ClassVar[str] = "Pre-train the transformer on raw text; the defaults are the paper's."

    # what it reads and writes
    corpus: str | list[str] = setting(
        dataclasses.MISSING,
        "text in UTF-8, a document a line: files, folders and globs, plain or .gz; read in the order given, those of a "
        "folder or glob by path",
        nargs="+",
    )
    field: str | None = setting(None, "of JSON lines: the field that holds the text; default: the lines are text")
    model_dir: str = setting(dataclasses.MISSING, "folder to write, in the authors' format; a vocabulary in it is used")
    init_from: str | None = setting(
        None,
        "folder of a model or of a fine-tuned run to start from, with its vocabulary; default: random weights",
        is_input=True,
    )
    desc: str = setting("pretrain", "name of the run, in the names of its files", run_name)
    # text to tokens
    n_merges: int = setting(40000, "byte-pair merges to learn", COUNT)
    workers: int | None = setting(
        None, "processes that read the corpus; default: one a CPU core", COUNT, free_on_resume=True
    )
    tokenize_only: bool = setting(False, "stop when the vocabulary and the tokens are made", free_on_resume=True)
    # tokens to sequences
    n_ctx: int | None = setting(
        None, f"tokens in a sequence; default: as many as --init_from has positions, else {N_CTX}", number(int, 2)
    )
    by_document: bool = setting(
        False,
        "a sequence is one document from its beginning, at most --n_ctx tokens of it; default: windows of the text",
    )
    # the updates
    n_iter: int = setting(100, "epochs", COUNT)
    n_batch: int = setting(64, "sequences per device and batch", COUNT)
    valid_share: float = setting(0.01, "fraction of the sequences, at the end of the text, to hold out", FRACTION)
    # the network and its initial weights, and the learning rate
    lstm_units: int | None = setting(
        None,
        "train an LSTM in the place of the blocks, with so many units: 2048 in the paper's Table 5; 0: as many as give "
        "it the blocks' number of parameters",
        COUNT_OR_ZERO,
    )
    init_std: float = setting(
        0.02, "standard deviation of the initial matrices; small networks learn sooner from 0.05 to 0.1", NOT_NEGATIVE
    )
    lr: float = setting(2.5e-4, "peak learning rate", NOT_NEGATIVE)
    lr_warmup: int = setting(2000, "updates spent warming up, before the cosine to 0", COUNT_OR_ZERO)

    # what is measured and kept meanwhile
    log_every: int = setting(500, "updates between two measurements of the perplexity", COUNT)
    checkpoint_every: int = setting(1000, CHECKPOINT_EVERY, COUNT_OR_ZERO, free_on_resume=True)
    probe: str | None = setting(
        None,
        "zero-shot figures of each log: HEURISTIC:DATASET:FOLDER,... such as choice:rocstories:demo/data",
        free_on_resume=True,
    )
    probe_examples: int = setting(200, "validation examples of each probe, at most", COUNT, free_on_resume=True)

    def __post_init__(self):
        """Check all values. Raises ValueError."""
        super().__post_init__()
        corpus = [self.corpus] if isinstance(self.corpus, str) else list(self.corpus)
        object.__setattr__(self, "corpus", corpus)
        if self.lstm_units is not None and self.init_from is not None:
            raise ValueError("lstm_units is for an LSTM with random weights: leave out init_from")
        # sizes that contradict each other are refused now; with init_from its sizes decide
        if self.init_from is None:
            self.config()

    def refuse_missing(self) -> None:
        if self.init_from is not None:
            refuse_missing_model(self.init_from)
        find_files(self.corpus)

    def with_sizes_of(self, sizes: FolderSizes | None) -> "PreTrainingFlags":
        """Return the settings with the sizes that were left out: those of init_from, else the paper's.

        Raises ValueError where a setting and init_from differ.
        """
        # the paper's
        if sizes is None:
            cfg = self.config()
            chosen = {name: getattr(cfg, name) for name in SIZES}
            return dataclasses.replace(self, n_ctx=self.n_ctx or N_CTX, **chosen)

        # those of init_from, which are as they are
        for name in SIZES:
            value = getattr(sizes, name)
            if getattr(self, name) not in (None, value):
                raise ValueError(f"{self.init_from} has {name} {value}, not {getattr(self, name)}. Leave out --{name}.")

        # a sequence may be shorter than it allows
        n_ctx = self.n_ctx or sizes.n_positions
        if n_ctx > sizes.n_positions:
            raise ValueError(
                f"{self.init_from} has {sizes.n_positions} positions, fewer than n_ctx {n_ctx}. Lower --n_ctx."
            )
        chosen = {name: getattr(sizes, name) for name in SIZES}
        return dataclasses.replace(self, n_ctx=n_ctx, **chosen)


# --- the other commands ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictFlags(OfARun, Flags):
    """The flags of predict.py."""

    ABOUT: ClassVar[str] = "Predict with a saved run."

    # the run
    desc: str = setting("rocstories", "name of the run, as given to train.py")
    save_dir: str = setting("save/", "folder that holds the run's folder")

    # the examples
    input: str = setting("-", "file of examples; -: standard input")
    official: bool = setting(False, "--input is a file of the run's data set, or RACE/test/high and the like")
    output: str = setting(
        "-", "file to write, as a table if it ends in .csv or .tsv, else as JSON lines; -: standard output"
    )
    columns: str | None = setting(
        None, "your column names, such as text=review; default: those of the run", columns_of_fields
    )
    encoding: str | None = setting(None, "of --input, such as latin-1; default: as of train.py", encoding_name)
    # how they are computed, and what becomes of lines that cannot be read
    n_batch: int = setting(32, "examples computed at a time; no effect on the labels", COUNT)
    skip_bad: bool = setting(False, "leave out lines that cannot be read, and count them")

    def __post_init__(self):
        """Check all values. Raises ValueError."""
        super().__post_init__()
        if self.official and (self.input == "-" or self.columns is not None):
            raise ValueError("official is for a file of the data set: give input, and no columns")

    def refuse_missing(self) -> None:
        settings_file = self.run_folder() / "settings.json"
        refuse_missing_file(settings_file, "Run train.py with that --desc first, or give the --save_dir of the run.")
        if self.input != "-":
            refuse_missing_file(self.input, "Name the file of the examples.")


HEURISTICS = ("choice", "sentiment", "acceptability")  # those of zero_shot.py


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(OwnFlags):
    """The flags of generate.py."""

    ABOUT: ClassVar[str] = "Continue a text."

    # the network
    model_dir: str | None = setting(None, "folder of a pre-trained model; default: model/", is_input=True)
    run: str | None = setting(None, "folder of a fine-tuned run, save/<desc>, instead of --model_dir", is_input=True)

    # to continue a text
    prompt: str | None = setting(None, "text to continue")
    prompt_file: str | None = setting(None, "file with the text to continue, in UTF-8")
    n_tokens: int = setting(100, "tokens of each sample, at most", COUNT)
    temperature: float = setting(1.0, "divides the logits; 0: always the most probable token", NOT_NEGATIVE)
    top_k: int = setting(40, "sample among so many of the most probable tokens; 0: all", COUNT_OR_ZERO)
    top_p: float = setting(
        1.0, "sample among the most probable tokens that sum to this probability", number(float, 0, 1)
    )
    repetition_penalty: float = setting(1.0, "makes tokens that occurred less probable; 1: not", number(float, 1))
    seed: int = setting(42, "of the random numbers", SEED)
    n_samples: int = setting(1, "continuations of the prompt, computed together", COUNT)
    stop: str | None = setting(None, "end a sample before this text; default: only after --n_tokens")

    # to score one
    score: str | None = setting(None, "text file to score instead, in UTF-8")
    stride: int | None = setting(
        None, "of --score: tokens from one window of n_ctx tokens to the next; default: half of n_ctx", COUNT
    )
    all_rows: bool = setting(
        False, "of --score: normalise over special tokens and positions too, as the training loss does"
    )
    by_line: bool = setting(False, "of --score: score each line of the file by itself; default: all lines as one text")

    # to answer the examples of a data set
    zero_shot: str | None = setting(
        None,
        "answer the examples of --dataset instead: choice (of the highest mean log-probability), sentiment ('very' "
        "positive or negative) or acceptability (mean log-probability, threshold fitted on train)",
        choices=HEURISTICS,
    )
    label_names: str | None = setting(
        None, "of --zero_shot sentiment and acceptability: the bad label and the good one, as neg,pos; default: known"
    )
    dataset: str = setting("rocstories", "of --zero_shot, as of train.py", choices=dataset_names)
    data_dir: str = setting("data/", "of --zero_shot: folder of the data set's files", is_input=True)
    n_valid: int = setting(374, "of --zero_shot: examples taken for validation where there is no file of them", COUNT)

    def __post_init__(self):
        """Check all values. Raises ValueError."""
        super().__post_init__()
        # one network, one text, one job
        for one, other in (("model_dir", "run"), ("prompt", "prompt_file"), ("score", "zero_shot")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} exclude each other: give one")
        if self.run is None:
            self.fill_in(model_dir=str(open_folder("model/")))

        # settings that belong to another one
        if (self.dataset == "own") != (self.task is not None):
            raise ValueError("task is the form of dataset own: give both or neither")
        if self.by_line and self.score is None:
            raise ValueError("by_line is of --score: give both or neither")
        if self.stop == "":
            raise ValueError("stop is empty: leave it out")

    def refuse_missing(self) -> None:
        # the network
        if self.run is None:
            read_sizes(self.model_dir)
        else:
            refuse_missing_file(Path(self.run) / "settings.json", NAME_A_RUN)

        # what is read for the job
        for path in (self.prompt_file, self.score):
            if path is not None:
                refuse_missing_file(path, "Name another file.")
        if self.zero_shot is not None:
            data_dir = Path(self.data_dir)
            refuse_missing_data(find_task(self.dataset, data_dir, **self.own()), data_dir)


@dataclass(frozen=True, kw_only=True)
class ConvertFlags(Flags):
    """The arguments of convert.py."""

    ABOUT: ClassVar[str] = "Exchange models with Hugging Face transformers."

    direction: str = setting(dataclasses.MISSING, "to_hf or from_hf", choices=["to_hf", "from_hf"], positional=True)
    src: str = setting(dataclasses.MISSING, "folder to read", is_input=True, positional=True)
    out: str = setting(dataclasses.MISSING, "folder to write; it must not be there yet, or be empty", positional=True)

    def refuse_missing(self) -> None:
        refuse_missing_file(self.src, "Name the folder of a model or a run.")
        # what holds nothing to convert; of a Hugging Face folder convert.py says itself what it lacks
        folder = Path(self.src)
        if self.direction == "to_hf" and not is_run(folder) and not is_model(folder):
            raise InputError(
                f"{folder} holds no model and no run. Name the folder of one; train.py writes save/<desc>."
            )


NO_LOG = "Run train.py with that --desc and --submit first, or give its --log_dir."


@dataclass(frozen=True, kw_only=True)
class AnalysisFlags(OfARun, Flags):
    """The flags of analysis.py."""

    ABOUT: ClassVar[str] = (
        "Analyse a finished run, from the log and the predictions that train.py --submit has written."
    )

    desc: str = setting("rocstories", "name of the run, as given to train.py", run_name)
    log_dir: str = setting("log/", "folder of the run's log")

    def refuse_missing(self) -> None:
        refuse_missing_file(self.log_file(), NO_LOG)


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(Flags):
    """The flag of verify.py."""

    ABOUT: ClassVar[str] = "Check that a model folder is the authors'."

    model_dir: str = setting("model/", "folder of the model, in the authors' format or Hugging Face's", is_input=True)

    def refuse_missing(self) -> None:
        refuse_missing_file(self.model_dir)


WHAT = ("table2", "table3", "table4", "stories", "glue", "table5", "figure2", "all")


@dataclass(frozen=True, kw_only=True)
class ReproduceFlags(Flags):
    """The flags of reproduce.py."""

    ABOUT: ClassVar[str] = (
        "Every number of the paper that whoever has weights and data can make again. It may be stopped at any time: "
        "the same command goes on."
    )

    # what it reads
    data_dir: str = setting("data", "folder with the data sets' folders", is_input=True)
    model_dir: str = setting("model", "the authors' weights", is_input=True)

    # what it does
    what: list[str] | None = setting(None, "default: all", nargs="+", choices=WHAT)
    seeds: int | None = setting(None, "runs of each kind, with seeds 1, 2, ...; default: 1, stories 10", COUNT)
    workers: int | None = setting(None, "runs at a time; default: one a core, or with a GPU one", COUNT)
    out: str = setting("paper", "folder for everything")
    lstm: str | None = setting(
        None, "folder with the LSTM of pretrain.py --lstm_units, for its row of Table 5", is_input=True
    )
    max_examples: int | None = setting(None, "at most this many examples of each file, for a rehearsal", COUNT)
    flags: str = setting("", "further flags of train.py, for every run")
    dry_run: bool = setting(False, "print the commands, their updates and hours only")
    report: bool = setting(False, "only write tables and pictures of the results there are")

    def refuse_missing(self) -> None:
        if self.report:
            refuse_missing_file(Path(self.out) / "results.json", "Leave out --report to make it.")
        else:
            refuse_missing_file(self.data_dir, "Name the folder of the data sets' folders.")
            read_sizes(self.model_dir)
            if self.lstm is not None:
                refuse_missing_lstm(self.lstm)
