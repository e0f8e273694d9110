import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from few_images import QUIET, few_images
from PIL import Image
from sample_run import sample_run
from torch import Tensor

from training import Runtime, train
from training.augment import Augmentation, Policy
from training.loop import Trainer
from training.philox import Numbers, make_key
from zoo.checkpoint import Checkpoint
from zoo.data import MEAN, STD, Dataset, load_dataset
from zoo.errors import CheckpointError, ZooError
from zoo.evaluate import evaluate
from zoo.models import create_model
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession

ROOT = Path(__file__).parents[1]
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # leaves pixels in [0, 1]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def few(data: Dataset) -> Dataset:
    return few_images(data)


def normalised(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What the zoo fed its models with before there was a Preprocessing."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    shift = torch.tensor(mean).mul(255).view(1, 3, 1, 1)
    scale = torch.tensor(std).mul(255).view(1, 3, 1, 1)
    return (x - shift) / scale


def test_stored_images_are_fed_byte_for_byte_as_ever(data: Dataset) -> None:
    images = data.test.images[:50]

    x = Preprocessing.of(data).to_batch(images)

    assert x.numpy().tobytes() == normalised(images, data.mean, data.std).numpy().tobytes()
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.dtype == torch.float32


@pytest.mark.parametrize(
    ("interpolation", "filter"),
    [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
@pytest.mark.parametrize("size", [64, 224, 20])
def test_the_resize_is_that_of_pillow(
    size: int, interpolation: str, filter: Image.Resampling, data: Dataset
) -> None:
    images = data.test.images[:5]

    x = Preprocessing(size, *PLAIN, interpolation=interpolation).to_batch(images)

    expected = [Image.fromarray(image).resize((size, size), filter) for image in images]
    theirs = torch.from_numpy(np.stack([np.array(image) for image in expected]))
    error = (255 * x - theirs.permute(0, 3, 1, 2)).abs()
    # Pillow rounds to whole levels, and cuts off, after each of its two passes.
    assert error.mean() < 0.5
    assert (error > 1.6).float().mean() < 2e-3
    assert error.max() < 8
    assert x.shape == (5, 3, size, size)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_darker_than_black_or_brighter_than_white() -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[:, ::2] = 255

    x = Preprocessing(96, MEAN, STD).to_batch(images)

    low, high = (normalised(np.full((1, 1, 1, 3), v, np.uint8), MEAN, STD) for v in (0, 255))
    assert torch.equal(x.amin((0, 2, 3)), low.flatten())
    assert torch.equal(x.amax((0, 2, 3)), high.flatten())


def test_the_middle_is_cut_out(data: Dataset) -> None:
    images = data.test.images[:3]
    whole = Preprocessing(256, MEAN, STD).to_batch(images)

    x = Preprocessing(224, MEAN, STD, crop_pct=0.875).to_batch(images)

    assert torch.equal(x, whole[:, :, 16:240, 16:240])


def test_a_crop_alone_resizes_nothing(data: Dataset) -> None:
    images = data.test.images[:3]

    x = Preprocessing(24, MEAN, STD, crop_pct=0.75).to_batch(images)

    assert torch.equal(x, normalised(images, MEAN, STD)[:, :, 4:28, 4:28])


CROP = r"in \(0, 1\], and image_size / crop_pct no more than 4096"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_size", 0, "1 to 4096"),
        ("image_size", 4097, "1 to 4096"),
        ("std", (1.0, 0.0, 1.0), "above 0 and finite"),
        ("mean", (float("nan"), 0.0, 0.0), "finite"),
        ("interpolation", "lanczos", "one of bicubic, bilinear"),
        ("crop_pct", 0.0, CROP),
        ("crop_pct", 1.1, CROP),
        ("crop_pct", 1e-9, CROP),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object, expected: str) -> None:
    facts = {"image_size": 32, "mean": MEAN, "std": STD}

    with pytest.raises(ValueError, match=f"{field} must be {expected}, got"):
        Preprocessing(**facts | {field: value})


# In a run


def test_a_run_without_preprocessing_is_of_stored_images() -> None:
    old = Checkpoint.open(ROOT / "bench_results" / "runs" / "resnet_20-s0").meta

    assert old.preprocessing is None
    assert old.input_preprocessing == Preprocessing(32, MEAN, STD)
    assert old.initial_weights is None


def test_a_damaged_preprocessing_is_named(data: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", data)
    facts = json.loads((run.path / "meta.json").read_text())
    facts["preprocessing"] = {"image_size": 32, "mean": [0, 0, 0], "std": [1, 1, 0]}
    (run.path / "meta.json").write_text(json.dumps(facts))

    with pytest.raises(CheckpointError, match=r"meta.json of a run \(std must be above 0"):
        Checkpoint.open(run.path)


def test_training_and_evaluation_see_the_same(few: Dataset) -> None:
    preprocessing = Preprocessing.of(few, image_size=48)
    off = Policy(crop_padding=0, flip_p=0.0, augment="none", erase_p=0.0)
    cpu = torch.device("cpu")
    augment = Augmentation(off, preprocessing, size=32, device=cpu)
    images = torch.from_numpy(few.train.images.transpose(0, 3, 1, 2).copy())
    place = Numbers(key=make_key(0, cpu), epoch=torch.tensor(1), place=torch.arange(len(images)))

    augmented, *_ = augment(images, torch.zeros(len(images)), place)

    fed = preprocessing.to_batch(few.train.images)
    torch.testing.assert_close(augmented, fed, rtol=0, atol=1e-6)


def test_the_trainer_feeds_the_size_of_the_run(few: Dataset) -> None:
    from accelerate import Accelerator

    preprocessing = Preprocessing.of(few, image_size=40)
    run = Trainer(
        create_model("resnet_20"),
        QUIET,
        Runtime(device="cpu"),
        few,
        Accelerator(cpu=True),
        seed=0,
        preprocessing=preprocessing,
    )

    run.stepper.begin(1)
    images, *_ = run.stepper.batch()

    assert images.shape == (10, 3, 40, 40)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_size_is_stored_and_used_again(few: Dataset, tmp_path: Path) -> None:
    model = "mlp_mixer_nano"  # its weights fit one size only

    done = train(model, QUIET, Runtime(device="cpu"), few, runs=tmp_path, image_size=40)

    opened = Checkpoint.open(done.path)
    assert opened.meta.preprocessing == Preprocessing.of(few, image_size=40)
    session = EagerSession(opened.model())
    found = evaluate(session, few.test.images, few.test.fine, opened.meta.input_preprocessing)
    assert found.top1 == opened.meta.test_top1


def test_a_resume_keeps_its_size(few: Dataset, tmp_path: Path) -> None:
    def interrupt(progress: object) -> None:
        if getattr(progress, "metrics", None):
            raise KeyboardInterrupt

    recipe, runtime = replace(QUIET, epochs=2), Runtime(device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(
            "resnet_20", recipe, runtime, few, runs=tmp_path, image_size=40, on_progress=interrupt
        )
    path = tmp_path / "resnet_20-s0"

    with pytest.raises(CheckpointError, match="began with image size 40, got 48"):
        train("resnet_20", recipe, runtime, few, resume=path, image_size=48)
    done = train("resnet_20", recipe, runtime, few, resume=path)

    assert done.meta.input_preprocessing.image_size == 40


def test_a_size_that_the_model_does_not_take_is_refused(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="takes images of multiples of 4 from 8 on, got 33"):
        train("vit_tiny", QUIET, Runtime(device="cpu"), few, runs=tmp_path, image_size=33)

    assert list(tmp_path.iterdir()) == []
