"""Fine-tuning runs for the demo's tables: one run from its flags, and a file of results so that none is repeated."""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the scripts in the folder above

import train  # noqa: E402


def fine_tune(flags: list[str], work_dir: Path) -> Path:
    """Run train.py with --submit and return the path of the run's log; `.tsv` beside it holds the predictions."""
    shutil.rmtree(work_dir, ignore_errors=True)  # an interrupted run starts again
    folders = [f"--{name}_dir={work_dir / name}" for name in ("log", "save", "submission")]
    with contextlib.redirect_stdout(io.StringIO()):
        if train.main(["--desc=run", *folders, "--submit", *flags]):
            raise SystemExit(2)
    return work_dir / "log/run.jsonl"


def best_accuracy(log: Path) -> float:
    """Return the highest accuracy on valid in a log (%)."""
    return max(json.loads(line)["va_acc"] for line in log.read_text().splitlines()[1:])


def run_missing(
    path: Path, names: list[str], n_seeds: int, run: Callable[[str, int], dict[str, float]]
) -> pd.DataFrame:
    """Run what a file of results, one a line, does not hold yet; return all that it then holds.

    Args:
        n_seeds: runs of each name, with the seeds 1, 2, ...
        run: name and seed -> figures, among them "test".
    """
    path.touch()
    results = [json.loads(line) for line in path.read_text().splitlines()]
    done = {(row["name"], row["seed"]) for row in results}
    for seed in range(1, n_seeds + 1):
        for name in names:
            if (name, seed) not in done:
                results.append({"name": name, "seed": seed, **run(name, seed)})
                with open(path, "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(f"seed {seed}, {name}: test {results[-1]['test']:.2f}", flush=True)
    return pd.DataFrame(results)
