"""Continue a text: `python generate.py --model_dir DIR --prompt TEXT`, or with a fine-tuned run `--run save/DESC`.

Without --prompt and --prompt_file each line of standard input is a prompt. Words are written to standard output as they
come, the speed to standard error. Of several samples the first is written as it comes, the others after it.

`--score FILE` instead writes a table of the file's words, with their surprisal, to standard output (scoring.py) and its
perplexity to standard error, each line by itself with --by_line; `--zero_shot choice --dataset NAME --data_dir DIR`
answers the examples of a data set as section 5 of the paper does.
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("generate.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("GenerateFlags")  # before torch is loaded, which takes seconds

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from formats.files import InputError, decoded, reason, text_lines
from generation import stream_text
from model_pytorch import DoubleHeadModel, LMModel
from port import append_batch  # noqa: F401  a public name of this file
from reading.tasks import find_task
from running.command import exit_code
from running.processes import Ranks, keep_freed_memory
from running.settings import GenerateFlags, parse
from scoring import score_file
from text_utils import TextEncoder
from weights import open_model, open_run
from zero_shot import zero_shot_on

Model = LMModel | DoubleHeadModel


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
            raise InputError(f"{settings.prompt_file} cannot be read ({reason(error)}). Name another file.") from None
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
    has_prompt = settings.prompt is not None or settings.prompt_file is not None
    is_asking = not has_prompt and sys.stdin.isatty()

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
    # the table is written as it comes
    found = score_file(model, encoder, settings.score, sys.stdout, **how)
    print(found.perplexities(), file=sys.stderr)


def write_answers(settings: GenerateFlags, model: Model, encoder: TextEncoder) -> None:
    """Write what --zero_shot gets right on a data set. Raises InputError."""
    folder = Path(settings.data_dir)
    task = find_task(settings.dataset, folder, **settings.own())

    # the words of its labels, where they are not known
    names = None
    if settings.label_names:
        names = tuple(settings.label_names.split(","))
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
        model, encoder = open_model(settings.model_dir)
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
    settings = parse(GenerateFlags, argv)
    return exit_code("generate.py", partial(do_as_told, settings), "the text is incomplete")


if __name__ == "__main__":
    sys.exit(main())
