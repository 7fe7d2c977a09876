"""Pre-train the transformer on raw text (paper, section 4.1): `python pretrain.py --corpus FILE --model_dir DIR`.

The folder written has the authors' format: `python train.py --model_dir DIR` fine-tunes from it.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm

from analysis import draw_perplexity
from checkpoint import remove_checkpoints, restore, save_checkpoint
from loss import lm_losses
from model_pytorch import DEFAULT_CONFIG, Config, LMModel, Packing, save_openai_model
from text_utils import TextEncoder, split_words, word_splitter
from train import (
    COUNT,
    SHARE,
    WEIGHT,
    HelpFormatter,
    add_machine_flags,
    add_network_flags,
    add_optimizer_flags,
    find_checkpoint,
    fixed_settings,
    make_optimizer,
    number,
    pick_precision,
)
from training import (
    Ranks,
    Stop,
    Stopped,
    describe_device,
    join_ranks,
    keep_freed_memory,
    make_deterministic,
    make_parts,
    peak_memory,
    provenance,
    restarted,
    update,
)
from utils import InputError, ResultLogger, digests, exit_code, make_output_folder, replacing, sha256, write_json

LINES_PER_STEP = 2000  # lines tokenized between two notes of progress


# --- text -> merges --------------------------------------------------------------------------------------------------


def read_lines(corpus: Path) -> Iterator[str]:
    """Yield the lines of a text file and show its progress. Raises InputError when it is no UTF-8 text."""
    try:
        size = corpus.stat().st_size
        with open(corpus, "rb") as file, tqdm(total=size, unit="B", unit_scale=True, ncols=100, leave=False) as bar:
            for number_, line in enumerate(file, 1):
                bar.update(len(line))
                try:
                    yield line.decode("utf-8-sig" if number_ == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise InputError(f"{corpus}, line {number_}: not UTF-8. Convert the file: iconv -t utf-8") from None
    except OSError as error:
        raise InputError(f"{corpus} cannot be read ({error.strerror}). --corpus names a text file.") from None


def learn_vocabulary(corpus: Path, n_merges: int, encoder_path: Path, bpe_path: Path) -> None:
    """Learn byte-pair merges inside the words of a text and write them as the authors' two files.

    Ids are laid out as theirs: the unknown token, characters, characters that end a word, merges, the newline.
    Raises InputError when the text holds no words.
    """
    nlp = word_splitter()
    lines = [" ".join(split_words(nlp, line)) for line in read_lines(corpus)]
    characters = sorted(set("".join(lines)) - {" "})
    if not characters:
        raise InputError(f"{corpus} holds no words. --corpus names a text file to learn from.")
    # the alphabet is given, so that ids, and with them ties between merges, do not depend on the order of a hash table
    alphabet = ["<unk>", *characters, *(c + "</w>" for c in characters)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + n_merges,
        special_tokens=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    encoder = dict(sorted(learnt["vocab"].items(), key=lambda item: item[1]))
    encoder["\n</w>"] = len(encoder)
    write_json(encoder_path, encoder)
    with replacing(bpe_path) as file:
        file.write("\n".join(["#version: 0.2", *(" ".join(merge) for merge in learnt["merges"]), ""]).encode())


# --- text -> tokens --------------------------------------------------------------------------------------------------


def tokenize(corpus: Path, encoder: TextEncoder, vocabulary: str, folder: Path) -> np.ndarray:
    """Return the ids of a text, each line ended by the newline token, memory-mapped from `tokens.bin` in a folder.

    The file is made once for a corpus and a vocabulary (its digest); a build that was cut short goes on where it was,
    and a file that is no longer what was written is made again.
    """
    dtype = np.uint16 if len(encoder.encoder) <= 2**16 else np.uint32
    done, part, done_note, part_note = (
        folder / name for name in ("tokens.bin", "tokens.bin.part", "tokens.json", "tokens.part.json")
    )
    key = {"corpus": sha256(corpus), "vocabulary": vocabulary}
    note = _read_note(done_note, key)
    if note and done.exists() and sha256(done) == note["sha256"]:
        return np.memmap(done, dtype, "r")
    if note:
        print(f"{done} is damaged: tokenizing again")

    note = _read_note(part_note, key)
    if not note or not part.exists() or part.stat().st_size < note["bytes"]:
        note = {"lines": 0, "bytes": 0}
    with open(part, "r+b" if note["lines"] else "w+b") as file:
        file.truncate(note["bytes"])
        file.seek(note["bytes"])
        newline, lines = encoder.encoder.get("\n</w>", 0), []

        def write() -> None:
            rows = encoder.encode(lines, verbose=False)
            file.write(np.array([i for row in rows if row for i in (*row, newline)], dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
            write_json(part_note, key | {"lines": number_, "bytes": file.tell()})
            lines.clear()

        number_ = 0
        for number_, line in enumerate(read_lines(corpus), 1):
            if number_ > note["lines"]:
                lines.append(line)
            if len(lines) == LINES_PER_STEP:
                write()
        write()
    write_json(done_note, key | {"sha256": sha256(part)})
    os.replace(part, done)
    part_note.unlink()
    return np.memmap(done, dtype, "r") if done.stat().st_size else np.empty(0, dtype)


def _read_note(path: Path, key: dict) -> dict | None:
    try:
        note = json.loads(path.read_text())
        return note if key.items() <= note.items() else None
    except (OSError, ValueError):
        return None


# --- the command -----------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the settings of a run; a wrong flag ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description="Pre-train the transformer on raw text; the defaults are the paper's.",
        formatter_class=HelpFormatter,
    )
    flag = parser.add_argument
    flag("--corpus", required=True, help="text file in UTF-8")
    flag(
        "--model_dir",
        required=True,
        help="folder to write, in the authors' format; a vocabulary in it is used",
    )
    flag("--desc", default="pretrain", help="name of the run, in the names of its files")
    flag("--log_dir", default="log/", help="folder for <desc>.jsonl (log) and <desc>.png (curves)")
    flag("--save_dir", default="save/", help="folder for <desc>/ with the tokens and the checkpoints")
    flag("--seed", type=number(int, 0, 2**32 - 1), default=42, help="of every random draw")
    flag("--n_merges", type=COUNT, default=40000, help="byte-pair merges to learn")
    flag("--n_ctx", type=number(int, 2), default=512, help="tokens in a sequence")
    flag("--n_iter", type=COUNT, default=100, help="epochs")
    flag("--n_batch", type=COUNT, default=64, help="sequences per device and batch")
    flag("--valid_share", type=SHARE, default=0.01, help="share of the sequences, at the end of the text, to hold out")
    help_ = "standard deviation of the initial matrices; a network of few features learns sooner from 0.05 to 0.1"
    flag("--init_std", type=WEIGHT, default=0.02, help=help_)
    flag("--lr_warmup", type=number(int, 0), default=2000, help="updates spent warming up, before the cosine to 0")
    flag("--log_every", type=COUNT, default=500, help="updates between two measurements of the perplexity")
    add_optimizer_flags(parser)
    add_network_flags(parser)
    add_machine_flags(parser)
    parser.set_defaults(
        lr=2.5e-4,
        checkpoint_every=1000,
        n_embd=DEFAULT_CONFIG.n_embd,
        n_head=DEFAULT_CONFIG.n_head,
        n_layer=DEFAULT_CONFIG.n_layer,
    )
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"--n_embd {args.n_embd} is no multiple of --n_head {args.n_head}")
    return args


def rows_of(sequences: np.ndarray, n_vocab: int) -> Tensor:
    """Return the model's input (B, T, 2) of sequences of ids (B, T): position rows follow the n_vocab token rows."""
    positions = np.broadcast_to(np.arange(n_vocab, n_vocab + sequences.shape[1]), sequences.shape)
    return torch.from_numpy(np.stack([sequences.astype(np.int64), positions], -1))


def sequence_losses(model: LMModel, packing: Packing) -> Tensor:
    """Return the mean next-token cross entropy (nats) of each sequence (B,)."""
    table = model.transformer.dropped_table()
    return lm_losses(model.transformer.packed_states(packing, table), table, packing)


class PreTraining(nn.Module):
    """The cost of a batch: what is differentiated, in one call, so that several processes can share the work."""

    def __init__(self, model: LMModel):
        super().__init__()
        self.model = model

    def forward(self, packing: Packing) -> Tensor:
        return sequence_losses(self.model, packing).mean()


class Run:
    """A pre-training run: everything up to its first update, and then train()."""

    def __init__(self, args: argparse.Namespace, ranks: Ranks):
        self.args, self.ranks = args, ranks
        corpus, self.model_dir, self.log_dir = Path(args.corpus), Path(args.model_dir), Path(args.log_dir)
        self.vocabulary = self.model_dir / "encoder_bpe_40000.json", self.model_dir / "vocab_40000.bpe"
        self.save_dir = Path(args.save_dir) / args.desc
        for folder in (self.model_dir, self.log_dir, self.save_dir):
            make_output_folder(folder)
        begun = (args.resume or restarted()) and any(self.save_dir.glob("checkpoint_*"))
        if not begun and (self.model_dir / "params_0.npy").exists():
            raise InputError(f"{self.model_dir} holds weights already. Name another --model_dir.")

        # text -> sequences of ids; the other processes find the first one's files
        with ranks.first_alone():
            tokens, self.n_vocab = self.read_tokens(corpus)
        sequences = tokens[: len(tokens) // args.n_ctx * args.n_ctx].reshape(-1, args.n_ctx)
        self.n_train = len(sequences) - max(1, round(args.valid_share * len(sequences)))
        self.n_update = args.n_batch * args.accumulate * ranks.size
        self.per_epoch = self.n_train // self.n_update
        self.t_total = self.per_epoch * args.n_iter
        if self.t_total <= args.lr_warmup:
            raise InputError(
                f"{corpus}: {len(tokens):,} tokens make {max(self.n_train, 0)} sequences to train on and "
                f"{max(self.t_total, 0)} updates, not more than --lr_warmup {args.lr_warmup}. Give more text or "
                "--n_iter, or lower --lr_warmup, --n_ctx or --n_batch."
            )
        self.training, self.held_out = sequences[: self.n_train], sequences[self.n_train :]

        # the network and its optimiser
        torch.manual_seed(args.seed)
        cfg = Config(**{name: getattr(args, name) for name in vars(DEFAULT_CONFIG)})
        self.model = LMModel(cfg, self.n_vocab + args.n_ctx, args.n_ctx).to(ranks.device)
        self.model.transformer.checkpoint_activations = args.checkpoint_activations
        with torch.no_grad():
            for matrix in (p for p in self.model.parameters() if p.dim() > 1):
                matrix *= args.init_std / 0.02  # the network draws N(0, 0.02), as the paper says
        warmup = args.lr_warmup / self.t_total
        self.optimizer = make_optimizer(self.model, args, "warmup_cosine", warmup, self.t_total)
        self.autocast = pick_precision(args, ranks.device)
        torch.manual_seed(args.seed + ranks.rank)  # each process drops out others

        self.settings = fixed_settings(args, n_vocab=self.n_vocab, t_total=self.t_total, n_processes=ranks.size)
        self.settings["digests"] = digests([corpus, *self.vocabulary])
        self.updates, self.logs, self.cost_since_log = 0, [], 0.0
        if found := find_checkpoint(args, self.save_dir, self.settings, ranks):
            tensors, state = found
            restore(tensors, state, self.model, self.optimizer, ranks)
            self.updates, self.logs, self.cost_since_log = (state[k] for k in ("updates", "logs", "cost_since_log"))
        self.objective = ranks.wrap(PreTraining(self.model))
        if ranks.is_first:
            self.announce(len(tokens), cfg)
            if not self.updates:
                remove_checkpoints(self.save_dir)
            self.logger = ResultLogger(
                self.log_dir / f"{args.desc}.jsonl", **self.settings | provenance(ranks), n_train=self.n_train
            )
            for line in self.logs:
                self.logger.log(**line)

    def read_tokens(self, corpus: Path) -> tuple[np.ndarray, int]:
        """Return the ids of the corpus, and how many kinds there are; both are made where they are missing."""
        if not all(path.exists() for path in self.vocabulary):
            learn_vocabulary(corpus, self.args.n_merges, *self.vocabulary)
        encoder = TextEncoder(*self.vocabulary)
        return tokenize(corpus, encoder, "".join(map(sha256, self.vocabulary)), self.save_dir), len(encoder.encoder)

    def announce(self, n_tokens: int, cfg: Config) -> None:
        """Print what is going to happen where."""
        plan = f"{self.args.n_iter} epochs, {self.t_total} updates of {self.n_update} sequences"
        sequences = f"{self.n_train:,} + {len(self.held_out)} sequences of {self.args.n_ctx}"
        print(f"device   {describe_device(self.args.precision, self.ranks)}")
        print(f"tokens   {n_tokens:,} of {self.n_vocab:,} kinds: {sequences}")
        print(f"network  {cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads")
        print(f"plan     {plan}, {self.updates} of them done")

    def train(self, stop: Stop) -> None:
        """Make the updates that are left, with their measurements and checkpoints."""
        args, ranks = self.args, self.ranks
        n_tokens = self.n_update * args.n_ctx
        bar = tqdm(
            total=self.t_total * n_tokens,
            initial=self.updates * n_tokens,
            unit=" tokens",
            unit_scale=True,
            ncols=100,
            leave=False,
            disable=not ranks.is_first,
        )
        order, order_epoch = None, None
        try:
            while True:
                is_log_due = self.updates % args.log_every == 0 or self.updates == self.t_total
                if is_log_due and self.updates > self.last_log():
                    self.log(stop)
                if self.updates == self.t_total:
                    return
                epoch, i = divmod(self.updates, self.per_epoch)
                if epoch != order_epoch:  # an epoch's order is known from its number alone
                    order, order_epoch = np.random.RandomState([args.seed, epoch]).permutation(self.n_train), epoch
                rows = np.sort(order[i * self.n_update : (i + 1) * self.n_update])
                self.model.train()
                parts = (
                    (Packing(rows_of(self.training[part], self.n_vocab)).to(ranks.device),)
                    for part in make_parts(rows, args.n_batch, ranks)
                )
                cost = update(self.objective, parts, args.accumulate, self.optimizer, self.autocast, ranks, rows)
                self.updates += 1
                self.cost_since_log += cost
                bar.set_postfix(cost=f"{cost:.3f}", lr=f"{self.optimizer.param_groups[0]['lr']:.2e}", refresh=False)
                bar.update(n_tokens)
                is_due = args.checkpoint_every and self.updates % args.checkpoint_every == 0
                if is_due or self.updates % self.per_epoch == 0:
                    self.save()
                stop.here()
        except Stopped:
            self.save()
            raise
        finally:
            bar.close()

    def last_log(self) -> int:
        """Return after how many updates the last log was."""
        return self.logs[-1]["n_updates"] if self.logs else 0

    @torch.no_grad()
    def log(self, stop: Stop) -> None:
        """Measure the perplexity on the held-out sequences and log it, with that of training since the last time."""
        n_batch, ranks = self.args.n_batch, self.ranks
        self.model.eval()
        n_own = math.ceil(len(self.held_out) / ranks.size)
        own = self.held_out[ranks.rank * n_own : (ranks.rank + 1) * n_own]
        costs = torch.full((n_own,), math.nan)
        for start in range(0, n_own, n_batch):
            batch = own[start : start + n_batch]
            if len(batch):
                packing = Packing(rows_of(batch, self.n_vocab)).to(ranks.device)
                with self.autocast:
                    costs[start : start + len(batch)] = sequence_losses(self.model, packing).float().cpu()
            stop.here()
        cost = ranks.gather(costs)[: len(self.held_out)].mean().item()
        since = self.updates - self.last_log()
        line = {"n_epochs": self.updates // self.per_epoch, "n_updates": self.updates}
        line |= {"tr_ppl": math.exp(self.cost_since_log / since), "va_ppl": math.exp(cost)}
        self.logs.append(line)
        self.cost_since_log = 0.0
        if ranks.is_first:
            self.logger.log(**line)
            tqdm.write("{n_epochs} {n_updates} perplexity: train {tr_ppl:.3f}, held out {va_ppl:.3f}".format(**line))

    def close(self) -> None:
        """Close the log."""
        if self.ranks.is_first:
            self.logger.close()

    def save(self) -> None:
        """Write a checkpoint."""
        state = {"settings": self.settings, "logs": self.logs, "cost_since_log": self.cost_since_log}
        save_checkpoint(self.save_dir, self.updates, self.model, self.optimizer, self.ranks, **state)


def run(args: argparse.Namespace) -> None:
    """Learn merges, tokenize, train and write the model folder. Raises InputError for what the user can mend."""
    started = time.monotonic()
    keep_freed_memory()
    if args.deterministic:
        make_deterministic()
    with join_ranks() as ranks:
        pre_training = Run(args, ranks)
        with closing(pre_training), Stop(ranks) as stop:
            pre_training.train(stop)
        if not ranks.is_first:
            return
        save_openai_model(pre_training.model.transformer, pre_training.n_vocab, pre_training.model_dir)
        draw_perplexity(pre_training.log_dir / f"{args.desc}.jsonl")
        seconds = time.monotonic() - started
        print(f"done in {seconds:.0f} s, {peak_memory(ranks.device)}; the model is in {pre_training.model_dir}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    return exit_code("pretrain.py", lambda: run(args), "--resume goes on")


if __name__ == "__main__":
    sys.exit(main())
