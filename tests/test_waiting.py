"""Nobody waits: the user not for torch, where the answer needs none, and the host not for the device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import model_pytorch
import opt
from running import settings

ROOT = Path(__file__).parents[1]

# --- a first answer --------------------------------------------------------------------------------------------------

MODEL = str(ROOT / "demo/model")
DATA = str(ROOT / "demo/data")
STORIES = str(ROOT / "demo/stories.txt")

# each command with an input that is not there, and the one line that names it
MISSING = [
    ("train.py", ["--model_dir", "gone", "--data_dir", DATA], "gone/encoder_bpe_40000.json is missing."),
    ("train.py", ["--model_dir", MODEL, "--data_dir", "gone"], "gone: no such folder."),
    ("train.py", ["--model_dir", MODEL, "--data_dir", DATA, "--dataset", "rte"], f"{DATA}/train.tsv is missing."),
    ("pretrain.py", ["--model_dir", "new", "--corpus", "gone.txt"], "gone.txt cannot be read"),
    ("pretrain.py", ["--model_dir", "new", "--corpus", STORIES, "--init_from", "gone"], "gone/params_shapes.json is"),
    ("predict.py", ["--save_dir", "gone", "--desc", "run"], "gone/run/settings.json is missing."),
    ("generate.py", ["--model_dir", "gone"], "gone/params_shapes.json is missing."),
    ("generate.py", ["--run", "gone"], "gone/settings.json is missing."),
    ("generate.py", ["--model_dir", MODEL, "--score", "gone.txt"], "gone.txt is missing."),
    ("generate.py", ["--model_dir", MODEL, "--prompt_file", "gone.txt"], "gone.txt is missing."),
    ("generate.py", ["--model_dir", MODEL, "--zero_shot", "choice", "--data_dir", "gone"], "gone: no such folder."),
    ("convert.py", ["to_hf", "gone", "new"], "gone is missing."),
    ("verify.py", ["--model_dir", "gone"], "gone is missing."),
    ("analysis.py", ["--log_dir", "gone", "--desc", "run"], "gone/run.jsonl is missing."),
    ("reproduce.py", ["--data_dir", "gone", "--model_dir", MODEL], "gone is missing."),
    ("reproduce.py", ["--data_dir", DATA, "--model_dir", "gone"], "gone/params_shapes.json is missing."),
    ("reproduce.py", ["--report", "--out", "gone"], "gone/results.json is missing."),
]
COMMANDS = sorted({command for command, _, _ in MISSING})

# runs commands one after the other; what they load stays loaded
RUN_ALL = """
import contextlib, io, json, runpy, sys
root, commands = json.loads(sys.argv[1])
sys.path.insert(0, root)
heavy = {"torch", "spacy", "ftfy", "pandas", "sklearn", "scipy", "matplotlib", "tqdm"}
found = []
for command, *flags in commands:
    out, err, code = io.StringIO(), io.StringIO(), None
    sys.argv = [command, *flags]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(f"{root}/{command}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    found.append([code, out.getvalue(), err.getvalue(), sorted(heavy & sys.modules.keys())])
print(json.dumps(found))
"""


def answers(folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Return exit code, output and errors of commands; none may load what takes time."""
    given = json.dumps([str(ROOT), commands])
    done = subprocess.run([sys.executable, "-c", RUN_ALL, given], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = []
    for command, (*answer, loaded) in zip(commands, json.loads(done.stdout), strict=True):
        assert loaded == [], command
        found.append(tuple(answer))
    return found


def test_help_and_a_wrong_flag_are_answered_before_torch_is_loaded(tmp_path):
    asked = [[command, flag] for command in COMMANDS for flag in ("--help", "--wrong_flag")]
    for (command, flag), (code, out, err) in zip(asked, answers(tmp_path, asked), strict=True):
        if flag == "--help":
            assert code == 0 and err == "" and out.startswith(f"usage: {command} "), command
            assert getattr(settings, FLAGS[command]).ABOUT.split()[0] in out
        else:
            assert code == 2 and out == "" and f"{command}: error: " in err.splitlines()[-1], command


def test_a_missing_input_is_told_of_before_torch_is_loaded(tmp_path):
    asked = [[command, *flags] for command, flags, _ in MISSING]
    for (command, _, message), (code, out, err) in zip(MISSING, answers(tmp_path, asked), strict=True):
        assert code == 2 and out == "" and err.startswith(f"{command}: error: {message}"), err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


FLAGS = {
    "train.py": "FineTuningFlags",
    "pretrain.py": "PreTrainingFlags",
    "predict.py": "PredictFlags",
    "generate.py": "GenerateFlags",
    "convert.py": "ConvertFlags",
    "verify.py": "VerifyFlags",
    "analysis.py": "AnalysisFlags",
    "reproduce.py": "ReproduceFlags",
}


def test_names_that_flags_repeat_are_those_of_what_takes_time_to_import():
    assert set(settings.AFNS) == model_pytorch.ACTIVATIONS.keys()
    assert set(settings.SCHEDULES) == opt.SCHEDULES.keys()


@pytest.mark.parametrize("rank, code", [("0", 2), ("1", None)])
def test_of_several_processes_the_first_answers(monkeypatch, capsys, rank, code):
    from running.starting import answer_at_once

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["verify.py", "--model_dir", "gone"])
    found = None
    try:
        answer_at_once("VerifyFlags")
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert (capsys.readouterr().err == "") == (code is None)
