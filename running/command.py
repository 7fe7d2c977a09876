"""What every command has in common: one line for what the user can fix, and exit codes."""

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from formats.files import InputError, reason

# a terminal that is closed and a limit of time stop a program as SIGTERM does
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
LONGEST_MESSAGE = 300  # characters
PARSERS = ("json.decoder", "json.scanner", "csv", "ast")


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def exit_code(program: str, action: Callable[[], None], when_stopped: str) -> int:
    """Run a command's action and return 0; 2 after one line on what the user can fix; 128 + n after signal n.

    What the system or a parser raises on what the user gave is of the second kind; a fault of ours stays a traceback.
    """
    use_utf8()

    def terminate(number: int, _frame) -> None:
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice
        raise Interrupted(number)

    # the action, and how it ended
    with handled(STOPPING, terminate):
        if getattr(signal.getsignal(signal.SIGINT), "__name__", "") == "stop_while_starting" and in_main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            action()
            flush_output()
        except KeyboardInterrupt as stop:
            say(f"{program}: stopped; {when_stopped}")
            return 128 + getattr(stop, "number", signal.SIGINT)
        except Exception as error:
            tell(program, error)
            return 2
    return 0


def in_main_thread() -> bool:
    """Return whether this is the thread that may handle signals."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handled(numbers: Iterable[int], handler: Callable) -> Iterator[None]:
    """Let a handler take signals within the `with`; those that are ignored, as nohup asks, stay so, but for Ctrl-C.

    They are of this process: a child that a library forks meanwhile ends by them as it would without.
    """
    process = os.getpid()

    def in_this_process(number: int, frame) -> None:
        if os.getpid() == process:
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # the handlers that there were come back at the end
    earlier = {}
    if in_main_thread():
        for number in numbers:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                earlier[number] = signal.signal(number, in_this_process)
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


def tell(program: str, error: Exception) -> None:
    """Print in one line what the user can fix. Raises the error itself if it is a fault of ours."""
    problem = what_the_user_can_fix(error)
    if problem is None:
        raise error
    say(f"{program}: error: {problem}")


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


def what_the_user_can_fix(error: Exception) -> str | None:
    """Return in one line what was wrong with what the user gave, and the remedy; None: it is a fault of ours."""
    if isinstance(error, InputError):
        line = " ".join(str(error).splitlines())
        # what is wrong stands first and the remedy last; between them may be a file's own words, of any length
        return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 120]} ... {line[-115:]}"
    # what the system refused
    if isinstance(error, OSError):
        if error.filename is None:
            why = f"a file, or the standard input or output, cannot be read or written ({reason(error)})"
            return f"{why}. Make room, or keep the other end of the pipe open."
        return f"{error.filename} cannot be read or written ({reason(error)}). Name another one, or make it accessible."

    # too much, or nested too deep, for the machine
    if is_out_of_memory(error):
        return "there is not enough memory for what was asked. Ask for less at a time, or for smaller sizes."
    if isinstance(error, RecursionError | OverflowError):
        modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
        if set(modules) & set(PARSERS):
            return f"a file is not what it should be: it cannot be parsed ({error}). Fetch or write it again."
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is full; on a CPU torch raises a RuntimeError with such a text."""
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_of_torch)


def flush_output() -> None:
    """Write what standard output still holds. Raises InputError when its reader is gone or its disk is full."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        drop_output()
        why = f"standard output cannot be written ({reason(error)})"
        raise InputError(f"{why}. Make room, or keep the other end of the pipe open.") from None


def drop_output() -> None:
    """Let what standard output still holds go nowhere: Python would try again at its end, and fail with a traceback."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(line: str) -> None:
    """Print a line to standard error, if that takes one; first what standard output still holds."""
    with suppress(InputError):
        flush_output()
    with suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr, flush=True)
