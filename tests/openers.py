"""Sessions that go wrong, each in its own way; workers open them by name."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import MissingPackageError
from zoo.models import create_model
from zoo.session import EagerSession


class Session:
    """Ten logits of zero, at once."""

    backend = "test"
    precision = "fp32"
    runtime = "test 1.0"

    def __init__(self, path: str, device: str) -> None:
        self.device = device
        self.path = Path(path)

    def run(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 10)

    def synchronize(self) -> None:
        pass


class LoggingSession(Session):
    """Adds a line to the file `log` beside its path in each call."""

    def run(self, images: Tensor) -> Tensor:
        with self.path.parent.joinpath("log").open("a") as log:
            print(self.path.name, len(images), file=log)
        time.sleep(0.001)
        return super().run(images)


class WrongSession(Session):
    """No finite logits at batch 1, an error at any other."""

    def run(self, images: Tensor) -> Tensor:
        if len(images) != 1:
            raise RuntimeError("this file takes batch 1 only\nand a second line")
        return super().run(images) / 0


class FragileSession(Session):
    """Dies at batch 1 and lives at any other."""

    def run(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().run(images)


class DriftingSession(Session):
    """Has finite logits for its first 20 calls."""

    calls = 0

    def run(self, images: Tensor) -> Tensor:
        self.calls += 1
        time.sleep(0.001)
        return super().run(images) / (self.calls <= 20)


class SlowSession(Session):
    def run(self, images: Tensor) -> Tensor:
        time.sleep(0.2)
        return super().run(images)


class HungSession(Session):
    def run(self, images: Tensor) -> Tensor:
        time.sleep(600)
        return super().run(images)


class StarvedSession(Session):
    """Asks for 8 GiB where 2 GiB are left to its process."""

    def run(self, images: Tensor) -> Tensor:
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * 2**30, most))
        return super().run(images) + torch.ones(2 * 2**30).mean()


class GreedySession(LoggingSession):
    """Keeps 64 MiB, touches 64 MiB more in each call, and prints, above and below Python."""

    def __init__(self, path: str, device: str) -> None:
        super().__init__(path, device)
        self.kept = torch.ones(16 * 2**20)

    def run(self, images: Tensor) -> Tensor:
        print("a library prints")
        os.write(1, b"and so does its C code\n")
        assert sys.stdin.read() == ""
        return super().run(images) + torch.ones(16 * 2**20).mean()


def real(path: str, device: str) -> EagerSession:
    torch.manual_seed(0)
    return EagerSession(create_model(path), device=device)


class SwappedSession(EagerSession):
    """Gives its logits in reverse order."""

    def run(self, images: Tensor) -> Tensor:
        return super().run(images).flip(1)


def swapped(path: str, device: str) -> SwappedSession:
    torch.manual_seed(0)
    return SwappedSession(create_model(path), device=device)


def segfault(path: str, device: str) -> Session:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("still alive")


def missing(path: str, device: str) -> Session:
    raise MissingPackageError("tensorrt", extra="trt", needed_by="--backend trt")
