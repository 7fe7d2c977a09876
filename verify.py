"""Whether a model folder is the authors': its files by their digests, and the model by answers known from elsewhere.

The answers were published by others: hidden states of the authors' own TensorFlow graph (AllenNLP 0.9.0), greedy
tokens (tests of Hugging Face transformers), a logit (tests of rust-bert), perplexities (Hugging Face issue 473).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from formats.authors import FolderSizes, read_sizes, verify_authors_files
from formats.files import InputError, find
from reading.rows import position_rows
from weights import open_model

AUTHORS_SIZES = FolderSizes(n_vocab=40478, n_positions=512, n_embd=768, n_head=12, n_layer=12)
STATES_FILE = "known/real_weights_states.npz"

SENTENCE = (
    "I decided to rent a movie when friends came over last night. "
    "After looking through selections we decided on comedy."
)
GREEDY_START = [481, 4735, 544]  # the president is
GREEDY = GREEDY_START + [246, 963, 870, 762, 239, 244, 40477, 244, 249, 719, 881, 487, 544, 240, 244, 603, 481]
LOGIT_IDS, LOGIT_AT, LOGIT = [3039, 599, 481, 1115, 1392, 812], 580, 9.1056
WORDS = {"there": 655, "is": 544, "a": 246, "book": 1861, "plane": 3787, "on": 504, "in": 500, "the": 481, "desk": 2181}
PERPLEXITIES = {
    "there is a book on the desk": 21.3165,
    "there is a plane on the desk": 61.4591,
    "there is a book in the desk": 26.2492,
}
STATES_TOLERANCE, LOGIT_TOLERANCE = 1e-4, 1e-4
PERPLEXITY_TOLERANCE = 1e-4  # of the value: rounding in 6 losses


@dataclass(frozen=True)
class Answer:
    """One question to a model."""

    name: str
    expected: str
    found: str
    is_right: bool


def _listed(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _shown(values: Tensor) -> str:
    return " ".join(f"{value:.6f}" for value in values.tolist())


def known_answers(
    encode: Callable[[str], list[int]],
    states: Callable[[Sequence[int]], Tensor],
    logits: Callable[[Sequence[int]], Tensor],
) -> Iterator[Answer]:
    """Ask a model all questions whose answers are known for the authors' weights.

    Args:
        encode: text -> token ids.
        states: token ids -> hidden states of the last block (T, C).
        logits: token ids -> logits of the next token (T, n_vocab), without special and position rows.
    """
    known = np.load(find(STATES_FILE))
    found = [int(i) for i in encode(SENTENCE)]
    expected = known["ids_0"].tolist()
    yield Answer("tokens of a sentence", _listed(expected), _listed(found), found == expected)

    for i in (0, 1):
        expected = torch.from_numpy(known[f"states_{i}"])
        value = states(known[f"ids_{i}"].tolist()).float().cpu()
        difference = (value - expected).abs().max().item()
        what = f"{_shown(value[0, :3])} ..., largest difference {difference:.1e}"
        yield Answer(
            f"states of {len(expected)} tokens",
            f"{_shown(expected[0, :3])} ..., within {STATES_TOLERANCE:.0e}",
            what,
            difference <= STATES_TOLERANCE,  # never so for NaN
        )

    ids = list(GREEDY_START)
    while len(ids) < len(GREEDY):
        ids.append(int(logits(ids)[-1].argmax()))
    yield Answer("20 greedy tokens", _listed(GREEDY), _listed(ids), ids == GREEDY)

    last = logits(LOGIT_IDS)[-1]
    top, value = int(last.argmax()), last.max().item()
    is_right = top == LOGIT_AT and abs(value - LOGIT) <= LOGIT_TOLERANCE
    yield Answer("largest logit", f"{LOGIT:.4f} of token {LOGIT_AT}", f"{value:.4f} of token {top}", is_right)

    for text, expected in PERPLEXITIES.items():
        ids = [WORDS[word] for word in text.split()]
        losses = torch.nn.functional.cross_entropy(logits(ids)[:-1].double(), torch.tensor(ids[1:]))
        value = losses.exp().item()
        is_right = abs(value - expected) <= PERPLEXITY_TOLERANCE * expected
        yield Answer(f"perplexity of {text!r}", f"{expected:.4f}", f"{value:.4f}", is_right)


def report(answers: Iterator[Answer]) -> list[str]:
    """Print each answer with what was expected, and return the names of those that are wrong."""
    wrong = []
    for answer in answers:
        print(f"{'ok' if answer.is_right else 'wrong':8} {answer.name}")
        print(f"         expected {answer.expected}\n         found    {answer.found}")
        if not answer.is_right:
            wrong.append(answer.name)
    return wrong


def verify(folder: Path) -> None:
    """Check the files of a model folder and, where the model has the authors' sizes, its answers.

    The files of the weights are checked in the authors' format only: Hugging Face's differ from release to release.

    Raises InputError when a file is not theirs or an answer is wrong.
    """
    problems, wrong = [], []
    try:
        verify_authors_files(folder)
    except InputError as error:
        problems.append(str(error))
    try:
        sizes = read_sizes(folder)
        if sizes == AUTHORS_SIZES:
            wrong = report(ask(folder))
        else:
            problems = problems or [f"{folder} has {sizes}, the authors' weights have {AUTHORS_SIZES}."]
    except InputError as error:  # of a file that is named already, unless it is a Hugging Face folder's
        problems = problems or [str(error)]
    if wrong:
        problems.append(f"{folder}: wrong answers, {', '.join(wrong)}. Fetch the weights again.")
    if problems:
        raise InputError(" ".join(problems))


@torch.no_grad()
def ask(folder: Path) -> Iterator[Answer]:
    """Open a model folder and ask it all questions. Raises InputError."""
    model, encoder = open_model(folder, return_probs=False)
    n_vocab = len(encoder.encoder)

    def x(ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(position_rows(np.array([ids]), n_vocab))

    yield from known_answers(
        lambda text: encoder.encode([text], verbose=False)[0],
        lambda ids: model.transformer(x(ids))[0],
        lambda ids: model(x(ids))[0, :, :n_vocab],
    )
