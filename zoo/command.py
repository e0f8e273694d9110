"""The shell that all commands share: parsing, one-line errors, exit codes."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from zoo import __version__
from zoo.allocator import keep_memory
from zoo.errors import ZooError
from zoo.preprocess import MAX_SIZE

OUTPUT_CLOSED = 141  # the reader of our output went away, as a shell reports SIGPIPE


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
            **options,
        )
        self.add_argument("--version", action="version", version=f"cifar-zoo {__version__}")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def positive_ints(text: str) -> tuple[int, ...]:
    """Read '1,256' as (1, 256); duplicates are dropped.

    Raises:
        argparse.ArgumentTypeError: an item is not a whole number of 1 or more.
    """
    items = text.split(",")
    if not all(item.strip().isdecimal() and int(item) > 0 for item in items):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers of 1 or more with commas between, like 1,256; got {text!r}"
        )
    return tuple(dict.fromkeys(int(item) for item in items))


def positive_int(text: str) -> int:
    """Read one whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def image_size(text: str) -> int:
    """Read the height of images, in pixels."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SIZE:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_SIZE} pixels, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """Read a share of a whole, in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """Read a number of seconds above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def positive_number(text: str) -> float:
    """Read a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def seed(text: str) -> int:
    """Read the seed of a run: a whole number from 0 to 2**63 - 1."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to 9223372036854775807, got {text!r}"
        )
    return int(text)


def device(text: str) -> str:
    """Read the name of a device: cpu, cuda or cuda:N."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def names(text: str) -> tuple[str, ...]:
    """Read 'onnx,trt' as ('onnx', 'trt'); duplicates are dropped."""
    items = tuple(dict.fromkeys(item.strip() for item in text.split(",")))
    if not all(items):
        raise argparse.ArgumentTypeError(
            f"expected names with commas between, like onnx,trt; got {text!r}"
        )
    return items


def run(command: str, body: Callable[[], int | None]) -> int:
    """Call `body` and turn what it raises into one line on stderr and an exit code.

    Exit codes: 0 done, 1 a check or the machine failed, 2 the user's mistake, 130 SIGINT,
    143 SIGTERM. Anything else that is raised is a bug and keeps its traceback. The process keeps
    the memory that it frees: see `zoo.allocator`.
    """
    keep_memory()
    _open_streams()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = body()
        sys.stdout.flush()
        return code or 0
    except ZooError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except OSError as error:
        print(f"{command}: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except _Terminated:
        print(f"{command}: terminated", file=sys.stderr)
        return 143
    finally:
        signal.signal(signal.SIGTERM, previous)


def _open_streams() -> None:
    """Put the null device where the caller closed a standard stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  (as long as we run)
            setattr(sys, name, null)


def describe(error: OSError) -> str:
    """Say what failed on which file, in one line."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated
