"""What README.md shows exists and runs: every command, every snippet, every flag, file and link."""

import importlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from conftest import write_data
from helpers import ROOT
from test_house import COMMANDS, FILES, ROOMS

from reproduce import wanted
from running.settings import WHAT, FineTuningFlags, parse

README = (ROOT / "README.md").read_text(encoding="utf-8")

# --- commands and snippets -------------------------------------------------------------------------------------------

# what a test cannot run, and why
NOT_RUN = {
    r"(git clone|mv) ": "needs a network",
    r"(source|pip) ": "this environment has the packages",
    r"make test": "runs these tests",
    r"make (paper|gpu)": "takes an hour or a GPU",
    r"torchrun ": "needs several devices; test_resume.py and test_train.py start it",
    r"python verify\.py|.* --verify": "needs the authors' weights; see test_verify.py",
    r"python lm_eval_adapter\.py": "needs a further package; see test_lm_eval_adapter.py",
}
# the same in seconds; a flag that is given twice has its last value
SMALL = {
    r"make demo": "python train.py --desc demo --model_dir demo/model --data_dir demo/data --submit --analysis",
    r"(python train\.py .*)": r"\1 --n_batch 2 --n_iter 1 --n_valid 10 --max_examples 20",
    r"(python pretrain\.py (?!.*--init_from).*)": r"\1 --n_layer 1 --n_embd 8 --n_head 2 --n_ctx 16 --n_merges 10",
    r"(python pretrain\.py .*)": r"\1 --n_batch 2 --n_iter 1 --lr_warmup 1",
    r"(python reproduce\.py .*)": r"\1 --max_examples 20 --flags=--n_batch=2 --what stories --seeds 1 --workers 1",
    r"(python generate\.py .*--zero_shot .*)": r"\1 --data_dir data --n_valid 10",
}
STORIES = ["Anna hoped to get a job.", "She came early in a clean suit.", "Anna got the job.", "Ben was gloomy."]


def commands(block: str) -> list[str]:
    """Return the commands of a block: its lines, or those after a `$` where it shows output too."""
    lines = block.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [part for line in lines for part in without_comment(line).split(" && ") if part]


def without_comment(line: str) -> str:
    """Return a line up to the first # that begins a word and is not within quotes."""
    for mark in re.finditer(r"(^|\s)#", line):
        before = line[: mark.start()]
        try:
            shlex.split(before)
        except ValueError:  # a quote is open
            continue
        return before.strip()
    return line.strip()


def run(command: str, monkeypatch) -> None:
    """Run a command in this process, what is piped into it first. Raises AssertionError unless it ends well."""
    before, _, last = command.rpartition(" | ")
    given = subprocess.run(before, shell=True, capture_output=True, text=True, check=True).stdout
    words = shlex.split(re.sub(r"^(\w+=\S+ )+", "", last))
    if words[0] != "python":
        subprocess.run(last, shell=True, check=True, input=given, text=True)
        return
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    monkeypatch.setattr(sys, "argv", words[2:] if words[1] == "-m" else words[1:])
    try:
        if words[1] == "-m":
            sys.modules.pop(words[2], None)  # else runpy warns that another test has imported it
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"exit code {end.code}"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Stand in a folder that holds, small, what README.md names: weights, data, texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    matplotlib.use("Agg")
    shutil.copytree(ROOT / "demo", "demo", ignore=shutil.ignore_patterns("encoded_*"))
    shutil.copytree("demo/model", "model")
    write_data(Path("data"))
    Path("books").mkdir()
    for name in ("books/one.txt", "books/two.txt", "texts.txt", "stories.txt", "corpus.txt"):
        Path(name).write_text("\n".join(STORIES * 20) + "\n")
    return tmp_path


def test_every_command_and_snippet_runs_in_the_order_in_which_they_are_read(folder, monkeypatch, capfd):
    names, failed, n_run, used = {}, [], 0, set()
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)
            continue
        for command in commands(block):
            reasons = {pattern for pattern in NOT_RUN if re.match(pattern, command)}
            used |= reasons
            if reasons:
                continue
            small = command
            for pattern, instead in SMALL.items():
                if re.search(pattern, small):
                    small = re.sub(pattern, instead, small)
                    used.add(pattern)
            try:
                n_run += 1
                run(small, monkeypatch)
            except (Exception, SystemExit) as error:
                failed.append(f"{small}: {error}\n{capfd.readouterr().err[-300:]}")
    assert not failed, "\n".join(failed)
    assert n_run > 8
    assert f"(1, T, {names['logits'].size(-1)})" in README
    assert NOT_RUN.keys() | SMALL.keys() == used  # no rule is left over


@pytest.mark.slow
def test_make_demo(folder):
    """Run the first command as it stands, in a copy of what git tracks."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, name)
    Path(".venv").symlink_to(sys.prefix)
    run = subprocess.run(["make", "-o", ".venv/installed", "demo"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (accuracy,) = re.findall(r"ROCStories Test Accuracy:  ([\d.]+)", run.stdout)
    assert float(accuracy) > 98
    assert Path("log/demo.png").exists()


def test_commands_are_taken_from_a_block():
    block = "$ a 'b # c' \\\n  d    # e\noutput\n$ f && g \"#\" # h 'i'\n# j\n"
    assert commands(block) == ["a 'b # c'    d", "f", 'g "#"']
    assert commands("# a\nb\n\nc  # d\n") == ["b", "c"]


# --- words -----------------------------------------------------------------------------------------------------------


def test_commands_stand_in_blocks_that_are_run():
    rest = re.sub(r"^```(sh|python)\n.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^[ $]*(?:python|make|torchrun|pip) .*", rest, re.MULTILINE) == []


def test_the_command_of_the_papers_result_has_the_papers_batch():
    (command,) = re.findall(r"^python train.py (--dataset rocstories .*)", README, re.MULTILINE)
    flags = parse(FineTuningFlags, command.split())
    assert flags.n_batch * flags.accumulate == 32


def test_the_table_of_times_has_each_choice_with_its_number_of_runs():
    table = re.findall(r"^\| (\w+)[^|]* \| (\d+) \| [^|]+ \| [^|]+ \|$", README, re.MULTILINE)
    assert {what: int(n_runs) for what, n_runs in table} == {what: len(wanted([what], None)) for what in WHAT}


def test_no_line_is_long():
    assert [line for line in README.splitlines() if len(line) > 120] == []


def test_every_flag_named_exists(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")  # a line of help for each flag
    known = {"--help", *re.findall(r"(?<=[\"'`])--\w+", "".join(path.read_text() for path in FILES.values()))}
    for command in sorted(COMMANDS - {"lm_eval_adapter"}):  # its flags are those of lm_eval
        with pytest.raises(SystemExit):
            importlib.import_module(command).main(["--help"])
        known |= set(re.findall(r"^ +(--\w+)", capsys.readouterr().out, re.MULTILINE))
    for line in README.splitlines():
        if not re.search(r"torchrun |lm_eval|pip |git ", line):
            assert set(re.findall(r"(?<![\w-])--\w+", line)) <= known, line


def test_every_file_named_exists_and_every_file_at_the_root_is_named():
    named = set(re.findall(r"[\w/-]+\.(?:py|md|ipynb|png)\b|requirements[\w-]*\.txt", README))
    named = {name for name in named if not name.startswith(("log/", "paper/", "//"))}  # what a run writes; web pages
    absent = [name for name in named if not (ROOT / name).exists() and not any(ROOT.glob(f"*/{name}"))]
    assert absent == []
    assert {f"{name}.py" for name in FILES if "." not in name} - named == set()
    assert [room for room in ROOMS if f"{room}/" not in README] == []


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            path, _, heading = target.partition("#")
            text = (ROOT / (path or "README.md")).read_bytes().decode(errors="ignore")
            titles = [re.sub(r"[^\w -]", "", line.strip("# ")).lower() for line in re.findall(r"^#+ .*", text, re.M)]
            assert not heading or heading in [title.replace(" ", "-") for title in titles], target
