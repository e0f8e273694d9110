"""Whole pre-trainings of a second, on the images of `small_runs`."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
from torch import Tensor

from training.pretrainer import Pretrainer
from training.pretraining import Pretraining, pretraining_for
from training.recipe import with_settings

MISSING = "needs the package lightly, of the extra ssl"
needs_lightly = pytest.mark.skipif(find_spec("lightly") is None, reason=MISSING)
MODEL, FOLDER = "tiny_network:headed", "tiny_network-headed-s0"
STEPS = 6  # of an epoch
SMALL = {"hidden": "32", "projection": "16", "queue": "128", "batch_size": "50", "epochs": "2"}


def settings(method: str, **more: str) -> Pretraining:
    return with_settings(pretraining_for(method), {"warmup_epochs": "0"} | SMALL | more)


def send_in_step(patch: pytest.MonkeyPatch, number: int, *signals: signal.Signals) -> None:
    """Send this process signals from within the step that is the `number`th from now on."""
    take, taken = Pretrainer._take, 0

    def take_and_send(self: Pretrainer) -> Tensor:
        nonlocal taken
        taken += 1
        loss = take(self)
        for one in signals if taken == number else ():
            os.kill(os.getpid(), one)
        return loss

    patch.setattr(Pretrainer, "_take", take_and_send)


@contextmanager
def ctrl_c_in_step(number: int, *, times: int = 1) -> Iterator[None]:
    """Ctrl-C in that step ends the block."""
    with pytest.MonkeyPatch.context() as patch:
        send_in_step(patch, number, *[signal.SIGINT] * times)
        with pytest.raises(KeyboardInterrupt):
            yield
