"""Imported first by each command, before the libraries are loaded, which takes seconds.

A closed standard output and a current folder that is gone are refused. Ctrl-C while the libraries are loaded ends the
command with one line; --help, a wrong flag and a missing input are answered before. Nothing is imported here that takes
time. When the command begins its work, running.command takes over.
"""

import os
import signal
import sys


def end(line: str, code: int) -> None:
    """End at once with one line, as nothing is begun."""
    os.write(sys.stderr.fileno(), f"{os.path.basename(sys.argv[0])}: {line}\n".encode(errors="replace"))
    os._exit(code)


def stop_while_starting(number: int, _frame) -> None:
    """Answer a signal while the libraries are loaded."""
    end("stopped before it had begun", 128 + number)


# closed streams: no input is an empty one, and nobody reads errors; but answers and progress need a place
if sys.stdin is None:
    sys.stdin = open(os.devnull, encoding="utf-8")
if sys.stderr is None:
    sys.stderr = open(os.devnull, "w", encoding="utf-8")
if sys.stdout is None:
    end("error: standard output is closed. Open it, or send it to a file or /dev/null.", 2)
try:
    os.getcwd()
except OSError:
    end("error: the current folder is gone. Change to one that is there.", 2)

os.environ["MPLBACKEND"] = "agg"  # pictures go to files, whatever a notebook or a shell has set
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets what is in the background ignore it
    signal.signal(signal.SIGINT, stop_while_starting)


def answer_at_once(flags: str) -> None:
    """End the program here where the command line asks for help, is wrong, or names an input that is not there.

    Args:
        flags: name of the command's dataclass in running/settings.py.
    """
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun the first answers
        return
    from running import settings  # here: after Ctrl-C is dealt with
    from running.command import tell

    try:
        settings.parse(getattr(settings, flags), None).refuse_missing()
    except Exception as error:
        tell(os.path.basename(sys.argv[0]), error)
        sys.exit(2)
