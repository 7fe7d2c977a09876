"""`make gpu`: the tests that need a GPU but no text, then the speed there, within 8 minutes.

Needs torch, numpy, tqdm, safetensors, scikit-learn and pytest; transformers is measured too where it is installed.
Prints one table; the JSON file is written anew after each part, so that a run that is cut off leaves what it has.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import argparse
import subprocess
import sys
import time
from pathlib import Path

from bench import common, generation, pretrain, update
from bench.common import Case
from running.command import exit_code

SECONDS = 420  # for all parts together; the last one may take a little more
TESTS = ["-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-q", "-rs", "-W", "default", "-p", "no:cacheprovider"]

PARTS = []
for precision in ("fp32", "bf16"):
    for n_batch in (8, 32, 64):
        PARTS.append((update, Case(n_batch, precision, n_ctx=77)))
    PARTS.append((pretrain, Case(64, precision, n_turns=5)))
PARTS.append((generation, Case(1, n_ctx=108, n_turns=3)))


def run_tests(seconds: float) -> str:
    """Run the tests and return their last line."""
    command = [sys.executable, *TESTS]
    root = Path(__file__).resolve().parents[1]
    try:
        run = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"the tests took more than {seconds:.0f} s"
    print(run.stdout, file=sys.stderr)
    return (run.stdout.splitlines() or ["no tests ran"])[-1]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="JSON file; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts; default: %(default)s")
    flags = parser.parse_args(argv)
    end = time.monotonic() + flags.seconds
    tests = run_tests(flags.seconds / 3)

    # each part gets an equal share of the time that is left
    rows = []
    for i, (script, case) in enumerate(PARTS):
        limit = max(0.0, end - time.monotonic()) / (len(PARTS) - i)
        part = f"{script.__name__}, {case.precision}, batch {case.n_batch}"
        print(f"{part}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        rows += script.measure(case, limit)
        table = common.report(rows, flags.out, tests=tests)
    print(table)
    print(tests)


if __name__ == "__main__":
    sys.exit(exit_code("gpu.py", main, "the table is incomplete"))
