import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sample_run import stored

from export.artifact import Artifact
from export.onnx_session import (
    TENSORRT,
    OnnxSession,
    check_placement,
    operators_by_provider,
)
from export.opening import open_artifact, open_foreign, open_on_tensorrt
from export.to_onnx import IR_VERSION, OPSET
from zoo.data import Dataset
from zoo.errors import ArtifactError, MachineError, MissingPackageError, ZooError
from zoo.machine import Gpu, torch_facts
from zoo.session import torch_threads

pytest_plugins = ["export_fixtures"]


def test_opened_artifact_says_what_runs_it(exported: Artifact) -> None:
    session = open_artifact(str(exported.path), "cpu")

    assert (session.backend, session.precision, session.device) == ("onnx", "fp32", "cpu")
    assert session.runtime == f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"


def test_session_uses_as_many_threads_as_torch(exported: Artifact) -> None:
    with torch_threads(2):
        session = OnnxSession(exported.path)

    assert session._session.get_session_options().intra_op_num_threads == 2


def test_gpu_is_never_replaced_by_the_cpu(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def providers() -> list[str]:
        return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", providers)

    with pytest.raises(MachineError, match="offers no CUDAExecutionProvider here.*extra `gpu`"):
        open_artifact(str(exported.path), "cuda")


def test_provider_that_falls_back_is_refused(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's GPU wheel lists CUDA on a machine without a GPU, and then runs on the CPU."""
    real = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, **_: object) -> onnxruntime.InferenceSession:
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)

    with pytest.raises(MachineError, match="does not run on the CPU in its place"):
        open_artifact(str(exported.path), "cuda:0")


@pytest.mark.parametrize(
    ("device", "provider", "message"),
    [
        ("cpu", "cuda", "--provider cuda needs --device cuda, got cpu"),
        ("cpu", "tensorrt", "--provider tensorrt needs --device cuda, got cpu"),
        ("cuda:1", "cpu", "--provider cpu needs --device cpu, got cuda:1"),
        ("cpu", "openvino", "no provider named 'openvino': choose one of cpu, cuda, tensorrt"),
        ("cuda", "tensort", "no provider named 'tensort': did you mean tensorrt?"),
    ],
)
def test_provider_goes_with_the_device(
    exported: Artifact, device: str, provider: str, message: str
) -> None:
    with pytest.raises(ZooError) as caught:
        open_artifact(str(exported.path), device, provider=provider)

    assert str(caught.value) == message


def test_providers_are_asked_for_by_name_in_order(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT first, then CUDA for what it leaves; never the CPU."""
    asked: list[object] = []

    def refuse(path: str, options: object, **wanted: object) -> None:
        asked.append(wanted)
        raise RuntimeError("no GPU")

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")

    with pytest.raises(ArtifactError, match="ONNX Runtime cannot open .*: no GPU"):
        open_on_tensorrt(str(exported.path), "cuda:1")

    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert asked == [
        {
            "providers": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
            "provider_options": [{"device_id": "1"}, {"device_id": "1", "use_tf32": "0"}],
            "disabled_optimizers": [],
            "enable_fallback": 0,
        }
    ]


@pytest.mark.parametrize(
    ("capability", "extra"), [((7, 0), "v100"), ((9, 0), "gpu")], ids=["V100", "H100"]
)
def test_a_missing_provider_is_in_the_extra_for_this_gpu(
    exported: Artifact,
    capability: tuple[int, int],
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = replace(torch_facts(), gpu=Gpu(name="a GPU", capability=capability))
    monkeypatch.setattr("zoo.machine.torch_facts", lambda index=0: facts)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(MachineError, match=f"install the extra `{extra}` on a machine"):
        OnnxSession(exported.path, device="cuda")

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=rf"pip install '\.\[{extra}\]'"):
        OnnxSession(exported.path, device="cuda")


def test_tensorrt_is_loaded_before_its_provider_and_named_where_it_is_missing(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime finds the libraries that pip installed only where they are loaded already."""
    loaded: list[str] = []

    def load(name: str, *, device: str) -> None:
        loaded.append(name)

    def onnxruntime_without_tensorrt(path: str, *_: object, **__: object) -> None:
        assert loaded == ["tensorrt"]
        raise RuntimeError(
            "onnxruntime_pybind_state.cc:505 RegisterTensorRTPluginsAsCustomOps Please install "
            "TensorRT libraries as mentioned in the GPU requirements page"
        )

    monkeypatch.setattr("export.onnx_session.load_flavor", load)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT])
    monkeypatch.setattr(onnxruntime, "InferenceSession", onnxruntime_without_tensorrt)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")

    with pytest.raises(MachineError) as caught:
        open_on_tensorrt(str(exported.path), "cuda")

    assert str(caught.value) == (
        "ONNX Runtime offers no TensorrtExecutionProvider here, and onnx-fp32.onnx does not run on "
        "another in its place: it takes the libraries of the TensorRT that ONNX Runtime was built "
        "with, 10 for 1.31; use --provider cuda, or write the model with zoo-export --to trt"
    )


def test_raw_file_without_statistics_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    path = small_onnx(tmp_path / "raw.onnx", [node], kind=TensorProto.UINT8)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    helper.set_model_props(model, {"input_layout": "NHWC uint8", "mean": "[0, 0, 0]"})
    onnx.save(model, path)

    with pytest.raises(ArtifactError, match=r"its metadata do not say of which images \('std'\)"):
        open_foreign(str(path), "cpu")


@pytest.mark.gpu
def test_gpu_agrees_with_eager(exported: Artifact, data: Dataset) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    images = stored(data.test.images[:300], data)
    session = open_artifact(str(exported.path), "cuda")

    logits = session.run(images.cuda()).cpu()

    expected = open_artifact(str(exported.path), "cpu").run(images)
    assert session.runtime.endswith("CUDAExecutionProvider")
    torch.testing.assert_close(logits, expected, rtol=0, atol=exported.parity.limit)


def test_missing_runtime_is_named_when_a_file_is_opened(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingPackageError, match=r"running onnx-fp32.onnx needs .*'\.\[cpu\]'"):
        open_artifact(str(exported.path), "cpu")


@pytest.mark.skipif(
    onnxruntime.__version__.startswith("1.23."), reason="ONNX Runtime tells from 1.24 on"
)
def test_work_on_the_cpu_is_no_session_on_a_gpu(exported: Artifact) -> None:
    """A provider may be registered and run nothing: ONNX Runtime tells what runs where."""
    session = OnnxSession(exported.path)

    found = operators_by_provider(session._session)

    assert found is not None
    assert {"Conv", "Gemm"} <= found["CPUExecutionProvider"]
    with pytest.raises(MachineError) as caught:
        check_placement(exported.path, "CUDAExecutionProvider", found)
    assert str(caught.value) == (
        f"ONNX Runtime was told to run {exported.path} on CUDAExecutionProvider and runs Conv, "
        "Gemm on the CPU: use --device cpu, or another --provider"
    )


@pytest.mark.parametrize(
    ("found", "runs"),
    [
        ({"CUDAExecutionProvider": {"Conv"}, "CPUExecutionProvider": {"Shape", "Gather"}}, None),
        ({"TensorrtExecutionProvider": {"Conv"}, "CUDAExecutionProvider": {"MatMul"}}, None),
        ({"TensorrtExecutionProvider": {"Conv"}, "CPUExecutionProvider": {"MatMul"}}, "MatMul on"),
        ({"CUDAExecutionProvider": {"Conv", "MatMul"}}, "nothing on it"),
        (None, None),  # ONNX Runtime before 1.24
    ],
)
def test_shapes_may_be_computed_on_the_cpu_and_nothing_else(
    found: dict[str, set[str]] | None, runs: str | None
) -> None:
    wanted = next(iter(found)) if found and runs != "nothing on it" else TENSORRT

    def check() -> None:
        check_placement(Path("x.onnx"), wanted, found)

    if runs is None:
        check()
    else:
        with pytest.raises(MachineError, match=f"on {wanted} and runs {runs}"):
            check()


@pytest.mark.parametrize(("kind", "value"), [(TensorProto.UINT8, 128), (TensorProto.INT32, 0)])
def test_int8_for_cpus_is_not_for_tensorrt(tmp_path: Path, kind: int, value: int) -> None:
    """Offsets, and biases of 32 bits, which its parser refuses."""
    tensors = [
        helper.make_tensor("q", kind, [1], [value]),
        helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]),
    ]
    nodes = [
        *(helper.make_node("Constant", [], [one.name], value=one) for one in tensors),
        helper.make_node("Constant", [], ["unused"], value=tensors[1]),  # has no inputs
        helper.make_node("DequantizeLinear", ["q", "s"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    path = small_onnx(tmp_path / "int8.onnx", nodes)
    model = onnx.load(path)
    for node in list(model.graph.node)[:2]:  # as quantisers leave them
        model.graph.initializer.append(node.attribute[0].t)
        model.graph.node.remove(node)
    onnx.save(model, path)

    with pytest.raises(MachineError) as caught:
        OnnxSession(path, device="cuda", provider="tensorrt")

    assert str(caught.value) == (
        f"{path} is int8 for CPUs, which TensorRT does not take: use --provider cuda, or write it "
        "with zoo-export --to trt --precision int8"
    )
    assert OnnxSession(path).run(torch.zeros(1, 3, 2, 2)).shape == (1, 3, 2, 2)


@pytest.mark.parametrize("classes", [12, "K"])
def test_answer_of_any_width_is_left_where_the_images_lie(
    tmp_path: Path, classes: int | str
) -> None:
    """The way of a GPU, here with the memory of the CPU; files of others may name no number."""
    path = small_onnx(tmp_path / "flat.onnx", [helper.make_node("Flatten", ["x"], ["y"])])
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])
    )
    onnx.save(model, path)
    images = torch.arange(12.0).reshape(1, 3, 2, 2)

    logits = OnnxSession(path)._run_in_place(images)

    torch.testing.assert_close(logits, images.flatten(1), rtol=0, atol=0)


# Files of others


def test_foreign_file_needs_no_manifest(copied: Path, tmp_path: Path) -> None:
    path = shutil.move(copied, tmp_path / "theirs.onnx")

    session = open_foreign(str(path), "cpu")

    assert session.run(torch.zeros(3, 3, 32, 32)).shape == (3, 100)


def test_external_data_is_refused(exported: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "outside.onnx"
    model = onnx.load(exported.path)
    onnx.save_model(model, path, save_as_external_data=True, location="w", size_threshold=0)

    with pytest.raises(ArtifactError, match="keeps tensors in other files, which is refused"):
        open_foreign(str(path), "cpu")


@pytest.mark.parametrize("place", ["value", "sparse value", "default of a function"])
def test_external_data_inside_a_node_is_refused(place: str, tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.ones((1, 3, 2, 2), np.float32))
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="../../etc/hostname")
    constant = helper.make_node("Constant", [], ["c"])
    if place == "value":
        constant.attribute.append(helper.make_attribute("value", value))
    if place == "sparse value":
        indices = numpy_helper.from_array(np.arange(12))
        sparse = helper.make_sparse_tensor(value, indices, [12])
        constant.attribute.append(helper.make_attribute("sparse_value", sparse))
    path = small_onnx(
        tmp_path / "node.onnx", [constant, helper.make_node("Add", ["x", "c"], ["y"])]
    )
    if place == "default of a function":
        model = onnx.load(path)
        default = helper.make_attribute("v", value)
        opset = [helper.make_opsetid("", 20)]
        model.functions.append(
            helper.make_function("f", "F", [], ["c"], [constant], opset, attribute_protos=[default])
        )
        onnx.save(model, path)

    with pytest.raises(ArtifactError, match="keeps tensors in other files"):
        open_foreign(str(path), "cpu")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        open_foreign(str(path), "cpu")


def test_truncated_file_is_refused(exported: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.path.read_bytes()[:-100_000])

    with pytest.raises(ArtifactError, match=r"model.onnx is not an ONNX model, or it is truncated"):
        open_foreign(str(path), "cpu")


def test_damaged_name_is_refused(exported: Artifact, tmp_path: Path) -> None:
    path, content = tmp_path / "model.onnx", exported.path.read_bytes()
    path.write_bytes(content.replace(b"Conv", b"\xff\xfe\xfd\xfc", 1))

    with pytest.raises(ArtifactError) as caught:
        open_foreign(str(path), "cpu")

    assert str(caught.value) == f"{path} is damaged: it holds a name that is no text"


def test_whatever_a_runtime_raises_is_one_line(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("of its own")

    monkeypatch.setattr("export.to_onnx.OnnxSession", fail)

    with pytest.raises(ArtifactError) as caught:
        open_artifact(str(exported.path), "cpu")

    assert str(caught.value) == f"{exported.path} cannot be opened: 'of its own'"


def test_failing_session_is_not_opened_with_other_settings(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's own fall-back prints, drops all settings and hides the reason."""
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", failing_session)

    with pytest.raises(ArtifactError, match=r"ONNX Runtime cannot open .*: out of luck$"):
        open_artifact(str(exported.path), "cpu")

    assert capfd.readouterr() == ("", "")


def failing_session(*_: object, **__: object) -> None:
    raise RuntimeError("out of luck")


def test_memory_that_runs_out_is_no_fault_of_the_file(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*_: object, **__: object) -> None:
        raise RuntimeError("BFCArena::Extend Failed to allocate memory for requested buffer")

    monkeypatch.setattr("onnxruntime.InferenceSession", without_memory)

    with pytest.raises(MachineError, match="does not run here: .*Failed to allocate memory"):
        OnnxSession(exported.path)


def test_other_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an .onnx file: only those are opened without"):
        open_foreign(str(tmp_path / "net.engine"), "cpu")


def test_unknown_operator_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    path = small_onnx(tmp_path / "odd.onnx", [node])

    with pytest.raises(ArtifactError, match=r"cannot open .*odd\.onnx: .*Frobnicate") as caught:
        open_foreign(str(path), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "kind"), [([1, 3, 2], TensorProto.FLOAT), ([1, 3, 2, 2], TensorProto.UINT8)]
)
def test_model_of_other_inputs_is_refused(tmp_path: Path, inputs: list[int], kind: int) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    path = small_onnx(tmp_path / "other.onnx", [node], inputs=inputs, kind=kind)

    with pytest.raises(ArtifactError, match="should take one batch of images, tensor.float"):
        open_foreign(str(path), "cpu")


def test_fixed_batch_is_named_when_another_comes(tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "one.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    session = open_foreign(str(path), "cpu")

    with pytest.raises(MachineError, match=r"input is \(1, 3, 2, 2\), did not run on .*\(4, 3"):
        session.run(torch.zeros(4, 3, 2, 2))


@pytest.mark.parametrize(
    ("kind", "precision"), [(TensorProto.FLOAT16, "fp16"), (TensorProto.FLOAT, "fp32")]
)
def test_precision_is_read_from_the_graph(tmp_path: Path, kind: int, precision: str) -> None:
    weight = helper.make_tensor("c", kind, [1], [2.0])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]

    session = open_foreign(str(small_onnx(tmp_path / "cast.onnx", nodes)), "cpu")

    assert session.precision == precision


def small_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[int] | None = None,
    kind: int = TensorProto.FLOAT,
) -> Path:
    dims = inputs or [1, 3, 2, 2]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info("y", kind, dims)],
    )
    opset = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
    return path
