"""Folders on disk opened as something to use: a model folder, and the folder of a fine-tuned run."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint import load_parameters
from inference import predict
from inputs import CUTS, FORMS, Encoded, Rows, special_tokens
from model_pytorch import DEFAULT_CONFIG, Config, DoubleHeadModel, LMModel
from processes import Ranks
from shards import BPE_FILE, ENCODER_FILE, load_openai_pretrained_model, read_sizes
from text_utils import TextEncoder
from utils import InputError, find, read_json, sha256


def open_model(folder: str | os.PathLike, return_probs: bool = True) -> tuple[LMModel, TextEncoder]:
    """Return the language model in a model folder, in evaluation mode, and its tokenizer.

    Args:
        folder: in the authors' format; a relative path is looked up here and then beside the scripts.
        return_probs: whether the model returns probabilities (B, T, V), else logits.

    Raises:
        InputError: a file is missing or damaged, or the files do not belong together.
    """
    folder = find(folder)
    sizes, encoder = read_sizes(folder), TextEncoder(folder / ENCODER_FILE, folder / BPE_FILE)
    if len(encoder.encoder) != sizes.n_vocab:
        raise InputError(
            f"{folder / ENCODER_FILE} has {len(encoder.encoder)} tokens, the weights are for {sizes.n_vocab}. "
            "Take both from one model."
        )
    cfg = dataclasses.replace(DEFAULT_CONFIG, n_embd=sizes.n_embd, n_head=sizes.n_head, n_layer=sizes.n_layer)
    model = LMModel(cfg, sizes.n_vocab + sizes.n_positions, sizes.n_positions, return_probs)
    load_openai_pretrained_model(model.transformer, path=folder, n_transfer=sizes.n_layer)
    return model.eval(), encoder


@dataclass(frozen=True)
class Prediction:
    """What a run says of one example."""

    label: str
    probabilities: dict[str, float]  # of every label


@dataclass(frozen=True)
class SavedRun:
    """A fine-tuned network with all that it takes to use it; from open_run."""

    model: DoubleHeadModel  # in evaluation mode
    encoder: TextEncoder
    settings: dict  # of the run: form, labels, cut, n_ctx, n_vocab, sizes, digests of the files it read, ...

    def predict(self, examples: Sequence[str | Sequence[str]], n_batch: int = 32) -> list[Prediction]:
        """Return a prediction for each example.

        Args:
            examples: one text (classification), two texts (entailment, similarity), or a context and its choices
                (multiple choice), as in the task's files. Texts too long for the network are cut as in training.
            n_batch: examples computed at a time; of no effect on the predictions.

        Raises ValueError for an example with another number of texts.
        """
        settings, examples = self.settings, [(e,) if isinstance(e, str) else tuple(e) for e in examples]
        n_texts = {"classification": 1, "multiple_choice": 1 + len(settings["labels"])}.get(settings["form"], 2)
        for i, example in enumerate(examples):
            if len(example) != n_texts:
                raise ValueError(f"example {i} has {len(example)} texts; a {settings['form']} takes {n_texts}")
        if not examples:
            return []
        ids = iter(self.encoder.encode([text for example in examples for text in example], verbose=False))
        # cut as in training, and then, if longer than any row there, to what the network has positions for
        cut, form, n_allowed = CUTS[settings["cut"]], settings["form"], settings["n_ctx_allowed"]
        encoded = Encoded.of([cut([next(ids) for _ in example], form, n_allowed) for example in examples])
        rows = Rows(encoded, None, form, "longest", settings["n_vocab"], settings["n_ctx"])
        device = self.model.transformer.embed.weight.device
        logits = predict(self.model, rows, n_batch, Ranks(device=device), "texts")
        return [
            Prediction(settings["labels"][int(p.argmax())], dict(zip(settings["labels"], p.tolist(), strict=True)))
            for p in logits.softmax(1)
        ]


def open_run(folder: str | os.PathLike) -> SavedRun:
    """Return a run of train.py from its folder, `save/<desc>`, with the parameters that were best on valid.

    The folder may have been moved: it holds all that is needed.

    Raises:
        InputError: a file is missing or damaged, or the vocabulary is not the run's.
    """
    folder = find(folder)
    settings = read_json(folder / "settings.json")
    needed = {"form", "cut", "labels", "n_ctx", "n_ctx_allowed", "n_vocab", "n_special", "digests"}
    needed |= {"encoder_path", "bpe_path", *(field.name for field in dataclasses.fields(Config))}
    is_run = isinstance(settings, dict) and needed <= settings.keys()
    if not is_run or settings["form"] not in FORMS or settings["cut"] not in CUTS:
        raise InputError(f"{folder / 'settings.json'} is not the settings of a fine-tuned run. Train again.")
    vocabulary = folder / ENCODER_FILE, folder / BPE_FILE
    for path, flag in zip(vocabulary, ("encoder_path", "bpe_path"), strict=True):
        expected = settings["digests"].get(Path(settings[flag]).name)
        if path.exists() and sha256(path) != expected:
            raise InputError(f"{path} is not the file that the run had ({settings[flag]}). Copy that one here.")
    encoder = TextEncoder(*vocabulary)
    try:
        cfg = Config(**{field.name: settings[field.name] for field in dataclasses.fields(Config)})
        n_vocab, n_ctx = settings["n_vocab"], settings["n_ctx"]
        head = FORMS[settings["form"]].head(len(settings["labels"]))
        vocab = n_vocab + settings["n_special"] + n_ctx
        model = DoubleHeadModel(cfg, special_tokens(n_vocab).classify, head, vocab, n_ctx)
        load_parameters(folder / "best_params", model)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}: settings.json and best_params are not of one run ({error}). Take both from one run."
        ) from None
    return SavedRun(model.eval(), encoder, settings)
