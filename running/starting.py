"""Imported first by each command, before the libraries are loaded, which takes seconds.

Ctrl-C while they are loaded ends the command with one line; --help, a wrong flag and a missing input are answered
before. Nothing is imported here that takes time. When the command begins its work, running.command takes over.
"""

import os
import signal
import sys


def stop_while_starting(number: int, _frame) -> None:
    """End at once, as nothing is begun."""
    line = f"{os.path.basename(sys.argv[0])}: stopped before it had begun\n"
    os.write(2, line.encode(errors="replace"))
    os._exit(128 + number)


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
    from running.command import say, what_the_user_can_fix

    try:
        settings.parse(getattr(settings, flags), None).refuse_missing()
    except Exception as error:
        problem = what_the_user_can_fix(error)
        if problem is None:
            raise
        say(f"{os.path.basename(sys.argv[0])}: error: {problem}")
        sys.exit(2)
