"""The committed short trainings show that every network of the zoo learns."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from zoo.data import load_dataset
from zoo.models import MODELS

SCRIPT = Path(__file__).parent / "benchmarks" / "short_training.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("short_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["short_training"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_a_training_that_lowers_the_loss(script: ModuleType) -> None:
    records = script.read(script.FOLDER)

    assert [record.model for record in records] == sorted(MODELS)
    for record in records:
        assert record.loss_after < record.loss_before, record.model
        assert record.steps >= script.LEAST_STEPS, record.model
        assert (record.batch_size, record.steps) == script.bound(record.model), record.model
        work = 3 * MODELS[record.model].macs * record.batch_size * record.steps
        assert record.training_macs == work, record.model


def test_the_committed_table_is_that_of_the_records(script: ModuleType) -> None:
    assert (script.FOLDER / script.TABLE).read_text() == script.table(script.read(script.FOLDER))


@pytest.mark.slow
def test_a_training_is_the_same_twice(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "WORK", 1e9)
    data = load_dataset("cifar100-mini")

    first, second = (script.train_shortly("ghost_resnet_20", data) for _ in range(2))

    assert first.steps == script.LEAST_STEPS
    assert first.loss_before == second.loss_before
    assert first.loss_after == pytest.approx(second.loss_after, rel=1e-6)
    assert first.loss_after != first.loss_before
