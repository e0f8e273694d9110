import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import edit, run_of
from PIL import Image
from torch import Tensor

from export.artifact import Artifact
from export.opening import open_artifact
from export.predict import predict_files, table
from export.use_cli import main_predict
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset
from zoo.errors import MachineError
from zoo.evaluate import predict
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession

pytest_plugins = ["export_fixtures"]


@pytest.fixture(scope="module")
def images(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first test images as files."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(data.test.images[:70]):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def answers(run: Path, data: Dataset) -> Tensor:
    """Probabilities of the first test images, as zoo-eval has them."""
    session = EagerSession(Checkpoint.open(run).model())
    logits = predict(session, data.test.images[:70], Preprocessing.of(data))
    return logits.softmax(1)


@pytest.mark.parametrize("kind", ["exported", "raw"])
def test_files_are_answered_as_the_images_of_the_data_set(
    kind: str, images: list[Path], data: Dataset, request: pytest.FixtureRequest
) -> None:
    artifact = request.getfixturevalue(kind)

    found = list(
        predict_files(
            open_artifact(str(artifact.path), "cpu"),
            images,
            class_names=data.class_names,
            preprocessing=artifact.input_preprocessing,
            top=3,
        )
    )

    best = answers(run_of(artifact), data).topk(3)
    assert [one.image for one in found] == [str(path) for path in images]
    for prediction, values, indices in zip(found, best.values, best.indices, strict=True):
        names = [data.class_names[index] for index in indices]
        assert [guess.name for guess in prediction.guesses] == names
        shares = torch.tensor([guess.probability for guess in prediction.guesses])
        torch.testing.assert_close(shares, values, rtol=0, atol=1e-5)


def test_a_run_and_its_file_say_the_same(
    exported: Artifact, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in images[:3]]
    asked = [["--run", str(run_of(exported))], ["--artifact", str(exported.path)]]

    outputs = []
    for source in asked:
        assert main_predict([*paths, *source]) == 0
        outputs.append(capsys.readouterr())

    assert outputs[0].out == outputs[1].out
    assert [output.err for output in outputs] == ["", ""]
    lines = outputs[0].out.splitlines()
    assert lines[::6] == paths
    assert len(lines) == 3 * 6


def test_without_a_name_the_newest_run_answers(
    run: Path,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parents[1])

    code = main_predict([str(images[0]), "--top", "200", "--json"])

    (prediction,) = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (prediction["image"], prediction["error"]) == (str(images[0]), None)
    shares = [guess["probability"] for guess in prediction["guesses"]]
    assert len(shares) == 100  # there are no more classes
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_pictures_of_any_kind_are_read(
    exported: Artifact, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What differs from the stored image in its file alone has its answer; the rest has some."""
    photo = Image.fromarray(data.test.images[0])
    grey = photo.convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "grey-rgb.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 99).save(tmp_path / "grey-16.png")
    photo.save(tmp_path / "stored.png")
    photo.convert("RGBA").save(tmp_path / "stored-rgba.png")
    photo.resize((96, 64), Image.Resampling.NEAREST).save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # rotate by 180 degrees to view
    turned = photo.transpose(Image.Transpose.ROTATE_180)
    turned.save(tmp_path / "stored-turned.png", exif=exif)
    photo.crop((5, 5, 6, 6)).save(tmp_path / "dot.png")
    photo.resize((4000, 3000)).save(tmp_path / "large.jpg")
    photo.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    paths = sorted(map(str, tmp_path.iterdir()))

    code = main_predict([*paths, "--artifact", str(exported.path), "--json"])

    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    found = {Path(one["image"]).stem: one["guesses"] for one in json.loads(out)}
    assert len(found) == len(paths)
    assert all(len(guesses) == 5 for guesses in found.values())
    assert found["stored"] == approximately(found["stored-rgba"])
    assert found["stored"] == approximately(found["stored-turned"])
    assert found["grey"] == approximately(found["grey-rgb"])
    assert found["grey"] == approximately(found["grey-16"])


def approximately(guesses: list[dict[str, object]]) -> list[dict[str, object]]:
    """Probabilities round with the place in the batch."""
    return [
        {"name": guess["name"], "probability": pytest.approx(guess["probability"], abs=1e-5)}
        for guess in guesses
    ]


def test_what_is_no_image_is_one_line_and_stops_no_other(
    exported: Artifact, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, cut, gone = (tmp_path / name for name in ("text.png", "cut.png", "gone.png"))
    text.write_text("no image")
    cut.write_bytes(images[0].read_bytes()[:600])
    page = tmp_path / "page.png"  # a format for which Pillow would start a program
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    paths = [text, cut, images[1], gone, tmp_path, page]

    code = main_predict([*map(str, paths), "--artifact", str(exported.path)])

    out, err = capsys.readouterr()
    assert code == 2
    assert out.startswith(f"{images[1]}\n")
    assert len(out.splitlines()) == 6
    start = "zoo-predict: "
    assert err.splitlines() == [
        f"{start}{text} cannot be read as an image (cannot identify image file '{text}'): "
        "mend or remove it",
        f"{start}{cut} cannot be read as an image (image file is truncated): mend or remove it",
        f"{start}there is no image file {gone}: name files such as photo.jpg",
        f"{start}there is no image file {tmp_path}: name files such as photo.jpg",
        f"{start}{page} cannot be read as an image (cannot identify image file '{page}'): "
        "mend or remove it",
    ]

    assert main_predict([str(gone), "--artifact", str(exported.path), "--json"]) == 2
    (prediction,) = json.loads(capsys.readouterr().out)
    assert prediction["guesses"] == []
    assert prediction["error"] == f"there is no image file {gone}: name files such as photo.jpg"


def test_an_image_that_does_not_fit_memory_stops_no_other(
    copied: Path,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read = Image.open

    def fake_full_memory(path: Path, **options: object) -> Image.Image:
        if path == images[0]:
            raise MemoryError
        return read(path, **options)

    monkeypatch.setattr(Image, "open", fake_full_memory)

    assert main_predict([*map(str, images[:2]), "--artifact", str(copied)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{images[1]}\n")
    assert err == (
        f"zoo-predict: {images[0]} cannot be read as an image (MemoryError): mend or remove it\n"
    )


def test_a_changed_file_is_refused_and_trusted(
    copied: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copied.with_suffix(".json").unlink()
    asked = [str(images[0]), "--artifact", str(copied)]

    assert main_predict(asked) == 2
    assert capsys.readouterr().err == (
        f"zoo-predict: {copied} has no manifest onnx-fp32.json beside it: "
        "write it again with zoo-export; --trust opens it all the same\n"
    )
    assert main_predict([*asked, "--trust"]) == 0


def test_names_do_not_steer_the_terminal(
    copied: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = copied.with_suffix(".json")
    names = [f"\x1b[2J{number}\n" for number in range(100)]
    edit(manifest, dataset=json.loads(manifest.read_text())["dataset"] | {"class_names": names})
    image = Path(shutil.copy(images[0], tmp_path / "a\nb.png"))

    code = main_predict([str(image), "--artifact", str(copied)])

    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith(f"{tmp_path}/a?b.png\n")
    assert out.isascii()
    assert "\x1b" not in out
    assert len(out.splitlines()) == 6


@dataclass
class Fixed:
    """A session that gives the same answer to everything."""

    answer: Tensor
    backend = "eager"
    precision = "fp32"
    runtime = "none"
    device = "cpu"

    def run(self, images: Tensor) -> Tensor:
        return self.answer.expand(len(images), -1)

    def synchronize(self) -> None:
        """Nothing to wait for."""


@pytest.mark.parametrize("answer", [torch.zeros(7), torch.full((100,), torch.nan)])
def test_answers_that_are_none(answer: Tensor, images: list[Path], data: Dataset) -> None:
    found = predict_files(
        Fixed(answer),
        images[:2],
        class_names=data.class_names,
        preprocessing=Preprocessing.of(data),
    )

    with pytest.raises(MachineError) as caught:
        list(found)

    assert str(caught.value) == (
        "the model should give 100 finite numbers for each of 2 images, as many as there are class "
        f"names; it gave (2, {len(answer)}), or NaN or infinity"
    )


def test_equal_guesses_keep_the_order_of_the_classes(images: list[Path], data: Dataset) -> None:
    (prediction,) = predict_files(
        Fixed(torch.zeros(2)),
        images[:1],
        class_names=("b", "a"),
        preprocessing=Preprocessing.of(data),
    )

    assert table(prediction) == f"{images[0]}\n  50.0%  b\n  50.0%  a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: IMAGE (see zoo-predict --help)"),
        (["a.png"], "no complete run in runs: train one with zoo-train MODEL"),
        (["a.png", "--run", "nowhere"], "there is no run nowhere: train one with zoo-train MODEL"),
        (
            ["a.png", "--artifact", "net.onnx"],
            "there is no artifact net.onnx: write it again with zoo-export",
        ),
        (
            ["a.png", "--top", "0"],
            "argument --top: expected a whole number of 1 or more, got '0' "
            "(see zoo-predict --help)",
        ),
        (
            ["a.png", "--run", "a", "--artifact", "b"],
            "argument --artifact: not allowed with argument --run (see zoo-predict --help)",
        ),
    ],
)
def test_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    try:
        code: object = main_predict(arguments)
    except SystemExit as stop:
        code = stop.code

    assert code == 2
    assert capsys.readouterr() == ("", f"zoo-predict: {message}\n")
