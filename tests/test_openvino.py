import importlib.util
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import openvino
import openvino_telemetry
import pytest
import torch
from export_helpers import file_size_limit, run_of
from few_images import few_images
from sample_run import sample_run
from small_network import expected, images, small_network
from torch import nn

from export import export_model, load_target
from export.artifact import Artifact
from export.opening import open_artifact
from export.target import MAX_BATCH, ExportOptions
from export.to_openvino import OpenVinoSession
from zoo.data import load_dataset
from zoo.environment import cpu_flags, has_bf16_units, usable_cores
from zoo.errors import ArtifactError, MachineError, MissingPackageError, OtherDeviceError, ZooError
from zoo.models.coatnet import plain_transformer_stage
from zoo.session import torch_threads

ROOT = Path(__file__).parents[1]
TARGET = load_target("openvino")
METADATA = {"cifar_zoo_version": "1.2.3", "class_names": '["cat", "dog & <mouse>"]'}
BF16 = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(not has_bf16_units(cpu_flags()), reason="a CPU without bf16 units"),
)


def write(
    path: Path,
    precision: str = "fp32",
    network: nn.Module | None = None,
    opset: int | None = None,
    device: str = "cpu",
) -> Path:
    TARGET.export(
        network or small_network(),
        images(2),
        path,
        precision=precision,
        metadata=METADATA,
        options=ExportOptions(opset=opset, device=device),
    )
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("openvino")
    floats = TARGET.tolerance.keys() - {"int8"}
    return {name: write(folder / f"{name}.xml", name) for name in floats}


@pytest.fixture
def copied(written: dict[str, Path], tmp_path: Path) -> Path:
    """The fp32 file and its weights."""
    for file in (written["fp32"], written["fp32"].with_suffix(".bin")):
        shutil.copy(file, tmp_path)
    return tmp_path / "fp32.xml"


def computed_in(session: OpenVinoSession) -> set[str]:
    """The types that products are computed in, by the names of their kernels."""
    notes = [node.get_rt_info() for node in session._compiled.get_runtime_model().get_ops()]
    return {
        note["primitiveType"].astype(str).rpartition("_")[2]
        for note in notes
        if note["layerType"].astype(str) in {"Convolution", "FullyConnected"}
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", BF16])
def test_file_agrees_with_eager(written: dict[str, Path], precision: str) -> None:
    path, tolerance = written[precision], TARGET.tolerance[precision].logits

    session = TARGET.open(path, device="cpu")

    assert TARGET.pending(path, device="cpu") is None
    assert (session.backend, session.precision, session.device) == ("openvino", precision, "cpu")
    assert session.runtime == f"openvino {version('openvino')} CPU"
    for size in (1, 5, 64):
        batch = images(size)
        logits = session.run(batch)
        torch.testing.assert_close(logits, expected(small_network(), batch), rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_products_are_computed_in_fp32(written: dict[str, Path], precision: str) -> None:
    """On a CPU with units for bf16, OpenVINO uses them unless it is told not to."""
    assert computed_in(TARGET.open(written[precision], device="cpu")) == {"f32"}


@pytest.mark.parametrize("precision", [BF16])
def test_bf16_is_computed_in_bf16(written: dict[str, Path], precision: str) -> None:
    assert computed_in(TARGET.open(written[precision], device="cpu")) == {"bf16"}


def test_bf16_waits_for_a_cpu_with_units(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class CpuWithoutBf16(openvino.Core):
        def get_property(self, *name: object) -> object:
            return ["FP32", "INT8"] if "OPTIMIZATION_CAPABILITIES" in name else None

    monkeypatch.setattr("export.to_openvino._core", CpuWithoutBf16)
    reason = "this CPU has no units for bf16, and OpenVINO would compute in fp32 instead"

    with pytest.raises(MachineError) as error:
        TARGET.open(written["bf16"], device="cpu")

    assert str(error.value) == f"{written['bf16']} does not run here: {reason}"
    assert TARGET.pending(written["bf16"], device="cpu") == reason
    assert TARGET.pending(written["fp32"], device="cpu") is None


def test_a_file_for_a_cpu_with_bf16_is_checked_in_fp32(written: dict[str, Path]) -> None:
    session = TARGET.proxy(written["bf16"])

    network = small_network()
    torch.testing.assert_close(
        session.run(images(5)), expected(network, images(5)), rtol=0, atol=1e-4
    )
    assert computed_in(session) == {"f32"}


def test_fp16_halves_the_weights(written: dict[str, Path]) -> None:
    sizes = {name: path.with_suffix(".bin").stat().st_size for name, path in written.items()}

    assert sizes["bf16"] == sizes["fp32"]
    assert sizes["fp16"] < 0.55 * sizes["fp32"]


def test_session_is_made_for_one_batch_at_a_time(written: dict[str, Path]) -> None:
    with torch_threads(2):
        compiled = TARGET.open(written["fp32"], device="cpu")._compiled

    assert compiled.get_property("INFERENCE_NUM_THREADS") == min(2, usable_cores())
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_metadata_is_in_the_file(written: dict[str, Path]) -> None:
    network = openvino.Core().read_model(written["fp16"])

    found = {key: network.get_rt_info(["cifar_zoo", key]).astype(str) for key in METADATA}
    assert found == METADATA
    assert network.get_rt_info(["cifar_zoo", "precision"]).astype(str) == "fp16"


def test_graph_is_what_was_asked_for(written: dict[str, Path]) -> None:
    network = openvino.Core().read_model(written["fp32"])

    (taken,), (given,) = network.inputs, network.outputs
    assert (taken.any_name, str(taken.partial_shape)) == ("images", "[?,3,16,16]")
    assert (given.any_name, str(given.partial_shape)) == ("logits", "[?,10]")
    kinds = Counter(node.get_type_name() for node in network.get_ops())
    assert kinds["Convolution"] == 2
    assert kinds["ShapeOf"] <= 1  # of the batch alone


def test_file_names_no_folder_of_this_machine(written: dict[str, Path]) -> None:
    text = written["fp32"].read_text()

    assert str(ROOT) not in text
    assert "site-packages" not in text


def test_conversion_reports_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO comes with a package that tells its makers what is converted."""

    def send(*_: object, **__: object) -> None:
        raise AssertionError("a report was to be sent")

    for name in ("__init__", "init", "start_session", "send_event"):
        monkeypatch.setattr(openvino_telemetry.Telemetry, name, send)

    assert write(tmp_path / "a.xml").is_file()


def test_full_disk_is_named(tmp_path: Path) -> None:
    said = "OpenVINO cannot write it, is the disk full"
    with file_size_limit(4000), pytest.raises(OSError, match=said) as error:
        write(tmp_path / "a.xml")

    assert error.value.filename == str(tmp_path / "a.xml")
    assert "\n" not in error.value.strerror


def test_signals_are_handled_after_the_last_session(written: dict[str, Path]) -> None:
    """In a process of its own, which a signal on a freed stack would end."""
    script = """
import gc, os, signal, sys
from pathlib import Path
from export import load_target
signal.signal(signal.SIGTERM, lambda *_: None)
first, second = (load_target("openvino").open(Path(sys.argv[1]), device="cpu") for _ in range(2))
del first
del second
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script, written["fp32"]], capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")


# Images and devices that a file does not take


@pytest.mark.parametrize("shape", [(MAX_BATCH + 1, 3, 16, 16), (0, 3, 16, 16), (2, 3, 32, 32)])
def test_other_images_are_refused(written: dict[str, Path], shape: tuple[int, ...]) -> None:
    path = written["fp32"]
    session = TARGET.open(path, device="cpu")

    with pytest.raises(MachineError) as error:
        session.run(torch.zeros(shape))

    wanted = "takes float32 images of shape (1 to 4096, 3, 16, 16)"
    assert str(error.value) == f"{path} {wanted}, got float32 of {shape}"


def test_gpu_is_never_replaced_by_the_cpu(written: dict[str, Path]) -> None:
    reason = "OpenVINO runs on CPUs here, not on cuda: use --device cpu"

    with pytest.raises(OtherDeviceError) as error:
        TARGET.open(written["fp32"], device="cuda")

    assert str(error.value) == f"{written['fp32']} does not run here: {reason}"
    assert TARGET.pending(written["fp32"], device="cuda") == reason
    with pytest.raises(ZooError) as refused:
        write(written["fp32"], "fp32", device="cuda")
    assert str(refused.value) == reason


def test_missing_package_is_named(
    written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "export.target.find_spec", lambda name: None if name == "openvino" else real(name)
    )
    how = "needs the package openvino, which is not installed: in a clone of cifar-zoo run pip"

    with pytest.raises(MissingPackageError) as writing:
        write(tmp_path / "a.xml")
    with pytest.raises(MissingPackageError) as running:
        TARGET.open(written["fp32"], device="cpu")

    assert str(writing.value) == f"--to openvino {how} install '.[openvino]'"
    assert str(running.value) == f"running fp32.xml {how} install '.[openvino]'"
    assert list(tmp_path.iterdir()) == []


# Files that are not what they should be


def test_missing_weights_are_named(copied: Path) -> None:
    copied.with_suffix(".bin").unlink()

    with pytest.raises(ArtifactError) as error:
        TARGET.open(copied, device="cpu")

    assert str(error.value) == f"{copied} lacks its weights, fp32.bin, beside it"


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("keep", [0, 2000])
def test_truncated_files_are_refused(
    copied: Path, suffix: str, keep: int, capfd: pytest.CaptureFixture[str]
) -> None:
    file = copied.with_suffix(suffix)
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(ArtifactError) as error:
        TARGET.open(copied, device="cpu")

    start = f"{copied} is no network of OpenVINO, or it is damaged: "
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_network_of_other_inputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.xml"
    number = openvino.opset13.parameter([2, 3], openvino.Type.f32)
    openvino.save_model(openvino.Model([openvino.opset13.relu(number)], [number]), path)

    with pytest.raises(
        ArtifactError, match=r"f32 \[\?,C,H,W\]; its inputs are .*float32.* \[2,3\]"
    ):
        TARGET.open(path, device="cpu")


# As an artifact of two files


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    data = few_images(load_dataset("cifar100-mini"), train=256)
    run = sample_run(tmp_path_factory.mktemp("runs") / "resnet_20-s0", data)
    return export_model(run.path, target="openvino", data=data)


def test_manifest_covers_both_files(artifact: Artifact) -> None:
    assert artifact.files.keys() == {"openvino-fp32.bin", "openvino-fp32.xml"}
    assert artifact.parity is not None
    assert artifact.parity.passed
    assert artifact.parity.images == 64
    assert artifact.facts["operations"] > 50
    assert open_artifact(str(artifact.path), "cpu").backend == "openvino"


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_changed_byte_is_refused(artifact: Artifact, tmp_path: Path, suffix: str) -> None:
    run = shutil.copytree(run_of(artifact), tmp_path / "run")
    path = run / "artifacts" / artifact.path.name
    file = path.with_suffix(suffix)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    with pytest.raises(ArtifactError, match=rf"{file.name} has SHA-256 .* changed or damaged"):
        open_artifact(str(path), "cpu")


def test_images_in_any_place_and_number(written: dict[str, Path]) -> None:
    session = OpenVinoSession(written["fp32"])
    network = small_network()
    buffer = images(3)
    strided = buffer.clone(memory_format=torch.channels_last)
    batches = [images(count) for count in (1, 2, 3, 4, 5, 6, 5, 1)]  # more than have a network each

    answers = [session.run(batch) for batch in (*batches, buffer, strided)]
    buffer.mul_(-1)  # others in the same place
    refilled = session.run(buffer)

    for batch, answer in zip((*batches, strided, strided), answers, strict=True):
        torch.testing.assert_close(answer, expected(network, batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(refilled, expected(network, buffer), atol=1e-5, rtol=0)


def test_network_of_a_fixed_shape_for_the_first_numbers(written: dict[str, Path]) -> None:
    session = OpenVinoSession(written["fp32"])

    for count in (2, 3, 4, 5, 6):
        session.run(images(count))

    assert set(session._requests) == {1, 2, 3, 4, None}


def test_opset_with_attention_as_one_operator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError) as caught:
        write(tmp_path / "one.xml", opset=23)

    assert str(caught.value) == "--to openvino takes graphs up to opset 22, got --opset 23"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [None, 22])
def test_attention_with_as_many_heads_as_tokens(opset: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = plain_transformer_stage(nn.Conv2d(3, 32, 8, stride=8), 32, [0.0], heads=4)
    network = nn.Sequential(stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()
    for values in network.parameters():
        nn.init.normal_(values, std=0.3)

    path = write(tmp_path / "four.xml", network=network, opset=opset)

    session = OpenVinoSession(path)
    for count in (1, 2, 6):
        found = session.run(images(count))
        torch.testing.assert_close(found, expected(network, images(count)), atol=1e-4, rtol=0)


def test_clock_of_openvino(written: dict[str, Path]) -> None:
    session = OpenVinoSession(written["fp32"])
    before = session.inner_ms
    start = time.perf_counter()

    session.run(images(2))

    assert before is None
    assert session.inner_ms is not None
    assert 0 < session.inner_ms < 1e3 * (time.perf_counter() - start)
