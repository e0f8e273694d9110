import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable

import pytest

import cifar_zoo
from zoo.command import (
    Parser,
    image_size,
    names,
    positive_int,
    positive_ints,
    positive_seconds,
    run,
)
from zoo.errors import MachineError, MissingPackageError, ZooError


def raiser(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ZooError("wrong"), 2, "zoo-x: wrong\n"),
        (MachineError("broke"), 1, "zoo-x: broke\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "zoo-x: a/b: No space left"),
        (OSError("odd"), 1, "zoo-x: odd\n"),
        (KeyboardInterrupt(), 130, "zoo-x: interrupted\n"),
    ],
)
def test_errors_are_one_line_with_their_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("zoo-x", raiser(error)) == code

    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


def test_sigterm_is_143(capsys: pytest.CaptureFixture[str]) -> None:
    code = run("zoo-x", lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert code == 143
    assert capsys.readouterr().err == "zoo-x: terminated\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_streams_that_the_caller_closed_take_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    def body() -> None:
        print("said to nobody")
        sys.stderr.write(sys.stdin.read())

    assert run("zoo-x", body) == 0
    assert run("zoo-x", raiser(ZooError("wrong"))) == 2
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()


def test_ctrl_c_while_a_command_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar_zoo, "resolve_name", lambda target: raiser(KeyboardInterrupt())())

    assert cifar_zoo.list_models() == 130
    assert capsys.readouterr().err == "zoo-list: interrupted\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run("zoo-x", lambda: 1 // 0)


def test_success_is_zero_or_what_the_body_says() -> None:
    assert run("zoo-x", lambda: None) == 0
    assert run("zoo-x", lambda: 1) == 1


@pytest.mark.parametrize("text", ["0", "1,x", "", "1,,2", "-1", "1.5", "1,0"])
def test_batches_are_checked(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="like 1,256; got"):
        positive_ints(text)


def test_lists_drop_what_comes_twice() -> None:
    assert positive_ints("1,256,1") == (1, 256)
    assert names("onnx, trt,onnx") == ("onnx", "trt")
    with pytest.raises(argparse.ArgumentTypeError, match="like onnx,trt"):
        names("onnx,")


@pytest.mark.parametrize("text", ["0", "x", "2.0"])
def test_whole_numbers_are_checked(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number of 1 or more"):
        positive_int(text)


@pytest.mark.parametrize("text", ["0", "x", "32.5", "4097"])
def test_sizes_of_images_are_checked(text: str) -> None:
    assert image_size("4096") == 4096
    with pytest.raises(argparse.ArgumentTypeError, match="expected 1 to 4096 pixels, got"):
        image_size(text)


@pytest.mark.parametrize("text", ["0", "x", "-1", "nan", "inf"])
def test_seconds_are_checked(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="seconds above 0"):
        positive_seconds(text)


def test_a_usage_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("zoo-x", "Does x.")
    parser.add_argument("--batch", type=positive_ints)

    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--batch", "0"])

    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "zoo-x: argument --batch: expected whole numbers of 1 or more with commas between, "
        "like 1,256; got '0' (see zoo-x --help)\n"
    )


def test_a_missing_package_names_its_extra() -> None:
    error = MissingPackageError("tensorrt", extra="trt", needed_by="--to trt")

    assert str(error) == (
        "--to trt needs the package tensorrt, which is not installed: "
        "in a clone of cifar-zoo run pip install '.[trt]'"
    )
