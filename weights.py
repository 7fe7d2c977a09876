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
    check_bytes,
    load_openai_pretrained_model,
    open_folder,
    read_sizes,
    vocabulary_files,
    weight_files,
)
from formats.files import InputError, make_output_folder, refuse_special, replacing_all, sha256
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, LMModel, TransformerModel
from reading.encoding import Encoded
from reading.rows import FORMS, N_SPECIAL, Rows, special_tokens
from running.checkpoint import count_parameters, load_parameters
from running.inference import answers, predict, written_answers
from running.processes import Ranks
from running.record import RunRecord
from text_utils import TextEncoder

# --- a pre-trained model ---------------------------------------------------------------------------------------------


def open_model(folder: str | os.PathLike, return_probs: bool = True) -> tuple[LMModel, TextEncoder]:
    """Return the language model in a model folder, in evaluation mode, and its tokenizer.

    Args:
        folder: in the authors' format or Hugging Face's, whose added tokens are left out; a relative path is looked up
            here and then beside the scripts.
        return_probs: whether the model returns probabilities (B, T, V), else logits.

    Raises:
        InputError: a file is missing or damaged, or the files do not belong together.
    """
    folder = open_folder(folder)
    sizes = read_sizes(folder)
    encoder = open_vocabulary(vocabulary_files(folder))
    if encoder.n_vocab != sizes.n_vocab:
        raise InputError(
            f"{encoder.files[0]} has {encoder.n_vocab} tokens, the weights are for {sizes.n_vocab}. "
            "Take both from one model."
        )
    check_bytes(folder, sizes)
    same = {name: getattr(sizes, name) for name in ("n_embd", "n_head", "n_layer", "afn")}
    cfg = dataclasses.replace(DEFAULT_CONFIG, **same)
    model = LMModel(cfg, sizes.n_vocab + sizes.n_positions, sizes.n_positions, return_probs)
    load_openai_pretrained_model(model.transformer, path=folder, n_transfer=sizes.n_layer)
    return model.eval(), encoder


def open_vocabulary(files: Sequence[Path]) -> TextEncoder:
    """Return the tokenizer of a vocabulary and its merges. Raises InputError."""
    for path in files:
        refuse_special(path)
    return TextEncoder(*files)


def open_transformer(folder: Path) -> tuple[TransformerModel, TextEncoder, FolderSizes]:
    """Return the transformer in a model folder or a saved run, its tokenizer and its sizes. Raises InputError."""
    if is_run(folder):
        run = open_run(folder)
        model, encoder = run.model, run.encoder
    else:
        model, encoder = open_model(folder)
    cfg, n_positions = model.cfg, model.transformer.n_ctx
    sizes = FolderSizes(encoder.n_vocab, n_positions, cfg.n_embd, cfg.n_head, cfg.n_layer, cfg.afn)
    return model.transformer, encoder, sizes


def copy_weights(source: TransformerModel, target: TransformerModel, n_vocab: int) -> None:
    """Copy the rows of tokens and positions, and the blocks; the rows of special tokens are left out."""
    table = source.embed.weight
    with torch.no_grad():
        target.embed.weight.copy_(torch.cat([table[:n_vocab], table[-source.n_ctx :]]))
        for value, parameter in zip(source.h.parameters(), target.h.parameters(), strict=True):
            parameter.copy_(value)


def parameter_files(folder: Path) -> list[Path]:
    """Return the files that hold the parameters of a model folder or a saved run."""
    return [folder / "best_params"] if is_run(folder) else weight_files(folder)


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run of train.py, whole or not."""
    return (folder / "best_params").exists() or (folder / "settings.json").exists()


# --- a fine-tuned run ------------------------------------------------------------------------------------------------


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
    record: RunRecord  # form, labels, cut, sizes, ...
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
        texts = ((example,) if isinstance(example, str) else tuple(example) for example in examples)
        return list(self.stream(texts, n_batch))

    def stream(self, examples: Iterable[tuple[str, ...]], n_batch: int = 32) -> Iterator[Prediction]:
        """Yield what predict returns, in memory that does not grow with the number of examples."""
        examples = iter(examples)
        n_done = 0
        while chunk := list(islice(examples, CHUNK)):
            for i, texts in enumerate(chunk, n_done):
                self.check(texts, f"example {i}")
            yield from self.predict_chunk(chunk, n_batch)
            n_done += len(chunk)

    def check(self, texts: tuple[str, ...], where: str) -> None:
        """Raise ValueError for an example with the wrong number of texts."""
        form = FORMS[self.record.form]
        is_right = len(texts) >= form.n_texts + 2 if form.has_choices else len(texts) == form.n_texts
        if not is_right:
            more = " and two choices or more" if form.has_choices else ""
            raise ValueError(f"{where} has {len(texts)} texts; a {self.record.form} example takes {form.n_texts}{more}")

    def predict_chunk(self, examples: list[tuple[str, ...]], n_batch: int) -> Iterator[Prediction]:
        """Yield the predictions of some examples, which are encoded together."""
        # texts -> rows, cut as in training; then, if longer than any row there, to the network's number of positions
        record, form = self.record, FORMS[self.record.form]
        ids = iter(self.encoder.encode([text for example in examples for text in example], verbose=False))
        cut = [record.layout().cut_texts([next(ids) for _ in example]) for example in examples]
        layout = dataclasses.replace(record.layout(), cut="longest", n_ctx=record.n_ctx)
        rows = Rows(Encoded.of(cut), layout)
        lengths = rows.lengths()
        if lengths.max() > record.n_ctx:
            i = int(lengths.argmax())
            raise InputError(
                f"an example takes {lengths[i]} tokens without its context; the run has positions for "
                f"{record.n_ctx}. Shorten it: {' '.join(examples[i])[:60]!r} ..."
            )

        # rows -> probabilities -> labels by their names
        device = self.model.transformer.embed.weight.device
        logits = predict(self.model, rows, n_batch, Ranks(device=device))
        known = record.labels
        if record.scores is not None:
            known = [f"{value:g}" for value in np.linspace(*record.scores, logits.size(1))]
        found = answers(logits, record.scores)
        for answer, example, values in zip(found, examples, logits.softmax(1).tolist(), strict=True):
            n_out = len(example) - form.n_texts if form.has_choices else len(values)
            names = known
            if n_out > len(known):  # more choices than in training: the numbers are their names
                names = [str(i + 1) for i in range(n_out)]
            (label,) = written_answers([answer], names, record.scores)
            yield Prediction(label, dict(zip(names[:n_out], values[:n_out], strict=True)))

    def save(self, folder: str | os.PathLike) -> None:
        """Copy the run, without its checkpoints, to a folder that open_run can read; a run there is replaced."""
        folder = Path(folder)
        make_output_folder(folder)
        names = ("settings.json", ENCODER_FILE, BPE_FILE, "best_params", "best_params.sha256")
        with replacing_all([folder / name for name in names]) as files:
            for file, name in zip(files, names, strict=True):
                file.write((self.folder / name).read_bytes())


def open_run(folder: str | os.PathLike) -> SavedRun:
    """Return a run of train.py from its folder, `save/<desc>`, with the parameters that were best on valid.

    The folder may have been moved: it holds all the files needed.

    Raises:
        InputError: a file is missing or damaged, or the vocabulary is not the run's.
    """
    folder = open_folder(folder)
    record = RunRecord.read(folder)

    # the vocabulary that it was trained with
    vocabulary = (folder / ENCODER_FILE, folder / BPE_FILE)
    for path, digest in zip(vocabulary, record.vocabulary, strict=True):
        if path.exists() and sha256(path) != digest:
            raise InputError(f"{path} is not the vocabulary that the run had. Copy that one here.")
    encoder = open_vocabulary(vocabulary)

    # the network, once the file of its parameters is known to be as large
    sizes = FolderSizes(
        record.n_vocab + N_SPECIAL, record.n_ctx, record.n_embd, record.n_head, record.n_layer, record.afn
    )
    n_expected = sizes.n_values()
    if not FORMS[record.form].has_choices:  # else the head has one output whatever n_out is
        n_expected += record.n_embd * record.n_out
    n_found = count_parameters(folder / "best_params")
    if n_found < n_expected:
        raise InputError(
            f"{folder}: settings.json and best_params are not of one run ({n_found:,} parameters are too few for the "
            "sizes of the network). Take both from one run."
        )
    try:
        clf_token = special_tokens(record.n_vocab).classify
        head = FORMS[record.form].head(record.n_out)
        model = DoubleHeadModel(
            record.config(), clf_token, head, record.n_vocab + N_SPECIAL + record.n_ctx, record.n_ctx
        )
        load_parameters(folder / "best_params", model)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}: settings.json and best_params are not of one run ({error}). Take both from one run."
        ) from None
    return SavedRun(model.eval(), encoder, record, folder)
