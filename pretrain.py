"""Pre-train the transformer on raw text (paper, section 4.1): `python pretrain.py --corpus FILE --model_dir DIR`.

The folder written has the authors' format: `python train.py --model_dir DIR` fine-tunes from it. With --init_from the
language model of another folder is adapted to the text.
"""

import math
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from formats.authors import BPE_FILE, ENCODER_FILE, FolderSizes, save_openai_model
from formats.files import InputError, copy_file, digests, make_output_folder, sha256
from loss import sequence_losses, token_mean
from model_pytorch import ACTIVATIONS, DEFAULT_CONFIG, LMModel, TransformerModel
from opt import OpenAIAdam
from reading.corpus import open_tokens, prepare
from reading.rows import Sequences
from reading.workers import n_cores
from running.command import exit_code
from running.processes import (
    Ranks,
    Stop,
    autocast,
    describe_device,
    join_ranks,
    keep_freed_memory,
    make_deterministic,
    peak_memory,
    pick_precision,
    restarted,
)
from running.results import draw_perplexity
from running.settings import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    SIZES,
    AdamSettings,
    MachineSettings,
    NetworkSettings,
    check_name,
    fixed_on_resume,
    number,
    parse,
    required,
    setting,
)
from running.training import Speed, Training, count_operations, matrix_rate, summary_writer
from speed.packing import Packing
from text_utils import TextEncoder
from weights import copy_weights, open_transformer, parameter_files
from zero_shot import parse_probes, read_probes

N_CTX = 512  # tokens in a sequence, as the paper has them


@dataclass(frozen=True, kw_only=True)
class Settings(MachineSettings, NetworkSettings, AdamSettings):
    """The flags; the defaults are the paper's (FIDELITY 104)."""

    corpus: str | list[str] = required(
        "text in UTF-8, a document a line: files, folders and globs, plain or .gz; read in the order given, those of a "
        "folder or glob by path",
        nargs="+",
    )
    model_dir: str = required("folder to write, in the authors' format; a vocabulary in it is used")
    init_from: str | None = setting(
        None, "folder of a model or of a fine-tuned run to start from, with its vocabulary; default: random weights"
    )
    desc: str = setting("pretrain", "name of the run, in the names of its files")
    log_dir: str = setting("log/", "folder for <desc>.jsonl (log) and <desc>.png (curves)")
    save_dir: str = setting("save/", "folder for <desc>/ with the tokens and the checkpoints")
    seed: int = setting(42, "of all random numbers", number(int, 0, 2**32 - 1))
    n_merges: int = setting(40000, "byte-pair merges to learn", COUNT)
    workers: int | None = setting(None, "processes that read the corpus; default: one a CPU core", COUNT)
    tokenize_only: bool = setting(False, "stop when the vocabulary and the tokens are made")
    n_ctx: int | None = setting(
        None, f"tokens in a sequence; default: as many as --init_from has positions, else {N_CTX}", number(int, 2)
    )
    by_document: bool = setting(
        False,
        "a sequence is one document from its beginning, at most --n_ctx tokens of it; default: windows of the text",
    )
    n_iter: int = setting(100, "epochs", COUNT)
    n_batch: int = setting(64, "sequences per device and batch", COUNT)
    valid_share: float = setting(0.01, "fraction of the sequences, at the end of the text, to hold out", FRACTION)
    init_std: float = setting(
        0.02, "standard deviation of the initial matrices; small networks learn sooner from 0.05 to 0.1", NOT_NEGATIVE
    )
    lr: float = setting(2.5e-4, "peak learning rate", NOT_NEGATIVE)
    lr_warmup: int = setting(2000, "updates spent warming up, before the cosine to 0", number(int, 0))
    log_every: int = setting(500, "updates between two measurements of the perplexity", COUNT)
    checkpoint_every: int = setting(
        1000, "updates between two checkpoints in --save_dir; 0: only at the end of each epoch", number(int, 0)
    )
    probe: str | None = setting(
        None, "zero-shot figures of each log: HEURISTIC:DATASET:FOLDER,... such as choice:rocstories:demo/data"
    )
    probe_examples: int = setting(200, "validation examples of each probe, at most", COUNT)
    n_embd: int | None = setting(None, f"features; default: as in --init_from, else {DEFAULT_CONFIG.n_embd}", COUNT)
    n_head: int | None = setting(
        None, f"attention heads; default: as in --init_from, else {DEFAULT_CONFIG.n_head}", COUNT
    )
    n_layer: int | None = setting(None, f"blocks; default: as in --init_from, else {DEFAULT_CONFIG.n_layer}", COUNT)
    afn: str | None = setting(
        None, f"activation of the MLP; default: as in --init_from, else {DEFAULT_CONFIG.afn}", choices=ACTIVATIONS
    )

    def __post_init__(self):
        """Write the name of a single file plainly. Raises ValueError for settings that contradict each other."""
        if not isinstance(self.corpus, str) and len(self.corpus) == 1:
            object.__setattr__(self, "corpus", self.corpus[0])
        check_name(self.desc)
        parse_probes(self.probe)
        if self.init_from is None:
            self.config()

    def completed(self, sizes: FolderSizes | None) -> "Settings":
        """Return the settings with the sizes that were left out: those of --init_from, else the paper's.

        Raises InputError where a flag and --init_from differ.
        """
        if sizes is None:
            names = {name: getattr(DEFAULT_CONFIG, name) for name in ("n_embd", "n_head", "n_layer")}
            given = {name: getattr(self, name) for name in names}
            return replace(self, n_ctx=self.n_ctx or N_CTX, **{n: given[n] or names[n] for n in names})
        for name in SIZES:
            if getattr(self, name) not in (None, getattr(sizes, name)):
                raise InputError(
                    f"{self.init_from} has {name} {getattr(sizes, name)}, not {getattr(self, name)}. "
                    f"Leave out --{name}."
                )
        if self.n_ctx and self.n_ctx > sizes.n_positions:
            raise InputError(
                f"{self.init_from} has {sizes.n_positions} positions, fewer than --n_ctx {self.n_ctx}. Lower --n_ctx."
            )
        n_ctx = self.n_ctx or sizes.n_positions
        return replace(self, n_ctx=n_ctx, **{name: getattr(sizes, name) for name in SIZES})

    def corpus_names(self) -> list[str]:
        """Return --corpus as a list."""
        return [self.corpus] if isinstance(self.corpus, str) else self.corpus


def vocabulary_of(settings: Settings) -> tuple[Path, Path]:
    """Return the two files of the vocabulary."""
    return Path(settings.model_dir) / ENCODER_FILE, Path(settings.model_dir) / BPE_FILE


def keep_vocabulary(encoder: TextEncoder, vocabulary: tuple[Path, Path]) -> None:
    """Copy the vocabulary of --init_from to the model folder. Raises InputError where there is another one."""
    pairs = list(zip(encoder.files, vocabulary, strict=True))
    for source, copy in pairs:
        if copy.exists() and sha256(copy) != sha256(source):
            raise InputError(f"{copy} differs from {source}, the vocabulary of --init_from. Name another --model_dir.")
    for source, copy in pairs:
        if not copy.exists():
            copy_file(source, copy)


def prepare_tokens(settings: Settings, encoder: TextEncoder | None) -> None:
    """Make the vocabulary and the tokens where they are missing.

    The vocabulary is that of an encoder, if one is given. With torchrun the other processes wait for this, a day at
    most.
    """
    vocabulary = vocabulary_of(settings)
    if encoder is not None:
        keep_vocabulary(encoder, vocabulary)
    folder, workers = Path(settings.save_dir) / settings.desc, settings.workers or n_cores()
    prepare(settings.corpus_names(), vocabulary, settings.n_merges, folder, workers)


class PreTraining(nn.Module):
    """A packed batch -> the mean cost of its next tokens, in one module as DistributedDataParallel needs."""

    def __init__(self, model: LMModel):
        super().__init__()
        self.model = model

    def forward(self, packing: Packing) -> Tensor:
        return token_mean(sequence_losses(self.model, packing), packing.n_next())


class Run:
    """A pre-training run: everything up to its first update, and then train()."""

    def __init__(self, settings: Settings, ranks: Ranks):
        if settings.tensorboard:
            summary_writer()  # refuses now what would fail after the preparation
        initial, encoder, sizes = open_transformer(settings.init_from) if settings.init_from else (None,) * 3
        self.settings = settings = settings.completed(sizes)
        self.ranks = ranks
        self.model_dir, self.log_dir = Path(settings.model_dir), Path(settings.log_dir)
        self.save_dir = Path(settings.save_dir) / settings.desc
        for folder in (self.model_dir, self.log_dir, self.save_dir):
            make_output_folder(folder)
        begun = (settings.resume or restarted()) and any(self.save_dir.glob("checkpoint_*"))
        if not begun and (self.model_dir / "params_0.npy").exists():
            raise InputError(f"{self.model_dir} holds weights already. Name another --model_dir.")

        # text -> sequences of ids; the other processes find the first one's files
        with ranks.first_alone():
            tokens, self.encoder, corpus_digests = self.read_tokens(encoder)
        self.n_vocab = len(self.encoder.encoder)
        newline = self.encoder.encoder.get("\n</w>") if settings.by_document else None
        if settings.by_document and newline is None:
            raise InputError(f"{self.encoder.files[0]} has no newline token: leave out --by_document.")
        self.sequences = Sequences(tokens, settings.n_ctx, newline)
        n_held_out = max(1, round(settings.valid_share * len(self.sequences)))
        self.n_train = n_train = len(self.sequences) - n_held_out
        n_update = settings.n_batch * settings.accumulate * ranks.size
        per_epoch = n_train // n_update
        t_total = per_epoch * settings.n_iter
        if t_total <= settings.lr_warmup:
            raise InputError(
                f"{' '.join(settings.corpus_names())}: {len(tokens):,} tokens make {max(n_train, 0)} sequences to "
                f"train on and {max(t_total, 0)} updates, not more than --lr_warmup {settings.lr_warmup}. Give more "
                "text or --n_iter, or lower --lr_warmup, --n_ctx or --n_batch."
            )

        # what is measured at each log beside the perplexity
        n_positions = sizes.n_positions if sizes else settings.n_ctx
        with ranks.first_alone():  # the others then find its cache
            self.probes = read_probes(settings.probe, self.encoder, n_positions, settings.probe_examples)

        # the network and its optimiser
        torch.manual_seed(settings.seed)
        self.cfg = settings.config()
        self.model = self.new_model(n_positions, initial).to(ranks.device)
        self.model.transformer.checkpoint_activations = settings.checkpoint_activations
        schedule = {"schedule": "warmup_cosine", "warmup": settings.lr_warmup / t_total, "t_total": t_total}
        optimizer = OpenAIAdam(self.model.parameters(), **settings.adam(), **schedule)
        optimizer.preallocate()
        torch.manual_seed(settings.seed + ranks.rank)  # different dropout masks per process

        # the training
        self.precision = precision = pick_precision(settings.precision, ranks.device)
        self.autocast = autocast(precision, ranks.device)
        weights = parameter_files(settings.init_from) if settings.init_from else []
        shared = {"precision": precision, "n_vocab": self.n_vocab, "t_total": t_total, "n_processes": ranks.size}
        self.training = Training(
            model=self.model,
            objective=PreTraining(self.model),
            optimizer=optimizer,
            autocast=self.autocast,
            make_batch=lambda examples: (self.packed(examples),),
            epoch_order=lambda epoch: self.order(epoch, n_train, n_update),
            measure=self.measure,
            is_log_due=lambda updates: updates % settings.log_every == 0 or updates == t_total,
            log_format=self.log_format("{n_epochs} {n_updates} perplexity: train {tr_ppl:.3f}, held out {va_ppl:.3f}"),
            n_batch=settings.n_batch,
            accumulate=settings.accumulate,
            n_iter=settings.n_iter,
            per_epoch=per_epoch,
            folder=self.save_dir,
            settings=fixed_on_resume(settings) | shared | {"digests": corpus_digests | digests(weights)},
            checkpoint_every=settings.checkpoint_every,
            resume=settings.resume,
            ranks=ranks,
        )
        if ranks.is_first:
            plan = f"{settings.n_iter} epochs, {t_total} updates of {n_update} sequences"
            n_ctx = f"at most {settings.n_ctx}" if settings.by_document else settings.n_ctx
            held_out = f"{n_train:,} + {n_held_out} sequences of {n_ctx}"
            print(f"device   {describe_device(precision, ranks)}")
            print(f"tokens   {len(tokens):,}, vocabulary {self.n_vocab:,}: {held_out}")
            source = f"; weights of {settings.init_from}" if settings.init_from else ""
            print(f"network  {self.cfg.n_layer} blocks, {self.cfg.n_embd} features, {self.cfg.n_head} heads{source}")
            print(f"plan     {plan}, {self.training.updates} of them done")
        self.training.open_log(self.log_dir / f"{settings.desc}.jsonl", settings.tensorboard, n_train=n_train)

    def new_model(self, n_positions: int, initial: TransformerModel | None) -> LMModel:
        """Return the network to train, with the weights of `initial` or random ones; a subclass may build another."""
        model = LMModel(self.cfg, self.n_vocab + n_positions, n_positions)
        if initial is not None:
            copy_weights(initial, model.transformer, self.n_vocab)
        else:
            with torch.no_grad():
                for matrix in (p for p in model.parameters() if p.dim() > 1):
                    matrix *= self.settings.init_std / 0.02  # they are initialised N(0, 0.02), as the paper says
        return model

    def read_tokens(self, encoder: TextEncoder | None) -> tuple[np.ndarray, TextEncoder, dict[str, str]]:
        """Return the ids of the corpus, their tokenizer, and the digests of both; the first process makes them."""
        vocabulary = vocabulary_of(self.settings)
        if self.ranks.is_first:
            prepare_tokens(self.settings, encoder)
        encoder = TextEncoder(*vocabulary)
        tokens, digest = open_tokens(self.save_dir, len(encoder.encoder))
        names = self.settings.corpus_names()
        name = Path(names[0]).name if len(names) == 1 else "corpus"
        return tokens, encoder, {name: digest} | digests(vocabulary)

    def order(self, epoch: int, n_train: int, n_update: int) -> np.ndarray:
        """Return an epoch's order, which follows from its number; those of one update are in the order of the text."""
        order = np.random.RandomState([self.settings.seed, epoch]).permutation(n_train)
        return np.sort(order[: n_train // n_update * n_update].reshape(-1, n_update), 1).ravel()

    def packed(self, which: np.ndarray) -> Packing:
        """Return some sequences as the model's input."""
        return self.sequences.packed(which, self.n_vocab, self.ranks.device)

    @torch.no_grad()
    def measure(self, training_cost: float, pause) -> dict[str, float]:
        """Return the perplexity of training since the last log, and that of the held-out sequences."""
        n_batch, ranks = self.settings.n_batch, self.ranks
        self.model.eval()
        held_out = np.arange(self.n_train, len(self.sequences))
        n_own = math.ceil(len(held_out) / ranks.size)
        own = held_out[ranks.rank * n_own : (ranks.rank + 1) * n_own]
        costs = torch.full((n_own,), math.nan)
        for start in range(0, n_own, n_batch):
            batch = own[start : start + n_batch]
            if len(batch):
                with self.autocast:
                    costs[start : start + len(batch)] = sequence_losses(self.model, self.packed(batch)).float().cpu()
            pause()
        n_next = torch.from_numpy(self.sequences.lengths[held_out] - 1)
        cost = token_mean(ranks.gather(costs)[: len(held_out)], n_next).item()
        figures = {"tr_ppl": math.exp(training_cost), "va_ppl": math.exp(cost)}
        for probe in self.probes:
            with self.autocast:
                value = probe.measure(self.model, self.encoder) if ranks.is_first else math.nan
            figures[probe.name] = ranks.gather(torch.tensor([value]))[0].item()
            pause()
        return figures

    def log_format(self, text: str) -> str:
        """Return the format string of the line printed at each log, given that of the perplexities."""
        probes = ", ".join(f"{probe.name} {{{probe.name}:.2f}}" for probe in self.probes)
        return text + (probes and f"; {probes}")

    def train(self, stop: Stop) -> None:
        """Make the updates that are left, with their measurements and checkpoints."""
        settings, lengths = self.settings, self.sequences.lengths
        if settings.init_from and not self.training.updates:
            before = self.measure(0.0, stop.here)
            if self.ranks.is_first:
                print(f"before   {self.log_format('perplexity: held out {va_ppl:.3f}').format(**before)}")
        own = settings.n_batch * settings.accumulate  # sequences of this process in an update
        n, n_pairs = lengths.mean(), (lengths * (lengths + 1) / 2).mean()  # of a sequence, on average
        work = 3 * count_operations(self.cfg, n, n_pairs, n - 1, len(self.model.transformer.embed.weight))
        rate = partial(matrix_rate, self.precision, self.ranks.device)
        self.training.run(stop, Speed("tokens", round(own * self.ranks.size * n), round(own * work), rate))

    def close(self) -> None:
        """Close the log."""
        self.training.close()


def tokenize(settings: Settings) -> None:
    """Make the vocabulary and the tokens, and print how many there are."""
    folder = Path(settings.save_dir) / settings.desc
    for path in (Path(settings.model_dir), folder):
        make_output_folder(path)
    encoder = open_transformer(settings.init_from)[1] if settings.init_from else None
    prepare_tokens(settings, encoder)
    n_vocab = len(TextEncoder(*vocabulary_of(settings)).encoder)
    print(f"tokens   {len(open_tokens(folder, n_vocab)[0]):,}, vocabulary {n_vocab:,}: {folder / 'tokens.bin'}")


def run(settings: Settings) -> None:
    """Learn merges, tokenize, train and write the model folder. Raises InputError for what the user can fix."""
    if settings.tokenize_only:
        return tokenize(settings)
    started = time.monotonic()
    keep_freed_memory()
    if settings.deterministic:
        make_deterministic()
    with join_ranks() as ranks:
        pre_training = Run(settings, ranks)
        with closing(pre_training), Stop(ranks) as stop:
            pre_training.train(stop)
        if not ranks.is_first:
            return
        transformer, n_vocab = pre_training.model.transformer, pre_training.n_vocab
        save_openai_model(transformer, n_vocab, pre_training.model_dir, pre_training.cfg.afn)
        draw_perplexity(pre_training.log_dir / f"{settings.desc}.jsonl")
        seconds = time.monotonic() - started
        print(f"done in {seconds:.0f} s, {peak_memory(ranks.device)}; the model is in {pre_training.model_dir}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(Settings, "Pre-train the transformer on raw text; the defaults are the paper's.", argv)
    return exit_code("pretrain.py", lambda: run(settings), "--resume goes on")


if __name__ == "__main__":
    sys.exit(main())
