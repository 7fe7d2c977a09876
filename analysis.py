"""Analyse a finished run: `python analysis.py --desc DESC --data_dir DIR`.

Which data set it is of, its form, columns and split come from the run's log.
"""

import argparse
import sys
from pathlib import Path

from formats.examples import parse_columns
from formats.files import InputError, find
from reading.tasks import TASKS, find_task
from running.command import exit_code
from running.results import analyse, read_log


def run(args: argparse.Namespace) -> None:
    """Analyse. Raises InputError for what the user can fix."""
    path = Path(args.log_dir) / f"{args.desc}.jsonl"
    settings, _ = read_log(path, set(), [])
    dataset = settings.get("dataset", args.dataset or "rocstories")
    if args.dataset not in (None, dataset):
        raise InputError(f"{path} is of a run on {dataset}, not on {args.dataset}. Leave --dataset out.")
    if dataset not in (*TASKS, "own"):
        raise InputError(f"{path} is of a run on {dataset}, which is not among {', '.join(TASKS)}.")
    data_dir, columns = find(args.data_dir), parse_columns(settings.get("columns"))
    task = find_task(dataset, data_dir, settings.get("task"), columns, settings.get("race", "all"))
    analyse(task, data_dir, args.log_dir, args.desc)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("--dataset", choices=[*TASKS, "own"], help="data set of the run; default: as its log has it")
    flag("--desc", default="rocstories", help="name of the run, as given to train.py")
    flag("--data_dir", default="data/", help="folder of the task's files")
    flag("--log_dir", default="log/", help="folder of the run's log and predictions; the results are written there")
    args = parser.parse_args(argv)
    return exit_code("analysis.py", lambda: run(args), "nothing is drawn")


if __name__ == "__main__":
    sys.exit(main())
