"""What the README and the committed results say is what the code and the records say."""

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from benchmarks import scaling

import export.cli
import export.use_cli
import profiling.cli
import profiling.options
import profiling.report_cli
import training.cli
import training.pretrain_cli
import training.sweep_cli
import zoo.cli
from profiling import Measurement, read_records
from training import Recipe
from training.recipes import RECIPES
from zoo.checkpoint import Checkpoint
from zoo.data import load_dataset
from zoo.evaluate import evaluate
from zoo.models import create_model, list_models
from zoo.pretrained import card
from zoo.session import EagerSession

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "bench_results"
MAINS: dict[str, Callable[[list[str]], int]] = {
    "zoo-train": training.cli.main,
    "zoo-pretrain": training.pretrain_cli.main,
    "zoo-sweep": training.cli.main_sweep,
    "zoo-export": export.cli.main,
    "zoo-eval": export.use_cli.main_eval,
    "zoo-predict": export.use_cli.main_predict,
    "zoo-bench": profiling.cli.main,
    "zoo-report": profiling.report_cli.main_report,
    "zoo-list": zoo.cli.main_list,
    "zoo-doctor": zoo.cli.main_doctor,
}
COMMANDS = re.findall(r"^    ((?:zoo-|make |torchrun ).*)$", README, re.MULTILINE)


SHOWN = (
    ("eager", "fp32", "torch, eager"),
    ("compile", "fp32", "torch.compile"),
    ("onnx", "fp32", "ONNX Runtime"),
    ("openvino", "bf16", "OpenVINO in bf16"),
    ("openvino", "int8", "OpenVINO in int8"),
)


def table() -> str:
    """The rows of the committed runs that the README shows, from the records."""
    by_key = {
        (record.model, record.backend, record.precision, record.batch): record
        for record in read_records(RESULTS)
    }
    lines = [
        "| model | on | top-1 % | ms for 1 image | images/s at 256 | peak MiB at 256 | file MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model in ("resnet_20", "improved_resnet20_convnext"):
        for backend, precision, title in SHOWN:
            one, many = (by_key[model, backend, precision, batch] for batch in (1, 256))
            lines.append(f"| {model} | {title} | {row(one, many)} |")
    return "\n".join(lines)


def row(one: Measurement, many: Measurement) -> str:
    assert one.top1 is not None
    assert one.file_bytes is not None
    return (
        f"{100 * one.top1:.2f} | {one.p50_ms:.3g} | {many.images_per_s:,.0f} | "
        f"{many.peak_memory_mib:.0f} | {one.file_bytes / 2**20:.2f}"
    )


def test_the_artifacts_are_of_as_many_networks_as_told() -> None:
    networks = list((RESULTS / "artifacts" / "networks").glob("*.json"))

    assert "[Every artifact of six networks](" in README
    assert len(networks) == 6


def test_the_table_is_that_of_the_records() -> None:
    shown = README.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]

    assert table() in shown


def test_the_run_is_as_told() -> None:
    meta = Checkpoint.open(RESULTS / "runs" / "resnet_20-s0").meta

    assert (meta.model, meta.recipe_name, meta.epochs_done, meta.compiled) == (
        "resnet_20",
        "quick",
        15,
        True,
    )
    assert meta.test_top1 is not None
    assert meta.test_top1 >= 0.60
    minutes = f"{meta.train_seconds / 60:.0f} minutes"
    told = " ".join(README.split())
    assert f"with the 15 epochs of the recipe {meta.test_top1:.2%} after {minutes}" in told


@pytest.mark.parametrize(
    ("number", "changes", "words"),
    [
        ("-3", {"epochs": 40, "warmup_epochs": 8.0}, "held out: {top1} top-1 after {time} on two"),
        (
            "-4",
            {"epochs": 48, "warmup_epochs": 9.6, "full_train": True},
            "with all of them, `--epochs 48 --full-train`, it is {top1} after {time} there",
        ),
    ],
)
def test_longer_runs_are_as_told(number: str, changes: dict[str, object], words: str) -> None:
    short, long = (
        Checkpoint.open(RESULTS / "runs" / f"resnet_20-s0{n}").meta for n in ("", number)
    )

    assert replace(Recipe.from_json(short.recipe), **changes) == Recipe.from_json(long.recipe)
    assert long.environment["cpu"] == "Intel(R) Xeon(R) Processor"
    top1, time = f"{long.test_top1:.2%}", f"{long.train_seconds / 60:.0f} minutes"
    assert words.format(top1=top1, time=time) in " ".join(README.split())
    assert f"{top1}, {time}" in RECIPES["quick"].expected
    assert long.train_seconds < 45 * 60
    assert long.compiled


def test_the_trained_weights_are_as_told() -> None:
    shipped = card("resnet_20")
    run = RESULTS / "runs" / "improved_resnet20_convnext-s0"

    told = " ".join(README.split())
    assert f"come with the package ({shipped.test_top1:.2%} top-1" in told
    assert f"]({run.relative_to(ROOT)}/) ({Checkpoint.open(run).meta.test_top1:.2%})" in told
    create_model("improved_resnet20_convnext", pretrained=True, weights=run)


@pytest.mark.parametrize("run", ["resnet_20-s0-2", "improved_resnet20_convnext-s0"])
def test_the_runs_on_a_gpu_are_as_told(run: str) -> None:
    meta = Checkpoint.open(RESULTS / "runs" / run).meta

    assert (meta.recipe_name, meta.epochs_done, meta.selection) == ("study", 300, "last")
    assert "H200" in str(meta.environment)
    told = " ".join(README.split())
    assert f"{meta.train_seconds:.0f} s for `{meta.model}` ({meta.test_top1:.2%}" in told


def trained_on(machine: str) -> dict[str, list[str]]:
    """Images/s, "times" and the share of its data, of each contender, in a machine's section."""
    page = (RESULTS / "training" / "README.md").read_text()
    rows = page.partition(machine)[2].partition("\n## ")[0].splitlines()
    cells = [row.split("|") for row in rows if row.count("|") > 5]
    return {
        row[1].strip(): [row[3].split("(")[0].strip(), row[4].split("(")[0].strip(), row[6]]
        for row in cells
    }


def test_the_speed_of_training_is_as_told() -> None:
    told = " ".join(README.split())
    gpu, cpu, plain, avx512 = map(
        trained_on,
        (
            "batch 1024, NVIDIA H200",
            "\nIntel(R) Xeon(R) Processor, 2 cores",
            "environment c99df1a9f874",
            "environment a0ffba8ba5ee",
        ),
    )

    assert (
        f"{gpu['ours-compile'][0]} images/s with augmentation on, "
        f"{gpu['torchvision-eager'][1]} times torchvision's loop "
        f"and {gpu['timm-eager'][1]} times timm's"
    ) in told
    assert (
        f"{cpu['ours-compile'][0]} images/s on two cores of an Intel Xeon, "
        f"{cpu['torchvision-eager'][1]} times torchvision's loop and {cpu['timm-eager'][1]} times "
        f"timm's, {cpu['torchvision-compile'][1]} and {cpu['timm-compile'][1]} times where these "
        "compile too"
    ) in told
    assert (
        f"augmentation is {cpu['ours-compile'][2].split('(')[1].strip(' )')} of that step" in told
    )
    assert (
        f"AMD EPYC with AVX512-BF16 these are {avx512['ours-compile'][0]} images/s, "
        f"{avx512['torchvision-eager'][1]} and {avx512['timm-eager'][1]} times, "
        f"{avx512['torchvision-compile'][1]} and {avx512['timm-compile'][1]} times."
    ) in told
    assert (
        f"AMD EPYC with AVX2 alone {plain['ours-compile'][0]} images/s, "
        f"{plain['torchvision-eager'][1]} and {plain['timm-eager'][1]} times the two, "
        f"{plain['torchvision-compile'][1]} and {plain['timm-compile'][1]} times where they compile"
    ) in told


def test_the_efficiency_of_two_processes_is_as_told() -> None:
    page = (RESULTS / "training" / scaling.PAGE).read_text()
    record = json.loads((RESULTS / "training" / scaling.RECORD).read_text())

    (efficiency,) = re.findall(r"measured: two together, T\(2\).*\| +(\d+%) \|", page)

    assert page == scaling.page(record)
    told = " ".join(README.split())
    assert f"a step of `vit_tiny` kept {efficiency} of its efficiency" in told


def test_the_formats_of_memory_are_as_told() -> None:
    page = (RESULTS / "memory_format" / "README.md").read_text()

    found = re.findall(
        r"## .*(EPYC, fp32|Xeon.*, bf16).*\n\n"
        r"Channels-last is faster for (\d+) of 69 networks and slower for (\d+)",
        page,
    )

    (_, *epyc), (_, *xeon) = found
    assert (
        "is faster for {} of our 69 networks, and slower for {}, on one thread of a Xeon in bf16, "
        "and for {} and {} on one of an EPYC in fp32".format(*xeon, *epyc)
    ) in " ".join(README.split())


def test_the_committed_report_is_that_of_the_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = ["bench_results", "--out", str(tmp_path / "bench_results" / "report")]

    code = profiling.report_cli.main_report(
        [*options, "--readme", str(tmp_path / "bench_results" / "README.md")]
    )

    assert code == 0, capsys.readouterr().err
    for name in ("README.md", "report/efficiency.md", "report/efficiency.csv"):
        made = (tmp_path / "bench_results" / name).read_text()
        assert made == (RESULTS / name).read_text(), name


@pytest.mark.slow
def test_the_committed_weights_have_the_stored_accuracy_on_full_data() -> None:
    if not os.environ.get("ZOO_DATA"):
        pytest.skip("needs the full CIFAR-100: set ZOO_DATA to its folder")
    run, data = Checkpoint.open(RESULTS / "runs" / "resnet_20-s0"), load_dataset("cifar100")

    found = evaluate(
        EagerSession(run.model()), data.test.images, data.test.fine, run.meta.input_preprocessing
    )

    assert data.digest == run.meta.dataset.digest
    # Another CPU rounds differently, and an image on the border may fall to the other side.
    assert found.top1 == pytest.approx(run.meta.test_top1, abs=5e-4)


def test_what_the_readme_says_of_trust_is_what_was_measured() -> None:
    trust = RESULTS / "trust"
    told = " ".join(README.split())
    repeated = json.loads((trust / "repeatability.json").read_text())["rows"]
    spread = [row["variation"] for row in repeated]
    agreement = json.loads((trust / "agreement.json").read_text())["rows"]

    assert f"differ by {min(spread):.1%} to {max(spread):.1%} in `x ref`" in told
    assert "tell the same times within 5%" in told
    assert all(abs(row["ratio"] - 1) < 0.05 for row in agreement)


def test_what_the_readme_says_of_the_gate_is_what_its_trials_showed() -> None:
    shown = (RESULTS / "gate" / "README.md").read_text()

    trials = "0 false alarms in 40 trials, 0 false alarms in 20 fresh ones\n"
    assert f"- the code against itself: {trials}" in shown
    planted = "40 of 40 found, 20 of 20 fresh ones\n"
    assert f"- 15% more work at a place drawn by the seed: {planted}" in shown
    assert "it alarmed in none and found 40, 20 of either after its test was chosen." in README


def test_what_the_readme_says_of_the_example_study_is_what_was_done() -> None:
    page = (RESULTS / "study" / "report" / "study" / "index.md").read_text()
    done = re.search(r"(\d+ of \d+) trainings are done", page)

    assert done is not None
    assert f"({done[1]} done so far: " in README
    runs, jobs = RESULTS / "study" / "runs", RESULTS / "study" / "jobs"
    begun = [json.loads(file.read_text())["started_at"] for file in runs.glob("*/*/meta.json")]
    records = [json.loads(file.read_text()) for file in runs.glob("*/*/records/*/*.json")]
    end = datetime.fromisoformat(max(record["created_at"] for record in records))
    span = end - datetime.fromisoformat(min(begun))
    assert 72 < span.total_seconds() / 60 < 74  # start and report apart
    assert "in 74 minutes of two cores" in README
    stored = [json.loads(file.read_text()) for file in jobs.iterdir()]
    steps = [job["work"]["steps"] for job in stored]
    assert f"{min(steps)} to {max(steps)} steps" in README
    failed = [job for job in stored if job["state"] == "failed"]
    assert (len(failed), sum(job["run"] is None for job in failed)) == (5, 1)  # and four more


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] == "torchrun":
        assert words[3:5] == ["-m", "training.cli"]
        words = ["zoo-train", *words[5:]]
    parsers = {
        "zoo-train": training.cli.build_parser,
        "zoo-sweep": training.sweep_cli.build_parser,
        "zoo-bench": profiling.options.bench_parser,
        "zoo-report": profiling.options.report_parser,
    }
    if words[0] in parsers:
        parsers[words[0]]().parse_args(words[1:])
    else:
        with pytest.raises(SystemExit) as caught:
            MAINS[words[0]]([*words[1:], "--help"])
        assert caught.value.code == 0


def test_the_readme_shows_commands_and_models() -> None:
    assert len(COMMANDS) >= 10
    assert {shlex.split(command)[0] for command in COMMANDS} >= {"zoo-train", "zoo-bench", "make"}
    for name in (*MAINS, *list_models()):
        assert f"`{name}" in README, name


def test_the_order_of_the_mission_is_shown() -> None:
    order = [
        "zoo-train improved_resnet20_convnext --compile",
        "zoo-export --to onnx",
        "zoo-bench --batch 1,256",
    ]

    positions = [COMMANDS.index(command) for command in order]

    assert positions == sorted(positions)


@pytest.mark.slow
def test_the_python_of_the_readme_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    for _ in range(2):
        exec(compile(block, "README.md", "exec"), {"__name__": "notebook"})

    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 * 7  # one line of accuracy, six of latency
    for line in out[1:7]:
        backend, batch, p50_ms = line.split()
        assert backend in {"eager", "compile", "onnx"}
        assert batch in {"1", "8"}
        assert float(p50_ms) > 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "resnet_20-s0",
        "resnet_20-s0-2",
    ]
    assert json.loads(Path("runs/resnet_20-s0/meta.json").read_text())["test_top1"] is not None
