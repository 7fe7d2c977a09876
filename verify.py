"""Check that a model folder is the authors': `python verify.py --model_dir model`.

Its files are known by their digests, and the model by answers that others published: hidden states of the authors' own
TensorFlow graph (AllenNLP 0.9.0), greedy tokens (tests of Hugging Face transformers), a logit (tests of rust-bert),
perplexities (Hugging Face issue 473).
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("verify.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("VerifyFlags")  # before torch is loaded, which takes seconds

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from formats.files import InputError, refuse_special
from formats.folders import BPE_FILE, ENCODER_FILE, FolderSizes, is_hugging_face, read_sizes, vocabulary_files
from reading.rows import with_positions
from running.command import exit_code
from running.settings import VerifyFlags, parse
from weights import open_model

# git blob ids of the authors' published files (openai/finetune-transformer-lm, commit a69b5c4, folder model/)
AUTHORS_BLOB_IDS = {
    "params_0.npy": "84d83ac1f1cc878f56f33b167482c184491875d2",
    "params_1.npy": "0f19f4d4cda3d8f908e3faffd2cb2a8b9a4039da",
    "params_2.npy": "25bc19c72fdff69505a828ec6d73b32063532148",
    "params_3.npy": "5b2e6958d42a930966c9d602a012eb846ca67c83",
    "params_4.npy": "87ad158987e307e6aa64952610f466d750b73bc7",
    "params_5.npy": "74f3853316bba327229605dbedfe921996f11448",
    "params_6.npy": "5ef44e40bc076d0c9686d1273d54cbc16c3f0980",
    "params_7.npy": "d8d5c8d3bee9b20a677605ac1fe6c7af4df57c94",
    "params_8.npy": "f980f4b393716f396ae5ae6401708dcf4f270dc9",
    "params_9.npy": "d389eb2074dd74754444b8062aba78b49f6a9053",
    ENCODER_FILE: "9dc3f0af5a80956e57dc8d9401e16dfadcade7c2",
    BPE_FILE: "0023a687b3d4d0b795a5e97cc914bdabb5a253df",
    "params_shapes.json": "29fac299ae848d7e447be84a33345edcf1b5353c",
}
AUTHORS_SIZES = FolderSizes(n_vocab=40478, n_positions=512, n_embd=768, n_head=12, n_layer=12)

# the questions, by token ids, and their answers
STATES_FILE = Path(__file__).parent / "known/real_weights_states.npz"
SENTENCE = (
    "I decided to rent a movie when friends came over last night. "
    "After looking through selections we decided on comedy."
)
GREEDY_START = [481, 4735, 544]  # the president is
GREEDY = GREEDY_START + [246, 963, 870, 762, 239, 244, 40477, 244, 249, 719, 881, 487, 544, 240, 244, 603, 481]
LOGIT_IDS = [3039, 599, 481, 1115, 1392, 812]
LOGIT_AT, LOGIT = 580, 9.1056
WORDS = {"there": 655, "is": 544, "a": 246, "book": 1861, "plane": 3787, "on": 504, "in": 500, "the": 481, "desk": 2181}
PERPLEXITIES = {
    "there is a book on the desk": 21.3165,
    "there is a plane on the desk": 61.4591,
    "there is a book in the desk": 26.2492,
}
TOLERANCE = 1e-4  # of states, of the logit and, as a share, of perplexities: rounding in 6 losses


# --- the files -------------------------------------------------------------------------------------------------------


def git_blob_id(path: Path) -> str:
    """Return the id git gives a file's content: sha1 of `blob <size>`, a zero byte and the bytes."""
    refuse_special(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def verify_files(folder: Path) -> list[str]:
    """Print for each file of a model folder whether it is the authors', and return those that are not.

    Of a Hugging Face folder, the two vocabulary files: those of its weights differ from release to release.
    """
    # which files, with the ids they should have
    blob_ids = {folder / name: blob_id for name, blob_id in AUTHORS_BLOB_IDS.items()}
    if is_hugging_face(folder):
        vocabulary, merges = vocabulary_files(folder)
        blob_ids = {vocabulary: AUTHORS_BLOB_IDS[ENCODER_FILE], merges: AUTHORS_BLOB_IDS[BPE_FILE]}

    # compare
    wrong = []
    for path, blob_id in blob_ids.items():
        if not path.exists():
            verdict = "missing"
        elif git_blob_id(path) != blob_id:
            verdict = "differs"
        else:
            verdict = "ok"
        print(f"{verdict:8} {path}")
        if verdict != "ok":
            wrong.append(f"{path.name} ({verdict})")
    return wrong


# --- the answers -----------------------------------------------------------------------------------------------------


class OpenedModel:
    """A model folder, opened to be asked. Raises InputError for a folder that cannot be."""

    def __init__(self, folder: Path):
        self.model, self.encoder = open_model(folder, return_probs=False)
        self.n_vocab = len(self.encoder.encoder)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self.encoder.encode([text], verbose=False)[0]

    @torch.no_grad()
    def states(self, ids: Sequence[int]) -> Tensor:
        """Return the hidden states of the last block, (T, C)."""
        return self.model.transformer(self._input(ids))[0]

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits of the next tokens, (T, n_vocab), without special tokens and positions."""
        return self.model(self._input(ids))[0, :, : self.n_vocab]

    def _input(self, ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(with_positions(np.array([ids]), self.n_vocab))


@dataclass(frozen=True)
class Answer:
    """One question to a model."""

    name: str
    expected: str
    found: str
    is_right: bool  # never for NaN


def known_answers(model: OpenedModel) -> Iterator[Answer]:
    """Ask a model all questions whose answers are known for the authors' weights."""
    known = np.load(STATES_FILE)

    # the tokens of a sentence
    expected = known["ids_0"].tolist()
    found = list(model.encode(SENTENCE))
    yield Answer("tokens of a sentence", _listed(expected), _listed(found), found == expected)

    # hidden states of two sentences
    for i in (0, 1):
        expected = torch.from_numpy(known[f"states_{i}"])
        found = model.states(known[f"ids_{i}"].tolist()).float().cpu()
        difference = (found - expected).abs().max().item()
        yield Answer(
            f"states of {len(expected)} tokens",
            f"{_first_three(expected)} ..., within {TOLERANCE:.0e}",
            f"{_first_three(found)} ..., largest difference {difference:.1e}",
            difference <= TOLERANCE,
        )

    # the most likely continuation
    ids = list(GREEDY_START)
    while len(ids) < len(GREEDY):
        ids.append(int(model.logits(ids)[-1].argmax()))
    yield Answer("20 greedy tokens", _listed(GREEDY), _listed(ids), ids == GREEDY)

    # one logit
    last = model.logits(LOGIT_IDS)[-1]
    at = int(last.argmax())
    is_right = at == LOGIT_AT and abs(last[at].item() - LOGIT) <= TOLERANCE
    yield Answer("largest logit", f"{LOGIT:.4f} of token {LOGIT_AT}", f"{last[at]:.4f} of token {at}", is_right)

    # perplexities of the tokens after the first
    for text, expected in PERPLEXITIES.items():
        ids = [WORDS[word] for word in text.split()]
        logits = model.logits(ids)[:-1].double()
        loss = F.cross_entropy(logits, torch.tensor(ids[1:]))
        found = loss.exp().item()
        is_right = abs(found - expected) <= TOLERANCE * expected
        yield Answer(f"perplexity of {text!r}", f"{expected:.4f}", f"{found:.4f}", is_right)


def _listed(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _first_three(states: Tensor) -> str:
    first = states[0, :3].tolist()
    return " ".join(f"{value:.6f}" for value in first)


def report(answers: Iterable[Answer]) -> list[str]:
    """Print each answer with what was expected, and return the names of those that are wrong."""
    wrong = []
    for answer in answers:
        verdict = "ok"
        if not answer.is_right:
            verdict = "wrong"
            wrong.append(answer.name)
        print(f"{verdict:8} {answer.name}")
        print(f"         expected {answer.expected}\n         found    {answer.found}")
    return wrong


# --- the command -----------------------------------------------------------------------------------------------------


def verify(folder: Path) -> None:
    """Check the files of a model folder and, where the model has the authors' sizes, its answers.

    Raises InputError when a file is not theirs or an answer is wrong.
    """
    problems = []

    # the files, whatever the answers
    wrong_files = verify_files(folder)
    if wrong_files:
        problems.append(f"{folder}: not the authors' files: {', '.join(wrong_files)}. Fetch them again.")

    # the answers, whatever the files
    try:
        sizes = read_sizes(folder)
        if sizes != AUTHORS_SIZES:
            raise InputError(f"{folder} has {sizes}, the authors' weights have {AUTHORS_SIZES}.")
        wrong_answers = report(known_answers(OpenedModel(folder)))
        if wrong_answers:
            raise InputError(f"{folder}: wrong answers, {', '.join(wrong_answers)}. Fetch the weights again.")
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError(" ".join(problems))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(VerifyFlags, argv)
    return exit_code("verify.py", partial(verify, Path(settings.model_dir)), "nothing was changed")


if __name__ == "__main__":
    sys.exit(main())
