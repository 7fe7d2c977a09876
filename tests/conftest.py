"""A small vocabulary, model and cloze set, written to disk as a user would have them."""

import csv
import json
import math
import os
import random
import signal
import string
from pathlib import Path

import numpy as np
import pytest
import quick
import torch

from formats.folders import FolderSizes
from reading.tasks import ROCSTORIES_TEST, ROCSTORIES_VALID
from running import figures

HEADER = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
)
MERGES = ["t h", "th e</w>", "a n", "i n", "e r", "an d</w>", "w a", "wa s</w>", "in g</w>"]


ALL_TESTS = 7200  # seconds for all tests by several processes, which take minutes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """End a run that waits for processes that no longer answer, with the report of what has failed until then."""

    def end(*_) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # should the report hang too, the run ends without it
        pytest.exit(f"the tests are not done after {ALL_TESTS} s", returncode=1)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(ALL_TESTS)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # tiny products: more threads only wait for each other


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch) -> None:
    """Draw what a test marked `pictures` draws; see quick.py."""
    if request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(figures, "save", quick.save_picture)


def write_model(folder: Path) -> Path:
    """Write two blocks of random weights over single characters and a few merges, in the authors' format."""
    folder.mkdir()
    characters = string.ascii_lowercase + string.digits + ".,!?'-"
    tokens = [*characters, *(c + "</w>" for c in characters), *(merge.replace(" ", "") for merge in MERGES), "\n</w>"]
    (folder / "encoder_bpe_40000.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "vocab_40000.bpe").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    shapes = FolderSizes(n_vocab=len(tokens), n_positions=64, n_embd=16, n_head=2, n_layer=2).shapes()
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    (folder / "hparams.json").write_text(json.dumps({"n_head": 2}))
    values = np.random.default_rng(0).normal(0, 0.02, sum(map(math.prod, shapes))).astype(np.float32)
    for i, shard in enumerate(np.array_split(values, 10)):
        np.save(folder / f"params_{i}.npy", shard)
    return folder


def write_data(folder: Path, n_valid: int = 40, n_test: int = 12) -> Path:
    """Write the valid and the test file, with rows of few words."""
    folder.mkdir()
    for name, n_rows, seed in ((ROCSTORIES_VALID, n_valid, 0), (ROCSTORIES_TEST, n_test, 1)):
        rng = random.Random(seed)
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER.split(","))
            for i in range(n_rows):
                sentences = [
                    " ".join(rng.choices(["the", "cat", "was", "in", "red"], k=rng.randint(1, 4))) for _ in "123456"
                ]
                writer.writerow([f"id{i}", *sentences, rng.choice([1, 2])])
    return folder


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def folder_from(variable: str) -> Path:
    """Return the folder an environment variable names, or skip the test."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} does not name a folder")
    return Path(os.environ[variable])


@pytest.fixture
def real_model_dir() -> Path:
    return folder_from("GPT1_MODEL_DIR")


@pytest.fixture
def real_data_dir() -> Path:
    return folder_from("ROCSTORIES_DIR")
