"""How large and how tangled the code is: `python tests/count.py [CHECKOUT]`, by default of this one. Asserts nothing.

A line of code holds code that is no docstring; syntax nodes are those of `ast`. What a run does is seen in one on the
demo's data, 2 examples long: it needs the packages, and is left out with --no_run.
"""

import argparse
import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FIND = r"((utils|files)\.)?find"  # the one that looks for a path, not that of a text
POOLS = r"(\w+\.)?(ProcessPoolExecutor|Pool|Process|Popen)"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

RUN = """
import json, runpy, sys, traceback
from pathlib import Path
from torch.overrides import TorchFunctionMode

root, data, argv = Path.cwd(), sys.argv[1], sys.argv[2:]
sys.path.insert(0, str(root))
opened, products = [], []

def ours():
    frames = [(root / frame.filename, frame.name) for frame in traceback.extract_stack()]
    frames = [(path, name) for path, name in frames if root in path.parents and "site-packages" not in path.parts]
    return [[str(path.relative_to(root)), name] for path, name in frames if path.suffix == ".py"]

def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(data) and str(arguments[0]).endswith(".csv"):
        opened.append(ours())

class Products(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function.__name__ in ("addmm", "mm", "matmul", "__matmul__", "linear"):
            stack = ours()
            if not products and "loss.py" in [file for file, _ in stack]:
                products.append(stack)
        return function(*arguments, **(keywords or {}))

sys.addaudithook(watch)
sys.argv = ["train.py", *argv]
with Products():
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
print(json.dumps([opened, products[0]]))
"""


@dataclass
class Source:
    """A file of the checkout and what is counted in it."""

    path: Path  # from the root
    tree: ast.Module
    n_lines: int
    n_code: int
    n_comments: int

    @classmethod
    def of(cls, root: Path, name: str) -> "Source":
        """Read a file."""
        text = (root / name).read_text(encoding="utf-8")
        tree = ast.parse(text)
        code, n_comments = set(), 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                n_comments += 1
            elif token.type not in LAYOUT:
                code |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node) is not None:
                code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        return cls(Path(name), tree, len(text.splitlines()), len(code), n_comments)

    def nodes(self, *kinds: type) -> list[ast.AST]:
        """Return the syntax nodes, all or those of some kinds."""
        return [node for node in ast.walk(self.tree) if not kinds or isinstance(node, kinds)]

    def calls(self) -> list[str]:
        """Return the name of each function that is called, as `find` or `files.find`."""
        names = []
        for call in self.nodes(ast.Call):
            if isinstance(call.func, ast.Name):
                names.append(call.func.id)
            elif isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
                names.append(f"{call.func.value.id}.{call.func.attr}")
        return names


def sources(root: Path) -> list[Source]:
    """Return the Python files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=root, capture_output=True, text=True, check=True)
    return [Source.of(root, name) for name in sorted(listed.stdout.split()) if (root / name).exists()]


def imports(source: Source, known: set[Path]) -> set[Path]:
    """Return the other files of ours that a file imports, wherever in it the import stands."""
    names = set()
    for node in source.nodes(ast.Import):
        names |= {alias.name for alias in node.names}
    for node in source.nodes(ast.ImportFrom):
        names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {Path(*name.split(".")).with_suffix(".py") for name in names if name}
    beside = {source.path.parent / file for file in files}
    return ((files | beside) & known) - {source.path}


def chain(arrows: dict[Path, set[Path]], first: Path, last: Path) -> list[Path]:
    """Return the shortest chain of imports from one file to another."""
    chains = [[first]]
    for way in chains:  # which grows at its end: shorter chains come first
        if way[-1] == last:
            return way
        chains += [[*way, other] for other in sorted(arrows[way[-1]]) if other not in way]
    return []


def most_parameters(files: list[Source]) -> tuple[int, str]:
    """Return the largest number of parameters of a function, and where it is. OpenAIAdam's are the paper's."""
    found = []
    for source in files:
        kept = [node for node in source.nodes(ast.ClassDef) if node.name == "OpenAIAdam"]
        skipped = {id(node) for owner in kept for node in ast.walk(owner)}
        for node in source.nodes(*FUNCTIONS):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if id(node) not in skipped:
                found.append(
                    (len([name for name in names if name not in ("self", "cls")]), f"{source.path}: {node.name}")
                )
    return max(found)


def run_demo(root: Path) -> tuple[list, list]:
    """Return our functions on the stack at each opening of a data file, and at the first matrix product of the loss."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        shutil.copytree(root / "demo/data", data, ignore=shutil.ignore_patterns("encoded_*"))
        flags = "--max_examples 4 --n_valid 2 --n_iter 1 --n_batch 1 --submit --analysis --desc count".split()
        flags += ["--model_dir", "demo/model", "--data_dir", str(data)]
        for kind in ("log", "save", "submission"):
            flags += [f"--{kind}_dir", str(Path(folder, kind))]
        run = subprocess.run([sys.executable, "-c", RUN, str(data), *flags], cwd=root, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def in_order(names: Iterable[str]) -> str:
    """Return a list of names, each once."""
    return " > ".join(dict.fromkeys(names))


def show(what: str, number: float | str, detail: str = "") -> None:
    shown = number if isinstance(number, str) else f"{number:,.4g}" if isinstance(number, float) else f"{number:,}"
    print(f"{what:52} {shown:>8}  {detail}".rstrip())


def report_sizes(name: str, files: list[Source]) -> None:
    """Print how large these files are and how dense."""
    n_code = sum(source.n_code for source in files)
    n_nodes = sum(len(source.nodes()) for source in files)
    show(f"{name}: files", len(files))
    show(f"{name}: lines", sum(source.n_lines for source in files))
    show(f"{name}: lines of code", n_code)
    show(f"{name}: syntax nodes", n_nodes)
    show(f"{name}: syntax nodes per line of code", n_nodes / n_code)
    show(f"{name}: comments per line of code", sum(source.n_comments for source in files) / n_code)


def report_calls(what: str, files: list[Source], pattern: str) -> None:
    """Print how often functions are called whose names match, and in which files."""
    counts = {source.path: sum(bool(re.fullmatch(pattern, call)) for call in source.calls()) for source in files}
    show(what, sum(counts.values()), ", ".join(f"{path} {count}" for path, count in counts.items() if count > 0))


def report_imports(files: list[Source]) -> None:
    """Print how many files of ours one imports, and the way from the command to the matrix products."""
    known = {source.path for source in files}
    arrows = {source.path: imports(source, known) for source in files}
    modules = [path for path in arrows if path.name != "__init__.py"]
    show("imports of our files per file", sum(map(len, arrows.values())) / len(modules))
    kernels = next(path for path in modules if path.name == "kernels.py")
    way = chain(arrows, Path("train.py"), kernels)
    show("files imported from train.py to kernels.py", len(way) - 1, in_order(map(str, way)))


def report_run(root: Path) -> None:
    """Print what a run of train.py opens."""
    opened, product = run_demo(root)
    files = in_order(file for file, _ in product if Path(file).stem not in ("kernels", "packing"))
    show("files run through from train.py to a matrix product", files.count(">") + 1, files)
    digests = [stack for stack in opened if "sha256" in stack[-1]]
    ways = {in_order(f"{file}: {name}" for file, name in stack) for stack in opened if stack not in digests}
    show("data files opened in a run: read", len(opened) - len(digests))
    show("data files opened in a run: for a digest", len(digests))
    show("ways on which a run reads a data file", len(ways))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1], help="a git checkout")
    parser.add_argument("--no_run", action="store_true", help="leave out what is seen in a run of train.py")
    flags = parser.parse_args()
    root = flags.root.resolve()

    everything = sources(root)
    code = [source for source in everything if source.path.parts[0] != "tests"]
    tests = [source for source in everything if source.path.parts[0] == "tests"]
    tracked = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=root, capture_output=True, text=True).stdout
    entries = [name for name in tracked.split() if not name.startswith(".")]
    show("entries at the root", len(entries))
    show(".py files at the root", sum(name.endswith(".py") for name in entries))
    report_sizes("code", code)
    report_sizes("tests", tests)
    show("most parameters of a function", *most_parameters(code))
    report_calls("calls of find", code, FIND)
    report_calls("process pools and processes started", code, POOLS)
    report_imports(code)
    if not flags.no_run:
        report_run(root)


if __name__ == "__main__":
    main()
