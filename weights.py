"""Open folders on disk: a pre-trained model's, and a fine-tuned run's."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from formats.authors import (
    BPE_FILE,
    ENCODER_FILE,
    FolderSizes,
    load_openai_pretrained_model,
    read_sizes,
    vocabulary_files,
    weight_files,
)
from formats.files import InputError, copy_file, find, make_output_folder, read_json, sha256
from model_pytorch import DEFAULT_CONFIG, Config, DoubleHeadModel, LMModel, TransformerModel
from reading.encoding import Encoded
from reading.rows import CUTS, FORMS, Rows, special_tokens
from running.checkpoint import load_parameters
from running.inference import answers, predict, written_answers
from running.processes import Ranks
from text_utils import TextEncoder


def open_model(folder: str | os.PathLike, return_probs: bool = True) -> tuple[LMModel, TextEncoder]:
    """Return the language model in a model folder, in evaluation mode, and its tokenizer.

    Args:
        folder: in the authors' format or Hugging Face's, whose added tokens are left out; a relative path is looked up
            here and then beside the scripts.
        return_probs: whether the model returns probabilities (B, T, V), else logits.

    Raises:
        InputError: a file is missing or damaged, or the files do not belong together.
    """
    folder = find(folder)
    sizes, vocabulary = read_sizes(folder), vocabulary_files(folder)
    encoder = TextEncoder(*vocabulary)
    if len(encoder.encoder) != sizes.n_vocab:
        raise InputError(
            f"{vocabulary[0]} has {len(encoder.encoder)} tokens, the weights are for {sizes.n_vocab}. "
            "Take both from one model."
        )
    same = {name: getattr(sizes, name) for name in ("n_embd", "n_head", "n_layer", "afn")}
    cfg = dataclasses.replace(DEFAULT_CONFIG, **same)
    model = LMModel(cfg, sizes.n_vocab + sizes.n_positions, sizes.n_positions, return_probs)
    load_openai_pretrained_model(model.transformer, path=folder, n_transfer=sizes.n_layer)
    return model.eval(), encoder


def open_transformer(folder: str | os.PathLike) -> tuple[TransformerModel, TextEncoder, FolderSizes]:
    """Return the transformer in a model folder or a saved run, its tokenizer and its sizes. Raises InputError."""
    if is_run(folder := find(folder)):
        run = open_run(folder)
        model, encoder, afn = run.model, run.encoder, run.settings["afn"]
    else:
        model, encoder = open_model(folder)
        afn = read_sizes(folder).afn
    transformer = model.transformer
    n_embd, blocks = transformer.embed.weight.size(1), transformer.h
    sizes = FolderSizes(len(encoder.encoder), transformer.n_ctx, n_embd, blocks[0].attn.n_head, len(blocks), afn)
    return transformer, encoder, sizes


def copy_weights(source: TransformerModel, target: TransformerModel, n_vocab: int) -> None:
    """Copy the rows of tokens and positions, and the blocks; the rows of special tokens are left out."""
    table = source.embed.weight
    with torch.no_grad():
        target.embed.weight.copy_(torch.cat([table[:n_vocab], table[-source.n_ctx :]]))
        for value, parameter in zip(source.h.parameters(), target.h.parameters(), strict=True):
            parameter.copy_(value)


def parameter_files(folder: str | os.PathLike) -> list[Path]:
    """Return the files that hold the parameters of a model folder or a saved run."""
    folder = find(folder)
    return [folder / "best_params"] if is_run(folder) else weight_files(folder)


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run of train.py, whole or not."""
    return (folder / "best_params").exists() or (folder / "settings.json").exists()


@dataclass(frozen=True)
class Prediction:
    """A run's prediction for one example."""

    label: str  # for scores: the expected score, with three decimals
    probabilities: dict[str, float]  # of every label or choice; for scores: of the six classes


CHUNK = 512  # examples encoded and predicted at a time by SavedRun.stream


@dataclass(frozen=True)
class SavedRun:
    """A fine-tuned network and all that is needed to use it; from open_run."""

    model: DoubleHeadModel  # in evaluation mode
    encoder: TextEncoder
    settings: dict  # of the run: form, labels, cut, n_ctx, n_vocab, sizes, digests of the files it read, ...
    folder: Path

    def predict(self, examples: Sequence[str | Sequence[str]], n_batch: int = 32) -> list[Prediction]:
        """Return a prediction for each example.

        Args:
            examples: one text (classification), two texts (entailment, similarity), or a context and its choices
                (multiple choice; for RACE article, question and choices). Texts too long for the network are cut as in
                training.
            n_batch: examples computed at a time; changes probabilities by rounding only.

        Raises ValueError for an example with the wrong number of texts.
        """
        return list(self.stream(((e,) if isinstance(e, str) else tuple(e) for e in examples), n_batch))

    def stream(self, examples: Iterable[tuple[str, ...]], n_batch: int = 32) -> Iterator[Prediction]:
        """Yield what predict returns, in memory that does not grow with the number of examples."""
        examples, n_done = iter(examples), 0
        while chunk := list(islice(examples, CHUNK)):
            for i, texts in enumerate(chunk, n_done):
                self.check(texts, f"example {i}")
            yield from self._predict(chunk, n_batch)
            n_done += len(chunk)

    def check(self, texts: tuple[str, ...], where: str) -> None:
        """Raise ValueError for an example with the wrong number of texts."""
        form = FORMS[self.settings["form"]]
        right = len(texts) >= form.n_texts + 2 if form.has_choices else len(texts) == form.n_texts
        if not right:
            more = " and two choices or more" * form.has_choices
            raise ValueError(
                f"{where} has {len(texts)} texts; a {self.settings['form']} example takes {form.n_texts}{more}"
            )

    def _predict(self, examples: list[tuple[str, ...]], n_batch: int) -> Iterator[Prediction]:
        settings, form = self.settings, self.settings["form"]
        ids = iter(self.encoder.encode([text for example in examples for text in example], verbose=False))
        # cut as in training; then, if longer than any row seen there, to the network's number of positions
        cut, n_allowed = CUTS[settings["cut"]], settings["n_ctx_allowed"]
        encoded = Encoded.of([cut([next(ids) for _ in example], form, n_allowed) for example in examples])
        rows = Rows(encoded, None, form, "longest", settings["n_vocab"], settings["n_ctx"])
        if (lengths := rows.lengths()).max() > settings["n_ctx"]:
            i = int(lengths.argmax())
            raise InputError(
                f"an example takes {lengths[i]} tokens without its context; the run has positions for "
                f"{settings['n_ctx']}. Shorten it: {' '.join(examples[i])[:60]!r} ..."
            )
        device = self.model.transformer.embed.weight.device
        logits = predict(self.model, rows, n_batch, Ranks(device=device))
        scores = tuple(settings["scores"]) if settings.get("scores") else None
        known = [f"{value:g}" for value in np.linspace(*scores, logits.size(1))] if scores else settings["labels"]
        found = zip(answers(logits, scores), examples, logits.softmax(1).tolist(), strict=True)
        for answer, example, values in found:
            n_out = len(example) - FORMS[form].n_texts if FORMS[form].has_choices else len(values)
            # more choices than in training: the numbers are their names
            names = known if n_out <= len(known) else [str(i + 1) for i in range(n_out)]
            (label,) = written_answers([answer], names, scores)
            yield Prediction(label, dict(zip(names[:n_out], values[:n_out], strict=True)))

    def save(self, folder: str | os.PathLike) -> None:
        """Copy the run, without its checkpoints, to a folder that open_run can read."""
        make_output_folder(folder := Path(folder))
        for name in ("settings.json", ENCODER_FILE, BPE_FILE, "best_params", "best_params.sha256"):
            copy_file(self.folder / name, folder / name)


def open_run(folder: str | os.PathLike) -> SavedRun:
    """Return a run of train.py from its folder, `save/<desc>`, with the parameters that were best on valid.

    The folder may have been moved: it holds all the files needed.

    Raises:
        InputError: a file is missing or damaged, or the vocabulary is not the run's.
    """
    folder = find(folder)
    settings = read_json(folder / "settings.json")
    needed = {"form", "cut", "labels", "n_ctx", "n_ctx_allowed", "n_vocab", "n_special", "n_out", "digests"}
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
        head = FORMS[settings["form"]].head(settings["n_out"])
        vocab = n_vocab + settings["n_special"] + n_ctx
        model = DoubleHeadModel(cfg, special_tokens(n_vocab).classify, head, vocab, n_ctx)
        load_parameters(folder / "best_params", model)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}: settings.json and best_params are not of one run ({error}). Take both from one run."
        ) from None
    return SavedRun(model.eval(), encoder, settings, folder)
