"""The smallest network of each family in int8."""

from pathlib import Path

import pytest
from model_checks import smallest_of_each_family
from network_exports import assert_int8_agrees, prepared
from sample_run import stored

from zoo.data import load_dataset

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_int8(name: str, tmp_path: Path) -> None:
    data = load_dataset("cifar100-mini")

    assert_int8_agrees(prepared(name, stored(data.test.images[:32], data)), data, tmp_path)
