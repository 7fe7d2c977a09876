"""Analyse a finished run: `python analysis.py --desc DESC --data_dir DIR`."""

import argparse
import sys

from datasets import TASKS
from results import analyse
from utils import exit_code, find


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("--dataset", choices=TASKS, default="rocstories", help="the task of the run")
    flag("--desc", default="rocstories", help="name of the run, as given to train.py")
    flag("--data_dir", default="data/", help="folder of the task's files")
    flag("--log_dir", default="log/", help="folder of <desc>.jsonl and <desc>.tsv; <desc>.png is written there")
    args = parser.parse_args(argv)
    action = lambda: analyse(TASKS[args.dataset], find(args.data_dir), args.log_dir, args.desc)  # noqa: E731
    return exit_code("analysis.py", action, "nothing is drawn")


if __name__ == "__main__":
    sys.exit(main())
