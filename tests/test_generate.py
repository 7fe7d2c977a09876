"""The command generate.py: prompts from flags, a file and standard input; what it writes where; what it refuses."""

import io
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_model
from helpers import refused
from test_predict import ROWS, write_jsonl

import generate
import train
from generation import generate_text
from weights import open_model, open_run

PROMPT = "the cat was in"
SPEED = re.compile(r"(\d+) tokens in [\d.]+ s, [\d.]+ tokens/s\n")


def command(*flags, text: bytes = b"", monkeypatch=None) -> int:
    if monkeypatch:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    return generate.main([str(flag) for flag in flags])


def expected(model_dir: Path, seed: int = 42, prompt: str = PROMPT, **how) -> list[str]:
    """Return what the library makes of the prompt; the defaults are the command's."""
    model, encoder = open_model(model_dir)
    how = dict(n_tokens=20, top_k=40, generator=torch.Generator().manual_seed(seed)) | how
    return generate_text(model, encoder, prompt, **how)


@pytest.mark.parametrize(
    "flags, how",
    [
        ([], {}),
        (["--temperature", 0], dict(temperature=0)),
        (["--seed", 7, "--top_k", 3], dict(seed=7, top_k=3)),
        (["--temperature", 2, "--top_p", 0.5, "--top_k", 0], dict(temperature=2, top_p=0.5, top_k=0)),
        (["--temperature", 0, "--repetition_penalty", 2], dict(temperature=0, repetition_penalty=2)),
        (["--stop", "A"], dict(stops=["a"])),
    ],
    ids=str,
)
def test_the_text_is_written_to_standard_output_and_the_speed_to_standard_error(model_dir, capsys, flags, how):
    assert command("--model_dir", model_dir, "--prompt", PROMPT, "--n_tokens", 20, *flags) == 0
    out, err = capsys.readouterr()
    assert out == expected(model_dir, **how)[0] + "\n"
    (n_tokens,) = SPEED.findall(err)
    assert int(n_tokens) == 20 or "--stop" in flags


def test_several_samples_are_written_one_after_the_other(model_dir, capsys):
    flags = ["--model_dir", model_dir, "--prompt", PROMPT, "--n_tokens", 20, "--n_samples", 3]
    assert command(*flags) == 0
    out, err = capsys.readouterr()
    texts = expected(model_dir, n_samples=3)
    assert out == "".join(f"--- sample {i} of 3\n{text}\n" for i, text in enumerate(texts, 1))
    assert SPEED.findall(err) == ["60"]


def test_words_are_written_as_they_come(model_dir, monkeypatch):
    written = []

    class Out(io.StringIO):
        def flush(self):
            written.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Out())
    assert command("--model_dir", model_dir, "--prompt", PROMPT, "--n_tokens", 20) == 0
    assert len(written) >= 20 and len(set(written)) > 3
    assert all(b.startswith(a) for a, b in zip(written, written[1:], strict=False))


def test_a_prompt_is_read_from_a_file(model_dir, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbf" + PROMPT.encode() + b"\n")
    flags = ["--model_dir", model_dir, "--n_tokens", 20, "--temperature", 0]
    assert command(*flags, "--prompt_file", tmp_path / "prompt.txt") == 0
    assert capsys.readouterr().out == expected(model_dir, temperature=0)[0] + "\n"


def test_a_prompt_may_be_in_utf16(model_dir, capsys, monkeypatch, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(PROMPT.encode("utf-16"))
    flags = ["--model_dir", model_dir, "--n_tokens", 20, "--temperature", 0]
    assert command(*flags, "--prompt_file", tmp_path / "prompt.txt") == 0
    assert command(*flags, text=PROMPT.encode("utf-16"), monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == 2 * (expected(model_dir, temperature=0)[0] + "\n")


def test_each_line_of_standard_input_is_a_prompt(model_dir, capsys, monkeypatch):
    flags = ["--model_dir", model_dir, "--n_tokens", 20, "--temperature", 0]
    assert command(*flags, text=b"the cat was in\n\nRed hat.\n", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    prompts = ("the cat was in", "Red hat.")
    assert out == "".join(expected(model_dir, prompt=p, temperature=0)[0] + "\n" for p in prompts)
    assert len(SPEED.findall(err)) == 2 and "> " not in err


def test_at_a_terminal_a_bad_prompt_is_named_and_another_one_asked_for(model_dir, capsys, monkeypatch):
    flags = ["--model_dir", model_dir, "--n_tokens", 5]
    lines = b"the \xff\n" + b"the " * 70 + b"\nthe cat\n"
    stdin = type("Terminal", (), {"buffer": io.BytesIO(lines), "isatty": lambda self: True})()
    monkeypatch.setattr(sys, "stdin", stdin)
    assert command(*flags) == 0
    out, err = capsys.readouterr()
    assert "line 1: not UTF-8" in err and "70 tokens" in err
    assert len(re.findall("^> ", err, re.MULTILINE)) == 4 and len(SPEED.findall(err)) == 1 and out.count("\n") >= 1


def test_a_full_window_is_noted_once(model_dir, capsys):
    assert command("--model_dir", model_dir, "--prompt", PROMPT, "--n_tokens", 200) == 0
    err = capsys.readouterr().err
    assert err.count("the window of 64 tokens is full") == 1
    assert command("--model_dir", model_dir, "--prompt", PROMPT, "--n_tokens", 20) == 0
    assert "window" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """The folder of a run fine-tuned on a few texts."""
    folder, patch = tmp_path_factory.mktemp("fine-tuned"), pytest.MonkeyPatch()
    write_model(folder / "model")
    (folder / "data").mkdir()
    for name in ("train", "test"):
        write_jsonl(folder / f"data/{name}.jsonl", ROWS["classification"])
    with patch.context() as p:
        p.chdir(folder)
        flags = "--dataset own --task classification --data_dir data --desc small --model_dir model --n_iter 1"
        assert train.main([*flags.split(), "--lr", "1e-2"]) == 0
    return shutil.move(folder / "save/small", folder / "moved")


def test_a_fine_tuned_run_generates(run_dir, capsys):
    flags = ["--run", run_dir, "--prompt", "the cat", "--temperature", 0, "--n_tokens", 8]
    assert command(*flags) == 0
    out = capsys.readouterr().out
    run = open_run(run_dir)
    assert out == generate_text(run.model, run.encoder, "the cat", 8, temperature=0)[0] + "\n"
    flags[3] = ""
    assert command(*flags) == 0
    assert capsys.readouterr().out == generate_text(run.model, run.encoder, "", 8, temperature=0)[0] + "\n"


def test_what_a_user_can_fix_is_one_line(model_dir, run_dir, tmp_path, capsys, monkeypatch):
    (tmp_path / "latin1").write_bytes("thé cat".encode("latin-1"))
    (tmp_path / "blank").write_text(" \n")
    (tmp_path / "long").write_text("the cat\n" * 40)
    (tmp_path / "folder").mkdir()
    demo = Path(generate.__file__).parent / "demo/model"
    bad = {
        "the prompt is empty": ["--model_dir", model_dir, "--prompt", ""],
        "the prompt is  empty": ["--model_dir", model_dir, "--prompt_file", tmp_path / "blank"],
        "tokens, the model takes at most 64": ["--model_dir", model_dir, "--prompt_file", tmp_path / "long"],
        "no token of the prompt is in the vocabulary": ["--model_dir", demo, "--prompt", "€ §"],
        "latin1: not UTF-8 (byte 2)": ["--model_dir", model_dir, "--prompt_file", tmp_path / "latin1"],
        "--prompt: not UTF-8 (byte 4)": ["--model_dir", model_dir, "--prompt", "the \udcff"],
        "missing cannot be read": ["--model_dir", model_dir, "--prompt_file", tmp_path / "missing"],
        "folder cannot be read": ["--model_dir", model_dir, "--prompt_file", tmp_path / "folder"],
        "1,000,000,000,000 samples at once": ["--model_dir", model_dir, "--prompt", PROMPT, "--n_samples", 10**12],
        "is missing": ["--model_dir", tmp_path / "folder", "--prompt", PROMPT],
        "is  missing": ["--model_dir", tmp_path / "nowhere", "--prompt", PROMPT],
        "settings.json is missing": ["--run", model_dir, "--prompt", PROMPT],
        "standard input, line 2: not UTF-8": ["--model_dir", model_dir, "--n_tokens", 2],
    }
    for message, flags in bad.items():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n\xff\n")))
        error = refused(generate.main, flags, capsys)
        assert error.startswith("generate.py: error: ") and message.replace("  ", " ") in error


@pytest.mark.parametrize(
    "flags",
    [
        ["--model_dir", "a", "--run", "b"],
        ["--prompt", "a", "--prompt_file", "b"],
        ["--stop", ""],
        ["--top_p", "1.5"],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--n_samples", "0"],
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_refused(flags, capsys):
    refused(generate.main, flags, capsys)
