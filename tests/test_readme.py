"""The code, flags and files that README.md shows exist and run."""

import importlib
import re
from pathlib import Path

import pytest
from test_house import COMMANDS, FILES

import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_notebook_snippet_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})
    story = capsys.readouterr().out
    assert len(story.split()) > 10


def test_every_flag_named_exists(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")  # a line of help for each flag
    known = set()
    for command in sorted(COMMANDS & FILES.keys() - {"lm_eval_adapter"}):  # its flags are those of lm_eval
        with pytest.raises(SystemExit):
            importlib.import_module(command).main(["--help"])
        own = set(re.findall(r"^ +(--\w+)", capsys.readouterr().out, re.MULTILINE))
        assert own or command == "convert", command  # which has only positional arguments
        known |= own
    named = set(re.findall(r"(?<![\w-])--\w+", README))
    assert named and named <= known | {
        "--help",
        *("--nnodes", "--node_rank", "--master_addr", "--master_port"),  # of torchrun
        "--n_stories",
        "--exclude",
        "--out",
        "--log",
        "--tokens",
        "--nproc_per_node",
        "--model",
        "--model_args",
        "--tasks",
    }, named - known


def test_files_of_the_map_exist():
    names = [
        name
        for row in re.findall(r"^\| (`[\w./]+`.*?) \|", README, re.MULTILINE)
        for name in re.findall(r"[\w./]+", row)
    ]
    assert len(names) > 10
    for name in names:
        assert (ROOT / name).exists(), name


def test_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert train.__doc__.split("`")[1].split(" --")[0] in README
