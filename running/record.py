"""What settings.json and the first line of the log hold of a fine-tuning run: the one place that knows its names."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats.config import SIZES, Config
from formats.files import NAME_A_RUN, InputError, read_json, text_sha256
from formats.own import parse_columns
from opt import SCHEDULES
from reading.rows import CUTS, FORMS, Layout
from running.metrics import METRICS

# what the answers of given parameters depend on
MEANING = (
    *("form", "cut", "labels", "scores", *SIZES),
    *("n_out", "n_vocab", "n_ctx", "n_ctx_allowed", "vocabulary"),
)
NETWORK = tuple(f.name for f in dataclasses.fields(Config))


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is needed to use a fine-tuned network, to analyse the run, and to tell whether a run can go on."""

    # the task
    title: str  # as printed
    form: str  # a key of FORMS
    cut: str  # a key of CUTS
    labels: list[str]  # as the official files have them; empty for scores
    scores: list[float] | None  # lowest and highest
    metrics: list[str]  # keys of METRICS
    columns: str | None  # names of the user's columns, as --columns takes them
    integer_labels: bool = False  # labels were given to `fit` as integers, and are predicted as such

    # the network
    n_embd: int
    n_head: int
    n_layer: int
    embd_pdrop: float
    attn_pdrop: float
    resid_pdrop: float
    clf_pdrop: float
    afn: str
    n_out: int  # outputs of the task head
    n_vocab: int  # tokens, without the special ones
    n_ctx: int  # positions
    n_ctx_allowed: int  # tokens of the longest row that --n_ctx allowed
    vocabulary: list[str]  # SHA-256 of the encoder's two files

    # the training; a run that was converted from a Hugging Face folder does not know it
    desc: str = ""
    dataset: str = ""
    n_valid: int = 0
    t_total: int = 0  # updates
    lm_coef: float = 0.0
    lr: float = 0.0
    lr_schedule: str = "warmup_constant"
    lr_warmup: float = 0.0
    others: dict[str, Any] | None = None  # further flags, digests of files, versions

    def to_json(self) -> dict[str, Any]:
        """Return what settings.json holds."""
        values = dataclasses.asdict(self)
        return (values.pop("others") or {}) | values

    @classmethod
    def of_json(cls, values: Any, path: Path) -> "RunRecord":
        """Return the record in what was read from a file. Raises InputError, which names path, for anything else."""
        problem = problem_of(values)
        if problem is not None:
            raise InputError(f"{path} is not the settings of a fine-tuned run ({problem}). Train again.")

        # what has no field is kept too
        names = {f.name for f in dataclasses.fields(cls)}
        known = {}
        others = {}
        for name, value in values.items():
            if name in names:
                known[name] = value
            else:
                others[name] = value
        return cls(**known, others=others)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Return the record of a run, from its folder. Raises InputError."""
        path = folder / "settings.json"
        return cls.of_json(read_json(path, NAME_A_RUN), path)

    def config(self) -> Config:
        """Return the settings of the network."""
        return Config(**{name: getattr(self, name) for name in NETWORK})

    def layout(self) -> Layout:
        """Return how examples become rows."""
        return Layout(self.form, self.cut, self.n_vocab, self.n_ctx_allowed)


def meaning(values: dict[str, Any]) -> str:
    """Return the digest of those settings of a run without which its parameters would give other answers."""
    return text_sha256(json.dumps([values.get(name) for name in MEANING]))


def problem_of(values: Any) -> str | None:
    """Return in words why what was read from a file is no record; None if it is one."""
    if not isinstance(values, dict):
        return "not a JSON object"
    for f in dataclasses.fields(RunRecord):
        if f.name not in values:
            if f.default is dataclasses.MISSING:
                return f"{f.name} is missing"
        elif not is_of_type(values[f.name], f.type):
            return f"{f.name} is {values[f.name]!r}"
    return problem_of_values(values)


FROM_ONE = ("n_embd", "n_head", "n_layer", "n_out", "n_vocab", "n_ctx", "n_ctx_allowed")
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop")


def problem_of_values(values: dict[str, Any]) -> str | None:
    """Return in words which value of the right type cannot be one of a run; None if there is none."""
    # numbers
    for name in FROM_ONE:
        if values[name] < 1:
            return f"{name} is {values[name]}"
    if values["n_embd"] % values["n_head"]:
        return f"n_embd {values['n_embd']} is not a multiple of n_head {values['n_head']}"
    for name in DROPOUTS:
        if not 0 <= values[name] < 1:
            return f"{name} is {values[name]}"

    # words
    if values["form"] not in FORMS or values["cut"] not in CUTS:
        return f"form {values['form']!r}, cut {values['cut']!r}"
    if not values["metrics"] or not set(values["metrics"]) <= METRICS.keys():
        return f"metrics is {values['metrics']!r}"
    if values.get("lr_schedule", "warmup_constant") not in SCHEDULES:
        return f"lr_schedule is {values['lr_schedule']!r}"
    try:
        parse_columns(values["columns"])
    except ValueError:
        return f"columns is {values['columns']!r}"

    # pairs
    for name in ("scores", "vocabulary"):
        if values[name] is not None and len(values[name]) != 2:
            return f"{name} is {values[name]!r}"
    return None


def is_of_type(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is of the type of a field; numbers are finite."""
    if isinstance(value, bool):
        return kind is bool
    if value is None:
        return str(kind).endswith("None")
    if isinstance(value, list):
        of_items = str if str(kind).startswith("list[str]") else float
        return str(kind).startswith("list") and all(is_of_type(item, of_items) for item in value)
    if kind is float:
        return isinstance(value, int | float) and abs(value) < math.inf
    return not str(kind).startswith("list") and isinstance(value, kind)
