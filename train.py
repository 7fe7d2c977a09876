"""Fine-tune the transformer on a task: `python train.py --dataset rocstories --submit --analysis --data_dir DIR`.

Flags and defaults are the paper's and the authors' (TF = their train.py, commit a69b5c4).
"""

import argparse
import dataclasses
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import shuffle
from torch import Tensor, nn
from tqdm import tqdm

from analysis import ANALYSES
from datasets import rocstories
from loss import compute_losses, task_losses
from model_pytorch import (
    ACTIVATIONS,
    DEFAULT_CONFIG,
    Config,
    DoubleHeadModel,
    FolderSizes,
    load_openai_pretrained_model,
    read_sizes,
)
from opt import SCHEDULES, OpenAIAdam
from text_utils import TextEncoder
from utils import (
    InputError,
    ResultLogger,
    encode_dataset,
    exit_code,
    find,
    iter_data,
    make_output_folder,
    replacing,
    verify_authors_files,
    write_json,
)

DATASETS = {"rocstories": rocstories}
SUBMISSIONS = {"rocstories": "ROCStories.tsv"}
N_SPECIAL = 3  # _start_, _delimiter_ and _classify_ follow the vocabulary in this order

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # x (N, K, T, 2), m (N, K, T), y (N,)


# --- texts -> rows ---------------------------------------------------------------------------------------------------


def transform_roc(
    stories: list[list[int]], first: list[list[int]], second: list[list[int]], n_vocab: int, n_ctx: int, max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the model's input for Story Cloze: x (N, 2, n_ctx, 2) ids and m (N, 2, n_ctx), 1 on real tokens.

    A row is `_start_ story _delimiter_ ending _classify_`, padded on the right with id 0. With n_vocab 100 and max_len
    3 the story [5, 6, 7, 8] and its ending [9] become 100 5 6 7 101 9 102 0 0 ...; position ids count up from 103.

    Args:
        stories, first, second: token ids below n_vocab; each is cut to max_len.
    """
    start, delimiter, classify = range(n_vocab, n_vocab + N_SPECIAL)
    x = np.zeros((len(stories), 2, n_ctx, 2), dtype=np.int64)
    m = np.zeros((len(stories), 2, n_ctx), dtype=np.float32)
    x[..., 1] = np.arange(n_vocab + N_SPECIAL, n_vocab + N_SPECIAL + n_ctx)
    for i, (story, *endings) in enumerate(zip(stories, first, second, strict=True)):
        for k, ending in enumerate(endings):
            if max(story + ending, default=0) >= n_vocab:
                raise ValueError(
                    f"example {i}: a token id of {n_vocab} or more is no word, and would end the row early"
                )
            row = [start, *story[:max_len], delimiter, *ending[:max_len], classify]
            if len(row) > n_ctx:
                raise ValueError(
                    f"example {i}: {len(row)} tokens do not fit n_ctx {n_ctx}: lower max_len or raise n_ctx"
                )
            x[i, k, : len(row), 0] = row
            m[i, k, : len(row)] = 1
    return x, m


def longest_row(splits: list[tuple], max_len: int) -> int:
    """Return the tokens of the longest row of all splits: story, longer ending and the special tokens (TF:378)."""
    return max(
        len(story[:max_len]) + max(len(a[:max_len]), len(b[:max_len])) + N_SPECIAL
        for split in splits
        for story, a, b in zip(*split[:3], strict=True)
    )


def trim(x: np.ndarray, m: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cut rows x (n, K, T, 2), m (n, K, T) behind the last real token of the longest; the others pass as they are."""
    longest = int(m.any((0, 1)).sum())
    return x[:, :, :longest], m[:, :, :longest], *others


def progress_bar(total: int, name: str) -> tqdm:
    """Return a bar over stories that vanishes once full."""
    return tqdm(total=total, desc=f"{name:>10}", unit=" stories", ncols=100, leave=False)


# --- evaluation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(
    model: DoubleHeadModel, x: np.ndarray, m: np.ndarray, n_batch: int, device: torch.device, name: str
) -> Tensor:
    """Return the task logits (N, K) of rows x, m in evaluation mode, on the CPU; the language-model head stays idle."""
    model.eval()
    logits = []
    with progress_bar(len(x), name) as bar:
        for batch in iter_data(x, m, n_batch=n_batch):
            ids, mask = (torch.from_numpy(column).to(device) for column in trim(*batch))
            logits.append(model.task_head(model.transformer(ids, m=mask), ids).cpu())
            bar.update(len(ids))
    return torch.cat(logits)


def evaluate(model: DoubleHeadModel, rows: Rows, n_batch: int, device: torch.device, name: str) -> tuple[float, float]:
    """Return the mean task cost (nats) and the accuracy (%) on rows."""
    x, m, y = rows
    logits, y = predict(model, x, m, n_batch, device, name), torch.from_numpy(y)
    return task_losses(logits, y).mean().item(), (logits.argmax(1) == y).double().mean().item() * 100


# --- the command -----------------------------------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but those that the help text explains itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def number(kind: type, low: float, high: float = float("inf"), below_high: bool = False) -> Callable[[str], float]:
    """Return a parser of an int or float from low to high, for argparse to complain with."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or (below_high and value == high):
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {'below ' * below_high}{high}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


COUNT, SHARE, WEIGHT = number(int, 1), number(float, 0, 1, below_high=True), number(float, 0)


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `Config`; sizes left out are None."""
    flag = parser.add_argument
    flag("--n_embd", type=COUNT, help=f"features; default: as in --model_dir, else {DEFAULT_CONFIG.n_embd}")
    flag("--n_head", type=COUNT, help=f"attention heads; default: as in --model_dir, else {DEFAULT_CONFIG.n_head}")
    flag("--n_layer", type=COUNT, help=f"blocks; default: as in --model_dir, else {DEFAULT_CONFIG.n_layer}")
    flag("--embd_pdrop", type=SHARE, default=DEFAULT_CONFIG.embd_pdrop, help="drop-out of the embedding table")
    flag("--attn_pdrop", type=SHARE, default=DEFAULT_CONFIG.attn_pdrop, help="drop-out of the attention weights")
    flag("--resid_pdrop", type=SHARE, default=DEFAULT_CONFIG.resid_pdrop, help="drop-out of what attention and MLP add")
    flag("--clf_pdrop", type=SHARE, default=DEFAULT_CONFIG.clf_pdrop, help="drop-out of the state the task head reads")
    flag("--afn", choices=ACTIVATIONS, default=DEFAULT_CONFIG.afn, help="activation of the MLP")


def add_optimizer_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of OpenAIAdam but those of its schedule."""
    flag = parser.add_argument
    flag("--lr", type=WEIGHT, default=6.25e-5, help="peak learning rate")
    flag(
        "--max_grad_norm", type=float, default=1.0, help="global norm to which gradients are clipped; 0 or less: never"
    )
    flag("--l2", type=WEIGHT, default=0.01, help="weight decay of parameters with two axes or more")
    flag("--vector_l2", action="store_true", help="decay the others (biases, gains) too")
    flag("--b1", type=SHARE, default=0.9, help="decay of Adam's mean of gradients")
    flag("--b2", type=SHARE, default=0.999, help="decay of Adam's mean of squared gradients")
    flag("--e", type=WEIGHT, default=1e-8, help="Adam's epsilon")


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change speed, and results by rounding alone."""
    help_ = "of matrix products; default: bf16 on a GPU that has it, else fp32"
    parser.add_argument("--precision", choices=("fp32", "bf16"), help=help_)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the settings of a run; a wrong flag ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description="Fine-tune the transformer on a task, as the authors did.",
        formatter_class=HelpFormatter,
    )
    flag = parser.add_argument
    flag("--dataset", choices=DATASETS, default="rocstories", help="task to fine-tune on")
    flag("--desc", help="name of the run, in the names of its files; default: the dataset's name")
    flag("--data_dir", default="data/", help="folder of the task's files")
    flag("--model_dir", default="model/", help="folder of the pre-trained model in the authors' format")
    flag("--encoder_path", help="vocabulary; default: encoder_bpe_40000.json in --model_dir")
    flag("--bpe_path", help="byte-pair merges; default: vocab_40000.bpe in --model_dir")
    flag("--log_dir", default="log/", help="folder for <desc>.jsonl (log), .tsv (predictions) and .png (curves)")
    flag("--save_dir", default="save/", help="folder for <desc>/best_params and settings.json")
    flag("--submission_dir", default="submission/", help="folder for the predictions to hand in")
    flag("--submit", action="store_true", help="predict the test set with the parameters best on valid")
    flag("--analysis", action="store_true", help="print valid and test accuracy and draw the curves; needs --submit")
    flag("--verify", action="store_true", help="check that the files of --model_dir are the authors', and stop")
    flag("--seed", type=number(int, 0, 2**32 - 1), default=42, help="of every random draw")
    flag("--n_iter", type=COUNT, default=3, help="epochs")
    flag("--n_batch", type=COUNT, default=8, help="examples per update; the paper has 32")
    flag(
        "--n_valid", type=COUNT, default=374, help="rows of the valid file kept for validation, the rest are trained on"
    )
    flag("--n_ctx", type=number(int, 6), default=512, help="longest row in tokens")
    flag("--n_transfer", type=number(int, -1), default=12, help="blocks to load; 0: the embeddings alone; -1: nothing")
    flag("--lm_coef", type=WEIGHT, default=0.5, help="weight of the language-model loss beside the task's; 0: none")
    flag("--lr_schedule", choices=SCHEDULES, default="warmup_linear", help="course of the learning rate")
    flag("--lr_warmup", type=number(float, 0, 1), default=0.002, help="share of all updates spent warming up")
    add_optimizer_flags(parser)
    add_network_flags(parser)
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    args.desc = args.dataset if args.desc is None else args.desc
    if args.analysis and not args.submit:
        parser.error("--analysis reads the predictions that --submit writes: give both")
    if not args.desc or Path(args.desc).name != args.desc:
        parser.error(f"--desc {args.desc!r} becomes part of file names: one word without slashes")
    model_dir = find(args.model_dir)
    args.encoder_path = args.encoder_path or str(model_dir / "encoder_bpe_40000.json")
    args.bpe_path = args.bpe_path or str(model_dir / "vocab_40000.bpe")
    return args


def network(args: argparse.Namespace, n_vocab: int) -> tuple[Config, FolderSizes | None]:
    """Return the network's settings, from the flags and, where they are silent, the model folder, and its sizes.

    Raises InputError when flags, vocabulary and weights contradict each other.
    """
    model_dir = find(args.model_dir)
    loads = args.n_transfer >= 0
    sizes = read_sizes(model_dir) if loads or (model_dir / "params_shapes.json").exists() else None
    if loads and n_vocab != sizes.n_vocab:
        raise InputError(
            f"{args.encoder_path} has {n_vocab} tokens, the weights in {model_dir} are for {sizes.n_vocab}. "
            "Take both from one model."
        )
    chosen = {}
    for name in ("n_embd", "n_head", "n_layer"):
        chosen[name] = getattr(args, name) or getattr(sizes or DEFAULT_CONFIG, name)
    if chosen["n_embd"] % chosen["n_head"]:
        raise InputError(
            f"--n_embd {chosen['n_embd']} is no multiple of --n_head {chosen['n_head']}. Change one of them."
        )
    flags = {field.name: getattr(args, field.name) for field in dataclasses.fields(Config)}
    return Config(**flags | chosen), sizes


def pick_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_precision(args: argparse.Namespace, device: torch.device) -> torch.autocast:
    """Return the context of the forward pass, with args.precision chosen where it was left open.

    In bf16, matrix products are rounded; parameters, Adam and losses stay in float32.
    """
    if args.precision is None:
        args.precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")


def make_optimizer(
    model: nn.Module, args: argparse.Namespace, schedule: str, warmup: float, t_total: int
) -> OpenAIAdam:
    """Return the optimiser of all parameters, with the settings of `add_optimizer_flags`."""
    names = ("lr", "b1", "b2", "e", "l2", "vector_l2", "max_grad_norm")
    adam = {name: getattr(args, name) for name in names}
    return OpenAIAdam(model.parameters(), schedule=schedule, warmup=warmup, t_total=t_total, **adam)


def run(args: argparse.Namespace) -> None:
    """Fine-tune, and as asked predict and analyse. Raises InputError for what the user can mend."""
    started = time.monotonic()
    log_dir, save_dir, submission_dir = Path(args.log_dir), Path(args.save_dir) / args.desc, Path(args.submission_dir)
    for folder in [log_dir, save_dir] + [submission_dir] * args.submit:
        make_output_folder(folder)
    device = pick_device()
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)

    # texts -> rows of ids
    encoder = TextEncoder(args.encoder_path, args.bpe_path)
    n_vocab = len(encoder.encoder)
    cfg, sizes = network(args, n_vocab)
    splits = encode_dataset(*DATASETS[args.dataset](find(args.data_dir), args.n_valid), encoder=encoder)
    n_ctx = args.n_ctx if args.n_transfer < 0 else min(args.n_ctx, sizes.n_positions)
    max_len = n_ctx // 2 - 2
    n_ctx = min(n_ctx, longest_row(splits, max_len))
    train, valid, test = ((*transform_roc(*split[:3], n_vocab, n_ctx, max_len), split[3]) for split in splits)
    n_train = len(train[0])
    t_total = n_train // args.n_batch * args.n_iter
    if t_total == 0:
        raise InputError(
            f"--n_batch {args.n_batch} is more than the {n_train} rows to train on. Lower it or --n_valid."
        )

    # the network, its weights and its optimiser
    model = DoubleHeadModel(cfg, n_vocab + 2, "multiple_choice", n_vocab + N_SPECIAL + n_ctx, n_ctx)
    if args.n_transfer >= 0:
        n_loaded = load_openai_pretrained_model(model.transformer, n_ctx, N_SPECIAL, args.n_transfer, args.model_dir)
    else:
        n_loaded = None
        np.random.randn(N_SPECIAL, cfg.n_embd)  # the loader's draw: the epochs' order is that of a run with weights
    model.to(device)
    optimizer = make_optimizer(model, args, args.lr_schedule, args.lr_warmup, t_total)
    source = "nothing" if n_loaded is None else f"embeddings and {n_loaded} blocks from {args.model_dir}"
    autocast = pick_precision(args, device)
    print(f"device   {device}, {args.precision}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")
    print(f"rows     {n_train} train, {len(valid[0])} valid, {len(test[0])} test, n_ctx {n_ctx}")
    print(f"network  {cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads; loaded {source}")
    print(f"plan     {args.n_iter} epochs, {t_total} updates of {args.n_batch} examples")

    # from here on the files of an earlier run of this name are replaced
    settings = vars(args) | dataclasses.asdict(cfg)
    settings |= {"n_ctx": n_ctx, "n_vocab": n_vocab, "n_special": N_SPECIAL, "t_total": t_total, "device": str(device)}
    for suffix in (".tsv", ".png"):
        (log_dir / (args.desc + suffix)).unlink(missing_ok=True)
    write_json(save_dir / "settings.json", settings, indent=2)
    logger = ResultLogger(log_dir / f"{args.desc}.jsonl", **settings)
    best_path = save_dir / "best_params"
    best_accuracy = -1.0

    def log(epochs: int, updates: int) -> None:
        nonlocal best_accuracy
        subset = tuple(column[: args.n_valid] for column in train)
        with autocast:
            tr_cost, tr_acc = evaluate(model, subset, args.n_batch, device, "train rows")
            va_cost, va_acc = evaluate(model, valid, args.n_batch, device, "valid rows")
        logger.log(n_epochs=epochs, n_updates=updates, tr_cost=tr_cost, va_cost=va_cost, tr_acc=tr_acc, va_acc=va_acc)
        print(
            f"{epochs} {updates} train cost {tr_cost:.3f} acc {tr_acc:.2f}  valid cost {va_cost:.3f} acc {va_acc:.2f}"
        )
        if va_acc > best_accuracy:  # the first of equals stays: TF:286-290
            best_accuracy = va_acc
            with replacing(best_path) as file:
                torch.save(model.state_dict(), file)

    # the updates
    updates = 0
    for epoch in range(args.n_iter):
        order = shuffle(np.arange(n_train))  # from NumPy's global stream, as TF:431-440
        bar = progress_bar(n_train // args.n_batch * args.n_batch, f"epoch {epoch + 1}/{args.n_iter}")
        for rows in iter_data(order, n_batch=args.n_batch, truncate=True):
            x, m, y = (torch.from_numpy(column).to(device) for column in trim(*(column[rows] for column in train)))
            model.train()
            with autocast:
                task, lm = compute_losses(model, x, m, y, args.lm_coef)
            cost = task.mean() if lm is None else task.mean() + args.lm_coef * lm.mean()
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            updates += 1
            bar.set_postfix(cost=f"{cost.item():.3f}", lr=f"{optimizer.param_groups[0]['lr']:.2e}", refresh=False)
            bar.update(len(rows))
            if epoch == 0 and updates % 1000 == 0 and (updates // 1000).bit_count() == 1:
                log(epoch, updates)  # 1000, 2000, 4000, ...: TF:431-440
        bar.close()
        log(epoch + 1, updates)
    logger.close()

    # the best parameters' predictions, and what they are worth
    if args.submit:
        model.load_state_dict(torch.load(best_path, map_location=device, weights_only=True))
        with autocast:
            predictions = predict(model, *test[:2], args.n_batch, device, "test rows").argmax(1).tolist()
        table = "index\tprediction\n" + "".join(f"{i}\t{choice}\n" for i, choice in enumerate(predictions))
        for path in (submission_dir / SUBMISSIONS[args.dataset], log_dir / f"{args.desc}.tsv"):
            with replacing(path) as file:
                file.write(table.encode())
    if args.analysis:
        ANALYSES[args.dataset](find(args.data_dir), log_dir / f"{args.desc}.tsv", log_dir / f"{args.desc}.jsonl")
    print(f"done in {time.monotonic() - started:.0f} s, {peak_memory(device)}; see {log_dir}, {save_dir}")


def peak_memory(device: torch.device) -> str:
    """Return how much memory the process has held at most, and on an accelerator its tensors."""
    text = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    action = (lambda: verify_authors_files(find(args.model_dir))) if args.verify else (lambda: run(args))
    return exit_code("train.py", action, "the best parameters so far stay")


if __name__ == "__main__":
    sys.exit(main())
