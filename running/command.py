"""What every command has in common: one line for what the user can fix, and exit codes."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable

from formats.files import InputError


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def exit_code(program: str, action: Callable[[], None], when_stopped: str) -> int:
    """Run a command's action and return 0; 2 after one line on what the user can fix; 128 + n after signal n."""

    process = os.getpid()

    def terminate(number: int, _frame) -> None:
        if os.getpid() != process:  # a worker, forked by a library, ends as it would without this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice
        raise Interrupted(number)

    use_utf8()
    in_main_thread = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGTERM, terminate) if in_main_thread else None
    try:
        action()
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped; {when_stopped}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, earlier)
    return 0


def use_utf8() -> None:
    """Read and write UTF-8 whatever the locale says; a terminal gets escapes for what it cannot show."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.encoding.lower() == "utf-8":
            continue
        if stream is sys.stdin:
            stream.reconfigure(encoding="utf-8", errors="strict")
        elif stream.isatty():
            stream.reconfigure(errors="backslashreplace")
        else:
            stream.reconfigure(encoding="utf-8")
