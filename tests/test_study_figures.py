import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.text import Text
from sample_records import ENVIRONMENT
from study_files import ablation, arm, comparison, seeds, table_1, trial

from profiling.figure_style import SMALL, drawing
from profiling.footprint import Footprint
from profiling.roofline import Roof
from profiling.study.data import Comparison, Epoch
from profiling.study.figure_accuracy import Mark, accuracy_data
from profiling.study.figure_costs import draw_costs, latency_data, macs_data, parameters_data
from profiling.study.figure_curves import curves_data, draw_curves
from profiling.study.figure_roof import roof_data
from profiling.study.figure_speed import calls_data, draw_scaling, scaling_data
from profiling.study.figures import FIGURES, captions, figure_data, figures
from zoo.reported import OTHER_NETWORK, REPORTED

GOLDEN = Path(__file__).parent / "reference" / "study" / "figures.json"
FOOTPRINT = Footprint(
    buffers=0,
    state_bytes=800_000,
    norm_flops=0,
    weights=200_000,
    moved=200_000,
    peaks=((0, 100_000),),
)
ROOF = Roof(
    environment=ENVIRONMENT,
    copies=((1_000_000, 100e9), (100_000_000, 10e9)),
    products=(("fp32", 1e12),),
    created_at="2026-01-01T00:00:00+00:00",
)
ROOFS = {ENVIRONMENT.key: ROOF}
OTHER = replace(ENVIRONMENT, cpu="Another CPU")


def falling(epochs: int, end: float = 0.5) -> tuple[Epoch, ...]:
    """A made-up training whose accuracy rises evenly to `end`."""
    return tuple(
        Epoch(epoch=n, train_loss=4.0 - 2.0 * n / epochs, train_top1=end * n / epochs)
        for n in range(1, epochs + 1)
    )


def with_footprints(one: Comparison) -> Comparison:
    """Of which it is known what the roof allows."""
    arms = []
    for side in one.arms:
        counted = [
            replace(t, measurements=tuple(replace(r, footprint=FOOTPRINT) for r in t.measurements))
            for t in side.trials
        ]
        arms.append(replace(side, trials=tuple(counted)))
    return replace(one, arms=tuple(arms))


@pytest.fixture(scope="module")
def study() -> list[Comparison]:
    """A survey and an ablation of bounded runs, with everything that any figure shows."""
    return [with_footprints(table_1()), ablation()]


@pytest.fixture(scope="module")
def drawn(study: list[Comparison]) -> dict[str, dict[str, bytes]]:
    return figures(study, ROOFS)


# All figures --------------------------------------------------------------------------------


def test_data_is_that_of_the_stored_file(study: list[Comparison]) -> None:
    data = json.loads(json.dumps(figure_data(study, ROOFS)))

    assert list(data) == list(FIGURES)
    assert data == json.loads(GOLDEN.read_text())


def test_same_comparisons_same_bytes(
    study: list[Comparison], drawn: dict[str, dict[str, bytes]]
) -> None:
    again = figures(study, ROOFS)

    assert list(drawn) == list(FIGURES)
    for name, files in drawn.items():
        assert files == again[name], name
        assert files["png"].startswith(b"\x89PNG")
        assert len(files["png"]) < 300_000
        assert files["svg"].startswith(b"<?xml")
        assert b"dc:date" not in files["svg"]


def test_every_figure_of_bounded_runs_says_so(drawn: dict[str, dict[str, bytes]]) -> None:
    for name, files in drawn.items():
        texts = [line for line in files["svg"].decode().splitlines() if "<!-- " in line]
        assert any("cifar100; bounded runs" in line for line in texts), name
        assert any("Example CPU, 2 threads" in line for line in texts), name


def test_full_trainings_are_not_called_bounded() -> None:
    (panel,) = accuracy_data([comparison("comparison", arm("a", trial(is_bounded=False)))])

    assert panel.heading.notes[0] == "cifar100; trainings of 2 epochs"


def test_no_letter_is_too_small_for_print(study: list[Comparison]) -> None:
    with drawing():
        for figure in (*draw_curves(curves_data(study)), *draw_scaling(scaling_data(study))):
            sizes = {text.get_fontsize() for text in figure.findobj(Text)}
            assert min(sizes) >= SMALL


def test_figures_leave_no_settings_behind(study: list[Comparison]) -> None:
    before = dict(matplotlib.rcParams)

    figures(study[1:], {})

    assert dict(matplotlib.rcParams) == before


def test_without_data_there_is_no_figure() -> None:
    nothing = trial(top1=None, curve=(), measurements=(), environment=None)

    assert figures([], {}) == {}
    assert figures([comparison("comparison", arm("resnet_20", nothing))], ROOFS) == {}
    assert list(figure_data([table_1()], {})) == [
        name for name in FIGURES if name not in ("ablations", "roofline")
    ]


def test_a_full_sheet_is_followed_by_another() -> None:
    sides = (arm(label, trial(label, curve=(), measurements=())) for label in ("a", "b"))
    one = comparison("ablation", *sides)

    names = list(figures([replace(one, name=f"ablation {number}") for number in range(12)], {}))

    assert names == ["ablations", "ablations-2"]
    words = captions(names)
    assert words["ablations-2"] == f"{FIGURES['ablations']} Page 2."
    assert words["ablations"] == FIGURES["ablations"]


def test_plans_of_one_name_are_told_apart() -> None:
    twins = [table_1(), replace(table_1(), plan="mine.toml")]

    titles = [panel.heading.title for panel in accuracy_data(twins)]

    assert titles == [
        "The first study's networks (comparison)",
        "The first study's networks (mine.toml)",
    ]


def test_loading_the_figures_loads_no_matplotlib() -> None:
    code = "import sys, profiling.study.figures; sys.exit('matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Accuracy -----------------------------------------------------------------------------------


def test_accuracy_has_its_spread_and_what_is_reported_beside() -> None:
    survey = comparison(
        "comparison",
        arm("resnet_20", *seeds("resnet_20", 0.50, 0.52, 0.54)),
        arm("coatnet_0", *seeds("coatnet_0", 0.60)),
        arm("resnet_56", trial("resnet_56", top1=None)),
    )

    (panel,) = accuracy_data([survey])

    best, middle, unmeasured = panel.bars
    assert (best.label, best.top1) == ("coatnet_0", replace(best.top1, value=0.60, sd=None, n=1))
    assert middle.top1.value == pytest.approx(0.52)
    assert middle.top1.sd == pytest.approx(0.02)
    assert middle.top1.n == 3
    assert best.reported == (Mark(top1=0.6661, state=OTHER_NETWORK, source="first report table 1"),)
    assert (unmeasured.label, unmeasured.top1) == ("resnet_56", None)
    assert unmeasured.reported[0].top1 == 0.725


def test_only_whole_trainings_on_all_images_share_the_axis_of_reported_ones() -> None:
    def shares(**changes: object) -> bool:
        survey = comparison("comparison", arm("resnet_20", trial(**changes)))
        return accuracy_data([survey])[0].shares_axis

    assert shares(is_bounded=False)
    assert not shares(is_bounded=True)
    assert not shares(is_bounded=False, dataset="cifar100-mini")


def test_second_study_shows_its_own_figures() -> None:
    survey = comparison(
        "second-study",
        arm("ViT, 200 epochs", trial("vit_tiny", top1=0.6)),
        arm("ViT, 50 epochs", trial("vit_tiny", seed=1, top1=0.5)),
        arm("vit_tiny", trial("vit_tiny", seed=2, top1=0.4)),
    )

    (panel,) = accuracy_data([survey])

    long = Mark(top1=0.5855, state=REPORTED, source="second report, ViT")
    short = replace(long, top1=0.5362)
    assert [bar.reported for bar in panel.bars] == [(long,), (short,), ()]


def test_an_ablation_is_no_survey() -> None:
    assert accuracy_data([ablation()]) == []
    assert latency_data([ablation()]) == []


# Costs --------------------------------------------------------------------------------------


def test_front_of_counted_costs() -> None:
    (params,), (macs,) = parameters_data([table_1()]), macs_data([table_1()])

    assert [point.cost for point in params.points] == [200_000.0, 800_000.0, 20_000_000.0]
    assert params.front == ((200_000.0, 0.5), (800_000.0, 0.6))
    assert macs.front == ((40_000_000.0, 0.5), (120_000_000.0, 0.6))
    assert all(point.is_named for point in params.points)


def test_latency_is_that_of_the_very_file_on_each_machine() -> None:
    here, there = trial("resnet_20", 0), trial("resnet_20", 1)
    moved = tuple(replace(record, environment=OTHER) for record in there.measurements)
    survey = comparison("comparison", arm("resnet_20", here, replace(there, measurements=moved)))

    first, second = latency_data([survey])

    assert [panel.heading.notes[1].split(",")[0] for panel in (first, second)] == [
        "measured on Another CPU",
        "measured on Example CPU",
    ]
    assert [(p.series, p.cost, p.top1.value) for p in first.points] == [
        ("eager fp32", 4.0, 0.51),
        ("onnx fp32", 1.0, 0.51),
    ]
    # Both are as accurate, so that the fast one alone lies on the front, and has the name.
    assert second.front == ((1.0, 0.5),)
    assert [point.is_named for point in second.points] == [False, True]


def test_names_of_networks_near_chance_cover_no_other_name() -> None:
    known = {  # top-1, ms of onnx and of eager: accuracies that tie at times that nearly do
        "resnet_56": (0.015, 2.95, 11.5),
        "improved_resnet20_convnext": (0.023, 0.63, 3.13),
        "eca_resnet_32": (0.019, 1.41, 4.14),
        "resnet_32": (0.012, 1.2, 3.4),
        "ecanet20_adaptive": (0.013, 0.976, 3.04),
        "eca_resnet_20": (0.013, 0.976, 3.04),
        "ecanet20_fixed_k3": (0.013, 0.976, 3.04),
        "resnet_20": (0.016, 0.66, 2.09),
        "mlp_mixer_b16": (0.014, 393.0, 282.0),
        "segnext_mscan_tiny": (0.049, 0.42, 5.05),
        "ghost_resnet_32": (0.012, 1.71, 11.0),
        "ghost_resnet_20": (0.013, 0.918, 6.29),
    }
    sides = [
        arm(name, trial(name, top1=top1, times_ms={("onnx", 1): onnx, ("eager", 1): eager}))
        for name, (top1, onnx, eager) in known.items()
    ]

    with drawing():
        (figure,) = draw_costs(latency_data([comparison("comparison", *sides)]))
        figure.draw_without_rendering()
        names = figure.axes[0].texts
        boxes = [Text.get_window_extent(name) for name in names]  # without the line to the point

    assert {name.get_text() for name in names} == known.keys()
    assert not [
        (names[n].get_text(), names[m].get_text())
        for n, one in enumerate(boxes)
        for m, other in enumerate(boxes[:n])
        if one.overlaps(other)
    ]


# Curves -------------------------------------------------------------------------------------


def test_curves_are_means_over_the_seeds() -> None:
    pair = (trial(seed=0, curve=falling(4, 0.4)), trial(seed=1, curve=falling(5, 0.6)))

    (panel,) = curves_data([comparison("comparison", arm("resnet_20", *pair))])

    (curve,) = panel.curves
    assert curve.epochs == (1, 2, 3, 4)  # as far as both came
    assert curve.top1[3] == pytest.approx((0.4 + 0.48) / 2)
    assert curve.top1_sd[3] == pytest.approx(statistics.stdev((0.4, 0.48)))
    assert curve.loss[0] == pytest.approx((3.5 + 3.6) / 2)
    assert panel.end is None
    assert panel.accuracy == "training top-1, %"


def test_held_out_images_count_where_every_arm_has_them() -> None:
    held_out = tuple(replace(line, val_top1=0.25) for line in falling(4))
    first = arm("a", trial(seed=0, curve=held_out))

    (panel,) = curves_data([comparison("comparison", first)])
    (mixed,) = curves_data([comparison("comparison", first, arm("b", trial(seed=1)))])

    assert (panel.accuracy, panel.curves[0].top1) == ("validation top-1, %", (0.25,) * 4)
    assert mixed.accuracy == "training top-1, %"


def test_curves_beyond_what_can_be_told_apart_are_left_out_and_said() -> None:
    arms = [
        arm(f"arm {n}", trial(seed=n, top1=0.1 + 0.01 * n, curve=falling(40))) for n in range(9)
    ]

    (panel,) = curves_data([comparison("comparison", *arms)])

    assert [curve.label for curve in panel.curves] == [f"arm {n}" for n in range(2, 9)]
    assert panel.heading.title == "The first study's networks, the 7 most accurate of 9"
    assert panel.end == 32


# Times --------------------------------------------------------------------------------------


def test_scaling_has_every_batch() -> None:
    (panel,) = scaling_data([comparison("comparison", arm("resnet_20", trial()))])

    eager, onnx = panel.lines
    assert eager.points == ((1, 250.0), (256, 800.0))
    assert onnx.points == ((1, 1000.0), (256, 1280.0))


def test_a_single_batch_does_not_scale() -> None:
    once = trial(times_ms={("eager", 1): 4.0})

    assert scaling_data([comparison("comparison", arm("resnet_20", once))]) == []


def test_calls_of_all_seeds_are_one_distribution() -> None:
    def timed(seed: int, *samples: float) -> object:
        one = trial(seed=seed, times_ms={("eager", 1): 1.0})
        (record,) = one.measurements
        changed = replace(
            record, samples_ms=samples, round_calls=(len(samples),), round_reference_ms=(1.0,)
        )
        return replace(one, measurements=(changed,))

    both = arm(
        "resnet_20", timed(0, *map(float, range(1, 51))), timed(1, *map(float, range(51, 101)))
    )

    (panel,) = calls_data([comparison("comparison", both)])

    (box,) = panel.boxes
    assert (panel.batches, box.batch, box.calls) == ((1,), 1, 100)
    assert box.at_shares_ms == (5.0, 25.0, 50.0, 75.0, 95.0)


def test_times_of_ablations_are_drawn_where_there_is_no_survey() -> None:
    twice = [ablation(), replace(ablation(), name="again")]

    (panel,) = calls_data(twice)

    assert panel.heading.title == "All networks"
    assert [box.label for box in panel.boxes if box.batch == 1 and box.runtime == "eager fp32"] == [
        "resnet_20",
        "ecanet20_adaptive",
        "ecanet20_fixed_k3",
    ]
    assert panel.boxes[0].calls == 3 * 8  # a job of two ablations counts once
    assert [one.heading.title for one in calls_data([*twice, table_1()])] == [
        "The first study's networks"
    ]


def test_a_network_is_under_the_roof_once_for_all_its_seeds() -> None:
    pair = (trial(seed=0), trial(seed=1, times_ms={("eager", 1): 2.0}))
    survey = with_footprints(comparison("comparison", arm("resnet_20", *pair)))

    (panel,) = roof_data([survey], ROOFS)

    (height,) = [one for one in panel.under.heights if one.series == "eager fp32 b1"]
    # 80 MFLOPs in 4 ms and in 2 ms; they move 1.6 MB.
    assert height.flops == pytest.approx((20e9 + 40e9) / 2)
    assert height.intensity == pytest.approx(50.0)
    assert [line.name for line in panel.under.lines] == ["roof fp32", "with data in the caches"]
    assert roof_data([survey], {}) == []
