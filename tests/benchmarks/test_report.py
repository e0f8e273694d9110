"""The time of zoo-report on a study of the real size: make bench."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from study_files import big_study, trials_of, write_sweep

from profiling.report_cli import main_report
from zoo.models import MODELS

RECORDS = 1_000


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of 252 jobs with four records each, in a survey and 20 ablations."""
    study = big_study(list(MODELS)[:24], arms=3, per_arm=3)
    jobs = {one.id: one for comparison in study for one in trials_of(comparison)}
    assert sum(len(one.measurements) for one in jobs.values()) >= RECORDS
    return write_sweep(tmp_path_factory.mktemp("sweep"), *study)


def test_report_of_a_whole_study(
    benchmark: BenchmarkFixture,
    sweep: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark.group = "report"

    code = benchmark.pedantic(
        main_report, ([str(sweep), "--out", str(tmp_path)],), warmup_rounds=0, rounds=1
    )

    assert code == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path}/study/index.html\n")
    assert len(list((tmp_path / "study").glob("ablation-*.csv"))) == 20
    assert (tmp_path / "study" / "accuracy_latency.svg").is_file()
