import json
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_helpers import edit, file_size_limit, run_of
from PIL import Image

from export import TARGETS, export_model
from export.artifact import Artifact, find_artifact
from export.bundle import RUNTIMES, prepare, readme, write_bundle
from export.cli import main
from export.opening import open_artifact
from export.triton import BACKENDS
from export.use_cli import main_predict
from zoo.data import Dataset
from zoo.errors import ZooError
from zoo.files import sha256_file
from zoo.preprocess import Preprocessing

pytest_plugins = ["export_fixtures"]

NAME = "resnet_20-onnx-fp32"


@pytest.fixture(scope="module")
def photos(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images as people have them: of many sizes, modes and directions."""
    folder = tmp_path_factory.mktemp("photos")
    stored = [Image.fromarray(image) for image in data.test.images[:7]]
    wide = stored[1].resize((400, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    deep = np.asarray(stored[4].convert("L")).astype(np.uint16) * 256 + 77
    clear = stored[6].convert("RGBA")
    clear.putalpha(40)
    stored[0].save(folder / "stored.png")
    wide.save(folder / "turned.jpg", exif=exif)
    stored[2].convert("L").resize((50, 90)).save(folder / "grey.png")
    stored[3].convert("CMYK").resize((64, 64)).save(folder / "print.jpg")
    Image.fromarray(deep).save(folder / "deep.png")
    stored[5].convert("P").save(folder / "palette.png", transparency=bytes(256))
    clear.save(folder / "clear.png")
    stored[6].crop((3, 3, 4, 4)).save(folder / "dot.png")
    return sorted(folder.iterdir())


def run_program(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As somebody else would: from another folder, with nothing but the bundle to import."""
    return subprocess.run(
        (
            sys.executable,
            "-E",
            "-s",
            "-P",
            "-W",
            "error",
            bundle / "predict.py",
            *map(str, arguments),
        ),
        cwd=bundle.parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def agree(bundle: Path, artifact: Artifact, photos: list[Path], capsys: Callable) -> None:
    """The program and zoo-predict name the same classes with the same probabilities."""
    answer = run_program(bundle, *photos)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert main_predict([*map(str, photos), "--artifact", str(artifact.path), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)

    blocks = re.split(r"^(?=/)", answer.stdout, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(expected) == len(photos)
    for block, prediction in zip(blocks, expected, strict=True):
        image, *lines = block.splitlines()
        assert image == prediction["image"]
        found = [re.fullmatch(r" +(\S+)%  (.*)", line).groups() for line in lines]
        assert [name for _, name in found] == [guess["name"] for guess in prediction["guesses"]]
        for (percent, _), guess in zip(found, prediction["guesses"], strict=True):
            assert float(percent) == pytest.approx(100 * guess["probability"], abs=0.051)


def assert_formatted(bundle: Path) -> None:
    """As our own sources are."""
    ruff = pytest.importorskip("ruff")
    command = (ruff.find_ruff_bin(), "format", "--isolated", "--line-length", "100", "--diff")
    done = subprocess.run((*command, bundle), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("kind", "package"),
    [("exported", "onnxruntime"), ("raw", "onnxruntime"), ("in_openvino", "openvino")],
)
def test_the_program_names_what_zoo_predict_names(
    kind: str,
    package: str,
    photos: list[Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifact = request.getfixturevalue(kind)

    bundle = write_bundle(artifact, tmp_path / "bundles")

    agree(bundle, artifact, photos, capsys)
    assert open_artifact(str(bundle / artifact.path.name), "cpu").backend == artifact.backend
    text = (bundle / "predict.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) == {
        "numpy",
        package,
        "pathlib",
        "prepare",
        "sys",
    }
    assert len(text.splitlines()) <= 30
    assert_formatted(bundle)


def test_the_program_needs_no_pillow_for_arrays(
    exported: Artifact, photos: list[Path], tmp_path: Path
) -> None:
    bundle = write_bundle(exported, tmp_path)
    (bundle / "PIL.py").write_text("raise ModuleNotFoundError('No module named PIL')")
    stored = next(photo for photo in photos if photo.name == "stored.png")
    array, small = tmp_path / "stored.npy", tmp_path / "small.npy"
    np.save(array, np.asarray(Image.open(stored)))
    np.save(small, np.zeros((8, 8, 3), np.uint8))

    answer = run_program(bundle, array, small, stored)

    assert answer.returncode == 1
    assert answer.stderr == (
        f"{small}: uint8 (8, 8, 3), expected uint8 (32, 32, 3)\n{stored}: No module named PIL\n"
    )
    (bundle / "PIL.py").unlink()
    assert run_program(bundle, stored).stdout.splitlines()[1:] == answer.stdout.splitlines()[1:]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torchexport", "aoti"])
def test_the_program_of_a_file_of_torch_names_the_same(
    target: str,
    photos: list[Path],
    data: Dataset,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifact = export_model(run, target=target, data=data)

    bundle = write_bundle(artifact)

    assert bundle == run / "bundles" / f"resnet_20-{target}-fp32"
    agree(bundle, artifact, photos, capsys)
    assert_formatted(bundle)
    assert len((bundle / "predict.py").read_text().splitlines()) <= 30
    readme = (bundle / "README.md").read_text()
    program = bundle / "prepare.py"
    if target == "aoti":
        assert f"pip install numpy torch=={torch.__version__.partition('+')[0]}\n" in readme
        assert "- Compiled for CPUs of Linux with: " in readme
        program.write_text(program.read_text().replace("NEEDED = [", "NEEDED = ['amx9',"))
        answer = run_program(bundle, photos[0])
        assert answer.returncode == 1
        assert answer.stderr == f"{artifact.path.name} was compiled for CPUs with amx9\n"
    else:
        assert "pip install numpy torch\n" in readme
        assert "/proc" not in program.read_text()


def test_the_program_runs_no_other_file(
    exported: Artifact, photos: list[Path], tmp_path: Path
) -> None:
    bundle = write_bundle(exported, tmp_path)
    with (bundle / exported.path.name).open("ab") as file:
        file.write(b"more")

    answer = run_program(bundle, photos[0])

    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == (
        f"{exported.path.name} is not the file that was measured: copy it again\n"
    )


@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"), [(40, 0.8, "bicubic"), (30, 0.9, "bilinear")]
)
def test_a_network_of_another_size_is_fed_the_same(
    size: int,
    crop_pct: float,
    interpolation: str,
    exported: Artifact,
    photos: list[Path],
    data: Dataset,
    tmp_path: Path,
) -> None:
    """The program's own arithmetic beside torch's, on what the network would be given."""
    known = Preprocessing(
        image_size=size,
        mean=data.mean,
        std=data.std,
        interpolation=interpolation,
        crop_pct=crop_pct,
    )
    fed = replace(exported, preprocessing=known)
    bundle = write_bundle(fed, tmp_path)

    read = runpy.run_path(str(bundle / "prepare.py"))["read"]

    stored = next(photo for photo in photos if photo.name == "stored.png")
    expected = known.to_batch(np.asarray(Image.open(stored).convert("RGB"))[None])
    given = (read(str(stored)) / 255 - np.float32(data.mean)) / np.float32(data.std)
    np.testing.assert_allclose(given.transpose(2, 0, 1)[None], expected.numpy(), atol=2e-5)
    assert_formatted(bundle)


def test_a_folder_holds_all_that_is_needed(exported: Artifact, tmp_path: Path) -> None:
    first = write_bundle(exported, tmp_path)

    second = write_bundle(exported, tmp_path)

    assert (first, second) == (tmp_path / NAME, tmp_path / f"{NAME}-2")  # none is replaced
    names = [
        "README.md",
        "labels.txt",
        "onnx-fp32.json",
        "onnx-fp32.onnx",
        "predict.py",
        "prepare.py",
    ]
    assert sorted(path.name for path in first.iterdir()) == names
    assert (first / "onnx-fp32.onnx").read_bytes() == exported.path.read_bytes()
    assert find_artifact(first / "onnx-fp32.onnx").sha256 == exported.sha256
    told = " ".join((first / "README.md").read_text().split())
    assert "pip install numpy onnxruntime python predict.py IMAGE..." in told
    assert exported.accuracy is not None
    assert (
        f"{exported.accuracy.top1:.2%} top-1 and {exported.accuracy.top5:.2%} top-5 accuracy on "
        "1,000 test images of cifar100-mini, run by onnxruntime"
    ) in told
    assert "`predict.py` and `prepare.py` are part of cifar-zoo and under the MIT licence" in told
    assert "Learning Multiple Layers of Features from Tiny Images" in told


def test_the_terms_of_the_first_weights_go_on(copied: Path) -> None:
    meta = copied.parents[1] / "meta.json"
    edit(meta, initial_weights="timm:resnet18.a1_in1k")

    told = " ".join(readme(find_artifact(copied)).split())

    assert "They began with those of timm:resnet18.a1_in1k, whose terms go on to hold." in told


def test_a_damaged_image_stops_no_other(
    exported: Artifact, photos: list[Path], tmp_path: Path
) -> None:
    bundle = write_bundle(exported, tmp_path)
    text = tmp_path / "text.png"
    text.write_text("no image")

    answer = run_program(bundle, text, photos[0])

    assert answer.returncode == 1
    assert answer.stderr == f"{text}: cannot identify image file '{text}'\n"
    assert answer.stdout.startswith(f"{photos[0]}\n")


def test_the_command_writes_and_hands_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"

    code = main([str(run), "--bundle", "--triton", str(models)])

    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        str(run / "artifacts" / "onnx-fp32.onnx"),
        str(run / "bundles" / NAME),
        str(models / NAME / "1"),
    ]


def test_one_way_to_hand_over_that_fails_does_not_stop_the_other(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, models = tmp_path / "file", tmp_path / "models"
    file.touch()

    code = main([str(copied), "--bundle", str(file), "--triton", str(models)])

    out, err = capsys.readouterr()
    assert (code, out) == (1, f"{models / NAME / '1'}\n")
    assert err == f"zoo-export: {file}: File exists\n"


@pytest.mark.parametrize("option", ["--bundle", "--triton"])
def test_a_file_that_changes_on_the_way_is_not_handed_over(
    option: str,
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def change(artifact: Artifact) -> None:
        artifact.path.write_bytes(artifact.path.read_bytes()[:-1])

    monkeypatch.setattr(f"export.{option[2:]}.check_handover", change)

    assert main([str(copied), option, str(tmp_path / "there")]) == 2

    assert capsys.readouterr().err == (
        f"zoo-export: {copied} was written again meanwhile: hand it over again\n"
    )
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("option", ["--bundle", "--triton"])
def test_a_file_without_its_weights_is_not_handed_over(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """Whatever its manifest says: what it names is left behind."""
    onnx.save_model(
        onnx.load(copied), copied, save_as_external_data=True, location="w", size_threshold=0
    )
    edit(
        copied.with_suffix(".json"),
        sha256=sha256_file(copied),
        size_bytes=copied.stat().st_size,
        files={copied.name: sha256_file(copied)},
    )

    assert main([str(copied), option, str(tmp_path / "there")]) == 2

    assert capsys.readouterr().err.startswith(f"zoo-export: {copied} keeps tensors in other files")
    assert not list(tmp_path.glob("there/*"))


def test_what_was_just_proven_is_handed_over(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied.parents[1]
    edit(copied.with_suffix(".json"), pending="no GPU here", parity=None, accuracy=None)

    assert main([str(copied), "--bundle"]) == 2
    assert main([str(run), "--prove", "--bundle"]) == 0

    out, err = capsys.readouterr()
    assert out.splitlines() == [str(copied), str(run / "bundles" / NAME)]
    assert err.startswith(
        f"zoo-export: {copied} is not handed over, its proof is pending: run zoo-export --prove "
        "where it runs\n"
    )


def test_files_of_a_manifest_are_data(exported: Artifact, tmp_path: Path) -> None:
    """A model, a file and a class may have any name; none of it becomes code or a path."""
    name = "'\"\nraise SystemExit(7)\n#"
    folder = tmp_path / "artifacts"
    folder.mkdir()
    path = Path(shutil.copy(exported.path, folder / f"{name}.onnx"))
    manifest = json.loads(exported.path.with_suffix(".json").read_text())
    manifest |= {"file": path.name, "files": {path.name: exported.sha256}}
    manifest |= {"model": '../../"""\nraise SystemExit(7)\n"""', "proven_by": "a\nb"}
    manifest["dataset"]["class_names"][:2] = ["../x", "two\nlines"]
    (folder / f"{name}.json").write_text(json.dumps(manifest))
    image = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)

    bundle = write_bundle(find_artifact(path), tmp_path / "deep" / "bundles")

    assert bundle.parent == tmp_path / "deep" / "bundles"
    assert bundle.name == "_____raise_SystemExit_7_____-onnx-fp32".lstrip("_")
    answer = run_program(bundle, image)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert (bundle / "labels.txt").read_text().splitlines()[:2] == ["../x", "two?lines"]
    tied = replace(find_artifact(path), facts={"instruction_sets": "'\nraise SystemExit(7)\n#"})
    (bundle / "prepare.py").write_text(prepare(tied))
    answer = run_program(bundle, image)
    assert answer.returncode == 1
    assert " was compiled for CPUs with " in answer.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "trt",
            "--bundle does not take trt, an engine needs more than numpy and TensorRT to run: "
            "use --to onnx",
        ),
        (
            "aoti",
            "--bundle does not take {path}, which is compiled for cuda: use --to onnx, or "
            "--device cpu",
        ),
    ],
)
def test_what_runs_only_with_more_is_refused(
    target: str, message: str, exported: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "cuda.aoti.pt2"  # what it says of itself is all that is read
    facts = {"precision": "fp32", "image_shape": "", "compiled_for": "cuda", "torch_release": ""}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model_metadata.json", json.dumps(facts))

    with pytest.raises(ZooError) as caught:
        write_bundle(replace(exported, target=target, path=path), tmp_path / "bundles")

    assert str(caught.value) == message.format(path=path)
    assert not (tmp_path / "bundles").exists()


def test_the_documentation_says_which_targets_are_handed_over() -> None:
    text = (Path(__file__).parents[1] / "docs" / "support.md").read_text()
    table = text.partition("| Target |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)`.*? \| (yes|no)\b.*? \| (yes|no)\b", table, re.MULTILINE)

    told = {target: (bundle == "yes", triton == "yes") for target, bundle, triton in rows}

    assert told == {target: (target in RUNTIMES, target in BACKENDS) for target in TARGETS}


def test_a_full_disk_leaves_nothing(
    exported: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with file_size_limit(100_000):
        code = main([str(exported.path), "--bundle", str(tmp_path / "bundles")])

    assert code == 1
    assert capsys.readouterr().err == f"zoo-export: {tmp_path}/bundles/{NAME}: File too large\n"
    assert list((tmp_path / "bundles").iterdir()) == []


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gone.onnx"

    assert main([str(path), "--bundle"]) == 2
    assert capsys.readouterr().err == (
        f"zoo-export: there is no artifact {path}: write it again with zoo-export\n"
    )


def test_the_default_place_is_the_run(
    exported: Artifact, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(find_artifact(copied))
    monkeypatch.chdir(copied.parent)

    bundle = write_bundle(find_artifact(Path(copied.name)))

    assert bundle == run / "bundles" / NAME
