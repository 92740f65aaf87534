"""End a command by Ctrl-C, or by the SIGTERM or SIGHUP of whoever has started it, alike."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SENTENCE = "stopped; the same command goes on from there, and what is done is whole."


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt at a first signal to stop; a second one ends what it finds running.

    A signal that is ignored stays so, as SIGHUP is under nohup. It needs the main thread.
    """

    def stop(number: int, _: Any) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt(number)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]  # Windows has fewer of them
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: each for number, each in before.items() if each != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


def exit_status(stopped: KeyboardInterrupt) -> int:
    """Say how a process ends that a signal has stopped, as shells count it."""
    return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
