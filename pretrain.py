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
from pathlib import Path

import numpy as np
import spacy
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

from analysis import draw_perplexity
from checkpoint import read_checkpoint, restore, save_checkpoint
from loss import lm_losses
from model_pytorch import DEFAULT_CONFIG, Config, LMModel, save_openai_model
from text_utils import TextEncoder, split_words
from train import (
    COUNT,
    SHARE,
    WEIGHT,
    HelpFormatter,
    add_machine_flags,
    add_network_flags,
    add_optimizer_flags,
    make_optimizer,
    number,
    peak_memory,
    pick_device,
    pick_precision,
)
from utils import InputError, ResultLogger, exit_code, make_output_folder, replacing, sha256, write_json

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
    nlp = spacy.blank("en")
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
    flag("--resume", action="store_true", help="go on from the newest checkpoint of --desc, if there is one")
    flag("--seed", type=number(int, 0, 2**32 - 1), default=42, help="of every random draw")
    flag("--n_merges", type=COUNT, default=40000, help="byte-pair merges to learn")
    flag("--n_ctx", type=number(int, 2), default=512, help="tokens in a sequence")
    flag("--n_iter", type=COUNT, default=100, help="epochs")
    flag("--n_batch", type=COUNT, default=64, help="sequences per update")
    flag("--valid_share", type=SHARE, default=0.01, help="share of the sequences, at the end of the text, to hold out")
    help_ = "standard deviation of the initial matrices; a network of few features learns sooner from 0.05 to 0.1"
    flag("--init_std", type=WEIGHT, default=0.02, help=help_)
    flag("--lr_warmup", type=number(int, 0), default=2000, help="updates spent warming up, before the cosine to 0")
    flag("--log_every", type=COUNT, default=500, help="updates between two measurements of the perplexity")
    flag("--checkpoint_every", type=COUNT, default=1000, help="updates between two checkpoints")
    add_optimizer_flags(parser)
    add_network_flags(parser)
    add_machine_flags(parser)
    parser.set_defaults(
        lr=2.5e-4, n_embd=DEFAULT_CONFIG.n_embd, n_head=DEFAULT_CONFIG.n_head, n_layer=DEFAULT_CONFIG.n_layer
    )
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"--n_embd {args.n_embd} is no multiple of --n_head {args.n_head}")
    return args


def rows_of(sequences: np.ndarray, n_vocab: int, device: torch.device) -> torch.Tensor:
    """Return the model's input (B, T, 2) of sequences of ids (B, T): position rows follow the n_vocab token rows."""
    positions = np.broadcast_to(np.arange(n_vocab, n_vocab + sequences.shape[1]), sequences.shape)
    return torch.from_numpy(np.stack([sequences.astype(np.int64), positions], -1)).to(device)


def sequence_losses(model: LMModel, x: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross entropy (nats) of each sequence of x (B, T, 2)."""
    table = model.transformer.dropped_table()
    return lm_losses(model.transformer(x, table), table, x, torch.ones(x.shape[:2], device=x.device))


def run(args: argparse.Namespace) -> None:
    """Learn merges, tokenize, train and write the model folder. Raises InputError for what the user can mend."""
    started = time.monotonic()
    corpus, model_dir, log_dir = Path(args.corpus), Path(args.model_dir), Path(args.log_dir)
    save_dir = Path(args.save_dir) / args.desc
    for folder in (model_dir, log_dir, save_dir):
        make_output_folder(folder)
    begun = any(save_dir.glob("checkpoint_*"))
    if begun and not args.resume:
        raise InputError(f"{save_dir} holds checkpoints of an earlier run. --resume goes on; else change --desc.")
    if not begun and (model_dir / "params_0.npy").exists():
        raise InputError(f"{model_dir} holds weights already. Name another --model_dir.")
    device = pick_device()

    # text -> sequences of ids
    encoder_path, bpe_path = model_dir / "encoder_bpe_40000.json", model_dir / "vocab_40000.bpe"
    if not (encoder_path.exists() and bpe_path.exists()):
        learn_vocabulary(corpus, args.n_merges, encoder_path, bpe_path)
    encoder = TextEncoder(encoder_path, bpe_path)
    n_vocab = len(encoder.encoder)
    tokens = tokenize(corpus, encoder, sha256(encoder_path) + sha256(bpe_path), save_dir)
    sequences = tokens[: len(tokens) // args.n_ctx * args.n_ctx].reshape(-1, args.n_ctx)
    n_train = len(sequences) - max(1, round(args.valid_share * len(sequences)))
    t_total = n_train // args.n_batch * args.n_iter
    if t_total <= args.lr_warmup:
        raise InputError(
            f"{corpus}: {len(tokens):,} tokens make {max(n_train, 0)} sequences to train on and {max(t_total, 0)} "
            f"updates, not more than --lr_warmup {args.lr_warmup}. Give more text or --n_iter, or lower --lr_warmup, "
            "--n_ctx or --n_batch."
        )
    training, held_out = sequences[:n_train], sequences[n_train:]

    # the network and its optimiser
    torch.manual_seed(args.seed)
    cfg = Config(**{name: getattr(args, name) for name in vars(DEFAULT_CONFIG)})
    model = LMModel(cfg, n_vocab + args.n_ctx, args.n_ctx).to(device)
    with torch.no_grad():
        for matrix in (p for p in model.parameters() if p.dim() > 1):
            matrix *= args.init_std / 0.02  # the network draws N(0, 0.02), as the paper says
    optimizer = make_optimizer(model, args, "warmup_cosine", args.lr_warmup / t_total, t_total)
    autocast = pick_precision(args, device)
    settings = {name: value for name, value in vars(args).items() if name != "resume"}
    settings |= {"n_vocab": n_vocab, "t_total": t_total, "n_train": n_train, "device": str(device)}
    updates, logs, cost_since_log = 0, [], 0.0
    if args.resume and (found := read_checkpoint(save_dir)):
        tensors, state = found
        if changed := [name for name in settings if settings[name] != state["settings"].get(name)]:
            raise InputError(f"{save_dir} was made with another {', '.join(changed)}. Resume with the flags it had.")
        restore(tensors, state, model, optimizer)
        updates, logs, cost_since_log = state["updates"], state["logs"], state["cost_since_log"]
    print(f"device   {device}, {args.precision}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")
    print(f"tokens   {len(tokens):,} of {n_vocab:,} kinds: {n_train:,} + {len(held_out)} sequences of {args.n_ctx}")
    print(f"network  {cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads")
    print(f"plan     {args.n_iter} epochs, {t_total} updates of {args.n_batch} sequences, {updates} of them done")
    logger = ResultLogger(log_dir / f"{args.desc}.jsonl", **settings)
    for line in logs:
        logger.log(**line)

    # the updates
    order = None
    updates_per_epoch = t_total // args.n_iter
    n_tokens = args.n_batch * args.n_ctx
    bar = tqdm(
        total=t_total * n_tokens, initial=updates * n_tokens, unit=" tokens", unit_scale=True, ncols=100, leave=False
    )
    while updates < t_total:
        epoch, i = divmod(updates, updates_per_epoch)
        if order is None or i == 0:
            order = np.random.RandomState([args.seed, epoch]).permutation(n_train)  # known from the epoch alone
        rows = np.sort(order[i * args.n_batch : (i + 1) * args.n_batch])
        x = rows_of(training[rows], n_vocab, device)
        model.train()
        with autocast:
            cost = sequence_losses(model, x).mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        updates += 1
        cost_since_log += cost.item()
        bar.set_postfix(cost=f"{cost.item():.3f}", lr=f"{optimizer.param_groups[0]['lr']:.2e}", refresh=False)
        bar.update(n_tokens)

        if updates % args.log_every == 0 or updates == t_total:
            since = updates - (logs[-1]["n_updates"] if logs else 0)
            model.eval()
            with torch.no_grad(), autocast:
                batches = (held_out[start : start + args.n_batch] for start in range(0, len(held_out), args.n_batch))
                costs = torch.cat([sequence_losses(model, rows_of(batch, n_vocab, device)) for batch in batches])
            line = {"n_epochs": updates // updates_per_epoch, "n_updates": updates}
            line |= {"tr_ppl": math.exp(cost_since_log / since), "va_ppl": math.exp(costs.mean().item())}
            logs.append(line)
            cost_since_log = 0.0
            logger.log(**line)
            bar.write("{n_epochs} {n_updates} perplexity: train {tr_ppl:.3f}, held out {va_ppl:.3f}".format(**line))
        if updates % args.checkpoint_every == 0 or updates == t_total:
            save_checkpoint(
                save_dir, updates, model, optimizer, settings=settings, logs=logs, cost_since_log=cost_since_log
            )
    bar.close()
    logger.close()
    save_openai_model(model.transformer, n_vocab, model_dir)
    draw_perplexity(log_dir / f"{args.desc}.jsonl")
    print(f"done in {time.monotonic() - started:.0f} s, {peak_memory(device)}; the model is in {model_dir}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    return exit_code("pretrain.py", lambda: run(args), "--resume goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
