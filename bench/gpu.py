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

# of an H100, by our network: what, precision, batch, figure, whether it is a lower limit, the limit
TARGETS = [
    ("update", "bf16", 64, "ms", False, 20),
    ("update", "bf16", 8, "ms", False, 10),  # three epochs of ROCStories, 561 updates, then take less than 6 s
    ("update", "bf16", 64, "times_peer", True, 1.5),
    ("pretrain", "bf16", 64, "of_matrix_rate", True, 0.45),
    ("generation", "fp32", 1, "tokens_per_s", True, 250),
]

# what is measured: a script and its case
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
    lines = run.stdout.splitlines()
    return lines[-1] if lines else "no tests ran"


def verdicts(rows: list[dict]) -> str:
    """Return a line for each target: what was found, and whether it is reached."""
    lines = []
    for what, precision, n_batch, figure, is_lower, limit in TARGETS:
        # the figure of its row
        found = None
        for row in rows:
            of_row = (row["what"], row["by"], row["precision"], row["n_batch"])
            if of_row == (what, "ours", precision, n_batch):
                found = row.get(figure)

        # in words
        verdict = "not run"
        if found is not None:
            is_reached = found >= limit if is_lower else found <= limit
            verdict = f"{found:.4g}, {'reached' if is_reached else 'missed'}"
        side = "at least" if is_lower else "at most"
        lines.append(f"{what}, {precision}, batch {n_batch}: {figure} {side} {limit}: {verdict}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="JSON file; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts; default: %(default)s")
    flags = parser.parse_args(argv)

    # a third of the time for the tests
    end = time.monotonic() + flags.seconds
    tests = run_tests(flags.seconds / 3)

    # each part gets an equal share of the time that is left
    rows = []
    for i, (script, case) in enumerate(PARTS):
        left = max(0.0, end - time.monotonic())
        limit = left / (len(PARTS) - i)
        part = f"{script.__name__}, {case.precision}, batch {case.n_batch}"
        print(f"{part}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        rows += script.measure(case, limit)
        table = common.report(rows, flags.out, tests=tests)
    print(table)
    print(verdicts(rows))
    print(tests)


if __name__ == "__main__":
    sys.exit(exit_code("gpu.py", main, "the table is incomplete"))
