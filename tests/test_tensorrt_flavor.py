"""Which TensorRT is taken, and what is said where none suits."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from export import tensorrt_api
from export.tensorrt_api import Flavor, check_gpu, installed, load_flavor
from zoo.errors import MachineError, MissingPackageError, ZooError
from zoo.machine import Gpu

V100 = Gpu(name="Tesla V100-SXM2-16GB", capability=(7, 0))
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


def test_importing_the_target_loads_no_tensorrt() -> None:
    code = "import sys, export.to_tensorrt; print([m for m in sys.modules if 'tensorrt_rtx' in m])"

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout == "[]\n"
