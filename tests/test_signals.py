import os
import signal
import threading

import pytest

from zoo.signals import held_signals


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done: list[str] = []

    def block() -> None:
        with held_signals():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        block()

    assert done == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_is_not_lost() -> None:
    with pytest.raises(OSError, match="full"), held_signals():
        raise OSError("full")


def test_other_threads_are_left_alone() -> None:
    outcome = []

    def work() -> None:
        with held_signals():
            outcome.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert outcome == ["done"]
