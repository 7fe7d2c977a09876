"""Continue a text: `python generate.py --model_dir DIR --prompt TEXT`, or with a fine-tuned run `--run save/DESC`.

Without --prompt and --prompt_file each line of standard input is a prompt. Words are written to standard output as they
come, the speed to standard error. Of several samples the first is written as it comes, the others after it.

`--score FILE` instead writes a table of the file's words, with their surprisal, to standard output (scoring.py) and its
perplexity to standard error, each line by itself with --by_line; `--zero_shot choice --dataset NAME --data_dir DIR`
answers the examples of a data set as section 5 of the paper does.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from formats.files import InputError, decoded, text_lines
from generation import stream_text
from model_pytorch import DoubleHeadModel, LMModel
from port import append_batch  # noqa: F401  a public name of this file
from reading.tasks import find_task
from running.command import exit_code
from running.processes import Ranks, keep_freed_memory
from running.settings import COUNT, NOT_NEGATIVE, SEED, OwnFlags, dataset_names, number, parse, setting
from scoring import score_file
from text_utils import TextEncoder
from weights import open_model, open_run
from zero_shot import HEURISTICS, zero_shot_on

Model = LMModel | DoubleHeadModel


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(OwnFlags):
    """The flags of generate.py."""

    model_dir: str | None = setting(None, "folder of a pre-trained model; default: model/")
    run: str | None = setting(None, "folder of a fine-tuned run, save/<desc>, instead of --model_dir")
    prompt: str | None = setting(None, "text to continue")
    prompt_file: str | None = setting(None, "file with the text to continue, in UTF-8")
    n_tokens: int = setting(100, "tokens of each sample, at most", COUNT)
    temperature: float = setting(1.0, "divides the logits; 0: always the most probable token", NOT_NEGATIVE)
    top_k: int = setting(40, "sample among so many of the most probable tokens; 0: all", number(int, 0))
    top_p: float = setting(
        1.0, "sample among the most probable tokens that sum to this probability", number(float, 0, 1)
    )
    repetition_penalty: float = setting(1.0, "makes tokens that occurred less probable; 1: not", number(float, 1))
    seed: int = setting(42, "of the random numbers", SEED)
    n_samples: int = setting(1, "continuations of the prompt, computed together", COUNT)
    stop: str | None = setting(None, "end a sample before this text; default: only after --n_tokens")
    score: str | None = setting(None, "text file to score instead, in UTF-8")
    stride: int | None = setting(
        None, "of --score: tokens from one window of n_ctx tokens to the next; default: half of n_ctx", COUNT
    )
    all_rows: bool = setting(
        False, "of --score: normalise over special tokens and positions too, as the training loss does"
    )
    by_line: bool = setting(False, "of --score: score each line of the file by itself; default: all lines as one text")
    zero_shot: str | None = setting(
        None,
        "answer the examples of --dataset instead: choice (of the highest mean log-probability), sentiment ('very' "
        "positive or negative) or acceptability (mean log-probability, threshold fitted on train)",
        choices=list(HEURISTICS),
    )
    label_names: str | None = setting(
        None, "of --zero_shot sentiment and acceptability: the bad label and the good one, as neg,pos; default: known"
    )
    dataset: str = setting("rocstories", "of --zero_shot, as of train.py", choices=dataset_names)
    data_dir: str = setting("data/", "of --zero_shot: folder of the data set's files", is_input=True)
    n_valid: int = setting(374, "of --zero_shot: examples taken for validation where there is no file of them", COUNT)

    def __post_init__(self):
        """Check all values. Raises ValueError."""
        super().__post_init__()
        for one, other in (("model_dir", "run"), ("prompt", "prompt_file"), ("score", "zero_shot")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} exclude each other: give one")
        if (self.dataset == "own") != (self.task is not None):
            raise ValueError("task is the form of dataset own: give both or neither")
        if self.by_line and self.score is None:
            raise ValueError("by_line is of --score: give both or neither")
        if self.stop == "":
            raise ValueError("stop is empty: leave it out")


def read_prompts(settings: GenerateFlags) -> Iterator[tuple[str, str, str]]:
    """Yield the prompt of the flags, or each line of standard input, what is wrong with it, and where it stands.

    Raises InputError.
    """
    if settings.prompt is not None:
        yield *decoded(os.fsencode(settings.prompt)), "--prompt"
    elif settings.prompt_file is not None:
        try:
            content = Path(settings.prompt_file).read_bytes()
        except OSError as error:
            raise InputError(f"{settings.prompt_file} cannot be read ({error.strerror}). Name another file.") from None
        yield *decoded(content), settings.prompt_file
    else:
        for i, line, why in text_lines(iter(ask, b"")):
            if line.strip() or why:
                yield line, why, f"standard input, line {i}"


def ask() -> bytes:
    """Return the next line of standard input, empty at its end."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.buffer.readline()


def continue_prompts(settings: GenerateFlags, model: Model, encoder: TextEncoder) -> None:
    """Continue each prompt. Raises InputError; at a terminal it is written instead, and another prompt asked for."""
    is_asking = settings.prompt is None and settings.prompt_file is None and sys.stdin.isatty()
    # one stream of random numbers for all prompts
    generator = torch.Generator(model.transformer.embed.weight.device).manual_seed(settings.seed)
    for prompt, why, where in read_prompts(settings):
        try:
            if why:
                raise InputError(f"{where}: {why}")
            continue_prompt(settings, model, encoder, prompt, generator)
        except InputError as error:
            if not is_asking:
                raise
            print(f"generate.py: {error}", file=sys.stderr)


def continue_prompt(
    settings: GenerateFlags, model: Model, encoder: TextEncoder, prompt: str, generator: torch.Generator
) -> None:
    """Write the continuations of a prompt, and the speed. Raises InputError."""
    # nothing is computed yet, but a prompt that cannot be continued is refused
    n_samples = settings.n_samples
    names = ("n_samples", "temperature", "top_k", "top_p", "repetition_penalty")
    how = {name: getattr(settings, name) for name in names}
    stops = [] if settings.stop is None else [settings.stop]
    steps = stream_text(model, encoder, prompt, settings.n_tokens, stops=stops, generator=generator, **how)

    # the first sample as it comes
    if n_samples > 1:
        print(f"--- sample 1 of {n_samples}")
    texts = [""] * n_samples
    n_steps = 0
    start = time.perf_counter()
    for words in steps:
        print(words[0], end="", flush=True)
        texts = [text + word for text, word in zip(texts, words, strict=True)]
        n_steps += 1
    seconds = time.perf_counter() - start
    print()

    # the others
    for i, text in enumerate(texts[1:], 2):
        print(f"--- sample {i} of {n_samples}", text, sep="\n", flush=True)

    # how it went
    n_ctx = model.transformer.n_ctx
    if len(encoder.encode([prompt], verbose=False)[0]) + n_steps > n_ctx:
        note = f"the window of {n_ctx} tokens is full; it goes on with its last {n_ctx // 2} each time it is"
        print(f"generate.py: {note}", file=sys.stderr)
    n_tokens = n_steps * n_samples  # computed, those of samples that have ended too
    print(f"{n_tokens} tokens in {seconds:.1f} s, {n_tokens / seconds:.1f} tokens/s", file=sys.stderr)


def write_scores(settings: GenerateFlags, model: Model, encoder: TextEncoder) -> None:
    """Write the table of --score, and the perplexity. Raises InputError."""
    how = {name: getattr(settings, name) for name in ("stride", "all_rows", "by_line")}
    found = score_file(model, encoder, settings.score, sys.stdout, **how)
    print(found.perplexities(), file=sys.stderr)


def write_answers(settings: GenerateFlags, model: Model, encoder: TextEncoder) -> None:
    """Write what --zero_shot gets right on a data set. Raises InputError."""
    folder = Path(settings.data_dir)
    task = find_task(settings.dataset, folder, **settings.own())
    names = tuple(settings.label_names.split(",")) if settings.label_names else None
    lines = zero_shot_on(model, encoder, settings.zero_shot, task, folder, settings.n_valid, settings.seed, names)
    print("\n".join(lines))


def do_as_told(settings: GenerateFlags) -> None:
    """Open the model and do what the flags ask for. Raises InputError for what the user can fix."""
    keep_freed_memory()

    # the model
    if settings.run is not None:
        opened = open_run(settings.run)
        model = opened.model
        encoder = opened.encoder
    else:
        model, encoder = open_model("model/" if settings.model_dir is None else settings.model_dir)
    model.to(Ranks().device)

    # one of three jobs
    if settings.score is not None:
        write_scores(settings, model, encoder)
    elif settings.zero_shot is not None:
        write_answers(settings, model, encoder)
    else:
        continue_prompts(settings, model, encoder)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(GenerateFlags, "Continue a text.", argv)
    return exit_code("generate.py", partial(do_as_told, settings), "the text is incomplete")


if __name__ == "__main__":
    sys.exit(main())
