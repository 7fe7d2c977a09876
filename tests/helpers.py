"""What tests of commands share: files that are read and written, a refusal, a stop."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from running.training import Run

ROOT = Path(__file__).resolve().parent.parent
NO_DROPOUT = [f"--{part}_pdrop=0" for part in ("embd", "attn", "resid", "clf")]


def read_lines(path: str | Path) -> list[dict]:
    """Return the values of a file of JSON lines; of a run's log the first one holds its settings."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_lines(path: Path, values: Iterable) -> Path:
    """Write a file of JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def shard_values(folder: str | Path) -> np.ndarray:
    """Return all numbers of a folder in the authors' format: positions, tokens, blocks."""
    return np.concatenate([np.load(f"{folder}/params_{i}.npy") for i in range(10)])


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return what the files of a folder hold, by their names."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def refused(main: Callable[[list[str]], int], argv: list, capsys: pytest.CaptureFixture) -> str:
    """Run a command that must end with exit code 2 and one line on stderr, progress bars apart; return the line."""
    capsys.readouterr()
    try:
        code = main(list(map(str, argv)))
    except SystemExit as stop:  # of a flag, below the usage
        code = stop.code
    err = capsys.readouterr().err.replace("\r", "\n")
    lines = [line for line in err.splitlines() if "error: " in line]
    assert code == 2 and len(lines) == 1 and err.rstrip().endswith(lines[0]), err
    return lines[0]


def stop_at_the_first_log(main: Callable[[list[str]], int], argv: list[str]) -> None:
    """Run a training that is stopped, as by Ctrl-C, when it is to write its first log."""

    def stop(*_) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "write_log", stop)
        assert main(argv) == 130


class Touch:
    """Pickled, a command to make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)
