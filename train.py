"""Fine-tune the transformer on a task: `python train.py --dataset rocstories --submit --analysis --data_dir DIR`.

Flags and defaults are the paper's and the authors' (TF = their train.py, commit a69b5c4).
"""

import argparse
import dataclasses
import math
import random
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import shuffle
from torch import Tensor, nn
from tqdm import tqdm

from analysis import ANALYSES
from checkpoint import (
    load_parameters,
    read_checkpoint,
    remove_checkpoints,
    restore,
    save_checkpoint,
    save_parameters,
)
from datasets import DATA_FILES, encode_cached, rocstories
from loss import compute_losses, task_losses
from model_pytorch import (
    ACTIVATIONS,
    DEFAULT_CONFIG,
    Config,
    DoubleHeadModel,
    FolderSizes,
    Packing,
    load_openai_pretrained_model,
    read_sizes,
)
from opt import SCHEDULES, OpenAIAdam
from text_utils import TextEncoder
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
from utils import (
    InputError,
    ResultLogger,
    digests,
    exit_code,
    find,
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


def progress_bar(total: int, name: str, ranks: Ranks, done: int = 0) -> tqdm:
    """Return a bar over stories, of the first process, that vanishes once full."""
    return tqdm(
        total=total,
        initial=done,
        desc=f"{name:>10}",
        unit=" stories",
        ncols=100,
        leave=False,
        disable=not ranks.is_first,
    )


# --- evaluation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(
    model: DoubleHeadModel,
    x: np.ndarray,
    m: np.ndarray,
    n_batch: int,
    ranks: Ranks,
    name: str,
    pause: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the task logits (N, K) of rows x, m in evaluation mode, on the CPU; the language-model head stays idle.

    What the choices of an example begin with is computed once. The rows are spread over the processes, and all get all
    logits. `pause` is called after each batch.
    """
    model.eval()
    n_own = math.ceil(len(x) / ranks.size)
    own = slice(ranks.rank * n_own, (ranks.rank + 1) * n_own)
    x_own, m_own = torch.from_numpy(x[own]), torch.from_numpy(m[own])
    logits = torch.zeros(n_own, x.shape[1])
    with progress_bar(n_own, name, ranks) as bar:
        for start in range(0, n_own, n_batch):
            batch = slice(start, start + n_batch)
            ids = x_own[batch]
            if len(ids):
                packing = Packing(ids, m_own[batch], share_context=True).to(ranks.device)
                h = model.transformer.packed_states(packing, model.transformer.dropped_table())
                task_logits = model.task_head(packing.unpack(h), ids.to(ranks.device))
                logits[start : start + len(ids)] = task_logits.float().cpu()
            bar.update(len(ids))
            pause()
    return ranks.gather(logits)[: len(x)]


def evaluate(
    model: DoubleHeadModel, rows: Rows, n_batch: int, ranks: Ranks, name: str, pause: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Return the mean task cost (nats) and the accuracy (%) on rows."""
    x, m, y = rows
    logits, y = predict(model, x, m, n_batch, ranks, name, pause), torch.from_numpy(y)
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
    """Add the flags of memory, speed and long runs, which change results by rounding alone."""
    flag = parser.add_argument
    help_ = "of matrix products; default: bf16 on a GPU that has it, else fp32"
    flag("--precision", choices=("fp32", "bf16"), help=help_)
    flag("--accumulate", type=COUNT, default=1, help="batches of --n_batch computed one by one for each update")
    flag("--checkpoint_activations", action="store_true", help="save memory: compute the blocks twice")
    flag("--deterministic", action="store_true", help="let torch use deterministic algorithms alone")
    help_ = "updates between two checkpoints in --save_dir; 0: at the end of each epoch alone"
    flag("--checkpoint_every", type=number(int, 0), default=0, help=help_)
    flag("--resume", action="store_true", help="go on from the newest checkpoint of --desc, if there is one")


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
    flag("--n_batch", type=COUNT, default=8, help="examples per device and batch; the paper's updates have 32")
    flag("--share_context", action="store_true", help="train as predicting does: the choices' beginning once")
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
    optimizer = OpenAIAdam(model.parameters(), schedule=schedule, warmup=warmup, t_total=t_total, **adam)
    optimizer.allocate()
    return optimizer


def find_checkpoint(
    args: argparse.Namespace, folder: Path, settings: dict, ranks: Ranks
) -> tuple[dict[str, Tensor], dict] | None:
    """Return the tensors and the state to go on from; None to begin.

    Raises InputError when the checkpoint is of a run with other settings, or when a run that was not resumed would
    overwrite the checkpoints of an unfinished one.
    """
    found = read_checkpoint(folder, ranks)
    if found is None:
        return None
    _, state = found
    if not (args.resume or restarted()):
        if state["updates"] < state["settings"]["t_total"]:
            raise InputError(
                f"{folder} holds checkpoints of an unfinished run. --resume goes on; else change --desc or remove them."
            )
        return None
    if changed := [name for name in settings if settings[name] != state["settings"].get(name)]:
        raise InputError(f"{folder} was made with another {', '.join(changed)}. Resume with what it had.")
    return found


# what may change when a run is resumed
FREE_ON_RESUME = {"resume", "checkpoint_every", "submit", "analysis", "verify", "log_dir", "save_dir", "submission_dir"}


def fixed_settings(args: argparse.Namespace, **more) -> dict:
    """Return the settings that a resumed run must share with its checkpoint."""
    return {name: value for name, value in vars(args).items() if name not in FREE_ON_RESUME} | more


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run trains on, and the sizes that follow from it."""

    n_vocab: int
    n_ctx: int
    cfg: Config
    splits: tuple[Rows, Rows, Rows]  # train, valid, test
    t_total: int
    digests: dict[str, str]  # SHA-256 of the files read


def read_task(args: argparse.Namespace, ranks: Ranks) -> Task:
    """Read texts, vocabulary and sizes and lay out the rows. Raises InputError for what the user can mend."""
    encoder = TextEncoder(args.encoder_path, args.bpe_path)
    n_vocab = len(encoder.encoder)
    cfg, sizes = network(args, n_vocab)
    data_dir, model_dir = find(args.data_dir), find(args.model_dir)
    texts = DATASETS[args.dataset](data_dir, args.n_valid)
    with ranks.first_alone():
        splits = encode_cached(texts, encoder, data_dir, (args.encoder_path, args.bpe_path))
    n_ctx = args.n_ctx if args.n_transfer < 0 else min(args.n_ctx, sizes.n_positions)
    max_len = n_ctx // 2 - 2
    n_ctx = min(n_ctx, longest_row(splits, max_len))
    splits = tuple((*transform_roc(*split[:3], n_vocab, n_ctx, max_len), split[3]) for split in splits)
    n_train = len(splits[0][0])
    t_total = n_train // (args.n_batch * args.accumulate * ranks.size) * args.n_iter
    if t_total == 0:
        raise InputError(
            f"--n_batch {args.n_batch} x --accumulate {args.accumulate} x {ranks.size} processes is more than the "
            f"{n_train} rows to train on. Lower one of them or --n_valid."
        )
    files = [data_dir / name for name in DATA_FILES[args.dataset]] + [Path(args.encoder_path), Path(args.bpe_path)]
    if args.n_transfer >= 0:
        files += sorted(model_dir.glob("params_?.npy"))
    return Task(n_vocab, n_ctx, cfg, splits, t_total, digests(files))


def build_model(args: argparse.Namespace, task: Task) -> tuple[DoubleHeadModel, int | None]:
    """Return the network with its weights, and how many blocks were loaded."""
    vocab = task.n_vocab + N_SPECIAL + task.n_ctx
    model = DoubleHeadModel(task.cfg, task.n_vocab + 2, "multiple_choice", vocab, task.n_ctx)
    model.transformer.checkpoint_activations = args.checkpoint_activations
    if args.n_transfer < 0:
        np.random.randn(
            N_SPECIAL, task.cfg.n_embd
        )  # the loader's draw: the epochs' order is that of a run with weights
        return model, None
    return model, load_openai_pretrained_model(
        model.transformer, task.n_ctx, N_SPECIAL, args.n_transfer, args.model_dir
    )


class FineTuning(nn.Module):
    """The cost of a batch: what is differentiated, in one call, so that several processes can share the work."""

    def __init__(self, model: DoubleHeadModel, lm_coef: float):
        super().__init__()
        self.model, self.lm_coef = model, lm_coef

    def forward(self, x: Tensor, m: Tensor, y: Tensor, packing: Packing) -> Tensor:
        task, lm = compute_losses(self.model, x, m, y, self.lm_coef, packing)
        return task.mean() if lm is None else task.mean() + self.lm_coef * lm.mean()


def make_batch(rows: Rows, which: np.ndarray, device: torch.device, share_context: bool) -> tuple:
    """Return what FineTuning takes for some of the rows."""
    x, m, y = (torch.from_numpy(column[which]) for column in rows)
    packing = Packing(x, m, share_context)
    return *(t.to(device) for t in (x, m, y)), packing.to(device)


def is_log_due(updates: int, per_epoch: int) -> bool:
    """Return whether to evaluate: at each epoch's end, in the first also after 1000, 2000, 4000, ... (TF:431-440)."""
    thousands, rest = divmod(updates, 1000)
    return updates > 0 and (
        updates % per_epoch == 0 or (updates < per_epoch and not rest and thousands.bit_count() == 1)
    )


class Run:
    """A fine-tuning run: everything up to its first update, and then train() and predict()."""

    def __init__(self, args: argparse.Namespace, ranks: Ranks):
        self.args, self.ranks = args, ranks
        self.log_dir, self.save_dir = Path(args.log_dir), Path(args.save_dir) / args.desc
        self.submission_dir = Path(args.submission_dir)
        for folder in [self.log_dir, self.save_dir] + [self.submission_dir] * args.submit:
            make_output_folder(folder)
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        self.task = task = read_task(args, ranks)
        self.model, n_loaded = build_model(args, task)
        self.model.to(ranks.device)
        self.optimizer = make_optimizer(self.model, args, args.lr_schedule, args.lr_warmup, task.t_total)
        self.autocast = pick_precision(args, ranks.device)
        n_train = len(task.splits[0][0])
        self.orders = [shuffle(np.arange(n_train)) for _ in range(args.n_iter)]  # NumPy's global stream, as TF:431-440
        torch.manual_seed(args.seed + ranks.rank)  # each process drops out others

        self.settings = fixed_settings(args, **dataclasses.asdict(task.cfg))
        self.settings |= {"n_ctx": task.n_ctx, "n_vocab": task.n_vocab, "n_special": N_SPECIAL, "t_total": task.t_total}
        self.settings |= {"n_processes": ranks.size, "digests": task.digests}
        self.updates, self.logs, self.best_accuracy = 0, [], -1.0
        if found := find_checkpoint(args, self.save_dir, self.settings, ranks):
            tensors, state = found
            restore(tensors, state, self.model, self.optimizer, ranks)
            self.updates, self.logs, self.best_accuracy = (state[k] for k in ("updates", "logs", "best_accuracy"))
        self.objective = ranks.wrap(FineTuning(self.model, args.lm_coef))
        if ranks.is_first:
            self.announce(n_loaded)
            self.open_files()

    def announce(self, n_loaded: int | None) -> None:
        """Print what is going to happen where."""
        args, task, ranks, cfg = self.args, self.task, self.ranks, self.task.cfg
        n_train, n_valid, n_test = (len(split[0]) for split in task.splits)
        source = "nothing" if n_loaded is None else f"embeddings and {n_loaded} blocks from {args.model_dir}"
        plan = f"{args.n_iter} epochs, {task.t_total} updates of {args.n_batch * args.accumulate * ranks.size} examples"
        print(f"device   {describe_device(args.precision, ranks)}")
        print(f"rows     {n_train} train, {n_valid} valid, {n_test} test, n_ctx {task.n_ctx}")
        print(f"network  {cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads; loaded {source}")
        print(f"plan     {plan}" + f", {self.updates} of them done" * bool(self.updates))

    def open_files(self) -> None:
        """Begin the log and the settings; from here on the files of an earlier run of this name are replaced."""
        for path in [self.log_dir / f"{self.args.desc}.tsv", self.log_dir / f"{self.args.desc}.png"]:
            path.unlink(missing_ok=True)
        if not self.updates:
            remove_checkpoints(self.save_dir)
        settings = self.settings | provenance(self.ranks)
        write_json(self.save_dir / "settings.json", settings, indent=2)
        self.logger = ResultLogger(self.log_dir / f"{self.args.desc}.jsonl", **settings)
        for line in self.logs:
            self.logger.log(**line)

    def train(self, stop: Stop) -> None:
        """Make the updates that are left, with their evaluations and checkpoints."""
        args, ranks, task = self.args, self.ranks, self.task
        n_update = args.n_batch * args.accumulate * ranks.size
        per_epoch = task.t_total // args.n_iter
        try:
            with progress_bar(task.t_total * n_update, "training", ranks, self.updates * n_update) as bar:
                while True:
                    is_logged = self.logs and self.logs[-1]["n_updates"] == self.updates
                    if is_log_due(self.updates, per_epoch) and not is_logged:
                        self.log(self.updates // per_epoch, stop)
                        if self.updates % per_epoch == 0:
                            self.save()
                    if self.updates == task.t_total:
                        return
                    epoch, i = divmod(self.updates, per_epoch)
                    rows = self.orders[epoch][i * n_update : (i + 1) * n_update]
                    self.model.train()
                    batches = (
                        make_batch(task.splits[0], part, ranks.device, args.share_context)
                        for part in make_parts(rows, args.n_batch, ranks)
                    )
                    cost = update(self.objective, batches, args.accumulate, self.optimizer, self.autocast, ranks, rows)
                    self.updates += 1
                    lr = self.optimizer.param_groups[0]["lr"]
                    bar.set_postfix(cost=f"{cost:.3f}", lr=f"{lr:.2e}", refresh=False)
                    bar.update(n_update)
                    if args.checkpoint_every and self.updates % args.checkpoint_every == 0:
                        self.save()
                    stop.here()
        except Stopped:
            self.save()
            raise

    def log(self, epochs: int, stop: Stop) -> None:
        """Evaluate on train and valid rows, and keep the parameters if they are the best so far."""
        args, (train, valid, _) = self.args, self.task.splits
        subset = tuple(column[: args.n_valid] for column in train)
        with self.autocast:
            tr_cost, tr_acc = evaluate(self.model, subset, args.n_batch, self.ranks, "train rows", stop.here)
            va_cost, va_acc = evaluate(self.model, valid, args.n_batch, self.ranks, "valid rows", stop.here)
        line = {"n_epochs": epochs, "n_updates": self.updates}
        line |= {"tr_cost": tr_cost, "va_cost": va_cost, "tr_acc": tr_acc, "va_acc": va_acc}
        self.logs.append(line)
        is_best = va_acc > self.best_accuracy  # the first of equals stays: TF:286-290
        self.best_accuracy = max(va_acc, self.best_accuracy)
        if self.ranks.is_first:
            self.logger.log(**line)
            tqdm.write(
                f"{epochs} {self.updates} train cost {tr_cost:.3f} acc {tr_acc:.2f}  "
                f"valid cost {va_cost:.3f} acc {va_acc:.2f}"
            )
            if is_best:
                save_parameters(self.save_dir / "best_params", self.model)

    def close(self) -> None:
        """Close the log."""
        if self.ranks.is_first:
            self.logger.close()

    def save(self) -> None:
        """Write a checkpoint."""
        state = {"settings": self.settings, "logs": self.logs, "best_accuracy": self.best_accuracy}
        save_checkpoint(self.save_dir, self.updates, self.model, self.optimizer, self.ranks, **state)

    def predict(self, stop: Stop) -> None:
        """Predict the test set with the best parameters and write the choices, for the analysis and to be handed in."""
        self.ranks.wait()  # for the first process to have written them
        load_parameters(self.save_dir / "best_params", self.model)
        with self.autocast:
            x, m, _ = self.task.splits[2]
            logits = predict(self.model, x, m, self.args.n_batch, self.ranks, "test rows", stop.here)
        rows = "".join(f"{i}\t{choice}\n" for i, choice in enumerate(logits.argmax(1).tolist()))
        if self.ranks.is_first:
            name = SUBMISSIONS[self.args.dataset]
            for path in (self.submission_dir / name, self.log_dir / f"{self.args.desc}.tsv"):
                with replacing(path) as file:
                    file.write(f"index\tprediction\n{rows}".encode())


def run(args: argparse.Namespace) -> None:
    """Fine-tune, and as asked predict and analyse. Raises InputError for what the user can mend."""
    started = time.monotonic()
    keep_freed_memory()
    if args.deterministic:
        make_deterministic()
    with join_ranks() as ranks:
        fine_tuning = Run(args, ranks)
        with closing(fine_tuning), Stop(ranks) as stop:
            fine_tuning.train(stop)
            if args.submit:
                fine_tuning.predict(stop)
        if not ranks.is_first:
            return
        log_dir = fine_tuning.log_dir
        if args.analysis:
            ANALYSES[args.dataset](find(args.data_dir), log_dir / f"{args.desc}.tsv", log_dir / f"{args.desc}.jsonl")
        seconds = time.monotonic() - started
        print(f"done in {seconds:.0f} s, {peak_memory(ranks.device)}; see {log_dir}, {fine_tuning.save_dir}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    action = (lambda: verify_authors_files(find(args.model_dir))) if args.verify else (lambda: run(args))
    return exit_code("train.py", action, "--resume goes on")


if __name__ == "__main__":
    sys.exit(main())
