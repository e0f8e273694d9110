import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import workers_of
from sample_records import gap, measurement
from sample_run import sample_run

import profiling.cli
import zoo.models
from profiling import benchmark, read_records
from profiling.choice import catalogue, paths_and_models
from profiling.cli import main
from profiling.record import FAILED, OK, SKIPPED, Measurement
from profiling.report import write_report
from profiling.runs import model_subjects
from profiling.tables import cells, csv_text, efficiency_tables
from zoo.cost import cost_of_model
from zoo.data import load_dataset
from zoo.models import MODELS, create_model
from zoo.session import open_untrained, open_untrained_compiled

OWN = """
import sys
from pathlib import Path
from torch import nn

def net(*, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))

class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3072, 100)

    def forward(self, x):
        return self.head(x.flatten(1)) * (1 if x.mean().item() < 100 else 2)

def looking(*, num_classes):
    return Looking()

def fails_later(*, num_classes):
    if Path(sys.argv[0]).name == "worker.py":
        raise RuntimeError("not today")
    return net(num_classes=num_classes)
"""
QUICK = ("--budget", "0.1", "--threads", "1", "--backend", "eager")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a module of the user's, which leaves with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


def by_model(folder: Path) -> dict[tuple[str, int], Measurement]:
    return {(record.model, record.batch): record for record in read_records(folder)}


@pytest.mark.slow
def test_a_sweep_from_names_to_records(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, left_over = profiling.cli._measure, []

    def watched(*arguments: Any) -> list[Measurement]:
        left_over.append(workers_of(os.getpid()))
        return measure(*arguments)

    monkeypatch.setattr(profiling.cli, "_measure", watched)

    code = main(
        ["resnet_20,segnext_mscan_tiny", "--model", "mine:fails_later,mine:net", "--batch", "1,2"]
        + [*QUICK, "--out", "out"]
    )

    out, err = capsys.readouterr()
    assert code == 1  # of the one that fails; the one after it is measured all the same
    assert left_over == [[]] * 4  # one model's workers are gone before the next begins
    records = by_model(Path("out"))
    models = ("resnet_20", "segnext_mscan_tiny", "mine:fails_later", "mine:net")
    assert set(records) == {(model, batch) for model in models for batch in (1, 2)}
    found = records["resnet_20", 2]
    assert (found.status, found.input, found.top1, found.source) == (OK, "random", None, None)
    assert (found.file_bytes, found.image_shape, found.is_untrained) == (None, (3, 32, 32), True)
    assert (found.params, found.macs) == (278_324, 40_818_944)
    assert (records["mine:net", 1].params, records["mine:net", 1].macs) == (307_300, 307_200)
    failed = records["mine:fails_later", 1]
    assert (failed.status, failed.reason) == (
        FAILED,
        "mine:fails_later failed: RuntimeError: not today",
    )
    assert out.startswith("resnet_20, untrained, 278,324 parameters, 40.82 M MACs")
    assert "zoo-bench: 2 of 4: segnext_mscan_tiny\n" in err
    assert "mine:fails_later eager b1: failed: mine:fails_later failed" in err


def test_other_image_sizes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-size", "40", "--batch", "1", *QUICK]

    assert main(["improved_resnet20_convnext_no_inverted", *options]) == 0

    (record,) = read_records(Path("bench_results"))
    expected = cost_of_model(create_model(record.model), (3, 40, 40))
    assert record.image_shape == (3, 40, 40)
    assert (record.params, record.macs) == (expected.params, expected.macs)
    assert f"{record.model}, untrained, 40x40, " in capsys.readouterr().out


def test_a_size_that_a_network_does_not_take_is_its_own_failure() -> None:
    eager, _ = model_subjects("mlp_mixer_nano", image_size=30)

    (record,) = benchmark([eager], batches=(1,), budget_s=0.1, threads=1)

    assert (record.status, record.params, record.macs) == (FAILED, None, None)
    assert (
        record.reason == "model 'mlp_mixer_nano' takes images of multiples of 4 from 8 on, got 30"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "resnet_21",
            "there is no run and no model resnet_21: did you mean resnet_32 or resnet_20 or "
            "resnet_18? (a run: zoo-train MODEL)",
        ),
        ("resnet_20,nowhere", "there is no run nowhere: train one with zoo-train MODEL"),
        (
            "mlp_mixer_nano --image-size 30",
            "model 'mlp_mixer_nano' takes images of multiples of 4 from 8 on, got 30",
        ),
        ("mine:net", "mine:net is code of your own: --model mine:net has it imported"),
        ("--model mine:gone", "mine.py has no function 'gone'"),
        ("timm:resnet19", "no model named 'timm:resnet19': did you mean timm:resnet18 or "),
        ("--zoo --group mpl", "no group named 'mpl': did you mean mlp?"),
        ("--group mlp", "--group chooses among the models of --zoo: add it"),
        ("resnet_20 --backend onnx", "resnet_20 without a run has no --backend onnx"),
    ],
)
def test_mistakes_end_before_anything_is_measured(
    here: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2

    err = capsys.readouterr().err
    assert err.startswith("zoo-bench: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("bench_results").exists()


def test_an_image_size_needs_a_network(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--image-size", "64"]) == 2
    assert "--image-size is for untrained networks" in capsys.readouterr().err


def test_a_path_wins_over_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("resnet_20").mkdir()

    assert main(["resnet_20"]) == 2
    assert capsys.readouterr().err.startswith("zoo-bench: resnet_20 is not a run: ")


def test_words(here: Path) -> None:
    Path("a,b").mkdir()

    paths, models = paths_and_models(
        ["a,b", "gone.onnx", "vit_tiny,resnet_20", "resnet_20", "timm:vit_tiny_patch16_224"]
    )

    assert paths == [Path("a,b"), Path("gone.onnx")]
    assert models == ["vit_tiny", "resnet_20", "timm:vit_tiny_patch16_224"]


def test_the_catalogue_and_its_groups() -> None:
    assert catalogue(None) == list(MODELS)
    assert {MODELS[name].group for name in catalogue(("mlp", "transformer"))} == {
        "mlp",
        "transformer",
    }


def test_the_run_of_a_network_of_ones_own_is_opened_by_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.append(str(here))
    run = str(sample_run(here / "run", load_dataset("cifar100-mini"), model="mine:net").path)

    assert main([run, "--batch", "1", *QUICK]) == 2
    assert "if you trust it, pass --model mine:net" in capsys.readouterr().err
    assert main([run, "--model", "mine:net", "--batch", "1", *QUICK]) == 0
    (record,) = read_records(here / "run")
    assert (record.model, record.status, record.is_untrained) == ("mine:net", OK, False)


def test_a_network_that_looks_at_values_is_measured_and_not_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.append(str(here))
    run = str(sample_run(here / "run", load_dataset("cifar100-mini"), model="mine:looking").path)
    options = [run, "--model", "mine:looking", "--batch", "1"]

    assert main([*options, *QUICK]) == 0
    (record,) = read_records(here / "run")
    assert (record.status, record.params, record.macs) == (OK, 307_300, None)
    assert main([*options, "--cost"]) == 0
    capsys.readouterr()
    assert main([*options, "--layers"]) == 1
    assert capsys.readouterr().err == (
        "zoo-bench: the layers of mine:looking cannot be timed: "
        "Tensor.item() cannot be called on meta tensors\n"
    )


def test_the_digest_is_that_of_the_structure() -> None:
    def digest(name: str, size: int = 32) -> str:
        eager, compiled = model_subjects(name, image_size=size)
        assert eager.artifact_sha256 == compiled.artifact_sha256
        return eager.artifact_sha256

    twins = ("eca_resnet_20", "ecanet20_adaptive")  # one structure, two names
    found = {digest("resnet_20"), digest("resnet_20", 64), digest("resnet_32"), *map(digest, twins)}

    assert len(found) == 5
    assert digest("resnet_20") in found


def test_the_parent_builds_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def watched(*arguments: Any, **options: Any) -> torch.nn.Module:
        network = create_model(*arguments, **options)
        devices.append({tensor.device.type for tensor in network.state_dict().values()})
        return network

    monkeypatch.setattr(zoo.models, "create_model", watched)
    monkeypatch.setattr("zoo.cost.cost_of_model", None)  # the catalogue knows its numbers

    eager, _ = model_subjects("resnet_18_ca")

    assert devices == [{"meta"}]
    assert (eager.params, eager.macs) == (
        MODELS["resnet_18_ca"].params,
        MODELS["resnet_18_ca"].macs,
    )


def test_what_is_measured_is_the_same_each_time() -> None:
    images = torch.randn(2, 3, 32, 32)

    first, second = (open_untrained("resnet_20@32", "cpu").run(images) for _ in range(2))

    assert torch.equal(first, second)
    assert first.shape == (2, 100)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT for another process")
def test_an_interrupt_keeps_the_records_so_far(here: Path) -> None:
    command = (sys.executable, "-m", "profiling.cli", "resnet_20", "resnet_32", "--batch", "1")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        (*command, *QUICK, "--out", "out"), env=environment, stderr=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stderr is not None
        for line in bench.stderr:
            if "2 of 2" in line:
                break

        bench.send_signal(signal.SIGINT)
        _, err = bench.communicate(timeout=60)

    assert (bench.returncode, err) == (130, "zoo-bench: interrupted\n")
    assert list(by_model(Path("out"))) == [("resnet_20", 1)]


def untrained(**changes: Any) -> Measurement:
    nothing = {"source": None, "file_bytes": None, "top1": None, "top5": None, "input": "random"}
    return measurement(**nothing | {"accuracy_images": None, "image_shape": (3, 32, 32)} | changes)


def test_tables_keep_untrained_networks_apart(tmp_path: Path) -> None:
    large = untrained(image_shape=(3, 64, 64), artifact_sha256="bb" * 32)
    foreign = measurement(source=None, model="stranger", backend="onnx", top1=None)
    failed = gap(FAILED, "no", **{"source": None, "file_bytes": None, "model": "resnet_32"})

    report = write_report([measurement(), untrained(), large, foreign, failed], tmp_path)

    trained, others = report.markdown.split("## Models without a run\n")
    assert "untrained" not in trained
    rows = [line.split("|")[1:3] for line in others.splitlines() if line.startswith("| ")][2:]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["resnet_20", "untrained"],
        ["resnet_20", "untrained, 64x64"],
        ["stranger", ""],
    ]
    assert "An untrained network is as it is initialised" in others
    assert "- resnet_32 eager fp32 b1: failed (no)" in others
    text = csv_text(efficiency_tables([untrained()]))
    assert text.splitlines()[1].split(",")[1] == "untrained"


def test_a_structure_that_changed_replaces_the_former() -> None:
    new = {"artifact_sha256": "cc" * 32, "created_at": "2026-02-01T00:00:00+00:00"}

    (table,) = efficiency_tables([untrained(p50_ms=4.0), untrained(p50_ms=2.0, **new)])

    assert [line[10] for line in cells(table)[1:]] == ["2.00 +-0.0% (8)"]


def test_without_a_compiler_only_eager_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = ["--budget", "0.1", "--threads", "1", "--batch", "1", "--out", str(tmp_path)]

    assert main(["resnet_20", *options]) == 0

    assert {record.backend: record.status for record in read_records(tmp_path)} == {
        "eager": OK,
        "compile": SKIPPED,
    }


@pytest.mark.slow  # the compiler alone takes a minute
def test_compiled_networks_agree_with_eager_ones() -> None:
    images = torch.randn(2, 3, 32, 32)

    logits = open_untrained_compiled("ghost_resnet_20@32", "cpu").run(images)

    torch.testing.assert_close(logits, open_untrained("ghost_resnet_20@32", "cpu").run(images))


@pytest.mark.slow  # builds the whole catalogue
@pytest.mark.parametrize("name", MODELS)
def test_no_activation_is_denormal(name: str) -> None:
    session = open_untrained(f"{name}@32", "cpu")
    smallest = torch.finfo(torch.float32).tiny
    found = []

    def look(module: torch.nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            found.append(bool(((output != 0) & (output.abs() < smallest)).any()))

    for module in session.model.modules():
        module.register_forward_hook(look)
    session.run(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))

    assert found
    assert not any(found)
