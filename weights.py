"""Open folders on disk: a pre-trained model's, and a fine-tuned run's."""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from formats.authors import check_bytes, check_sizes, load_openai_pretrained_model
from formats.config import DEFAULT_CONFIG, SIZES, Config
from formats.examples import Example
from formats.files import InputError, make_output_folder, replacing_all, sha256
from formats.folders import (
    BPE_FILE,
    ENCODER_FILE,
    RUN_FILES,
    FolderSizes,
    check_vocabulary,
    is_hugging_face,
    is_run,
    open_folder,
    read_sizes,
    vocabulary_files,
    weight_files,
)
from model_pytorch import DoubleHeadModel, LMModel, TransformerModel
from reading.encoding import Encoded, has_unknown
from reading.rows import FORMS, N_SPECIAL, Rows, special_tokens
from running.checkpoint import load_parameters, meaning_of
from running.inference import answers, predict, written_answers
from running.processes import Ranks, random_numbers_kept
from running.record import RunRecord, meaning
from text_utils import TextEncoder

# --- a pre-trained model ---------------------------------------------------------------------------------------------


@random_numbers_kept()
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

    # the tokenizer
    if is_hugging_face(folder):
        check_vocabulary(folder)
    encoder = TextEncoder(*vocabulary_files(folder))
    if encoder.n_vocab != sizes.n_vocab:
        raise InputError(
            f"{encoder.files[0]} has {encoder.n_vocab} tokens, the weights are for {sizes.n_vocab}. "
            "Take both from one model."
        )

    # the network, once its weights are known to be there
    check_bytes(folder, sizes)
    same = {name: getattr(sizes, name) for name in SIZES}
    cfg = dataclasses.replace(DEFAULT_CONFIG, **same)
    model = LMModel(cfg, sizes.n_vocab + sizes.n_positions, sizes.n_positions, return_probs)
    load_openai_pretrained_model(model.transformer, path=folder, n_transfer=sizes.n_layer)
    return model.eval(), encoder


def open_transformer(folder: Path) -> tuple[TransformerModel, TextEncoder, FolderSizes]:
    """Return the transformer in a model folder or a saved run, its tokenizer and its sizes. Raises InputError."""
    if is_run(folder):
        run = open_run(folder)
        model, encoder = run.model, run.encoder
    else:
        model, encoder = open_model(folder)
    return model.transformer, encoder, folder_sizes(folder)


def folder_sizes(folder: Path) -> FolderSizes:
    """Return the sizes of the network in a model folder or a saved run. Raises InputError."""
    if not is_run(folder):
        return read_sizes(folder)
    record = RunRecord.read(folder)
    check_meaning(folder, record)
    return FolderSizes(record.n_vocab, record.n_ctx, record.n_embd, record.n_head, record.n_layer, record.afn)


def load_weights(model: TransformerModel, n_transfer: int, folder: Path) -> int:
    """Copy the weights of a model folder or a saved run to a network with special tokens, and return how many blocks.

    The special tokens are those of the run; as load_openai_pretrained_model else. Raises InputError.
    """
    if not is_run(folder):
        return load_openai_pretrained_model(model, model.n_ctx, N_SPECIAL, n_transfer, folder)

    # of a run: the sizes must fit
    source, _, sizes = open_transformer(folder)
    n_transfer = min(n_transfer, sizes.n_layer, len(model.h))
    check_sizes(folder, sizes, model, model.n_ctx, N_SPECIAL, n_transfer)
    np.random.randn(N_SPECIAL, sizes.n_embd)  # what the other loader draws: the epochs' order is the same

    # all embeddings but the last positions, and the first blocks
    words, positions = source.embed.weight.split([sizes.n_vocab + N_SPECIAL, source.n_ctx])
    with torch.no_grad():
        model.embed.weight.copy_(torch.cat([words, positions[: model.n_ctx]]))
        for value, parameter in zip(source.h.parameters(), model.h[:n_transfer].parameters(), strict=False):
            parameter.copy_(value)
    return n_transfer


def copy_weights(source: TransformerModel, target: TransformerModel, n_vocab: int) -> None:
    """Copy the rows of tokens and positions, and the blocks; the rows of special tokens are left out."""
    table = source.embed.weight
    tokens = table[:n_vocab]
    positions = table[-source.n_ctx :]
    with torch.no_grad():
        target.embed.weight.copy_(torch.cat([tokens, positions]))
        for value, parameter in zip(source.h.parameters(), target.h.parameters(), strict=True):
            parameter.copy_(value)


def task_model(cfg: Config, form: str, n_out: int, n_vocab: int, n_ctx: int) -> DoubleHeadModel:
    """Return a network with random weights for a task of a form: n_vocab tokens, the special ones, n_ctx positions."""
    head = FORMS[form].head(n_out)
    return DoubleHeadModel(cfg, special_tokens(n_vocab).classify, head, n_vocab + N_SPECIAL + n_ctx, n_ctx)


def parameter_files(folder: Path) -> list[Path]:
    """Return the files that hold the parameters of a model folder or a saved run."""
    return [folder / "best_params"] if is_run(folder) else weight_files(folder)


# --- a fine-tuned run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """A run's prediction for one example."""

    label: str | int  # an integer if `fit` was given integers; for scores: the expected score, with three decimals
    probabilities: dict[str | int, float]  # of every label or choice; for scores: of the six classes
    n_tokens: int = 0  # of its texts, as far as the network reads them
    n_unknown: int = 0  # of these, not in the vocabulary


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
        found = []
        for i, example in enumerate(examples):
            texts = (example,) if isinstance(example, str) else tuple(example)
            self.check(texts, f"example {i}")
            found.append(Example(texts, None, f"example {i}"))
        return list(self.stream(found, n_batch))

    def stream(self, examples: Iterable[Example], n_batch: int = 32) -> Iterator[Prediction]:
        """Yield what predict returns, in memory that does not grow with the number of examples.

        An example without texts, such as a blank line, gets a Prediction that says nothing.
        """
        examples = iter(examples)
        while chunk := list(islice(examples, CHUNK)):
            predictions = self.predict_chunk([example for example in chunk if example.texts], n_batch)
            for example in chunk:
                yield next(predictions) if example.texts else Prediction("", {})

    def check(self, texts: tuple[str, ...], where: str) -> None:
        """Raise ValueError for an example with the wrong number of texts."""
        form = FORMS[self.record.form]
        more = ""
        is_right = len(texts) == form.n_texts
        if form.has_choices:
            more = " and two choices or more"
            is_right = len(texts) >= form.n_texts + 2
        if not is_right:
            raise ValueError(f"{where} has {len(texts)} texts; a {self.record.form} example takes {form.n_texts}{more}")

    def predict_chunk(self, examples: list[Example], n_batch: int) -> Iterator[Prediction]:
        """Yield the predictions of some examples, which are encoded together."""
        if not examples:
            return
        # texts -> token ids, cut as in training
        record = self.record
        form = FORMS[record.form]
        layout = record.layout()
        texts = [text for example in examples for text in example.texts]
        ids = iter(self.encoder.encode(texts, verbose=False))
        cut = [layout.cut_texts([next(ids) for _ in example.texts]) for example in examples]

        # token ids -> rows; those longer than any row in training are cut to the network's number of positions
        layout = dataclasses.replace(layout, cut="longest", n_ctx=record.n_ctx)
        rows = Rows(Encoded.of(cut), layout)
        lengths = rows.lengths()
        if lengths.max() > record.n_ctx:
            i = int(lengths.argmax())
            start = " ".join(examples[i].texts)[:60]
            raise InputError(
                f"{examples[i].where}: {lengths[i]} tokens without its context; the run has positions for "
                f"{record.n_ctx}. Shorten it: {start!r} ..."
            )

        # rows -> probabilities
        device = self.model.transformer.embed.weight.device
        logits = predict(self.model, rows, n_batch, Ranks(device=device))
        found = answers(logits, record.scores)
        probabilities = logits.softmax(1).tolist()

        # the names of what they are of; of scores, each class stands for one
        known = record.labels
        if record.scores is not None:
            scores = np.linspace(*record.scores, logits.size(1))
            known = [f"{value:g}" for value in scores]
        for answer, example, texts, values in zip(found, examples, cut, probabilities, strict=True):
            n_out = len(example.texts) - form.n_texts if form.has_choices else len(values)
            names = known
            if n_out > len(known):  # more choices than in training
                names = written_answers(np.arange(n_out), known, None)

            # the label is named as those that it was trained on
            (label,) = written_answers([answer], names, record.scores)
            if record.integer_labels:
                label = int(label)
                names = [int(name) for name in names]
            by_name = dict(zip(names[:n_out], values[:n_out], strict=True))

            # what the network could not read
            n_tokens = sum(map(len, texts))
            n_unknown = 0
            if has_unknown(self.encoder):
                n_unknown = sum(text.count(0) for text in texts)
            yield Prediction(label, by_name, n_tokens, n_unknown)

    def save(self, folder: str | os.PathLike) -> None:
        """Copy the run, without its checkpoints, to a folder that open_run can read.

        Raises InputError for a folder of another run or model.
        """
        folder = Path(folder)
        make_output_folder(folder)

        # what is there already must be of this run
        for name in RUN_FILES:
            there = folder / name
            if there.exists() and sha256(there) != sha256(self.folder / name):
                raise InputError(f"{there} is of another run or model. Name another folder.")

        # all files or none; the settings, which make it a run, come last
        with replacing_all([folder / name for name in RUN_FILES]) as files:
            for target, name in zip(files, RUN_FILES, strict=True):
                with open(self.folder / name, "rb") as source:
                    shutil.copyfileobj(source, target)


def check_meaning(folder: Path, record: RunRecord) -> None:
    """Raise InputError unless the parameters of a run were saved with its settings. Reads no parameters."""
    if meaning_of(folder / "best_params") != meaning(record.to_json()):
        raise InputError(
            f"{folder}: settings.json and best_params are not of one run (one of them was changed). "
            "Take both from one run."
        )


@random_numbers_kept()
def open_run(folder: str | os.PathLike) -> SavedRun:
    """Return a run of train.py from its folder, `save/<desc>`, with the parameters that were best on valid.

    The folder may have been moved: it holds all the files needed.

    Raises:
        InputError: a file is missing or damaged, or the vocabulary is not the run's.
    """
    folder = open_folder(folder)
    record = RunRecord.read(folder)
    if (record.others or {}).get("lstm") is not None:
        raise InputError(f"{folder} is a run of an LSTM (--lstm), which train.py alone uses: --submit predicts.")

    # the vocabulary that it was trained with
    vocabulary = (folder / ENCODER_FILE, folder / BPE_FILE)
    for path, digest in zip(vocabulary, record.vocabulary, strict=True):
        if path.exists() and sha256(path) != digest:
            raise InputError(f"{path} is not the vocabulary that the run had. Copy that one here.")
    encoder = TextEncoder(*vocabulary)

    # the network, once its parameters are known to be of its sizes
    check_meaning(folder, record)
    try:
        model = task_model(record.config(), record.form, record.n_out, record.n_vocab, record.n_ctx)
        load_parameters(folder / "best_params", model)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}: settings.json and best_params are not of one run ({error}). Take both from one run."
        ) from None
    return SavedRun(model.eval(), encoder, record, folder)
