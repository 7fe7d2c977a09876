"""Fine-tune the transformer on a task: `python train.py --dataset rocstories --submit --analysis --data_dir DIR`.

Read fine_tune below from its first line to its last: it is the whole of fine-tuning, from the seed to the predictions,
with random numbers in the authors' order. Flags and defaults are the paper's and the authors' (running/settings.py).
"TF:n" is line n of the authors' train.py, "FIDELITY n" row n of FIDELITY.md.
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("train.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("FineTuningFlags")  # before torch is loaded, which takes seconds

import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from analysis import analyse
from formats.authors import check_bytes
from formats.config import SIZES
from formats.files import InputError, copy_file, digests, make_output_folder, refuse_folders
from formats.folders import BPE_FILE, ENCODER_FILE, LSTM_FILE, RUN_FILES, is_model, is_run
from loss import PackedLosses
from model_pytorch import DoubleHeadModel
from opt import OpenAIAdam
from reading.rows import (
    N_SPECIAL,
    Rows,
    transform_roc,  # noqa: F401  a public name of this file
)
from reading.splits import Limits, Splits, describe, majority, read_splits
from reading.tasks import Task
from running.checkpoint import load_parameters
from running.command import exit_code
from running.inference import answers, evaluate, predict
from running.lstm import load_lstm
from running.metrics import METRICS
from running.predictions import write_predictions, write_submission
from running.processes import (
    Ranks,
    describe_device,
    peak_memory,
    pick_precision,
)
from running.settings import FineTuningFlags, parse
from running.training import Plan, Run, run_processes, summary_writer
from speed.device import to_device
from text_utils import TextEncoder
from weights import folder_sizes, load_weights, parameter_files, task_model


def fine_tune(settings: FineTuningFlags, ranks: Ranks) -> None:
    """Fine-tune, and if asked predict; the files are written by the first process.

    Raises InputError for what the user can fix.
    """
    make_folders(settings)

    # random numbers in the authors' order: special-token embeddings, then the epochs' shuffles (FIDELITY 78)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)

    # text -> rows; the other processes find the first one's cache
    encoder = TextEncoder(settings.encoder_path, settings.bpe_path)
    with ranks.first_alone():
        splits = read_task(settings, encoder)
    check_class_weights(settings, splits)
    # an output that cannot be written is refused now, not after training
    refuse_folders(output_files(settings, splits.task))
    train = splits.train

    # how many updates that makes
    plan = Plan(len(train), settings.n_batch, settings.accumulate, ranks.size, settings.n_iter)
    check_plan(plan)

    # the network, with the weights of the model folder; this draws the embeddings of the special tokens
    model, loaded = build_network(settings, splits, encoder.n_vocab)
    model.transformer.checkpoint_activations = settings.checkpoint_activations
    model.to(ranks.device)

    # its optimiser, which clips the gradients too
    schedule = {"schedule": settings.lr_schedule, "warmup": settings.lr_warmup, "t_total": plan.t_total}
    optimizer = OpenAIAdam(model.parameters(), **settings.adam(), **schedule)
    optimizer.preallocate()

    # the order of the examples in each epoch; then different dropout masks per process
    order_of_epoch = [shuffled(len(train)) for _ in range(settings.n_iter)]
    torch.manual_seed(settings.seed + ranks.rank)

    # with --resume from the newest checkpoint on (running/checkpoint.py)
    record = record_of(settings, splits, encoder, model, plan, ranks)
    run = Run(settings, plan, model, optimizer, record, ranks)
    if ranks.is_first:
        announce(run, splits, encoder, loaded)
        if run.n_updates == 0:
            remove_results(settings)
        # with its vocabulary the run's folder can be opened alone
        copy_file(Path(settings.encoder_path), run.folder / ENCODER_FILE)
        copy_file(Path(settings.bpe_path), run.folder / BPE_FILE)

    # the losses of a batch (DoubleHeadModel.forward_packed), and how much an example weighs in their means
    losses = run.wrap(PackedLosses(model, settings.lm_coef))
    n_rows = train.n_rows()
    class_weights = None
    if settings.class_weights == "balanced":
        class_weights = balanced_weights(train.labels, splits.n_out()).to(ranks.device)

    with run:
        # a run that was stopped while it was evaluated goes on with that
        if is_log_due(run):
            write_log(run, splits)

        for examples in run.updates(order_of_epoch):
            # forward and backward, a part of the examples at a time
            optimizer.zero_grad()
            cost = 0.0
            for part in run.parts(examples):
                packing = train.packed(part, settings.share_context).to(ranks.device)
                y = to_device(train.targets(part), ranks.device)
                with run.autocast:
                    # the task's loss, and the auxiliary one of the language model
                    task_losses, lm_losses = losses(packing, y)
                    if class_weights is not None:
                        task_losses = task_losses * class_weights[y]
                    loss = task_losses.mean()
                    if lm_losses is not None:  # its mean is over rows, of which parts may have different numbers
                        loss = loss + settings.lm_coef * run.weight(n_rows, part) * lm_losses.mean()
                    loss = loss / settings.accumulate
                loss.backward()
                cost = cost + loss.detach()

            # clip and step, in all processes alike; an update whose cost or gradients are not finite is not made
            cost = ranks.mean(cost)
            norm = optimizer.step(cost=cost)
            run.count(cost, norm)

            # evaluate, and keep the parameters that are best on valid
            if is_log_due(run):
                write_log(run, splits)

        if ranks.is_first:
            warn_of_nothing_learned(run, splits)
        if not settings.submit:
            return

        # predict valid and test with the parameters that were best on valid
        ranks.wait()  # for the first process to have written them
        load_parameters(run.folder / "best_params", model)
        predicted = {}
        with run.autocast:
            for name, rows in (("valid", splits.valid), ("test", splits.test)):
                if rows is not None:
                    logits = predict(model, rows, settings.n_batch, ranks, f"{name} rows")
                    predicted[name] = (rows, logits)
    if ranks.is_first:
        write_results(settings, splits, predicted)


# --- the steps of the page above -------------------------------------------------------------------------------------


def make_folders(settings: FineTuningFlags) -> None:
    """Make the folders of the output. Raises InputError for one that takes no files, now and not after training."""
    if settings.tensorboard:
        summary_writer()  # refuses now if it is not installed

    # the weights that the run starts from are not overwritten
    run_folder = settings.run_folder()
    if Path(settings.model_dir).resolve() == run_folder.resolve():
        raise InputError(f"{run_folder} is the run to go on from, and would be replaced. Give another --desc.")

    folders = [settings.log_dir, run_folder]
    if settings.submit:
        folders.append(settings.submission_dir)
    for folder in folders:
        make_output_folder(Path(folder))


def read_task(settings: FineTuningFlags, encoder: TextEncoder) -> Splits:
    """Return the examples of the data set. Raises InputError."""
    task = settings.find_task()
    if settings.skip_bad:
        task = replace(task, strict=False)

    # a row has no more tokens than the weights have positions
    n_ctx = settings.n_ctx
    if settings.n_transfer >= 0:
        n_ctx = min(n_ctx, folder_sizes(Path(settings.model_dir)).n_positions)
    limits = Limits(settings.n_valid, settings.seed, n_ctx, settings.max_examples)
    return read_splits(task, Path(settings.data_dir), encoder, limits)


def check_class_weights(settings: FineTuningFlags, splits: Splits) -> None:
    """Raise InputError for class weights where there are no classes."""
    has_classes = splits.task.scores is None and not splits.train.has_choices()
    if settings.class_weights == "balanced" and not has_classes:
        raise InputError("--class_weights balanced needs classes: leave it out for scores and multiple choice.")


def check_plan(plan: Plan) -> None:
    """Raise InputError when the examples are fewer than one update takes."""
    if plan.per_epoch == 0:
        raise InputError(
            f"--n_batch {plan.n_batch} x --accumulate {plan.accumulate} x {plan.n_processes} processes is more than "
            f"the {plan.n_examples} examples to train on. Lower one of them or --n_valid."
        )


def build_network(settings: FineTuningFlags, splits: Splits, n_vocab: int) -> tuple[DoubleHeadModel, str]:
    """Return the network with its weights, and in words what was loaded.

    Raises InputError when flags, vocabulary and weights contradict each other.
    """
    # sizes: from the flags, or else from the model folder
    model_dir = Path(settings.model_dir)
    loads = settings.n_transfer >= 0
    sizes = None
    if loads or is_model(model_dir) or is_run(model_dir):
        sizes = folder_sizes(model_dir)

    # weights that are loaded fit the vocabulary, and are as many as their sizes ask for
    if loads and n_vocab != sizes.n_vocab:
        raise InputError(
            f"{settings.encoder_path} has {n_vocab} tokens, the weights in {model_dir} are for {sizes.n_vocab}. "
            "Take both from one model."
        )
    if loads and not is_run(model_dir):
        check_bytes(model_dir, sizes)

    # the settings of the network
    try:
        cfg = settings.config() if sizes is None else settings.config(sizes)
    except ValueError as error:
        raise InputError(str(error)) from None

    # the longest row decides how many positions there are
    n_ctx = splits.n_ctx()
    model = task_model(cfg, splits.task.form, splits.n_out(), n_vocab, n_ctx)

    # its weights
    if not loads:
        np.random.randn(N_SPECIAL, cfg.n_embd)  # what the loader draws: the epochs' order stays the same
        return model, "nothing"
    n_blocks = load_weights(model.transformer, settings.n_transfer, model_dir)
    if settings.lstm is not None:
        load_lstm(model.transformer, n_vocab, Path(settings.encoder_path), Path(settings.lstm))
        return model, f"the LSTM in {settings.lstm}, in the place of the blocks"
    return model, f"embeddings and {n_blocks} blocks from {model_dir}"


def shuffled(n: int) -> np.ndarray:
    """Return 0 .. n - 1 shuffled by NumPy's global generator (TF:431-440)."""
    from sklearn.utils import shuffle  # here: it imports scipy

    return shuffle(np.arange(n))


def balanced_weights(labels: np.ndarray, n_labels: int) -> Tensor:
    """Return N / (n_labels * count) of each label, so that all labels weigh the same: for [0 0 0 1], 2/3 and 2."""
    counts = np.bincount(labels, minlength=n_labels).clip(min=1)
    return torch.tensor(len(labels) / (n_labels * counts), dtype=torch.float32)


def record_of(
    settings: FineTuningFlags,
    splits: Splits,
    encoder: TextEncoder,
    model: DoubleHeadModel,
    plan: Plan,
    ranks: Ranks,
) -> dict:
    """Return what settings.json holds of this run: the fields of RunRecord, and others."""
    # what the flags set, and the files that it depends on
    weights = []
    if settings.n_transfer >= 0:
        weights = parameter_files(Path(settings.model_dir))
    if settings.lstm is not None:
        weights.append(Path(settings.lstm) / LSTM_FILE)
    set_by_flags = settings.fixed_on_resume() | {
        "n_processes": ranks.size,
        "precision": pick_precision(settings.precision, ranks.device),
        "digests": digests([*splits.files, *encoder.files, *weights]),
        "notes": list(splits.notes),
    }

    # what was found in the data: whoever opens the run reads with it as the run did
    task = splits.task
    found = {
        "title": task.title,
        "form": task.form,
        "cut": task.cut,
        "labels": list(task.shown_labels() or ()),
        "scores": None if task.scores is None else list(task.scores),
        "metrics": list(task.metrics),
        "n_out": splits.n_out(),
        "n_vocab": encoder.n_vocab,
        "n_ctx": splits.n_ctx(),
        "n_ctx_allowed": splits.train.layout.n_ctx,
        "vocabulary": list(digests(encoder.files).values()),
        "t_total": plan.t_total,
    }
    sizes = {name: getattr(model.cfg, name) for name in SIZES}
    return set_by_flags | found | sizes


def is_log_due(run: Run) -> bool:
    """Return whether to evaluate: after each epoch, and in the first at updates 1000, 2000, 4000, ... (TF:431-440)."""
    if run.n_updates == run.n_updates_logged():
        return False
    if run.n_updates % run.plan.per_epoch == 0:
        return True
    thousands, rest = divmod(run.n_updates, 1000)
    return run.n_updates < run.plan.per_epoch and rest == 0 and thousands.bit_count() == 1


def write_log(run: Run, splits: Splits) -> None:
    """Write cost and metrics of the first n_valid examples of train, and of valid, to the log."""
    run.settle()
    names = splits.task.metrics
    subset = splits.train.first(run.settings.n_valid)
    costs = {}
    metrics = {}
    shown = []
    for key, name, rows in (("tr", "train", subset), ("va", "valid", splits.valid)):
        with run.autocast:
            cost, found = evaluate(run.model, rows, names, run.settings.n_batch, run.ranks, f"{name} rows")

        # as the log has it: all costs, then all metrics
        costs[f"{key}_cost"] = cost
        for metric, value in found.items():
            metrics[f"{key}_{metric}"] = value

        # as it is printed
        words = " ".join(f"{metric} {value:.2f}" for metric, value in found.items())
        shown.append(f"{name} cost {cost:.3f} {words}")
    run.write_log(costs | metrics, "  ".join(shown), best_by=f"va_{names[0]}")


def warn_of_nothing_learned(run: Run, splits: Splits) -> None:
    """Print a warning if the run is no better than a constant prediction.

    No better means: a correlation of 1 % or less, the share of the most frequent label, or a cost within 0.02 nats of
    a blind guess.
    """
    metric = splits.task.metrics[0]
    best = max(line[f"va_{metric}"] for line in run.logs)
    reason = None
    # a constant prediction has a correlation of 0
    if splits.task.scores is not None or metric == "mcc":
        if best <= 1:
            reason = f"the best {METRICS[metric].title} on valid is {best:.2f} %"
    else:
        # a blind guess among n labels or choices costs ln n
        n_labels = splits.valid.n_choices() if splits.train.has_choices() else splits.n_out()
        cost = run.logs[-1]["tr_cost"]
        accuracy = max(line.get("va_acc", 100.0) for line in run.logs)  # without one there is no such reason
        if accuracy <= 100 * majority(splits):
            reason = f"valid accuracy {accuracy:.2f} % is no better than always predicting one label"
        elif abs(cost - np.log(n_labels)) < 0.02:
            blind = f"ln {n_labels} = {np.log(n_labels):.3f}, a blind guess"
            reason = f"the cost on train, {cost:.3f}, is stuck near {blind}"
    if reason is not None:
        print(f"warning  {reason}. Try a longer warm-up (--lr_warmup 0.1), a lower --lr, or another --seed.")


def announce(run: Run, splits: Splits, encoder: TextEncoder, loaded: str) -> None:
    """Print device, examples, network and plan."""
    print(f"device   {describe_device(run.precision, run.ranks)}")

    # the examples, and what was done to some of them
    n_test = 0 if splits.test is None else len(splits.test)
    n_examples = f"{len(splits.train)} train, {len(splits.valid)} valid, {n_test} test"
    print(f"examples {n_examples}, n_ctx {splits.n_ctx()}")
    print("\n".join(describe(splits, encoder)))

    cfg = run.model.cfg
    sizes = f"{cfg.n_layer} blocks, {cfg.n_embd} features, {cfg.n_head} heads"
    print(f"network  {sizes}; loaded {loaded}")

    # a run that is resumed has less to do
    plan = run.plan
    updates = f"{plan.t_total} updates of {plan.update_size} examples"
    if run.n_updates > 0:
        updates += f", {run.n_updates} of them done"
    print(f"plan     {plan.n_iter} epochs, {updates}")


def write_results(settings: FineTuningFlags, splits: Splits, predicted: dict[str, tuple[Rows, Tensor]]) -> None:
    """Write the predictions of valid and test, and of test the file to hand in.

    Args:
        predicted: name of the split -> its rows and their logits.
    """
    # for the analysis
    path = settings.log_file("predictions.jsonl")
    parts = {"valid": splits.valid_parts, "test": splits.test_parts}
    write_predictions(path, splits.task, predicted, parts)

    # as the data set's authors ask for it
    if splits.test is not None:
        _, logits = predicted["test"]
        found = answers(logits, splits.task.scores)
        ids = []
        if settings.dataset == "own":  # no official example has one
            ids = [splits.test.example(i).id for i in range(len(splits.test))]
        write_submission(Path(settings.submission_dir), splits.task, splits.test_parts, found, ids)


def result_files(settings: FineTuningFlags) -> list[Path]:
    """Return the files of predictions and analysis."""
    return [settings.log_file(suffix) for suffix in ("predictions.jsonl", "png", "json", "errors.tsv")]


def output_files(settings: FineTuningFlags, task: Task) -> list[Path]:
    """Return the files that the run writes."""
    # the log and its results
    written = [settings.log_file(), *result_files(settings)]

    # the run's folder
    written += [settings.run_folder() / name for name in RUN_FILES]

    # what is handed in
    if settings.submit:
        written += [Path(settings.submission_dir) / name for name in task.submission.values()]
    return written


def remove_results(settings: FineTuningFlags) -> None:
    """Remove the results of an earlier run of the same name."""
    for path in result_files(settings):
        path.unlink(missing_ok=True)


# --- the command -----------------------------------------------------------------------------------------------------


def run(settings: FineTuningFlags) -> None:
    """Fine-tune, and as asked predict and analyse. Raises InputError for what the user can fix."""
    started = time.monotonic()
    with run_processes(settings) as ranks:
        fine_tune(settings, ranks)

    # one process reports for all
    if not ranks.is_first:
        return
    if settings.analysis:
        analyse(Path(settings.log_dir), settings.desc)
    seconds = time.monotonic() - started
    print(f"done in {seconds:.0f} s, {peak_memory(ranks.device)}; see {settings.log_dir} and {settings.run_folder()}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(FineTuningFlags, argv)
    return exit_code("train.py", lambda: run(settings), "--resume goes on")


if __name__ == "__main__":
    sys.exit(main())
