import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sample_run import sample_run
from torch import nn

from zoo import cli, pretrained
from zoo.card import Measured, make_card, options, summary
from zoo.checkpoint import complete_runs, save_run
from zoo.data import load_dataset
from zoo.models import MODELS, model_spec

Show = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two complete runs, of two models, and one that is not complete."""
    folder = tmp_path_factory.mktemp("runs")
    data = load_dataset("cifar100-mini")
    for model, seed, top1, commit in (
        ("resnet_20", 3, 0.125, "0123456789abcdef"),
        ("ghost_resnet_20", 0, 0.25, None),
    ):
        run = sample_run(folder / f"{model}-s{seed}", data, model=model, seed=seed)
        meta = replace(run.meta, test_top1=top1, test_top5=2 * top1, epochs_done=4, commit=commit)
        save_run(run.path, meta)
    unfinished = sample_run(folder / "resnet_20-s4", data, seed=4)
    save_run(unfinished.path, replace(unfinished.meta, finished_at=None))
    return folder


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """Call the command; what it prints."""

    def call(*arguments: str) -> str:
        assert cli.main_list(arguments) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return shown.out

    return call


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_card_as_text(show: Show, elsewhere: Path) -> None:
    lines = squeezed(show("resnet_20"))

    assert lines[0] == (
        "resnet_20: Three blocks a stage, widths 16, 32 and 64; 1x1 projection shortcuts."
    )
    for line in (
        "group baseline",
        "family resnet",
        "paper He et al. 2015, arXiv:1512.03385, section 4.2",
        "parameters 278,324 with 100 classes",
        "MACs 40,818,944 for one 32x32 image, FLOPs 81,637,888",
        "receptive field 81 x 81 pixels",
        "image sizes any size from 8 on",
        "options num_classes=100, image_size=32",
        "stage blocks map in map out parameters MACs",
        "stem conv 3x3, BatchNorm2d, ReLU 3x32x32 -> 16x32x32 464 442,368",
        "stages.0 3 x BasicBlock 16x32x32 -> 16x32x32 14,016 14,155,776",
        "stages.1 3 x BasicBlock 16x32x32 -> 32x16x16 51,648 13,107,200",
        "stages.2 3 x BasicBlock 32x16x16 -> 64x8x8 205,696 13,107,200",
        "head Linear 64 -> 100 6,500 6,400",
        "total 278,324 40,818,944",
    ):
        assert line in lines, line


def test_blocks_of_a_transformer_are_one_line(show: Show, elsewhere: Path) -> None:
    lines = squeezed(show("vit_tiny"))

    assert "receptive field global, from blocks.0 on" in lines
    assert "image sizes multiples of 4 from 8 on" in lines
    assert (
        "blocks.0 to blocks.11 12 x Block 65 tokens x 192 -> 65 tokens x 192 5,338,368 364,515,840"
    ) in lines
    assert "rest cls_token, pos_embed 12,672 0" in lines


def test_an_own_design_and_its_options(show: Show, elsewhere: Path) -> None:
    lines = squeezed(show("improved_resnet20_convnext"))

    assert "group attention, own design of a study" in lines
    assert "options num_classes=100, image_size=32, drop_path=0.05" in lines


def test_reported_figures_have_state_and_source(show: Show, elsewhere: Path) -> None:
    lines = squeezed(show("coatnet_0"))

    assert "reported by others, not measured here:" in lines
    assert (
        "66.61 other network 91.61 simulated 20.04 880.2 0.290 300 first report table 1; "
        "earned by coatnet_0_asrun, 26,312,964 parameters"
    ) in lines
    assert ("compute efficiency 0.076 percent per MFLOP (other network), first slides") in lines
    assert lines[-1] == "measured here: nothing yet"


def test_the_network_that_earned_a_figure(show: Show, elsewhere: Path) -> None:
    lines = squeezed(show("mlp_mixer_tiny_asrun"))

    assert (
        "42.47 reported 67.47 simulated 1.341924 ~0.375 300 first report table 1, beside "
        "mlp_mixer_tiny; its log names this network"
    ) in lines
    assert "59.52 reported first study's public logs" in lines


def test_remarks_of_the_second_report(show: Show, elsewhere: Path) -> None:
    lines = squeezed(show("edgenext_small"))

    assert (
        "54.46 doubtful 80.03 reported 50 second report, EdgeNeXt; best epoch 53.84; "
        "best is below top-1: inconsistent"
    ) in lines


def test_ablations_name_their_arm_and_logs_are_told_once(show: Show, elsewhere: Path) -> None:
    text = show("ghost_resnet_20")

    assert "68.50 reported 0.15 first report section 5.2, ghost_ratio: ratio2" in squeezed(text)
    assert "top1 logged" not in text
    assert "parameter efficiency 1621 percent per million (other network)" in text


def test_a_model_nobody_reported_on(show: Show, elsewhere: Path) -> None:
    assert "\nreported by others: nothing\n" in show("hyaresnet_20")


def test_measured_accuracies_name_their_run(runs: Path, show: Show, elsewhere: Path) -> None:
    lines = squeezed(show("ghost_resnet_20", "--runs", str(runs)))

    start = lines.index("measured here, on test images:")
    assert lines[start + 1 :] == [
        "top-1 % top-5 % data set recipe seed epoch chosen by commit of",
        f"25.00 50.00 cifar100-mini sample 0 1 of 4 last {runs}/ghost_resnet_20-s0",
    ]


def test_shipped_weights_and_runs_stand_side_by_side(runs: Path) -> None:
    shipped = pretrained.card("resnet_20")

    first, second = make_card(MODELS["resnet_20"], runs=complete_runs(runs)).measured

    assert (first.top1, first.commit, first.place) == (
        shipped.test_top1,
        shipped.commit,
        "the package",
    )
    assert second == Measured(
        top1=0.125,
        top5=0.25,
        dataset="cifar100-mini",
        recipe="sample",
        seed=3,
        epoch=1,
        epochs_done=4,
        selection="last",
        commit="0123456789abcdef",
        place=str(runs / "resnet_20-s3"),
    )


def test_runs_are_found_where_the_command_is_called(
    runs: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr(cli, "RUNS", Path(runs.name))

    assert f"{runs.name}/resnet_20-s3" in show("resnet_20")


def test_runs_that_are_under_way_do_not_stand_in_the_way(
    tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run(tmp_path / "runs" / "resnet_32-s0", load_dataset("cifar100-mini"))
    save_run(run.path, replace(run.meta, finished_at=None))
    monkeypatch.chdir(tmp_path)

    assert "measured here: nothing yet" in show("resnet_32")


def test_a_folder_without_runs_is_refused_when_it_was_named(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main_list(["resnet_20", "--runs", "nowhere"])

    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err == ("zoo-list: no complete run in nowhere: train one with zoo-train MODEL\n")


def test_a_card_as_json(show: Show, elsewhere: Path) -> None:
    made = json.loads(show("resnet_20", "--json"))

    assert (made["name"], made["group"], made["family"]) == ("resnet_20", "baseline", "resnet")
    assert (made["params"], made["macs"], made["flops"]) == (278_324, 40_818_944, 81_637_888)
    assert made["receptive_field"] == {"pixels": 81, "whole_from": None}
    assert made["options"] == {"num_classes": 100, "image_size": 32}
    assert made["parts"][0] == {
        "name": "stem",
        "blocks": "conv 3x3, BatchNorm2d, ReLU",
        "inputs": [3, 32, 32],
        "outputs": [16, 32, 32],
        "params": 464,
        "macs": 442_368,
    }
    assert sum(part["macs"] for part in made["parts"]) == made["macs"]
    assert made["reported"][0]["top1_state"] == "reported"
    assert made["reported_values"][0]["unit"] == "percent"
    assert [one["place"] for one in made["measured"]] == ["the package"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("resnet_19", "no model named 'resnet_19': did you mean resnet_"),
        ("zzz", "no model named 'zzz': zoo-list shows all\n"),
        ("timm:resnet19", "no model named 'timm:resnet19': did you mean timm:resnet1"),
    ],
)
def test_an_unknown_model(
    name: str, line: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main_list([name])

    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err.startswith(f"zoo-list: {line}")
    assert shown.err.count("\n") == 1


def test_a_network_of_timm_has_a_card_too() -> None:
    ours, theirs = make_card(MODELS["resnet_18"]), make_card(model_spec("timm:resnet18"))

    assert (theirs.params, theirs.macs) == (ours.params, ours.macs)
    assert theirs.receptive_field == ours.receptive_field
    assert theirs.reported == ()
    assert theirs.options["drop_path"] == 0.0


def test_the_summary_is_the_first_sentence() -> None:
    def build(*, num_classes: int, drop_path: float = 0.1) -> nn.Module:
        """Widths of v1.5, over
        two lines. And more.

        And a paragraph.
        """
        raise NotImplementedError

    def bare(*, num_classes: int) -> nn.Module:
        raise NotImplementedError

    assert summary(build) == "Widths of v1.5, over two lines."
    assert summary(bare) == ""
    assert options(build) == {"num_classes": 100, "image_size": 32, "drop_path": 0.1}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_variant_says_what_it_is(name: str) -> None:
    text = summary(MODELS[name].build)

    assert text.endswith(".")
    assert len(f"{name}: {text}") <= 160
