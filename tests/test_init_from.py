"""Training that starts from the backbone of another run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from few_images import QUIET, few_images
from sample_run import sample_run

import training.cli
from training import train
from training.options import build_parser, make_job
from training.recipe import Runtime
from training.start import Wanted, again
from zoo.checkpoint import Checkpoint, complete_runs, save_run
from zoo.data import Dataset, load_dataset
from zoo.errors import CheckpointError, ZooError
from zoo.preprocess import Preprocessing

CPU = Runtime(device="cpu")
MODEL = "tiny_network:headed"
STILL = replace(QUIET, peak_lr=1e-30, weight_decay=0.0, augment="none")
PROBE = replace(QUIET, freeze_backbone=True, augment="none")


@pytest.fixture(scope="module")
def few() -> Dataset:
    return few_images(load_dataset("cifar100-mini"))


@pytest.fixture(scope="module")
def whole(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return sample_run(tmp_path_factory.mktemp("runs") / "whole", few, model=MODEL, seed=3)


@pytest.fixture(scope="module")
def backbone(whole: Checkpoint) -> Checkpoint:
    """What pre-training leaves: no classifier."""
    kept = {key: t for key, t in whole.state_dict().items() if not key.startswith("head.")}
    meta = replace(whole.meta, pretraining="byol", finished_at="2026-01-02T00:00:00+00:00")
    return save_run(whole.path.with_name("backbone"), meta, kept)


def test_fine_tuning_starts_from_the_backbone(
    backbone: Checkpoint, few: Dataset, tmp_path: Path
) -> None:
    done = train(MODEL, STILL, CPU, few, runs=tmp_path, init_from=backbone.path)

    weights = done.state_dict()
    for key, tensor in backbone.state_dict().items():
        if not key.endswith(("running_mean", "running_var", "tracked")):
            torch.testing.assert_close(weights[key], tensor, rtol=0, atol=1e-20, msg=key)
    assert weights["head.weight"].shape == (100, 8)
    origin = f"byol sha256:{backbone.meta.weights_sha256}"
    assert Checkpoint.open(done.path).meta.initial_weights == origin


def test_a_linear_probe_leaves_the_backbone_as_it_is(
    backbone: Checkpoint, few: Dataset, tmp_path: Path
) -> None:
    done = train(MODEL, PROBE, CPU, few, runs=tmp_path, init_from=backbone.path)

    weights = done.state_dict()
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(weights[key], tensor), key


def test_the_classifier_of_a_whole_run_is_left_behind(
    whole: Checkpoint, few: Dataset, tmp_path: Path
) -> None:
    done = train(MODEL, STILL, CPU, few, runs=tmp_path, init_from=whole.path)

    weights, theirs = done.state_dict(), whole.state_dict()
    assert torch.equal(weights["stem.0.weight"], theirs["stem.0.weight"])
    assert not torch.equal(weights["head.weight"], theirs["head.weight"])
    assert done.meta.initial_weights == f"run sha256:{whole.meta.weights_sha256}"


def test_images_are_prepared_as_the_run_did(
    whole: Checkpoint, few: Dataset, tmp_path: Path
) -> None:
    known = Preprocessing(40, (0.5, 0.5, 0.5), few.std)
    run = save_run(tmp_path / "run", replace(whole.meta, preprocessing=known), whole.state_dict())

    done = train(MODEL, STILL, CPU, few, runs=tmp_path / "runs", init_from=run.path)

    assert done.meta.preprocessing == known


def test_a_run_of_another_model_is_refused(
    backbone: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ("--dataset", "cifar10", "--data-dir", str(tmp_path))

    code = training.cli.main(
        ["resnet_20", "--init-from", str(backbone.path), *absent, "--runs", str(tmp_path)]
    )

    assert code == 2
    assert capsys.readouterr().err == (
        f"zoo-train: {backbone.path} holds {MODEL}, not resnet_20: pass --init-from with a run of "
        "resnet_20\n"
    )


def test_a_network_without_a_known_classifier_is_refused(few: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", few, model="tiny_network:tiny")

    with pytest.raises(ZooError, match="^--init-from needs to know the classifier of tiny_network"):
        train("tiny_network:tiny", QUIET, CPU, few, runs=tmp_path, init_from=run.path)


def test_one_origin_is_enough() -> None:
    args = build_parser().parse_args(["resnet_20", "--init-from", "runs/a", "--pretrained"])

    with pytest.raises(ZooError) as caught:
        make_job(args)

    assert str(caught.value) == (
        "--pretrained and --init-from name weights to start from: pass one of them"
    )


def test_a_run_that_began_otherwise_takes_no_backbone_later(
    whole: Checkpoint, backbone: Checkpoint, few: Dataset
) -> None:
    message = "this run began with random weights: resume without .* and --init-from, or start"

    with pytest.raises(CheckpointError, match=message):
        again(whole.meta, MODEL, few, Wanted(run=backbone.path), QUIET)


def test_a_backbone_is_no_model(
    backbone: Checkpoint, whole: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    message = (
        f"{backbone.path} holds a backbone without a classifier, pre-trained with byol: train one "
        f"with zoo-train {MODEL} --init-from {backbone.path}"
    )

    with pytest.raises(CheckpointError) as caught:
        backbone.model(allow=MODEL)

    assert str(caught.value) == message
    assert training.cli.main(["--resume", str(backbone.path)]) == 2
    assert capsys.readouterr().err == f"zoo-train: {message}\n"
    assert [run.path for run in complete_runs(backbone.path.parent)] == [whole.path]
