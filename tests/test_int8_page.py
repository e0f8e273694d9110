"""What int8 costs in accuracy: how it is stored, told, and made."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmarks.artifact_bench.int8 import Cost, Int8, page, read_cost
from sample_run import sample_run

from export.mcnemar import Comparison
from zoo.data import load_dataset
from zoo.environment import capture
from zoo.errors import RecordError

BENCHMARKS = Path(__file__).parent / "benchmarks"
RESULTS = BENCHMARKS.parents[1] / "bench_results" / "int8"
MINI = "cifar100-mini"


def measured(target: str, top1: float, p_value: float = 0.5, **facts: Any) -> Int8:
    compared = Comparison(
        images=10_000,
        eager_top1=0.30,
        top1=top1,
        only_eager_right=80,
        only_artifact_right=60,
        p_value=p_value,
        max_drop=0.005,
        is_gate=True,
    )
    return Int8(target=target, comparison=compared, layers=22, **facts)


def cost(model: str, *targets: Int8) -> Cost:
    environment = capture("cpu").to_json()
    return Cost(
        model=model,
        trained_images=163_840,
        dataset="cifar100",
        dataset_digest="digest",
        val_images=5000,
        weights_sha256="ab" * 32,
        environment=environment,
        quantised_in=environment,
        commit="abc",
        targets=targets,
    )


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| -")
    ]


def test_losses_are_in_points_beside_what_chance_says() -> None:
    text = page(
        [
            cost(
                "resnet_20",
                measured("onnx", 0.2951, kept_float=("stem", "head"), method="entropy"),
                measured("openvino", 0.301, p_value=0.123),
            )
        ]
    )

    assert "- 1 of 1 networks have an int8 artifact that loses less than 0.5 points" in text
    assert rows(text)[1] == [
        *("resnet_20", "resnet", "163,840", "30.00"),
        *("29.51", "0.49", "0.5", "20 of 22", "8", "entropy"),
        *("30.10", "-0.10", "0.12", "22 of 22", "8", "minmax"),
    ]


def test_what_falls_short_is_named() -> None:
    failed = Int8(target="openvino", reason="int8: the graph has no convolution")

    text = page([cost("resnet_20", measured("onnx", 0.295), failed)])

    assert "- 0 of 1 networks have an int8 artifact" in text
    assert "- resnet_20, onnx: loses 0.50 points\n" in text
    assert "- resnet_20, openvino: int8: the graph has no convolution\n" in text
    assert rows(text)[1][-6:] == [""] * 6


def test_what_is_still_to_be_measured_is_named() -> None:
    assert "\nNot measured yet: vit_tiny, resnet_18.\n" in page([], ["vit_tiny", "resnet_18"])
    assert "Not measured" not in page([cost("resnet_20", measured("onnx", 0.3))])


def test_machines_and_data_sets_are_apart() -> None:
    one = cost("resnet_20", measured("onnx", 0.3))
    elsewhere = replace(one, quantised_in={**one.quantised_in, "cpu": "another"})
    on_others = replace(one, dataset="cifar10", dataset_digest="other")

    text = page([one, elsewhere, on_others])

    assert text.count("\n## ") == 3
    assert text.count("- 1 of 1 networks") == 3


@pytest.mark.parametrize(("epoch_steps", "images"), [(None, 90), (2, 60), (5, 90)])
def test_images_that_passed_through_a_training(
    epoch_steps: int | None, images: int, tmp_path: Path
) -> None:
    meta = sample_run(tmp_path / "run", load_dataset(MINI)).meta
    dataset = replace(meta.dataset, train_images=39)
    recipe = {"batch_size": 10, "epoch_steps": epoch_steps}
    trained = replace(meta, dataset=dataset, recipe=recipe, epochs_done=3)

    found = Cost.of(trained, [], quantised_in={}, commit=None)

    assert found.trained_images == images


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "resnet_20.json"
    written = cost("resnet_20", measured("onnx", 0.3, kept_float=("stem",)))
    path.write_text(json.dumps(written.to_json()))

    assert read_cost(path) == written


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "resnet_20.json"
    path.write_text("{}")

    with pytest.raises(RecordError) as error:
        read_cost(path)

    assert str(error.value) == (
        f"{path} is no record of int8 (model is missing): remove it to measure again"
    )


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("int8_families")


def test_the_committed_page_is_what_the_records_say(script: ModuleType) -> None:
    found = {path.stem: read_cost(path) for path in (RESULTS / script.RECORDS).glob("*.json")}

    assert found
    ordered = [found[name] for name in script.NETWORKS if name in found]
    missing = [name for name in script.NETWORKS if name not in found]
    assert (RESULTS / script.PAGE).read_text() == page(ordered, missing)


@pytest.mark.slow
def test_a_network_is_trained_quantised_and_left_the_next_time(
    script: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--models", "resnet_20", "--dataset", MINI, "--max-macs", "2e10"]
    options += ["--trained", str(tmp_path), "--runs", str(tmp_path / "runs")]
    options += ["--out", str(tmp_path / "out")]

    code = script.main(options)

    record = tmp_path / "out" / script.RECORDS / "resnet_20.json"
    found = read_cost(record)
    assert code == 0
    assert found.trained_images == 4 * 5 * 8
    assert found.val_images == 400
    assert [one.target for one in found.targets] == ["onnx", "openvino"]
    assert all(one.comparison.images == 1000 for one in found.targets if one.reason is None)
    assert not list((tmp_path / "runs" / "resnet_20-s0").glob("artifacts/*"))

    text = record.read_text()
    assert script.main(options) == 0
    assert record.read_text() == text
    record.unlink()
    assert script.main(options) == 0  # of the same weights
    again = read_cost(record)
    assert (again.weights_sha256, again.targets) == (found.weights_sha256, found.targets)
    assert capfd.readouterr().err.count("zoo-train resnet_20 --recipe quick") == 1


def test_an_unknown_network_is_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = script.main(["--models", "resnet_21", "--out", str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == (
        "int8: no model named 'resnet_21': did you mean resnet_32 or resnet_20 or resnet_18?\n"
    )
