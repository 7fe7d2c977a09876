"""The check of answers known for the authors' weights, fed with a stand-in whose answers are right, or one is wrong.

The authors' weights are not in this repository: that they give these answers is not run here.
"""

import dataclasses
import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import Tensor

import convert
import verify
from formats import authors as shards
from formats import folders
from formats.files import InputError
from text_utils import TextEncoder

N = 40478
NAMES = [
    "tokens of a sentence",
    "states of 22 tokens",
    "states of 41 tokens",
    "20 greedy tokens",
    "largest logit",
    "perplexity of 'there is a book on the desk'",
    "perplexity of 'there is a plane on the desk'",
    "perplexity of 'there is a book in the desk'",
]
TOKENS = [249, 1925, 485, 6231, 246, 4121, 669, 1662, 939, 715, 1009]
TOKENS += [995, 239, 861, 1081, 822, 37700, 606, 1925, 504, 20267, 239]
GREEDY = [481, 4735, 544, 246, 963, 870, 762, 239, 244, 40477, 244, 249, 719, 881, 487, 544, 240, 244, 603, 481]
PERPLEXITIES = {  # of SPEC section 12, written anew
    (655, 544, 246, 1861, 504, 481, 2181): 21.3165,
    (655, 544, 246, 3787, 504, 481, 2181): 61.4591,
    (655, 544, 246, 1861, 500, 481, 2181): 26.2492,
}


class StandIn:
    """Answers as the authors' weights do, by looking the answers up."""

    def __init__(self) -> None:
        known = np.load(ROOT / "known/real_weights_states.npz")
        self.tokens = list(TOKENS)
        self.known = {tuple(known[f"ids_{i}"].tolist()): torch.from_numpy(known[f"states_{i}"]) for i in (0, 1)}
        self.greedy = list(GREEDY)
        self.top = {(3039, 599, 481, 1115, 1392, 812): (580, 9.1056)}
        self.perplexities = dict(PERPLEXITIES)

    def encode(self, text: str) -> list[int]:
        assert text.startswith("I decided to rent a movie") and text.endswith("on comedy.")
        return self.tokens

    def states(self, ids: Sequence[int]) -> Tensor:
        return self.known[tuple(ids)]

    def logits(self, ids: Sequence[int]) -> Tensor:
        logits = torch.zeros(len(ids), N)
        if tuple(ids) in self.top:
            at, value = self.top[tuple(ids)]
            logits[-1, at] = value
        elif tuple(ids) in self.perplexities:  # each next token has the probability 1 / perplexity
            p = 1 / self.perplexities[tuple(ids)]
            logits[range(len(ids) - 1), ids[1:]] = math.log(p / (1 - p) * (N - 1))
        else:
            assert list(ids) == self.greedy[: len(ids)]
            logits[-1, self.greedy[len(ids)]] = 1.0
        return logits

    def report(self) -> list[str]:
        return verify.report(verify.known_answers(self))


def test_right_answers_are_all_right_and_shown(capsys):
    assert StandIn().report() == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == [f"ok       {name}" for name in NAMES]
    expected = [line.removeprefix("         expected ") for line in lines[1::3]]
    found = [line.removeprefix("         found    ") for line in lines[2::3]]
    assert expected[0] == found[0] == " ".join(map(str, TOKENS))
    assert expected[1] == "0.150061 -0.247872 -0.102154 ..., within 1e-04"  # as SPEC section 12 has them
    assert found[1] == "0.150061 -0.247872 -0.102154 ..., largest difference 0.0e+00"
    assert expected[3] == found[3] == " ".join(map(str, GREEDY))
    assert expected[4] == found[4] == "9.1056 of token 580"
    assert expected[5:] == found[5:] == ["21.3165", "61.4591", "26.2492"]


def other_token(stand_in: StandIn) -> None:
    stand_in.tokens[7] = 5


def one_token_less(stand_in: StandIn) -> None:
    stand_in.tokens.pop()


def change_state(i: int, by: float):
    def change(stand_in: StandIn) -> None:
        ids = list(stand_in.known)[i]
        stand_in.known[ids] = stand_in.known[ids].clone()
        stand_in.known[ids][-1, -1] += by

    return change


def other_greedy(stand_in: StandIn) -> None:
    stand_in.greedy[-1] = 5


def top(at: int, value: float):
    return lambda stand_in: stand_in.top.update({ids: (at, value) for ids in stand_in.top})


def perplexity(i: int, value: float):
    return lambda stand_in: stand_in.perplexities.update({list(stand_in.perplexities)[i]: value})


WRONG = {
    "another token": (other_token, 0),
    "a token less": (one_token_less, 0),
    "a state": (change_state(0, 2e-4), 1),
    "a state of the second sentence": (change_state(1, -2e-4), 2),
    "no number": (change_state(1, math.nan), 2),
    "the last greedy token": (other_greedy, 3),
    "the logit of another token": (top(581, 9.1056), 4),
    "another logit": (top(580, 9.1058), 4),
    "no logit": (top(580, math.nan), 4),
    "an unshifted loss": (perplexity(0, 12792.9), 5),
    "a perplexity": (perplexity(1, 61.47), 6),
    "no perplexity": (perplexity(2, math.nan), 7),
}


@pytest.mark.parametrize("change, number", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_found(capsys, change, number):
    stand_in = StandIn()
    change(stand_in)
    assert stand_in.report() == [NAMES[number]]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("wrong")] == [f"wrong    {NAMES[number]}"]
    assert len(lines) == 3 * len(NAMES)


@pytest.mark.parametrize("change", [change_state(0, 5e-5), top(580, 9.10565), perplexity(1, 61.4595)])
def test_rounding_is_not_wrong(change):
    stand_in = StandIn()
    change(stand_in)
    assert stand_in.report() == []


def test_the_token_lists_are_those_of_the_authors_vocabulary(real_model_dir):
    encoder = TextEncoder(*folders.vocabulary_files(real_model_dir))
    assert encoder.encode([verify.SENTENCE], verbose=False) == [TOKENS]
    assert encoder.encode(["the president is"], verbose=False) == [verify.GREEDY_START]
    for text, ids in zip(verify.PERPLEXITIES, PERPLEXITIES, strict=True):
        assert encoder.encode([text], verbose=False) == [list(ids)] == [[verify.WORDS[word] for word in text.split()]]


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.parametrize("content", [b"", b"line\n", b"a\0b\r\n", bytes(range(256)) * 9000], ids=len)
def test_blob_ids_are_gits(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    command = ["git", "hash-object", "--no-filters", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert verify.git_blob_id(path) == found


def test_a_file_is_right_differs_or_is_missing(tmp_path, monkeypatch, capsys):
    for name in ("right", "other"):
        (tmp_path / name).write_text(name)
    blob_id = verify.git_blob_id(tmp_path / "right")
    monkeypatch.setattr(verify, "AUTHORS_BLOB_IDS", dict.fromkeys(["right", "other", "absent"], blob_id))
    assert verify.verify_files(tmp_path) == ["other (differs)", "absent (missing)"]
    expected = [f"ok       {tmp_path}/right", f"differs  {tmp_path}/other", f"missing  {tmp_path}/absent"]
    assert capsys.readouterr().out.splitlines() == expected


def test_verify_knows_the_authors_files(real_model_dir, capsys):
    verify.verify_files(real_model_dir)
    out = capsys.readouterr().out
    for name in ("encoder_bpe_40000.json", "vocab_40000.bpe", "params_shapes.json"):
        assert f"ok       {real_model_dir / name}" in out


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def authors(model_dir, monkeypatch) -> Path:
    """A model folder that is taken for the authors', whose right answers are what it answers."""
    ids = {name: verify.git_blob_id(model_dir / name) for name in verify.AUTHORS_BLOB_IDS}
    monkeypatch.setattr(verify, "AUTHORS_BLOB_IDS", ids)
    monkeypatch.setattr(verify, "AUTHORS_SIZES", shards.read_sizes(model_dir))

    def two_answers(model):
        """Ask the opened model two things, by the methods that the real questions are asked by."""
        ids = model.encode("the cat")
        yield verify.Answer("tokens", "the expected", str(ids), len(ids) == 4)
        logits = model.logits(ids)
        right = model.states(ids).shape == (4, 16) and logits.shape == (4, shards.read_sizes(model_dir).n_vocab)
        yield verify.Answer("shapes", "the shapes", "others", right and not logits.requires_grad)

    monkeypatch.setattr(verify, "known_answers", two_answers)
    return model_dir


def test_the_command_checks_files_and_answers(authors, tmp_path, capsys):
    assert verify.main(["--model_dir", str(authors)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 + 2 * 3 and all(line.startswith(("ok ", " ")) for line in lines)
    # a Hugging Face folder: its two vocabulary files, and the answers
    hf = tmp_path / "hf"
    assert convert.main(["to_hf", str(authors), str(hf)]) == 0
    capsys.readouterr()
    assert verify.main(["--model_dir", str(hf)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * 3


def test_a_wrong_answer_of_the_model_is_exit_code_2(authors, monkeypatch, capsys):
    wrong = [verify.Answer(name, "1", "2", name == "b") for name in "abc"]
    monkeypatch.setattr(verify, "known_answers", lambda *_: iter(wrong))
    assert verify.main(["--model_dir", str(authors)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"verify.py: error: {authors}: wrong answers, a, c. Fetch the weights again.\n"
    assert captured.out.count("wrong    ") == 2 and "expected 1" in captured.out and "found    2" in captured.out


def test_answers_are_asked_even_where_a_file_differs(authors, capsys):
    path = authors / "params_shapes.json"
    path.write_text(path.read_text() + "\n")
    assert verify.main(["--model_dir", str(authors)]) == 2
    captured = capsys.readouterr()
    assert "params_shapes.json (differs)" in captured.err and "ok       shapes" in captured.out


@pytest.mark.parametrize("damage", ["sizes", "vocabulary", "weights"])
def test_what_cannot_be_asked_is_not_verified(authors, tmp_path, monkeypatch, capsys, damage):
    if damage == "sizes":
        sizes = dataclasses.replace(verify.AUTHORS_SIZES, n_layer=12)
        monkeypatch.setattr(verify, "AUTHORS_SIZES", sizes)
        folder, message = authors, "n_layer=12"
    else:
        folder = tmp_path / "hf"
        assert convert.main(["to_hf", str(authors), str(folder)]) == 0
        name = {"vocabulary": "vocab.json", "weights": "model.safetensors"}[damage]
        (folder / name).unlink()
        message = name
    assert verify.main(["--model_dir", str(folder)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "shapes\n" not in captured.out  # no question was asked


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"params_0.npy \(missing\).*params_shapes.json is missing. See"):
        verify.verify(tmp_path)


def test_the_authors_sizes_are_those_of_their_shapes(real_model_dir):
    assert shards.read_sizes(real_model_dir) == verify.AUTHORS_SIZES
    assert json.loads((real_model_dir / "params_shapes.json").read_text()) == verify.AUTHORS_SIZES.shapes()


@pytest.mark.slow
def test_all_questions_are_asked_of_a_model_of_the_authors_sizes(tmp_path, real_model_dir, capsys):
    for name in (folders.ENCODER_FILE, folders.BPE_FILE, "params_shapes.json"):
        shutil.copy(real_model_dir / name, tmp_path)
    values = np.random.default_rng(0).standard_normal(116_534_784, dtype=np.float32) * np.float32(0.02)
    for i, part in enumerate(np.array_split(values, 10)):
        np.save(tmp_path / f"params_{i}.npy", part)
    assert verify.main(["--model_dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    answers = [line for line in captured.out.splitlines()[13:] if not line.startswith(" ")]
    assert answers == [f"ok       {NAMES[0]}", *(f"wrong    {name}" for name in NAMES[1:])]
    # one line, of which the middle is left out
    assert "not the authors' files: params_0." in captured.err
    assert captured.err.endswith(f"{NAMES[-1]}. Fetch the weights again.\n")
