import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import ENVIRONMENT, measurement
from study_files import ablation, arm, comparison, open_trial, table_1, trial, write_sweep

from profiling.report import write_report
from profiling.report_cli import main_report
from profiling.study.data import Comparison
from profiling.study.report import former_files, study_files

KEY = ENVIRONMENT.key
TABLES = (
    f"table1-cifar100-{KEY}",
    f"table1-groups-cifar100-{KEY}",
    f"ablation-eca_kernel-cifar100-{KEY}",
)
SMALL = comparison("eca_kernel", arm("baseline", trial()))


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    return [table_1(), ablation()]


@pytest.fixture(scope="module")
def files(comparisons: list[Comparison]) -> dict[str, bytes]:
    return study_files(comparisons)


def test_every_form_of_every_table(files: dict[str, bytes]) -> None:
    for table in TABLES:
        for form in ("csv", "md", "tex", "json"):
            assert f"{table}.{form}" in files
    assert {"contradictions.md", "contradictions.json", "index.md", "index.html"} <= files.keys()
    assert {"accuracy.png", "accuracy.svg", "ablations.svg"} <= files.keys()


def test_the_list_names_every_file(files: dict[str, bytes]) -> None:
    assert json.loads(files["index.json"])["files"] == sorted(files)


def test_every_link_leads_somewhere(files: dict[str, bytes]) -> None:
    page, index = files["index.html"].decode(), files["index.md"].decode()

    targets = re.findall(r'(?:src|href)="([^#"]+)"', page) + re.findall(r"\]\(([^)]+)\)", index)
    assert set(targets) <= files.keys()
    assert {name for name in files if name != "index.json"} <= {*targets, "index.md"}
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page


def test_bounded_runs_are_called_so_everywhere(files: dict[str, bytes]) -> None:
    notice = (
        "cifar100: 11 of 11 trainings are done; bounded runs, each training to 200 GMACs or 20 "
        "steps, whichever is more, not the recipe's full length."
    )
    assert notice in files["index.html"].decode().replace("&#x27;", "'")
    assert notice in files["index.md"].decode()
    for table in TABLES:
        for form in ("md", "tex", "json"):
            assert "bounded runs" in files[f"{table}.{form}"].decode()


def test_the_page_holds_tables_contradictions_and_figures(files: dict[str, bytes]) -> None:
    page = files["index.html"].decode()

    assert page.count("<h2 id=") == len(TABLES) + 2
    assert "<td>resnet_56</td>" in page
    assert "top-5" in page
    assert '<img src="accuracy.svg"' in page
    assert "<script" not in page


def test_nothing_trained_is_no_report() -> None:
    assert study_files([comparison("eca_kernel", arm("baseline", open_trial()))]) == {}


# ---- the command -----------------------------------------------------------------------------


def test_command(
    comparisons: list[Comparison],
    files: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_sweep(tmp_path / "a", *comparisons)
    write_sweep(tmp_path / "b", SMALL)
    measurement().write(tmp_path / "plain")
    out = tmp_path / "report"
    folder = out / "study"

    assert main_report([str(tmp_path / "a"), "--out", str(out)]) == 0
    # The same bytes as from the comparisons themselves, which were drawn before.
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert (out / "efficiency.md").is_file()
    assert capsys.readouterr().out.endswith(f"{out}/index.html\n{folder}/index.html\n")

    (folder / "mine.txt").write_text("mine")
    assert main_report([str(tmp_path / "b"), "--out", str(out)]) == 0
    # What the earlier report had written is gone, and nothing else.
    names = {path.name for path in folder.iterdir()}
    assert names == former_files(folder) | {"mine.txt"}
    assert not any(name.startswith("table1") for name in names)
    assert f"{TABLES[2]}.csv" in names

    (folder / "mine.txt").unlink()
    capsys.readouterr()
    assert main_report([str(tmp_path / "plain"), "--out", str(out)]) == 0
    # Without a sweep there is no study.
    assert capsys.readouterr().out.endswith("report/index.html\n")
    assert not folder.exists()


def test_each_environment_has_tables_and_a_price_has_columns(tmp_path: Path) -> None:
    base = trial()
    gpu = replace(ENVIRONMENT, device="Example GPU")
    there = tuple(replace(record, environment=gpu) for record in base.measurements)
    both = replace(base, measurements=(*base.measurements, *there))
    write_sweep(tmp_path, comparison("eca_kernel", arm("baseline", both)))
    out = tmp_path / "report"

    assert main_report([str(tmp_path), "--out", str(out), "--price-per-hour", "36"]) == 0

    for key in (KEY, gpu.key):
        name = f"ablation-eca_kernel-cifar100-{key}.json"
        (row,) = json.loads((out / "study" / name).read_text())["rows"]
        # 36 an hour are 0.01 a second, in which onnx classifies 1280 images at batch 256.
        assert row["price_per_million"] == pytest.approx(0.01 * 1e6 / 1280)


def test_damage_is_named_and_accuracies_alone_are_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = trial(measurements=()), trial("resnet_32", measurements=())
    write_sweep(tmp_path, comparison("eca_kernel", arm("baseline", good), arm("k3", bad)))
    job = tmp_path / "jobs" / f"{bad.id}.json"
    job.write_text("{")

    assert main_report([str(tmp_path), "--out", str(tmp_path / "report")]) == 1

    assert f"zoo-report: left out: {job} is not valid JSON" in capsys.readouterr().err
    table = tmp_path / "report" / "study" / "ablation-eca_kernel-cifar100.json"
    assert [row["top1"] is None for row in json.loads(table.read_text())["rows"]] == [False, True]


def test_a_list_that_names_other_folders_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"files": ["a.csv", "../b.csv", "c/d.csv"]}')

    assert former_files(tmp_path) == {"a.csv"}


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}', '{"files": [3]}'])
def test_a_damaged_list_names_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)

    assert former_files(tmp_path) == set()


def test_a_study_that_cannot_be_written_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("a file")

    with pytest.raises(OSError, match="study"):
        write_report(
            [measurement(top1=None)], tmp_path, more={tmp_path / "study" / "index.md": b"text"}
        )

    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    write_sweep(tmp_path, SMALL)
    code = (
        "import sys\n"
        "from profiling.report_cli import main_report\n"
        f"assert main_report([{str(tmp_path)!r}, '--out', {str(tmp_path / 'report')!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run((sys.executable, "-c", code), check=True, stdout=subprocess.DEVNULL)

    assert (tmp_path / "report" / "study" / "contradictions.md").exists()
