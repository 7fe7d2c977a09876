"""Exchange models with Hugging Face transformers, which is not needed: `python convert.py to_hf SRC OUT`, or `from_hf`.

to_hf reads a model folder in the authors' format, or a fine-tuned run, save/DESC. A run of multiple choice goes with
its head and comes back as a run; of any other run the language model goes. from_hf writes a run or a model folder.
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("convert.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("ConvertFlags")  # before torch is loaded, which takes seconds

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from formats.authors import save_openai_model
from formats.config import Config
from formats.files import InputError, copy_file, digests, making_folder, write_json
from formats.folders import (
    BPE_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    WEIGHTS_FILES,
    check_vocabulary,
    is_hugging_face,
    is_run,
    read_config,
    read_sizes,
    vocabulary_files,
)
from formats.hugging_face import authors_arrays, read_tensors, write_hugging_face
from formats.own import CHOICE_FORMS
from reading.rows import CUTS, N_SPECIAL
from running.checkpoint import save_parameters
from running.command import exit_code
from running.record import RunRecord, meaning
from running.settings import ConvertFlags, parse
from weights import SavedRun, open_model, open_run, task_model

# their classes
LANGUAGE_MODEL = "OpenAIGPTLMHeadModel"
MULTIPLE_CHOICE = "OpenAIGPTDoubleHeadsModel"
HEAD = "multiple_choice_head.summary"  # name of its linear map there

# with choices the head is the same there; why the other forms have none
WHY_NO_HEAD = {
    "classification": "OpenAIGPTForSequenceClassification has no bias",
    "regression": "OpenAIGPTForSequenceClassification has no bias",
    "entailment": "OpenAIGPTForSequenceClassification has no bias",
    "similarity": "no head of transformers adds the states of two rows",
}

THEIR_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")  # that have the same names there
# what config.json keeps of a run's settings, under RUN_KEY, which transformers keeps when it saves
RUN_KEY = "fine_tuned"
RUN_SETTINGS = ("title", "form", "cut", "labels", "scores", "metrics", "columns", "n_out", "n_ctx_allowed")


# --- to Hugging Face -------------------------------------------------------------------------------------------------


def to_hugging_face(src: Path, out: Path) -> None:
    """Write a model folder or a run as a Hugging Face folder. Raises InputError."""
    if is_hugging_face(src):
        raise InputError(f"{src} is a Hugging Face folder already.")
    if is_run(src):
        run_to_hugging_face(open_run(src), out)
        return

    # a pre-trained model
    model, encoder = open_model(src)
    config = {"architectures": [LANGUAGE_MODEL], "afn": read_sizes(src).afn}
    with making_folder(out) as part:
        write_hugging_face(part, model.transformer, encoder.n_vocab, encoder.files, {}, config)
    print(f"{out}: {LANGUAGE_MODEL}, {encoder.n_vocab} tokens")


def run_to_hugging_face(run: SavedRun, out: Path) -> None:
    """Write a run, with its head where transformers has the same one, else without."""
    record = run.record

    # the settings that transformers has too
    config: dict[str, Any] = {name: getattr(record, name) for name in ("afn", *THEIR_DROPOUTS)}
    config["pad_token_id"] = 0  # our padding

    # the head, and what the user is told of it
    if record.form in CHOICE_FORMS:
        linear = run.model.task_head.linear
        head = {f"{HEAD}.weight": linear.weight, f"{HEAD}.bias": linear.bias}
        config |= {
            "architectures": [MULTIPLE_CHOICE],
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "summary_proj_to_labels": True,
            "summary_first_dropout": record.clf_pdrop,  # before the head
            RUN_KEY: {name: getattr(record, name) for name in (*RUN_SETTINGS, "integer_labels")},
        }
        note = f"{MULTIPLE_CHOICE}: give mc_token_ids, the position of _classify_ in each row"
    else:
        head = {}
        config["architectures"] = [LANGUAGE_MODEL]
        why = f"without the head of the {record.form} ({WHY_NO_HEAD[record.form]})"
        note = f"{LANGUAGE_MODEL}: the language model only, {why}"
    with making_folder(out) as part:
        write_hugging_face(part, run.model.transformer, record.n_vocab, run.encoder.files, head, config)
    print(f"{out}: {note}; {record.n_vocab} tokens and {N_SPECIAL} added ones")


# --- from Hugging Face -----------------------------------------------------------------------------------------------


def from_hugging_face(src: Path, out: Path) -> None:
    """Write a Hugging Face folder as a run where it holds one, else in the authors' format. Raises InputError."""
    if not is_hugging_face(src):
        raise InputError(f"{src} is not a Hugging Face folder: {src / CONFIG_FILE} and {WEIGHTS_FILES[0]} are missing.")
    config = read_config(src)
    if RUN_KEY in config:
        run_from_hugging_face(src, config, out)
        return

    # a language model: tokens that were added have no place in the authors' format
    model, encoder = open_model(src)
    n_vocab = encoder.n_vocab
    with making_folder(out) as part:
        copy_vocabulary(src, part)
        save_openai_model(model.transformer, n_vocab, part, config["afn"])
    print(f"{out}: {n_vocab} tokens")
    if config["vocab_size"] > n_vocab:
        print(f"{config['vocab_size'] - n_vocab} added ones are left out")


def run_from_hugging_face(src: Path, config: dict[str, Any], out: Path) -> None:
    """Write the run of multiple choice in a Hugging Face folder. Raises InputError when it is not complete."""
    # the settings that were kept of it
    kept = config[RUN_KEY]
    is_whole = isinstance(kept, dict) and set(RUN_SETTINGS) <= kept.keys()
    if not is_whole or kept["form"] not in CHOICE_FORMS or kept["cut"] not in list(CUTS):
        raise InputError(
            f"{src / CONFIG_FILE}: {RUN_KEY!r} is not the settings of a run of multiple choice. "
            f"Remove {RUN_KEY!r} for the transformer alone."
        )

    # its weights: positions, tokens, special ones too, and blocks
    check_vocabulary(src)
    sizes = read_sizes(src)
    tensors = read_tensors(src)
    positions, tokens, *blocks = authors_arrays(src, tensors, sizes)
    n_tokens = sizes.n_vocab + N_SPECIAL

    # the network, with its head; whatever contradicts what was kept is an error here
    dropouts = [config.get(name, 0.1) for name in (*THEIR_DROPOUTS, "summary_first_dropout")]
    try:
        network = Config(sizes.n_embd, sizes.n_head, sizes.n_layer, *dropouts, sizes.afn)
        model = task_model(network, "multiple_choice", 1, sizes.n_vocab, sizes.n_positions)
        if config["vocab_size"] < n_tokens or len(tokens) < n_tokens:
            raise ValueError("without the special tokens")
        table = torch.cat([tokens[:n_tokens], positions])
        with torch.no_grad():
            model.transformer.embed.weight.copy_(table)
            for parameter, value in zip(model.transformer.h.parameters(), blocks, strict=True):
                parameter.copy_(value)
        head = {"weight": tensors[f"{HEAD}.weight"], "bias": tensors[f"{HEAD}.bias"]}
        model.task_head.linear.load_state_dict(head)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{src}: the weights are not of the run that {CONFIG_FILE} tells of ({error!r}). "
            f"Take both from one run, or remove {RUN_KEY!r} for the transformer alone."
        ) from None

    # its settings
    values = {name: kept[name] for name in RUN_SETTINGS}
    values |= dataclasses.asdict(network)
    values["integer_labels"] = kept.get("integer_labels", False)  # folders of earlier versions lack it
    vocabulary = list(digests(vocabulary_files(src)).values())
    values |= {"n_vocab": sizes.n_vocab, "n_ctx": sizes.n_positions, "vocabulary": vocabulary}
    record = RunRecord.of_json(values, src / CONFIG_FILE)

    # the folder of the run
    with making_folder(out) as part:
        copy_vocabulary(src, part)
        save_parameters(part / "best_params", model, meaning(record.to_json()))
        write_json(part / "settings.json", record.to_json(), indent=2)
    print(f"{out}: a run, {kept['form']}; predict.py reads it")


def copy_vocabulary(src: Path, out: Path) -> None:
    """Copy vocabulary and merges, byte for byte, under the authors' names."""
    for source, name in zip(vocabulary_files(src), (ENCODER_FILE, BPE_FILE), strict=True):
        copy_file(source, out / name)


def run(settings: ConvertFlags) -> None:
    """Convert. Raises InputError for what the user can fix."""
    if settings.direction == "to_hf":
        to_hugging_face(Path(settings.src), Path(settings.out))
    else:
        from_hugging_face(Path(settings.src), Path(settings.out))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(ConvertFlags, argv)
    return exit_code("convert.py", partial(run, settings), "no folder is written")


if __name__ == "__main__":
    sys.exit(main())
