"""What README.md shows runs as it stands there."""

import re
from pathlib import Path

import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_notebook_snippet_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})
    story = capsys.readouterr().out
    assert len(story.split()) > 10


def test_every_flag_named_exists():
    known = set(
        re.findall(r'"(--\w+)"', "".join((ROOT / name).read_text() for name in ("train.py", "pretrain.py", "bench.py")))
    )
    named = set(re.findall(r"(?<![\w-])--\w+", README))
    assert named and named <= known | {
        "--help",
        "--n_stories",
        "--exclude",
        "--out",
        "--log",
        "--tokens",
        "--nproc_per_node",
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
