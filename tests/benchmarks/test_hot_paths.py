"""The time of each hot path: make bench, or pytest tests/benchmarks with any --benchmark option.

A row whose package is missing is skipped with its name.
"""

from pathlib import Path

import pytest
from benchmarks.gates.hot_paths import HotPath, hot_paths
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exported files are kept, so that each is written once."""
    return tmp_path_factory.mktemp("exported")


@pytest.mark.parametrize("path", list(hot_paths()), ids=lambda path: path.name)
# The exporter and the compiler warn of their own parts; the tests of export hold them to silence.
@pytest.mark.filterwarnings("default")
def test_hot_path(benchmark: BenchmarkFixture, path: HotPath, folder: Path) -> None:
    missing = path.missing()
    if missing is not None:
        pytest.skip(missing)
    benchmark.group = path.group
    call = path.prepare(folder)

    answer = benchmark.pedantic(call, warmup_rounds=0 if path.is_cold else 3, rounds=path.rounds)

    assert path.is_right(answer)
