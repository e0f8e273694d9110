import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from export_helpers import file_size_limit
from small_network import expected, images, small_network
from torch import Tensor, nn

from export import load_target
from export.program import traced
from export.target import MAX_BATCH, ExportOptions
from export.to_torchexport import load_program
from zoo.errors import ArtifactError, MachineError

ROOT = Path(__file__).parents[1]
TARGET = load_target("torchexport")
METADATA = {"model": "small", "class_names": '["cat", "dog"]'}


def write(network: nn.Module, path: Path, precision: str = "fp32") -> Path:
    batch = images(2)
    TARGET.export(
        network, batch, path, precision=precision, metadata=METADATA, options=ExportOptions()
    )
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(small_network(), tmp_path_factory.mktemp("torchexport") / "small.export.pt2")


@pytest.mark.parametrize("precision", TARGET.tolerance)
def test_file_agrees_with_eager(precision: str, tmp_path: Path) -> None:
    network = small_network()
    path = write(network, tmp_path / "small.export.pt2", precision)
    tolerance = TARGET.tolerance[precision].logits

    session = TARGET.open(path, device="cpu")

    assert (session.backend, session.precision) == ("torchexport", precision)
    assert session.runtime == f"torch {torch.__version__}"
    for size in (1, 5, 64):
        batch = images(size)
        logits = session.run(batch)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected(network, batch), rtol=0, atol=tolerance)


def test_half_precision_halves_the_weights(tmp_path: Path) -> None:
    program, metadata = load_program(write(small_network(), tmp_path / "a.export.pt2", "bf16"))

    kinds = {tensor.dtype for tensor in program.state_dict.values()}
    assert kinds == {torch.bfloat16, torch.int64}  # the latter counts the norm's batches
    assert metadata == METADATA | {"precision": "bf16"}


def test_model_is_left_as_it_was(tmp_path: Path) -> None:
    network = small_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}

    write(network, tmp_path / "small.export.pt2", "fp16")

    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_torch_alone_runs_the_file(written: Path) -> None:
    module = torch.export.load(written).module()

    batch = images(7)
    torch.testing.assert_close(module(batch), expected(small_network(), batch))


def test_facts_count_the_operators(tmp_path: Path) -> None:
    facts = TARGET.export(
        small_network(),
        images(2),
        tmp_path / "small.export.pt2",
        precision="fp32",
        metadata={},
        options=ExportOptions(),
    )

    program, _ = load_program(tmp_path / "small.export.pt2")
    calls = sum(node.op == "call_function" for node in program.graph.nodes)
    assert facts == {"operators": calls}


def test_file_hands_on_no_image_and_no_folder(written: Path) -> None:
    program, _ = load_program(written)

    content = b"".join(contents(written).values())
    ((example,), _) = program.example_inputs
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    assert not example.any()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_model_that_cannot_be_traced_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.export.pt2"

    with pytest.raises(MachineError, match=r"^torch\.export cannot trace this model: .+") as error:
        write(Branching(), path)

    assert "\n" not in str(error.value)
    assert not path.exists()
    assert capfd.readouterr() == ("", "")


def test_what_onnx_cannot_hold_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MachineError) as error:
        load_target("onnx").export(
            Branching(),
            images(2),
            tmp_path / "small.onnx",
            precision="fp32",
            metadata=METADATA | {"cifar_zoo_version": "0"},
            options=ExportOptions(),
        )

    assert re.fullmatch(
        "torch cannot write this model as ONNX: Could not guard on data-dependent .+",
        str(error.value),
    )
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_named(tmp_path: Path) -> None:
    with file_size_limit(4000), pytest.raises(OSError, match="File too large"):
        write(small_network(), tmp_path / "small.export.pt2")


# Images that a file does not take


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (torch.zeros(MAX_BATCH + 1, 3, 16, 16), "float32 of (4097, 3, 16, 16)"),
        (torch.zeros(0, 3, 16, 16), "float32 of (0, 3, 16, 16)"),
        (torch.zeros(2, 3, 32, 32), "float32 of (2, 3, 32, 32)"),
        (torch.zeros(3, 16, 16), "float32 of (3, 16, 16)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8 of (2, 3, 16, 16)"),
    ],
)
def test_other_images_are_refused(written: Path, batch: Tensor, got: str) -> None:
    session = TARGET.open(written, device="cpu")

    with pytest.raises(MachineError) as error:
        session.run(batch)

    wanted = "takes float32 images of shape (1 to 4096, 3, 16, 16)"
    assert str(error.value) == f"{written} {wanted}, got {got}"


# Files that are not what they should be


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def poisoned(written: Path, folder: Path, how: str) -> tuple[Path, Path]:
    """A copy that would write `mark` if it were unpickled."""
    path, mark = folder / "bad.export.pt2", folder / "mark"
    files = contents(written)
    payload = pickle.dumps(Malicious(mark))
    buffer = io.BytesIO()
    torch.save(Malicious(mark), buffer)
    root = "archive"
    config = f"{root}/data/weights/model_weights_config.json"
    table = json.loads(files[config])
    first = next(iter(table["config"].values()))
    match how:
        case "weight":
            first["use_pickle"] = True
            files[f"{root}/data/weights/{first['path_name']}"] = buffer.getvalue()
        case "constant":
            constants = f"{root}/data/constants/model_constants_config.json"
            other = first | {"path_name": "opaque_obj_0"}
            files[constants] = json.dumps({"config": {"x": other}}).encode()
            files[f"{root}/data/constants/opaque_obj_0"] = payload
        case "sample":
            files[f"{root}/data/sample_inputs/model.pt"] = buffer.getvalue()
        case "legacy":
            files[f"{root}/data/weights/model.pt"] = buffer.getvalue()
        case "capitals":  # torch's reader finds it all the same
            del files[f"{root}/data/sample_inputs/model.pt"]
            files[f"{root}/data/SAMPLE_INPUTS/model.PT"] = buffer.getvalue()
    files[config] = json.dumps(table).encode()
    rewrite(path, files)
    return path, mark


@pytest.mark.parametrize("how", ["weight", "constant", "sample", "legacy"])
def test_pickles_are_refused_unread(written: Path, tmp_path: Path, how: str) -> None:
    path, mark = poisoned(written, tmp_path, how)

    with pytest.raises(ArtifactError) as error:
        TARGET.open(path, device="cpu")

    assert str(error.value) == (
        f"{path} holds a pickle, which could run any code: a file of zoo-export has none"
    )
    assert not mark.exists()


def test_names_in_other_letters_are_refused_unread(written: Path, tmp_path: Path) -> None:
    path, mark = poisoned(written, tmp_path, "capitals")

    with pytest.raises(ArtifactError) as error:
        TARGET.open(path, device="cpu")

    assert str(error.value) == (
        f"{path} holds 'archive/data/SAMPLE_INPUTS/model.PT', which is no part of a file of "
        "zoo-export"
    )
    assert not mark.exists()


def test_archive_written_anew_still_opens(written: Path, tmp_path: Path) -> None:
    """Otherwise the refusals above might be of the archive and not of what it holds."""
    path = tmp_path / "copy.export.pt2"
    rewrite(path, contents(written))

    assert TARGET.open(path, device="cpu").precision == "fp32"


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_truncated_file_is_refused(written: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.export.pt2"
    path.write_bytes(written.read_bytes()[:keep])

    with pytest.raises(ArtifactError, match="is no torch.export program, or it is damaged") as e:
        TARGET.open(path, device="cpu")

    assert "\n" not in str(e.value)


def test_damaged_graph_is_refused(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.export.pt2"
    files = contents(written)
    files["archive/models/model.json"] = b"{}"
    rewrite(path, files)

    with pytest.raises(ArtifactError, match=r"^torch cannot read .*bad\.export\.pt2: .+"):
        TARGET.open(path, device="cpu")


def test_program_of_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fixed.export.pt2"
    torch.export.save(torch.export.export(small_network(), (images(2),)), path)

    with pytest.raises(ArtifactError, match=r"with a free B; it takes \(2, 3, 16, 16\)$"):
        TARGET.open(path, device="cpu")


# Devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_is_never_replaced_by_the_cpu(written: Path) -> None:
    with pytest.raises(MachineError, match="finds no GPU 'cuda': zoo-doctor says why"):
        TARGET.open(written, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TARGET.tolerance)
def test_gpu_agrees_with_eager(precision: str, tmp_path: Path) -> None:
    network = small_network()
    session = TARGET.open(write(network, tmp_path / "a.export.pt2", precision), device="cuda")

    logits = session.run(images(64).cuda()).cpu()

    tolerance = TARGET.tolerance[precision].logits
    torch.testing.assert_close(logits, expected(network, images(64)), rtol=0, atol=tolerance)


def test_free_axis_is_the_batch() -> None:
    program = traced(small_network(), images(2))

    assert [str(bounds) for bounds in program.range_constraints.values()] == ["VR[1, 4096]"]
