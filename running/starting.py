"""Imported first by each command: Ctrl-C while the libraries are loaded, which takes seconds, ends it with one line.

It imports nothing that takes time. When the command begins its work, running.command takes over.
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
