"""A run of resnet_20 that was exported once, and copies of it to do things to."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from export_helpers import run_of
from sample_run import sample_run

from export import export_model
from export.artifact import Artifact
from zoo.data import Dataset, load_dataset


@pytest.fixture(scope="session")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="session")
def exported(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    run = sample_run(tmp_path_factory.mktemp("runs") / "resnet_20-s0", data)
    return export_model(run.path, data=data)


@pytest.fixture(scope="session")
def raw(exported: Artifact, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """From bytes to probabilities, of a copy of the same run."""
    run = shutil.copytree(run_of(exported), tmp_path_factory.mktemp("raw") / "run")
    return export_model(run, data=data, raw=True)


@pytest.fixture(scope="session")
def in_openvino(
    exported: Artifact, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """In OpenVINO's format, of a copy of the same run."""
    if find_spec("openvino") is None:
        pytest.skip("needs openvino: pip install '.[openvino]'")
    run = shutil.copytree(run_of(exported), tmp_path_factory.mktemp("openvino") / "run")
    return export_model(run, target="openvino", data=data)


@pytest.fixture(scope="session")
def bare(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without its artifact."""
    run = tmp_path_factory.mktemp("bare") / "runs" / "resnet_20-s0"
    return shutil.copytree(run_of(exported), run, ignore=shutil.ignore_patterns("artifacts"))


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bare, tmp_path / "runs" / bare.name)


@pytest.fixture
def copied(exported: Artifact, tmp_path: Path) -> Path:
    """The exported file in a copy of its run."""
    run = shutil.copytree(run_of(exported), tmp_path / "runs" / "copy")
    return run / "artifacts" / exported.path.name
