"""Ctrl-C and SIGTERM, held back while things are between two states."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is done.

    The handlers are exchanged, not the signal mask: that of one thread does not hold back what
    another thread of the process receives. Only the main thread handles signals; in others this
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in NUMBERS}
    try:
        yield
    finally:
        _put_back(before)
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)


class StopRequest:
    """Whether somebody asked for the end of a block that stops where nothing is lost."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal
        self._before: dict[signal.Signals, Any] = {}

    def obey(self, number: int) -> None:
        """Let a signal do now what it would have done without the block."""
        self._give_up()
        signal.raise_signal(number)

    def _give_up(self) -> None:
        _put_back(self._before)
        self._before = {}


@contextmanager
def stop_request(on_first: Callable[[], None]) -> Iterator[StopRequest]:
    """Note the first Ctrl-C or SIGTERM for the block to obey; a second one acts at once.

    `on_first` is called when the first one arrives. What the caller ignores stays ignored, and a
    request that the block did not come to obey acts at its end.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.number is not None:
            request.obey(number)
        else:
            request.number = number
            on_first()

    heard = [n for n in NUMBERS if signal.getsignal(n) is not signal.SIG_IGN]
    request._before = {number: signal.signal(number, note) for number in heard}
    try:
        yield request
    except BaseException:
        request._give_up()
        raise
    if request._before:
        request._give_up()
        if request.number is not None:
            signal.raise_signal(request.number)


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
