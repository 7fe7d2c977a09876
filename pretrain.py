"""Pre-train the transformer on raw text (paper, section 4.1): `python pretrain.py --corpus FILE --model_dir DIR`.

The folder written has the authors' format: `python train.py --model_dir DIR` fine-tunes from it. With --init_from the
language model of another folder is adapted to the text. Read pre_train below from its first line to its last.
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("pretrain.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("PreTrainingFlags")  # before torch is loaded, which takes seconds

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from formats.authors import save_openai_model
from formats.files import InputError, copy_file, digests, make_output_folder, refuse_folders, sha256
from formats.folders import BPE_FILE, ENCODER_FILE, HPARAMS_FILE, LSTM_FILE, SHAPES_FILE, SHARDS, FolderSizes
from loss import TokenLoss, sequence_losses, token_mean
from model_pytorch import LMModel, TransformerModel
from opt import OpenAIAdam
from reading.corpus import open_tokens, prepare
from reading.encoding import describe_unknown
from reading.rows import Sequences
from reading.workers import n_cores
from running.checkpoint import checkpoints, only_writer
from running.command import exit_code
from running.figures import draw_perplexity
from running.lstm import replace_blocks, save_lstm
from running.processes import (
    Ranks,
    describe_device,
    peak_memory,
    pick_precision,
    restarted,
)
from running.settings import PreTrainingFlags, parse
from running.training import Plan, Run, run_processes, summary_writer
from text_utils import TextEncoder
from weights import copy_weights, open_transformer, parameter_files
from zero_shot import Probe, parse_probes, read_probes


def pre_train(settings: PreTrainingFlags, ranks: Ranks) -> LMModel:
    """Learn merges, tokenize, and train; return the language model. Raises InputError for what the user can fix."""
    # the network to start from, if there is one, and its tokenizer and sizes
    initial = None
    encoder = None
    sizes = None
    if settings.init_from is not None:
        initial, encoder, sizes = open_transformer(Path(settings.init_from))
    settings = completed(settings, sizes)
    make_folders(settings)

    # text -> tokens; the other processes find the first one's files
    with ranks.first_alone():
        if ranks.is_first:
            make_tokens(settings, encoder)
        encoder = TextEncoder(*vocabulary_of(settings))
        tokens, corpus_digest = open_tokens(settings.run_folder(), encoder.n_vocab)

    # tokens -> sequences, the last ones held out
    separator = newline_of(encoder) if settings.by_document else None
    sequences = Sequences(tokens, settings.n_ctx, separator)
    n_held_out = max(1, round(settings.valid_share * len(sequences)))
    n_train = len(sequences) - n_held_out
    held_out = np.arange(n_train, len(sequences))
    plan = Plan(n_train, settings.n_batch, settings.accumulate, ranks.size, settings.n_iter)
    check_plan(settings, plan, len(tokens))

    # the zero-shot examples of --probe; the other processes find the first one's cache
    n_positions = settings.n_ctx if sizes is None else sizes.n_positions
    with ranks.first_alone():
        probes = read_probes(settings.probe, encoder, n_positions, settings.probe_examples)

    # the network, with random weights or those to start from
    torch.manual_seed(settings.seed)
    model = build_network(settings, encoder.n_vocab, n_positions, initial)
    model.transformer.checkpoint_activations = settings.checkpoint_activations
    model.to(ranks.device)

    # its optimiser; --lr_warmup counts updates here, and the schedule takes a share of them
    warmup = settings.lr_warmup / plan.t_total
    schedule = {"schedule": "warmup_cosine", "warmup": warmup, "t_total": plan.t_total}
    optimizer = OpenAIAdam(model.parameters(), **settings.adam(), **schedule)
    optimizer.preallocate()

    # different dropout masks per process
    torch.manual_seed(settings.seed + ranks.rank)

    # with --resume from the newest checkpoint on (running/checkpoint.py)
    record = record_of(settings, encoder, plan, corpus_digest, ranks)
    run = Run(settings, plan, model, optimizer, record, ranks)
    measured = Measured(sequences, held_out, probes, encoder)
    if ranks.is_first:
        announce(run, sequences, encoder, n_held_out)

    # the loss of a batch, and how many tokens each sequence predicts
    token_loss = run.wrap(TokenLoss(model))
    n_next = sequences.lengths - 1

    with run:
        # what an adaptation starts from
        if settings.init_from is not None and run.n_updates == 0:
            figures = measured.figures(run)
            if ranks.is_first:
                print(f"before   {measured.shown(figures)}")

        # a run that was stopped while it was measured goes on with that
        if is_log_due(run):
            write_log(run, measured)

        for examples in run.updates(Orders(settings.seed, n_train, plan)):
            # forward and backward, a part of the sequences at a time
            optimizer.zero_grad()
            cost = 0.0
            for part in run.parts(examples):
                packing = sequences.packed(part, encoder.n_vocab).to(ranks.device)
                with run.autocast:
                    loss = run.weight(n_next, part) * token_loss(packing) / settings.accumulate
                loss.backward()
                cost = cost + loss.detach()

            # clip and step, in all processes alike; an update whose cost or gradients are not finite is not made
            cost = ranks.mean(cost)
            norm = optimizer.step(cost=cost)
            run.count(cost, norm, n_next[examples].sum())

            # measure, and write it to the log
            if is_log_due(run):
                write_log(run, measured)
    if ranks.is_first:
        draw_perplexity(settings.desc, run.logs, settings.log_file("png"))
    return model


# --- the steps of the page above -------------------------------------------------------------------------------------


def completed(settings: PreTrainingFlags, sizes: FolderSizes | None) -> PreTrainingFlags:
    """Return the settings with the sizes of --init_from, else the paper's. Raises InputError."""
    try:
        parse_probes(settings.probe)
        return settings.with_sizes_of(sizes)
    except ValueError as error:
        raise InputError(str(error)) from None


def make_folders(settings: PreTrainingFlags) -> None:
    """Make the folders of the output. Raises InputError for one that takes no files, or holds weights already."""
    if settings.tensorboard:
        summary_writer()  # refuses now if it is not installed
    model_dir = Path(settings.model_dir)
    run_folder = settings.run_folder()
    for folder in (model_dir, Path(settings.log_dir), run_folder):
        make_output_folder(folder)

    # what is written at the end
    names = [SHAPES_FILE, HPARAMS_FILE, *SHARDS]
    if settings.lstm_units is not None:
        names = [LSTM_FILE]
    refuse_folders([model_dir / name for name in names])
    refuse_folders([settings.log_file(suffix) for suffix in ("jsonl", "png")])

    # weights that are there are not overwritten, but by the run that was to write them
    is_begun = (settings.resume or restarted()) and checkpoints(run_folder)
    if not is_begun and (model_dir / names[0]).exists():
        raise InputError(f"{model_dir} holds weights already. Name another --model_dir.")


def vocabulary_of(settings: PreTrainingFlags) -> tuple[Path, Path]:
    """Return the two files of the vocabulary."""
    return Path(settings.model_dir) / ENCODER_FILE, Path(settings.model_dir) / BPE_FILE


def make_tokens(settings: PreTrainingFlags, encoder: TextEncoder | None) -> None:
    """Make the vocabulary and the tokens where they are missing.

    With torchrun the other processes wait for this, a day at most. Raises InputError.
    """
    # the vocabulary of --init_from, if there is one
    vocabulary = vocabulary_of(settings)
    if encoder is not None:
        for source, copy in zip(encoder.files, vocabulary, strict=True):
            if copy.exists() and sha256(copy) != sha256(source):
                raise InputError(
                    f"{copy} differs from {source}, the vocabulary of --init_from. Name another --model_dir."
                )
        # no copy differs: those that are missing are made
        for source, copy in zip(encoder.files, vocabulary, strict=True):
            if not copy.exists():
                copy_file(source, copy)

    # the tokens, and where there is none yet the vocabulary
    n_workers = settings.workers or n_cores()
    prepare(settings.corpus, vocabulary, settings.n_merges, settings.run_folder(), n_workers, settings.field)


def newline_of(encoder: TextEncoder) -> int:
    """Return the id of the newline token. Raises InputError when there is none."""
    newline = encoder.encoder.get("\n</w>")
    if newline is None:
        raise InputError(f"{encoder.files[0]} has no newline token: leave out --by_document.")
    return newline


def check_plan(settings: PreTrainingFlags, plan: Plan, n_tokens: int) -> None:
    """Raise InputError when the text makes too few updates."""
    if plan.t_total <= settings.lr_warmup:
        raise InputError(
            f"{' '.join(settings.corpus)}: {n_tokens:,} tokens make {max(plan.n_examples, 0)} sequences to train on "
            f"and {max(plan.t_total, 0)} updates, not more than --lr_warmup {settings.lr_warmup}. Give more text or "
            "--n_iter, or lower --lr_warmup, --n_ctx or --n_batch."
        )


def build_network(
    settings: PreTrainingFlags, n_vocab: int, n_positions: int, initial: TransformerModel | None
) -> LMModel:
    """Return the network to train, with the weights of `initial` or random ones."""
    model = LMModel(settings.config(), n_vocab + n_positions, n_positions)

    # the weights to start from
    if initial is not None:
        copy_weights(initial, model.transformer, n_vocab)
        return model

    # random weights: matrices were drawn from N(0, 0.02), as the paper says
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= settings.init_std / 0.02
    if settings.lstm_units is not None:
        replace_blocks(model.transformer, settings.lstm_units)
    return model


class Orders:
    """The order of the sequences in each epoch, which follows from its number; an update's are in the text's order."""

    def __init__(self, seed: int, n_train: int, plan: Plan):
        self.seed = seed
        self.n_train = n_train
        self.plan = plan

    def __getitem__(self, epoch: int) -> np.ndarray:
        generator = np.random.RandomState([self.seed, epoch])
        order = generator.permutation(self.n_train)

        # the last few, too few for an update, are left out; a line an update
        size = self.plan.update_size
        n_used = self.plan.per_epoch * size
        updates = order[:n_used].reshape(-1, size)
        return np.sort(updates, 1).ravel()


def record_of(settings: PreTrainingFlags, encoder: TextEncoder, plan: Plan, corpus_digest: str, ranks: Ranks) -> dict:
    """Return what settings.json holds of this run."""
    # the weights to start from are files that the run depends on
    weights = []
    if settings.init_from is not None:
        weights = parameter_files(Path(settings.init_from))
    return settings.fixed_on_resume() | {
        "precision": pick_precision(settings.precision, ranks.device),
        "n_vocab": encoder.n_vocab,
        "n_train": plan.n_examples,
        "t_total": plan.t_total,
        "n_processes": ranks.size,
        "digests": {"corpus": corpus_digest} | digests([*encoder.files, *weights]),
    }


def announce(run: Run, sequences: Sequences, encoder: TextEncoder, n_held_out: int) -> None:
    """Print device, tokens, network and plan."""
    settings = run.settings
    plan = run.plan
    print(f"device   {describe_device(run.precision, run.ranks)}")

    # the text, and what is unknown in it
    n_ctx = f"at most {settings.n_ctx}" if settings.by_document else f"{settings.n_ctx}"
    n_tokens = f"{len(sequences.tokens):,}, vocabulary {encoder.n_vocab:,}"
    print(f"tokens   {n_tokens}: {plan.n_examples:,} + {n_held_out} sequences of {n_ctx}")
    for line in describe_unknown([sequences.tokens], encoder):
        print(line)

    cfg = run.model.cfg
    network = f"{cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads"
    if settings.init_from is not None:
        network += f"; weights of {settings.init_from}"
    if settings.lstm_units is not None:
        network = f"an LSTM of {run.model.transformer.h[0].lstm.hidden_size} units, {cfg.n_embd} features"
    print(f"network  {network}")

    # a run that is resumed has less to do
    updates = f"{plan.t_total} updates of {plan.update_size} sequences"
    print(f"plan     {plan.n_iter} epochs, {updates}, {run.n_updates} of them done")


# --- what is measured at each log ------------------------------------------------------------------------------------


class Measured:
    """The perplexity of the held-out sequences and the zero-shot figures of the probes."""

    def __init__(self, sequences: Sequences, held_out: np.ndarray, probes: list[Probe], encoder: TextEncoder):
        self.sequences = sequences
        self.held_out = held_out
        self.probes = probes
        self.encoder = encoder

    @torch.no_grad()
    def figures(self, run: Run) -> dict[str, float]:
        """Return the figures by their names in the log. A signal may stop it between batches."""
        # each process computes its part of the held-out sequences
        ranks = run.ranks
        n_batch = run.settings.n_batch
        run.model.eval()
        n_own = math.ceil(len(self.held_out) / ranks.size)
        own = self.held_out[ranks.rank * n_own : (ranks.rank + 1) * n_own]
        costs = torch.full((n_own,), math.nan)
        for start in range(0, n_own, n_batch):
            batch = own[start : start + n_batch]
            if len(batch) > 0:
                packing = self.sequences.packed(batch, self.encoder.n_vocab).to(ranks.device)
                with run.autocast:
                    costs[start : start + len(batch)] = sequence_losses(run.model, packing).float().cpu()
            ranks.pause()

        # the mean over all tokens that are predicted
        n_next = torch.from_numpy(self.sequences.lengths[self.held_out] - 1)
        gathered = ranks.gather(costs)[: len(self.held_out)]
        cost = token_mean(gathered, n_next).item()
        figures = {"va_ppl": perplexity(cost)}

        # the first process answers the probes
        for probe in self.probes:
            value = math.nan
            if ranks.is_first:
                with run.autocast:
                    value = probe.measure(run.model, self.encoder)
            figures[probe.name] = ranks.gather(torch.tensor([value]))[0].item()
            ranks.pause()
        return figures

    def shown(self, figures: dict[str, float]) -> str:
        """Return the figures in words."""
        text = f"perplexity: held out {figures['va_ppl']:.3f}"
        if "tr_ppl" in figures:
            text = f"perplexity: train {figures['tr_ppl']:.3f}, held out {figures['va_ppl']:.3f}"
        if self.probes:
            text += "; " + ", ".join(f"{probe.name} {figures[probe.name]:.2f}" for probe in self.probes)
        return text


def perplexity(cost: float) -> float:
    """Return the perplexity of a mean cost. Raises FloatingPointError where training has diverged."""
    try:
        return math.exp(cost)
    except OverflowError:
        raise FloatingPointError(f"the cost is {cost:.0f}") from None


def is_log_due(run: Run) -> bool:
    """Return whether to measure: every --log_every updates, and after the last."""
    is_due = run.n_updates % run.settings.log_every == 0 or run.n_updates == run.plan.t_total
    return is_due and run.n_updates > run.n_updates_logged()


def write_log(run: Run, measured: Measured) -> None:
    """Write the perplexities, of training since the last log and of the held-out sequences, to the log."""
    run.settle()
    # each update weighs as many tokens as it predicted; 1.0 where all predicted equally many
    weights = np.array(run.sizes) / np.mean(run.sizes)
    training_cost = sum(weights * run.costs) / len(run.costs)
    figures = {"tr_ppl": perplexity(training_cost)} | measured.figures(run)
    run.write_log(figures, measured.shown(figures))


# --- the command -----------------------------------------------------------------------------------------------------


def tokenize(settings: PreTrainingFlags) -> None:
    """Make the vocabulary and the tokens only."""
    folder = settings.run_folder()
    for path in (Path(settings.model_dir), folder):
        make_output_folder(path)

    # the vocabulary of --init_from, if there is one
    encoder = None
    if settings.init_from is not None:
        _, encoder, _ = open_transformer(Path(settings.init_from))
    make_tokens(settings, encoder)

    # what was made
    n_vocab = TextEncoder(*vocabulary_of(settings)).n_vocab
    tokens, _ = open_tokens(folder, n_vocab)
    print(f"tokens   {len(tokens):,}, vocabulary {n_vocab:,}: {folder / 'tokens.bin'}")


def write_model(settings: PreTrainingFlags, model: LMModel) -> None:
    """Write the weights to the model folder."""
    folder = Path(settings.model_dir)
    if settings.lstm_units is not None:
        save_lstm(model, folder)
        return
    n_vocab = len(model.transformer.embed.weight) - model.transformer.n_ctx
    save_openai_model(model.transformer, n_vocab, folder, model.cfg.afn)


def run(settings: PreTrainingFlags) -> None:
    """Learn merges, tokenize, train and write the model folder. Raises InputError for what the user can fix."""
    if settings.tokenize_only:
        with only_writer(settings.run_folder(), Ranks()):
            tokenize(settings)
        return

    # train; the first process writes the model folder
    started = time.monotonic()
    with run_processes(settings) as ranks:
        model = pre_train(settings, ranks)
        if ranks.is_first:
            write_model(settings, model)

    # one process reports for all
    if not ranks.is_first:
        return
    seconds = time.monotonic() - started
    print(f"done in {seconds:.0f} s, {peak_memory(ranks.device)}; the model is in {settings.model_dir}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(PreTrainingFlags, argv)
    return exit_code("pretrain.py", lambda: run(settings), "--resume goes on")


if __name__ == "__main__":
    sys.exit(main())
