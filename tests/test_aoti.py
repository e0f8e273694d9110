import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_helpers import file_size_limit
from small_network import expected, images, small_network

from export import load_target
from export.target import MAX_BATCH, ExportOptions
from export.to_aoti import package_facts
from zoo.errors import ArtifactError, MachineError, OtherDeviceError
from zoo.session import torch_threads

TARGET = load_target("aoti")
AGAIN = "write it again on this machine with zoo-export --to aoti --precision fp32 RUN"


def write(path: Path, precision: str = "fp32", device: str = "cpu") -> Path:
    TARGET.export(
        small_network(),
        images(2),
        path,
        precision=precision,
        metadata={"model": "small", "class_names": '["cat", "dog"]'},
        options=ExportOptions(device=device),
    )
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled while torch had one thread."""
    with torch_threads(1):
        return write(tmp_path_factory.mktemp("aoti") / "small.aoti.pt2")


def assert_agrees(path: Path, precision: str, device: str) -> None:
    session = TARGET.open(path, device=device)

    assert (session.backend, session.precision, session.device) == ("aoti", precision, device)
    assert session.runtime == f"torch {torch.__version__} AOTInductor"
    for size in (1, 5, 64):
        batch = images(size)
        logits = session.run(batch.to(device)).cpu()
        tolerance = TARGET.tolerance[precision].logits
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected(small_network(), batch), rtol=0, atol=tolerance)


def test_file_agrees_with_eager(written: Path) -> None:
    assert TARGET.pending(written, device="cpu") is None
    assert_agrees(written, "fp32", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_agrees_with_eager(precision: str, tmp_path: Path) -> None:
    assert_agrees(write(tmp_path / "small.aoti.pt2", precision), precision, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TARGET.tolerance)
def test_gpu_agrees_with_eager(precision: str, tmp_path: Path) -> None:
    assert_agrees(write(tmp_path / "small.aoti.pt2", precision, "cuda"), precision, "cuda")


def test_channels_last_images_are_not_misread(written: Path) -> None:
    batch = images(5)

    logits = TARGET.open(written, device="cpu").run(batch.to(memory_format=torch.channels_last))

    torch.testing.assert_close(logits, expected(small_network(), batch), rtol=0, atol=1e-4)


def test_number_of_threads_is_not_compiled_in(written: Path) -> None:
    with zipfile.ZipFile(written) as archive:
        code = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".cpp")]

    loops = [line.strip() for text in code for line in text.splitlines() if "omp parallel" in line]
    assert loops
    assert set(loops) == {"#pragma omp parallel"}


def test_file_says_what_it_is_tied_to(written: Path) -> None:
    facts = package_facts(written)

    assert facts["model"] == "small"
    assert facts["class_names"] == '["cat", "dog"]'
    assert facts["compiled_for"] == "cpu"
    assert facts["image_shape"] == "[3, 16, 16]"
    assert str(torch.__version__).startswith(facts["torch_release"] + ".")


def test_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(_: object, *, package_path: io.BytesIO, **__: object) -> None:
        package_path.write(bytes(8000))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiled)

    with file_size_limit(4000), pytest.raises(OSError, match="File too large"):
        write(tmp_path / "small.aoti.pt2")


@pytest.mark.slow
def test_full_disk_while_compiling_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))

    with file_size_limit(100_000), pytest.raises(MachineError) as error:
        write(tmp_path / "small.aoti.pt2")

    assert str(error.value).startswith("AOTInductor cannot compile this model: ")
    assert "File size limit exceeded" in str(error.value)  # that is the C++ compiler's word
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


# Images that a file does not take


@pytest.mark.parametrize("shape", [(MAX_BATCH + 1, 3, 16, 16), (0, 3, 16, 16), (2, 3, 32, 32)])
def test_other_images_are_refused(written: Path, shape: tuple[int, ...]) -> None:
    """The code itself would take them, and read beyond what it was given."""
    session = TARGET.open(written, device="cpu")

    with pytest.raises(MachineError) as error:
        session.run(torch.zeros(shape))

    wanted = "takes float32 images of shape (1 to 4096, 3, 16, 16)"
    assert str(error.value) == f"{written} {wanted}, got float32 of {shape}"


# Machines that a file does not run on


def changed(written: Path, folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """A copy that says something else of itself."""
    path = folder / "other.aoti.pt2"
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("_metadata.json"):
                facts = json.loads(content)
                change(facts)
                content = json.dumps(facts).encode()
            copy.writestr(name, content)
    return path


def other_cpu(facts: dict[str, str]) -> None:
    facts["instruction_sets"] += " avx9000 amx_tile_twice"


RELEASE = ".".join(str(torch.__version__).split(".")[:2])
OBSTACLES = [
    (
        other_cpu,
        "it was compiled for a CPU with amx_tile_twice, avx9000, which this one lacks",
    ),
    (
        lambda facts: facts.update(torch_release="2.1"),
        f"it was compiled by torch 2.1, this is {RELEASE}",
    ),
    (
        lambda facts: facts.update(compiled_for="cuda"),
        "it was compiled for cuda, not for cpu: use --device cuda, or write it again",
    ),
    (
        lambda facts: facts.update(machine="vax"),
        "it was compiled for vax, not",
    ),
]


@pytest.mark.parametrize(("change", "reason"), OBSTACLES)
def test_file_of_another_machine_is_refused(
    written: Path, tmp_path: Path, change: Callable[[dict[str, str]], object], reason: str
) -> None:
    path = changed(written, tmp_path, change)

    with pytest.raises(MachineError) as error:
        TARGET.open(path, device="cpu")

    assert str(error.value).startswith(f"{path} does not run here: {reason}")
    assert str(error.value).endswith(AGAIN)
    assert isinstance(error.value, OtherDeviceError) == ("not for cpu" in reason)
    assert TARGET.pending(path, device="cpu") == str(error.value).partition("here: ")[2]


def test_copy_of_this_machine_is_not_refused(written: Path, tmp_path: Path) -> None:
    """Otherwise the refusals above might be of the copy and not of what it says."""
    path = changed(written, tmp_path, lambda facts: None)

    assert TARGET.open(path, device="cpu").precision == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_is_never_replaced_by_the_cpu(written: Path, tmp_path: Path) -> None:
    reason = "finds no GPU 'cuda': zoo-doctor says why"

    with pytest.raises(MachineError, match=reason):
        TARGET.open(written, device="cuda")
    with pytest.raises(MachineError, match=reason):
        write(tmp_path / "small.aoti.pt2", device="cuda")

    pending = TARGET.pending(written, device="cuda")
    assert pending is not None
    assert reason in pending


def test_compiler_is_needed_to_write_and_not_to_run(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))

    with pytest.raises(MachineError) as error:
        write(tmp_path / "small.aoti.pt2")
    session = TARGET.open(written, device="cpu")

    assert str(error.value) == (
        "--to aoti needs a C++ compiler and none was found: install g++ (or point CXX at one)"
    )
    assert list(tmp_path.iterdir()) == []
    assert session.run(images(1)).shape == (1, 10)


# Files that are not what they should be


@pytest.mark.parametrize("keep", [0, 100, 50_000])
def test_truncated_file_is_refused(written: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.aoti.pt2"
    path.write_bytes(written.read_bytes()[:keep])

    with pytest.raises(ArtifactError) as error:
        TARGET.open(path, device="cpu")

    assert str(error.value) == f"{path} is no AOTInductor package, or it is damaged"


def test_package_of_others_is_refused(written: Path, tmp_path: Path) -> None:
    path = changed(written, tmp_path, lambda facts: facts.pop("torch_release"))

    with pytest.raises(ArtifactError) as error:
        TARGET.open(path, device="cpu")

    assert str(error.value) == (
        f"{path} was not written by zoo-export: it does not say what it runs on"
    )


def test_package_without_its_code_is_refused(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.aoti.pt2"
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            if not name.endswith(".so"):
                copy.writestr(name, source.read(name))

    with pytest.raises(ArtifactError, match=r"^torch cannot load .*empty\.aoti\.pt2: .+") as error:
        TARGET.open(path, device="cpu")

    assert "\n" not in str(error.value)
