"""Engines built with TensorRT-RTX, which needs no GPU for that, and what is said where it fails."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from explicit_int8 import FOR_TENSORRT, quantised
from export_helpers import file_size_limit
from model_checks import random_images, seeded, smallest_of_each_family, with_values_everywhere
from torch import nn

from export.quantize import TENSORRT, with_quantisers
from export.ranges import value_ranges
from export.target import MAX_BATCH, ExportOptions
from export.tensorrt_api import Flavor, load_flavor
from export.tensorrt_build import build_engine
from export.tensorrt_run import deserialize
from export.to_onnx import onnx_graph
from export.to_tensorrt import TensorRtTarget, write_engine
from export.typed import typed_fp16
from zoo.errors import ArtifactError, MachineError, ZooError
from zoo.machine import Gpu
from zoo.session import EagerSession

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra trt-rtx")

METADATA = {"cifar_zoo_version": "0", "model": "resnet_20"}
TITLE = f"TensorRT-RTX {trt.__version__}"
OPTIONS = ExportOptions(trt_flavor="rtx")


@pytest.fixture(scope="module")
def rtx() -> Flavor:
    return load_flavor("rtx", device="cpu")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return with_values_everywhere(seeded("resnet_20"))


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> onnx.ModelProto:
    return onnx_graph(model, random_images(2), metadata=METADATA)


@pytest.fixture(scope="module")
def engine(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """An fp16 engine and what its writer found out."""
    path = tmp_path_factory.mktemp("trt") / "trt-fp16.engine"
    facts = TensorRtTarget().export(
        model,
        random_images(2),
        path,
        precision="fp16",
        metadata=METADATA,
        options=ExportOptions(trt_opt_batch=64),
    )
    return path, dict(facts)


def test_the_layers_of_an_engine_are_counted_by_type(engine: tuple[Path, dict]) -> None:
    path, facts = engine

    assert facts["network_layers"] == {
        "activation": {"fp16": 19},
        "convolution": {"fp16": 21},
        "elementwise": {"fp16": 10},
        "matrix_multiply": {"fp16": 1},
        "reduce": {"fp32": 1},
    }
    assert facts["layers"] == "network: fp16 51, fp32 1"
    assert facts["engine_bytes"] == path.stat().st_size


def test_an_engine_says_what_it_was_built_with_and_for(engine: tuple[Path, dict]) -> None:
    _, facts = engine

    assert (facts["flavor"], facts["tensorrt"]) == ("rtx", trt.__version__)
    assert facts["built_on"] == "cpu"
    assert facts["runs_on"] == "compute capability 8.0, 8.6, 8.9, 12.0 and later"
    assert facts["batch_min_opt_max"] == [1, 64, MAX_BATCH]
    assert facts["version_compatible"] is False
    assert TensorRtTarget().versions().keys() >= {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert trt.__version__ in TensorRtTarget().versions().values()


def test_an_engine_has_the_name_and_precision_that_a_session_reads(
    engine: tuple[Path, dict],
) -> None:
    path, _ = engine

    assert b"resnet_20 fp16" in path.read_bytes()


def test_the_graph_beside_an_engine_computes_what_the_model_computes(
    engine: tuple[Path, dict], model: nn.Module
) -> None:
    path, _ = engine
    images = random_images(5)

    session = TensorRtTarget().proxy(path)

    expected = EagerSession(model).run(images)
    found = session.run(images)
    assert session.precision == "fp16"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 * expected.abs().max().item())
    assert TensorRtTarget().graph(path).graph.output[0].name == "logits"


def test_a_machine_without_a_gpu_leaves_the_proof_pending(engine: tuple[Path, dict]) -> None:
    path, _ = engine

    reason = TensorRtTarget().pending(path, device="cpu")

    assert reason == "an engine runs on an NVIDIA GPU only; --prove it there with --device cuda"
    assert TensorRtTarget().pending(path, device="cuda") is None


def test_an_engine_does_not_run_on_a_cpu(engine: tuple[Path, dict]) -> None:
    path, _ = engine

    with pytest.raises(MachineError) as caught:
        TensorRtTarget().open(path, device="cpu")

    assert str(caught.value) == (
        f"{path} is a TensorRT engine and runs on a GPU only: --device cuda"
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda plan: plan[:25] + b"\x06" + plan[26:], "version 1.6.1"),
        (lambda plan: b"no engine at all", "header does not conform"),
        (lambda plan: b"", "header does not conform"),
        (lambda plan: plan[:1000], ""),
    ],
    ids=["of another version", "junk", "empty", "truncated"],
)
def test_an_engine_that_does_not_open_says_how_to_get_one_that_does(
    engine: tuple[Path, dict], damage: Callable[[bytes], bytes], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "artifacts" / "trt-fp16.engine"
    path.parent.mkdir()
    path.write_bytes(damage(engine[0].read_bytes()))

    with pytest.raises(ArtifactError) as caught:
        deserialize(path, device="cuda:1", gpu=None)

    message = str(caught.value)
    assert message.startswith(f"{path} is no engine for this GPU and this TensorRT ({TITLE}: ")
    command = f"zoo-export --to trt --precision fp16 --device cuda:1 {tmp_path}"
    assert message.endswith(f"): write it here with {command}")
    assert reason in message
    assert message.isprintable()


class Choosing(nn.Module):
    """With a condition in its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.conv(images).relu().mean((2, 3))
        return torch.cond(found.sum() > 0, lambda x: x * 2, lambda x: x - 1, (found,))


def test_a_network_with_a_condition_is_built(rtx: Flavor, tmp_path: Path) -> None:
    choosing = onnx_graph(Choosing().eval(), random_images(2), metadata=METADATA)

    facts = write_engine(
        choosing, tmp_path / "trt-fp32.engine", rtx, precision="fp32", options=OPTIONS
    )

    assert facts["network_layers"]["convolution"] == {"fp32": 1}


@pytest.mark.parametrize(("opt", "profile"), [(256, [1, 256, 2047]), (4096, [1, 2047, 2047])])
def test_the_largest_batch_has_no_value_with_more_elements_than_tensorrt_takes(
    rtx: Flavor, opt: int, profile: list[int], tmp_path: Path
) -> None:
    """As resnext_29_8x64d has, for which TensorRT 10 would build nothing."""
    wide = nn.Sequential(nn.Conv2d(3, 1024, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = onnx_graph(wide.eval(), random_images(2), metadata=METADATA)
    options = replace(OPTIONS, trt_opt_batch=opt)

    facts = write_engine(graph, tmp_path / "x.engine", rtx, precision="fp32", options=options)

    assert facts["batch_min_opt_max"] == profile


def test_a_graph_of_another_precision_is_no_engine(
    graph: onnx.ModelProto, rtx: Flavor, tmp_path: Path
) -> None:
    path = tmp_path / "trt-fp16.engine"

    with pytest.raises(MachineError) as caught:
        write_engine(graph, path, rtx, precision="fp16", options=OPTIONS)

    assert str(caught.value) == (
        "no convolution and no matrix product of the fp16 network computes in fp16, but in fp32"
    )
    assert not list(tmp_path.iterdir())


def test_an_engine_for_turing_is_for_turing_alone(
    graph: onnx.ModelProto, rtx: Flavor, tmp_path: Path
) -> None:
    built = build_engine(
        typed_fp16(graph).SerializeToString(),
        rtx,
        OPTIONS,
        name="resnet_20 fp16",
        gpu=Gpu(name="Tesla T4", capability=(7, 5)),
    )

    assert built.runs_on == "compute capability 7.5"
    assert built.plan[:4] == b"vtrt"


# ---- int8: explicit quantisation ------------------------------------------------------------


@pytest.mark.parametrize(("half", "rest"), [(False, "fp32"), (True, "fp16")])
def test_explicit_quantisation_gives_int8_layers(
    graph: onnx.ModelProto,
    model: nn.Module,
    rtx: Flavor,
    half: bool,
    rest: str,
    tmp_path: Path,
) -> None:
    int8 = quantised(graph, tmp_path, **FOR_TENSORRT)
    path = tmp_path / "trt-int8.engine"

    facts = write_engine(
        typed_fp16(int8) if half else int8, path, rtx, precision="int8", options=OPTIONS
    )

    layers = facts["network_layers"]
    assert layers["convolution"] == {"int8": 21}
    assert layers["matrix_multiply"] == {"int8": 1}
    assert layers["elementwise"] == {rest: 10}
    images = random_images(8)
    expected = EagerSession(model).run(images)
    found = TensorRtTarget().proxy(path).run(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * expected.abs().max().item())


def test_quantised_biases_are_refused_in_one_line(
    graph: onnx.ModelProto, rtx: Flavor, tmp_path: Path
) -> None:
    int8 = quantised(graph, tmp_path, ActivationSymmetric=True, WeightSymmetric=True)

    with pytest.raises(MachineError) as caught:
        write_engine(int8, tmp_path / "x.engine", rtx, precision="int8", options=OPTIONS)

    message = str(caught.value)
    assert message.startswith(f"{TITLE} cannot parse the ONNX graph at the DequantizeLinear ")
    assert "Int32" in message
    assert "\n" not in message


# ---- mistakes, each in one line -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trt_opt_batch": 0}, f"--trt-opt-batch takes 1 to {MAX_BATCH} images, got 0"),
        ({"trt_opt_batch": 5000}, f"--trt-opt-batch takes 1 to {MAX_BATCH} images, got 5000"),
        ({"opset": 23}, "--to trt takes graphs up to opset 22, got --opset 23"),
        ({"trt_workspace_mib": 0}, "--trt-workspace takes MiB, 1 or more, got 0"),
        (
            {"trt_timing_cache": Path("timings")},
            "TensorRT-RTX has no timing cache: leave out --trt-timing-cache",
        ),
        (
            {"trt_version_compatible": True},
            "a TensorRT-RTX engine runs on the version that built it alone: "
            "leave out --trt-version-compatible",
        ),
        (
            {"trt_flavor": "rtz"},
            "no TensorRT flavor named 'rtz': did you mean rtx?",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    model: nn.Module, options: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ZooError) as caught:
        TensorRtTarget().export(
            model,
            random_images(2),
            tmp_path / "x.engine",
            precision="fp32",
            metadata=METADATA,
            options=ExportOptions(**options),
        )

    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_a_workspace_that_is_too_small_is_named(
    graph: onnx.ModelProto, rtx: Flavor, tmp_path: Path
) -> None:
    options = ExportOptions(trt_workspace_mib=1)

    with pytest.raises(MachineError) as caught:
        write_engine(graph, tmp_path / "x.engine", rtx, precision="fp32", options=options)

    message = str(caught.value)
    assert message.startswith(f"{TITLE} could not build the engine: ")
    assert "workspace" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_an_engine_for_later_gpus_is_the_same_in_tensorrt_rtx(
    graph: onnx.ModelProto, rtx: Flavor, tmp_path: Path
) -> None:
    options = replace(OPTIONS, trt_hardware_compatible=True)

    facts = write_engine(graph, tmp_path / "x.engine", rtx, precision="fp32", options=options)

    assert facts["runs_on"] == "compute capability 8.0, 8.6, 8.9, 12.0 and later"


def test_a_full_disk_is_named(graph: onnx.ModelProto, rtx: Flavor, tmp_path: Path) -> None:
    with file_size_limit(4000), pytest.raises(OSError, match="File too large"):
        write_engine(graph, tmp_path / "x.engine", rtx, precision="fp32", options=OPTIONS)


def test_a_graph_that_tensorrt_does_not_know_is_refused(rtx: Flavor, tmp_path: Path) -> None:
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, 32, 32])
        for name in ("images", "logits")
    )
    strange = onnx.helper.make_node("Strange", ["images"], ["logits"], "odd", domain="some.where")
    graph = onnx.helper.make_model(
        onnx.helper.make_graph([strange], "test", [x], [y]),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )

    with pytest.raises(MachineError) as caught:
        write_engine(graph, tmp_path / "x.engine", rtx, precision="fp32", options=OPTIONS)

    message = str(caught.value)
    assert message.startswith(f"{TITLE} cannot parse the ONNX graph")
    assert "Strange" in message
    assert "\n" not in message


# ---- every family ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", smallest_of_each_family())
def test_every_family(name: str, rtx: Flavor, tmp_path: Path) -> None:
    """The types of the parsed layers are held against the graph's by `write_engine` itself.

    What int8 answers with ranges from so few images proves nothing: see test_int8_families.
    """
    model = with_values_everywhere(seeded(name))
    images = random_images(4)
    graph = onnx_graph(model, images[:2], metadata={"cifar_zoo_version": "0", "model": name})
    path = tmp_path / "trt.engine"
    expected = EagerSession(model).run(images)
    inferred = onnx.shape_inference.infer_shapes(graph)
    ranges = value_ranges(
        inferred, TENSORRT.operators, lambda: [images.numpy()], methods=["minmax"]
    )["minmax"]
    int8 = with_quantisers(inferred, TENSORRT, ranges, [])

    for precision, typed, tolerance in (
        ("fp32", graph, 1e-4),
        ("fp16", typed_fp16(graph), 0.1),  # some of these random networks amplify rounding
        ("int8", typed_fp16(int8), math.inf),
    ):
        facts = write_engine(typed, path, rtx, precision=precision, options=OPTIONS)

        found = TensorRtTarget().proxy(path).run(images)
        limit = tolerance * max(1.0, expected.abs().max().item())
        assert found.isfinite().all()
        assert (found - expected).abs().max() <= limit
        assert precision in {form for kind in facts["network_layers"].values() for form in kind}
        assert facts["engine_bytes"] == path.stat().st_size > 10_000
