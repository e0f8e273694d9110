import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from zoo import catalogue, cli, pretrained
from zoo.catalogue import Choice
from zoo.models import MODELS, list_models
from zoo.registry import GROUPS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command; what it returns, prints and complains of."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main_list(arguments)
        except SystemExit as left:
            code = int(left.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def names(text: str) -> list[str]:
    """The first column of the plain table."""
    return [line.split()[0] for line in text.splitlines()[1:]]


def select(**options: object) -> list[str]:
    return [spec.name for spec in catalogue.select(MODELS.values(), Choice(**options))]


def test_every_variant_is_listed_with_its_promises(run: Run) -> None:
    code, out, err = run()

    assert (code, err) == (0, "")
    assert sorted(names(out)) == list(list_models())
    for line in out.splitlines()[1:]:
        spec = MODELS[line.split()[0]]
        assert f" {spec.params:,} " in line
        assert f" {spec.macs / 1e6:,.1f} " in line
        assert line.endswith(spec.paper)


def test_plain_lines_say_everything(run: Run) -> None:
    _, out, _ = run("--family", "coatnet")

    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert lines["name"] == (
        "name group family parameters MACs M own design reported top-1 % state weights paper"
    )
    assert " 66.61 other network Dai et al. 2021" in lines["coatnet_0"]
    assert " 66.61 reported Dai et al. 2021" in lines["coatnet_0_asrun"]
    assert lines["coatnet_1"].startswith("coatnet_1 hybrid coatnet 40,617,420 648.")


def test_states_own_designs_and_weights_are_shown(run: Run) -> None:
    _, out, _ = run("--sort", "name")

    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert " 60.00 simulated " in lines["hornet_tiny"]
    assert " 54.46 doubtful " in lines["edgenext_small"]
    assert " 53.62 reported, best epoch " in lines["vit_tiny"]
    assert " own 72.33 reported " in lines["improved_resnet20_convnext"]
    assert " 66.50 reported yes " in lines["resnet_20"]


def test_the_order_is_by_group_and_parameters() -> None:
    specs = [MODELS[name] for name in select()]

    keys = [(GROUPS.index(spec.group), spec.params) for spec in specs]
    assert keys == sorted(keys)
    assert select() != select(sort="name")


def test_other_orders() -> None:
    assert select(sort="name") == list(list_models())
    for key in ("params", "macs"):
        values = [getattr(MODELS[name], key) for name in select(sort=key)]
        assert values == sorted(values)


def test_filters_combine() -> None:
    for group in GROUPS:
        assert {MODELS[name].group for name in select(groups=(group,))} == {group}
    found = select(groups=("mlp", "hybrid"), families=("mixer",), max_params=2_000_000)

    assert found == ["mlp_mixer_nano", "mlp_mixer_tiny_asrun"]


def test_bounds_are_inclusive() -> None:
    assert "resnet_20" in select(min_params=278_324)
    assert "resnet_20" in select(max_params=278_324)
    assert "resnet_20" not in select(min_params=278_325)
    assert "resnet_20" not in select(max_params=278_323)


def test_filters_of_the_command(run: Run) -> None:
    wanted = ("--group", "baseline,attention", "--min-params", "300k", "--max-params", "0.5M")

    code, out, _ = run(*wanted, "--family", "resnet, eca", "--sort", "macs")

    assert code == 0
    assert names(out) == ["resnet_32", "eca_resnet_32"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("270000", 270_000), ("300k", 300_000), ("1.5M", 1_500_000), ("0", 0), ("0.001k", 1)],
)
def test_numbers_of_parameters(text: str, number: int) -> None:
    assert cli.count(text) == number


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "1e6", "300 k", "10g", "1,000", "1.0001k"])
@pytest.mark.parametrize("option", ["--min-params", "--max-params"])
def test_wrong_numbers_of_parameters(option: str, text: str, run: Run) -> None:
    code, out, err = run(f"{option}={text}")

    assert (code, out) == (2, "")
    assert err == (
        f"zoo-list: argument {option}: expected a number of parameters such as 270000, 300k or "
        f"1.5M, got {text!r} (see zoo-list --help)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--group", "x"], "no group named 'x': choose one of ablation, attention, baseline"),
        (["--group", "modern-conv"], "no group named 'modern-conv': did you mean modern conv?\n"),
        (["--group", "mlp,"], "no group named '': choose one of ablation"),
        (["--family", "mixr"], "no family named 'mixr': did you mean mixer?\n"),
        (["--min-params", "2M", "--max-params", "1k"], "--min-params 2,000,000 is above --max-pa"),
        (["--sort", "x"], "argument --sort: invalid choice: 'x' (choose from "),
        (["--json", "--csv"], "argument --csv: not allowed with argument --json"),
        (["--jsn"], "unrecognized arguments: --jsn"),
        (["resnet_20", "resnet_32"], "unrecognized arguments: resnet_32"),
        (["--runs", "runs"], "--runs belongs to the card of one model: zoo-list MODEL --runs DIR"),
        (["resnet_20", "--csv"], "--csv belongs to the list: leave it or resnet_20 out\n"),
        (["resnet_20", "--group", "mlp"], "--group belongs to the list: leave it or resnet_20 o"),
        (["resnet_20", "--max-params", "0"], "--max-params belongs to the list: leave it or res"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], line: str, run: Run) -> None:
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith(f"zoo-list: {line}")
    assert err.count("\n") == 1


def test_an_empty_result_names_the_nearest(run: Run) -> None:
    code, out, err = run("--group", "mlp", "--max-params", "600k")

    assert (code, out) == (2, "")
    assert err.startswith("zoo-list: no variant fits all of these options: the nearest are ")
    assert err.endswith(
        "the nearest are mlp_mixer_nano (mlp, 673,316 parameters), mlp_mixer_tiny_asrun (mlp, "
        "1,341,924 parameters), mlp_mixer_tiny (mlp, 3,639,076 parameters)\n"
    )
    assert err.count("\n") == 1


def test_json_has_exact_numbers(run: Run) -> None:
    code, out, _ = run("--json", "--family", "coatnet", "--max-params", "25M")

    assert code == 0
    assert json.loads(out) == [
        {
            "name": "coatnet_0",
            "group": "hybrid",
            "family": "coatnet",
            "params": MODELS["coatnet_0"].params,
            "macs": MODELS["coatnet_0"].macs,
            "flops": 2 * MODELS["coatnet_0"].macs,
            "own_design": False,
            "reported_top1": 0.6661,
            "reported_top1_is_best": False,
            "reported_state": "other network",
            "reported_earned_by": "coatnet_0_asrun",
            "reported_source": "first report table 1",
            "has_weights": False,
            "paper": MODELS["coatnet_0"].paper,
        }
    ]


def test_csv_has_the_fields_of_json(run: Run) -> None:
    _, as_json, _ = run("--json", "--sort", "params")
    _, as_csv, _ = run("--csv", "--sort", "params")

    lines = list(csv.DictReader(io.StringIO(as_csv)))
    expected = [
        {key: "" if value is None else str(value) for key, value in entry.items()}
        for entry in json.loads(as_json)
    ]
    assert lines == expected


def test_weights_are_those_of_the_package(run: Run) -> None:
    _, out, _ = run("--json")

    shipped = {entry["name"] for entry in json.loads(out) if entry["has_weights"]}
    assert shipped == set(pretrained.available())


def drawn(width: int) -> str:
    listed = catalogue.entries(catalogue.select(MODELS.values(), Choice()))
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    catalogue.print_table(listed, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_wide_terminal_shows_all_columns() -> None:
    text = drawn(250)

    for title, _, _ in catalogue.COLUMNS:
        assert title in text


def test_a_narrow_terminal_goes_without_some() -> None:
    text = drawn(80)

    assert "paper" not in text
    for name in list_models():
        assert f" {name} " in text
        assert f" {MODELS[name].params:,} " in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_command_draws_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")

    code, out, _ = run("--group", "modern conv")

    assert code == 0
    assert "convnext_tiny" in out
    assert "\u2500" in out  # the line under the heading


def test_the_list_is_quick_and_light() -> None:
    code = (
        "import sys; from zoo.cli import main_list; code = main_list(['--json']); "
        # Of this program alone: the figure of getrusage begins with what the parent held.
        "status = dict(line.split(':') for line in open('/proc/self/status')); "
        "print(status['VmHWM'].split()[0], file=sys.stderr); "
        "print('zoo.data' in sys.modules, 'timm' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    before = time.monotonic()

    result = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=60, check=False
    )

    assert result.returncode == 0, result.stderr
    peak_kib, imported = result.stderr.splitlines()
    assert len(json.loads(result.stdout)) == len(MODELS)
    assert int(peak_kib) * 1024 < 1.5e9
    assert time.monotonic() - before < 30
    assert imported == "False False"
