import re
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import ENVIRONMENT, SOURCE, gap, measurement

from profiling.plots import pareto_plot
from profiling.record import SKIPPED, GpuState, HostLoad, Measurement
from profiling.report import DEMONSTRATION, write_report
from profiling.report_cli import main_report
from profiling.tables import efficiency_tables

NAMES = ("efficiency.csv", "efficiency.md", "index.html", "pareto.png", "pareto.svg")


@pytest.fixture
def records() -> list[Measurement]:
    """Two models on up to three backends, one of which is missing."""
    other = replace(SOURCE, run="resnet_56-s0", weights_sha256="cc" * 32)
    deep = {"model": "resnet_56", "source": other, "params": 861_620, "top1": 0.68}
    return [
        measurement(p50_ms=4.0),
        measurement(p50_ms=320.0, batch=256),
        measurement(p50_ms=1.0, backend="onnx", artifact_sha256="bb" * 32),
        measurement(p50_ms=11.0, **deep),
        measurement(p50_ms=3.0, backend="onnx", **deep),
        gap(SKIPPED, "no C++ compiler <was> found", backend="compile"),
    ]


def test_same_records_same_bytes(records: list[Measurement], tmp_path: Path) -> None:
    first = write_report(records, tmp_path / "a", readme=tmp_path / "a" / "README.md")
    second = write_report(records[::-1], tmp_path / "b", readme=tmp_path / "b" / "README.md")

    assert sorted(path.name for path in first.files) == sorted((*NAMES, "README.md"))
    for one, other in zip(first.files, second.files, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_page_stands_alone(records: list[Measurement], tmp_path: Path) -> None:
    text = write_report(records, tmp_path).page.read_text()

    assert text.count("<svg") == 1
    assert not re.search(r"(src|href)=\"(?!#)", text)  # SVG refers to its own ids alone
    assert "<td>resnet_56-s0</td>" in text
    assert '<td class="number">61.23</td>' in text
    assert "resnet_20-s0 compile fp32 b1: skipped (no C++ compiler &lt;was&gt; found)" in text
    assert "Example CPU, 2 threads, torch 2.14.1" in text
    assert DEMONSTRATION not in text


def test_plot_names_every_row(records: list[Measurement], tmp_path: Path) -> None:
    write_report(records, tmp_path)

    svg = (tmp_path / "pareto.svg").read_text()
    for label in ("resnet_20-s0 eager", "resnet_20-s0 onnx", "resnet_56-s0 onnx"):
        assert f"<!-- {label} -->" in svg
    assert "<!-- Pareto front -->" in svg
    assert "dc:date" not in svg
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_plot_of_many_rows_names_those_on_the_front(tmp_path: Path) -> None:
    runs = [
        replace(SOURCE, run=f"run-{number}", weights_sha256=f"{number:064}") for number in range(31)
    ]
    best, *rest = runs
    others = [measurement(p50_ms=9.0, source=source) for source in rest]

    write_report([measurement(p50_ms=1.0, top1=0.7, source=best), *others], tmp_path)

    svg = (tmp_path / "pareto.svg").read_text()
    assert "<!-- run-0 eager -->" in svg
    assert "<!-- run-1 eager -->" not in svg


def test_plot_leaves_no_settings_behind(records: list[Measurement]) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)

    pareto_plot(efficiency_tables(records))

    assert dict(matplotlib.rcParams) == before


def test_any_name_of_a_run_fits_into_tables_and_plot(tmp_path: Path) -> None:
    name = "\u5b9f\u9a13 a|b <script>\n$x$"
    record = measurement(p50_ms=4.0, source=replace(SOURCE, run=name))

    report = write_report([record], tmp_path)  # a warning would be an error

    header, _, row = [line for line in report.markdown.splitlines() if line.startswith("|")]
    assert row.replace(r"\|", "").count("|") == header.count("|")
    assert "\u5b9f\u9a13 a\\|b <script>?$x$" in row
    assert "<script>" not in report.page.read_text()


def test_subset_is_called_a_demonstration(tmp_path: Path) -> None:
    mini = replace(SOURCE, dataset="cifar100-mini")

    report = write_report([measurement(source=mini)], tmp_path)

    assert DEMONSTRATION in report.page.read_text()
    assert DEMONSTRATION in (tmp_path / "efficiency.md").read_text()


def test_tables_are_kept_apart(tmp_path: Path) -> None:
    other = measurement(environment=replace(ENVIRONMENT, cpu="Another CPU"))

    report = write_report([measurement(), other], tmp_path)

    assert report.markdown.count("## cifar100\n") == 2
    assert report.markdown.count("Example CPU, 2 threads") == 1
    assert report.markdown.count("Another CPU, 2 threads") == 1


def test_without_an_accuracy_there_is_no_plot(records: list[Measurement], tmp_path: Path) -> None:
    write_report(records, tmp_path)

    report = write_report([measurement(top1=None)], tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == list(NAMES[:3])
    assert "<svg" not in report.page.read_text()


def test_wide_intervals_are_said(tmp_path: Path) -> None:
    noisy = measurement(samples_ms=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))

    report = write_report([noisy], tmp_path)

    assert "was not known better when its measurement ended" in report.markdown
    assert "3.50 +-71.4% (6)" in report.markdown


def test_command(
    records: list[Measurement],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for record in records[:3]:
        record.write(Path("runs/resnet_20-s0"))
    for record in records[3:]:
        record.write(Path("bench_results"))

    assert main_report([]) == 0

    out = capsys.readouterr().out
    assert "| resnet_56 | resnet_56-s0 |" in out
    assert out.endswith("report/index.html\n")
    assert sorted(path.name for path in Path("report").iterdir()) == sorted(NAMES)


def test_readme_of_committed_records(records: list[Measurement], tmp_path: Path) -> None:
    folder = tmp_path / "bench_results"
    for record in records:
        record.write(folder)

    readme = folder / "README.md"
    assert main_report([str(folder), "--out", f"{folder}/report", "--readme", str(readme)]) == 0

    text = readme.read_text()
    assert "![Accuracy against latency](report/pareto.svg)" in text
    assert "| resnet_56 | resnet_56-s0 |" in text


def test_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    for arguments, sought in (([], "runs and bench_results"), (["empty"], "empty")):
        assert main_report(arguments) == 2
        err = capsys.readouterr().err
        assert err == f"zoo-report: no records in {sought}: measure a run with zoo-bench\n"
    assert not (tmp_path / "report").exists()


def test_damaged_records_are_named_and_left_out(
    records: list[Measurement], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [record.write(tmp_path) for record in records]
    paths[0].write_text("{")
    paths[2].write_text(paths[2].read_text().replace('"schema": 2', '"schema": 3'))

    assert main_report([str(tmp_path), "--out", str(tmp_path / "report")]) == 1

    out, err = capsys.readouterr()
    assert "| resnet_56 | resnet_56-s0 |" in out
    assert len(err.splitlines()) == 2
    assert f"zoo-report: left out: {paths[0]} is not valid JSON" in err
    assert (
        f"zoo-report: left out: {paths[2]} has schema 3, this version reads up to 2: update "
        "cifar-zoo\n" in err
    )


def test_nothing_but_damage_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = measurement().write(tmp_path)
    path.write_text("{")

    assert main_report([str(tmp_path), "--out", str(tmp_path / "report")]) == 2

    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"zoo-report: left out: {path} is not valid JSON")
    assert second == f"zoo-report: no records in {tmp_path}: measure a run with zoo-bench"
    assert not (tmp_path / "report").exists()


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    busy = measurement(host=HostLoad(others=0.42, steal=0.03))
    quiet = measurement(batch=256, host=HostLoad(others=0.01, steal=0.0))

    report = write_report([busy, quiet], tmp_path)

    assert (
        "The machine was busy during 1 measurement: up to 42% of the CPU's time went to other "
        "processes and 3% to other machines." in report.markdown
    )
    assert "busy" not in write_report([quiet], tmp_path).markdown


def test_a_throttled_gpu_is_said(tmp_path: Path) -> None:
    slow = measurement(gpu=GpuState(throttled_by=("temperature", "power cap")))

    report = write_report([slow], tmp_path)

    assert "The GPU was slowed down by: power cap, temperature." in report.markdown


def test_report_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measurement().write(tmp_path)
    (tmp_path / "file").write_text("")

    assert main_report([str(tmp_path), "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("zoo-report: ")


def test_a_file_that_cannot_be_written_leaves_all_as_it_was(
    records: list[Measurement], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match="file"):
        write_report(records, tmp_path / "report", readme=tmp_path / "file" / "README.md")

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "file"]
