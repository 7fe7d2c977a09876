"""A fine-tuning run: from a task and settings to trained parameters and predictions."""

import dataclasses
import json
import random
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from formats.authors import (
    BPE_FILE,
    ENCODER_FILE,
    FolderSizes,
    is_model,
    load_openai_pretrained_model,
    read_sizes,
    weight_files,
)
from formats.examples import OWN_FIELDS, parse_columns
from formats.files import InputError, copy_file, digests, find, make_output_folder, replacing
from loss import packed_losses
from model_pytorch import Config, DoubleHeadModel
from opt import OpenAIAdam
from reading.rows import FORMS, N_SPECIAL, special_tokens
from reading.splits import Splits, describe, majority, read_splits
from reading.tasks import Task, find_task
from running.checkpoint import load_parameters
from running.inference import answers, evaluate, predict, written_answers
from running.metrics import METRICS
from running.processes import Ranks, Stop, autocast, describe_device, join_ranks, pick_precision
from running.settings import Settings, fixed_on_resume
from running.training import Training, summary_writer
from speed.packing import Packing
from text_utils import TextEncoder
from weights import SavedRun, open_run

# --- what a run trains -----------------------------------------------------------------------------------------------


def network(settings: Settings, n_vocab: int) -> tuple[Config, FolderSizes | None]:
    """Return the network's settings, from the flags or else from the model folder, and the sizes in that folder.

    Raises InputError when flags, vocabulary and weights contradict each other.
    """
    model_dir = find(settings.model_dir)
    loads = settings.n_transfer >= 0
    sizes = read_sizes(model_dir) if loads or is_model(model_dir) else None
    if loads and n_vocab != sizes.n_vocab:
        raise InputError(
            f"{settings.encoder_path} has {n_vocab} tokens, the weights in {model_dir} are for {sizes.n_vocab}. "
            "Take both from one model."
        )
    try:
        return (settings.config(sizes) if sizes else settings.config()), sizes
    except ValueError as error:
        raise InputError(str(error)) from None


@dataclass(frozen=True)
class Prepared:
    """A task's examples as rows, and the network that fits them."""

    splits: Splits
    cfg: Config
    n_vocab: int
    n_ctx: int  # tokens of the longest row


def prepare(settings: Settings, task: Task, encoder: TextEncoder, ranks: Ranks) -> Prepared:
    """Read the task's files and the sizes of the network, and encode the texts. Raises InputError."""
    n_vocab = len(encoder.encoder)
    cfg, sizes = network(settings, n_vocab)
    with ranks.first_alone():  # the others then find its cache
        splits = read_splits(
            task,
            find(settings.data_dir),
            encoder,
            (settings.encoder_path, settings.bpe_path),
            n_valid=settings.n_valid,
            seed=settings.seed,
            n_ctx=settings.n_ctx if settings.n_transfer < 0 else min(settings.n_ctx, sizes.n_positions),
            max_examples=settings.max_examples,
        )
    return Prepared(splits, cfg, n_vocab, splits.n_ctx())


def build_model(prepared: Prepared, n_transfer: int, model_dir: str) -> tuple[DoubleHeadModel, int | None]:
    """Return the network with its weights, and how many blocks were loaded; None: not even the embeddings."""
    n_vocab, n_ctx, cfg, splits = prepared.n_vocab, prepared.n_ctx, prepared.cfg, prepared.splits
    head = FORMS[splits.task.form].head(splits.n_out())
    model = DoubleHeadModel(cfg, special_tokens(n_vocab).classify, head, n_vocab + N_SPECIAL + n_ctx, n_ctx)
    if n_transfer < 0:
        np.random.randn(N_SPECIAL, cfg.n_embd)  # the loader samples as many, so that the epochs' order is the same
        return model, None
    return model, load_openai_pretrained_model(model.transformer, n_ctx, N_SPECIAL, n_transfer, model_dir)


class FineTuning(nn.Module):
    """Packed rows and labels -> the mean training loss of a batch, in one module as DistributedDataParallel needs.

    Args:
        class_weights: (n_class,) factor of the task loss for each label; None: all 1.
    """

    def __init__(self, model: DoubleHeadModel, lm_coef: float, class_weights: Tensor | None = None):
        super().__init__()
        self.model, self.lm_coef, self.class_weights = model, lm_coef, class_weights

    def forward(self, packing: Packing, y: Tensor) -> Tensor:
        task, lm = packed_losses(self.model, packing, y, self.lm_coef)
        if self.class_weights is not None:
            task = task * self.class_weights[y]
        return task.mean() if lm is None else task.mean() + self.lm_coef * lm.mean()


def balanced_weights(labels: np.ndarray, n_labels: int) -> Tensor:
    """Return N / (n_labels * count) of each label, so that all labels weigh the same: for [0 0 0 1], 2/3 and 2."""
    counts = np.bincount(labels, minlength=n_labels).clip(min=1)
    return torch.tensor(len(labels) / (n_labels * counts), dtype=torch.float32)


def is_log_due(updates: int, per_epoch: int) -> bool:
    """Return whether to evaluate: after each epoch, and in the first at updates 1000, 2000, 4000, ... (TF:431-440)."""
    thousands, rest = divmod(updates, 1000)
    return updates > 0 and (
        updates % per_epoch == 0 or (updates < per_epoch and not rest and thousands.bit_count() == 1)
    )


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """A fine-tuning run. The constructor prepares all up to the first update; then call train() and predict()."""

    def __init__(self, settings: Settings, ranks: Ranks):
        self.settings, self.ranks = settings, ranks
        if settings.tensorboard:
            summary_writer()  # refuses now what would fail after the preparation
        self.log_dir, self.save_dir = Path(settings.log_dir), Path(settings.save_dir) / settings.desc
        self.submission_dir = Path(settings.submission_dir)
        for folder in [self.log_dir, self.save_dir] + [self.submission_dir] * settings.submit:
            make_output_folder(folder)

        # random numbers in the authors' order: special-token embeddings, then the epochs' shuffles (FIDELITY 78)
        random.seed(settings.seed)
        np.random.seed(settings.seed)
        torch.manual_seed(settings.seed)
        self.encoder = TextEncoder(settings.encoder_path, settings.bpe_path)
        data_dir, columns = find(settings.data_dir), parse_columns(settings.columns)
        task = find_task(settings.dataset, data_dir, settings.task, columns, settings.race)
        self.prepared = prepared = prepare(settings, task, self.encoder, ranks)
        self.splits, self.task = prepared.splits, prepared.splits.task
        self.check_task()
        n_train = len(self.splits.train)
        n_update = settings.n_batch * settings.accumulate * ranks.size
        if n_train < n_update:
            raise InputError(
                f"--n_batch {settings.n_batch} x --accumulate {settings.accumulate} x {ranks.size} processes is more "
                f"than the {n_train} examples to train on. Lower one of them or --n_valid."
            )
        self.model, n_loaded = self.new_model(prepared)
        self.model.transformer.checkpoint_activations = settings.checkpoint_activations
        self.model.to(ranks.device)
        per_epoch = n_train // n_update
        t_total = per_epoch * settings.n_iter
        schedule = {"schedule": settings.lr_schedule, "warmup": settings.lr_warmup, "t_total": t_total}
        optimizer = OpenAIAdam(self.model.parameters(), **settings.adam(), **schedule)
        optimizer.preallocate()
        orders = [shuffled(n_train) for _ in range(settings.n_iter)]
        torch.manual_seed(settings.seed + ranks.rank)  # different dropout masks per process

        precision = pick_precision(settings.precision, ranks.device)
        self.autocast = autocast(precision, ranks.device)
        weights = None
        if settings.class_weights == "balanced":
            weights = balanced_weights(self.splits.train.labels, self.splits.n_out()).to(ranks.device)
        self.training = Training(
            model=self.model,
            objective=FineTuning(self.model, settings.lm_coef, weights),
            optimizer=optimizer,
            autocast=self.autocast,
            make_batch=lambda examples: self.splits.train.packed(examples, settings.share_context, ranks.device),
            epoch_order=orders.__getitem__,
            measure=self.measure,
            is_log_due=lambda updates: is_log_due(updates, per_epoch),
            best_by=f"va_{self.task.metrics[0]}",
            log_format=self.log_format(),
            n_batch=settings.n_batch,
            accumulate=settings.accumulate,
            n_iter=settings.n_iter,
            per_epoch=per_epoch,
            folder=self.save_dir,
            settings=self.all_settings(precision, t_total),
            checkpoint_every=settings.checkpoint_every,
            resume=settings.resume,
            ranks=ranks,
        )
        if ranks.is_first:
            self.announce(precision, n_loaded, n_update)
            self.begin_files()

    def new_model(self, prepared: Prepared) -> tuple[DoubleHeadModel, int | None]:
        """Return what build_model does; a subclass may build another network."""
        return build_model(prepared, self.settings.n_transfer, self.settings.model_dir)

    def check_task(self) -> None:
        """Raise InputError for missing labels, and for class weights where there are no classes."""
        folder = find(self.settings.data_dir)
        for name, rows in (("train", self.splits.train), ("validation", self.splits.valid)):
            if rows.labels is None:
                raise InputError(f"{folder}: a {name} example has no label. Fix the line or remove it.")
        if self.settings.class_weights == "balanced" and (self.task.scores or self.splits.train.has_choices()):
            raise InputError("--class_weights balanced needs classes: leave it out for scores and multiple choice.")

    def all_settings(self, precision: str, t_total: int) -> dict:
        """Return the settings saved with the run; a resumed run must have the same."""
        settings, prepared, task = self.settings, self.prepared, self.task
        folder = task.find(find(settings.data_dir))
        files = [folder / name for source in task.sources() for name in source.files]
        files = [path for path in files if path.is_file()]
        files += [Path(settings.encoder_path), Path(settings.bpe_path)]
        if settings.n_transfer >= 0:
            files += weight_files(find(settings.model_dir))
        return (
            fixed_on_resume(settings)
            | dataclasses.asdict(prepared.cfg)
            | {
                "precision": precision,
                "form": task.form,
                "cut": task.cut,
                "labels": list(task.written or task.labels or ()),
                "scores": task.scores and list(task.scores),
                "n_out": self.splits.n_out(),
                "n_ctx": prepared.n_ctx,
                "n_ctx_allowed": self.splits.train.n_ctx,
                "n_vocab": prepared.n_vocab,
                "n_special": N_SPECIAL,
                "t_total": t_total,
                "n_processes": self.ranks.size,
                "digests": digests(files),
            }
        )

    def log_format(self) -> str:
        """Return the format string of the line printed at each log."""
        parts = ["{n_epochs} {n_updates}"]
        for name, key in (("train", "tr"), ("valid", "va")):
            figures = " ".join(f"{metric} {{{key}_{metric}:.2f}}" for metric in self.task.metrics)
            parts.append(f"{name} cost {{{key}_cost:.3f}} {figures}")
        return parts[0] + " " + "  ".join(parts[1:])

    def announce(self, precision: str, n_loaded: int | None, n_update: int) -> None:
        """Print device, examples, network and plan."""
        settings, prepared, cfg, training = self.settings, self.prepared, self.prepared.cfg, self.training
        n_test = len(self.splits.test) if self.splits.test else 0
        source = "nothing" if n_loaded is None else f"embeddings and {n_loaded} blocks from {settings.model_dir}"
        plan = f"{settings.n_iter} epochs, {training.t_total} updates of {n_update} examples"
        counts = f"{len(self.splits.train)} train, {len(self.splits.valid)} valid, {n_test} test"
        print(f"device   {describe_device(precision, self.ranks)}")
        print(f"examples {counts}, n_ctx {prepared.n_ctx}")
        print("\n".join(describe(self.splits, self.encoder)))
        print(f"network  {cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads; loaded {source}")
        print(f"plan     {plan}" + f", {training.updates} of them done" * bool(training.updates))

    def begin_files(self) -> None:
        """Start the log, copy the vocabulary to the run, and remove the results of an earlier run of the same name."""
        for suffix in (".tsv", ".png", ".json", ".errors.tsv", ".valid.npy", ".test.npy"):
            (self.log_dir / f"{self.settings.desc}{suffix}").unlink(missing_ok=True)
        vocabulary = {ENCODER_FILE: self.settings.encoder_path, BPE_FILE: self.settings.bpe_path}
        for name, source in vocabulary.items():
            copy_file(Path(source), self.save_dir / name)
        path, notes = self.log_dir / f"{self.settings.desc}.jsonl", list(self.splits.notes)
        self.training.open_log(path, self.settings.tensorboard, notes=notes)

    def measure(self, _, pause) -> dict[str, float]:
        """Return cost and metrics on the first n_valid examples of train, and on valid."""
        figures, n_batch = {}, self.settings.n_batch
        subset = self.splits.train.first(self.settings.n_valid)
        with self.autocast:
            for key, rows, name in (("tr", subset, "train rows"), ("va", self.splits.valid, "valid rows")):
                cost, found = evaluate(self.model, rows, self.task.metrics, n_batch, self.ranks, name, pause)
                figures[f"{key}_cost"] = cost
                figures |= {f"{key}_{metric}": value for metric, value in found.items()}
        return dict(sorted(figures.items(), key=lambda item: not item[0].endswith("cost")))

    def train(self, stop: Stop) -> None:
        """Make the remaining updates, with their evaluations and checkpoints."""
        self.training.run(stop)
        if self.ranks.is_first and (reason := self.has_learned_nothing()):
            print(f"warning  {reason}. Try a longer warm-up (--lr_warmup 0.1), a lower --lr, or another --seed.")

    def has_learned_nothing(self) -> str | None:
        """Return a warning if the run is no better than a constant prediction; None if it is better."""
        metric = self.task.metrics[0]
        best = max(line[f"va_{metric}"] for line in self.training.logs)
        if self.task.scores or metric == "mcc":
            return f"the best {METRICS[metric].title} on valid is {best:.2f} %" if best <= 1 else None
        n_labels = self.splits.n_out() if not self.splits.train.has_choices() else self.splits.valid.n_choices()
        cost = self.training.logs[-1]["tr_cost"]
        accuracy = max(line.get("va_acc", 100.0) for line in self.training.logs)
        if accuracy <= 100 * majority(self.splits):
            return f"valid accuracy {accuracy:.2f} % is no better than always predicting one label"
        if abs(cost - np.log(n_labels)) < 0.02:
            return f"the cost on train, {cost:.3f}, is stuck near ln {n_labels} = {np.log(n_labels):.3f}, a blind guess"
        return None

    def predict(self, stop: Stop) -> None:
        """Predict valid and test with the best parameters; write the predictions for analysis and submission."""
        self.ranks.wait()  # for the first process to have written them
        load_parameters(self.save_dir / "best_params", self.model)
        for name, rows in (("valid", self.splits.valid), ("test", self.splits.test)):
            if rows is None:
                continue
            with self.autocast:
                logits = predict(self.model, rows, self.settings.n_batch, self.ranks, f"{name} rows", stop.here)
            if self.ranks.is_first:
                with replacing(self.log_dir / f"{self.settings.desc}.{name}.npy") as file:
                    np.save(file, logits.double().softmax(1).numpy())  # in float32 two logits could round to a tie
                if name == "test":
                    self.write_predictions(answers(logits, self.task.scores))

    def write_predictions(self, found: np.ndarray) -> None:
        """Write the predictions of test: one file of all parts for the analysis, one file per part for submission."""
        texts = written_answers(found, self.task.written or self.task.labels, self.task.scores)
        files, first = [(self.log_dir / f"{self.settings.desc}.tsv", texts)], 0
        for part, n in self.splits.test_parts:
            files.append((self.submission_dir / self.task.submission[part], texts[first : first + n]))
            first += n
        for path, lines in files:
            with replacing(path) as file:
                file.write("".join(["index\tprediction\n", *(f"{i}\t{t}\n" for i, t in enumerate(lines))]).encode())

    def close(self) -> None:
        """Close the log."""
        self.training.close()


def shuffled(n: int) -> np.ndarray:
    """Return 0 .. n - 1 shuffled by NumPy's global generator (TF:431-440)."""
    from sklearn.utils import shuffle  # here: it imports scipy

    return shuffle(np.arange(n))


# --- in Python -------------------------------------------------------------------------------------------------------


def fit(
    examples: Sequence[str | Sequence[str]], labels: Sequence[str | float], task: str = "classification", **settings
) -> SavedRun:
    """Fine-tune on lists and return the run, with its methods `predict` and `save`.

    Args:
        examples: each one text (classification), two texts (entailment, similarity), or a context and its choices
            (multiple_choice).
        labels: one per example; for multiple_choice the number of the right choice, from 1, or its text. In a
            similarity task, numbers with more than two distinct values are scores.
        task: the form, one of these four.
        settings: of `Settings`: model_dir="demo/model", n_iter=3, lr=6.25e-5, ...

    Raises:
        InputError: as train.py does, for what the user can fix; "example" counts from 1.
    """
    folder, names = Path(tempfile.mkdtemp(prefix="fit_")), OWN_FIELDS[task]
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for example, label in zip(examples, labels, strict=True):
            texts = (example,) if isinstance(example, str) else tuple(example)
            record = dict(zip(names, texts, strict=False)) | {"label": label}
            if task == "multiple_choice":
                record["choices"] = texts[1:]
            elif len(texts) != len(names):
                raise InputError(f"{texts!r} is {len(texts)} texts; a {task} example has {len(names)}.")
            file.write(json.dumps(record, default=lambda value: value.item()) + "\n")  # NumPy's numbers
    folders = {name: str(folder / name) for name in ("log_dir", "save_dir", "submission_dir")}
    chosen = Settings(dataset="own", task=task, data_dir=str(folder), **folders | settings)
    with join_ranks() as ranks, closing(Run(chosen, ranks)) as run, Stop(ranks) as stop:
        run.train(stop)
    saved = open_run(Path(chosen.save_dir) / chosen.desc)
    weakref.finalize(saved, shutil.rmtree, folder, ignore_errors=True)  # the temporary files are removed with the run
    return saved
