"""Fine-tune the transformer on a task: `python train.py --dataset rocstories --submit --analysis --data_dir DIR`.

Flags and defaults are the paper's and the authors': finetuning.Settings.
"""

import sys
import time
from contextlib import closing
from pathlib import Path

from analysis import analyse
from finetuning import Run, Settings
from formats.files import find
from reading.rows import transform_roc  # noqa: F401  a public name of this file
from running.command import exit_code
from running.processes import Stop, join_ranks, keep_freed_memory, make_deterministic, peak_memory
from running.settings import parse
from verify import verify


def run(settings: Settings) -> None:
    """Fine-tune, and as asked predict and analyse. Raises InputError for what the user can fix."""
    started = time.monotonic()
    keep_freed_memory()
    if settings.deterministic:
        make_deterministic()
    with join_ranks() as ranks:
        fine_tuning = Run(settings, ranks)
        with closing(fine_tuning), Stop(ranks) as stop:
            fine_tuning.train(stop)
            if settings.submit:
                fine_tuning.predict(stop)
        if not ranks.is_first:
            return
        if settings.analysis:
            analyse(Path(settings.log_dir), settings.desc)
        seconds = time.monotonic() - started
        print(
            f"done in {seconds:.0f} s, {peak_memory(ranks.device)}; see {fine_tuning.log_dir}, {fine_tuning.save_dir}"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(Settings, "Fine-tune the transformer on a task, as the authors did.", argv)
    if settings.verify:
        return exit_code("train.py", lambda: verify(find(settings.model_dir)), "nothing was changed")
    return exit_code("train.py", lambda: run(settings), "--resume goes on")


if __name__ == "__main__":
    sys.exit(main())
