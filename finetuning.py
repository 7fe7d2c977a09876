"""A fine-tuning run: from a task and settings to trained parameters and predictions."""

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from checkpoint import load_parameters
from datasets import TASKS, Task
from inference import evaluate, predict
from inputs import FORMS, N_SPECIAL, Rows, encode_cached, special_tokens
from loss import packed_losses
from model_pytorch import Config, DoubleHeadModel
from opt import SCHEDULES, OpenAIAdam
from packing import Packing
from processes import Ranks, Stop, autocast, describe_device, pick_precision
from settings import (
    COUNT,
    NOT_NEGATIVE,
    AdamSettings,
    MachineSettings,
    NetworkSettings,
    check_name,
    fixed_on_resume,
    number,
    setting,
)
from shards import BPE_FILE, ENCODER_FILE, FolderSizes, load_openai_pretrained_model, read_sizes
from text_utils import TextEncoder
from training import Training
from utils import InputError, digests, find, make_output_folder, replacing


@dataclass(frozen=True, kw_only=True)
class Settings(MachineSettings, NetworkSettings, AdamSettings):
    """The flags of train.py; the defaults are the paper's and the authors' (FIDELITY 74)."""

    dataset: str = setting("rocstories", "task to fine-tune on", choices=TASKS)
    desc: str | None = setting(None, "name of the run, in the names of its files; default: the dataset's name")
    data_dir: str = setting("data/", "folder of the task's files")
    model_dir: str = setting("model/", "folder of the pre-trained model in the authors' format")
    encoder_path: str | None = setting(None, f"vocabulary; default: {ENCODER_FILE} in --model_dir")
    bpe_path: str | None = setting(None, f"byte-pair merges; default: {BPE_FILE} in --model_dir")
    log_dir: str = setting("log/", "folder for <desc>.jsonl (log), .tsv (predictions) and .png (curves)")
    save_dir: str = setting("save/", "folder for <desc>/: best_params, settings.json, vocabulary, checkpoints")
    submission_dir: str = setting("submission/", "folder for the predictions to hand in")
    submit: bool = setting(False, "predict the test set with the parameters best on valid")
    analysis: bool = setting(False, "print valid and test results and draw the curves; needs --submit")
    verify: bool = setting(False, "check that the files of --model_dir are the authors', and stop")
    seed: int = setting(42, "of all random numbers", number(int, 0, 2**32 - 1))
    n_iter: int = setting(3, "epochs", COUNT)
    n_batch: int = setting(8, "examples per device and batch; the paper's updates have 32", COUNT)
    share_context: bool = setting(False, "train as predicting does: compute the choices' common prefix once")
    n_valid: int = setting(374, "examples held out for validation; the rest is trained on", COUNT)
    n_ctx: int = setting(512, "tokens of the longest row allowed", number(int, 6))
    n_transfer: int = setting(12, "blocks to load; 0: only the embeddings; -1: nothing", number(int, -1))
    lm_coef: float = setting(0.5, "weight of the auxiliary language-model loss; 0: none", NOT_NEGATIVE)
    lr_schedule: str = setting("warmup_linear", "course of the learning rate", choices=SCHEDULES)
    lr_warmup: float = setting(0.002, "fraction of all updates spent warming up", number(float, 0, 1))

    def __post_init__(self):
        """Fill in the paths that follow from others. Raises ValueError for settings that contradict each other."""
        model_dir = find(self.model_dir)
        object.__setattr__(self, "desc", self.dataset if self.desc is None else self.desc)
        object.__setattr__(self, "encoder_path", self.encoder_path or str(model_dir / ENCODER_FILE))
        object.__setattr__(self, "bpe_path", self.bpe_path or str(model_dir / BPE_FILE))
        check_name(self.desc)
        if self.analysis and not self.submit:
            raise ValueError("--analysis reads the predictions that --submit writes: give both")


# --- what a run trains -----------------------------------------------------------------------------------------------


def network(settings: Settings, n_vocab: int) -> tuple[Config, FolderSizes | None]:
    """Return the network's settings, from the flags or else the model folder, and the folder's sizes.

    Raises InputError when flags, vocabulary and weights contradict each other.
    """
    model_dir = find(settings.model_dir)
    loads = settings.n_transfer >= 0
    sizes = read_sizes(model_dir) if loads or (model_dir / "params_shapes.json").exists() else None
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

    task: Task
    cfg: Config
    n_vocab: int
    n_ctx: int  # tokens of the longest row
    splits: tuple[Rows, Rows, Rows]  # train, valid, test


def prepare(settings: Settings, ranks: Ranks) -> Prepared:
    """Read the task's files, the vocabulary and the sizes, and encode the texts. Raises InputError."""
    task, vocabulary = TASKS[settings.dataset], (settings.encoder_path, settings.bpe_path)
    encoder = TextEncoder(*vocabulary)
    n_vocab = len(encoder.encoder)
    cfg, sizes = network(settings, n_vocab)
    data_dir = find(settings.data_dir)
    splits = task.read(data_dir, settings.n_valid)
    with ranks.first_alone():  # the others then find its cache
        encoded = encode_cached(splits, encoder, data_dir, vocabulary)

    limit = settings.n_ctx if settings.n_transfer < 0 else min(settings.n_ctx, sizes.n_positions)
    rows = [
        Rows(texts, split.labels, task.form, task.cut, n_vocab, limit)
        for texts, split in zip(encoded, splits, strict=True)
    ]
    return Prepared(task, cfg, n_vocab, max(split.longest() for split in rows), tuple(rows))


def build_model(prepared: Prepared, n_transfer: int, model_dir: str) -> tuple[DoubleHeadModel, int | None]:
    """Return the network with its weights, and how many blocks were loaded; None for none and no embeddings."""
    n_vocab, n_ctx, cfg, task = prepared.n_vocab, prepared.n_ctx, prepared.cfg, prepared.task
    head = FORMS[task.form].head(len(task.labels))
    model = DoubleHeadModel(cfg, special_tokens(n_vocab).classify, head, n_vocab + N_SPECIAL + n_ctx, n_ctx)
    if n_transfer < 0:
        np.random.randn(N_SPECIAL, cfg.n_embd)  # as the loader does, so that the epochs' order is the same
        return model, None
    return model, load_openai_pretrained_model(model.transformer, n_ctx, N_SPECIAL, n_transfer, model_dir)


class FineTuning(nn.Module):
    """Packed rows and labels -> the mean training loss of a batch, in one module as DistributedDataParallel needs."""

    def __init__(self, model: DoubleHeadModel, lm_coef: float):
        super().__init__()
        self.model, self.lm_coef = model, lm_coef

    def forward(self, packing: Packing, y: Tensor) -> Tensor:
        task, lm = packed_losses(self.model, packing, y, self.lm_coef)
        return task.mean() if lm is None else task.mean() + self.lm_coef * lm.mean()


def is_log_due(updates: int, per_epoch: int) -> bool:
    """Return whether to evaluate: at each epoch's end, in the first also after 1000, 2000, 4000, ... (TF:431-440)."""
    thousands, rest = divmod(updates, 1000)
    return updates > 0 and (
        updates % per_epoch == 0 or (updates < per_epoch and not rest and thousands.bit_count() == 1)
    )


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """A fine-tuning run: everything up to its first update, and then train() and predict()."""

    def __init__(self, settings: Settings, ranks: Ranks):
        self.settings, self.ranks = settings, ranks
        self.log_dir, self.save_dir = Path(settings.log_dir), Path(settings.save_dir) / settings.desc
        self.submission_dir = Path(settings.submission_dir)
        for folder in [self.log_dir, self.save_dir] + [self.submission_dir] * settings.submit:
            make_output_folder(folder)

        # random numbers in the authors' order: the special rows, then the epochs' shuffles (FIDELITY 78)
        random.seed(settings.seed)
        np.random.seed(settings.seed)
        torch.manual_seed(settings.seed)
        self.prepared = prepared = prepare(settings, ranks)
        n_train = len(prepared.splits[0])
        n_update = settings.n_batch * settings.accumulate * ranks.size
        if n_train < n_update:
            raise InputError(
                f"--n_batch {settings.n_batch} x --accumulate {settings.accumulate} x {ranks.size} processes is more "
                f"than the {n_train} examples to train on. Lower one of them or --n_valid."
            )
        self.model, n_loaded = build_model(prepared, settings.n_transfer, settings.model_dir)
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
        metric = prepared.task.metric
        self.training = Training(
            model=self.model,
            objective=FineTuning(self.model, settings.lm_coef),
            optimizer=optimizer,
            autocast=self.autocast,
            make_batch=lambda examples: prepared.splits[0].packed(examples, settings.share_context, ranks.device),
            epoch_order=orders.__getitem__,
            measure=self.measure,
            is_log_due=lambda updates: is_log_due(updates, per_epoch),
            best_by=f"va_{metric}",
            log_format=f"{{n_epochs}} {{n_updates}} train cost {{tr_cost:.3f}} {metric} {{tr_{metric}:.2f}}  "
            f"valid cost {{va_cost:.3f}} {metric} {{va_{metric}:.2f}}",
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

    def all_settings(self, precision: str, t_total: int) -> dict:
        """Return what a saved run tells of itself, and a resumed one must share with its checkpoint."""
        settings, prepared, task = self.settings, self.prepared, self.prepared.task
        files = [find(settings.data_dir) / name for name in task.files]
        files += [Path(settings.encoder_path), Path(settings.bpe_path)]
        if settings.n_transfer >= 0:
            files += sorted(find(settings.model_dir).glob("params_?.npy"))
        return (
            fixed_on_resume(settings)
            | dataclasses.asdict(prepared.cfg)
            | {
                "precision": precision,
                "form": task.form,
                "cut": task.cut,
                "labels": list(task.labels),
                "n_ctx": prepared.n_ctx,
                "n_ctx_allowed": prepared.splits[0].n_ctx,
                "n_vocab": prepared.n_vocab,
                "n_special": N_SPECIAL,
                "t_total": t_total,
                "n_processes": self.ranks.size,
                "digests": digests(files),
            }
        )

    def announce(self, precision: str, n_loaded: int | None, n_update: int) -> None:
        """Print what is going to happen where."""
        settings, prepared, cfg, training = self.settings, self.prepared, self.prepared.cfg, self.training
        n_train, n_valid, n_test = map(len, prepared.splits)
        source = "nothing" if n_loaded is None else f"embeddings and {n_loaded} blocks from {settings.model_dir}"
        plan = f"{settings.n_iter} epochs, {training.t_total} updates of {n_update} examples"
        print(f"device   {describe_device(precision, self.ranks)}")
        print(f"examples {n_train} train, {n_valid} valid, {n_test} test, n_ctx {prepared.n_ctx}")
        print(f"network  {cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads; loaded {source}")
        print(f"plan     {plan}" + f", {training.updates} of them done" * bool(training.updates))

    def begin_files(self) -> None:
        """Begin the log and keep the vocabulary with the run; an earlier run's predictions and picture are removed."""
        for path in [self.log_dir / f"{self.settings.desc}.tsv", self.log_dir / f"{self.settings.desc}.png"]:
            path.unlink(missing_ok=True)
        vocabulary = {ENCODER_FILE: self.settings.encoder_path, BPE_FILE: self.settings.bpe_path}
        for name, source in vocabulary.items():
            with replacing(self.save_dir / name) as file:
                file.write(Path(source).read_bytes())
        self.training.open_log(self.log_dir / f"{self.settings.desc}.jsonl")

    def measure(self, _, pause) -> dict[str, float]:
        """Return cost and metric on the first n_valid examples of train, and on valid."""
        settings, (train, valid, _), metric = self.settings, self.prepared.splits, self.prepared.task.metric
        figures = {}
        with self.autocast:
            for name, rows in (("tr", train.first(settings.n_valid)), ("va", valid)):
                label = {"tr": "train rows", "va": "valid rows"}[name]
                cost, value = evaluate(self.model, rows, metric, settings.n_batch, self.ranks, label, pause)
                figures |= {f"{name}_cost": cost, f"{name}_{metric}": value}
        return {key: figures[key] for key in ("tr_cost", "va_cost", f"tr_{metric}", f"va_{metric}")}

    def train(self, stop: Stop) -> None:
        """Make the updates that are left, with their evaluations and checkpoints."""
        self.training.run(stop)

    def predict(self, stop: Stop) -> None:
        """Predict the test set with the best parameters; write it for the analysis and to be handed in."""
        self.ranks.wait()  # for the first process to have written them
        load_parameters(self.save_dir / "best_params", self.model)
        task, n_batch = self.prepared.task, self.settings.n_batch
        with self.autocast:
            logits = predict(self.model, self.prepared.splits[2], n_batch, self.ranks, "test rows", stop.here)
        lines = "".join(f"{i}\t{task.labels[label]}\n" for i, label in enumerate(logits.argmax(1).tolist()))
        if self.ranks.is_first:
            for path in (self.submission_dir / task.submission, self.log_dir / f"{self.settings.desc}.tsv"):
                with replacing(path) as file:
                    file.write(f"index\tprediction\n{lines}".encode())

    def close(self) -> None:
        """Close the log."""
        self.training.close()


def shuffled(n: int) -> np.ndarray:
    """Return 0 .. n - 1 in an order from NumPy's global stream (TF:431-440)."""
    from sklearn.utils import shuffle  # here: it imports scipy

    return shuffle(np.arange(n))
