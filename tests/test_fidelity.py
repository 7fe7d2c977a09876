"""Whether FIDELITY.md still says what is so: its rows, defaults, tests, and the places in our code that it names."""

import ast
import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

from model_pytorch import DEFAULT_CONFIG
from running.settings import FineTuningFlags, PreTrainingFlags

LEDGER = (ROOT / "FIDELITY.md").read_text(encoding="utf-8")
LEDGER_ROWS = [line.strip("|").split(" | ") for line in LEDGER.splitlines() if re.match(r"\| +\d", line)]
LEDGER_ROWS = {int(number): cells for number, *cells in LEDGER_ROWS}  # cells: detail, paper, TF, ours, verdict, test
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py")])

# a cell such as "opt.py: OpenAIAdam.step; text_utils.py: TextEncoder (`spacy.blank("en")`), split_words"
NOTE = r"(?: \((?:[^()]|\([^()]*\))*\))?"
NAME = rf"[A-Za-z_][\w.]*{NOTE}"
PLACES = rf"[\w/]+\.py: {NAME}(?:, {NAME})*"


@cache
def definitions(path: Path) -> frozenset[str]:
    """Return the functions, classes and variables that a file itself defines, those of a class as `Class.name`."""

    def names(body: list[ast.stmt], prefix: str):
        for node in body:
            match node:
                case ast.FunctionDef(name=name):
                    yield prefix + name
                case ast.ClassDef(name=name):
                    yield prefix + name
                    yield from names(node.body, f"{prefix}{name}.")
                case ast.Assign(targets=targets):
                    yield from (
                        prefix + t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)
                    )
                case ast.AnnAssign(target=ast.Name(id=name)):
                    yield prefix + name

    return frozenset(names(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def places(cell: str) -> list[tuple[str, str]]:
    """Return the (file, name) pairs of a cell. Raises ValueError for one in another form."""
    if not re.fullmatch(rf"{PLACES}(?:; {PLACES})*", cell):
        raise ValueError(f"{cell!r} is not of the form 'file.py: name, Class.method (note); file.py: name'")
    found = []
    for place in re.findall(PLACES, cell):
        file, cited = place.split(": ", 1)
        found += [(file, name) for name in re.sub(NOTE, "", cited).replace(" ", "").split(",")]
    return found


def test_rows_of_the_ledger_have_numbers_of_their_own_and_are_whole():
    assert len(LEDGER_ROWS) > 50
    assert len(re.findall(r"^\|\s*\d", LEDGER, re.MULTILINE)) == len(LEDGER_ROWS)
    for number, cells in LEDGER_ROWS.items():
        assert len(cells) == 6 and all(cell.strip() for cell in cells), number


def test_the_defaults_in_the_ledger_are_the_commands():
    network = dataclasses.asdict(DEFAULT_CONFIG)  # what train.py takes for sizes where no model folder tells
    train_flags = dataclasses.asdict(FineTuningFlags())
    train_flags |= {k: v for k, v in network.items() if train_flags[k] is None}
    pretrain_flags = dataclasses.asdict(PreTrainingFlags(corpus="FILE", model_dir="DIR").with_sizes_of(None))
    for prefix, ours, n in (("", train_flags, 23), ("pretrain.py ", pretrain_flags, 11)):
        theirs = dict(re.findall(rf"^\| `{prefix}--(\w+)` \| (\S+) \|", LEDGER, re.MULTILINE))
        assert len(theirs) == n
        assert {name: type(ours[name])(float(v) if v[0].isdigit() else v) for name, v in theirs.items()} == {
            name: ours[name] for name in theirs
        }


def test_every_row_cited_in_the_code_exists():
    cited = {(p.name, int(n)) for p in SOURCES for n in re.findall(r"FIDELITY (\d+)", p.read_text(encoding="utf-8"))}
    assert cited
    assert {(name, number) for name, number in cited if number not in LEDGER_ROWS} == set()


def test_every_test_named_in_the_ledger_exists():
    exist = frozenset().union(*(definitions(path) for path in (ROOT / "tests").glob("test_*.py")))
    assert set(re.findall(r"\btest_\w+", re.sub(r"\btest_\w+\.py", "", LEDGER))) - exist == set()


def test_every_place_named_in_the_ledger_exists():
    absent = []
    for number, (*_, ours, _, _) in LEDGER_ROWS.items():
        for file, name in places(ours):
            path = ROOT / file
            if not path.exists() or name not in definitions(path):
                absent.append((number, f"{file}: {name}"))
    assert absent == []


def test_a_cell_of_places_is_taken_apart():
    assert places("a.py: f") == [("a.py", "f")]
    assert places('a.py: A.f, g (`x("y")`, or z); demo/b.py: H') == [
        ("a.py", "A.f"),
        ("a.py", "g"),
        ("demo/b.py", "H"),
    ]
    for cell in ("a.py", "f", "a.py: f and g", "a.py: f; g", "see a.py: f"):
        with pytest.raises(ValueError):
            places(cell)


def test_the_ledger_lists_its_rows_without_a_test():
    without = [number for number, cells in LEDGER_ROWS.items() if "test_" not in cells[-1]]
    assert all(LEDGER_ROWS[number][-1].strip() == "no test" for number in without)
    listed = re.search(r"^Rows without a test: ([\d, ]+)", LEDGER, re.MULTILINE)[1]
    assert [int(number) for number in listed.split(",")] == without
