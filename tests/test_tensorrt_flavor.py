"""Which TensorRT is taken, and what is said where none suits."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from export import tensorrt_api, tensorrt_run
from export.tensorrt_api import Flavor, MessageLog, check_gpu, installed, load_flavor
from zoo.errors import MachineError, MissingPackageError, ZooError
from zoo.machine import Gpu

V100 = Gpu(name="Tesla V100-SXM2-16GB", capability=(7, 0))
H200 = Gpu(name="NVIDIA H200", capability=(9, 0))
T4 = Gpu(name="Tesla T4", capability=(7, 5))


def present(monkeypatch: pytest.MonkeyPatch, *modules: str, gpu: Gpu | None = None) -> None:
    """Let only these modules be there, and this GPU."""
    monkeypatch.setattr(
        tensorrt_api, "find_spec", lambda name: object() if name in modules else None
    )
    monkeypatch.setattr(tensorrt_api, "driver_gpu", lambda: gpu)


def flavor(name: str, version: str) -> Flavor:
    return Flavor(name=name, trt=SimpleNamespace(__version__=version))


def test_with_a_gpu_tensorrt_comes_first_and_without_one_rtx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    present(monkeypatch, "tensorrt_bindings", "tensorrt_rtx_bindings")

    assert installed(device="cuda:1") == ("tensorrt", "rtx")
    assert installed(device="cpu") == ("rtx", "tensorrt")


def test_the_flavor_that_is_installed_is_taken_wherever_it_runs() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra trt-rtx")

    for device in ("cpu", "cuda"):
        if installed(device=device) == ("rtx",):
            assert load_flavor(None, device=device).trt is trt
    assert str(load_flavor("rtx", device="cpu")) == f"TensorRT-RTX {trt.__version__}"


@pytest.mark.parametrize(
    ("name", "gpu", "package", "extra"),
    [
        (None, None, "tensorrt_rtx_bindings", "trt-rtx"),
        (None, T4, "tensorrt", "trt"),
        (None, V100, "tensorrt", "v100-trt"),
        ("rtx", V100, "tensorrt_rtx_bindings", "trt-rtx"),
        ("tensorrt", None, "tensorrt", "trt"),
    ],
)
def test_what_to_install_depends_on_the_gpu(
    name: str | None,
    gpu: Gpu | None,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    present(monkeypatch, gpu=gpu)

    with pytest.raises(MissingPackageError) as caught:
        load_flavor(name, device="cpu")

    assert str(caught.value) == (
        f"--to trt needs the package {package}, which is not installed: "
        f"in a clone of cifar-zoo run pip install '.[{extra}]'"
    )


def test_the_other_flavor_is_not_taken_in_place_of_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    present(monkeypatch, "tensorrt_rtx_bindings")

    with pytest.raises(MissingPackageError, match="needs the package tensorrt, which"):
        load_flavor("tensorrt", device="cpu")


def test_an_unknown_flavor_is_refused_with_the_nearest() -> None:
    with pytest.raises(ZooError) as caught:
        load_flavor("tensort", device="cpu")

    assert str(caught.value) == ("no TensorRT flavor named 'tensort': did you mean tensorrt?")


def test_a_package_whose_libraries_are_gone_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    present(monkeypatch, "tensorrt_rtx_bindings")

    def without_libraries(name: str) -> None:
        raise OSError("libtensorrt_rtx.so.1: cannot open shared object file\nsecond line")

    monkeypatch.setattr(tensorrt_api, "import_module", without_libraries)

    with pytest.raises(MachineError) as caught:
        load_flavor("rtx", device="cpu")

    assert str(caught.value) == (
        "tensorrt_rtx_bindings cannot be imported: "
        "libtensorrt_rtx.so.1: cannot open shared object file"
    )


def gpu(name: str, major: int, minor: int) -> Gpu:
    return Gpu(name=name, capability=(major, minor))


@pytest.mark.parametrize(
    ("found", "capabilities"),
    [
        (flavor("tensorrt", "10.4.0"), [(7, 0), (7, 5), (9, 0)]),
        (flavor("tensorrt", "11.4.0.106"), [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]),
        (flavor("rtx", "1.7.1.116"), [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1), (13, 0)]),
    ],
)
def test_a_gpu_that_a_flavor_has_code_for_passes(
    found: Flavor, capabilities: list[tuple[int, int]]
) -> None:
    for major, minor in capabilities:
        check_gpu(found, gpu("any", major, minor))
    check_gpu(found, None)


V100_REMEDY = (
    "TensorRT 10.4 is the last that has, in a clone of cifar-zoo run pip install '.[v100,v100-trt]'"
)


@pytest.mark.parametrize(
    ("found", "card", "message"),
    [
        (
            flavor("tensorrt", "11.4.0.106"),
            V100,
            "TensorRT 11.4.0.106 has no code for the Tesla V100-SXM2-16GB (compute capability "
            f"7.0): {V100_REMEDY}",
        ),
        (
            flavor("tensorrt", "10.5.0"),
            V100,
            "TensorRT 10.5.0 has no code for the Tesla V100-SXM2-16GB (compute capability "
            f"7.0): {V100_REMEDY}",
        ),
        (
            flavor("rtx", "1.7.1.116"),
            V100,
            "TensorRT-RTX 1.7.1.116 has no code for the Tesla V100-SXM2-16GB (compute capability "
            f"7.0): {V100_REMEDY}",
        ),
        (
            flavor("rtx", "1.7.1.116"),
            gpu("NVIDIA H200", 9, 0),
            "TensorRT-RTX 1.7.1.116 has no code for the NVIDIA H200 (compute capability 9.0): "
            "in a clone of cifar-zoo run pip install '.[gpu,trt]'",
        ),
        (
            flavor("tensorrt", "10.4.0"),
            gpu("Tesla P100", 6, 0),
            "TensorRT 10.4.0 has no code for the Tesla P100 (compute capability 6.0): "
            "use --to onnx in its place",
        ),
    ],
)
def test_a_gpu_without_code_is_told_what_runs_on_it(found: Flavor, card: Gpu, message: str) -> None:
    with pytest.raises(MachineError) as caught:
        check_gpu(found, card)

    assert str(caught.value) == message


class FakeRefusingRuntime:
    """Of a TensorRT that did not write the engine."""

    def __init__(self, logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> None:
        return None


@pytest.mark.parametrize(
    ("version", "card", "message"),
    [
        (
            "11.4.0.106",
            H200,
            r"is no engine for this GPU .*\(TensorRT 11.4.0.106: it gave no reason",
        ),
        ("11.4.0.106", V100, "^TensorRT 11.4.0.106 has no code for the Tesla V100"),
        ("10.4.0.26", V100, r"is no engine for this GPU .*\(TensorRT 10.4.0.26: it gave no reason"),
    ],
)
def test_a_flavor_without_code_for_the_gpu_hides_nothing_of_the_other(
    version: str, card: Gpu, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    severity = SimpleNamespace(ERROR=0, INTERNAL_ERROR=1, VERBOSE=2)
    logger = type("Logger", (), {"Severity": severity})
    trt = SimpleNamespace(__version__=version, Runtime=FakeRefusingRuntime, ILogger=logger)
    found = {"tensorrt": Flavor(name="tensorrt", trt=trt), "rtx": flavor("rtx", "1.7.1.116")}
    monkeypatch.setattr(tensorrt_run, "installed", lambda device: tuple(found))
    monkeypatch.setattr(tensorrt_run, "load_flavor", lambda name, device: found[name])
    monkeypatch.setattr(tensorrt_run, "message_log", MessageLog)
    engine = tmp_path / "trt-fp32.engine"
    engine.touch()

    with pytest.raises(ZooError, match=message):
        tensorrt_run.deserialize(engine, device="cuda", gpu=card)


class FakeTakingRuntime(FakeRefusingRuntime):
    """Of the TensorRT that wrote the engine."""

    def deserialize_cuda_engine(self, plan: bytes) -> str:
        return "the engine"


def test_a_flavor_whose_libraries_are_gone_does_not_keep_the_other_from_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as bindings of TensorRT, whose libraries come from another index."""
    severity = SimpleNamespace(ERROR=0, INTERNAL_ERROR=1, VERBOSE=2)
    logger = type("Logger", (), {"Severity": severity})
    trt = SimpleNamespace(__version__="1.7.1.116", Runtime=FakeTakingRuntime, ILogger=logger)
    broken = MachineError("tensorrt_bindings cannot be imported: libnvinfer.so.11")

    def load(name: str, *, device: str) -> Flavor:
        if name == "tensorrt":
            raise broken
        return Flavor(name=name, trt=trt)

    found = ["tensorrt", "rtx"]
    monkeypatch.setattr(tensorrt_run, "installed", lambda device: tuple(found))
    monkeypatch.setattr(tensorrt_run, "load_flavor", load)
    monkeypatch.setattr(tensorrt_run, "message_log", MessageLog)
    engine = tmp_path / "trt-fp32.engine"
    engine.touch()

    opened = tensorrt_run.deserialize(engine, device="cuda", gpu=gpu("NVIDIA A100", 8, 0))
    found.remove("rtx")
    with pytest.raises(MachineError) as caught:
        tensorrt_run.deserialize(engine, device="cuda", gpu=gpu("NVIDIA A100", 8, 0))

    assert (opened.engine, opened.flavor.name) == ("the engine", "rtx")
    assert caught.value is broken


def test_importing_the_target_loads_no_tensorrt() -> None:
    code = "import sys, export.to_tensorrt; print([m for m in sys.modules if 'tensorrt_rtx' in m])"

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout == "[]\n"
