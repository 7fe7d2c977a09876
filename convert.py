"""Exchange models with Hugging Face transformers, which is not needed: `python convert.py to_hf SRC OUT`, or `from_hf`.

to_hf reads a model folder in the authors' format, or a fine-tuned run, save/DESC. from_hf writes a run where the folder
holds one, else a model folder.
"""

import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from formats.authors import BPE_FILE, ENCODER_FILE, read_sizes, save_openai_model, vocabulary_files
from formats.files import InputError, copy_file, digests, find, make_output_folder, write_json
from formats.hugging_face import (
    CONFIG_FILE,
    RUN_KEY,
    WEIGHTS_FILES,
    authors_arrays,
    classifier_weights,
    is_hugging_face,
    read_config,
    read_tensors,
    write_hugging_face,
)
from model_pytorch import Config, DoubleHeadModel
from reading.rows import CUTS, FORMS, N_SPECIAL, special_tokens
from running.checkpoint import save_parameters
from running.command import exit_code
from running.settings import parse, positional
from weights import SavedRun, is_run, open_model, open_run

MULTIPLE_CHOICE, CLASSIFIER = "OpenAIGPTDoubleHeadsModel", "OpenAIGPTForSequenceClassification"
HEADS = {"multiple_choice": MULTIPLE_CHOICE, "reading": MULTIPLE_CHOICE}
HEADS |= {"classification": CLASSIFIER, "entailment": CLASSIFIER}  # a similarity's adds two rows: none there does
# what config.json keeps of a run's settings; the rest follows from the folder
RUN_SETTINGS = ("dataset", "task", "columns", "form", "cut", "labels", "scores", "n_out", "n_ctx_allowed")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments."""

    direction: str = positional("to_hf or from_hf", choices=("to_hf", "from_hf"))
    src: str = positional("folder to read")
    out: str = positional("folder to write; it must not hold a model yet")


def prepare_output(folder: Path) -> None:
    """Make the folder to write. Raises InputError when it holds a model already."""
    for name in (CONFIG_FILE, *WEIGHTS_FILES, "params_shapes.json", "params_0.npy", "settings.json", "best_params"):
        if (folder / name).exists():
            raise InputError(f"{folder} holds {name} already. Name another folder.")
    make_output_folder(folder)


# --- to Hugging Face -------------------------------------------------------------------------------------------------


def to_hugging_face(src: Path, out: Path) -> None:
    """Write a model folder or a run as a Hugging Face folder. Raises InputError."""
    if is_hugging_face(src):
        raise InputError(f"{src} is a Hugging Face folder already.")
    if is_run(src):
        write_run(open_run(src), out)
        return
    model, encoder = open_model(src)
    prepare_output(out)
    config = {"architectures": ["OpenAIGPTLMHeadModel"], "afn": read_sizes(src).afn}
    write_hugging_face(out, model.transformer, len(encoder.encoder), vocabulary_files(src), {}, config)
    print(f"{out}: OpenAIGPTLMHeadModel, {len(encoder.encoder)} tokens")


def write_run(run: SavedRun, out: Path) -> None:
    """Write a run, with its head where transformers has one that fits, else without."""
    settings, model = run.settings, run.model
    linear, form = model.task_head.linear, settings["form"]
    # id 0, our padding; every row ends with _classify_, the last token that is not padding
    config: dict[str, Any] = {"afn": settings["afn"], "pad_token_id": 0}
    config |= {name: settings[name] for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    config |= {"summary_first_dropout": settings["clf_pdrop"]}  # before the head
    architecture, head = HEADS.get(form), {}
    if architecture == MULTIPLE_CHOICE:
        config |= {"summary_type": "cls_index", "summary_use_proj": True, "summary_proj_to_labels": True}
        head = {"weight": linear.weight, "bias": linear.bias}
        head = {f"multiple_choice_head.summary.{name}": value for name, value in head.items()}
        note = "give mc_token_ids, the position of _classify_ in each row"
    elif architecture == CLASSIFIER:
        labels = settings["labels"] if len(settings["labels"]) == len(linear.bias) else range(len(linear.bias))
        config |= {"id2label": {str(i): str(label) for i, label in enumerate(labels)}}
        config |= {"label2id": {str(label): i for i, label in enumerate(labels)}}
        weights = classifier_weights(linear, model.transformer.h[-1].ln_2)
        if weights is None:
            architecture = None
        else:
            head = {"score.weight": weights}
        note = "end each text with _classify_"
    if architecture is None:
        architecture, note = "OpenAIGPTLMHeadModel", f"without its head: transformers has none that fits ({form})"
    else:
        config[RUN_KEY] = {name: settings[name] for name in RUN_SETTINGS if name in settings}
    config["architectures"] = [architecture]
    prepare_output(out)
    vocabulary = run.folder / ENCODER_FILE, run.folder / BPE_FILE
    write_hugging_face(out, model.transformer, settings["n_vocab"], vocabulary, head, config)
    print(f"{out}: {architecture}, {settings['n_vocab']} tokens and {N_SPECIAL} added ones; {note}")


# --- from Hugging Face -----------------------------------------------------------------------------------------------


def from_hugging_face(src: Path, out: Path) -> None:
    """Write a Hugging Face folder as a run where it holds one, else in the authors' format. Raises InputError."""
    if not is_hugging_face(src):
        raise InputError(f"{src} is not a Hugging Face folder: {src / CONFIG_FILE} and {WEIGHTS_FILES[0]} are missing.")
    config = read_config(src)
    if RUN_KEY in config:
        read_run(src, config, out)
        return
    model, encoder = open_model(src)
    prepare_output(out)
    copy_vocabulary(src, out)
    sizes = read_sizes(src)
    save_openai_model(model.transformer, sizes.n_vocab, out, sizes.afn)
    n_added = config["vocab_size"] - sizes.n_vocab
    print(f"{out}: {sizes.n_vocab} tokens" + f"; {n_added} added ones are left out" * (n_added > 0))


def read_run(src: Path, config: dict[str, Any], out: Path) -> None:
    """Write the run in a Hugging Face folder. Raises InputError when it is not complete."""
    sizes, tensors, kept = read_sizes(src), read_tensors(src), config[RUN_KEY]
    shapes = sizes.shapes()
    shapes[1][0] += N_SPECIAL
    positions, table, *blocks = authors_arrays(src, tensors, shapes)
    dropouts = {name: config.get(name, 0.1) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    dropouts["clf_pdrop"] = config.get("summary_first_dropout", 0.1)
    try:
        cfg = Config(sizes.n_embd, sizes.n_head, sizes.n_layer, **dropouts, afn=sizes.afn)
        n_out, head = kept["n_out"], FORMS[kept["form"]].head(kept["n_out"])
        n_rows = sizes.n_vocab + N_SPECIAL + sizes.n_positions
        model = DoubleHeadModel(cfg, special_tokens(sizes.n_vocab).classify, head, n_rows, sizes.n_positions)
        # OpenAIGPTForSequenceClassification has no bias
        weight = tensors[
            {MULTIPLE_CHOICE: "multiple_choice_head.summary.weight"}.get(HEADS[kept["form"]], "score.weight")
        ]
        bias = tensors.get("multiple_choice_head.summary.bias", torch.zeros(len(weight)))
        with torch.no_grad():
            targets = [*model.transformer.h.parameters(), model.task_head.linear.weight, model.task_head.linear.bias]
            for target, values in zip(targets, [*blocks, weight, bias], strict=True):
                target.copy_(values)
            model.transformer.embed.weight.copy_(torch.cat([table[: sizes.n_vocab + N_SPECIAL], positions]))
        settings = {name: kept[name] for name in RUN_SETTINGS if name in kept} | dataclasses.asdict(cfg)
        if kept["cut"] not in CUTS or not {"labels", "n_ctx_allowed"} <= kept.keys():
            raise ValueError("cut, labels or n_ctx_allowed is missing")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{src / CONFIG_FILE}: {RUN_KEY!r} and the weights are not of one run ({error!r}). Remove {RUN_KEY!r} for "
            "the transformer alone."
        ) from None
    prepare_output(out)
    vocabulary = copy_vocabulary(src, out)
    save_parameters(out / "best_params", model)
    settings |= {"n_vocab": sizes.n_vocab, "n_special": N_SPECIAL, "n_ctx": sizes.n_positions, "n_out": n_out}
    settings |= {"encoder_path": ENCODER_FILE, "bpe_path": BPE_FILE, "digests": digests(vocabulary)}
    write_json(out / "settings.json", settings)
    print(f"{out}: a run, {kept['form']}; predict.py reads it")


def copy_vocabulary(src: Path, out: Path) -> list[Path]:
    """Copy vocabulary and merges, byte for byte, under the authors' names."""
    copies = [out / ENCODER_FILE, out / BPE_FILE]
    for source, copy in zip(vocabulary_files(src), copies, strict=True):
        copy_file(source, copy)
    return copies


def run(settings: Settings) -> None:
    """Convert. Raises InputError for what the user can fix."""
    convert = to_hugging_face if settings.direction == "to_hf" else from_hugging_face
    convert(find(settings.src), Path(settings.out))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(Settings, "Exchange models with Hugging Face transformers.", argv)
    return exit_code("convert.py", partial(run, settings), "the folder is incomplete")


if __name__ == "__main__":
    sys.exit(main())
