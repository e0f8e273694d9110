import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_records import ENVIRONMENT, gap, measurement

import profiling.roofline
from profiling.cli import main
from profiling.footprint import Footprint
from profiling.record import FAILED
from profiling.report import write_report
from profiling.report_cli import main_report
from profiling.roofline import (
    Roof,
    attainable_flops,
    keep,
    kept,
    measure_here,
    precisions,
    reached_flops,
    read_roof,
    read_roofs,
    roof_of,
    share_of_roof,
    text,
)
from profiling.tables import cells, csv_text, efficiency_tables
from zoo.errors import MachineError, RecordError

# 100 MFLOPs an image, which moves 1 MB in float32; weights of 4 MB.
FOOTPRINT = Footprint(
    buffers=0,
    state_bytes=4_000_000,
    norm_flops=0,
    weights=1_000_000,
    moved=250_000,
    peaks=((0, 100_000),),
)
RECORD = measurement(p50_ms=1.0, macs=50_000_000, footprint=FOOTPRINT)
ROOF = Roof(
    environment=ENVIRONMENT,
    copies=((1_000_000, 100e9), (4_000_000, 5e9), (100_000_000, 2e9)),
    products=(("fp32", 1e12), ("int8", 4e12)),
    created_at="2026-01-01T00:00:00+00:00",
)


def test_the_copy_bandwidth_is_the_bound_of_a_small_batch() -> None:
    # 5 MB moved, with 4.1 MB in use: 1 ms at 5 GB/s.
    assert RECORD.intensity == 20.0
    assert attainable_flops(RECORD, ROOF) == 20.0 * 5e9
    assert reached_flops(RECORD) == 100e6 / 1e-3
    assert share_of_roof(RECORD, ROOF) == 1.0


def test_the_matrix_rate_is_the_bound_of_dense_work() -> None:
    dense = replace(RECORD, macs=50_000_000_000)

    assert attainable_flops(dense, ROOF) == 1e12
    assert share_of_roof(dense, ROOF) == pytest.approx(100.0)  # as measured, even where absurd


def test_int8_moves_a_quarter() -> None:
    eighth = replace(RECORD, precision="int8")

    # 1.25 MB moved, with 1.025 MB in use, for which the copy of 1 MB stands.
    assert eighth.intensity == 80.0
    assert attainable_flops(eighth, replace(ROOF, products=(("int8", 1e13),))) == 80.0 * 100e9
    assert attainable_flops(eighth, ROOF) == 4e12
    assert share_of_roof(replace(eighth, precision="fp16"), ROOF) is None  # no such units


@pytest.mark.parametrize(
    "record",
    [
        measurement(p50_ms=1.0),  # of an older bench: nothing counted
        replace(RECORD, macs=None),
        replace(RECORD, environment=replace(ENVIRONMENT, threads=1)),
        gap(FAILED, "no", macs=1, footprint=FOOTPRINT),
    ],
)
def test_no_share_without_all_its_parts(record: Any) -> None:
    assert share_of_roof(record, ROOF) is None
    assert share_of_roof(RECORD, None) is None


def test_bandwidth_is_never_that_of_a_larger_copy_alone() -> None:
    noisy = replace(ROOF, copies=((1_000, 1e9), (2_000, 3e9), (4_000, 2e9)))

    assert [noisy.bandwidth(size) for size in (10, 1_500, 3_000, 9_000)] == [3e9, 3e9, 3e9, 2e9]


def test_a_roof_needs_rates() -> None:
    for changes in ({"copies": ()}, {"products": (("fp32", 0.0),)}):
        with pytest.raises(ValueError, match="do not hold rates above 0"):
            replace(ROOF, **changes)


def test_files(tmp_path: Path) -> None:
    path = keep(ROOF, tmp_path)
    newer = replace(ROOF, created_at="2026-02-01T00:00:00+00:00")
    keep(newer, tmp_path / "other")

    assert path == tmp_path / "roofline" / f"{ENVIRONMENT.key}.json"
    assert read_roof(path) == ROOF
    assert kept(ENVIRONMENT.key, tmp_path) == ROOF
    assert kept(ENVIRONMENT.key, tmp_path, tmp_path / "other") == newer
    assert kept("no such key", tmp_path) is None
    assert read_roofs(tmp_path) == {ENVIRONMENT.key: newer}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON .*: is it damaged"),
        ("[]", "is no roofline: it states no schema; remove it and run zoo-bench --roofline"),
        ('{"schema": 99}', "has schema 99, this version reads up to 1: update cifar-zoo"),
        ('{"schema": 1}', r"is a damaged roofline \(environment is missing\): remove it and run"),
    ],
)
def test_damaged_files(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "roofline" / "key.json"
    path.parent.mkdir()
    path.write_text(content)

    with pytest.raises(RecordError, match=message):
        read_roofs(tmp_path)
    assert kept("key", tmp_path) is None


def test_a_report_leaves_a_damaged_roof_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RECORD.write(tmp_path)
    (tmp_path / "roofline").mkdir()
    path = tmp_path / "roofline" / "key.json"
    path.write_text("{}")

    code = main_report([str(tmp_path), "--out", str(tmp_path / "report")])

    assert code == 1
    assert capsys.readouterr().err == (
        f"zoo-report: left out: {path} is no roofline: it states no schema; remove it and run "
        "zoo-bench --roofline\n"
    )
    assert not (tmp_path / "report" / "roofline.svg").exists()


def test_tables_and_plot_show_the_share(tmp_path: Path) -> None:
    large = replace(RECORD, batch=8, model="resnet_20")
    roofs = {ENVIRONMENT.key: ROOF}

    report = write_report([RECORD, large], tmp_path, readme=tmp_path / "README.md", roofs=roofs)

    (table,) = efficiency_tables([RECORD, large], roofs)
    header, row = cells(table)
    shown = dict(zip(header, row, strict=True))
    assert (shown["b1 roof %"], shown["b8 FLOPs/byte"]) == ("100.0", "66.7")
    assert shown["b8 activations MiB"] == "0.763"
    first = csv_text([table]).splitlines()[1]
    assert first.endswith(",1.0")
    svg = (tmp_path / "roofline.svg").read_text()
    for label in ("eager fp32 b1", "eager fp32 b8", "roof fp32", "resnet_20"):
        assert f"<!-- {label} -->" in svg
    assert report.page.read_text().count("<svg") == 2
    assert "![Speed under the roof](./roofline.svg)" in (tmp_path / "README.md").read_text()


def test_without_a_roof_there_is_neither_column_nor_plot(tmp_path: Path) -> None:
    write_report([RECORD], tmp_path, roofs={ENVIRONMENT.key: ROOF})

    write_report([RECORD], tmp_path)

    (table,) = efficiency_tables([RECORD])
    assert not any("roof" in title for title in cells(table)[0])
    assert not list(tmp_path.glob("roofline.*"))


def test_precisions_of_a_chip() -> None:
    assert precisions("cpu", ("avx2", "fma")) == ["fp32"]
    assert precisions("cpu", ("avx512_vnni",)) == ["fp32", "int8"]
    assert precisions("cpu", ("avx512_bf16", "amx_int8")) == ["fp32", "bf16", "int8"]


def test_text_for_people() -> None:
    assert text(ROOF) == (
        f"Example CPU, 2 threads, torch 2.14.1 [{ENVIRONMENT.key}]\n"
        "what                                  rate\n"
        "copy, 0.953674 MiB in use       100.0 GB/s\n"
        "copy, 3.8147 MiB in use           5.0 GB/s\n"
        "copy, 95.3674 MiB in use          2.0 GB/s\n"
        "matrix product, fp32       1,000.0 GFLOP/s\n"
        "matrix product, int8       4,000.0 GFLOP/s"
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small copies and products, a few times."""
    monkeypatch.setattr(profiling.roofline, "COPY_BYTES", {"cpu": (2**12, 2**16)})
    monkeypatch.setattr(profiling.roofline, "SIDES", {"cpu": (16, 32)})
    monkeypatch.setattr(profiling.roofline, "TIMED_S", 0.002)


@pytest.mark.usefixtures("few")
def test_measured_here() -> None:
    found = measure_here("cpu")

    assert [size for size, _ in found["copies"]] == [2**12, 2**16]
    assert found["products"][0][0] == "fp32"
    assert all(rate > 1e6 for _, rate in (*found["copies"], *found["products"]))


class Counted:
    """Gives the same roof each time and counts how often."""

    def __init__(self, roof: Roof | None, *, is_disturbed: bool = False) -> None:
        self.roof, self.is_disturbed, self.calls = roof, is_disturbed, 0

    def __call__(self, device: str, threads: int | None) -> tuple[Roof, bool]:
        self.calls += 1
        if self.roof is None:
            raise MachineError(f"no roofline of device {device!r}: it broke")
        return self.roof, self.is_disturbed


def test_measured_once_and_kept_beside_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    measured, said = Counted(ROOF), []
    monkeypatch.setattr(profiling.roofline, "measure", measured)

    first = roof_of([RECORD], "cpu", None, tmp_path / "a", said.append)
    again = roof_of([RECORD], "cpu", None, tmp_path / "b", said.append)

    assert first == again == ROOF
    assert measured.calls == 1
    assert said == ["measuring once how fast this device copies and multiplies"]
    for folder in ("cache", "a", "b"):
        assert kept(ENVIRONMENT.key, tmp_path / folder) == ROOF


def test_a_roof_of_a_busy_machine_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    measured, said = Counted(ROOF, is_disturbed=True), []
    monkeypatch.setattr(profiling.roofline, "measure", measured)

    found = [roof_of([RECORD], "cpu", None, tmp_path / "a", said.append) for _ in range(2)]

    assert found == [ROOF, ROOF]
    assert measured.calls == 2
    assert said[1] == (
        "others used the CPU while the roofline was measured: it is used this once and not kept"
    )
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_who_uses_the_cpu_meanwhile_is_noticed() -> None:
    with subprocess.Popen((sys.executable, "-c", "while True: pass")) as other:
        try:
            _, is_disturbed = profiling.roofline.measure("cpu", 1)
        finally:
            other.kill()

    assert is_disturbed


def test_a_roof_that_nothing_needs_or_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    measured, said = Counted(None), []
    monkeypatch.setattr(profiling.roofline, "measure", measured)

    needless = roof_of([gap(FAILED, "no"), measurement()], "cpu", None, tmp_path, said.append)
    broken = roof_of([RECORD], "cpu", None, tmp_path, said.append)

    assert needless is broken is None
    assert measured.calls == 1
    assert said[1:] == [
        "no roofline of device 'cpu': it broke; without it no share of the roof is told"
    ]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(blocker))
    monkeypatch.setattr(profiling.roofline, "measure", Counted(ROOF))
    said: list[str] = []

    assert roof_of([RECORD], "cpu", None, tmp_path / "out", said.append) == ROOF

    assert said[1] == f"the roofline is not kept: {blocker / 'roofline'}: Not a directory"
    assert kept(ENVIRONMENT.key, tmp_path / "out") == ROOF


@pytest.mark.slow
def test_the_command_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))

    code = main(["--roofline", "--threads", "1", "--json", "--out", str(tmp_path / "out")])

    shown = json.loads(capsys.readouterr().out)
    (roof,) = read_roofs(tmp_path / "out").values()
    assert code == 0
    assert roof == kept(roof.environment.key, tmp_path / "cache")
    assert roof.environment.threads == 1
    assert shown == json.loads(json.dumps(roof.to_json()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resnet_20", "--roofline"),
            "--roofline measures the device alone: name no run or model beside it",
        ),
        (
            ("resnet_20", "--json"),
            "--json is for --compare, --cost, --layers or --roofline: add one of them",
        ),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    assert capsys.readouterr().err == f"zoo-bench: {message}\n"
